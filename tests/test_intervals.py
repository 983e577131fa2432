"""The gap over a cube against exact fractions, all vertices, closed forms and float64.

Nothing here is left to chance: seeds are fixed, and every assertion is a theorem for each of them.
"""

import functools
import itertools
import math
from fractions import Fraction

import jax
import mpmath
import numpy as np
import pytest
from oracles import NOT_FINITE, activate, batch, difference64, removal

from jaxprune import activations, engine, gaps, networks, pruning
from jaxprune.gaps import LinfBall, intervals
from jaxprune.gaps.intervals import Interval
from jaxprune.studies import plan as plans
from jaxprune.studies.verify import verify

ci = pytest.mark.ci

OUTPUTS = {"linf": np.inf, "l1": 1, "l2": 2}
ACTIVATIONS = [
    activations.relu,
    activations.leaky_relu(0.2),
    activations.tanh,
    activations.erf,
    activations.identity,
]
measure = jax.jit(gaps.measure_linf_ball, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnums=0)
def bounds_of(network, params, removed, radii):
    return jax.vmap(functools.partial(gaps.interval_bounds, network))(params, removed, radii)


def upper_bounds(network, pairs, radii):
    """Bounds of pairs `(params, removed)`, each over its own cube, in one batch."""
    return jax.tree.map(np.asarray, bounds_of(network, *batch(pairs), np.array(radii, np.float32)))


def points(n, radius):
    """All vertices of the cube, its centre's neighbourhood, and points between."""
    vertices = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    inner = np.random.default_rng(0).uniform(-1, 1, (1000, n))
    return radius * np.concatenate([vertices, inner, 1e-3 * inner])


RADII = (0.5, 0.5, 16.0, 2.0**-7)


@functools.cache
def bounded(network, which):
    """One batch: a pair for each radius, then one with each of the values that are not finite."""
    pairs = [removal(network, seed, which=which) for seed in range(len(RADII))]
    for value in NOT_FINITE:
        params, removed = removal(network, len(RADII), which=which)
        params[0][3, 2] = value
        if removed[0] is not None:
            removed[0][3, 2] = 0
        pairs.append((params, removed))
    upper = upper_bounds(network, pairs, [*RADII, *[1.0] * len(NOT_FINITE)])
    return pairs, upper


TANH = networks.dense((6, 9, 5), activations.tanh)
BATCHES = [
    pytest.param(TANH, "all", id="dense 6-9-5, tanh, all", marks=pytest.mark.slow),
    *(
        pytest.param(networks.dense(widths, activation), which, marks=tier)
        for widths, activation, which, tier in (
            ((6, 9, 7, 5), activations.relu, "middle", pytest.mark.slow),
            ((6, 9, 7, 5), activations.tanh, "all", pytest.mark.slow),
            ((6, 9, 5), activations.relu, "all", ci),
            ((6, 9, 5), activations.leaky_relu(0.2), "dense1", pytest.mark.slow),
            ((6, 9, 5), activations.erf, "dense2", pytest.mark.slow),
            ((6, 9, 5), activations.identity, "dense1", pytest.mark.slow),
        )
    ),
]


def assert_above(upper, i, d, most_slack):
    """The i-th bounds are at least the norms of the rows of d, and at most so many times those."""
    for output, order in OUTPUTS.items():
        most = np.linalg.norm(d, order, axis=1).max()
        assert most <= getattr(upper, output)[i] <= most_slack * most


@pytest.mark.parametrize(("network", "which"), BATCHES, ids=str)
def test_every_point_of_the_cube_is_below_the_bound(network, which):
    pairs, upper = bounded(network, which)
    for i, radius in enumerate(RADII):
        assert_above(upper, i, difference64(network, *pairs[i], points(6, radius)), 30)


@pytest.mark.parametrize(("network", "which"), BATCHES, ids=str)
def test_a_nonfinite_weight_has_no_finite_bound(network, which):
    _, upper = bounded(network, which)
    assert not np.isfinite(np.array(upper)[:, len(RADII) :]).any()


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(networks.convolutional((1, 3, 2), 3, strides=(1, 2)), marks=ci),
        pytest.param(
            networks.convolutional((1, 3), 3, padding="CIRCULAR", outputs=4),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["same, stride", "circular, read-out"],
)
def test_convolutions(network):
    pairs = [removal(network, seed) for seed in range(3)]
    upper = upper_bounds(network, pairs, [1.0] * len(pairs))
    for i, pair in enumerate(pairs):
        assert_above(upper, i, difference64(network, *pair, points(9, 1.0)), 20)


def test_one_layer_has_closed_forms(key):
    """linf: the largest row sum of |P|; l1: the largest over all vertices, at most all of |P|."""
    network = networks.dense((8, 6))
    params, removed = removal(network, 0, q=0.6)
    p = [[abs(Fraction(float(v))) for v in row] for row in removed[0]]
    exact = Fraction(0.75) * max(map(sum, p))

    @jax.jit
    def measured(key, params, removed):
        gap = lambda output: (
            gaps.measure_linf_ball(LinfBall(0.75, output), key, network, params, removed).gap
        )
        return gaps.interval_bounds(network, params, removed, 0.75), {o: gap(o) for o in OUTPUTS}

    upper, found = jax.tree.map(float, measured(key, params, removed))
    assert exact <= Fraction(upper.linf) <= exact * (1 + Fraction(1, 10**6))
    d = difference64(network, params, removed, points(8, 0.75))
    assert np.linalg.norm(d, 1, axis=1).max() <= upper.l1 <= 0.75 * float(sum(map(sum, p))) * 1.001
    for output, order in OUTPUTS.items():
        exact = np.linalg.norm(d, order, axis=1).max()
        assert 0.9 * exact <= found[output].lower <= exact * (1 + 1e-6)
        assert found[output].upper == getattr(upper, output)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_difference_of_activations_has_the_exact_interval(activation):
    """Against a grid over `a in A, b in B, a - b in D`: never crossed, and reached to 2 %."""
    rng = np.random.default_rng(0)
    s = functools.partial(activate, activation)
    interval = jax.jit(functools.partial(intervals._activated_difference, activation))
    steps = np.linspace(0, 1, 401)
    with jax.enable_x64(True):
        for _ in range(40):
            scale = 10.0 ** rng.uniform(-2, 1)
            a, b, d = np.sort(rng.normal(size=(3, 2)) * scale, axis=1)
            grid_a = a[0] + steps[:, None] * (a[1] - a[0])
            grid_b = b[0] + steps[None, :] * (b[1] - b[0])
            inside = (grid_a - grid_b >= d[0]) & (grid_a - grid_b <= d[1])
            if inside.sum() < 1000:
                continue
            # The callers' d is no wider than `a - b` allows.
            d = np.array([max(d[0], a[0] - b[1]), min(d[1], a[1] - b[0])])
            values = (s(grid_a) - s(grid_b))[inside]
            ends = (Interval(v[:1], v[1:]) for v in (a, b, d))
            low, high = map(np.asarray, interval(*ends))
            room = 0.02 * (a[1] - a[0] + b[1] - b[0]) * activation.lipschitz
            assert values.min() - room <= low[0] <= values.min()
            assert values.max() <= high[0] <= values.max() + room


def test_images_contain_the_exact_ones():
    """In fractions, at the vertex that is extreme for each row; weights of 60 decades."""
    rng = np.random.default_rng(0)
    layer = networks.Dense(7, 30)
    with jax.enable_x64(True):
        w = rng.normal(size=(30, 7)) * 10.0 ** rng.integers(-30, 30, (30, 7))
        ends = np.sort(rng.normal(size=(2, 7)), axis=0) * 10.0 ** rng.integers(-9, 9, 7)
        state = intervals._State(Interval(*ends), np.float64(1e300))
        image = jax.jit(functools.partial(intervals._image, layer))
        low, high = map(np.asarray, image(w, state))
        for i in range(30):
            pairs = [
                sorted(Fraction(w[i, j]) * Fraction(ends[k, j]) for k in (0, 1)) for j in range(7)
            ]
            assert Fraction(float(low[i])) <= sum(p[0] for p in pairs)
            assert Fraction(float(high[i])) >= sum(p[1] for p in pairs)
            size = float(max(abs(v) for p in pairs for v in p))
            assert float(high[i]) <= float(sum(p[1] for p in pairs)) + 1e-12 * size


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_the_assumed_error_of_activations(name):
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.normal(size=300) * 4, 10.0 ** rng.uniform(-300, 2, 200), [0.0]])
    with jax.enable_x64(True), mpmath.workdps(40):
        values = np.asarray(jax.jit(getattr(activations, name).fn)(a))
        for x, value in zip(a.tolist(), values.tolist(), strict=True):
            exact = getattr(mpmath, name)(x)
            assert abs(value - exact) <= intervals._FUNCTION / 100 * abs(exact)


@ci
def test_brackets_scale_with_the_radius(key):
    """By a power of two, for a positively homogeneous activation: to the last bit."""
    network = networks.dense((6, 9, 5))
    pair = removal(network, 0, which="dense2")
    one, eight = (
        jax.tree.map(np.asarray, measure(LinfBall(r, "l1"), key, network, *pair))
        for r in (1.0, 8.0)
    )
    assert 8 * one.gap.lower == eight.gap.lower and 8 * one.sampled == eight.sampled
    assert float(8 * one.gap.upper) == pytest.approx(float(eight.gap.upper), rel=1e-12)
    assert one.sampled * (1 - 1e-6) <= one.gap.lower <= one.gap.upper
    assert one.relative == eight.relative


def test_a_radius_between_two_floats_stays_in_the_cube(key):
    """Of one weight 1 the gap is the radius, and float32(0.1) > 0.1."""
    network, w = networks.dense((1, 1)), (np.ones((1, 1), np.float32),)
    gap = measure(LinfBall(0.1), key, network, w, w).gap
    assert 0.1 * (1 - 1e-6) <= float(gap.lower) <= 0.1 <= float(gap.upper) <= 0.1 * (1 + 1e-6)


@pytest.mark.ci
def test_the_engine_counts_a_known_gap():
    """A 1 x d layer without its k smallest weights: the gap is r times the sum of their sizes."""
    d, k, radius = 12, 5, 0.3
    w = np.random.default_rng(0).normal(size=(40, 1, d)).astype(np.float32)
    exact = radius * np.sort(np.abs(w[:, 0]).astype(np.float64), axis=1)[:, :k].sum(axis=1)
    eps = float(np.sort(exact)[10:12].mean())
    run = engine.prepare(
        networks.dense((d, 1)),
        (w,),
        pruning.magnitude,
        pruning.Count(k),
        layers="all",
        trials=40,
        domain=LinfBall(radius, samples=2, starts=1, steps=1),
    )
    tally = engine.tally_run(run, [eps])
    assert tally.counts(eps) == (11, 0, 29, 0)
    assert tally.worst[0] == (pytest.approx(exact.max(), rel=1e-6), int(exact.argmax()))
    nothing = engine.simulate(
        networks.dense((d, 1)),
        (w,),
        pruning.magnitude,
        pruning.Count(0),
        layers="all",
        eps=[1e-30],
        trials=40,
        domain=LinfBall(radius, samples=2, starts=1, steps=1),
    )
    assert nothing.counts(1e-30).close == 40


@ci
def test_a_plan_may_ask_for_it():
    """A 1 x d layer: the bracket is tight, and there is no theorem."""
    experiment = {
        "title": "cube",
        "network": "dense",
        "widths": [12, 1],
        "law": "uniform",
        "pruning": "random",
        "count": 4,
        "layers": "all",
        "domain": "linf ball",
        "radius": 0.5,
        "output": "l1",
        "eps": [1e-3, 1e3],
    }
    far, close = verify(plans.parse({"trials": 30, "experiment": [experiment]}))["cells"]
    assert far["far"] == 30 and close["close"] == 30
    assert far["domain"] == "linf ball of radius 0.5, outputs in l1"
    assert far["certified_eps"] is None and far["mean_squared_gap_infinite_width"] is None
    for p, low in far["gap_lower_quantiles"].items():
        assert low <= far["gap_upper_quantiles"][p] <= 1.02 * low


def test_a_circular_kernel_wider_than_the_image_is_refused():
    """It reads a pixel several times: four taps of 1 on one pixel add up to 4, their norm is 2."""
    layer = networks.Conv(1, 1, 2, (1, 1), 1, "CIRCULAR")
    network = networks.Network((layer,), activations.relu, (1, 1, 1))
    weights = (np.ones((1, 1, 2, 2), np.float32),)
    with pytest.raises(ValueError, match=r"kernel = 2: at most the image's side 1"):
        gaps.interval_bounds(network, weights, weights, 1.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": math.inf}, "radius"),
        ({"radius": "1"}, "radius"),
        ({"output": "l3"}, "output"),
        ({"samples": 0}, "samples"),
        ({"starts": 65}, "starts"),
        ({"steps": -1}, "steps"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        LinfBall(**options)

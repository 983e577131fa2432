"""The sandwich against float64, SVD, brute force and explicit matrices."""

import functools
import itertools

import jax
import numpy as np
import pytest
from oracles import (
    NOT_FINITE,
    batch,
    difference64,
    forward64,
    matrix,
    on_sphere,
    pair,
    removal,
    removed_part,
    with_activation,
)

import jaxprune as jp
from jaxprune import activations, gaps, laws, networks, pruning
from jaxprune.engine.tally import GUARD
from jaxprune.gaps import UnitBall
from jaxprune.gaps.lengths import largest, lengths
from jaxprune.networks import Conv, Dense

ci = pytest.mark.ci

ACTIVATIONS = [
    activations.relu,
    activations.leaky_relu(0.2),
    activations.tanh,
    activations.identity,
]

jitted_difference = jax.jit(gaps.difference, static_argnums=0)
jitted_lengths = jax.jit(lengths)
jitted_measure_ball = jax.jit(gaps.measure_ball, static_argnums=(0, 2))
jitted_norm_bound = jax.jit(gaps.norm_bound, static_argnums=0)


def measure_ball(*arguments):
    return jax.tree.map(np.asarray, jitted_measure_ball(*arguments))


def norm_bound(layer, w):
    return float(jitted_norm_bound(layer, np.asarray(w, np.float32)))


def matrix_norm_bound(a):
    return norm_bound(Dense(a.shape[1], a.shape[0]), a)


NETWORKS = {
    "dense": networks.dense((6, 9, 7, 5)),
    "one layer": networks.dense((6, 5)),
    "conv same": networks.convolutional((2, 3, 4), 6),
    "conv valid": networks.convolutional((2, 3, 4), 7, padding="VALID", strides=(2, 1)),
    "conv circular": networks.convolutional((2, 3, 3), 6, padding="CIRCULAR"),
    "conv readout": networks.convolutional((1, 3, 4), 6, strides=(2, 1), outputs=5),
    "shallow": networks.dense((6, 9, 5)),
    "shallow readout": networks.convolutional((2, 3), 5, strides=2, outputs=4),
}


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("dense", activations.relu),
        ("dense", activations.tanh),
        ("shallow readout", activations.relu),
        *(
            pytest.param(name, activations.relu, marks=ci)
            for name in ("one layer", "conv same", "conv valid", "conv circular", "conv readout")
        ),
        pytest.param("dense", activations.leaky_relu(0.2), marks=ci),
        pytest.param("dense", activations.identity, marks=ci),
    ],
    ids=str,
)
def test_difference_is_the_difference(name, activation):
    """Of columns at once, and of one input at a time."""
    network = with_activation(NETWORKS[name], activation)
    params, removed = removal(network, 0)
    x = np.random.default_rng(0).normal(size=(10, *network.in_shape)).astype(np.float32)

    @jax.jit
    def both(params, removed, x, columns):
        at = lambda x: gaps.difference(network, params, removed, x)
        return at(columns), jax.lax.map(at, x)

    columns, singles = both(params, removed, x, np.moveaxis(x, 0, -1))
    expected = difference64(network, params, removed, x)
    for got in (np.moveaxis(np.asarray(columns), -1, 0), np.asarray(singles)):
        np.testing.assert_allclose(
            got.reshape(10, -1), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_differences_keep_their_digits(size):
    """A removed part of relative size 1e-9 is lost by subtracting outputs; here it is not."""
    network = networks.dense((64, 64, 64, 64))
    params, _ = pair(network, 0)
    params[1][5, :] *= np.float32(size)
    mask = np.ones((64, 64), bool)
    mask[5, :] = False
    removed = removed_part(params, (None, mask, None))
    x = np.abs(np.random.default_rng(0).normal(size=(20, 64))).astype(np.float32)
    got = jitted_difference(network, params, removed, x.T)
    expected = difference64(network, params, removed, x)
    error = np.abs(np.asarray(got, np.float64).T - expected).max() / np.abs(expected).max()
    assert error < 1e-4  # subtracting float32 outputs errs by more than the difference itself


def test_given_networks_whose_outputs_cancel_lose_no_digit():
    """Rows orthogonal to the kept weights: F is as small as F - f, and its terms are not."""
    rng = np.random.default_rng(0)
    w = rng.choice([-1, 1], (16, 256)) * rng.uniform(0.5, 1, (16, 256))
    gone = rng.choice(256, 8, replace=False)
    w[:, gone] = 0.4
    x = rng.normal(size=(4, 256))
    kept = np.delete(np.arange(256), gone)
    q, _ = np.linalg.qr(w[:, kept].T)
    x[:, kept] -= x[:, kept] @ q @ q.T
    x[:, gone] *= 1e-4
    w, x = w.astype(np.float32), x.astype(np.float32)
    tally = jp.simulate(
        networks.dense((256, 16)),
        (w[None],),
        pruning.magnitude,
        pruning.Count(8 * 16),
        eps=[1.0],
        trials=1,
        layers="all",
        domain=x,
    )
    exact = np.linalg.norm(x[:, gone].astype(float) @ w[:, gone].T.astype(float), axis=1).max()
    assert tally.worst[0][0] == pytest.approx(exact, rel=GUARD / 10)


SHAPES = [
    *((64, 64), (16, 128)),
    *(pytest.param(shape, marks=ci) for shape in ((1, 1), (8, 8), (256, 256), (128, 16))),
    *(pytest.param(shape, marks=ci) for shape in ((1, 50), (50, 1))),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e20])
def test_matrix_norm_bound_against_svd(shape, size):
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(shape[0], 1)) * rng.normal(size=(1, shape[1]))
    for a in (rng.uniform(-1, 1, shape), low_rank, (rng.random(shape) < 0.1) + 0.0):
        a = (a * size).astype(np.float32)
        exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)[0]
        bound = matrix_norm_bound(a)
        assert exact <= bound <= 1.02 * exact or exact == bound == 0


def test_svd_against_power_iteration_and_bound():
    """A power iteration stays below the norm, the bound above, the SVD between."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = rng.normal(size=(64, 64)).astype(np.float32)
        x = rng.normal(size=64)
        for _ in range(1000):
            x = a.T @ (a @ x)
            x /= np.linalg.norm(x)
        below, exact = np.linalg.norm(a @ x), np.linalg.norm(a.astype(np.float64), 2)
        above = matrix_norm_bound(a)
        assert below <= exact * (1 + 1e-6) and exact <= above
        assert above <= 1.01 * exact and below >= 0.9 * exact


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=ci) for n in (1, 8, 33 * 33)), 4096, 10**5])
def test_a_maximum_does_not_lose_what_is_not_a_number(n):
    """XLA's own maximum does on some CPUs, of some thousand numbers and more."""
    values = np.random.default_rng(n).random(n).astype(np.float32)
    compiled = jax.jit(largest)
    assert float(compiled(values)) == float(largest(values)) == values.max()
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, n // 2, n - 1):
            hurt = values.copy()
            hurt[place] = value
            assert np.isnan(np.asarray(largest(hurt))) and np.isnan(np.asarray(compiled(hurt)))
            found = np.asarray(jitted_lengths(hurt[:, None]))
            assert np.isnan(found).all() or np.isinf(value)


CIRCULAR = Conv(3, 4, 3, (7, 6), 1, "CIRCULAR")


def test_norm_bounds_of_zero_and_of_nonfinite_matrices():
    assert matrix_norm_bound(np.zeros((64, 64))) == 0
    assert norm_bound(CIRCULAR, np.zeros(CIRCULAR.weight_shape)) == 0
    for value in (np.nan, np.inf, -np.inf):
        for shape in ((64, 64), (16, 128)):
            a = np.zeros(shape, np.float32)
            a[1, 2] = value
            assert not np.isfinite(matrix_norm_bound(a))
        w = np.zeros(CIRCULAR.weight_shape, np.float32)
        w[0, 1, 2, 2] = value
        assert not np.isfinite(norm_bound(CIRCULAR, w))


CONVOLUTIONS = [(3, 1, "CIRCULAR"), (3, 2, "VALID"), (2, 1, "SAME")]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        pytest.param(*case, marks=[] if case in CONVOLUTIONS else ci)
        for case in itertools.product((1, 2, 3, 5), (1, 2), networks.PADDINGS)
    ],
)
def test_convolution_norm_against_the_explicit_matrix(kernel, stride, padding):
    layer = Conv(3, 4, kernel, (7, 6), stride, padding)
    rng = np.random.default_rng(kernel)
    for w in (rng.normal(size=layer.weight_shape), np.ones(layer.weight_shape)):
        exact = np.linalg.norm(matrix(layer, w.astype(np.float32)), 2)
        bound = norm_bound(layer, w)
        assert exact <= bound
        if padding == "CIRCULAR" and stride == 1:
            assert bound <= 1.01 * exact


@pytest.mark.parametrize(
    ("kernel", "side", "padding"),
    [
        pytest.param(*case, marks=[] if case in ((3, 3, "SAME"), (3, 3, "VALID")) else ci)
        for case in itertools.product((2, 3, 4), (3, 5), ("SAME", "VALID"))
        if case[0] <= case[1] or case[2] == "SAME"
    ],
)
def test_convolution_norm_where_it_lies_between_the_frequencies_of_the_image(kernel, side, padding):
    """Alternating taps answer most to frequencies that an image of odd sides does not hold."""
    layer = Conv(1, 1, kernel, (side, side), 1, padding)
    taps = (-1.0) ** np.arange(kernel)
    for w in (np.outer(taps, taps), np.outer(np.arange(kernel) == 0, taps)):
        w = w.reshape(layer.weight_shape)
        assert np.linalg.norm(matrix(layer, w), 2) <= norm_bound(layer, w)


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_convolution_norm_at_the_ends_of_float32(size):
    w = np.random.default_rng(0).normal(size=CIRCULAR.weight_shape).astype(np.float32)
    exact = np.linalg.norm(matrix(CIRCULAR, w), 2) * size
    assert exact <= norm_bound(CIRCULAR, w * np.float32(size)) <= 1.01 * exact


METHODS = tuple(pruning.METHODS.values())
SEEDS = 7


@functools.cache
def measured(name, activation=activations.relu):
    """One batch of pairs and what `measure_ball` finds of them.

    Seven pairs of each method; then one of which nothing is pruned; then, for each of NaN and both
    infinities, one with such a weight in each layer.
    """
    network = with_activation(NETWORKS[name], activation)
    pairs = [removal(network, seed, method=method) for method in METHODS for seed in range(SEEDS)]
    pairs.append(removal(network, SEEDS, q=0.0))
    for value in NOT_FINITE:
        for i in range(len(network.layers)):
            params, masks = pair(network, SEEDS, method=pruning.magnitude)
            params[i][(0,) * params[i].ndim] = value
            pairs.append((params, removed_part(params, masks)))
    ball = UnitBall(samples=16, starts=4, steps=5)

    @jax.jit
    @jax.vmap
    def run(key, params, removed):
        # Not the jitted one: a jit inside a vmap is batched outside the bound's double precision.
        return gaps.measure_ball(ball, key, network, params, removed)

    keys = jax.jit(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), len(pairs)))()
    result = jax.tree.map(np.asarray, run(keys, *batch(pairs)))
    return network, pairs, [jax.tree.map(lambda a, i=i: a[i], result) for i in range(len(pairs))]


BATCHES = [
    ("shallow readout", activations.relu),
    pytest.param("shallow", activations.tanh, marks=ci),
    *(
        pytest.param(name, activations.relu, marks=ci)
        for name in ("dense", "one layer", "conv same", "conv circular")
    ),
    pytest.param("conv readout", activations.relu, marks=ci),
    *(pytest.param("conv readout", s, marks=pytest.mark.slow) for s in ACTIVATIONS[1:]),
    *(pytest.param("shallow readout", s, marks=pytest.mark.slow) for s in ACTIVATIONS[1:]),
    pytest.param("conv valid", activations.relu, marks=pytest.mark.slow),
    pytest.param("dense", activations.tanh, marks=ci),
]


@pytest.mark.parametrize(("name", "activation"), BATCHES, ids=str)
def test_conformance_of_the_sandwich(name, activation):
    """lower <= upper, ascent >= sampling, and no float64 distance in the ball above the bound."""
    network, pairs, results = measured(name, activation)
    x = on_sphere(np.random.default_rng(0), 200, network.in_shape)
    for (params, removed), result in list(zip(pairs, results, strict=True))[: 3 * SEEDS]:
        assert result.gap.lower <= result.gap.upper
        assert result.gap.lower >= result.sampled * (1 - 1e-5) > 0
        distances = np.linalg.norm(difference64(network, params, removed, x), axis=1)
        assert distances.max() <= result.gap.upper


@pytest.mark.parametrize(("name", "activation"), BATCHES, ids=str)
def test_nothing_pruned_has_gap_zero_exactly(name, activation):
    result = measured(name, activation)[2][3 * SEEDS]
    assert result.gap.lower == result.gap.upper == result.sampled == result.rms == 0


@pytest.mark.parametrize(("name", "activation"), BATCHES, ids=str)
def test_a_nonfinite_weight_has_no_finite_bound(name, activation):
    network, _, results = measured(name, activation)
    broken = results[3 * SEEDS + 1 :]
    assert len(broken) == len(NOT_FINITE) * len(network.layers)
    assert not any(np.isfinite(result.gap.upper) for result in broken)
    # An activation may make an infinity finite again, but not NaN. In the difference of one layer
    # a kept weight has no part: the engine looks at the weights themselves.
    assert len(network.layers) == 1 or all(
        np.isnan(result.gap.lower) for result in broken[: len(network.layers)]
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "one layer" else ci) for name in NETWORKS]
)
def test_layers_left_alone_have_gap_zero_exactly(name, key):
    network = NETWORKS[name]
    params, _ = pair(network, 0)
    result = measure_ball(UnitBall(8, 2, 3), key, network, params, (None,) * len(params))
    assert result.gap.lower == result.gap.upper == result.sampled == result.rms == 0


@pytest.mark.ci
def test_everything_pruned_in_a_linear_layer_leaves_the_target_s_norm(key):
    network = networks.dense((20, 30))
    params, removed = removal(network, 0, q=1.0)
    exact = np.linalg.norm(params[0].astype(np.float64), 2)
    ball = UnitBall(samples=64, starts=8, steps=300)
    gap = measure_ball(ball, key, network, params, removed).gap
    assert 0.9999 * exact <= gap.lower <= exact * (1 + 1e-5)
    assert exact <= gap.upper <= 1.01 * exact


def test_everything_pruned_in_a_middle_layer_leaves_the_target():
    network = NETWORKS["dense"]
    params, removed = removal(network, 0, q=1.0, which="middle")
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    result = jax.jit(lambda w, p: gaps.measure_rows(x, network, w, p))(params, removed)
    target = forward64(network, [w.astype(np.float64) for w in params], x)
    expected = np.linalg.norm(target, axis=1)
    lower, upper, rms = (float(a) for a in (*result.gap, result.rms))
    assert lower <= expected.max() <= upper == pytest.approx(lower, rel=1e-6)
    assert rms**2 == pytest.approx((expected**2).mean() / 5, rel=1e-5)


@ci
def test_ascent_finds_the_supremum_of_small_networks(key):
    """Brute force over activation patterns: on each, F - f is linear and its supremum over the
    cone is at most the norm of the linear piece, reached if the singular vector lies inside."""
    network = networks.dense((2, 3, 2))
    angles = np.linspace(0, 2 * np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ball = UnitBall(samples=32, starts=8, steps=40)
    found = []
    for seed in range(20):
        params, removed = removal(network, seed, q=0.4)
        lower = float(measure_ball(ball, key, network, params, removed).gap.lower)
        exact = np.linalg.norm(difference64(network, params, removed, circle), axis=1).max()
        assert lower <= exact * (1 + 1e-5)
        found.append(lower / exact)
    assert np.median(found) > 0.9999 and min(found) > 0.9


@ci
def test_pruned_norms_follow_the_square_root_and_the_power_three_halves(key):
    """||removed|| / ||W|| -> sqrt(q) at random and q^(3/2) by magnitude, uniform weights."""
    q = 0.1

    @jax.jit
    def draw(key):
        w = laws.sample(laws.UNIFORM, 1.0, jax.random.bits(key, (512, 512)))
        bits = jax.random.bits(jax.random.fold_in(key, 1), w.shape)
        level = round(q * w.size)
        return w, [method.mask(bits, w, level) for method in (pruning.random, pruning.magnitude)]

    w, masks = jax.tree.map(np.asarray, draw(key))
    for mask, expected in zip(masks, (q**0.5, q**1.5), strict=True):
        ratio = np.linalg.norm(np.where(mask, 0, w), 2) / np.linalg.norm(w, 2)
        assert ratio == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("arguments", [{"samples": 0}, {"starts": 65}, {"steps": -1}])
def test_bad_balls(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        UnitBall(**arguments)


@pytest.mark.parametrize("exponent", [-30, -10, 0, 10, 18, 30, 38])
def test_lengths_neither_overflow_nor_vanish(exponent):
    """At 10^38 the reciprocal of an entry is below the least normal float."""
    d = np.random.default_rng(0).uniform(-2, 2, (3, 20)).astype(np.float32)
    d *= np.float32(10.0**exponent)
    exact = np.linalg.norm(d.astype(np.float64), axis=0)
    np.testing.assert_allclose(jitted_lengths(d), exact, rtol=1e-6)

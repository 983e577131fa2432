"""The infinite-width limit, against Monte Carlo, quadrature and wide networks.

A random test fails falsely with probability below FALSE_ALARM.
"""

import importlib
import itertools
import pathlib
import sys

import mpmath
import numpy as np
import pytest
from scipy import special, stats
from tiers import grid

from jaxprune import activations, bounds, laws, networks, pruning

limit = sys.modules["jaxprune.bounds.infinite_width"]  # the function hides the module's name
FALSE_ALARM = 1e-6
ACTIVATIONS = {
    activations.relu: lambda z: np.maximum(z, 0.0),
    activations.leaky_relu(0.2): lambda z: np.where(z > 0, z, 0.2 * z),
    activations.tanh: np.tanh,
    activations.erf: special.erf,
    activations.identity: lambda z: z,
}
MOMENTS = [(1.0, 0.8, 0.1), (2.0, 2.0, 1e-6), (1.0, 0.5, 0.6), (0.5, 0.1, 0.35), (1.0, 1.0, 4.0)]


def z_limit(tests):
    return stats.norm.isf(FALSE_ALARM / (2 * tests))


@pytest.mark.parametrize("s", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("a, b, d", MOMENTS)
def test_activation_step_against_monte_carlo(s, a, b, d):
    rng = np.random.default_rng(3)
    fn = ACTIVATIONS[s]
    slope = 0.5 * (a - b + d) / a
    z = np.sqrt(a) * rng.standard_normal(400_000)
    change = slope * z + np.sqrt(max(d - slope**2 * a, 0.0)) * rng.standard_normal(z.size)
    samples = (fn(z) ** 2, fn(z - change) ** 2, (fn(z) - fn(z - change)) ** 2)
    for value, sample in zip(limit._activate(s, a, b, d), samples, strict=True):
        error = sample.std() / np.sqrt(sample.size)
        assert abs(sample.mean() - value) <= z_limit(3) * error + 1e-7 * value


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("a, b, d", MOMENTS)
def test_homogeneous_closed_form_against_quadrature(slope, a, b, d):
    closed = limit._homogeneous(1.0, slope, a, b, d)
    numeric = limit._quadrature(activations.leaky_relu(slope), a, b, d)
    assert numeric == pytest.approx(closed, rel=1e-12 if slope == 1.0 else 2e-4)


@pytest.mark.parametrize(
    "a, b, d",
    [
        *MOMENTS,
        *[(1.0, 1.0, 1e-14), (100.0, 90.0, 5.0), (100.0, 100.0, 1e-8), (1.0, 0.0, 1.0)],
        (0.25, 1.0, 0.25),  # z̃ = 2z
        (1e-6, 1e-6, 1e-9),
    ],
)
def test_erf_closed_form_against_williams_kernel_in_40_digits(a, b, d):
    with mpmath.workdps(40):
        x, y, z = map(mpmath.mpf, (a, b, d))

        def kernel(u, v, w):
            return 2 / mpmath.pi * mpmath.asin(2 * w / mpmath.sqrt((1 + 2 * u) * (1 + 2 * v)))

        target, pruned = kernel(x, x, x), kernel(y, y, y)
        exact = target, pruned, target + pruned - 2 * kernel(x, y, (x + y - z) / 2)
    moments = limit._activate(activations.erf, a, b, d)
    assert moments == pytest.approx([float(v) for v in exact], rel=1e-13)
    # The quadrature is as exact as the activation's difference, 1e-8.
    assert limit._quadrature(activations.erf, a, b, d) == pytest.approx(moments, rel=1e-8)


@pytest.mark.parametrize(
    "moments", grid([*MOMENTS, (16.0, 12.0, 1.0), (100.0, 99.8, 1e-3)], every=3), ids=str
)
def test_tanh_quadrature_against_another(moments):
    """Gauss-Legendre on panels over independent normals (z, u): another rule, another layout."""
    a, b, d = moments
    x, w = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-8.5, 8.5, 61)
    half, middle = 0.5 * np.diff(edges)[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
    x, w = (middle + half * x).ravel(), (half * w).ravel()
    w = w * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    # z and z̃ from two independent normals along z + z̃ and what is left.
    c = 0.5 * (a + b - d)
    u = np.sqrt(a + b + 2 * c)
    slopes = ((a + c) / u, (b + c) / u) if u > 0 else (0.0, 0.0)
    rest = np.sqrt(max(a - slopes[0] ** 2, 0.0))
    z, y = (k * x[:, None] + sign * rest * x for k, sign in zip(slopes, (1, -1), strict=True))
    change = np.sinh(z - y) / (np.cosh(z) * np.cosh(y)) if a < 50 else np.tanh(z) - np.tanh(y)
    exact = [float(w @ np.tanh(np.sqrt(v) * x) ** 2) for v in (a, b)]
    exact.append(float(w @ change**2 @ w))
    assert limit._quadrature(activations.tanh, a, b, d) == pytest.approx(exact, rel=1e-10)


def test_relu_difference_is_the_arc_cosine_kernel():
    for a, b, d in MOMENTS:
        rho = (a + b - d) / (2 * np.sqrt(a * b))
        theta = np.arccos(np.clip(rho, -1, 1))
        kernel = np.sqrt(a * b) / (2 * np.pi) * (np.sin(theta) + (np.pi - theta) * np.cos(theta))
        naive = 0.5 * (a + b) - 2 * kernel
        assert limit._relu_difference(a, b, d) == pytest.approx(naive, rel=1e-9, abs=1e-13)


def test_leaky_slopes_0_and_1_are_relu_and_identity():
    kept = [0.9, 0.5, 0.7, 1.0]
    for slope, s in ((0.0, activations.relu), (1.0, activations.identity)):
        pair = [
            limit.from_kept_energy(networks.dense((30, 20, 40, 10, 5), t), laws.normal(1.3), kept)
            for t in (activations.leaky_relu(slope), s)
        ]
        for left, right in zip(pair[0].layers, pair[1].layers, strict=True):
            assert left == pytest.approx(right, rel=1e-14)


@pytest.mark.parametrize("s", ACTIVATIONS, ids=str)
def test_small_gaps_keep_their_digits(s):
    # The gap is linear in the removed energy to first order, and the second order is of that size.
    network = networks.dense((50, 50, 50, 50), s)
    ratios = []
    for q in (1e-4, 1e-6, 1e-8):
        kept = [1.0, 1.0 - q, 1.0]
        ratios.append(
            limit.from_kept_energy(network, laws.normal(2**0.5), kept).mean_squared_gap / q
        )
    assert ratios[1] == pytest.approx(ratios[2], rel=1e-2)
    assert ratios[1] / ratios[2] - 1 == pytest.approx((ratios[0] / ratios[2] - 1) / 10, abs=2e-4)


def test_identity_network_in_closed_form():
    widths, kept = (30, 50, 20, 10), (0.9, 1.0, 0.6)
    law = laws.uniform(2.0)
    network = networks.dense(widths, activations.identity)
    moments = limit.from_kept_energy(network, law, kept, input_norm=3.0)
    target = 9.0 * law.variance(30, 50) * 50 * law.variance(50, 20) * 20 * law.variance(20, 10)
    share = np.prod(kept)
    assert moments.output == pytest.approx(
        (target, share * target, share * target, (1 - share) * target), rel=1e-12
    )
    assert moments.correlation == pytest.approx(share**0.5, rel=1e-12)
    assert moments.typical_gap == pytest.approx((10 * (1 - share) * target) ** 0.5, rel=1e-12)
    assert [m.cross / m.target for m in moments.layers] == pytest.approx(np.cumprod(kept))


def test_nothing_kept_and_nothing_removed():
    network = networks.dense((8, 8, 8))
    nothing = limit.from_kept_energy(network, LAW, [1.0, 0.0])
    assert nothing.mean_squared_gap == nothing.output.target
    assert nothing.output.pruned == 0.0
    assert np.isnan(nothing.correlation)
    assert limit.from_kept_energy(network, LAW, [0.0, 1.0]).output.pruned == 0.0
    assert limit.from_kept_energy(network, LAW, [1.0, 1.0]).mean_squared_gap == 0.0
    assert limit.from_kept_energy(network, LAW, [0.5, 1.0], input_norm=0.0).output.target == 0.0


LAW = laws.uniform(6**0.5)


@pytest.mark.parametrize(
    "widths, method, s",
    grid(
        [(64, 512, 512, 256), (16, 640, 512, 768, 64)],
        ["random", "magnitude"],
        ACTIVATIONS,
        every=7,
    ),
    ids=str,
)
def test_wide_networks(widths, method, s):
    rng = np.random.default_rng(len(widths))
    q = 0.3
    network = networks.dense(widths, s)
    family = LAW.family
    energy = 1 - q if method == "random" else family.kept_energy(q)
    kept = [1.0] + [energy] * (len(widths) - 2)
    runs = []  # by trial: layers x moments
    for _ in range(30):
        x = y = np.eye(1, widths[0])[0]
        layers = []
        for i, (m, n) in enumerate(itertools.pairwise(widths)):
            w = rng.uniform(-1, 1, (n, m)) * LAW.scale(m, n)
            key = np.abs(w) if method == "magnitude" else rng.random((n, m))
            mask = key > np.partition(key.ravel(), int(q * n * m))[int(q * n * m)]
            if i > 0:
                x, y = ACTIVATIONS[s](x), ACTIVATIONS[s](y)
            x, y = w @ x, (w * mask if i > 0 else w) @ y
            layers.append((np.mean(x**2), np.mean(y**2), np.mean(x * y), np.mean((x - y) ** 2)))
        runs.append(layers)
    mean, error = np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
    expected = np.array(limit.from_kept_energy(network, LAW, kept).layers)
    # The limit is off by a few parts in the least hidden width.
    allowed = stats.t.isf(FALSE_ALARM / (2 * mean.size), len(runs) - 1) * error
    allowed += 4 / 512 * expected + 1e-20
    assert np.all(np.abs(mean - expected) <= allowed)


@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
@pytest.mark.parametrize("layers, pruned", [("middle", (1,)), ("all", (0, 1, 2)), ("dense3", (2,))])
def test_kept_energy_is_that_of_the_pruning(family, layers, pruned):
    network, law = networks.dense((20, 30, 40, 10), activations.erf), laws.Law(family)
    for amount in (pruning.Fraction(0.3), pruning.Sublinear(0.2)):
        for method in pruning.METHODS.values():
            kept = [1.0] * 3
            for i in pruned:
                count = network.weight_counts[i]
                q = (
                    amount.rate(count)
                    if method.name == "bernoulli"
                    else amount.count(count) / count
                )
                kept[i] = family.kept_energy(q) if method.name == "magnitude" else 1 - q
            moments = bounds.infinite_width(network, law, method, amount, layers=layers)
            same = limit.from_kept_energy(network, law, kept)
            assert moments.output == pytest.approx(same.output, rel=1e-12)
            assert moments.kept_energy == pytest.approx(kept, rel=1e-12)
            named = {network.names[i]: amount for i in pruned}
            assert bounds.infinite_width(network, law, method, named) == moments


def test_amounts_by_layer():
    network = networks.dense((20, 30, 40, 10))
    amounts = {"dense2": pruning.Fraction(0.5), "dense3": pruning.Count(100)}
    moments = bounds.infinite_width(network, LAW, pruning.random, amounts)
    assert moments.kept_energy == pytest.approx((1.0, 0.5, 0.75), rel=1e-15)
    with pytest.raises(ValueError, match=r"^layers = 'all': the names in amount"):
        bounds.infinite_width(network, LAW, pruning.random, amounts, layers="all")
    with pytest.raises(ValueError, match=r"^amount = 0\.5: "):
        bounds.infinite_width(network, LAW, pruning.random, {"dense2": 0.5})


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(network=networks.convolutional((1, 2, 2), 5)), "network"),
        (dict(input_norm=-1.0), "input_norm"),
        (dict(layers="dense9"), "layers"),
        (dict(amount=pruning.Count(100)), "count"),
    ],
)
def test_infinite_width_refuses(change, named):
    arguments = dict(network=networks.dense((3, 4, 5)), amount=pruning.Count(1), layers="all")
    with pytest.raises(ValueError, match=f"^{named} = "):
        bounds.infinite_width(law=LAW, pruning=pruning.random, **arguments | change)


@pytest.fixture
def finite_width(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("finite_width")


def test_finite_width_fit_covers_the_slope_it_was_given(finite_width):
    fit, rng = finite_width.fit, np.random.default_rng(5)
    widths, errors = np.array([16, 32, 64, 128, 256]), np.array([1, 2, 3, 3, 4]) * 1e-3
    exact = 1 - 0.7 / widths + 12 / widths**2
    found = fit(widths, exact, errors)
    assert (found.slope, found.curvature) == pytest.approx((-0.7, 12), rel=1e-9)
    assert found.p_value == pytest.approx(1)
    trials, covered, small = 2000, 0, 0
    for _ in range(trials):
        found = fit(widths, exact + errors * rng.standard_normal(5), errors)
        covered += abs(found.slope + 0.7) <= found.slope_error
        small += found.p_value <= 0.05
    for count, p in ((covered, 0.95), (small, 0.05)):
        low, high = stats.binom.interval(1 - FALSE_ALARM, trials, p)
        assert low <= count <= high


@pytest.mark.slow
def test_finite_width_correction_of_linear_networks(finite_width):
    """By magnitude, E τ² of the (k+1)-th of D uniform magnitudes: 3 / (q D) to first order."""
    module = finite_width
    args = module.parser().parse_args(["--widths", "8", "10", "12", "--weights", "1e6"])
    for point in module.measure(args, "identity", "magnitude")["points"]:
        count = point["width"] ** 2
        k = int(args.fraction * count)
        exact = (k + 1) * (k + 2) / ((count + 1) * (count + 2)) * (count / k) ** 2
        allowed = stats.norm.isf(FALSE_ALARM / 6) * point["standard_error"] / point["limit"]
        assert abs(point["mean"] / point["limit"] - exact) <= allowed < 0.2
        assert exact > 1.15

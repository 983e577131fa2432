"""Norm bounds against closed forms, and what they lean on.

A random test fails falsely with probability below FALSE_ALARM, by its binomial tail.
"""

import math

import numpy as np
import pytest
from heavy_law import LOMAX
from random_layers import (
    CONV,
    FALSE_ALARM,
    LAWS,
    convolution_norms,
    layer_norms,
    most_failures,
    removed_bound,
    removed_part,
)
from scipy import integrate, special, stats

from jaxprune import bounds, laws, networks, pruning
from jaxprune.bounds import random_matrices
from jaxprune.bounds.domination import gaussian_deviation, gaussian_lipschitz
from jaxprune.bounds.threshold import threshold_level, threshold_log_moments


def test_convex_order_of_the_uniform_law():
    # E (|U| - t)⁺ <= E (|N| - t)⁺ for N of the deviation that the uniform mean bound uses.
    deviation = gaussian_deviation(laws.UNIFORM)
    t = np.linspace(0, 1, 201)
    uniform = (1 - t) ** 2 / 2
    z = t / deviation
    normal = 2 * deviation * (stats.norm.pdf(z) - z * stats.norm.sf(z))
    assert uniform[0] == pytest.approx(normal[0], rel=1e-12)
    assert np.all(uniform <= normal + 1e-12)


@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
@pytest.mark.parametrize("level", [1.0, 0.5, 0.05])
def test_lipschitz_functions_of_one_entry_concentrate(family, level):
    # Herbst: log E exp(λ(F - E F)) <= c² λ² / 2 for every 1-Lipschitz F; convex ones are enough.
    u = (np.arange(20_000) + 0.5) / 20_000
    magnitude = family.magnitude_quantile(level * u)
    x = np.concatenate([-magnitude[::-1], magnitude])
    c = gaussian_lipschitz(family, level)
    for f in (x, np.abs(x), np.maximum(x, 0.0), np.maximum(x, x.max() / 2)):
        for size in (0.01, 0.3, 1.0, 3.0):
            cumulant = special.logsumexp(size / c * (f - f.mean())) - math.log(len(x))
            assert cumulant <= size**2 / 2 * (1 + 1e-9)
    # ... and the entry is a level-Lipschitz function of the unconditioned one.
    whole = family.magnitude_quantile(u)
    assert np.all(np.diff(magnitude) <= level * np.diff(whole) * (1 + 1e-9))


def test_uniform_log_sobolev_constant():
    # Ent(f²) <= 2 c² E f'², of which f² = 1 + ε sin(πx/2) is the equality for small ε.
    x = (np.arange(20_000) + 0.5) / 10_000 - 1
    c = gaussian_lipschitz(laws.UNIFORM)
    wave, slope = np.sin(np.pi * x / 2), np.pi / 2 * np.cos(np.pi * x / 2)
    for size in (0.01, 0.1, 0.5, 0.9):
        square = (1 + size * wave) ** 2
        entropy = np.mean(square * np.log(square)) - np.mean(square) * math.log(np.mean(square))
        energy = 2 * c**2 * np.mean((size * slope) ** 2)
        assert entropy <= energy * (1 + 1e-6)
        if size == 0.01:
            assert entropy >= 0.99 * energy


# Norm bounds


def test_threshold_level_is_the_quantile_of_an_order_statistic():
    rng = np.random.default_rng(1)
    count, k, trials, delta = 50, 5, 20_000, 0.1
    tau = np.partition(rng.random((trials, count)), k, axis=1)[:, k]
    exceeded = np.sum(tau > threshold_level(count, k, delta))
    low, high = stats.binom.interval(1 - FALSE_ALARM, trials, delta)
    assert low <= exceeded <= high


def test_gaussian_at_tiny_delta_is_davidson_szarek():
    law, n, m, delta = laws.normal(), 64, 64, 1e-100
    bound = bounds.norm_bound(networks.Dense(m, n), law, delta=delta)
    deviation = law.scale(m, n)
    classic = deviation * (2 * math.sqrt(n) + math.sqrt(2 * math.log(1 / delta)))
    assert bound.value <= classic
    assert bound.name == "concentration"
    # E ||G|| is bounded by √n + √m or by a trace moment, whichever is less.
    assert bound.value >= 0.95 * classic


@pytest.mark.parametrize("layer", [networks.Dense(7, 9), CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("method", pruning.METHODS)
def test_removing_nothing_and_everything(method, layer):
    law, count = LAWS[0], math.prod(layer.weight_shape)
    assert removed_bound(layer, law, method, 0, 0.1).value == 0.0
    whole = removed_bound(layer, law, method, count, 0.1)
    assert whole == bounds.norm_bound(layer, law, delta=0.1)


def test_few_entries_are_bounded_by_their_number():
    law = LAWS[0]
    bound = removed_bound(networks.Dense(50, 50), law, "random", 2, 1e-6)
    assert bound.value <= math.sqrt(2) * law.scale(50, 50)
    # In a convolution they may share an entry of the transfer matrices.
    for k in (1, 5, 9, 20):
        worst = np.zeros((1, *CONV.weight_shape))
        worst.reshape(1, -1)[0, :k] = law.scale(*CONV.fans)
        tails = random_matrices.pruned_tails(CONV, law, "random", k, 0.1)
        ceiling = tails.removed.scale * tails.removed.members[-1].mean
        assert convolution_norms(CONV, worst)[0] <= ceiling * (1 + 1e-12)
        assert removed_bound(CONV, law, "random", k, 1e-30).value <= ceiling


def test_norm_bound_refuses():
    layer, law = networks.Dense(4, 4), LAWS[0]
    foreign = pruning.Pruning("magnitude", *[None] * 4)
    for arguments, named in (
        ((layer, law, pruning.random, pruning.Count(17)), "count"),
        ((layer, law, foreign, pruning.Count(1)), "pruning"),
        ((layer, law, "magnitude", pruning.Count(1)), "pruning"),
    ):
        with pytest.raises(ValueError, match=f"^{named} = "):
            bounds.removed_norm_bound(*arguments, delta=0.1)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^delta = "):
            bounds.removed_norm_bound(layer, law, pruning.random, pruning.Count(1), delta=delta)
    with pytest.raises(ValueError, match=r"^density = "):
        bounds.norm_bound(layer, law, density=1.1)


def test_concentration_of_a_convolution_at_tiny_delta():
    # One channel: the sum of all weights is normal, and no bound may fall below its quantile.
    layer, law = networks.Conv(1, 1, 3, (6, 6)), laws.normal()
    for delta in (1e-1, 1e-3, 1e-30, 1e-300):
        bound = bounds.norm_bound(layer, law, delta=delta)
        exact = 3 * law.scale(*layer.fans) * stats.norm.isf(delta / 2)
        assert exact <= bound.value <= 2.5 * exact
    assert bound.name == "concentration"


@pytest.mark.parametrize("delta", [0.05, 0.005, 1e-5])
@pytest.mark.parametrize(
    ("count", "removed"), [(45005**2, 999), (45005**2, 998), (256**2, 4096), (100, 1), (100, 99)]
)
def test_threshold_level_spends_no_more_than_its_budget(count, removed, delta):
    """SciPy's inverse of the beta tail does at k = 999; the tail itself is right."""
    level = threshold_level(count, removed, delta)
    assert special.betaincc(removed + 1, count - removed, level) <= delta * (1 + 1e-9)
    assert special.betaincc(removed + 1, count - removed, level * (1 - 1e-9)) > delta * (1 - 1e-6)


@pytest.mark.parametrize(
    ("count", "removed"), [(64, 1), (64, 63), (2048, 20), (512**2, 11585), (2048**2, 4)]
)
def test_threshold_moments_of_uniform_weights_are_those_of_a_beta_variable(count, removed):
    orders = (1, 4, 24, 128)
    found = threshold_log_moments(laws.UNIFORM, count, removed, orders)
    for p, value in zip(orders, found, strict=True):
        i = np.arange(2 * p)
        exact = np.sum(np.log(removed + 1.0 + i) - np.log(count + 1.0 + i))
        assert -1e-9 <= value - exact <= 2 * p * 3e-3


@pytest.mark.parametrize(("count", "removed"), [(64, 5), (64, 40), (4096, 400)])
def test_threshold_moments_of_normal_weights_against_quadrature(count, removed):
    density = stats.beta(removed + 1, count - removed).pdf
    orders = (1, 4, 16)
    found = threshold_log_moments(laws.NORMAL, count, removed, orders)
    for p, value in zip(orders, found, strict=True):
        power = lambda t, p=p: (
            t ** (2 * p) * density(2 * stats.norm.cdf(t) - 1) * 2 * stats.norm.pdf(t)
        )
        exact = integrate.quad(power, 0.0, 12.0, epsabs=0, limit=500, points=[0.1, 1.0, 3.0])[0]
        assert -1e-7 <= value - math.log(exact) <= 2 * p * 5e-3


@pytest.mark.parametrize("method", pruning.METHODS)
def test_two_finite_moments_are_enough(method):
    """Every theorem of a law without a third even moment, against NumPy's norms; some say less."""
    layer, law, delta = networks.Dense(10, 12), laws.Law(LOMAX, "lecun"), 0.2
    rng = np.random.default_rng(5)
    shape = (2000, *layer.weight_shape)
    x = LOMAX.magnitude_quantile(rng.random(shape)) * rng.choice([-1.0, 1.0], shape)
    w = law.scale(*layer.fans) * x
    parts = {"weights": w, "removed": removed_part(rng, w, method, 12)}
    said = {
        "weights": bounds.norm_bounds(layer, law, delta=delta),
        "removed": bounds.removed_norm_bounds(
            layer, law, pruning.METHODS[method], pruning.Count(12), delta=delta
        ),
    }
    for part, answers in said.items():
        found = layer_norms(layer, parts[part])
        assert answers[0].value < 10 * np.quantile(found, 1.0 - delta)
        for answer in answers:
            assert np.sum(found > answer.value) <= most_failures(len(w), delta), answer
    certificate = bounds.certify(
        networks.dense((8, 10, 12, 4)), law, pruning.METHODS[method], pruning.Count(9)
    )
    assert 0.0 < certificate.eps < math.inf

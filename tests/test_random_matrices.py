"""Norm bounds, against simulation and closed forms.

A random test fails falsely with probability below FALSE_ALARM, by its binomial tail.
"""

import math

import numpy as np
import pytest
from random_layers import (
    CONV,
    FALSE_ALARM,
    LAWS,
    convolution_norms,
    most_failures,
    norms,
    removed_bound,
    removed_part,
    sample,
)
from scipy import special, stats

from jaxprune import bounds, laws, networks, pruning
from jaxprune.bounds import random_matrices
from jaxprune.bounds.domination import gaussian_deviation


def test_convex_order_of_the_uniform_law():
    # E (|U| - t)⁺ <= E (|N| - t)⁺ for N of the deviation that the uniform mean bound uses.
    deviation = gaussian_deviation(laws.UNIFORM)
    t = np.linspace(0, 1, 201)
    uniform = (1 - t) ** 2 / 2
    z = t / deviation
    normal = 2 * deviation * (stats.norm.pdf(z) - z * stats.norm.sf(z))
    assert uniform[0] == pytest.approx(normal[0], rel=1e-12)
    assert np.all(uniform <= normal + 1e-12)


# Norm bounds


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(
    "n, m, trials",
    [(8, 8, 400), (8, 64, 200), (64, 8, 200), (32, 32, 200), (64, 64, 100), (128, 16, 60),
     (256, 256, 24)],
)  # fmt: skip
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.02])
def test_norm_bound_against_simulation(law, n, m, trials, density):
    rng = np.random.default_rng(n * 1000 + m)
    layer = networks.Dense(m, n)
    k = round(density * n * m)
    w = sample(rng, layer, law, trials)
    for method in ("random", "bernoulli") if density < 1 and n < 256 else ("random",):
        simulated = norms(removed_part(rng, w, method, k))
        for delta in (0.1, 0.5):
            bound = removed_bound(layer, law, method, k, delta)
            assert np.sum(simulated > bound.value) <= most_failures(trials, delta)
            if k >= 32:  # of use, not only true
                assert bound.value <= 2.2 * np.quantile(simulated, 1 - delta)
            masked = bounds.norm_bound(layer, law, delta=delta, density=k / (n * m))
            assert bound.value <= masked.value * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, trials", [(8, 8, 300), (16, 64, 200), (64, 64, 60)])
@pytest.mark.parametrize("q", [1.0, 0.9, 0.5, 0.1, 0.02])
def test_magnitude_parts_against_simulation(law, n, m, trials, q):
    rng = np.random.default_rng(n * 1000 + m + 7)
    layer = networks.Dense(m, n)
    k = round(q * n * m)
    w = sample(rng, layer, law, trials)
    gone = removed_part(rng, w, "magnitude", k)
    for delta in (0.1, 0.5):
        bound = removed_bound(layer, law, "magnitude", k, delta)
        assert np.sum(norms(gone) > bound.value) <= most_failures(trials, delta)
        if k >= 32:
            assert bound.value <= 2.2 * np.quantile(norms(gone), 1 - delta)
        tails = random_matrices.pruned_tails(layer, law, "magnitude", k, 0.1 * delta)
        kept = tails.kept.at(delta - tails.spent).value
        assert np.sum(norms(w - gone) > kept) <= most_failures(trials, delta)


def test_threshold_level_is_the_quantile_of_an_order_statistic():
    rng = np.random.default_rng(1)
    count, k, trials, delta = 50, 5, 20_000, 0.1
    tau = np.partition(rng.random((trials, count)), k, axis=1)[:, k]
    exceeded = np.sum(tau > random_matrices.threshold_level(count, k, delta))
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


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(
    "layer, trials",
    [
        (networks.Conv(1, 1, 3, (5, 5)), 300),
        (networks.Conv(3, 8, 3, (4, 4), 2, "CIRCULAR"), 200),
        (networks.Conv(8, 2, 2, (6, 7), 1, "VALID"), 200),
        (networks.Conv(16, 16, 3, (8, 8)), 40),
    ],
    ids=lambda v: f"{v.c_in}-{v.c_out}" if isinstance(v, networks.Conv) else "",
)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_convolution_norm_bound_against_simulation(law, method, layer, trials, density):
    rng = np.random.default_rng(layer.c_in)
    count = math.prod(layer.weight_shape)
    k = round(density * count)
    w = sample(rng, layer, law, trials)
    gone = removed_part(rng, w, method, k)
    removed, kept = convolution_norms(layer, gone), convolution_norms(layer, w - gone)
    for delta in (0.1, 0.5):
        bound = removed_bound(layer, law, method, k, delta).value
        assert np.sum(removed > bound) <= most_failures(trials, delta)
        if k >= 32:
            assert bound <= 2.5 * np.quantile(removed, 1 - delta)
        tails = random_matrices.pruned_tails(layer, law, method, k, 0.1 * delta)
        bound = tails.kept.at(delta - tails.spent).value
        assert np.sum(kept > bound) <= most_failures(trials, delta)


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
    level = random_matrices.threshold_level(count, removed, delta)
    assert special.betaincc(removed + 1, count - removed, level) <= delta * (1 + 1e-9)
    assert special.betaincc(removed + 1, count - removed, level * (1 - 1e-9)) > delta * (1 - 1e-6)

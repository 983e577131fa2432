"""Bands, quantile limits and tolerance limits: exact probabilities, published figures."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxprune.engine import Tally
from jaxprune.engine.trial import Trial
from jaxprune.statistics import (
    Counts,
    dkw_at_look,
    dkw_half_width,
    lower_limit,
    quantile_ranks,
    survival,
    tolerance_trials,
    upper_limit,
)


@pytest.mark.parametrize("n", [1, 2, 10, 100, 1000, 10**6])
@pytest.mark.parametrize("tail", [1e-6, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.01, 0.2])
@pytest.mark.parametrize("sides", [1, 2])
def test_ranks_are_the_closest_that_are_sure_enough(n, tail, alpha, sides):
    """By SciPy: X_(l) > q if at least n - l + 1 exceed q, X_(u) < q if at most n - u do."""
    low, high, miss_low, miss_high = quantile_ranks(n, tail, alpha, sides=sides)
    above, level = stats.binom(n, tail), alpha / sides
    if low:
        assert miss_low == pytest.approx(above.sf(n - low), rel=1e-8) and miss_low <= level
    if high:
        assert miss_high == pytest.approx(above.cdf(n - high), rel=1e-8) and miss_high <= level
    assert low == n or above.sf(n - (low or 0) - 1) > level
    assert high == 1 or above.cdf(n - (high or n + 1) + 1) > level


@pytest.mark.parametrize(
    ("n", "tail", "ranks"), [(1000, 0.01, (981, 998)), (10**9, 1e-6, (999_998_918, 999_999_082))]
)
def test_published_ranks(n, tail, ranks):
    low, high, miss_low, miss_high = quantile_ranks(n, tail, 0.01)
    assert miss_low + miss_high <= 0.01
    # Published ones share the error unequally: none of ours is further out than one rank.
    assert abs(low - ranks[0]) <= 1 and abs(high - ranks[1]) <= 1


@pytest.mark.parametrize(
    ("tail", "alpha", "trials"),
    [(0.05, 0.05, 59), (0.01, 0.05, 299), (0.01, 0.01, 459), (1e-3, 0.01, 4603),
     (1e-8, 0.01, 460_517_017)],
)  # fmt: skip
def test_tolerance_limits_of_wilks(tail, alpha, trials):
    assert tolerance_trials(tail, alpha) == trials
    n = tolerance_trials(tail, alpha, rank=3)
    slack = 1e-6 * alpha  # SciPy's own error at 10^9 trials
    assert stats.binom.cdf(2, n, tail) <= alpha + slack
    assert stats.binom.cdf(2, n - 1, tail) > alpha - slack


def test_dkw_covers_continuous_laws_and_atoms():
    """10^4 repetitions of 300 trials at 0.99: at most 151 misses (false alarm 1e-6)."""
    rng, n, alpha = np.random.default_rng(3), 300, 0.01
    half = dkw_half_width(n, alpha)
    assert half == math.sqrt(math.log(200) / 600)
    u = np.sort(rng.random((10_000, n)), axis=1)
    i = np.arange(1, n + 1)
    apart = np.maximum(i / n - u, u - (i - 1) / n).max(axis=1)
    assert 30 <= (apart > half).sum() <= 151
    share = rng.binomial(n, 0.3, 10_000) / n  # one atom of 0.3, the rest above it
    assert (abs(share - 0.3) > half).sum() <= 151
    assert dkw_half_width(n, 0.005, sides=1) == pytest.approx(half, rel=1e-12)


def test_looks_spend_alpha_once():
    spent = [2 * math.exp(-2 * 50 * dkw_at_look(50, k, 0.05) ** 2) for k in range(2000)]
    assert sum(spent) < 0.05 and spent[0] == pytest.approx(0.025)
    assert np.diff([dkw_at_look(50, k, 0.05) for k in range(20)]).min() > 0


def test_survival_limits_are_clopper_pearson_s_cut_by_the_band():
    counts = [Counts(10, 5, 80, 5), Counts(40, 15, 40, 5), Counts(93, 2, 0, 5)]
    found = survival(counts, 0.05)
    assert found.level == 0.05 / 6 and found.half_width == math.inf
    np.testing.assert_array_equal(found.low, lower_limit([80, 40, 0], 100, found.level))
    np.testing.assert_array_equal(found.high, upper_limit([90, 60, 7], 100, found.level))
    many = [Counts(k, 0, 4000 - k, 0) for k in range(0, 4001, 20)]
    band = survival(many, 0.05)
    truth = np.array([c.far / 4000 for c in many])
    assert band.half_width == dkw_half_width(4000, 0.025) and band.level == 0.05 / (4 * 201)
    assert (band.low <= truth).all() and (truth <= band.high).all()
    assert (band.high - band.low).max() <= 2 * band.half_width * (1 + 1e-12)
    assert band.high[-1] < band.half_width  # exact limits resolve the tail


def test_survival_limits_hold_together_by_enumeration():
    """All outcomes of 12 trials in three classes; the true probabilities on a grid."""
    n, alpha = 12, 0.1
    outcomes = [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]
    bands = [
        survival([Counts(a, 0, n - a, 0), Counts(a + b, 0, c, 0)], alpha) for a, b, c in outcomes
    ]
    for p, q in itertools.product((0.02, 0.3, 0.6), (0.01, 0.2, 0.39)):
        truth = np.array([1 - p, 1 - p - q])
        chance = stats.multinomial(n, (p, q, 1 - p - q)).pmf(outcomes)
        right = [((b.low <= truth) & (truth <= b.high)).all() for b in bands]
        assert chance[right].sum() >= 1 - alpha


def test_quantile_limits_of_a_tally_enclose_the_order_statistics():
    rng, n = np.random.default_rng(4), 500
    lower = rng.gamma(2.0, size=n).astype(np.float32)
    zeros = np.zeros(n, np.float32)
    bad = np.arange(n) < 3
    trials = Trial(~bad, lower, 2 * lower, lower, zeros, zeros, zeros, zeros, zeros)
    tally = Tally.of([1.0], range(n), trials)
    low, high, _, _ = quantile_ranks(n, 0.1, 0.05)
    least, most = tally.gap_quantile_limits(0.1, 0.05)
    lowers, uppers = np.where(bad, -1.0, lower), np.where(bad, np.inf, 2 * lower)
    exact = np.sort(lowers)[low - 1], np.sort(uppers)[high - 1]
    assert 0.992 * exact[0] <= least <= exact[0] <= exact[1] <= most <= 1.008 * exact[1]
    assert tally.gap_quantile_limits(1e-4, 0.05)[1] == math.inf
    assert tally.gap_quantile_limits(1 - 1e-4, 0.05)[0] == 0.0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: dkw_half_width(0, 0.1), "trials"),
        (lambda: dkw_half_width(5, 0.6, sides=1), "alpha"),
        (lambda: quantile_ranks(5, 1.0, 0.1), "tail"),
        (lambda: tolerance_trials(1e-14, 0.1), "trials"),
        (lambda: survival([], 0.1), "counts"),
        (lambda: survival([Counts(5, 0, 5, 0), Counts(4, 0, 6, 0)], 0.1), "counts"),
    ],
)
def test_bad_numbers(call, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        call()

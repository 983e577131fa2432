"""Limits of bounded means: exact enumeration, simulation with a stated false alarm, definitions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxprune.statistics import betting, empirical_bernstein
from jaxprune.statistics.means import MOST_OF_CAPITAL, _bets

ALPHA = 0.05


@pytest.mark.parametrize("n", [2, 10, 200])
@pytest.mark.parametrize("sides", [1, 2])
def test_empirical_bernstein_covers_coins_exactly(n, sides):
    """Every count of n coins with values -1 and 1, whose mean is 2 p - 1."""
    k = np.arange(n + 1)
    means, variances = 2 * k / n - 1, 4 * k * (n - k) / n / (n - 1)
    rows = [
        empirical_bernstein(m, v, n, ALPHA, low=-1, high=1, sides=sides)
        for m, v in zip(means, variances, strict=True)
    ]
    low, high = np.array(rows).T
    for p in np.linspace(0.001, 0.999, 60):
        chance = stats.binom.pmf(k, n, p)
        misses = chance[low > 2 * p - 1].sum(), chance[high < 2 * p - 1].sum()
        assert (sum(misses) if sides == 2 else max(misses)) <= ALPHA


def test_empirical_bernstein_is_its_formula():
    x = np.random.default_rng(0).beta(2, 5, 400) * 3 + 1
    found = empirical_bernstein(x.mean(), x.var(ddof=1), 400, ALPHA, low=1, high=4, sides=1)
    log = math.log(2 / ALPHA)
    margin = math.sqrt(2 * x.var(ddof=1) * log / 400) + 3 * 7 * log / (3 * 399)
    assert found == pytest.approx((max(1, x.mean() - margin), x.mean() + margin), rel=1e-12)


def test_lost_trials_take_the_worst_value_on_either_side():
    """As if they were there with that value: never inside the limits of the filled samples."""
    x, lost = np.random.default_rng(1).random(500), 20
    found = empirical_bernstein(x.mean(), x.var(ddof=1), 500, ALPHA, low=0, high=1, nonfinite=lost)
    for value in (0.0, 1.0):
        full = np.append(x, np.full(lost, value))
        alone = empirical_bernstein(full.mean(), full.var(ddof=1), 520, ALPHA, low=0, high=1)
        assert found.low <= alone.low <= alone.high <= found.high


def test_skewed_means_where_student_s_limits_fail():
    """Beta(1/2, 20), 100 trials, one-sided upper limits at 1 %: 151 of 10^4 misses at most."""
    rng, runs, n, alpha = np.random.default_rng(2), 10_000, 100, 0.01
    x = rng.beta(0.5, 20, (runs, n))
    truth = 0.5 / 20.5
    mean, deviation = x.mean(axis=1), x.std(axis=1, ddof=1)
    student = mean + stats.t.isf(alpha, n - 1) * deviation / math.sqrt(n)
    assert (student < truth).sum() > 151
    bernstein = [
        empirical_bernstein(m, s**2, n, alpha, low=0, high=1, sides=1).high
        for m, s in zip(mean[:2000], deviation[:2000], strict=True)
    ]
    assert (np.array(bernstein) < truth).sum() <= stats.binom.isf(1e-6, 2000, alpha)


@pytest.mark.parametrize("planned", [None, pytest.param(60, marks=pytest.mark.ci)])
def test_betting_covers_at_every_look(planned):
    """600 runs looked at 6 times each: misses at any look at most 5 % (false alarm 1e-6)."""
    rng, runs = np.random.default_rng(3), 600
    missed = 0
    for i in range(runs):
        x = rng.beta(0.5, 2, 60) if i % 2 else (rng.random(60) < 0.2).astype(float)
        looks = (betting(x[:n], x[:n], ALPHA, low=0, high=1, planned=planned)
                 for n in range(10, 61, 10))  # fmt: skip
        missed += any(not low <= 0.2 <= high for low, high in looks)
    assert missed <= stats.binom.isf(1e-6, runs, ALPHA)


@pytest.mark.parametrize("planned", [None, 8])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_capital_is_a_martingale_at_the_mean(p, planned):
    """Exact, over all sequences of 8 coins: a bet that knew its own trial would gain."""
    coins = np.array(list(itertools.product((0.0, 1.0), repeat=8)))
    chance = np.prod(np.where(coins == 1, p, 1 - p), axis=1)
    bets = np.array([_bets(x, ALPHA, planned) for x in coins])
    capital = np.cumprod(1 + np.minimum(bets, MOST_OF_CAPITAL / p) * (coins - p), axis=1)
    np.testing.assert_allclose(chance @ capital, 1, rtol=1e-12)
    assert len(np.unique(bets[:, -1])) > 1  # they learn, from earlier trials


def test_two_limits_of_a_bet_share_the_error():
    x = np.random.default_rng(5).random(50)
    both = betting(x, x, 0.1, low=0, high=1, sides=2)
    assert both == betting(x, x, 0.05, low=0, high=1, sides=1)
    one = betting(x, x, 0.1, low=0, high=1, sides=1)
    assert both.low < one.low < one.high < both.high


def test_betting_closes_in_and_brackets_count_on_both_sides():
    x = np.random.default_rng(4).uniform(0.2, 0.4, 3000)
    wide, close = (betting(x[:n], x[:n], ALPHA, low=0, high=1) for n in (100, 3000))
    assert close.high - close.low < wide.high - wide.low and close.high - close.low < 0.02
    bracket = betting(x - 0.05, x + 0.05, ALPHA, low=0, high=1)
    assert bracket.low < close.low < close.high < bracket.high
    hurt = np.where(np.arange(3000) % 100 == 0, np.nan, x)
    lost = betting(hurt, hurt, ALPHA, low=0, high=1)
    assert lost.low < close.low < close.high < lost.high
    scaled = betting(10 * x - 3, 10 * x - 3, ALPHA, low=-3, high=7)
    assert scaled == pytest.approx((10 * close.low - 3, 10 * close.high - 3), abs=1e-9)
    assert betting([], [], ALPHA, low=0, high=1) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: empirical_bernstein(2.0, 0.1, 5, 0.1, low=0, high=1), "mean"),
        (lambda: empirical_bernstein(0.5, 9.0, 5, 0.1, low=0, high=1), "variance"),
        (lambda: empirical_bernstein(0.5, 0.1, 5, 0.1, low=1, high=0), "high"),
        (lambda: betting([0.5], [0.4], 0.1, low=0, high=1), "lower"),
        (lambda: betting([0.5], [1.4], 0.1, low=0, high=1), "lower, upper"),
        (lambda: betting([0.5], [0.6], 1.0, low=0, high=1), "alpha"),
    ],
)
def test_bad_numbers(call, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        call()

"""Trials to plan: exact integers, mpmath, and brute force over every number of trials."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from jaxprune.statistics import (
    e_bh,
    fixed_sequence,
    limits,
    trials_for_half_width,
    trials_for_power,
    trials_without_failure,
)

FALSE_ALARM = 1e-6


@pytest.mark.parametrize(
    ("delta", "alpha", "trials"),
    [
        (1e-8, 0.01, 460_517_017),
        (1e-8, 0.05, 299_573_226),
        (1e-6, 0.01, 4_605_168),
        (1e-3, 0.01, 4_603),
        (0.01, 0.01, 459),
        (0.05, 0.05, 59),
        (0.5, 0.25, 2),
    ],
)
def test_trials_without_failure(delta, alpha, trials):
    assert trials_without_failure(delta, alpha) == trials
    with mpmath.workdps(50):
        tail = lambda n: (1 - mpmath.mpf(delta)) ** n
        assert tail(trials) <= alpha < tail(trials - 1)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("half_width", [0.2, 0.05])
def test_trials_for_half_width_against_every_number(p, half_width):
    found = trials_for_half_width(half_width, p, 0.05)

    def width(n):
        k = int(n * p)
        low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
        return stats.beta.ppf(0.975, k + 1, n - k) - low

    wide = [n for n in range(1, 3 * found + 200) if width(n) > 2 * half_width]
    assert found == wide[-1] + 1


@pytest.mark.parametrize(
    ("delta", "p", "alpha", "power"),
    [(0.1, 0.02, 0.05, 0.8), (0.5, 0.3, 0.01, 0.9), (0.1, 0.3, 0.01, 0.9), (0.9, 0.97, 0.05, 0.5)],
)
def test_trials_for_power_against_every_number(delta, p, alpha, power):
    found = trials_for_power(delta, p, alpha, power)

    def chance(n):
        k = np.arange(n + 1)
        if p < delta:
            decides = stats.binom.cdf(k, n, delta) <= alpha
        else:
            decides = stats.binom.sf(k - 1, n, delta) <= alpha
        return stats.binom.pmf(k, n, p)[decides].sum()

    weak = [n for n in range(1, 3 * found + 50) if chance(n) < power]
    assert found == weak[-1] + 1


@pytest.mark.parametrize("p", [1e-9, 5e-8])
def test_rare_failures_are_planned_without_a_list_of_all_numbers(p):
    """The window that is enough, and the number before it that is not, by the tails themselves."""
    delta, alpha, power = 1e-8, 0.01, 0.9
    n = trials_for_power(delta, p, alpha, power)

    def chance(n):
        k = np.arange(200)
        if p < delta:
            decides = stats.binom.cdf(k, n, delta) <= alpha
            return stats.binom.cdf(k[decides][-1], n, p)
        decides = stats.binom.sf(k - 1, n, delta) <= alpha
        return stats.binom.sf(k[decides][0] - 1, n, p)

    slack = 1e-5  # SciPy's own error at 10^9 trials, and where it puts a tooth
    assert chance(n + 100) >= power - slack and chance(n - 100) < power + slack
    for later in n + np.linspace(0, 3e8, 300).astype(int):
        assert chance(later) >= power - slack


def test_fixed_designs_of_the_handbook_s_size():
    """0.999 against 0.99 at 90 % power: 839 trials suffice where 10 times delta separates."""
    n = trials_for_power(0.01, 0.001, 0.01, 0.9)
    k = int(stats.binom.ppf(0.01, n, 0.01)) - 1
    assert stats.binom.cdf(k, n, 0.001) >= 0.9 and 600 < n < 1300


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: trials_without_failure(0.0, 0.1), "delta"),
        (lambda: trials_without_failure(1e-15, 0.1), "trials"),
        (lambda: trials_for_half_width(0.6, 0.5, 0.1), "half_width"),
        (lambda: trials_for_half_width(0.1, 0.7, 0.1), "p"),
        (lambda: trials_for_half_width(1e-9, 0.5, 0.1), "trials"),
        (lambda: trials_for_power(0.1, 0.1, 0.1, 0.9), "p"),
        (lambda: trials_for_power(0.1, 0.2, 0.1, 1.0), "power"),
        (lambda: e_bh([0.0, np.nan]), "log_e_values"),
        (lambda: fixed_sequence([0.1], 1.0), "alpha"),
    ],
)
def test_bad_numbers(call, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        call()


@pytest.mark.parametrize("n", [10, 300])
def test_two_sided_limits_cover_by_enumeration(n):
    k = np.arange(n + 1)
    low, high = limits(k, n, 0.01)
    for p in np.concatenate([np.geomspace(1e-8, 0.5, 200), 1 - np.geomspace(1e-8, 0.5, 200)]):
        covered = (low <= p) & (p <= high)
        assert stats.binom.pmf(k, n, p)[covered].sum() >= 0.99 - 1e-9


def test_e_bh_against_its_definition():
    rng = np.random.default_rng(2)
    for _ in range(300):
        log_e, alpha = rng.normal(2, 3, rng.integers(1, 12)), rng.uniform(0.01, 0.5)
        m = len(log_e)
        ranked = np.sort(np.exp(log_e))[::-1]
        k = max([i for i in range(1, m + 1) if i * ranked[i - 1] >= m / alpha], default=0)
        rejected = e_bh(log_e) <= alpha
        assert rejected.sum() == k and (
            k == 0 or log_e[rejected].min() >= np.log(ranked[k - 1]) - 1e-12
        )
    assert e_bh([]).shape == (0,) and e_bh([-5.0]) == [1.0]


def test_fixed_sequence_stops_at_the_first_failure():
    assert fixed_sequence([0.01, 0.02, 0.3, 0.001], 0.05) == 2
    assert fixed_sequence([0.01, np.nan, 0.001], 0.05) == 1
    assert fixed_sequence([], 0.05) == 0 and fixed_sequence([0.05, 0.05], 0.05) == 2

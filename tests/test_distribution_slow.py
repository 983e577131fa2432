"""Bands, bounded means and slopes in simulation: `pytest -m slow`.

False-alarm rate 1e-6 a test, seeds fixed: of 10^4 runs that may each miss with 1 %, at most 151;
of 1,000 limits at 95 %, 916 to 984 hold (2e-6). Each test has a method that must fail it.
"""

import math

import numpy as np
import pytest
from scipy import stats

from jaxprune.statistics import (
    betting,
    dkw_at_look,
    dkw_half_width,
    empirical_bernstein,
    exponent,
    means,
    power_law,
)

pytestmark = pytest.mark.slow

ALPHA = 0.01
RUNS, MOST = 10_000, 151


def distance(x):
    """Kolmogorov's sup |F_n - F| of uniform numbers, row by row."""
    n = x.shape[-1]
    x, i = np.sort(x, axis=-1), np.arange(n)
    return np.maximum((i + 1) / n - x, x - i / n).max(axis=-1)


def test_the_band_of_a_thousand_trials():
    """Exact probability of a miss: 0.96 %."""
    rng = np.random.default_rng(1)
    far = np.concatenate([distance(rng.uniform(size=(1000, 1000))) for _ in range(RUNS // 1000)])
    assert (far > dkw_half_width(1000, ALPHA)).sum() <= MOST
    assert (far > 0.93 * dkw_half_width(1000, ALPHA)).sum() > MOST


def test_the_band_with_atoms():
    """Gaps that are 0 with probability 0.3 and else rounded to one of 8 values."""
    rng = np.random.default_rng(2)
    mass = np.array([0.3, *[0.7 / 8] * 8])
    counts = rng.multinomial(1000, mass, RUNS)
    far = np.abs(np.cumsum(counts, axis=1) / 1000 - np.cumsum(mass)).max(axis=1)
    assert (far > dkw_half_width(1000, ALPHA)).sum() <= MOST


def test_sixty_looks():
    """At most 1 % with the spent alpha; without it many more."""
    rng = np.random.default_rng(3)
    looks = 20 * np.arange(1, 61)
    spent = np.array([dkw_at_look(int(n), k, ALPHA) for k, n in enumerate(looks)])
    fixed = np.array([dkw_half_width(int(n), ALPHA) for n in looks])
    missed = peeked = 0
    for _ in range(RUNS // 500):
        x = rng.uniform(size=(500, 1200))
        far = np.stack([distance(x[:, :n]) for n in looks], axis=1)
        missed += (far > spent).any(axis=1).sum()
        peeked += (far > fixed).any(axis=1).sum()
    assert missed <= 0.01 * RUNS
    assert peeked > 0.05 * RUNS


SKEWED = stats.beta(0.5, 20)


@pytest.mark.parametrize("n", [100, 1000])
def test_upper_limits_of_a_skewed_mean(n):
    """Beta(1/2, 20), upper limits at 1 %: Student's t misses too often, at n = 100 about 3 %."""
    rng = np.random.default_rng(4)
    truth, unit = SKEWED.mean(), {"low": 0.0, "high": 1.0, "sides": 1}
    missed = dict.fromkeys(("student", "bernstein", "betting", "tuned"), 0)
    for _ in range(RUNS if n == 100 else 2000):
        x = rng.beta(0.5, 20, n)
        mean, variance = x.mean(), x.var(ddof=1)
        t = mean + stats.t.isf(ALPHA, n - 1) * math.sqrt(variance / n)
        missed["student"] += t < truth
        missed["bernstein"] += empirical_bernstein(mean, variance, n, ALPHA, **unit).high < truth
        missed["betting"] += betting(x, x, ALPHA, **unit).high < truth
        missed["tuned"] += betting(x, x, ALPHA, planned=n, **unit).high < truth
    most = MOST if n == 100 else 44  # of 2,000: a false alarm of 1e-6
    assert max(missed["bernstein"], missed["betting"], missed["tuned"]) <= most
    assert n > 100 or missed["student"] > MOST


@pytest.mark.parametrize(
    "law", [SKEWED, stats.bernoulli(0.02), stats.uniform()], ids=["beta", "bernoulli", "uniform"]
)
def test_betting_at_any_time(law):
    """Whether the true mean is ever left out in 1,000 trials, either side at 1 %; so is that of
    Student's limits, far more often."""
    rng = np.random.default_rng(5)
    n, mean = 1000, float(law.mean())
    missed, student, t = np.zeros(2, int), 0, np.arange(1.0, n + 1)
    threshold = stats.t.isf(ALPHA, np.maximum(t - 1, 1))
    for x in law.rvs((RUNS, n), random_state=rng):
        for side, (values, m) in enumerate(((x, mean), (1 - x, 1 - mean))):
            bets = np.minimum(means._bets(values, ALPHA, None), means.MOST_OF_CAPITAL / m)
            capital = np.cumsum(np.log1p(bets * (values - m)))
            missed[side] += capital.max() >= math.log(1 / ALPHA)
        average = np.cumsum(x) / t
        error = np.sqrt(np.maximum(np.cumsum(x * x) / t - average**2, 0) / np.maximum(t - 1, 1))
        student += (np.abs(average - mean) > threshold * error)[10:].any()
    assert missed.max() <= MOST
    assert student > 0.05 * RUNS


WIDTHS = 2.0 ** np.arange(5, 13)


def simulated(rng, trials, variation):
    """A study with lognormal gaps: mean gaps `width^-1/2` and standard errors from its trials."""
    y, errors = [], []
    for width, n, c in zip(WIDTHS, trials, variation, strict=True):
        s = math.sqrt(math.log1p(c * c))
        gaps = width**-0.5 * np.exp(s * rng.normal(size=n) - s * s / 2)
        y.append(gaps.mean())
        errors.append(gaps.std(ddof=1) / gaps.mean() / math.sqrt(n))
    return y, errors


@pytest.mark.parametrize(
    ("fails", "trials", "variation"),
    [
        ("unweighted", [400, 400, 100, 100, 25, 25, 12, 12], [0.2] * 4 + [0.6] * 4),
        ("normal", [10, 10, 10, 20, 20, 40, 80, 400], [0.3] * 8),
    ],
)
def test_a_thousand_studies(fails, trials, variation):
    """95 % limits of a slope hold in 916 to 984; least squares without weights does not where the
    errors differ, normal limits that trust the errors do not where these come from few trials."""
    rng = np.random.default_rng(20)
    held = dict.fromkeys(("weighted", "unweighted", "normal"), 0)
    for _ in range(1000):
        y, errors = simulated(rng, trials, variation)
        fit = power_law(WIDTHS, y, errors, significance=1e-300)
        normal = 1.959964 * (fit.high - fit.slope) / fit.scale / stats.t.isf(0.025, 6)
        plain = exponent(WIDTHS, y, y, 0.95)
        held["weighted"] += fit.low <= -0.5 <= fit.high
        held["unweighted"] += plain.scatter_low <= -0.5 <= plain.scatter_high
        held["normal"] += abs(fit.slope + 0.5) <= normal
    assert 916 <= held["weighted"] <= 984
    assert held[fails] < 916


def test_a_floor_shows_in_every_study():
    """Row 49, errors 2 %: a floor of 0.02 is flagged in 100 of 100, none in at most 5 (a false
    alarm of 5e-4 with another seed; 8 would be one of 1e-6). With the constant fitted, 95 %
    limits of the slope hold in at least 82 of 100, and those of the bent power law in few."""
    rng = np.random.default_rng(49)
    errors = np.full(8, 0.02)
    flagged = dict.fromkeys((0.0, 0.02), 0)
    held = bent = 0
    for floor in flagged:
        for _ in range(100):
            y = (WIDTHS**-0.5 + floor) * np.exp(errors * rng.normal(size=8))
            fit = power_law(WIDTHS, y, errors)
            flagged[floor] += fit.lack_of_fit <= 0.01
            assert (fit.with_constant is None) == (fit.lack_of_fit > 0.01)
            if floor and fit.with_constant:
                held += fit.with_constant.low <= -0.5 <= fit.with_constant.high
                bent += fit.low <= -0.5 <= fit.high
    assert flagged[0.02] == 100 and flagged[0.0] <= 5
    assert held >= 82 and bent < 82

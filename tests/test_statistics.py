"""Limits by exact enumeration, against mpmath and SciPy; verdicts against their definition."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy import stats
from tiers import grid

from jaxprune.statistics import (
    HOLDS,
    UNDECIDED,
    VIOLATED,
    Claim,
    Counts,
    holm,
    judge,
    lower_limit,
    p_value_at_least,
    p_value_at_most,
    upper_limit,
)

ALPHA = 0.01
TAILS = 10.0 ** -np.arange(2, 9)
PROBABILITIES = np.unique(np.concatenate([TAILS, 1 - TAILS, np.linspace(0.001, 0.999, 621)]))


def enumerate_coverage(n, covered):
    """Exact coverage at each probability: the mass of the counts whose limit covers it."""
    k = np.arange(n + 1)
    return np.array([stats.binom.pmf(k, n, p)[covered(k, p)].sum() for p in PROBABILITIES])


@pytest.mark.parametrize("n", [10, 100, 1000, pytest.param(10_000, marks=pytest.mark.ci)])
def test_coverage_is_never_below_nominal(n):
    """No simulation: the coverage is summed exactly, so there is nothing to flake."""
    k = np.arange(n + 1)
    up, low = upper_limit(k, n, ALPHA), lower_limit(k, n, ALPHA)
    for covered in (lambda k, p: p <= up[k], lambda k, p: p >= low[k]):
        assert enumerate_coverage(n, covered).min() >= 1 - ALPHA - 1e-9
    # The check can fail: Wilson's one-sided limit does (handbooks report 0.88).
    z = stats.norm.isf(ALPHA)
    center = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4)
    assert enumerate_coverage(n, lambda k, p: p <= (center + half)[k]).min() < 0.99 - 1e-3


@pytest.mark.parametrize(
    "n, k, alpha", grid([10**6, 10**9, 10**12], [0, 1, 10, 1000], [0.01, 1e-11], every=5)
)
def test_limits_against_mpmath(n, k, alpha):
    """At the limit the exact binomial tail is alpha; its slope turns that into the limit."""
    with mpmath.workdps(50):
        p = mpmath.mpf(float(upper_limit(k, n, alpha)))
        tail = sum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
        slope = n * mpmath.binomial(n - 1, k) * p**k * (1 - p) ** (n - 1 - k)
        assert abs((tail - alpha) / slope / p) < 1e-6
        if k:
            p = mpmath.mpf(float(lower_limit(k, n, alpha)))
            tail = 1 - sum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k))
            slope = n * mpmath.binomial(n - 1, k - 1) * p ** (k - 1) * (1 - p) ** (n - k)
            assert abs((tail - alpha) / slope / p) < 1e-6


def test_closed_forms():
    for n in (1, 10, 10**6, 10**12):
        assert upper_limit(0, n, ALPHA) == pytest.approx(-math.expm1(math.log(ALPHA) / n))
        assert lower_limit(n, n, ALPHA) == pytest.approx(ALPHA ** (1 / n))
        assert upper_limit(n, n, ALPHA) == 1 and lower_limit(0, n, ALPHA) == 0
    assert upper_limit(0, 0, ALPHA) == 1 and lower_limit(0, 0, ALPHA) == 0


@pytest.mark.parametrize(
    ("delta", "needed"),
    [(1e-3, 4603), (1e-6, 4_605_168), (1e-8, 460_517_017)],
)
def test_trials_that_a_zero_failure_claim_needs(delta, needed):
    """To the trial: log(0.01) / log1p(-delta), rounded up."""
    assert needed == math.ceil(math.log(0.01) / math.log1p(-delta))
    assert p_value_at_most(0, needed, delta) <= 0.01 < p_value_at_most(0, needed - 1, delta)
    for n, verdict in ((needed, HOLDS), (needed - 1, UNDECIDED)):
        assert judge([Claim(Counts(n, 0, 0, 0), delta)], 0.99)[0].verdict == verdict


@pytest.mark.parametrize("n", [1, 7, 100, 5000])
@pytest.mark.parametrize("p", [1e-4, 0.05, 0.5, 0.99])
def test_p_values_against_scipy(n, p):
    k = np.unique(np.linspace(0, n, 30).astype(int))
    np.testing.assert_allclose(p_value_at_most(k, n, p), stats.binom.cdf(k, n, p), rtol=1e-9)
    np.testing.assert_allclose(p_value_at_least(k, n, p), stats.binom.sf(k - 1, n, p), rtol=1e-9)


def test_limits_and_p_values_agree():
    for n, k in itertools.product((5, 50, 500), (0, 1, 3, 5)):
        for p in (0.001, 0.02, 0.3):
            assert (upper_limit(k, n, ALPHA) <= p) == (p_value_at_most(k, n, p) <= ALPHA)
            assert (lower_limit(k, n, ALPHA) > p) == (p_value_at_least(k, n, p) < ALPHA)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 10, 0.01), "failures"),
        ((11, 10, 0.01), "failures"),
        ((1.0, 10, 0.01), "failures"),
        ((True, 10, 0.01), "failures"),
        ((1, 10**13, 0.01), "trials"),
        ((1, 10, 0.0), "alpha"),
        ((1, 10, 1.0), "alpha"),
        ((1, 10, math.nan), "alpha"),
    ],
)
def test_bad_counts(arguments, named):
    for limit in (upper_limit, lower_limit):
        with pytest.raises(ValueError, match=named):
            limit(*arguments)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert len(holm([])) == 0


def test_holm_is_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(rng.integers(1, 8)) ** 3
        for alpha in (0.01, 0.05, 0.2):
            rejected = np.zeros(len(p), bool)
            for step, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (len(p) - step):
                    break
                rejected[i] = True
            np.testing.assert_array_equal(holm(p) <= alpha, rejected)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_family_wise_error(correlation):
    """4,000 sweeps of 50 claims, 40 of them true nulls at their boundary: at most nominal plus 4.9
    standard errors, i.e. a false-alarm rate of 1e-6."""
    rng = np.random.default_rng(1)
    sweeps, alpha = 4000, 0.05
    common = rng.normal(size=(sweeps, 1))
    z = correlation**0.5 * common + (1 - correlation) ** 0.5 * rng.normal(size=(sweeps, 50))
    z[:, 40:] += 4.0
    p = stats.norm.sf(z)
    false = np.mean([(holm(row)[:40] <= alpha).any() for row in p])
    assert false <= alpha + 4.9 * math.sqrt(alpha * (1 - alpha) / sweeps)
    if correlation == 0:
        # Without the correction the same check fails.
        assert np.mean((p[:, :40] <= alpha).any(axis=1)) > 0.5


def verdict(close=0, between=0, far=0, nonfinite=0, delta=0.05):
    return judge([Claim(Counts(close, between, far, nonfinite), delta)])[0]


def test_verdicts_count_the_open_trials_against_either_answer():
    assert verdict(close=500).verdict == HOLDS
    assert verdict(far=500).verdict == VIOLATED
    assert verdict(between=500).verdict == UNDECIDED
    assert verdict(close=450, between=50).verdict == UNDECIDED
    assert verdict(close=450, far=50).verdict == VIOLATED
    assert verdict(close=450, nonfinite=50).verdict == UNDECIDED
    assert verdict().verdict == UNDECIDED


def test_nan_is_never_a_success_and_never_a_proof():
    for n in (1, 100, 10**6):
        decision = verdict(nonfinite=n)
        assert decision[:3] == (UNDECIDED, 0.0, 1.0)
        assert verdict(nonfinite=n, close=n).verdict == UNDECIDED


def test_limits_move_the_right_way():
    full = verdict(close=400, far=10)
    for other in (
        verdict(close=390, between=10, far=10),
        verdict(close=390, nonfinite=10, far=10),
    ):
        assert other.p_low < full.p_low and other.p_high == full.p_high
    assert verdict(close=390, far=20).p_high < full.p_high


def test_limits_are_those_of_clopper_and_pearson():
    decision = verdict(close=95, between=2, far=3)
    exact = stats.binomtest(95, 100).proportion_ci(0.98, method="exact").low
    assert decision.p_low == pytest.approx(exact)
    exact = stats.binomtest(97, 100).proportion_ci(0.98, method="exact").high
    assert decision.p_high == pytest.approx(exact)


def test_more_claims_make_a_verdict_harder():
    claim = Claim(Counts(90, 0, 0, 0), 0.05)  # p-value 0.0099
    assert judge([claim])[0].verdict == HOLDS
    hopeless = Claim(Counts(50, 0, 3, 0), 0.05)
    assert judge([claim, hopeless])[0].verdict == UNDECIDED
    single, pair = judge([claim])[0], judge([claim, hopeless])[0]
    assert single.p_low == pair.p_low and pair.p_value_holds == 2 * single.p_value_holds


def test_a_whole_plan_is_rarely_wrong():
    """3,000 plans of 3 claims at their boundary: wrong answers of either kind at most at the
    nominal 5 % plus 4.9 standard errors."""
    rng = np.random.default_rng(2)
    plans, n, delta = 3_000, 200, 0.05
    far = rng.binomial(n, [delta * 1.0001] * 3, (plans, 3))
    # A plan's verdict depends on its counts alone; equal plans are judged once.
    wrong = 0
    rows, times = np.unique(np.sort(far, axis=1), axis=0, return_counts=True)
    for row, count in zip(rows.tolist(), times.tolist(), strict=True):
        claims = [Claim(Counts(n - k, 0, k, 0), delta) for k in row]
        wrong += count * any(d.verdict == HOLDS for d in judge(claims, 0.95))
    assert wrong / plans <= 0.05 + 4.9 * math.sqrt(0.05 * 0.95 / plans)


@pytest.mark.parametrize(
    ("claims", "confidence", "named"),
    [
        ([Claim(Counts(1, 0, 0, 0), 0.0)], 0.99, "delta = 0"),
        ([Claim(Counts(1, 0, 0, 0), 0.5)], 1.0, "confidence"),
        ([Claim(Counts(-1, 0, 0, 0), 0.5)], 0.99, "close"),
        ([Claim(Counts(100, -3, 3, 0), 0.5)], 0.99, "between"),
        ([Claim(Counts(1.0, 0, 0, 0), 0.5)], 0.99, "close"),
        ([Claim((1, 0, 0, 0), 0.5)], 0.99, "counts"),
        ([Counts(1, 0, 0, 0)], 0.99, "claim"),
    ],
)
def test_bad_claims(claims, confidence, named):
    with pytest.raises(ValueError, match=named):
        judge(claims, confidence)

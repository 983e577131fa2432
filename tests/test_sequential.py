"""Anytime-valid evidence and limits: mpmath, quadrature, exact enumeration, exact martingales."""

import math

import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from jaxprune.statistics import (
    HOLDS,
    UNDECIDED,
    VIOLATED,
    Claim,
    Counts,
    Evidence,
    Sprt,
    judge_stopped,
    log_e_holds,
    log_e_violated,
    log_mixture,
    sequence_limits,
)

SIZES = [1, 30, 1000, 10**6, 10**9, 10**12]
LEVELS = [1e-9, 1e-3, 0.05, 0.5, 0.95]


def exact_log_mixture(k, n, p):
    with mpmath.workdps(60):
        p = mpmath.mpf(p)
        beta = mpmath.beta(k + mpmath.mpf(0.5), n - k + mpmath.mpf(0.5)) / mpmath.pi
        return float(mpmath.log(beta) - k * mpmath.log(p) - (n - k) * mpmath.log1p(-p))


def some_counts(n, p):
    spread = math.sqrt(n * p * (1 - p))
    return sorted({0, 1, n // 2, n, *(min(n, int(n * p + z * spread)) for z in (0, 1, 4))})


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", LEVELS)
def test_log_mixture_against_60_digits(n, p):
    for k in some_counts(n, p):
        assert log_mixture(k, n, p) == pytest.approx(exact_log_mixture(k, n, p), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 40), (3, 40), (20, 40), (40, 40)])
@pytest.mark.parametrize("delta", [0.05, 0.5, 0.9])
def test_evidence_against_quadrature(k, n, delta):
    """The mixture of likelihood ratios over the part of the prior on one side of delta."""

    def mixture(low, high):
        # θ = sin²(t) turns dBeta(1/2, 1/2) into a uniform t.
        a, b = math.asin(math.sqrt(low)), math.asin(math.sqrt(high))
        ratio = lambda t: math.exp(
            stats.binom.logpmf(k, n, math.sin(t) ** 2) - stats.binom.logpmf(k, n, delta)
        )
        return integrate.quad(ratio, a, b, epsabs=0, epsrel=1e-10)[0] / (b - a)

    assert log_e_holds(k, n, delta) == pytest.approx(math.log(mixture(0, delta)), abs=1e-8)
    assert log_e_violated(k, n, delta) == pytest.approx(math.log(mixture(delta, 1)), abs=1e-8)


@pytest.mark.parametrize("delta", [0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize(("evidence", "worse"), [(log_e_holds, 1.0), (log_e_violated, 0.0)])
def test_one_more_trial_multiplies_by_1_in_the_mean_at_delta_and_by_less_beyond(
    evidence, worse, delta
):
    n = np.array([0, 1, 10, 100])
    for share in (0.0, 0.02, 0.5, 1.0):
        k = np.round(share * n).astype(int)
        now, fail, succeed = (
            evidence(*counts, delta) for counts in ((k, n), (k + 1, n + 1), (k, n + 1))
        )
        seen = np.isfinite(now) & np.isfinite(fail) & np.isfinite(succeed)
        assert seen[:2].all()
        fail, succeed = np.exp(fail[seen] - now[seen]), np.exp(succeed[seen] - now[seen])
        np.testing.assert_allclose(delta * fail + (1 - delta) * succeed, 1, rtol=1e-7)
        theta = 0.5 * (delta + worse)
        assert (theta * fail + (1 - theta) * succeed <= 1 + 1e-9).all()


def ever(n, p, crossed):
    """Exact probability that (k, i) is in a set at some i <= n, by dynamic programming."""
    alive, total = np.ones(1), 0.0
    for i in range(1, n + 1):
        alive = np.append(alive * (1 - p), 0) + np.insert(alive * p, 0, 0)
        reached, hit = np.flatnonzero(alive), np.zeros(i + 1, bool)
        hit[reached] = crossed(reached, i)
        total += alive[hit].sum()
        alive = np.where(hit, 0.0, alive)
    return total


ALPHA = 0.01


def all_at_once(n, function):
    """A function of failures k and trials i, read from a table of all k <= i <= n."""
    i = np.arange(n + 1)[:, None]
    table = function(np.minimum(np.arange(n + 1), i), i)
    return lambda k, trials: table[trials, k]


@pytest.mark.parametrize(
    "delta", [0.1, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.5, 0.01))]
)
def test_looking_after_every_trial_errs_at_most_with_alpha(delta):
    """Exact; Clopper-Pearson limits looked at as often fail the same test."""
    cross = -math.log(ALPHA)
    rates = [
        ever(600, delta, all_at_once(600, lambda k, n, e=e: e(k, n, delta) >= cross))
        for e in (log_e_holds, log_e_violated)
    ]
    assert max(rates) <= ALPHA
    naive = ever(600, delta, all_at_once(600, lambda k, n: stats.binom.cdf(k, n, delta) <= ALPHA))
    assert delta < 0.1 or naive > 0.03
    outside = ever(600, delta, all_at_once(600, lambda k, n: log_mixture(k, n, delta) >= cross))
    assert 0 < outside <= ALPHA


def test_limits_are_where_the_mixture_crosses():
    n = 10 ** np.arange(1, 13)
    for share in (0.0, 1e-3, 0.3, 1.0):
        k = np.floor(share * n).astype(np.int64)
        low, high = sequence_limits(k, n, ALPHA)
        assert ((low <= k / n) & (k / n <= high)).all()
        for limit, end in ((low, k == 0), (high, k == n)):
            inner = ~end
            got = log_mixture(k[inner], n[inner], limit[inner])
            np.testing.assert_allclose(got, -math.log(ALPHA), rtol=1e-4)
    assert sequence_limits(0, 0, ALPHA) == (0.0, 1.0)
    for confident, cautious in ((0.05, 0.01),):
        a, b = sequence_limits(7, 100, confident), sequence_limits(7, 100, cautious)
        assert b[0] < a[0] < a[1] < b[1]


def test_evidence_is_the_largest_of_all_looks_and_every_open_trial_counts_against():
    counts = [Counts(90, 0, 0, 0), Counts(90, 0, 40, 0)]
    evidence = Evidence()
    for c in counts:
        evidence = evidence.look(c, 0.1)
    assert evidence.holds == log_e_holds(0, 90, 0.1)
    assert evidence.violated == log_e_violated(40, 130, 0.1)
    for open_trials in (Counts(90, 40, 0, 0), Counts(90, 0, 0, 40)):
        e = Evidence().look(open_trials, 0.1)
        assert e.holds == 0 and e.violated == 0
    assert Evidence(4.7, 0.0).decides(0.01) and not Evidence(4.5, 4.5).decides(0.01)


def test_verdicts_of_stopped_claims_are_holms():
    claims = [Claim(Counts(100, 0, 0, 0), 0.1)] * 3
    p = np.array([0.002, 0.004, 0.02])
    evidence = [Evidence(-math.log(x), 0.0) for x in p]
    decisions = judge_stopped(claims, evidence, 0.99)
    assert [d.verdict for d in decisions] == [HOLDS, HOLDS, UNDECIDED]
    np.testing.assert_allclose([d.p_value_holds for d in decisions], [0.006, 0.008, 0.02])
    low = 1 - sequence_limits(0, 100, 0.01)[1]
    assert all(d.p_low == pytest.approx(low, rel=1e-12) and d.p_high == 1 for d in decisions)
    (against,) = judge_stopped(claims[:1], [Evidence(0.0, 9.0)])
    assert against.verdict == VIOLATED
    with pytest.raises(ValueError, match="evidence: 1 for 3 claims"):
        judge_stopped(claims, evidence[:1])


def test_e_bh_takes_the_last_e_values_and_decides_more():
    """Of 10 claims at .01 e-BH rejects 5 at log(10 / .05) where Holm wants log(10 / .01)."""
    claims = [Claim(Counts(100, 0, 0, 0), 0.1)] * 10
    strong, weak = math.log(10 / 0.05) + 1e-9, 0.0
    evidence = [Evidence(strong, 0.0, strong, 0.0)] * 5 + [Evidence(weak, 0.0, weak, 0.0)] * 5
    decided = [d.verdict for d in judge_stopped(claims, evidence, 0.99, "e-bh")]
    assert decided == [HOLDS] * 5 + [UNDECIDED] * 5
    assert {d.verdict for d in judge_stopped(claims, evidence, 0.99)} == {UNDECIDED}
    # The largest of many looks is no e-value.
    fallen = [Evidence(20.0, 0.0, 0.0, 0.0)] * 10
    assert {d.verdict for d in judge_stopped(claims, fallen, 0.99, "e-bh")} == {UNDECIDED}
    assert fallen[0].decides(0.01) and not fallen[0].decides(0.01, "e-bh")
    looked = Evidence().look(Counts(90, 0, 0, 0), 0.1).look(Counts(90, 0, 40, 0), 0.1)
    assert looked.last_holds < 0 < looked.holds == log_e_holds(0, 90, 0.1)
    assert looked.last_violated == looked.violated == log_e_violated(40, 130, 0.1)
    with pytest.raises(ValueError, match="correction = 'bh'"):
        judge_stopped(claims, evidence, 0.99, "bh")


def test_limits_of_stopped_claims_count_open_trials_against_either_end():
    """A right end of either sequence, by its definition: not close above, far below."""
    (found,) = judge_stopped([Claim(Counts(70, 10, 15, 5), 0.1)], [Evidence()], 0.99)
    assert found.p_low == 1 - sequence_limits(30, 100, 0.01)[1]
    assert found.p_high == 1 - sequence_limits(15, 100, 0.01)[0]
    assert found.verdict == UNDECIDED


@pytest.mark.parametrize("horizon", [100, pytest.param(400, marks=pytest.mark.ci)])
def test_sprt_keeps_both_errors_and_refuses_equal_hypotheses(horizon):
    test = Sprt(0.1, 0.01, alpha=0.02, beta=0.05)
    said = lambda k, n: np.array([test.decide(int(j), n) for j in k], object)
    assert ever(horizon, 0.1, lambda k, n: said(k, n) == 0.01) <= 0.02
    assert ever(horizon, 0.01, lambda k, n: said(k, n) == 0.1) <= 0.05
    assert test.log_ratio(3, 10) == pytest.approx(
        stats.binom.logpmf(3, 10, 0.01) - stats.binom.logpmf(3, 10, 0.1)
    )
    with pytest.raises(ValueError, match=r"^p1 = "):
        Sprt(0.1, 0.1)


@pytest.mark.parametrize("function", [log_mixture, sequence_limits, log_e_holds, log_e_violated])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((3, 2, 0.1), "failures"),
        ((-1, 2, 0.1), "failures"),
        ((0, 1.5, 0.1), "trials"),
        ((0, 10**12 + 1, 0.1), "trials"),
        ((0, 1, 0.0), ""),
        ((0, 1, 1.0), ""),
        ((0, 1, math.nan), ""),
    ],
)
def test_bad_counts_and_levels(function, arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        function(*arguments)

"""Sequential tests by simulation: `pytest -m slow`. False-alarm rate 1e-6 a test, seeds fixed."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxprune.statistics import (
    e_bh,
    holm,
    log_e_holds,
    log_e_violated,
    log_mixture,
    p_value_at_least,
    p_value_at_most,
)

pytestmark = pytest.mark.slow

ALPHA, RUNS, LOOKS = 0.01, 10_000, 200
MOST = 151
"""P(Bin(10^4, 0.01) > 151) < 1e-6: more misses than this disprove an error rate of 0.01."""


def looked_at(delta, first=20):
    """Failures and trials at 200 looks, spread evenly in log n from `first` to 10^6."""
    n = np.unique(np.geomspace(first, 10**6, LOOKS).astype(np.int64))
    rng = np.random.default_rng(round(1e4 * delta))
    steps = rng.binomial(np.diff(n, prepend=0), delta, size=(RUNS, len(n)))
    return steps.cumsum(axis=1), n


def misses(crossed_at_look, k, n):
    """Runs in which any look crosses; look by look, to keep memory small."""
    ever = np.zeros(len(k), bool)
    for i, trials in enumerate(n):
        ever |= crossed_at_look(k[:, i], int(trials))
    return int(ever.sum())


@pytest.mark.parametrize("delta", [0.5, 0.1, 0.01, 0.001])
def test_false_decisions_with_a_look_after_every_block(delta):
    """At the boundary, where both answers are wrong; Clopper-Pearson at each look fails this."""
    assert stats.binom.sf(MOST, RUNS, ALPHA) < 1e-6
    k, n = looked_at(delta)
    cross = -math.log(ALPHA)
    for test in (log_e_holds, log_e_violated):
        assert misses(lambda f, m, t=test: t(f, m, delta) >= cross, k, n) <= MOST
    assert misses(lambda f, m: log_mixture(f, m, delta) >= cross, k, n) <= MOST
    for naive in (p_value_at_most, p_value_at_least):
        assert misses(lambda f, m, t=naive: t(f, m, delta) <= ALPHA, k, n) > 4 * MOST


def test_trials_to_decide():
    """0.999 against 0.99: a look after every trial decides within 700 in the median."""
    rng, n = np.random.default_rng(5), np.arange(1, 4001)
    decided = []
    for _ in range(2000):
        k = (rng.random(len(n)) < 0.001).cumsum()
        crossed = log_e_holds(k, n, 0.01) >= -math.log(ALPHA)
        decided.append(n[crossed][0] if crossed.any() else np.inf)
    assert 400 <= np.median(decided) <= 700


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_many_claims_at_once(rho):
    """50 cells, 40 of them null, 4000 sweeps: errors at most nominal + 4.9 standard errors."""
    rng, sweeps, cells, nulls, alpha = np.random.default_rng(7), 4000, 50, 40, 0.05
    shift = np.where(np.arange(cells) < nulls, 0.0, 3.5)
    any_false = proportion = 0.0
    for _ in range(sweeps):
        z = math.sqrt(rho) * rng.standard_normal() + math.sqrt(1 - rho) * rng.standard_normal(cells)
        z = z + shift
        any_false += (holm(stats.norm.sf(z))[:nulls] <= alpha).any()
        rejected = e_bh(3.5 * z - 3.5**2 / 2) <= alpha
        proportion += rejected[:nulls].sum() / max(1, rejected.sum())
    allowed = alpha + 4.9 * math.sqrt(alpha * (1 - alpha) / sweeps)
    assert any_false / sweeps <= allowed and proportion / sweeps <= allowed

"""Splitting at 1e-4 to 1e-8: `pytest -m slow`. False alarms below 1e-6 a test where not said."""

import math

import numpy as np
import pytest
from gaussian_scores import LINEAR, ONE_INPUT, TWO_SIDED, D, gaussian, projection
from scipy import stats

from jaxprune import engine, laws, networks, pruning
from jaxprune.pruning import Count, Fraction
from jaxprune.statistics import (
    ESTIMATED,
    HOLDS,
    UNDECIDED,
    VIOLATED,
    Splitting,
    estimate,
    trials_without_failure,
)
from jaxprune.statistics.splitting import EXTINCT, MIXING, split, t_limits

pytestmark = pytest.mark.slow

PLAN = Splitting()  # N = 200, k = 20, T = 25
RUNS = 200


def paths_of(problem, target, seed, steps=PLAN.steps, runs=RUNS):
    return [
        split(problem, target, PLAN, np.random.default_rng([seed, i]), steps) for i in range(runs)
    ]


def covered(intervals, p):
    return sum(low <= p <= high for low, high in intervals)


def groups_of_ten(estimates):
    return [t_limits(estimates[i : i + 10], 0.99)[1:] for i in range(0, len(estimates), 10)]


@pytest.mark.parametrize("p", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("sides", [1, 2])
def test_coverage_at_exact_probabilities(p, sides):
    """Ideal 99 % limits, t limits of groups of ten replicas, factor 2, and the mean. Of exact t
    limits 17 groups or fewer would cover once in a thousand seeds."""
    problem = LINEAR if sides == 1 else TWO_SIDED
    paths = paths_of(problem, stats.norm.isf(p / sides), 5)
    estimates = np.array([path.p for path in paths])
    inside = covered([path.limits(0.99) for path in paths], p)
    groups = covered(groups_of_ten(estimates), p)
    near = ((estimates > p / 2) & (estimates < 2 * p)).sum()
    ratio = estimates.mean() / p
    print(f"\n{sides} sides, {p:g}: {inside}/200, {groups}/20, {near}/200, {ratio:.3f}")
    assert inside >= 184 and groups >= 18 and near >= 175 and abs(ratio - 1) <= 0.15


def test_coverage_with_atoms():
    """The score floored to 1/4: corrected limits cover in 188 of 200 runs."""
    problem = gaussian(lambda z: np.floor(4 * projection(z)) / 4)
    exact = stats.norm.sf(4.75)  # of floor(4 x) / 4 > 4.5
    paths = paths_of(problem, 4.5, 6)
    estimates = np.array([path.p for path in paths])
    inside = covered([path.limits(0.99) for path in paths], exact)
    groups = covered(groups_of_ten(estimates), exact)
    print(f"\natoms: {inside}/200, {groups}/20, mean {estimates.mean() / exact:.3f}")
    assert inside >= 188 and groups >= 18 and abs(estimates.mean() / exact - 1) <= 0.15


def test_bad_mixing_is_flagged():
    """T = 2 steps of fixed size 0.1, 30 replicas: 95 of 100 estimates are doubted because twice
    the steps moved them, without the help of the other checks."""
    plan = Splitting(steps=2, scale=0.1, adapt=False, replicas=30)
    found = [estimate(LINEAR, stats.norm.isf(1e-6), plan, seed=seed) for seed in range(100)]
    by_mixing = sum(MIXING in e.doubts for e in found)
    doubted = sum(not e.reliable for e in found)
    missed = 100 - covered([(e.low, e.high) for e in found], 1e-6)
    print(f"\nbad mixing: {by_mixing} by mixing, {doubted} doubted, {missed} miss the truth")
    assert by_mixing >= 95 and doubted >= 95


def test_good_mixing_is_rarely_flagged():
    """Two standard errors at 18 degrees of freedom: 6 % of good estimates are doubted too; more
    than 16 of 60 has probability 1e-7."""
    plan = Splitting(particles=100, kill=20, steps=25)
    found = [estimate(LINEAR, stats.norm.isf(1e-4), plan, seed=seed) for seed in range(60)]
    doubted = sum(not e.reliable for e in found)
    inside = covered([(e.low, e.high) for e in found], 1e-4)
    print(f"\ngood mixing: {doubted}/60 doubted, {inside}/60 covered")
    assert doubted <= 16 and inside >= 52


def deceptive(cap):
    """Leads along the first direction, up to a cap; along the second nothing leads until 4."""
    return gaussian(lambda z: np.maximum(np.minimum(z[:, 0], cap), 10.0 * (z[:, 1] - 4.0)))


@pytest.mark.parametrize(("cap", "target"), [(4.5, 4.6), (math.inf, 5.2)])
def test_a_hidden_mode_is_never_certified(cap, target):
    """Below the target the cap leaves replicas extinct. Without it they end where the score leads,
    at 1e-7, and may miss the 4e-6 that is hidden: an estimate in any case, with checks that see
    nothing wrong in some."""
    exact = 1 - stats.norm.cdf(4 + target / 10) * (1 if cap < target else stats.norm.cdf(target))
    plan = Splitting(particles=100, kill=20, steps=10)
    found = [estimate(deceptive(cap), target, plan, seed=seed) for seed in range(100)]
    for e in found:
        assert e.verdict == ESTIMATED not in (HOLDS, VIOLATED, UNDECIDED, "certified")
        assert e.low == 0 or EXTINCT not in e.doubts
        assert e.certifying_trials == trials_without_failure(e.high, 1 - 0.99)
    inside = covered([(e.low, e.high) for e in found], exact)
    doubted = sum(not e.reliable for e in found)
    print(f"\nhidden mode, cap {cap}: {doubted}/100 doubted, {inside}/100 covered, 0 certified")


@pytest.mark.parametrize("p", [1e-4, 1e-6, 1e-8])
def test_against_openturns(p):
    """The linear score by its subset sampling: logs within 3 joint standard errors (0.3 % of
    other seeds differ by more)."""
    ot = pytest.importorskip("openturns")
    target = float(stats.norm.isf(p))
    ours = np.array([path.p for path in paths_of(LINEAR, target, 8, runs=10)])
    error = ours.std(ddof=1) / math.sqrt(len(ours)) / ours.mean()
    ot.RandomGenerator.SetSeed(1)
    ot.Log.Show(ot.Log.NONE)

    def function(x):
        return np.asarray(x).sum(axis=1, keepdims=True) / math.sqrt(D)

    score = ot.PythonFunction(D, 1, func_sample=function)
    vector = ot.RandomVector(ot.Normal(D))
    event = ot.ThresholdEvent(ot.CompositeRandomVector(score, vector), ot.Greater(), target)
    theirs = ot.SubsetSampling(event)
    theirs.setMaximumOuterSampling(10_000)
    theirs.setBlockSize(1)
    theirs.run()
    result = theirs.getResult()
    other = result.getProbabilityEstimate()
    joint = math.hypot(error, result.getCoefficientOfVariation())
    difference = math.log(ours.mean() / other)
    print(
        f"\n{p:g}: ours {ours.mean():.4g}, OpenTURNS {other:.4g}, {difference / joint:.2f} errors"
    )
    assert abs(difference) < 3 * joint


@pytest.mark.parametrize("method", [pruning.random, pruning.bernoulli], ids=str)
def test_networks_that_fail_once_in_a_hundred_million(method):
    """One 1 x 24 Gaussian layer: given that j weights go, gap^2 = s^2 chi^2_j. About 1 % of other
    seeds miss."""
    d, k = 24, 6
    j = np.arange(1, d + 1)
    weight = stats.binom(d, k / d).pmf(j) if method is pruning.bernoulli else j == k
    x = 48.4 if method is pruning.random else 53.8
    exact = float((weight * stats.chi2(j).sf(x)).sum())
    assert 0.8e-8 < exact < 1.3e-8
    found = engine.rare_failure(
        networks.dense((d, 1)),
        laws.normal(),
        method,
        Count(k) if method is pruning.random else Fraction(k / d),
        math.sqrt(x) * laws.normal().scale(d, 1),
        layers="all",
        domain=ONE_INPUT,
    )
    print(f"\n{found}; exact {exact:.4g}")
    assert found.low <= exact <= found.high < 4 * found.low

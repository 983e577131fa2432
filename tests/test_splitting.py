"""Splitting and importance sampling: kernels, ties, extinction, exact probabilities.

Seeds are fixed; a test of a random number states how often another seed would fail it.
"""

import itertools
import math

import jax
import numpy as np
import pytest
from gaussian_scores import LINEAR, ONE_INPUT, TWO_SIDED, gaussian, projection
from scipy import special, stats

from jaxprune import engine, laws, networks, pruning
from jaxprune.engine import keys, rare
from jaxprune.pruning import Count, Fraction
from jaxprune.statistics import (
    ESTIMATED,
    Splitting,
    estimate,
    ideal_interval,
    importance,
    splitting,
    trials_without_failure,
)
from jaxprune.statistics.importance import weights
from jaxprune.statistics.splitting import EXTINCT, gaussian_step, split, t_limits

QUICK = Splitting(particles=100, kill=20, steps=10)
QUICKER = Splitting(particles=100, kill=25, steps=5)


def assert_reversible(z, moved, scale):
    """`(z, z')` is Gaussian with unit variances, correlation sqrt(1 - b^2), and exchangeable.

    Each mean of n numbers within 5.6 of its standard errors: false alarms below 1e-6 in all.
    """
    z, moved = (np.asarray(x, np.float64).ravel() for x in (z, moved))
    rho = math.sqrt(1 - scale**2)
    for values, mean in (
        (moved, 0),
        (moved**2, 1),
        (moved**4, 3),
        (z * moved, rho),
        (z**2 * moved**2, 1 + 2 * rho**2),
        (z**3 * moved - z * moved**3, 0),
        (z**2 * moved - z * moved**2, 0),
    ):
        assert abs(values.mean() - mean) < 5.6 * values.std() / math.sqrt(len(values)) + 1e-7


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0])
def test_gaussian_steps_are_reversible(scale):
    rng = np.random.default_rng(0)
    z = rng.standard_normal(300_000)
    assert_reversible(z, gaussian_step(rng, z, scale), scale)
    run = prepared(networks.dense((500, 600)), laws.normal(), pruning.bernoulli, Fraction(0.5))
    problem = rare.problem(run)
    old = problem.sample(rng, 1)
    new = problem.move(rng, old, scale)
    for z, moved in zip(old, new, strict=True):
        assert_reversible(z, moved, scale)
    assert abs(np.corrcoef(new[0].ravel(), new[1].ravel())[0, 1]) < 0.011


SWAPS = jax.jit(jax.vmap(jax.vmap(rare.swap, (None, 0, None)), (0, None, None)))


@pytest.mark.parametrize(
    ("size", "inside"),
    [(5, 2), *(pytest.param(*case, marks=pytest.mark.ci) for case in ((4, 1), (6, 3)))],
)
def test_swaps_are_reversible_exactly(size, inside):
    """All sets times all orders of the priorities: the counts of transitions are symmetric, and
    every set at the same distance is reached equally often."""
    sets = np.array([np.isin(range(size), c) for c in itertools.combinations(range(size), inside)])
    orders = np.array(list(itertools.permutations(range(size))), np.int32)
    code = 2 ** np.arange(size)
    distance = (sets[:, None] & ~sets[None]).sum(axis=-1)
    for count in range(min(inside, size - inside) + 1):
        reached = np.asarray(SWAPS(sets, orders, np.int32(count))) @ code
        counts = (reached[:, :, None] == sets @ code).sum(axis=1)
        assert (counts == counts.T).all() and (counts.sum(axis=1) == len(orders)).all()
        assert len(set(counts[distance == count])) == 1 and (counts[distance != count] == 0).all()


@pytest.mark.ci
def test_masks_move_and_keep_their_size():
    run = prepared(networks.dense((1, 600)), laws.normal(), pruning.random, Count(100))
    problem = rare.problem(run, multiple=300)
    old = problem.sample(np.random.default_rng(0), 300)
    new = problem.move(np.random.default_rng(1), old, 0.1)
    assert (old[1].sum(axis=(1, 2)) == 100).all() and (new[1].sum(axis=(1, 2)) == 100).all()
    # ceil(0.1 * 100 * 500 / 600) = 9; one of ten counts is missed with probability 2e-13.
    exchanged = (old[1] & ~new[1]).sum(axis=(1, 2))
    assert set(exchanged.tolist()) == set(range(10))


def prepared(network, law, method, amount, **options):
    options = {"layers": "all", "domain": ONE_INPUT, **options}
    return engine.prepare(network, law, method, amount, trials=1, **options)


@pytest.mark.ci
def test_particles_follow_the_law_of_weights_and_masks(key):
    """Kolmogorov-Smirnov at 1e-6, and numbers removed."""
    network = networks.dense((300, 300))

    def pair(law, method, amount):
        run = prepared(network, law, method, amount)
        one = jax.jit(lambda k: rare.pair(run.design, run.numbers, rare.draw(*run[:2], k)))
        return (np.ravel(x) for (x,) in one(key)[1:])

    w, removed = pair(laws.uniform(2.0), pruning.bernoulli, Fraction(0.9))
    assert stats.kstest(w * math.sqrt(300), stats.uniform(-2, 4).cdf).pvalue > 1e-6
    assert stats.binomtest(int((removed != 0).sum()), 90_000, 0.9).pvalue > 1e-6
    w, removed = pair(laws.normal(), pruning.magnitude, Fraction(0.3))
    assert stats.kstest(w * math.sqrt(300), stats.norm.cdf).pvalue > 1e-6
    np.testing.assert_array_equal(np.sort(np.abs(removed))[-27_000:], np.sort(np.abs(w))[:27_000])
    assert (removed != 0).sum() == 27_000


THRESHOLD = jax.jit(rare._threshold)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.3, 0.7, 1 - 1e-6, 1.0])
def test_the_threshold_of_a_coin(rate):
    level = pruning.bernoulli.level(Fraction(rate), 10)
    threshold = float(THRESHOLD(np.int32(level)))
    tail = min(rate, 1 - rate)
    assert special.ndtr(-abs(threshold)) == pytest.approx(tail, rel=2e-3 if tail < 1e-3 else 1e-5)
    assert (threshold < 0) == (rate < 0.5)


def test_purposes_of_keys_keep_their_numbers():
    purposes = keys.WEIGHTS, keys.MASK, keys.INPUTS, keys.TRAINING, keys.SPLITTING
    assert purposes == (0, 1, 2, 3, 4) and keys.TRIAL_PURPOSES == 3


@pytest.mark.parametrize(
    ("problem", "quantile"),
    [
        (LINEAR, stats.norm.isf(1e-4)),
        pytest.param(TWO_SIDED, stats.norm.isf(5e-5), marks=pytest.mark.ci),
    ],
    ids=["linear", "two-sided"],
)
def test_an_exact_probability(problem, quantile):
    """Of other seeds about 1 % miss, and 5 % doubt the mixing."""
    found = estimate(problem, quantile, QUICK, seed=3)
    assert found.low <= 1e-4 <= found.high and found.reliable
    assert found.ideal[0] <= 1e-4 <= found.ideal[1]
    assert found.high < 2 * found.low
    assert found.verdict == ESTIMATED and f"{ESTIMATED}, " in str(found)
    assert found.certifying_trials == trials_without_failure(found.high, 0.01)
    assert found == estimate(problem, quantile, QUICK, seed=3)
    assert found.replicas != estimate(problem, quantile, QUICK, seed=4).replicas


@pytest.mark.parametrize("target", [2.0, 2.1, 2.25])
def test_atoms_and_the_strict_event(target):
    """floor(4 x) / 4 > 2 is x >= 2.25: an atom at the target is no failure. The mean of 40
    replicas within 5 standard errors."""
    floored = gaussian(lambda z: np.floor(4 * projection(z)) / 4)
    exact = stats.norm.sf(2.25 if target < 2.25 else 2.5)
    paths = [split(floored, target, QUICK, np.random.default_rng([7, i]), 10) for i in range(40)]
    p = np.array([path.p for path in paths])
    assert abs(p.mean() - exact) < 5 * p.std(ddof=1) / math.sqrt(len(p))
    assert all(max(path.killed) > QUICK.kill for path in paths)  # all that tie went


@pytest.mark.parametrize(
    "score", [lambda z: np.zeros(len(z)), lambda z: np.minimum(projection(z), 1.0)]
)
def test_extinction_leaves_the_interval_open_below(score):
    found = estimate(gaussian(score), 2.0, QUICK)
    assert found.p == found.low == found.ideal[0] == 0 < found.high
    assert found.doubts == (EXTINCT,) and not found.reliable and found.verdict == ESTIMATED
    assert "UNRELIABLE (extinct)" in str(found) and math.isnan(found.shift)


def test_a_product_below_the_floor_ends():
    found = estimate(LINEAR, 20.0, Splitting(particles=50, kill=25, steps=5, floor=1e-6))
    assert found.p == 0 and found.doubts == (EXTINCT,)


def test_nothing_rare_needs_no_levels():
    path = split(LINEAR, -math.inf, QUICK, np.random.default_rng(0), 5)
    assert path.p == 1 and path.killed == () and path.variance == 0
    assert estimate(LINEAR, -math.inf, QUICK).certifying_trials == 0


@pytest.mark.parametrize("p", [1e-4, 1e-6, 1e-8])
def test_coverage_of_the_ideal_interval(p):
    """10^4 runs of the ideal last particle, on -log p: at least 9,849 covered by 99 % intervals, or
    less than 1e-6 false alarms."""
    runs, particles = 10_000, 20
    rng = np.random.default_rng(11)
    score = rng.exponential(size=(runs, particles))
    iterations = np.zeros(runs, int)
    rows = np.arange(runs)
    while len(rows):
        last = score.argmin(axis=1)
        level = np.take_along_axis(score, last[:, None], axis=1)[:, 0]
        go = level < -math.log(p)
        rows, score, last, level = rows[go], score[go], last[go], level[go]
        iterations[rows] += 1
        score[np.arange(len(rows)), last] = level + rng.exponential(size=len(rows))
    limits = {k: ideal_interval(k, particles, 0.01) for k in np.unique(iterations).tolist()}
    covered = sum(limits[k][0] <= p <= limits[k][1] for k in iterations.tolist())
    assert covered >= 9849


def test_ideal_interval_at_its_ends():
    assert ideal_interval(0, 100, 0.01)[1] == 1
    low, high = ideal_interval(1842, 100, 0.01)
    assert stats.poisson.cdf(1842, -100 * math.log(low)) == pytest.approx(0.005)
    assert stats.poisson.sf(1841, -100 * math.log(high)) == pytest.approx(0.005)


def test_trials_that_certify_without_a_failure():
    assert splitting.certifying_trials(1e-8, 0.99) == 460_517_017
    assert splitting.certifying_trials(1.0, 0.99) == 0
    assert splitting.certifying_trials(1e-13, 0.99) is None


@pytest.mark.parametrize("p", [0.9, 0.999, 0.9999])
def test_particles_without_a_level_are_plain_trials(p):
    """Replicas that killed nothing: Clopper-Pearson's limits of all particles, by enumeration."""
    n, replicas = 20, 10
    trials = n * replicas
    covered = 0.0
    for k in range(trials + 1):
        above = [min(n, max(0, k - n * i)) for i in range(replicas)]
        paths = [splitting.Path(a / n, 1.0, (), n, 0.0, 0.5) for a in above]
        mean, low, high = splitting.limits(paths, 0.99)
        assert mean == pytest.approx(k / trials)
        covered += stats.binom.pmf(k, trials, p) * (low <= p <= high)
    assert covered >= 0.99 - 1e-9


@pytest.mark.parametrize(
    ("n", "kill"), [pytest.param(200, 20, marks=pytest.mark.ci), (50, 25), (20, 10)]
)
def test_limits_of_ideal_replicas_cover_however_few_the_particles(n, kill):
    """Independent copies: ln(p) per level is that of a Beta(n - k + 1, k) order statistic. Of 2,000
    limits at 99 % at most 45 may miss (a false alarm of 1e-6); Student's of the mean, where
    particles are few, miss far more."""
    rng, target = np.random.default_rng(n), 1e-8
    missed = students = 0
    for _ in range(2000):
        paths = []
        for _ in range(10):
            left, levels = target, []
            while (level := rng.beta(n - kill + 1, kill)) > left:
                left /= level
                levels.append(kill)
            above = rng.binomial(n, left) if levels else 0
            while above < n - kill + 1:  # at the last stage fewer than k are below the target
                above = rng.binomial(n, left)
            variance = len(levels) * kill / (n * (n - kill)) + (n - above) / (n * above)
            reached = (1 - kill / n) ** len(levels)
            paths.append(
                splitting.Path(reached * above / n, reached, tuple(levels), n, variance, 0.5)
            )
        _, low, high = splitting.limits(paths, 0.99)
        missed += not low <= target <= high
        _, low, high = t_limits([path.p for path in paths], 0.99)
        students += not low <= target <= high
    assert missed <= 45, missed
    assert n == 200 or students > 60


def test_t_limits_are_students():
    x = np.random.default_rng(0).exponential(size=10) * 1e-3
    mean, low, high = t_limits(x, 0.99)
    expected = stats.t.interval(0.99, 9, x.mean(), stats.sem(x))
    np.testing.assert_allclose((low, high), np.clip(expected, 0, 1))
    assert mean == x.mean()


def shifted(shift, **options):
    """P(x > 4.75) of one normal number, with a proposal about `shift`."""
    return importance(
        lambda rng, n: rng.standard_normal(n),
        lambda rng, n: rng.standard_normal(n) + shift,
        lambda x: shift * x - shift**2 / 2,
        lambda x: x > stats.norm.isf(1e-6),
        **{"draws": 200_000, **options},
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_defensive_weights_are_bounded(share):
    ratios = np.concatenate([np.linspace(-800, 800, 10_001), [-np.inf, np.inf]])
    w = weights(ratios, share)
    assert (w <= 1 / share).all() and (w >= 0).all()
    assert w[-2] == pytest.approx(1 / share)


def test_importance_sampling_of_an_exact_probability():
    found = shifted(4.75, seed=1)
    assert found.low <= 1e-6 <= found.high and found.high < 1.1 * found.low
    assert found.most <= 10 and found.verdict == ESTIMATED
    assert 1000 < found.effective <= found.events < found.draws
    assert 1 / found.events <= found.largest_share < 0.01


def test_a_proposal_that_misses_the_event_is_seen():
    found = shifted(-3.0)
    assert found.events == found.p == found.low == 0
    assert found.high == pytest.approx(-math.expm1(math.log(0.01) / 200_000) / 0.1)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: shifted(1.0, nominal_share=0.05), "nominal_share = 0.05: a finite number in [0.1"),
        (lambda: shifted(1.0, nominal_share=0.0), "nominal_share = 0.0: "),
        (lambda: shifted(1.0, draws=1), "draws = 1: an integer from 2 "),
        (lambda: weights([math.nan], 0.1), "log_ratio = nan: "),
        (lambda: Splitting(particles=1), "particles = 1: an integer from 2 "),
        (lambda: Splitting(kill=200), "kill = 200: an integer from 1 to 199 is needed"),
        (lambda: Splitting(steps=0), "steps = 0: "),
        (lambda: Splitting(replicas=9), "replicas = 9: an integer from 10 "),
        (lambda: Splitting(scale=0.0), "scale = 0.0: "),
        (lambda: Splitting(2**20, 1, 10**4, 10**4), "particles * steps * replicas = 1048576"),
        (lambda: Splitting(scale=1.5), "scale = 1.5: a finite number in [0.001, 1]"),
        (lambda: estimate(LINEAR, True, QUICK), "target = True: "),
        (lambda: Splitting(floor=0.0), "floor = 0.0: "),
        (lambda: estimate(LINEAR, 1.0, QUICK, confidence=1.0), "confidence = 1.0: "),
        (lambda: estimate(LINEAR, 1.0, QUICK, seed=-1), "seed = -1: "),
        (lambda: estimate(LINEAR, math.nan, QUICK), "target = nan: "),
        (lambda: estimate(LINEAR, 1.0, "quick"), "plan = 'quick': "),
        (lambda: estimate(gaussian(lambda z: z[:, 0] * np.nan), 1.0, QUICK), "score = nan: "),
        (lambda: ideal_interval(-1, 10, 0.01), "iterations = -1: "),
        (lambda: ideal_interval(5, 0, 0.01), "particles = 0: "),
        (lambda: t_limits([0.1], 0.9), "values of shape (1,): at least two"),
        (lambda: failure(eps=0.0), "eps = 0.0: a finite number above 0 is needed"),
        (lambda: failure(end="middle"), "end = 'middle': one of lower, upper is needed"),
        (lambda: failure(law=None), "law = None: "),
        (lambda: failure(plan=7), "plan = 7: "),
        (lambda: failure(layers="dense9"), "layers = 'dense9': "),
        (lambda: failure(amount=0.3), "amount = 0.3: "),
        (lambda: failure(method=pruning.Pruning("x", *[None] * 4)), "pruning = x: one of random"),
        (lambda: failure(seed=2**32), "seed = 4294967296: "),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, line):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


NORMAL = laws.normal()
TWO = Count(2)


COLUMN = np.ones((1, 1), np.float32)


def column_problem(amount=TWO):
    """The populations of `failure`'s default run, in its programs."""
    run = engine.prepare(
        networks.dense((1, 6)), NORMAL, pruning.random, amount, layers="all", domain=COLUMN
    )
    return rare.problem(run, multiple=QUICKER.kill)


def failure(*, law=NORMAL, method=pruning.random, amount=TWO, eps=1.0, **options):
    """`rare_failure` of one column of six weights: the gap is the length of what is removed."""
    options = {"layers": "all", "domain": COLUMN, "plan": QUICKER, **options}
    return engine.rare_failure(networks.dense((1, 6)), law, method, amount, eps, **options)


@pytest.mark.ci
def test_a_random_mask_s_known_probability():
    """gap^2 = s^2 chi^2_k. Here and below about 1 % of other seeds miss."""
    eps = math.sqrt(stats.chi2(2).isf(1e-4)) * NORMAL.scale(6, 1)
    found = failure(eps=eps)
    assert found.low <= 1e-4 <= found.high < 4 * found.low
    assert found.verdict == ESTIMATED and found.what == f"P(lower end of the gap > {eps:g})"


@pytest.mark.ci
def test_a_magnitude_mask_s_known_probability():
    """One of six uniform weights goes, the least: P(gap > eps) = (1 - eps / s)^6."""
    law = laws.uniform()
    eps = law.scale(6, 1) * (1 - 1e-4 ** (1 / 6))
    found = failure(law=law, method=pruning.magnitude, amount=Count(1), eps=eps)
    assert found.low <= 1e-4 <= found.high < 4 * found.low


@pytest.mark.ci
def test_pairs_that_are_not_finite_fail_at_the_upper_end_only():
    """Weights beyond float32 where |z| > 1.03: in 88 % of pairs one of six is infinite."""
    options = {"law": laws.normal(3.3e38, "lecun"), "eps": 1e30}
    share = 1 - (1 - 2 * stats.norm.sf(np.finfo(np.float32).max / 3.3e38)) ** 6
    found = failure(end="lower", **options)
    assert found.low <= 1 - share <= found.high
    assert failure(end="upper", **options).p == 1.0


def test_nothing_removed_never_fails():
    found = failure(amount=Count(0), eps=1e-3)
    assert found.p == found.low == 0 and found.doubts == (EXTINCT,)


@pytest.mark.parametrize(
    "domain",
    [np.eye(3, dtype=np.float32), pytest.param(ONE_INPUT, marks=pytest.mark.ci)],
    ids=["rows", "ball"],
)
def test_scores_are_those_of_the_pair_however_they_are_batched(domain):
    """Over a ball the float64 arithmetic of the upper end has to survive every way of batching."""
    end = "upper"
    run = prepared(
        networks.dense((3, 2)), laws.uniform(), pruning.bernoulli, Fraction(0.3), domain=domain
    )
    rng = lambda: np.random.default_rng(0)
    one = rare.problem(run, end, 3)
    particles = one.sample(rng(), 9)
    scores = one.score(particles)
    two = rare.problem(run._replace(chunk=3), end, 9)
    for a, b in zip(particles, two.sample(rng(), 9), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(two.score(particles), scores, rtol=1e-5)
    # Walks end above the level, at the scores they say; a population of 5 is padded to 9.
    level = np.sort(scores)[3]
    alive = np.flatnonzero(scores > level)
    moved, found, rate = two.walk(
        rng(), tuple(x[alive] for x in particles), scores[alive], level, 0.3, 4
    )
    assert (found > level).all() and 0 < rate <= 1 and len(found) == len(moved[0]) == 5
    np.testing.assert_allclose(two.score(moved), found, rtol=1e-5)


@pytest.mark.ci
def test_the_host_s_walk_does_what_the_compiled_one_does():
    """`move` and `score` alone, the host's loop: the same law, so the same probability."""
    problem = column_problem()._replace(walk=None)
    target = math.sqrt(stats.chi2(2).isf(0.05)) * NORMAL.scale(6, 1)
    paths = [split(problem, target, QUICKER, np.random.default_rng([2, i]), 4) for i in range(10)]
    _, low, high = t_limits([path.p for path in paths], 0.999)
    assert low <= 0.05 <= high


def test_no_copy_moves_to_the_level_itself():
    """Nothing is removed, so that every score is 0: refused at level 0, taken below it."""
    problem = column_problem(Count(0))
    sampled = problem.sample(np.random.default_rng(0), QUICKER.particles)
    particles = tuple(x[:5] for x in sampled)
    for level, share in ((0.0, 0), (-1.0, 1)):
        rng = np.random.default_rng(1)
        moved, _, rate = problem.walk(rng, particles, np.zeros(5), level, 0.5, 2)
        assert rate == share and (moved[0] == particles[0]).all() == (share == 0)


@pytest.mark.parametrize(
    "method",
    [pytest.param(pruning.random, marks=pytest.mark.ci), pruning.bernoulli],
    ids=["random", "bernoulli"],
)
def test_layers_of_a_particle_are_independent(method):
    """Weights, masks and their changes in a move: correlations of 90,000 numbers stay below 6
    standard errors of 1 / 300 (false alarm below 1e-6)."""
    run = prepared(networks.dense((300,) * 4), laws.normal(), method, Fraction(0.5))
    problem = rare.problem(run)
    old = problem.sample(np.random.default_rng(0), 1)
    new = problem.move(np.random.default_rng(1), old, 0.7)
    changes = [b.astype(float) - a for a, b in zip(old, new, strict=True)]
    for arrays in (old, changes):
        correlations = np.corrcoef([x.ravel() for x in arrays])
        assert len(correlations) == 6
        np.testing.assert_allclose(correlations, np.eye(6), atol=6 / 300)


@pytest.mark.ci
def test_given_inputs_are_the_domain():
    """Both ends are the gap at the rows."""
    rows = np.eye(6, dtype=np.float32)[:3]
    run = prepared(networks.dense((6, 1)), laws.normal(), pruning.random, Count(4), domain=rows)
    particles = rare.problem(run).sample(np.random.default_rng(0), 50)
    w, removed = particles
    exact = np.abs(np.where(removed, w, 0)[:, 0, :3]).max(axis=1) * NORMAL.scale(6, 1)
    for end in ("lower", "upper"):
        np.testing.assert_allclose(rare.problem(run, end).score(particles), exact, rtol=1e-6)

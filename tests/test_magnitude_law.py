"""The exact law of magnitude pruning, against the masks that the simulation uses.

Every random test raises a false alarm in at most one of 10^6 seeds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprune import bounds, laws, networks, pruning

FALSE_ALARM = 1e-6
TRIALS, LAYER, REMOVED = 4000, networks.Dense(10, 12), 30
COUNT = 120


def _laplace_kept_energy(q):
    tau = -math.log1p(-q) if q < 1 else math.inf
    return (1 - q) * (0.5 * tau**2 + tau + 1) if q < 1 else 0.0


# |X| of a Laplace variable is exponential: a family that the package does not know.
LAPLACE = laws.Family(
    "laplace",
    lambda u: -jnp.log(jnp.minimum(u, 1 - 2.0**-24)),
    2.0,
    math.inf,
    lambda j: math.lgamma(2 * j + 1),
    lambda p: -np.log1p(-np.asarray(p, np.float64))[()],
    _laplace_kept_energy,
)
CASES = {
    "uniform": (laws.uniform(2.0), stats.uniform.cdf),
    "normal": (laws.normal(0.7), stats.halfnorm.cdf),
    "laplace": (laws.Law(LAPLACE, "he"), stats.expon.cdf),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """The law, its weights `(trials, out, in)`, the masks, and the cdf of |w| at the weights."""
    law, cdf = CASES[request.param]
    scale = law.scale(*LAYER.fans)
    level = pruning.magnitude.level(pruning.Count(REMOVED), COUNT)

    @jax.jit
    def draw(bits):
        w = laws.sample(law.family, jnp.float32(scale), bits)
        return w, jax.vmap(lambda w: pruning.magnitude.mask(None, w, level))(w)

    w, masks = draw(random_words(11, (TRIALS, *LAYER.weight_shape)))
    w, kept = np.asarray(w, np.float64), np.asarray(masks)
    return law, w, kept, cdf(np.abs(w) / scale)


def random_words(seed, shape):
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


def smallest_kept(values, kept):
    return np.where(kept, values, np.inf).min(axis=(1, 2))


def test_threshold_is_a_beta_variable_through_the_quantile_function(case):
    law, w, kept, level = case
    assert np.all(kept.sum(axis=(1, 2)) == COUNT - REMOVED)
    beta = stats.beta(REMOVED + 1, COUNT - REMOVED).cdf
    assert stats.kstest(smallest_kept(level, kept), beta).pvalue > FALSE_ALARM
    tau = smallest_kept(np.abs(w), kept)
    for delta in (0.9, 0.5, 0.05, 0.01):
        limit = bounds.magnitude_threshold(LAYER, law, pruning.Count(REMOVED), delta=delta)
        low, high = stats.binom.interval(1 - FALSE_ALARM, TRIALS, delta)
        assert low <= np.sum(tau > limit) <= high


def test_given_the_threshold_the_removed_part_is_independent_of_it(case):
    """Levels over the threshold's uniform, signs fair, places uniform, energy by the law."""
    _, w, kept, level = case
    threshold = smallest_kept(level, kept)
    ratios = (level / threshold[:, None, None])[~kept]
    assert stats.kstest(ratios, stats.uniform.cdf).pvalue > FALSE_ALARM
    fair = stats.binomtest(int(np.sum(w[~kept] < 0)), int(np.sum(~kept)))
    assert fair.pvalue > FALSE_ALARM
    # Places in one trial are dependent, so the union bound over cells, not chi square.
    low, high = stats.binom.interval(1 - FALSE_ALARM / COUNT, TRIALS, REMOVED / COUNT)
    assert np.all((low <= np.sum(~kept, axis=0)) & (np.sum(~kept, axis=0) <= high))


def test_norm_bound_of_the_removed_part_holds(case):
    law, w, kept, _ = case
    norms = np.linalg.norm(np.where(kept, 0.0, w), 2, axis=(1, 2))
    for delta in (0.2, 0.01):
        bound = bounds.removed_norm_bound(
            LAYER, law, pruning.magnitude, pruning.Count(REMOVED), delta=delta
        )
        assert np.sum(norms > bound.value) <= stats.binom.isf(FALSE_ALARM, TRIALS, delta)
        assert bound.value <= 4 * np.quantile(norms, 1 - delta)


@pytest.mark.parametrize("name", CASES)
def test_kept_energy_is_the_limit_of_the_simulated_one(name):
    law, _ = CASES[name]
    q, count = 0.3, 2**18
    sample = jax.jit(lambda bits: laws.sample(law.family, jnp.float32(1.0), bits))
    squares = np.sort(np.asarray(sample(random_words(5, count)), np.float64) ** 2)
    removed = round(q * count)
    kept = squares[removed:].sum() / (count * law.family.variance)
    # Standard deviation of E[X²; |X| > τ_q] estimated by one sample: that of X² and of τ.
    spread = math.sqrt(np.var(squares) / count) / law.family.variance
    assert abs(kept - law.family.kept_energy(q)) <= stats.norm.isf(FALSE_ALARM / 2) * spread


def test_threshold_refuses():
    law = laws.uniform()
    with pytest.raises(ValueError, match=r"^amount = 120 weights: a threshold needs"):
        bounds.magnitude_threshold(LAYER, law, pruning.Count(120))
    with pytest.raises(ValueError, match=r"^count = 121"):
        bounds.magnitude_threshold(LAYER, law, pruning.Count(121))
    with pytest.raises(ValueError, match=r"^delta = "):
        bounds.magnitude_threshold(LAYER, law, pruning.Count(3), delta=0.0)

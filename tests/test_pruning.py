"""One conformance suite that every pruning method passes, and the selection beneath."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprune import laws, pruning
from jaxprune.pruning import Count, Fraction, Sublinear, smallest

METHODS = list(pruning.METHODS.values())
EXACT = [pruning.random, pruning.magnitude]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("kind", ["spread", "floats", "nonfinite", "tied", "top", "zero"])
@pytest.mark.parametrize("floats", [False, True])
def test_smallest_is_a_stable_sort(size, kind, floats):
    rng = np.random.default_rng(size)
    numbers = np.exp(20 * rng.normal(size=size)).astype(np.float32)
    broken = np.where(rng.random(size) < 0.3, rng.choice([np.nan, np.inf, 0.0], size), numbers)
    keys = {
        "spread": rng.integers(0, 2**31, size),
        "floats": numbers.view(np.int32),
        "nonfinite": broken.astype(np.float32).view(np.int32) & 0x7FFFFFFF,
        "tied": rng.integers(0, 4, size),
        "top": np.full(size, 2**31 - 1),
        "zero": np.zeros(size),
    }[kind].astype(np.int32)
    select = jax.jit(functools.partial(smallest, floats=floats))
    for k in sorted({0, 1, size // 3, size // 2, size - 1, size}):
        expected = np.zeros(size, bool)
        expected[np.argsort(keys, kind="stable")[:k]] = True
        np.testing.assert_array_equal(select(keys, k), expected)


@pytest.mark.parametrize("method", METHODS, ids=str)
class TestConformance:
    w = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)

    def mask(self, method, key, amount, w=None):
        w = self.w if w is None else w
        bits = jax.random.bits(key, w.shape)
        return method.mask(bits, jnp.asarray(w), jnp.int32(method.level(amount, w.size)))

    def test_shape_and_type(self, method, key):
        mask = self.mask(method, key, Fraction(0.3))
        assert mask.shape == self.w.shape and mask.dtype == bool

    def test_nothing_and_everything(self, method, key):
        assert self.mask(method, key, Fraction(0.0)).all()
        assert not self.mask(method, key, Fraction(1.0)).any()

    def test_same_bits_same_mask_whatever_the_transformation(self, method, key):
        bits = jax.random.bits(key, (3, *self.w.shape))
        level = jnp.int32(method.level(Fraction(0.3), self.w.size))
        one = lambda bits: method.mask(bits, self.w, level)
        plain = np.stack([one(b) for b in bits])
        np.testing.assert_array_equal(plain, jax.vmap(one)(bits))
        np.testing.assert_array_equal(plain, jax.jit(jax.vmap(one))(bits))

    def test_one_program_for_all_amounts(self, method, key):
        traces, bits = [], jax.random.bits(key, self.w.shape)

        @jax.jit
        def run(level):
            traces.append(1)
            return method.mask(bits, self.w, level)

        for q in (0.1, 0.2, 0.9):
            run(jnp.int32(method.level(Fraction(q), self.w.size)))
        assert len(traces) == 1

    def test_removes_what_it_says(self, method, key):
        bits = jax.random.bits(key, (2000, *self.w.shape))
        level = jnp.int32(method.level(Fraction(0.3), self.w.size))
        masks = np.asarray(jax.vmap(lambda bits: method.mask(bits, self.w, level))(bits))
        removed = (~masks).sum(axis=(1, 2))
        if method in EXACT:
            assert (removed == 180).all()
        else:
            total = int(removed.sum())
            assert stats.binomtest(total, masks.size, 0.3).pvalue > 1e-6
            spread = stats.chi2(len(removed) - 1)
            variance = removed.var(ddof=1) / (600 * 0.3 * 0.7) * (len(removed) - 1)
            assert 1e-6 < spread.cdf(variance) < 1 - 1e-6
        if method is not pruning.magnitude:
            each = (~masks).sum(axis=0).ravel()
            assert stats.binomtest(int(each.max()), 2000, 0.3).pvalue > 1e-6 / 600
            assert stats.binomtest(int(each.min()), 2000, 0.3).pvalue > 1e-6 / 600

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_nonfinite_weight_is_not_silently_lost(self, method, key, value):
        w = self.w.copy()
        w[3, 4] = value
        mask = self.mask(method, key, Fraction(0.5), w)
        if method is pruning.magnitude:
            assert mask[3, 4]
        np.testing.assert_array_equal(mask.sum() if method in EXACT else 300, 300)

    def test_kept_energy(self, method, key):
        law = laws.normal()
        w = np.asarray(laws.sample(law.family, 1.0, jax.random.bits(key, (1000, 1000))))
        mask = self.mask(method, jax.random.fold_in(key, 1), Fraction(0.4), w)
        kept = (w[np.asarray(mask)] ** 2).sum() / (w**2).sum()
        # The ratio's deviation is below 2e-3: five of them.
        assert kept == pytest.approx(method.kept_energy(law.family, 0.4), abs=0.01)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.99])
def test_magnitude_removes_the_smallest(q):
    w = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    level = pruning.magnitude.level(Fraction(q), w.size)
    mask = np.asarray(pruning.magnitude.mask(None, w, jnp.int32(level)))
    assert np.abs(w[~mask]).max() <= np.abs(w[mask]).min()


def test_magnitude_ties_go_to_the_lower_index():
    w = jnp.asarray([1.0, -1.0, 1.0, -1.0, 0.5])
    mask = pruning.magnitude.mask(None, w, jnp.int32(3))
    assert mask.tolist() == [False, False, True, True, False]


def test_random_subsets_are_uniform(key):
    """All 10 subsets of 2 in 5, chi-square at a false-alarm rate of 1e-6."""
    w = jnp.zeros(5)
    masks = jax.vmap(lambda bits: pruning.random.mask(bits, w, jnp.int32(2)))(
        jax.random.bits(key, (20_000, 5))
    )
    codes = (~np.asarray(masks)) @ (2 ** np.arange(5))
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 10 and stats.chisquare(counts).pvalue > 1e-6


def test_amounts():
    assert Sublinear(0.25).count(256**2) == 4096
    assert Sublinear(0.5).count(1000) == 31
    assert Fraction(0.29).count(100) == 29
    assert Count(7).count(10) == 7 and Count(7).rate(14) == 0.5
    for d in range(2, 200):
        assert Sublinear(0.5).count(d * d) == d


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Fraction(-0.1), "sparsity"),
        (lambda: Fraction(1.1), "sparsity"),
        (lambda: Fraction(float("nan")), "sparsity"),
        (lambda: Sublinear(0.0), "alpha"),
        (lambda: Sublinear(1.0), "alpha"),
        (lambda: Count(-1), "count"),
        (lambda: Count(2.0), "count"),
        (lambda: Count(11).count(10), "count"),
    ],
)
def test_bad_amounts(make, named):
    with pytest.raises(ValueError, match=named):
        make()

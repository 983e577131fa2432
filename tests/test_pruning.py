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
SIZES = [1, 2, 7, 1000]
KINDS = ["spread", "floats", "nonfinite", "tied", "top", "zero"]


def keys_of(size):
    """By kind."""
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
    }
    return {kind: key.astype(np.int32) for kind, key in keys.items()}


def counts_of(size):
    return np.array([0, min(1, size), size // 3, size // 2, size - 1, size], np.int32)


@functools.cache
def selected():
    """By size: the sets for each kind of keys, each k, and keys that are and are not floats."""
    inputs = {size: (np.stack(list(keys_of(size).values())), counts_of(size)) for size in SIZES}

    @jax.jit
    def run(inputs):
        select = lambda keys, k: jnp.stack([smallest(keys, k, floats=f) for f in (False, True)])
        each = lambda keys, ks: jax.lax.map(lambda k: select(keys, k), ks)
        return {
            size: jax.lax.map(lambda key, ks=ks: each(key, ks), keys)
            for size, (keys, ks) in inputs.items()
        }

    return jax.device_get(run(inputs))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floats", [False, True])
def test_smallest_is_a_stable_sort(size, kind, floats):
    found = selected()[size][KINDS.index(kind), :, int(floats)]
    for k, marks in zip(counts_of(size), found, strict=True):
        expected = np.zeros(size, bool)
        expected[np.argsort(keys_of(size)[kind], kind="stable")[:k]] = True
        np.testing.assert_array_equal(marks, expected)


class Masks:
    """Masks by all methods, each compiled once for a shape of weights or of many masks."""

    traces = 0

    def __init__(self):
        self._one = jax.jit(self._traced)
        self._many = jax.jit(jax.vmap(self._traced, (0, 0, None)))

    def _traced(self, bits, w, levels):
        self.traces += 1
        return [method.mask(bits, w, level) for method, level in zip(METHODS, levels, strict=True)]

    def one(self, method, bits, w, amount):
        levels = [np.int32(method.level(amount, w.size)) for method in METHODS]
        return np.asarray(self._one(bits, w, levels)[METHODS.index(method)])

    def many(self, method, bits, w, amount):
        """A mask for each of `bits`; of one layer of weights, or of as many."""
        w = np.broadcast_to(w, bits.shape)
        levels = [np.int32(method.level(amount, w[0].size)) for method in METHODS]
        return np.asarray(self._many(bits, w, levels)[METHODS.index(method)])


MASKS = Masks()


def some_bits(*shape):
    return np.random.default_rng(20210520).integers(0, 2**32, shape, np.uint32)


@pytest.mark.parametrize("method", METHODS, ids=str)
class TestConformance:
    w = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)

    def mask(self, method, amount, w=None):
        w = self.w if w is None else w
        return MASKS.one(method, some_bits(*w.shape), w, amount)

    def test_shape_and_type(self, method):
        mask = self.mask(method, Fraction(0.3))
        assert mask.shape == self.w.shape and mask.dtype == bool

    def test_nothing_and_everything(self, method):
        assert self.mask(method, Fraction(0.0)).all()
        assert not self.mask(method, Fraction(1.0)).any()

    def test_same_bits_same_mask_whatever_the_transformation(self, method):
        bits = some_bits(2000, *self.w.shape)
        many = MASKS.many(method, bits, self.w, Fraction(0.3))
        for b, mask in list(zip(bits, many, strict=True))[:3]:
            np.testing.assert_array_equal(MASKS.one(method, b, self.w, Fraction(0.3)), mask)

    @pytest.mark.ci
    def test_same_bits_same_mask_operation_by_operation(self, method):
        bits = some_bits(2000, *self.w.shape)
        many = MASKS.many(method, bits, self.w, Fraction(0.3))[:3]
        level = jnp.int32(method.level(Fraction(0.3), self.w.size))
        one = lambda bits: method.mask(bits, self.w, level)
        plain = np.stack([one(b) for b in jnp.asarray(bits[:3])])
        np.testing.assert_array_equal(plain, jax.vmap(one)(bits[:3]))
        np.testing.assert_array_equal(plain, many)

    def test_one_program_for_all_amounts(self, method):
        self.mask(method, Fraction(0.1))
        before = MASKS.traces
        for q in (0.1, 0.2, 0.9):
            self.mask(method, Fraction(q))
        assert MASKS.traces == before > 0

    def test_removes_what_it_says(self, method):
        masks = MASKS.many(method, some_bits(2000, *self.w.shape), self.w, Fraction(0.3))
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
    def test_a_nonfinite_weight_is_not_silently_lost(self, method, value):
        w = self.w.copy()
        w[3, 4] = value
        mask = self.mask(method, Fraction(0.5), w)
        if method is pruning.magnitude:
            assert mask[3, 4]
        np.testing.assert_array_equal(mask.sum() if method in EXACT else 300, 300)

    def test_kept_energy(self, method):
        """Of 2,000 layers of 600 weights."""
        w = np.random.default_rng(2).standard_normal((2000, *self.w.shape)).astype(np.float32)
        masks = MASKS.many(method, some_bits(*w.shape), w, Fraction(0.4))
        kept = (w[masks] ** 2).sum() / (w**2).sum()
        # The ratio's deviation is below 2e-3: five of them.
        assert kept == pytest.approx(method.kept_energy(laws.NORMAL, 0.4), abs=0.01)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.99])
def test_magnitude_removes_the_smallest(q):
    w = TestConformance.w
    mask = MASKS.one(pruning.magnitude, some_bits(*w.shape), w, Fraction(q))
    assert np.abs(w[~mask]).max() <= np.abs(w[mask]).min()


FIVE = np.array([1.0, -1.0, 1.0, -1.0, 0.5], np.float32)


def test_magnitude_ties_go_to_the_lower_index():
    masks = MASKS.many(pruning.magnitude, some_bits(20_000, 5), FIVE, Count(3))
    assert masks[0].tolist() == [False, False, True, True, False]
    assert (masks == masks[0]).all()


def test_random_subsets_are_uniform():
    """All 10 subsets of 2 in 5, chi-square at a false-alarm rate of 1e-6."""
    masks = MASKS.many(pruning.random, some_bits(20_000, 5), FIVE, Count(2))
    codes = (~masks) @ (2 ** np.arange(5))
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

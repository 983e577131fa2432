"""The k lowest of signed floats against a stable sort, by their values and to the last bit."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.models.selection import lowest, padded, signed_keys

KEYS = jax.jit(signed_keys)
KINDS = ["spread", "tied", "tiny", "zeros", "below", "infinite"]


def numbers(kind, size, dtype):
    rng = np.random.default_rng(size)
    least = np.finfo(dtype).smallest_subnormal
    signed = np.exp(20 * rng.normal(size=size)) * rng.choice([-1, 1], size)
    return {
        "spread": lambda: signed,
        "tied": lambda: rng.integers(-2, 3, size),
        "tiny": lambda: rng.integers(-3, 4, size) * least,  # a processor may flush them to zero
        "zeros": lambda: np.where(rng.random(size) < 0.5, -0.0, 0.0),
        "below": lambda: -abs(signed),
        "infinite": lambda: np.where(rng.random(size) < 0.5, signed, np.inf * np.sign(signed)),
    }[kind]().astype(dtype)


def stable(scores, k):
    marked = np.zeros(scores.size, bool)
    marked[np.argsort(scores, kind="stable")[:k]] = True
    return marked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, pytest.param(7, marks=pytest.mark.ci), 500])
def test_lowest_is_a_stable_sort(size, dtype):
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        for kind in KINDS:
            scores = numbers(kind, size, dtype)
            negative = int((scores < 0).sum())
            for k in {0, 1, size // 3, negative, min(negative + 1, size), size - 1, size}:
                np.testing.assert_array_equal(lowest(scores, k), stable(scores, k), f"{kind} {k}")


def test_lengths_that_sizes_share():
    """Few, long enough, and not too long for the indices of 32 bits."""
    sizes = [0, 1, 4096, 4097, 2**20, 2**20 + 1, 10**8, 2**31 - 2, 2**31 - 1]
    lengths = [padded(size) for size in sizes]
    assert all(size <= length < 2**31 for size, length in zip(sizes, lengths, strict=True))
    assert lengths[:6] == [4096, 4096, 4096, 8192, 2**20, 2**21] and lengths[-1] == 2**31 - 1
    assert len({padded(size) for size in range(2**20)}) == 9
    assert padded(10**8) < 10**8 + 2**20


def test_float64_is_told_apart_where_float32_is_not():
    scores = 1.0 + np.arange(64)[::-1] * 2.0**-52
    huge = np.array([1e300, -1e300, 1e301, -1e301])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(lowest(scores, 20), stable(scores, 20))
        np.testing.assert_array_equal(lowest(huge, 1), stable(huge, 1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    scores = numbers("tied", 100, np.float32).astype(dtype)
    np.testing.assert_array_equal(lowest(scores, 30), stable(np.asarray(scores, np.float32), 30))


def test_nan_of_either_sign_is_infinity():
    scores = np.array([np.nan, 1.0, np.inf, -np.nan, -1.0], np.float32)
    assert lowest(scores, 3).tolist() == [True, True, False, False, True]
    assert (np.asarray(KEYS(scores, np.int32(3))) >= 0).all()


def test_keys_are_monotone_on_the_side_that_matters():
    scores = np.unique(numbers("spread", 500, np.float32))
    negative = int((scores < 0).sum())
    for k, side in ((1, slice(0, negative)), (negative + 1, slice(negative, None))):
        keys = np.asarray(KEYS(scores, np.int32(k)))
        assert (np.diff(keys[side].astype(np.int64)) > 0).all() and keys.min() >= 0
        assert (np.diff(keys.astype(np.int64)) >= 0).all()


def test_vmap_over_scores_and_counts():
    scores = np.stack([numbers(kind, 200, np.float32) for kind in KINDS])
    counts = np.arange(len(KINDS)) * 30
    marked = np.asarray(jax.jit(jax.vmap(lowest))(scores, counts))
    for row, s, k in zip(marked, scores, counts, strict=True):
        np.testing.assert_array_equal(row, stable(s, k))

"""The k lowest of any floats, negative ones among them, by `pruning.smallest`."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning import magnitude_keys, smallest
from jaxprune.pruning.selection import TOP

INFINITY = 0x7F800000
"""The magnitude key of infinity."""

SHORTEST, LONG = 2**12, 2**20
"""One program serves all arrays below the first, one each power of two up to the second, and one
each multiple of the second beyond."""


@jax.jit
def lowest(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Marks the k lowest scores; of equal ones, 0 and -0 among them, those of lower index.

    Args:
      scores: `(D,)` floats; NaN counts as infinity.
      k: `()` integer, `0 <= k <= D`.

    Returns:
      `(D,)` Boolean with exactly k entries True.
    """
    k = jnp.asarray(k, jnp.int32)
    if scores.dtype == jnp.float64:
        return _lowest_of_words(_words(scores), k)
    return smallest(signed_keys(scores, k), k, floats=True)


def padded(size: int) -> int:
    """The length, at least `size`, that arrays of this and many other sizes share."""
    if size <= LONG:
        return max(SHORTEST, 1 << max(size - 1, 0).bit_length())
    return min(-(-size // LONG) * LONG, TOP)


def lowest_on_host(scores: np.ndarray, k: int) -> np.ndarray:
    """`lowest` of NumPy's arrays, by a program that many sizes share: the same marks.

    Args:
      scores: `(D,)` float32 or float64, under `jax.enable_x64` for those.
      k: `0 <= k <= D`.

    Returns:
      `(D,)` Boolean.
    """
    size = len(scores)
    # Infinite scores of the highest indices go after all others.
    longer = np.full(padded(size), np.inf, scores.dtype)
    longer[:size] = scores
    marks = lowest(*jax.device_put((longer, np.int32(k))))
    return jax.device_get(marks)[:size]


def signed_keys(scores: jax.Array, k: jax.Array) -> jax.Array:
    """int32 keys, at least 0, whose k smallest are the k lowest scores.

    Signed floats are 2^32 and keys 2^31. But k says on which side of zero the threshold lies, and
    the other side needs no order.

    Args:
      scores: `(D,)` floats of at most 32 bits.
      k: `()` int32.
    """
    scores = scores.astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    size = magnitude_keys(scores)
    # By their bits: a processor may take the smallest floats for zero.
    negative = (jax.lax.bitcast_convert_type(scores, jnp.int32) < 0) & (size > 0)
    among_negative = k <= jnp.sum(negative, dtype=jnp.int32)
    return jnp.where(
        among_negative,
        jnp.where(negative, INFINITY - size, TOP),
        jnp.where(negative, 0, size + 1),
    )


def magnitudes(x: jax.Array) -> jax.Array:
    """Integers of the width of x, at least 0, in the order of |x|; NaN comes after infinity."""
    whole = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    return jax.lax.bitcast_convert_type(x, whole) & jnp.iinfo(whole).max


def ordered(scores: jax.Array) -> jax.Array:
    """Integers of the width of the scores in their order; 0 and -0 are one, NaN is infinity."""
    size = magnitudes(jnp.where(jnp.isnan(scores), jnp.inf, scores))
    # By the bits: a processor may take the smallest floats for zero.
    return jnp.where(jnp.signbit(scores) & ~jnp.isnan(scores), -size, size)


def in_order(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Floats in the order of integers of their width, the inverse of `ordered`.

    Args:
      keys: of size below that of infinity.
      dtype: float32 or float64.
    """
    sign = jnp.iinfo(keys.dtype).min
    return jax.lax.bitcast_convert_type(jnp.where(keys < 0, sign - keys, keys), dtype)


def _words(scores):
    """Three int32 words of a float64, most significant first, whose order is that of the floats."""
    sign = jnp.uint64(1 << 63)
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint64)
    bits = jnp.where(bits == sign, jnp.uint64(0), bits)
    bits = jnp.where(bits >= sign, ~bits, bits | sign)
    part = lambda shift, width: (bits >> shift) & jnp.uint64(2**width - 1)
    return [part(s, w).astype(jnp.int32) for s, w in ((42, 22), (21, 21), (0, 21))]


def _lowest_of_words(words, k):
    """Word by word: what is below the threshold is settled, what equals it waits for the next."""
    chosen = jnp.zeros(words[0].shape, bool)
    waiting = jnp.ones(words[0].shape, bool)
    for word in words:
        marked = smallest(jnp.where(waiting, word, TOP), k)
        threshold = jnp.max(jnp.where(marked, word, -1))
        below = waiting & (word < threshold)
        chosen, waiting = chosen | below, waiting & (word == threshold)
        k = k - jnp.sum(below, dtype=jnp.int32)
    return chosen | (marked & waiting)

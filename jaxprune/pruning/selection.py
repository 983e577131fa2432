"""The k smallest of an array without a sort.

A float sort costs 15 to 25 times as much on a CPU. A bracket of the k-th smallest integer key is
closed in by counting the keys below a guess, one pass each: by interpolation, which needs few
passes where keys are spread evenly, and by bisection every sixth time, which ends it in any case.
It ends as soon as a threshold splits the array exactly, and settles ties by index.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

TOP = 2**31 - 1
SAMPLE = 4096
"""Entries whose largest key stands for that of all: a maximum costs as much as four counts."""

BISECTED = 6
"""Every sixth guess is the middle of the bracket, so that the search ends whatever the keys."""


def magnitude_keys(w: jax.Array) -> jax.Array:
    """int32 keys, at least 0, in the order of |w|; NaN comes after infinity."""
    return jax.lax.bitcast_convert_type(w.astype(jnp.float32), jnp.int32) & 0x7FFFFFFF


def smallest(keys: jax.Array, k: jax.Array, *, floats: bool = False) -> jax.Array:
    """Marks the k smallest keys; of equal keys those with the lower flat index.

    Args:
      keys: int32, none negative, any shape.
      k: `()` int32, `0 <= k <= keys.size`.
      floats: whether keys are `magnitude_keys`, evenly spread as floats and not as integers; it
        changes the time, not the result.

    Returns:
      Boolean of the keys' shape with exactly k entries True.
    """
    size = jnp.int32(keys.size)
    index = jnp.arange(keys.size, dtype=jnp.int32).reshape(keys.shape)
    between = _between_floats if floats else _between
    likely = jnp.max(keys.reshape(-1)[:SAMPLE])
    threshold, count = _least(k, TOP, likely, size, lambda t: keys <= t, between)
    below, last = keys <= threshold, keys == threshold
    # More than k keys up to the threshold: the surplus ties with it.
    cut, _ = _least(k, size, size, count, lambda c: below & ~(last & (index >= c)), _between)
    return below & ~(last & (index >= cut))


def _count(marks):
    """How many are True: `()` int32."""
    # XLA vectorises a CPU's float sums and not its integer ones; up to 2^24 both are exact.
    of = jnp.float32 if marks.size <= 2**24 else jnp.int32
    return jnp.sum(marks, dtype=of).astype(jnp.int32)


def _between(low, high, share):
    """The integer at a share of the way from low to high."""
    # In floats, where a difference of 2^31 is none that wraps.
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    return jnp.minimum(low + share * (high - low), 2.0**31 - 128).astype(jnp.int32)


def _between_floats(low, high, share):
    """The same for the bit patterns of floats, of which -1 stands for less than 0."""
    low, high = (jax.lax.bitcast_convert_type(jnp.maximum(x, 0), jnp.float32) for x in (low, high))
    return jax.lax.bitcast_convert_type(low + share * (high - low), jnp.int32)


def _least(
    k: jax.Array,
    high: jax.Array,
    likely: jax.Array,
    count: jax.Array,
    chosen: Callable[[jax.Array], jax.Array],
    between: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Searches a growing family of sets for one with exactly k members.

    Args:
      k: `()` wanted size.
      high: `()` a parameter whose set has at least k members.
      likely: `()` about the least parameter whose set is as large as that of `high`.
      count: `()` size of that set.
      chosen: the set of a parameter in `[0, high]`, as a Boolean array.
      between: a guess from a bracket and the share of it at which k is expected.

    Returns:
      A parameter whose set has exactly k members and k; if there is none, the least whose set
      has more, and its size.
    """

    def undecided(state):
        low, high, _, count, _ = state
        return (high != low + 1) & (count != k)

    def close_in(state):
        low, high, fewer, count, step = state
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        share = (k - fewer).astype(jnp.float32) / (count - fewer).astype(jnp.float32)
        top = jnp.where(likely > low, jnp.minimum(high, likely), high)
        guess = jnp.clip(between(low, top, share), low + 1, high - 1)
        at = jnp.where(step % BISECTED == BISECTED - 1, middle, guess)
        inside = _count(chosen(at))
        enough = inside >= k
        return (
            jnp.where(enough, low, at),
            jnp.where(enough, at, high),
            jnp.where(enough, fewer, inside),
            jnp.where(enough, inside, count),
            step + 1,
        )

    state = jnp.int32(-1), jnp.int32(high), jnp.int32(0), count, jnp.int32(0)
    _, high, _, count, _ = jax.lax.while_loop(undecided, close_in, state)
    return high, count

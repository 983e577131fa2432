"""Raw random bits: those of `jax.random.bits`, in a form that XLA vectorises on CPUs.

Threefry-2x32 (Salmon, Moraes, Dror & Shaw, SC 2011), each word from a counter of its own. JAX's
own primitive gives the same bits at a tenth of the speed on a CPU, where it is compiled to a loop
over its rounds.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxprune.types import Key

STANDARD, FAST = "threefry-20", "threefry-13"
STREAMS = {STANDARD: 20, FAST: 13}
"""Rounds of each stream. The standard one gives the bits of `jax.random.bits`. The fast one is not
JAX's; 13 rounds are the fewest with "no known statistical flaws" (as of September 2011, says its
authors' library Random123 of Threefry2x32; 20, its default, have "a considerable safety margin").
`tests/streams/run.py` tests both."""

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def random_bits(key: Key, shape: Sequence[int], stream: str = STANDARD) -> jax.Array:
    """Independent uniform uint32 of a shape.

    The standard stream's are those of `jax.random.bits` (`jax_threefry_partitionable`), to the bit.

    Args:
      key: `()` of Threefry.
      shape: of fewer than 2^32 words.
      stream: of `STREAMS`.
    """
    words = jax.random.key_data(key)
    if words.shape != (2,) or math.prod(shape) >= 2**32:
        raise ValueError(f"key of {words.shape} words, shape = {shape}: 2, fewer than 2^32 needed")
    count = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    high, low = _threefry(STREAMS[stream], words[0], words[1], jnp.zeros_like(count), count)
    return high ^ low


def _threefry(rounds, k0, k1, x0, x1):
    """The block cipher: key `(k0, k1)`, counter `(x0, x1)`, arithmetic modulo 2^32."""
    schedule = (k0, k1, k0 ^ k1 ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + k0, x1 + k1
    for r in range(rounds):
        rotation = _ROTATIONS[r % 8]
        x0 = x0 + x1
        x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        if r % 4 == 3:
            i = r // 4 + 1
            x0 = x0 + schedule[i % 3]
            x1 = x1 + schedule[(i + 1) % 3] + jnp.uint32(i)
    return x0, x1

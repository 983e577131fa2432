"""Inputs on which the gap is taken."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import laws, validation
from jaxprune.bits import random_bits
from jaxprune.types import Key


def sphere(key: Key, n: int, shape: Sequence[int]) -> jax.Array:
    """n uniform points of the unit sphere, columns `(*shape, n)` float32."""
    g = laws.sample(laws.NORMAL, 1.0, random_bits(key, (n, math.prod(shape))))
    return (g / jnp.linalg.norm(g, axis=1, keepdims=True)).T.reshape(*shape, n)


def into_ball(x: np.ndarray) -> np.ndarray:
    """A data set scaled by one number so that its longest row has norm 1.

    Args:
      x: `(n, ...)`.

    Returns:
      float32 of the same shape, every row in the unit ball.

    Raises:
      ValueError: no rows, a non-finite entry, or nothing but zeros.
    """
    x = validation.array("x", x, np.float64)
    if not len(x) or not np.isfinite(x).all() or not x.any():
        raise ValueError(f"x of shape {x.shape}: rows of finite numbers, not all 0, are needed")
    # By a power of two, lest squares overflow or underflow.
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])
    longest = np.sqrt((x.reshape(len(x), -1) ** 2).sum(axis=1)).max()
    # One part in 10^6 keeps the longest row inside after rounding to float32.
    return (x / (longest * (1 + 1e-6))).astype(np.float32)

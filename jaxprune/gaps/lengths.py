"""Lengths of differences that keep their digits, and do not lose what is not a number."""

import jax
import jax.numpy as jnp


def lengths(d: jax.Array) -> jax.Array:
    """Euclidean length of each row of `(n, ...)`, without overflow or underflow of the squares."""
    d = d.reshape(len(d), -1)
    largest = jnp.max(jnp.abs(d), axis=1, keepdims=True)
    # XLA multiplies by reciprocals: that of a number above 2^126 would be flushed to 0.
    unit = jnp.where(largest > 1.0, 2.0**-32, 2.0**32)
    scale = jnp.where(largest > 0, largest * unit, 1.0)
    return scale[:, 0] * jnp.sqrt(jnp.sum((d * unit / scale) ** 2, axis=1)) / unit[:, 0]


def largest(values: jax.Array) -> jax.Array:
    """Maximum of `(n,)` that is NaN as soon as one value is not finite.

    `jnp.max` alone may drop a NaN on CPU.
    """
    return jnp.where(jnp.all(jnp.isfinite(values)), jnp.max(values), jnp.nan)

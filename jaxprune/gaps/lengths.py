"""Lengths of differences that keep their digits, and do not lose what is not a number."""

import jax
import jax.numpy as jnp


def lengths(d: jax.Array) -> jax.Array:
    """Euclidean length of each row of `(n, ...)`, without overflow or underflow of the squares."""
    d = d.reshape(len(d), -1)
    largest = jnp.max(jnp.abs(d), axis=1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale[:, 0] * jnp.sqrt(jnp.sum((d / scale) ** 2, axis=1))


def largest(values: jax.Array) -> jax.Array:
    """Maximum of `(n,)` that is NaN as soon as one value is not finite.

    `jnp.max` alone may drop a NaN on CPU.
    """
    return jnp.where(jnp.all(jnp.isfinite(values)), jnp.max(values), jnp.nan)

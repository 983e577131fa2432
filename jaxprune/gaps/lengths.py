"""Lengths of differences that keep their digits, and do not lose what is not a number."""

import jax
import jax.numpy as jnp


def lengths(d: jax.Array) -> jax.Array:
    """Euclidean length of each column of `(..., n)`; no square of it overflows or underflows."""
    d = d.reshape(-1, d.shape[-1])
    largest = jnp.max(jnp.abs(d), axis=0, keepdims=True)
    # XLA multiplies by reciprocals: that of a number above 2^126 would be flushed to 0.
    up = 2.0**32 if d.dtype == jnp.float32 else 2.0**64
    unit = jnp.where(largest > 1.0, 2.0**-32, up)
    scale = jnp.where(largest > 0, largest * unit, 1.0)
    squares = jnp.sum((d * unit * (1.0 / scale)) ** 2, axis=0)
    return scale[0] * jnp.sqrt(squares) / unit[0]


def per_column(values: jax.Array, x: jax.Array) -> jax.Array:
    """One number a column, `(n,)`, in the shape that goes with the columns x, `(..., n)`."""
    return values.reshape(*[1] * (x.ndim - 1), -1)


def largest(values: jax.Array) -> jax.Array:
    """Maximum of `(n,)` that is NaN as soon as one value is not finite.

    `jnp.max` alone may drop a NaN on CPU.
    """
    return jnp.where(jnp.all(jnp.isfinite(values)), jnp.max(values), jnp.nan)

"""Lower bounds of the gap over the unit ball: sampled inputs, then ascent from the best of them.

64 random inputs of a network of width 256 show less than half of the gap that ascent finds, so
a claim judged on sampled inputs alone errs on the unsafe side.
"""

from collections.abc import Callable

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


def ascend(
    difference: Callable[[jax.Array], jax.Array], x: jax.Array, values: jax.Array, steps: int
) -> jax.Array:
    """Generalised power iteration `x <- g / |g|`, `g = J(x)^T d(x)`, for d = F - f.

    For positively homogeneous activations the supremum lies on the sphere and the iteration
    needs no step size. For any other it stays a search on the sphere: still a lower bound.

    Args:
      difference: `x -> F(x) - f(x)` for one input.
      x: `(n, ...)` starts in the unit ball.
      values: `(n,)` lengths of the difference at the starts.
      steps: number of iterations.

    Returns:
      `(n,)` the largest length met from each start, the start included.
    """

    def value_and_gradient(x):
        d, pull = jax.vjp(difference, x)
        # Only the direction of g counts; a small d squared would underflow on the way.
        largest = jnp.max(jnp.abs(d))
        return d, pull(d / jnp.where(largest > 0, largest, 1.0))[0]

    def step(carry, _):
        x, best = carry
        d, g = jax.vmap(value_and_gradient)(x)
        size = lengths(g).reshape(-1, *[1] * (x.ndim - 1))
        # Where the difference is flat at 0 there is no direction: stay.
        x = jnp.where(size > 0, g / size, x)
        return (x, jnp.maximum(best, lengths(d))), None

    (x, best), _ = jax.lax.scan(step, (x, values), length=steps)
    return jnp.maximum(best, lengths(jax.vmap(difference)(x)))

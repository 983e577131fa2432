"""Ascent of a difference from several inputs at once, that keeps the best input of each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.gaps.ascent import lengths

Norm = Callable[[jax.Array], jax.Array]


def climb(
    difference: Callable[[jax.Array], jax.Array],
    length: Norm,
    direction: Norm,
    step: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """`x <- step(x, g)`, `g = J(x)^T u`, u the direction in which the norm of d = F - f grows.

    Args:
      difference: `x -> F(x) - f(x)` for one input.
      length: norm of each row.
      direction: a subgradient of that norm at one d, up to a factor.
      step: the next inputs from inputs and gradients, each `(n, ...)`.
      x: `(n, ...)` starts.
      steps: how many.

    Returns:
      `(n,)` the largest norm met from each start, the start included, and `(n, ...)` where.
    """

    def value_and_gradient(x):
        d, pull = jax.vjp(difference, x)
        return d, pull(direction(d))[0]

    def better(best, x, d):
        values = length(d)
        higher = (values > best[0]).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.maximum(values, best[0]), jnp.where(higher, x, best[1])

    def advance(carry, _):
        x, best = carry
        d, g = jax.vmap(value_and_gradient)(x)
        return (step(x, g), better(best, x, d)), None

    start = jnp.zeros(len(x), x.dtype), x
    (x, best), _ = jax.lax.scan(advance, (x, start), length=steps)
    return better(best, x, jax.vmap(difference)(x))


def scaled(d: jax.Array) -> jax.Array:
    """The direction in which the Euclidean norm grows, by its largest entry: no square of it."""
    largest = jnp.max(jnp.abs(d))
    return d / jnp.where(largest > 0, largest, 1.0)


def onto_sphere(x: jax.Array, g: jax.Array) -> jax.Array:
    """`g / |g|`; where there is no gradient there is no direction: stay."""
    size = lengths(g).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(size > 0, g / size, x)

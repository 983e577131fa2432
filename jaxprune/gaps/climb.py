"""Ascent of a difference from several inputs at once, that keeps the best input of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gaps.lengths import lengths, per_column

Norm = Callable[[jax.Array], jax.Array]

PATIENCE = 4
GROWTH = 1e-5
"""The climb ends when the best input of all has not gained this share in `PATIENCE` steps."""


class Step(NamedTuple):
    """How the next inputs follow from inputs and gradients, each `(..., n)`.

    Attributes:
      start: `x -> state`.
      next: `(state, x, g) -> (state, x)`.
    """

    start: Callable[[jax.Array], Any]
    next: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


def stateless(next: Callable[[jax.Array, jax.Array], jax.Array]) -> Step:
    """A step that remembers nothing."""
    return Step(lambda x: (), lambda state, x, g: (state, next(x, g)))


def climb(
    difference: Callable[[jax.Array], jax.Array],
    length: Norm,
    direction: Norm,
    step: Step,
    x: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Follows `g = J(x)^T u`, u the direction in which the norm of d = F - f grows.

    A pair's climb ends by its own values alone, so that they do not depend on the pairs beside it.

    Args:
      difference: `x -> F(x) - f(x)`, columns to columns.
      length: norm of each column.
      direction: a subgradient of that norm at each column, up to a factor.
      step: the next inputs.
      x: `(..., n)` starts.
      steps: how many at most.

    Returns:
      `(n,)` the largest norm met from each start, the start included, and `(..., n)` where.
    """

    def value_and_gradient(x):
        d, pull = jax.vjp(difference, x)
        return d, pull(direction(d))[0]

    def better(best, x, d):
        values = length(d)
        # A norm that is not a number comes and stays: it is no success.
        higher = ~(values <= best[0]) & ~jnp.isnan(best[0])
        return jnp.where(higher, values, best[0]), jnp.where(per_column(higher, x), x, best[1])

    def goes_on(carry):
        i, _, _, _, _, since = carry
        return (i < steps) & (since < PATIENCE)

    def advance(carry):
        i, x, state, best, mark, since = carry
        d, g = value_and_gradient(x)
        best = better(best, x, d)
        state, x = step.next(state, x, g)
        top = jnp.max(best[0])
        gained = top > mark * (1.0 + GROWTH)
        since = jnp.where(gained, 0, since + 1)
        return i + 1, x, state, best, jnp.where(gained, top, mark), since

    nothing = jnp.full(x.shape[-1], -1.0, x.dtype), x
    carry = jnp.int32(0), x, step.start(x), nothing, jnp.zeros((), x.dtype), jnp.int32(0)
    _, x, _, best, _, _ = jax.lax.while_loop(goes_on, advance, carry)
    return better(best, x, difference(x))


def scaled(d: jax.Array) -> jax.Array:
    """The direction in which the Euclidean norm grows, by its largest entry: no square of it."""
    largest = jnp.max(jnp.abs(d), axis=tuple(range(d.ndim - 1)), keepdims=True)
    return d / jnp.where(largest > 0, largest, 1.0)


def onto_sphere(x: jax.Array, g: jax.Array) -> jax.Array:
    """`g / |g|`; where there is no gradient there is no direction: stay."""
    size = per_column(lengths(g), g)
    return jnp.where(size > 0, g / size, x)


def within_ball(steps: int) -> Step:
    """Projected gradient ascent in the unit ball: momentum, and a rate that falls to 0."""
    import optax  # not before it is needed: importing the package stays light

    rate = optax.cosine_decay_schedule(0.3, max(steps, 1))
    optimizer = optax.sgd(rate, momentum=0.5)

    def next(state, x, g):
        size = per_column(lengths(g), g)
        uphill = jnp.where(size > 0, -g / jnp.where(size > 0, size, 1.0), 0.0)
        change, state = optimizer.update(uphill, state, x)
        x = optax.apply_updates(x, change)
        return state, x / jnp.maximum(per_column(lengths(x), x), 1.0)

    return Step(optimizer.init, next)

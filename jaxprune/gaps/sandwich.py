"""The gap of one pair between a lower and an upper bound, over a domain of inputs."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import inputs, validation
from jaxprune.gaps.ascent import ascend, largest, lengths
from jaxprune.gaps.difference import Removed, difference
from jaxprune.gaps.multipliers import multiplier_bound
from jaxprune.networks import Network
from jaxprune.types import Gap, Key, Params


@dataclass(frozen=True)
class UnitBall:
    """All inputs of norm at most 1.

    Attributes:
      samples: random inputs on the sphere.
      starts: how many of them, the best, start the ascent.
      steps: iterations of the ascent.
    """

    samples: int = 64
    starts: int = 8
    steps: int = 10

    def __post_init__(self):
        validation.integer("samples", self.samples, 1, 2**20)
        validation.integer("starts", self.starts, 1, self.samples)
        validation.integer("steps", self.steps, 0, 10_000)

    def __str__(self):
        return "unit ball"


class Measurement(NamedTuple):
    """What one pair shows on a domain; `()` arrays.

    Attributes:
      gap: the bracket.
      sampled: largest distance over the sampled inputs (unit ball) or all rows (data set).
      rms: root of the squared distance per output, averaged over the same inputs.
    """

    gap: Gap
    sampled: jax.Array
    rms: jax.Array


def measure_ball(
    domain: UnitBall, key: Key, network: Network, params: Params, removed: Removed
) -> Measurement:
    """Brackets `sup ||F - f||` over the unit ball for one pair.

    The lower end is the largest distance met by ascent from the best sampled inputs, evaluated in
    float32; the upper end is a theorem in floating point (`multiplier_bound`).
    """

    def at(x):
        return difference(network, params, removed, x)

    x = inputs.sphere(key, domain.samples, network.in_shape)
    values = lengths(jax.vmap(at)(x))
    best, starts = jax.lax.top_k(values, domain.starts)
    lower = largest(ascend(at, x[starts], best, domain.steps))
    upper = multiplier_bound(network, params, removed)
    return Measurement(Gap(lower, upper), largest(values), _rms(values, network))


def measure_rows(
    rows: jax.Array, network: Network, params: Params, removed: Removed
) -> Measurement:
    """`max ||F - f||` over the rows `(n, *in_shape)`: both ends of the bracket are that number."""
    values = lengths(jax.vmap(lambda x: difference(network, params, removed, x))(rows))
    gap = largest(values)
    return Measurement(Gap(gap, gap), gap, _rms(values, network))


def _rms(values: jax.Array, network: Network) -> jax.Array:
    # Scaled, lest squares underflow or overflow.
    largest = jnp.max(values)
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale * jnp.sqrt(jnp.mean((values / scale) ** 2) / math.prod(network.out_shape))

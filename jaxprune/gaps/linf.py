"""The gap of one pair over a cube of inputs, in any of three norms of the outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import validation
from jaxprune.bits import random_bits
from jaxprune.gaps.climb import climb, scaled, stateless
from jaxprune.gaps.difference import Removed, difference, evaluate
from jaxprune.gaps.intervals import interval_bounds
from jaxprune.gaps.lengths import lengths, per_column
from jaxprune.gaps.rows import Measurement, measured
from jaxprune.gaps.witness import lower_end, rounded_down
from jaxprune.networks import Network
from jaxprune.types import Gap, Key, Params

MAX_RADIUS = 1e30


def _columns(d):
    return jnp.abs(d.reshape(-1, d.shape[-1]))


# Norm of each column, and the direction in which it grows: a subgradient, up to a factor.
_NORMS: dict[str, tuple[Callable, Callable]] = {
    "linf": (
        lambda d: jnp.max(_columns(d), axis=0),
        lambda d: jnp.where(
            jnp.abs(d) == per_column(jnp.max(_columns(d), axis=0), d), jnp.sign(d), 0.0
        ),
    ),
    "l1": (lambda d: jnp.sum(_columns(d), axis=0), jnp.sign),
    "l2": (lengths, scaled),
}


@dataclass(frozen=True)
class LinfBall:
    """All inputs with `||x||_inf <= radius`: every feature by itself in [-radius, radius].

    Attributes:
      radius: in (0, 1e30).
      output: norm of `F(x) - f(x)`: "linf", "l1" or "l2".
      samples: random vertices of the cube.
      starts: how many of them, the best, start the ascent.
      steps: iterations of the ascent.
    """

    radius: float = 1.0
    output: str = "linf"
    samples: int = 64
    starts: int = 8
    steps: int = 10

    def __post_init__(self):
        validation.real("radius", self.radius, 0.0, MAX_RADIUS)
        validation.choice("output", self.output, _NORMS)
        validation.integer("samples", self.samples, 1, 2**20)
        validation.integer("starts", self.starts, 1, self.samples)
        validation.integer("steps", self.steps, 0, 10_000)

    def __str__(self):
        return f"linf ball of radius {self.radius:g}, outputs in {self.output}"

    @property
    def reach(self) -> np.float32:
        """The radius as far as float32 goes: the vertices are to be in the cube."""
        radius = np.float32(self.radius)
        inward = np.nextafter(radius, np.float32(0.0))
        return inward if float(radius) > self.radius else radius

    def draw(self, key: Key, in_shape: tuple[int, ...]) -> jax.Array:
        """Random vertices, columns `(*in_shape, samples)`."""
        bits = random_bits(key, (self.samples, *in_shape))
        return jnp.moveaxis(jnp.where(bits >> 31 == 0, self.reach, -self.reach), 0, -1)

    def length(self, d: jax.Array) -> jax.Array:
        """The norm `output` of each column."""
        return _NORMS[self.output][0](d)


def measure_linf_ball(
    domain: LinfBall, key: Key, network: Network, params: Params, removed: Removed
) -> Measurement:
    """Brackets `sup ||F - f||` over a cube for one pair.

    The lower end is the distance at the worst vertex that ascent from the best random ones meets,
    less what rounding costs it (`witness`); the upper end is that of `interval_bounds`. Both are
    theorems in floating point.
    """
    length, direction = _NORMS[domain.output]

    def at(x):
        return difference(network, params, removed, x)

    x = domain.draw(key, network.in_shape)
    outputs, differences = evaluate(network, params, removed, x)
    _, starts = jax.lax.top_k(length(differences), domain.starts)

    def to_vertex(x, g):
        # The vertex that maximises the linearised norm. Where the network is linear between both
        # points the norm does not fall, as it is convex. A feature without effect stays.
        return jnp.where(g == 0, x, domain.reach * jnp.sign(g))

    found, worst = climb(at, length, direction, stateless(to_vertex), x[..., starts], domain.steps)
    lower = rounded_down(lower_end(network, params, removed, worst, found, length))
    upper = getattr(interval_bounds(network, params, removed, domain.radius), domain.output)
    return measured(Gap(lower, upper), differences, outputs, length)

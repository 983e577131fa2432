"""The gap of one pair between a lower and an upper bound, over a domain of inputs."""

from dataclasses import dataclass

import jax

from jaxprune import inputs, validation
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.difference import Removed, evaluate
from jaxprune.gaps.lengths import lengths
from jaxprune.gaps.multipliers import multiplier_bound
from jaxprune.gaps.rows import Measurement, measured
from jaxprune.gaps.witness import inside, lower_end, rounded_down
from jaxprune.networks import Network
from jaxprune.types import Gap, Key, Params


@dataclass(frozen=True)
class UnitBall:
    """All inputs of norm at most 1.

    Attributes:
      samples: random inputs on the sphere.
      starts: how many inputs, the best of them and of a few warm ones, start the ascent.
      steps: of the ascent at most; it ends when no start improves.
    """

    samples: int = 64
    starts: int = 8
    steps: int = 40

    def __post_init__(self):
        validation.integer("samples", self.samples, 1, 2**20)
        validation.integer("starts", self.starts, 1, self.samples)
        validation.integer("steps", self.steps, 0, 10_000)

    def __str__(self):
        return "unit ball"

    def draw(self, key: Key, in_shape: tuple[int, ...]) -> jax.Array:
        """Random inputs on the sphere, columns `(*in_shape, samples)`."""
        return inputs.sphere(key, self.samples, in_shape)

    def length(self, d: jax.Array) -> jax.Array:
        """Euclidean norm of each column."""
        return lengths(d)


def measure_ball(
    domain: UnitBall, key: Key, network: Network, params: Params, removed: Removed
) -> Measurement:
    """Brackets `sup ||F - f||` over the unit ball for one pair.

    The lower end is the distance at the worst input that sampling and ascent meet, less what
    rounding costs it (`witness`); the upper end is that of `multiplier_bound`. Both are theorems in
    floating point.
    """
    x = domain.draw(key, network.in_shape)
    outputs, differences = evaluate(network, params, removed, x)
    values = lengths(differences)
    found, x = ascend(network, params, removed, x, values, domain.starts, domain.steps)
    lower = rounded_down(lower_end(network, params, removed, inside(x), found))
    upper = multiplier_bound(network, params, removed)
    return measured(Gap(lower, upper), differences, outputs)

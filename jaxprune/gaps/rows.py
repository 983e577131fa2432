"""What a pair shows on a finite set of inputs: the rows of a data set, or samples of a domain."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gaps.difference import Removed
from jaxprune.gaps.lengths import largest, lengths
from jaxprune.gaps.witness import distances, rounded
from jaxprune.networks import Network
from jaxprune.types import Gap, Params


class Measurement(NamedTuple):
    """What one pair shows on a domain; `()` arrays.

    The inputs of all but `gap` are the rows of a data set, or the random samples of a ball.

    Attributes:
      gap: the bracket.
      sampled: largest distance `||F(x) - f(x)||` over the inputs.
      rms: root of the squared distance per output, averaged over the inputs.
      mean: distance averaged over the inputs.
      relative: largest `||F(x) - f(x)|| / ||F(x)||` over the inputs; where `F(x) = 0`, 0 if
        `f(x) = 0` too, else infinite.
    """

    gap: Gap
    sampled: jax.Array
    rms: jax.Array
    mean: jax.Array
    relative: jax.Array


def measured(
    gap: Gap,
    differences: jax.Array,
    outputs: jax.Array,
    length: Callable[[jax.Array], jax.Array] = lengths,
) -> Measurement:
    """Sums up what a set of inputs shows.

    Args:
      gap: the bracket over the whole domain.
      differences: `(*out_shape, n)`, F - f at the inputs.
      outputs: `(*out_shape, n)`, F there.
      length: norm of each column.
    """
    values, sizes = length(differences), length(outputs)
    # An output beyond float32's range tells no ratio: infinite, lest it count as small.
    ratios = jnp.where(jnp.isfinite(sizes), values / sizes, jnp.inf)
    ratios = jnp.where(values > 0, ratios, 0.0)
    return Measurement(
        gap,
        sampled=largest(values),
        rms=_rms(lengths(differences), math.prod(outputs.shape[:-1])),
        mean=_scaled_mean(values),
        relative=jnp.max(ratios),
    )


def measure_rows(
    rows: jax.Array, network: Network, params: Params, removed: Removed
) -> Measurement:
    """Brackets `max ||F - f||` over given inputs, in float64: see `witness`.

    Args:
      rows: `(n, *in_shape)`.
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.
    """
    x = jnp.moveaxis(rows, 0, -1)
    outputs, differences, gaps = distances(network, params, removed, x)
    gap = Gap(*map(largest, rounded(gaps)))
    return measured(gap, *(y.astype(jnp.float32) for y in (differences, outputs)))


# Scaled by the largest value, lest sums and squares underflow or overflow.


def _scale(values):
    most = jnp.max(values)
    return jnp.where(most > 0, most, 1.0)


def _scaled_mean(values):
    scale = _scale(values)
    return scale * jnp.mean(values / scale)


def _rms(values, outputs):
    scale = _scale(values)
    return scale * jnp.sqrt(jnp.mean((values / scale) ** 2) / outputs)

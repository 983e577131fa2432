"""Random pruning: a uniformly random subset of given size, or one coin a weight."""

import jax
import jax.numpy as jnp

from jaxprune.pruning.base import Pruning, exact_count
from jaxprune.pruning.selection import smallest

COIN_BITS = 30  # the level of a certain removal, 2^30, still fits int32


def coins(bits: jax.Array) -> jax.Array:
    """int32 uniform on [0, 2^30) from random uint32."""
    return (bits >> (32 - COIN_BITS)).astype(jnp.int32)


def _random_mask(bits, w, level):
    # Equal coins at the threshold fall to the lower index: a bias below D / 2^30.
    return ~smallest(coins(bits), level)


def _bernoulli_level(amount, size):
    return round(amount.rate(size) * 2**COIN_BITS)


def _bernoulli_mask(bits, w, level):
    return coins(bits) >= level


def _kept_energy(family, sparsity):
    return 1.0 - sparsity


random = Pruning("random", exact_count, _random_mask, exact_count, _kept_energy)
"""A uniformly random subset of exactly `amount.count(D)` weights is removed (the paper's)."""

bernoulli = Pruning(
    "bernoulli",
    _bernoulli_level,
    _bernoulli_mask,
    lambda amount, size: amount.rate(size) * size,
    _kept_energy,
)
"""Every weight is removed independently with probability `amount.rate(D)`."""

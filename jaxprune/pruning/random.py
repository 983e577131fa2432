"""Random pruning: a uniformly random subset of given size, or one coin a weight."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxprune.bits import random_bits
from jaxprune.pruning.base import Pruning, exact_count
from jaxprune.pruning.selection import smallest
from jaxprune.types import Key

COIN_BITS = 30  # the level of a certain removal, 2^30, still fits int32


def coins(key: Key, shape: Sequence[int]) -> jax.Array:
    """int32 of a shape, uniform on [0, 2^30)."""
    bits = random_bits(key, shape)
    return (bits >> (32 - COIN_BITS)).astype(jnp.int32)


def _random_mask(key, w, level):
    # Equal coins at the threshold fall to the lower index: a bias below D / 2^30.
    return ~smallest(coins(key, w.shape), level)


def _bernoulli_level(amount, size):
    return round(amount.rate(size) * 2**COIN_BITS)


def _bernoulli_mask(key, w, level):
    return coins(key, w.shape) >= level


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

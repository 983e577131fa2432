"""The tree of random keys: root, stream, purpose, layer, trial.

The raw bits of a trial depend on (seed, stream, purpose, layer, trial id) and on nothing
else: not on the block, the device, the order, or the number of trials.
"""

import jax
import jax.numpy as jnp

from jaxprune import session, validation
from jaxprune.types import Key

STREAM_VERSION = 1
"""Changes whenever the same seed would give other bits."""

WEIGHTS, MASK, INPUTS, TRAINING, SPLITTING = range(5)
"""What a key is for."""

TRIAL_PURPOSES = 3
"""The first purposes are those of a trial."""

MAX_SEED = 2**32 - 1
MAX_TRIALS = 2**53

TrialId = tuple[jax.Array, jax.Array]
"""A 64-bit trial id as two uint32 words, high and low."""


def root_key(seed: int) -> Key:
    """The root of all keys of a run.

    Raises:
      ValueError: a seed that is no integer from 0 to 2^32 - 1 (JAX would wrap it silently), or a
        session whose threefry is set to the old, shard-dependent stream, or of settings that
        `session.check` refuses.
    """
    seed = validation.integer("seed", seed, 0, MAX_SEED)
    session.check()
    if not jax.config.jax_threefry_partitionable:
        raise ValueError("jax_threefry_partitionable = False: the stream is defined with True")
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), STREAM_VERSION)


def trial_key(root: Key, purpose: int, layer: int, trial: TrialId) -> Key:
    """The key of one purpose, layer and trial."""
    key = jax.random.fold_in(jax.random.fold_in(root, purpose), layer)
    return jax.random.fold_in(jax.random.fold_in(key, trial[0]), trial[1])


def trial_keys(root: Key, purposes: int, layers: int, trial: TrialId) -> Key:
    """The keys `(purposes, layers)` of one trial: `trial_key` of each, compiled once for all."""
    one = lambda purpose, layer: trial_key(root, purpose, layer, trial)
    grid = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return grid(jnp.arange(purposes), jnp.arange(layers))

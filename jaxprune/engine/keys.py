"""The tree of random keys: root, stream, purpose, layer, trial.

The raw bits of a trial depend on (seed, stream, purpose, layer, trial id) and on nothing
else: not on the block, the device, the order, or the number of trials.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import session, validation
from jaxprune.types import Key

THREEFRY = "threefry2x32"
"""The only generator, whatever the session's default is."""

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
    return jax.random.fold_in(jax.random.key(seed, impl=THREEFRY), STREAM_VERSION)


def threefry(name: str, key: Any) -> Key:
    """One key of Threefry, typed; from the two words of `jax.random.PRNGKey` as well.

    Raises:
      ValueError: no key, several, or one of another generator, whose bits are not defined here.
    """
    needed = "one key of jax.random.key(seed, impl='threefry2x32') is needed"
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"{name} = {validation.shown(key)}: {needed}")
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(key))
        if key.ndim == 0 and impl == THREEFRY:
            return key
        raise ValueError(f"{name}: {impl} of shape {key.shape}; {needed}")
    if key.shape == (2,) and key.dtype == np.uint32:
        return jax.random.wrap_key_data(key, impl=THREEFRY)
    raise ValueError(f"{name}: {key.dtype} of shape {key.shape}; {needed}")


def trial_key(root: Key, purpose: int, layer: int, trial: TrialId) -> Key:
    """The key of one purpose, layer and trial."""
    key = jax.random.fold_in(jax.random.fold_in(root, purpose), layer)
    return jax.random.fold_in(jax.random.fold_in(key, trial[0]), trial[1])


def trial_keys(root: Key, purposes: int, layers: int, trial: TrialId) -> Key:
    """The keys `(purposes, layers)` of one trial: `trial_key` of each, compiled once for all."""
    one = lambda purpose, layer: trial_key(root, purpose, layer, trial)
    grid = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return grid(jnp.arange(purposes), jnp.arange(layers))

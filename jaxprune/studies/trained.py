"""Real targets: many networks trained at once on scikit-learn's bundled digits.

Each trained network is an independent draw from "networks trained by this recipe": its initial
weights and its minibatches come from keys of its own. Network i depends on (seed, i), and not on
how many are trained.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import inputs, laws, validation
from jaxprune.bits import random_bits
from jaxprune.engine import keys
from jaxprune.engine.keys import TrialId
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.types import Key, Params

CLASSES = 10
TEST_COUNT = 450
"""Images for testing: known without loading them, which takes a second or two."""

PIXELS = 64
HE_NORMAL = laws.normal(scaling="he")
CPU_CHUNK = 16
DEVICE_CHUNK = 1024


class Digits(NamedTuple):
    """Images of handwritten digits, flattened 8 x 8, in the unit ball.

    Attributes:
      train_x: float32 `(1347, 64)`.
      train_y: int32 `(1347,)`, from 0 to 9.
      test_x: float32 `(450, 64)`.
      test_y: int32 `(450,)`.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam on the softmax cross-entropy; static and hashable.

    There is no temperature: without biases a ReLU network of l layers grows by `c^l` when its
    weights grow by c, so training finds the logits' scale by itself.

    Attributes:
      steps: of Adam.
      batch: images a step, drawn with replacement.
      learning_rate: at the first step; it falls to 0 along a cosine.
      law: of the initial weights.
      weight_decay: decoupled from the gradient, as in AdamW.
    """

    steps: int = 400
    batch: int = 32
    learning_rate: float = 0.01
    law: Law = HE_NORMAL
    weight_decay: float = 0.0

    def __post_init__(self):
        validation.integer("steps", self.steps, 1, 10**6)
        validation.integer("batch", self.batch, 1, 2**20)
        validation.real("learning_rate", self.learning_rate, 0.0, math.inf)
        validation.real("weight_decay", self.weight_decay, 0.0, math.inf, open=False)

    def __str__(self):
        decay = f", weight decay {self.weight_decay:.4g}" if self.weight_decay else ""
        return (
            f"{self.steps} steps of Adam on {self.batch} digits, learning rate "
            f"{self.learning_rate:.4g}{decay}, from {self.law}"
        )


@functools.cache
def digits() -> Digits:
    """The 1797 bundled images: within each class, every fourth is for testing.

    One number scales all images, so that the largest has norm 1.
    """
    # Importing scikit-learn takes a second that other studies need not spend.
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = inputs.into_ball(x), y.astype(np.int32)
    # Sorted by class, every fourth image is a split that is stratified to within one image and
    # depends on no library's random numbers.
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[::4]] = True
    data = Digits(x[~test], y[~test], x[test], y[test])
    assert len(data.test_y) == TEST_COUNT
    for array in data:
        array.setflags(write=False)  # every caller shares them
    return data


def check(network: Network) -> None:
    """Refuses, with a ValueError, a network that does not take the digits or tell them apart."""
    if math.prod(network.in_shape) != PIXELS or network.out_shape != (CLASSES,):
        raise ValueError(
            f"widths from {network.in_shape} to {network.out_shape}: data = 'digits' needs inputs "
            f"of {PIXELS} pixels and {CLASSES} outputs"
        )


def as_inputs(network: Network, x: np.ndarray) -> np.ndarray:
    """Flattened images `(n, 64)` as inputs `(n, *in_shape)` of a network; see `check`."""
    check(network)
    return x.reshape(len(x), *network.in_shape)


def initial(network: Network, recipe: Recipe, root: Key, trial: TrialId) -> Params:
    """The weights that one network's training starts from."""
    return tuple(
        laws.sample(
            recipe.law.family,
            recipe.law.scale(*layer.fans),
            random_bits(keys.trial_key(root, keys.TRAINING, i, trial), layer.weight_shape),
        )
        for i, layer in enumerate(network.layers)
    )


def train(
    network: Network,
    recipe: Recipe,
    count: int,
    seed: int = 0,
    *,
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Params:
    """Trains independent networks on the digits, many at once.

    A network whose training diverges is returned as it is: the engine counts it as not finite.

    Args:
      network: takes 64 features, flat or as an image, and yields 10.
      recipe: how each is trained.
      count: how many; network i is the same whatever the count.
      seed: from 0 to 2^32 - 1. The run that prunes the networks may have the same seed: keys for
        training are keys for nothing else.
      chunk: networks in one compiled program. Another chunk, or device, starts from the same
        weights and draws the same batches, but training amplifies the rounding: in one network
        of twenty, weights may differ in the first digit.
      progress: called after each chunk with the number of networks done.

    Returns:
      float32 arrays `(count, *weight_shape)`, one a layer.

    Raises:
      ValueError: an argument outside its range, or a network that does not fit the digits.
    """
    count = validation.integer("count", count, 1)
    root = keys.root_key(seed)
    if chunk is None:
        # On a CPU larger chunks leave the cache and take up to 1.4 times as long.
        chunk = CPU_CHUNK if jax.default_backend() == "cpu" else DEVICE_CHUNK
    chunk = validation.integer("chunk", chunk, 1, 2**20)
    data = digits()
    x, y = jnp.asarray(as_inputs(network, data.train_x)), jnp.asarray(data.train_y)
    chunks = []
    for start in range(0, count, chunk):
        # The last chunk is as long as the others and cut afterwards: one program, and so the same
        # weights to the bit for every count.
        ids = jnp.asarray(np.arange(start, start + chunk, dtype=np.uint32))
        # Waiting bounds the memory to one chunk's.
        params = jax.block_until_ready(_train_chunk(network, recipe, root, ids, x, y))
        done = min(start + chunk, count)
        chunks.append(tuple(w[: done - start] for w in params))
        if progress:
            progress(done)
    return tuple(jnp.concatenate(ws) for ws in zip(*chunks, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_chunk(network, recipe, root, ids, x, y):
    high = jnp.uint32(0)
    return jax.vmap(lambda low: _train_one(network, recipe, root, (high, low), x, y))(ids)


def _train_one(network, recipe, root, trial, x, y):
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps),
        weight_decay=recipe.weight_decay,
    )
    params = initial(network, recipe, root, trial)
    # The layers' keys are 0 to l - 1; the batches have the next.
    batches = keys.trial_key(root, keys.TRAINING, len(params), trial)

    def loss(params, x, y):
        logits = jax.vmap(network, in_axes=(None, 0))(params, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def step(state, number):
        params, moments = state
        # With replacement: a permutation an epoch would be a sort, slow under vmap on a CPU.
        key = jax.random.fold_in(batches, number)
        rows = jax.random.randint(key, (recipe.batch,), 0, len(x))
        gradients = jax.grad(loss)(params, x[rows], y[rows])
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    state = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, state, jnp.arange(recipe.steps))
    return params

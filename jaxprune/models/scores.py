"""Scores of weights: the higher, the longer a weight is kept.

Each method is a function of the parameters and gives an array for each of their floating arrays,
of its shape and in float32 or wider.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.bits import random_bits
from jaxprune.engine import keys
from jaxprune.models.paths import Arrays, floating, put, statistics
from jaxprune.models.selection import padded
from jaxprune.pruning.random import coins
from jaxprune.types import Key

LEAST_NORMAL = 2**23
"""Bits of the least normal float32."""


def magnitude(params: Any) -> Arrays:
    """`|w|`."""
    return {path: wide(abs(w)) for path, w in floating(params).items()}


def random(key: Key, params: Any) -> Arrays:
    """Independent coins: the k lowest are a uniformly random subset, that of `pruning.random`.

    Args:
      key: of Threefry. The i-th floating array gets the bits of `fold_in(key, i)`.
      params: a pytree.

    Raises:
      ValueError: no key of Threefry, or several.
    """
    places = {path: (i, w.shape) for i, (path, w) in enumerate(floating(params).items())}
    return {path: jnp.asarray(s) for path, s in coins_of(key, places).items()}


def coins_of(key: Key, places: dict[str, tuple[int, tuple[int, ...]]]) -> Arrays:
    """`random` for arrays of given places among the floating ones and of given shapes.

    NumPy's, unless the key is traced.
    """
    key = keys.threefry("key", key)
    if isinstance(key, jax.core.Tracer):
        return {path: _coins(key, i, shape) for path, (i, shape) in places.items()}
    with jax.ensure_compile_time_eval():
        # The bits of a place in the array do not depend on how long it is.
        return {
            path: jax.device_get(_coins(key, i, (padded(size),)))[:size].reshape(shape)
            for path, (i, shape) in places.items()
            for size in [math.prod(shape)]
        }


@partial(jax.jit, static_argnames="shape")
def _coins(key, i, shape):
    whole = coins(random_bits(jax.random.fold_in(key, i), shape))
    # As the bits of positive normal floats their order is that of the integers, all 2^30.
    return jax.lax.bitcast_convert_type(whole + LEAST_NORMAL, jnp.float32)


def snip(loss: Callable[..., jax.Array], params: Any, *data: Any) -> Arrays:
    """`|w dL/dw|` (Lee, Ajanthan & Torr, "SNIP", ICLR 2019, arXiv:1810.02340, equation 6).

    The paper divides by the sum of all, which changes no order.

    Args:
      loss: `loss(params, *data)`, `()`.
      params: a pytree.
      data: what the loss takes beside the parameters, such as a batch.
    """
    w = floating(params)
    slope = jax.grad(lambda w: loss(put(params, w), *data))(w)
    return {path: jnp.abs(wide(w[path]) * wide(slope[path])) for path in w}


def grasp(
    loss: Callable[..., jax.Array], params: Any, *data: Any, temperature: float | None = None
) -> Arrays:
    """`w H g`, g the gradient and H the Hessian of the loss.

    Wang, Zhang & Grosse, "Picking winning tickets before training by preserving gradient flow",
    ICLR 2020, arXiv:2002.07376, equation 8. Removing a weight changes the squared norm of the
    gradient by about `-2 w H g`. Algorithm 1 removes the weights of largest `-w H g`, those whose
    removal lets the gradient grow the most; the lowest scores here.

    Args:
      loss: `loss(params, *data)`, `()`.
      params: a pytree.
      data: what the loss takes beside the parameters.
      temperature: if given, the loss is called with `temperature=` it, to divide its logits by;
        the paper's is 200.
    """
    if temperature is not None:
        loss = partial(loss, temperature=temperature)
    w = floating(params)
    gradient = jax.grad(lambda w: loss(put(params, w), *data))
    _, curved = jax.jvp(gradient, (w,), (gradient(w),))
    return {path: wide(w[path]) * wide(curved[path]) for path in w}


def synflow(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    in_shape: Sequence[int],
    *,
    double: bool = False,
) -> Arrays:
    """`w dR/dw`, R the sum of outputs at an input of ones, of the network with |w| for w.

    Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", NeurIPS 2020, arXiv:2006.05467, equation 2. Without biases R sums
    the products of |w| along all paths, and the scores of a layer sum to R. As in the authors'
    code, biases and norms' parameters are taken positive, too. Running statistics are no
    parameters (`paths.statistics`: those of Flax are known) and stay as they are: |w| for a mean
    would shift what the norm centres. The network should be in evaluation mode, its activations
    the identity on positive numbers.

    Args:
      apply: `apply(params, x)`.
      params: a pytree.
      in_shape: shape of x, with a batch axis of one if `apply` takes batches.
      double: computes in float64 and returns NumPy arrays of it, not under `jax.jit`: in float32
        the sum of a deep network overflows.

    Raises:
      ValueError: R is not positive and finite, or no score differs from 0: they would tell
        nothing. Under `jax.jit` it cannot be seen.
    """
    signed = statistics(params)
    with jax.enable_x64(True) if double else nullcontext():
        kind = jnp.float64 if double else jnp.float32
        arrays = {path: jnp.asarray(x) for path, x in floating(params).items()}
        w = {path: x if path in signed else jnp.abs(x) for path, x in arrays.items()}
        w = {path: x.astype(kind) if double else x for path, x in w.items()}
        ones = jnp.ones(in_shape, kind)
        flow = lambda w: jnp.sum(apply(put(params, w), ones))
        total, slope = jax.value_and_grad(flow)(w)
        scores = {path: wide(w[path]) * wide(slope[path]) for path in w}
        _refuse_no_flow(total, [s for path, s in scores.items() if path not in signed])
        return {path: np.asarray(s) for path, s in scores.items()} if double else scores


def _refuse_no_flow(total, scores):
    """Raises a ValueError for scores without a meaning, if they are known by now."""
    try:
        total, some = float(total), any(bool(jnp.any(s)) for s in scores)
    except jax.errors.ConcretizationTypeError:
        return
    if not 0 < total < np.inf:
        hint = "" if total == 0 else "; double=True may do"
        raise ValueError(f"R = {total:g}: a positive finite sum of outputs is needed{hint}")
    if not some:
        raise ValueError(f"R = {total:g}: depends on no parameter")


def wide(x):
    """Half precision as float32; all else as it is."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x

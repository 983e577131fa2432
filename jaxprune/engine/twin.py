"""Trials once more in float64: what float32 costs a distance on this device, at this shape."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.engine.blocks import Done
from jaxprune.engine.keys import TrialId
from jaxprune.engine.run import Run
from jaxprune.engine.trial import Ball, Design, Numbers, draw_pair
from jaxprune.gaps import lengths
from jaxprune.gaps.lengths import largest
from jaxprune.networks import Network
from jaxprune.types import Params

TWINS = 8
"""Trials of a block that are computed twice."""


@functools.partial(jax.jit, static_argnums=0)
def _pair(design: Design, numbers: Numbers, trial: TrialId) -> tuple[Params, Params, jax.Array]:
    """Both networks' weights and the inputs, in float32 as the trial has them."""
    key, params, removed = draw_pair(design, numbers, trial)
    pruned = tuple(w if p is None else w - p for w, p in zip(params, removed, strict=True))
    if design.ball is None:
        return params, pruned, jnp.moveaxis(numbers.rows, 0, -1)
    return params, pruned, design.ball.draw(key, design.network.in_shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distance(
    network: Network, ball: Ball | None, params: Params, pruned: Params, x: jax.Array
) -> jax.Array:
    length = ball.length if ball else lengths
    return largest(length(network(params, x) - network(pruned, x)))


def float32_error(run: Run, done: Done) -> float:
    """The largest relative error of the distances over sampled inputs, of a block's first trials.

    Args:
      run: that the block is of.
      done: the block.

    Returns:
      The error of `Trial.sampled` against the same weights, masks and inputs in float64, by
      subtracting outputs, over the larger of the two; from 0 to 1, which is also that of a twin
      that is not finite. 0 where no trial is finite and far from 0.
    """
    worst = 0.0
    for i, trial in enumerate(done.ids[:TWINS]):
        found = float(done.trials.sampled[i])
        if not done.trials.finite[i]:
            continue
        words = np.uint32(trial >> 32), np.uint32(trial & 0xFFFFFFFF)
        pair = _pair(run.design, run.numbers, words)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), pair)
            exact = float(_distance(run.design.network, run.design.ball, *wide))
        if not math.isfinite(exact):
            return 1.0
        if (larger := max(found, exact)) > 1e-30:  # float32 ends there
            worst = max(worst, abs(found - exact) / larger)
    return worst

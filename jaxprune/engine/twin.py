"""Trials once more in float64: what float32 costs a distance on this device, at this shape."""

import functools
import math
from collections.abc import Iterator

import jax
import numpy as np

from jaxprune.engine.blocks import Done, words
from jaxprune.engine.keys import TrialId
from jaxprune.engine.programs import compiled_block, first_pairs
from jaxprune.engine.run import Run
from jaxprune.engine.trial import Ball, Design, Numbers, Pair, draw_pair
from jaxprune.gaps import lengths
from jaxprune.gaps.lengths import largest
from jaxprune.networks import Network
from jaxprune.types import Params

TWINS = 8
"""Trials of a block that are computed twice."""


@functools.partial(jax.jit, static_argnums=0)
def _pair(design: Design, numbers: Numbers, trial: TrialId) -> Pair:
    return draw_pair(design, numbers, trial)


def _pairs(run: Run, done: Done) -> Iterator[tuple[Params, Params, np.ndarray]]:
    """Both networks' weights and the inputs of a block's first trials, in float32."""
    design, numbers = run.design, run.numbers
    few = done.ids[:TWINS]
    if design.ball is None:
        x = np.moveaxis(np.asarray(numbers.rows), 0, -1)
        high, low = words(done.ids.start, len(few))
        for trial in zip(high, low, strict=True):
            pair = _to_numpy(_pair(design, numbers, trial))
            yield pair.params, pair.pruned, x
        return
    # The block's own program, which is there: another would take a second to compile.
    pairs = compiled_block(run).pairs(numbers, *words(done.ids.start, run.block))
    pairs, inputs = first_pairs(design.network, design.ball, len(few), pairs)
    pairs, inputs = _to_numpy(pairs), np.asarray(inputs)
    for i in range(len(few)):
        pair = jax.tree.map(lambda a, i=i: a[i], pairs)
        yield pair.params, pair.pruned, inputs[i]


def _to_numpy(pair: Pair) -> Pair:
    return jax.tree.map(np.asarray, pair._replace(inputs=None))


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
    for i, pair in enumerate(_pairs(run, done)):
        found = float(done.trials.sampled[i])
        if not done.trials.finite[i]:
            continue
        with jax.enable_x64(True):
            wide = jax.tree.map(np.float64, pair)
            exact = float(_distance(run.design.network, run.design.ball, *wide))
        if not math.isfinite(exact):
            return 1.0
        if (larger := max(found, exact)) > 1e-30:  # float32 ends there
            worst = max(worst, abs(found - exact) / larger)
    return worst

"""Trials once more in float64: what float32 costs a distance on this device, at this shape."""

import functools
import math

import jax
import numpy as np

from jaxprune.engine.blocks import Done, words
from jaxprune.engine.keys import TrialId
from jaxprune.engine.run import Run
from jaxprune.engine.tally import GUARD
from jaxprune.engine.trial import Design, Numbers, Pair, draw_pair
from jaxprune.gaps import lengths
from jaxprune.gaps.lengths import largest
from jaxprune.networks import Network
from jaxprune.types import BrokenInvariant, Params

TWINS = 8
"""Trials of a block that are computed twice."""


@functools.partial(jax.jit, static_argnums=0)
def _pair(design: Design, numbers: Numbers, trial: TrialId) -> Pair:
    return draw_pair(design, numbers, trial)


@functools.partial(jax.jit, static_argnums=0)
def _distance(network: Network, params: Params, pruned: Params, x: jax.Array) -> jax.Array:
    return largest(lengths(network(params, x) - network(pruned, x)))


def float32_error(run: Run, done: Done) -> float:
    """The largest relative error of the distances over rows, of a block's first trials.

    Args:
      run: that the block is of, over rows.
      done: the block.

    Returns:
      The error of `Trial.sampled` against the same weights, masks and inputs in float64, by
      subtracting outputs, over the larger of the two; from 0 to 1, which is also that of a twin
      that is not finite. 0 where no trial is finite and far from 0.
    """
    worst = 0.0
    x = np.moveaxis(np.asarray(run.numbers.rows, np.float64), 0, -1)
    high, low = words(done.ids.start, len(done.ids[:TWINS]))
    for i, trial in enumerate(zip(high, low, strict=True)):
        if not done.trials.finite[i]:
            continue
        found, pair = float(done.trials.sampled[i]), _pair(run.design, run.numbers, trial)
        wide = [tuple(np.asarray(w, np.float64) for w in of) for of in (pair.params, pair.pruned)]
        with jax.enable_x64(True):
            exact = float(_distance(run.design.network, *wide, x))
        if not math.isfinite(exact):
            return 1.0
        if (larger := max(found, exact)) > 1e-30:  # float32 ends there
            worst = max(worst, abs(found - exact) / larger)
    return worst


def check(run: Run, done: Done) -> None:
    """Refuses, with a BrokenInvariant, a device on which float32 costs distances too much."""
    error = float32_error(run, done)
    if not error <= GUARD:
        raise BrokenInvariant(
            f"float32 errs by {error:.1e} on {done.device}, more than the guard band of {GUARD:g}: "
            "its counts say nothing"
        )

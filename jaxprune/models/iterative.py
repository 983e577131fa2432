"""Pruning of one model in steps: what is left is scored anew at each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.models.amounts import LayerAmount
from jaxprune.models.masks import Masks
from jaxprune.models.model import params_of
from jaxprune.models.paths import Layers, floating, select
from jaxprune.models.prune import Method, planned, pruned, units_gone
from jaxprune.models.structures import NM, Structure, Weights
from jaxprune.types import Key


def _linear(start, end, units, x):
    return start + (end - start) * x


def _exponential(start, end, units, x):
    left, leave = units - start, units - end
    return units - left * (leave / left) ** x if left else units


def _cubic(start, end, units, x):
    return end + (start - end) * (1.0 - x) ** 3


SCHEDULES = {"exponential": _exponential, "linear": _linear, "cubic": _cubic}
"""How many of `units` are removed when a part x in (0, 1] of the way is gone."""


class Iterated(NamedTuple):
    """What came of pruning in steps.

    Attributes:
      masks: the last.
      sparsity: after each step, the fraction removed of the chosen layers' weights.
      params: the parameters after the last step, pruned (and trained, if a hook trains).
    """

    masks: Masks
    sparsity: tuple[float, ...]
    params: Any


def iterative(
    params: Any,
    method: Method,
    amount: LayerAmount,
    steps: int,
    schedule: str = "exponential",
    after: Callable[[Any, Masks], Any] | None = None,
    *,
    layers: Layers = None,
    structure: Structure | None = None,
    key: Key | None = None,
    masks: Masks | None = None,
) -> Iterated:
    """Prunes to the amount in steps, each scoring the pruned parameters of the one before.

    Step t of n removes the nearest whole number to, with D units, r removed at first and R at
    last: "exponential" `D - (D - r) ((D - R) / (D - r))^(t/n)`, a constant factor a step, as
    SynFlow's 100 steps (Tanaka et al., NeurIPS 2020); "linear" `r + (R - r) t/n`; "cubic"
    `R + (r - R) (1 - t/n)^3` (Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878). A loop
    in Python: functions for scores and training may be compiled, the whole is not.

    Args:
      params: a pytree of parameters, or what `Model.of` takes; the result has parameters alone.
      method: as for `prune`; a function of the parameters is what can be scored anew.
      amount: at the end, as for `prune`.
      steps: at least 1.
      schedule: "exponential", "linear" or "cubic".
      after: `after(params, masks) -> params` after each step, for training in between; removed
        weights are set to zero again.
      layers: as for `prune`.
      structure: as for `prune`, without N:M.
      key: for "random", whose coins are the same at each step.
      masks: of earlier pruning, see `prune`.

    Raises:
      ValueError: an argument that does not fit; the exponential schedule towards nothing left; or
        an array that `after` has left not finite, and that was finite at first.
    """
    steps = validation.integer("steps", steps, 1)
    removed = SCHEDULES[validation.choice("schedule", schedule, SCHEDULES)]
    structure = Weights() if structure is None else structure
    if isinstance(structure, NM):
        raise ValueError("structure: N:M has no amount that could be reached in steps")
    params = params_of(params)
    masks = Masks() if masks is None else masks
    masks.check(params)
    chosen = select(params, layers)
    plan = planned(chosen, amount, structure)
    gone = units_gone(chosen, structure, masks)
    starts = [sum(gone.get(path, 0) for path in group.paths) for group in plan]
    if schedule == "exponential" and any(group.removed == group.units for group in plan):
        raise ValueError("schedule = 'exponential': never reaches a layer with nothing left")

    params, sparsity = masks.apply(params), []
    finite = {name for name, x in floating(params).items() if _is_finite(x)}
    for t in range(1, steps + 1):
        counts = [
            round(removed(start, max(start, group.removed), group.units, t / steps))
            for start, group in zip(starts, plan, strict=True)
        ]
        now = [group._replace(removed=k) for group, k in zip(plan, counts, strict=True)]
        masks = pruned(params, method, now, select(params, layers), structure, key, masks)
        params = masks.apply(params)
        if after is not None:
            params = masks.apply(after(params, masks))
            _refuse_diverged(params, finite, t)
        sparsity.append(_sparsity(masks, chosen))
    return Iterated(masks, tuple(sparsity), params)


def _is_finite(x):
    return bool(np.isfinite(np.asarray(x)).all())


def _refuse_diverged(params, finite, step):
    """After the last step no score is there to find it, nor anywhere that of a random method."""
    for name, x in floating(params).items():
        if name in finite and not _is_finite(x):
            raise ValueError(f"after: {name} is not finite after step {step}")


def _sparsity(masks, chosen):
    kept = sum(int(np.count_nonzero(masks[path])) for path in chosen)
    return 1.0 - kept / sum(w.size for w in chosen.values())

"""One trial of a run once more: its pair, its bounds, its place in the gap's distribution."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import engine, validation
from jaxprune.engine import Store
from jaxprune.laws import Law
from jaxprune.studies import cases, sampling
from jaxprune.studies.plan import Plan
from jaxprune.studies.result import identity, plain


class Replay(NamedTuple):
    """A trial that was run again.

    Attributes:
      facts: plain data.
      weights: of the target, one array a layer by name.
      masks: True where a weight is kept.
    """

    facts: dict[str, Any]
    weights: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


def replay(plan: Plan, store: Store, trial: int, case: int | None = None) -> Replay:
    """Rebuilds one pair and brackets its gap, in the block in which it was sampled.

    Args:
      plan: the store's.
      store: of the run; the trial's block need not be there.
      trial: its id.
      case: its number in the plan, from 0; None if the plan has one.

    Returns:
      The trial. Its `same` is whether the whole block comes out as it is kept, to the last bit;
      None if the block is not there. A pair whose bracket is broken is shown like any other.

    Raises:
      ValueError: a number outside its range.
    """
    if case is None and len(plan.cases) > 1:
        raise ValueError(f"case: the plan has {len(plan.cases)}, a number is needed")
    number = validation.integer("case", 0 if case is None else case, 0, len(plan.cases) - 1)
    asked = plan.cases[number]
    trial = validation.integer("trial", trial, 0, asked.trials - 1)
    targets = cases.trained_targets(plan, [number])
    run = sampling.ready(plan, store, number, targets)
    block = trial // run.block
    (done,) = engine.run_blocks(run, [block], jax.local_devices()[:1])
    empty = cases.empty_tally(asked)
    there = number in store.cases and block in store.blocks(number)
    shown = {name: field[trial - done.ids.start].item() for name, field in
             done.trials._asdict().items()}  # fmt: skip
    params, masks = engine.draw(run, trial)
    names = asked.network.names
    facts = {
        "run": str(store.path),
        "plan": plan.hash,
        "seed": plan.seed,
        "case": number,
        "trial": trial,
        "network": str(asked.network),
        "targets": str(asked.targets),
        "trained": not isinstance(asked.targets, Law),
        "pruning": asked.pruning.name,
        "amount": str(asked.amount),
        "eps": list(empty.eps),
        **shown,
        "same": sampling.is_as_kept(store, number, done, empty) if there else None,
        "differs": sampling.differing(store.about["identity"], identity()),
        "layers": [
            {"layer": name, "weights": mask.size, "removed": int(mask.size - mask.sum())}
            for name, mask in zip(names, masks, strict=True)
        ],
    }
    return Replay(
        plain(facts),
        dict(zip(names, params, strict=True)),
        dict(zip(names, masks, strict=True)),
    )

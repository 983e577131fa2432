"""Which layer makes the gap, in the cases of a plan."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import engine, validation
from jaxprune.engine import keys
from jaxprune.gaps import LinfBall
from jaxprune.laws import Law
from jaxprune.studies import cases, trained
from jaxprune.studies.plan import TEST_IMAGES, Plan
from jaxprune.studies.result import Progress, plain


def accounts(
    plan: Plan, trials: int, progress: Callable[[Progress], None] | None = None
) -> list[dict[str, Any]]:
    """Splits the gap by layer in every case that prunes two layers or more.

    Over an ℓ∞ ball there is no such account, see `engine.layer_account`.

    Args:
      plan: of a run.
      trials: pairs a case, the run's first.
      progress: called after every case.

    Returns:
      Plain data, one record a case: its number in the plan (`case`), how many of its pairs have a
      finite gap above 0 (`counted`), and `layers`, each with its name, its `share` of the
      difference (median, 5 % and 95 % quantile over the counted pairs), the medians of its `term`
      and of its proven `bound`. Cases none of whose pairs counts are left out.

    Raises:
      ValueError: trials out of range, or a network that does not fit in memory.
    """
    trials = validation.integer("account", trials, 1, keys.MAX_TRIALS)
    chosen = [
        number
        for number, case in enumerate(plan.cases)
        if len(case.layers) > 1 and not isinstance(case.ball, LinfBall)
    ]
    targets = cases.trained_targets(plan, chosen)
    found = []
    for done, number in enumerate(chosen):
        if progress:
            progress(Progress(f"layers of {plan.cases[number]}", done, len(chosen)))
        account = _account(plan, number, trials, targets)
        if account.counted.any():
            found.append({"case": number, **_record(account)})
    return plain(found)


def _account(plan, number, trials, targets) -> engine.LayerAccount:
    case = plan.cases[number]
    trials = min(trials, case.trials)
    pruned, domain = case.targets, case.ball
    if not isinstance(case.targets, Law):
        pruned = jax.tree.map(lambda w: w[:trials], targets[case.network, case.targets])
        if case.domain == TEST_IMAGES:
            domain = trained.as_inputs(case.network, trained.digits().test_x)
    return engine.layer_account(
        case.network,
        pruned,
        case.pruning,
        case.amount,
        trials=trials,
        layers=case.layers,
        domain=domain,
        seed=plan.seed,
        stream=plan.stream,
    )


def _record(account: engine.LayerAccount) -> dict[str, Any]:
    middle, low, high = (account.quantile(p) for p in (0.5, 0.05, 0.95))
    return {
        "counted": int(account.counted.sum()),
        "layers": [
            {
                "layer": name,
                "share": [by_layer[name]["share"] for by_layer in (middle, low, high)],
                "term": middle[name]["term"],
                "bound": middle[name]["bound"],
            }
            for name in account.layers
        ],
    }

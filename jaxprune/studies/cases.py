"""A plan's cases as runs of the engine."""

import math
from collections.abc import Collection, Mapping

import jax

from jaxprune import engine
from jaxprune.engine import Tally, memory
from jaxprune.laws import Law
from jaxprune.studies import trained
from jaxprune.studies.plan import TEST_IMAGES, Case, Plan
from jaxprune.types import Params

LOOK = 64
"""Trials between two looks at claims that are sampled until they are decided, at most."""


def check_memory(plan: Plan) -> None:
    """Refuses, with a ValueError, a plan of which a trial does not fit in memory."""
    for case in plan.cases:
        targets = 0 if isinstance(case.targets, Law) else case.trials
        memory.check(_design(case), _inputs(case), jax.local_devices()[0], targets)


def empty_tally(case: Case) -> Tally:
    """The questions of a case, of no trial."""
    return Tally(
        tuple(eps for eps, _ in case.eps),
        cap=case.certificate.eps if case.certificate else math.inf,
        labelled=0 if isinstance(case.targets, Law) else trained.TEST_COUNT,
    )


def trained_targets(plan: Plan, numbers: Collection[int]) -> dict[tuple, Params]:
    """The networks that some cases prune, network i the same however many there are."""
    return {
        (network, recipe): trained.train(network, recipe, count, plan.seed)
        for (network, recipe), count in trainings(plan, numbers).items()
    }


def prepare(case: Case, plan: Plan, trained_targets: Mapping[tuple, Params]) -> engine.Run:
    """A case made ready.

    Args:
      case: of the plan.
      plan: the plan.
      trained_targets: by network and recipe.
    """
    targets, domain, labelled = case.targets, case.ball, None
    if not isinstance(targets, Law):
        targets = trained_targets[case.network, targets]
        digits = trained.digits()
        images = trained.as_inputs(case.network, digits.test_x)
        labelled = images, digits.test_y
        domain = images if case.domain == TEST_IMAGES else domain
    run = engine.prepare(
        case.network,
        targets,
        case.pruning,
        case.amount,
        trials=case.trials,
        layers=case.layers,
        domain=domain,
        labelled=labelled,
        seed=plan.seed,
        stream=plan.stream,
    )
    if not plan.until_decided:
        return run
    return run._replace(block=min(run.block, LOOK), chunk=min(run.chunk, LOOK))


def trainings(plan: Plan, numbers: Collection[int]) -> dict[tuple, int]:
    """How many networks to train for each (network, recipe) that some cases prune.

    As many as for all cases of the plan: programs have their number in their shapes.
    """
    jobs: dict[tuple, int] = {}
    for case in plan.cases:
        if not isinstance(case.targets, Law):
            job = (case.network, case.targets)
            jobs[job] = max(jobs.get(job, 0), case.trials)
    wanted = {(plan.cases[i].network, plan.cases[i].targets) for i in numbers}
    return {job: count for job, count in jobs.items() if job in wanted}


def _design(case: Case) -> engine.Design:
    family = case.targets.family if isinstance(case.targets, Law) else None
    ball = None if case.domain == TEST_IMAGES else case.ball
    return engine.Design(case.network, family, case.pruning, case.pruned, ball)


def _inputs(case: Case) -> int:
    """How many inputs pass through a case's network at once."""
    images = 0 if isinstance(case.targets, Law) else trained.TEST_COUNT
    return max(images, case.ball.samples)


def seconds(case: Case) -> float:
    """Rough time of a case, for the share that the progress bar gives it."""
    return 2.0 + 6e-10 * memory.trial_bytes(_design(case), _inputs(case)) * case.trials

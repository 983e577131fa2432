"""Does the claim `P(gap <= eps) >= 1 - delta` hold? Every case of a plan, sampled and judged."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxprune import bounds, engine
from jaxprune.engine import Tally, memory
from jaxprune.laws import Law
from jaxprune.statistics import (
    CERTIFIED,
    ESTIMATED,
    Claim,
    Decision,
    Evidence,
    fixed_sequence,
    judge,
    judge_stopped,
    p_value_at_most,
    survival,
)
from jaxprune.studies import runs as ledger
from jaxprune.studies import trained
from jaxprune.studies.ahead import compiling_ahead
from jaxprune.studies.exponents import exponents
from jaxprune.studies.plan import TEST_IMAGES, UNIT_BALL, Case, Plan
from jaxprune.studies.result import Progress, environment, plain
from jaxprune.types import Params

LOOK = 64
"""Trials between two looks at claims that are sampled until they are decided, at most."""

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def verify(
    plan: Plan,
    progress: Callable[[Progress], None] | None = None,
    *,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Samples every case of a plan and judges its claims together.

    Args:
      plan: from `plan.load` or `plan.parse`.
      progress: called after every block.
      folder: in which the ledger of runs is kept (`studies.runs`); None for none.

    Returns:
      `{"plan": ..., "runs": ..., "environment": ..., "cells": [...], "exponents": [...]}`, plain
      data that is strict JSON; a cell is one case at one epsilon. The folder's README documents
      the keys.

    Raises:
      ValueError: a case that does not fit in memory; nothing has been sampled then.
    """
    for case in plan.cases:
        _check_memory(case)
    made = ledger.begin(plan, folder)
    jobs = _trainings(plan)
    work = {case: _seconds(case) for case in plan.cases}
    training_work = {job: 4.0 + 0.05 * count for job, count in jobs.items()}
    total = sum(training_work.values()) + sum(work[case] for case in plan.cases)
    finished = 0.0

    def report(doing, work, share):
        if progress:
            progress(Progress(doing, finished + work * share, total))

    targets: dict[tuple, Params] = {}
    for (network, recipe), count in jobs.items():
        job, doing = (network, recipe), f"training {count} networks: {network}"
        report(doing, training_work[job], 0.0)
        targets[job] = trained.train(
            network,
            recipe,
            count,
            plan.seed,
            progress=lambda n, d=doing, w=training_work[job], c=count: report(d, w, n / c),
        )
        finished += training_work[job]

    runs = [_prepare(case, plan, targets) for case in plan.cases]
    claims = sum(len(case.eps) for case in plan.cases)
    # Bonferroni decides when to stop: what it decides Holm and e-BH do.
    level = (1.0 - plan.confidence_of_run) / claims
    tallies, seconds = [], []
    watches = [_Watch(case, plan, level) for case in plan.cases]
    with compiling_ahead(runs):
        for case, run, watch in zip(plan.cases, runs, watches, strict=True):
            start = time.perf_counter()
            report(str(case), work[case], 0.0)
            advance = lambda n, c=case: report(str(c), work[c], n / c.trials)
            until = watch if plan.until_decided else None
            cap = case.certificate.eps if case.certificate else math.inf
            eps = [eps for eps, _ in case.eps]
            tallies.append(engine.tally_run(run, eps, advance, until, cap=cap))
            seconds.append(time.perf_counter() - start)
            finished += work[case]
    return {
        "plan": {"hash": plan.hash, **plain(plan.source)},
        "runs": {**plain(made._asdict()), "exploratory": made.exploratory},
        "environment": environment(plan.seed),
        "cells": _cells(plan, made, runs, tallies, watches, seconds),
        "exponents": []
        if plan.until_decided
        else plain(exponents(plan.cases, tallies, plan.confidence_of_run)),
    }


class _Watch:
    """Looks at a case's claims after each block; true once all of them are decided."""

    def __init__(self, case: Case, plan: Plan, level: float):
        self.evidence = {eps: Evidence() for eps, _ in case.eps}
        self.delta, self.correction, self.level = plan.delta, plan.correction, level

    def __call__(self, tally: Tally) -> bool:
        self.evidence = {
            eps: evidence.look(tally.counts(eps), self.delta)
            for eps, evidence in self.evidence.items()
        }
        return all(e.decides(self.level, self.correction) for e in self.evidence.values())


def _trainings(plan: Plan) -> dict[tuple, int]:
    """How many networks to train for each (network, recipe)."""
    jobs: dict[tuple, int] = {}
    for case in plan.cases:
        if not isinstance(case.targets, Law):
            job = (case.network, case.targets)
            jobs[job] = max(jobs.get(job, 0), case.trials)
    return jobs


def _design(case: Case) -> engine.Design:
    family = case.targets.family if isinstance(case.targets, Law) else None
    ball = None if case.domain == TEST_IMAGES else case.ball
    return engine.Design(case.network, family, case.pruning, case.pruned, ball)


def _inputs(case: Case) -> int:
    """How many inputs pass through a case's network at once."""
    images = 0 if isinstance(case.targets, Law) else len(trained.digits().test_x)
    return max(images, case.ball.samples)


def _check_memory(case: Case) -> None:
    targets = 0 if isinstance(case.targets, Law) else case.trials
    memory.check(_design(case), _inputs(case), jax.devices()[0], targets)


def _seconds(case: Case) -> float:
    """Rough time of a case, for the share that the progress bar gives it."""
    return 2.0 + 6e-10 * memory.trial_bytes(_design(case), _inputs(case)) * case.trials


def _prepare(case: Case, plan: Plan, trained_targets: dict[tuple, Params]) -> engine.Run:
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


def _decisions(plan: Plan, claims: Sequence[Claim], watches: Sequence[_Watch]) -> list[Decision]:
    if not plan.until_decided:
        return judge(claims, plan.confidence_of_run)
    evidence = [w.evidence[e] for c, w in zip(plan.cases, watches, strict=True) for e, _ in c.eps]
    return judge_stopped(claims, evidence, plan.confidence_of_run, plan.correction)


def _cells(
    plan: Plan,
    made: ledger.Runs,
    runs: list[engine.Run],
    tallies: list[Tally],
    watches: list[_Watch],
    seconds: list[float],
) -> list[dict]:
    claims = [
        Claim(tally.counts(eps), plan.delta)
        for case, tally in zip(plan.cases, tallies, strict=True)
        for eps, _ in case.eps
    ]
    decisions = iter(_decisions(plan, claims, watches))
    cells = []
    rows = zip(plan.cases, runs, tallies, watches, seconds, strict=True)
    for case, run, tally, watch, spent in rows:
        facts = _facts(case, tally)
        facts |= _whole_distribution(plan, case, tally)
        facts["smallest_eps"] = None if made.exploratory else _smallest_eps(plan, tally, watch)
        for eps, source in case.eps:
            counts, decision = tally.counts(eps), next(decisions)
            if made.exploratory:
                decision = decision._replace(verdict=ESTIMATED)
            proved = case.certificate is not None and case.certificate.eps <= eps
            cells.append(
                {
                    **facts,
                    "eps": eps,
                    "eps_source": source,
                    "delta": plan.delta,
                    "confidence": plan.confidence_of_run,
                    "trials": tally.trials,
                    "budget": case.trials,
                    **counts._asdict(),
                    **decision._asdict(),
                    "by_theorem": CERTIFIED if proved else None,
                    "block": run.block,
                    "seconds": spent,
                }
            )
    return plain(cells)


def _whole_distribution(plan: Plan, case: Case, tally: Tally) -> dict[str, Any]:
    """Limits at all epsilons together, of one quantile, of the mean gap and of the mean change in
    accuracy; null unless the trials were fixed."""
    if plan.until_decided:
        return dict.fromkeys(
            (
                "survival",
                "gap_quantile_limits",
                "mean_capped_gap_limits",
                "accuracy_change_limits",
            )
        )
    alpha, rising = 1.0 - plan.confidence_of_run, sorted(set(tally.eps))
    band = survival([tally.counts(eps) for eps in rising], alpha)
    return {
        "survival": [
            {"eps": eps, "low": low, "high": high}
            for eps, low, high in zip(rising, band.low, band.high, strict=True)
        ],
        "gap_quantile_limits": tally.gap_quantile_limits(plan.delta, alpha),
        "mean_capped_gap_limits": tally.mean_capped_gap_limits(alpha)
        if 0.0 < tally.cap < math.inf
        else None,
        "accuracy_change_limits": None
        if isinstance(case.targets, Law)
        else tally.accuracy_change_limits(alpha, plan.seed),
    }


def _smallest_eps(plan: Plan, tally: Tally, watch: _Watch) -> float | None:
    """The least epsilon of a case that passes, tested from the largest down."""
    falling = sorted(tally.eps, reverse=True)
    if plan.until_decided:
        p_values = [math.exp(-watch.evidence[eps].holds) for eps in falling]
    else:
        failures = [tally.counts(eps).not_close for eps in falling]
        p_values = p_value_at_most(failures, tally.trials, plan.delta)
    passed = fixed_sequence(p_values, 1.0 - plan.confidence_of_run)
    return falling[passed - 1] if passed else None


def _facts(case: Case, tally: Tally) -> dict[str, Any]:
    """What a case's cells have in common."""
    sampled = isinstance(case.targets, Law)
    removed = sum(
        q * count for q, count in zip(case.sparsities, case.network.weight_counts, strict=True)
    )
    prunable = sum(
        count
        for count, chosen in zip(case.network.weight_counts, case.pruned, strict=True)
        if chosen
    )
    mean, error = tally.mean_squared_gap()
    facts = {
        "experiment": case.title,
        "network": str(case.network),
        "law": str(case.targets) if sampled else None,
        "training": None if sampled else str(case.targets),
        "pruning": case.pruning.name,
        "amount": str(case.amount),
        "layers": case.layers,
        "widths": case.network.widths,
        "sparsity": removed / prunable,
        "domain": TEST_IMAGES if case.domain == TEST_IMAGES else str(case.ball),
        "certified_eps": case.certificate.eps if case.certificate else None,
        "gap_lower_quantiles": {f"{p:g}": tally.gap_quantile(p)[0] for p in QUANTILES},
        "gap_upper_quantiles": {f"{p:g}": tally.gap_quantile(p)[1] for p in QUANTILES},
        "sampled_gap_quantiles": {
            f"{p:g}": tally.sampled.quantile(p, tally.trials, above=False) for p in QUANTILES
        },
        "mean_squared_gap": mean,
        "mean_squared_gap_standard_error": error,
        "mean_squared_gap_infinite_width": _infinite_width(case),
        "mean_distance": None,
        "mean_distance_standard_error": None,
        "mean_distance_quantiles": None,
        "relative_distance_quantiles": None,
        "accuracy_target": None,
        "accuracy_pruned": None,
        "accuracy_change": None,
        "worst_trials": [{"trial": trial, "gap": gap} for gap, trial in tally.worst],
    }
    if case.domain == TEST_IMAGES:
        mean, error = tally.mean_distance()
        facts["mean_distance"], facts["mean_distance_standard_error"] = mean, error
        for name, quantile in (
            ("mean_distance_quantiles", tally.mean_distance_quantile),
            ("relative_distance_quantiles", tally.relative_distance_quantile),
        ):
            facts[name] = {f"{p:g}": quantile(p)[1] for p in QUANTILES}
    if not sampled and tally.finite:
        images = len(trained.digits().test_y) * tally.finite
        facts["accuracy_target"] = tally.target_correct / images
        facts["accuracy_pruned"] = tally.pruned_correct / images
        facts["accuracy_change"] = (tally.pruned_correct - tally.target_correct) / images
    return facts


def _infinite_width(case: Case) -> float | None:
    if not (case.network.is_dense and isinstance(case.targets, Law) and case.domain == UNIT_BALL):
        return None
    limit = bounds.infinite_width(
        case.network, case.targets, case.pruning, case.amount, layers=case.layers
    )
    return limit.mean_squared_gap

"""Does the claim `P(gap <= eps) >= 1 - delta` hold? Every case of a plan, sampled and judged."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune import bounds
from jaxprune.engine import Store, Tally
from jaxprune.engine.store import state_hash
from jaxprune.laws import Law
from jaxprune.statistics import (
    CERTIFIED,
    ESTIMATED,
    UNDECIDED,
    Claim,
    Counts,
    Decision,
    fixed_sequence,
    judge,
    judge_stopped,
    p_value_at_most,
    survival,
)
from jaxprune.studies import runs as ledger
from jaxprune.studies import trained
from jaxprune.studies.cases import check_memory, empty_tally
from jaxprune.studies.exponents import exponents
from jaxprune.studies.plan import TEST_IMAGES, UNIT_BALL, Case, Plan
from jaxprune.studies.result import Progress, environment, plain
from jaxprune.studies.sampling import Watch, about, sample

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
      `{"plan": ..., "runs": ..., "environment": ..., "blocks": ..., "cells": [...],
      "exponents": [...]}`, plain data that is strict JSON; a cell is one case at one epsilon. The
      folder's README documents the keys.

    Raises:
      ValueError: a case that does not fit in memory; nothing has been sampled then.
    """
    check_memory(plan)
    made = ledger.begin(plan, folder)
    with Store.create(None, about(plan)) as store:
        sample(plan, store, progress)
        return judged(plan, store, made)


class Early:
    """Verdicts of the cases that have all their trials, while others are still sampled.

    A verdict that is given here stays: a claim without trials has the p-value 1 (the e-value 1),
    and whatever Holm (e-BH) rejects beside such claims, it rejects beside any p-values of theirs.

    Args:
      plan: the store's.
      store: with the blocks of the whole plan, not of a part.
      made: from `studies.runs`.
      audited: whether an audit comes after the trials; no verdict is given before it passes.
    """

    def __init__(self, plan: Plan, store: Store, made: ledger.Runs, *, audited: bool = False):
        self.plan, self.store, self.made, self.audited = plan, store, made, audited
        self.sampled = [_unsampled(plan, case) for case in plan.cases]

    def __call__(self, number: int) -> list[dict[str, Any]]:
        """Judges a case that is complete.

        Returns:
          For each of its epsilons some keys of the cell that it will have in the result; `verdict`
          is None as long as it waits for other cases, or for the audit.
        """
        self.sampled[number] = _sampled(self.plan, self.store, number)
        case, decisions = self.plan.cases[number], iter(_decisions(self.plan, self.sampled))
        first = sum(len(other.eps) for other in self.plan.cases[:number])
        decisions = itertools.islice(decisions, first, first + len(case.eps))
        waiting = self.audited or self.store.failed_audit is not None
        undecided = UNDECIDED if all(s.complete for s in self.sampled) else None
        cells = []
        for (eps, source), decision in zip(case.eps, decisions, strict=True):
            verdict = undecided if decision.verdict == UNDECIDED else decision.verdict
            if self.made.exploratory:
                verdict = ESTIMATED
            cells.append(
                {
                    **_asked(case),
                    "case": number,
                    "eps": eps,
                    "eps_source": source,
                    "p_low": decision.p_low,
                    "p_high": decision.p_high,
                    "verdict": None if waiting else verdict,
                }
            )
        return cells


def _asked(case: Case) -> dict[str, Any]:
    return {
        "experiment": case.title,
        "network": str(case.network),
        "pruning": case.pruning.name,
        "amount": str(case.amount),
        "domain": case.inputs,
    }


class _Sampled(NamedTuple):
    """A case's trials, as far as no block is missing.

    Attributes:
      tally: of them; where the claims were decided before, up to there.
      watch: that looked at them block by block, if the plan is sampled until decided.
      complete: whether these are all trials that the plan asks for.
      block: trials of a block; None if the case was not begun.
      seconds: spent on the blocks.
    """

    tally: Tally
    watch: Watch
    complete: bool
    block: int | None
    seconds: float


def judged(plan: Plan, store: Store, made: ledger.Runs) -> dict[str, Any]:
    """Judges the claims of a plan by the blocks of a store, and notes the verdicts there.

    A case counts as far as no block is missing. A plan with fixed trials gives no verdict of a case
    that lacks some; the limits are then those of a confidence sequence, right wherever it stops.

    Args:
      plan: the store's.
      store: with the blocks of the whole plan, not of a part.
      made: from `studies.runs`.

    Returns:
      As `verify`.
    """
    sampled = [_sampled(plan, store, number) for number in range(len(plan.cases))]
    tallies = [s.tally for s in sampled]
    complete = all(s.complete for s in sampled)
    estimates = made.exploratory or store.failed_audit is not None
    cells = _cells(plan, sampled, estimates)
    keys = "experiment", "network", "pruning", "amount", "eps", "trials", "verdict"
    store.note([{key: cell[key] for key in (*keys, "p_low", "p_high")} for cell in cells])
    return {
        "plan": {"hash": plan.hash, **plain(plan.source)},
        "runs": {**plain(made._asdict()), "exploratory": made.exploratory},
        "environment": environment(plan.seed),
        "blocks": {
            "complete": complete,
            "tallies": state_hash(tallies),
            "damaged": plain(store.damaged),
            "audited": store.audited,
            "failed_audit": store.failed_audit,
        },
        "cells": cells,
        "exponents": []
        if plan.until_decided or not complete
        else plain(exponents(plan.cases, tallies, plan.confidence_of_run)),
    }


def _unsampled(plan: Plan, case: Case) -> _Sampled:
    return _Sampled(empty_tally(case), Watch(case, plan), False, None, 0.0)


def _sampled(plan: Plan, store: Store, number: int) -> _Sampled:
    case = plan.cases[number]
    tally, watch, decided = empty_tally(case), Watch(case, plan), False
    block, seconds = None, 0.0
    if number in store.cases:
        block, seconds = store.cases[number]["block"], store.seconds(number)
        for tally in store.prefix(number):
            if plan.until_decided and (decided := watch(tally)):
                break
    return _Sampled(tally, watch, decided or tally.trials == case.trials, block, seconds)


def _decisions(plan: Plan, sampled: Sequence[_Sampled]) -> list[Decision]:
    """One a claim, in the order of the cells."""
    claims, evidence, complete = [], [], []
    for case, s in zip(plan.cases, sampled, strict=True):
        for eps, _ in case.eps:
            claims.append(Claim(s.tally.counts(eps), plan.delta))
            evidence.append(s.watch.evidence[eps])
            complete.append(s.complete)
    if plan.until_decided:
        return judge_stopped(claims, evidence, plan.confidence_of_run, plan.correction)
    # No trial decides nothing: a claim waits until its trials are complete.
    waiting = Counts(0, 0, 0, 0)
    counted = [
        claim if c else claim._replace(counts=waiting)
        for claim, c in zip(claims, complete, strict=True)
    ]
    decisions = judge(counted, plan.confidence_of_run)
    if all(complete):
        return decisions
    anytime = judge_stopped(claims, evidence, plan.confidence_of_run)
    return [
        d if c else d._replace(p_low=a.p_low, p_high=a.p_high)
        for d, a, c in zip(decisions, anytime, complete, strict=True)
    ]


def _cells(plan: Plan, sampled: Sequence[_Sampled], estimates: bool) -> list[dict]:
    decisions = iter(_decisions(plan, sampled))
    cells = []
    for number, (case, s) in enumerate(zip(plan.cases, sampled, strict=True)):
        tally = s.tally
        facts = _facts(case, tally)
        facts |= _whole_distribution(plan, case, s)
        facts["smallest_eps"] = None if estimates else _smallest_eps(plan, s)
        for eps, source in case.eps:
            counts, decision = tally.counts(eps), next(decisions)
            if estimates:
                decision = decision._replace(verdict=ESTIMATED)
            proved = case.certificate is not None and case.certificate.eps <= eps
            cells.append(
                {
                    **facts,
                    "case": number,
                    "eps": eps,
                    "eps_source": source,
                    "delta": plan.delta,
                    "confidence": plan.confidence_of_run,
                    "trials": tally.trials,
                    "budget": case.trials,
                    **counts._asdict(),
                    **decision._asdict(),
                    "by_theorem": CERTIFIED if proved else None,
                    "block": s.block,
                    "seconds": s.seconds,
                }
            )
    return plain(cells)


def _whole_distribution(plan: Plan, case: Case, sampled: _Sampled) -> dict[str, Any]:
    """Limits at all epsilons together, of one quantile, of the mean gap and of the mean change in
    accuracy; null unless the trials were fixed, and are complete."""
    tally = sampled.tally
    if plan.until_decided or not sampled.complete:
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


def _smallest_eps(plan: Plan, sampled: _Sampled) -> float | None:
    """The least epsilon of a case that passes, tested from the largest down."""
    tally = sampled.tally
    falling = sorted(tally.eps, reverse=True)
    if plan.until_decided:
        p_values = [math.exp(-sampled.watch.evidence[eps].holds) for eps in falling]
    elif not sampled.complete:
        return None
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
        **_asked(case),
        "law": str(case.targets) if sampled else None,
        "training": None if sampled else str(case.targets),
        "layers": case.layers,
        "widths": case.network.widths,
        "sparsity": removed / prunable,
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
        images = trained.TEST_COUNT * tally.finite
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

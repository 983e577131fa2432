"""The threshold width `d*(eps, delta)`: the least width with `P(gap <= eps) >= 1 - delta`.

One simulation at every width of a fixed list serves all epsilons and deltas. Each cell (width,
eps, delta) is judged by exact tests at a level split over all cells, so with the stated confidence
every verdict is right. A width at which the claim holds bounds d* from above, whatever else is
true. That d* exceeds a width at which it is violated assumes that a claim violated at one width is
violated at all smaller ones; the verdicts, all listed, do not.

The exponents are those of `statistics.exponent`, of three thresholds: of the gap, and of either
end of its bracket in the gap's place, which is not the threshold of anything one wants but shows
how much of the gap's uncertainty is the bracket's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import engine, validation
from jaxprune.bounds import inverse
from jaxprune.bounds.counts import removed_counts
from jaxprune.engine import Tally
from jaxprune.gaps import UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning, Sublinear
from jaxprune.statistics import (
    HOLDS,
    MAX_POINTS,
    VIOLATED,
    Ends,
    Exponent,
    exponent,
    judge_ends,
)
from jaxprune.studies.ahead import Background
from jaxprune.studies.result import Progress, environment, plain, sha256
from jaxprune.studies.setting import Layers, Setting, Steps, numbers, setting

WIDTHS = (16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128)
DELTAS = (0.02, 0.05, 0.1, 0.2, 0.3)

PILOT_TRIALS = 100
_PILOT_EPS = 8

GAP, LOWER, UPPER = "gap", "lower end", "upper end"


class Threshold(NamedTuple):
    """Where a least width lies: `above < d* <= most`.

    Attributes:
      above: the largest width, below every one that holds, at which the claim is violated; None
        if there is none.
      most: the least width at which it holds; None if there is none.
    """

    above: int | None
    most: int | None

    @property
    def closed(self) -> bool:
        return self.above is not None and self.most is not None


def locate(widths: Sequence[int], verdicts: Sequence[str]) -> Threshold:
    """The bracket of the least width, from one verdict a width, widths ascending."""
    most = next((d for d, v in zip(widths, verdicts, strict=True) if v == HOLDS), None)
    below = [
        d
        for d, v in zip(widths, verdicts, strict=True)
        if v == VIOLATED and (most is None or d < most)
    ]
    return Threshold(max(below, default=None), most)


def threshold(
    network_of_width: Callable[[int], Network],
    law: Law,
    pruning: Pruning,
    amount: Amount,
    *,
    widths: Sequence[int] = WIDTHS,
    eps: Sequence[float] | None = None,
    delta: float = 0.05,
    deltas: Sequence[float] = DELTAS,
    layers: Layers = "middle",
    trials: int = 600,
    confidence: float = 0.95,
    domain: UnitBall | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Brackets d* at every eps (at `delta`) and every delta (at the middle eps); fits exponents.

    Beside each bracket stand the theorem's least width (`bounds.inverse.least_width`) and the one
    at which a typical gap at one input is eps at infinite width, an estimate; beside the exponents
    the theorem's own, and the paper's 1/alpha.

    Args:
      network_of_width: `d -> Network`.
      law: of the weights.
      pruning: `magnitude`, `random` or `bernoulli`.
      amount: of each pruned layer; the paper's is `Sublinear(alpha)`.
      widths: at least two, the only ones looked at.
      eps: up to 12 gaps, positive; None for eight that a pilot of 100 other trials picks before
        the simulation, so that the thresholds of both ends of the bracket cross the widths.
      delta: in (0, 1), at which eps varies.
      deltas: up to 12, at which eps is the middle one.
      layers: which layers are pruned, see `networks.select_layers`.
      trials: independent pairs at each width.
      confidence: with which all verdicts of the study are right together, in (0, 1).
      domain: how the gap over the unit ball is bracketed.
      seed: from 0 to 2^32 - 1.
      progress: called after every block.

    Returns:
      `{"plan": ..., "environment": ..., "cells": [...], "thresholds": [...], "exponents": [...]}`,
      plain data that is strict JSON. The README documents the keys.

    Raises:
      ValueError: a number out of range, too few trials for any claim to be said to hold, or a
        network that does not fit in memory; nothing has been sampled then.
    """
    asked = setting(
        network_of_width,
        law,
        pruning,
        widths=widths,
        layers=layers,
        trials=trials,
        confidence=confidence,
        domain=domain,
        seed=seed,
    )
    if len(asked.widths) < 2:
        raise ValueError(f"widths = {list(asked.widths)}: at least two widths are needed")
    delta = validation.real("delta", delta, 0.0, 1.0)
    deltas = _few("deltas", numbers("deltas", deltas, 1.0))
    given = eps is not None
    eps = _few("eps", numbers("eps", eps)) if given else (0.0,) * _PILOT_EPS
    count = len(asked.widths) * len(_pairs(eps, delta, deltas))
    level = asked.level(count, [delta, *deltas])
    runs = [asked.prepare(network, amount) for network in asked.networks]
    _check_removes(asked, amount)
    steps = Steps(progress, [40_000 + trials * d**2 / 20 for d in asked.widths])
    ends = [runs[0], runs[-1]] if not given else []
    with Background() as background:
        background.compile([*ends, *runs])
        if not given:
            eps = _pilot(asked, amount, delta)
        tallies = []
        for network, run in zip(asked.networks, runs, strict=True):
            report = lambda n, doing=str(network): steps.at(
                doing, n / trials, f"{n} of {trials} trials"
            )
            report(0)
            tallies.append(engine.tally_run(run, eps, report))
            steps.next()
    pairs = _pairs(eps, delta, deltas)
    verdicts = {
        pair: [judge_ends(tally.counts(pair[0]), pair[1], level) for tally in tallies]
        for pair in pairs
    }
    thresholds = [
        _threshold(asked, network_of_width, amount, pair, verdicts[pair]) for pair in pairs
    ]
    plan = plain(
        {
            "study": "threshold",
            "amount": str(amount),
            "alpha": amount.alpha if isinstance(amount, Sublinear) else None,
            "eps": eps,
            "eps_source": "asked" if given else "pilot",
            "delta": delta,
            "deltas": deltas,
            "eps_of_deltas": _middle(eps),
            "cells": count,
            **asked.facts(),
        }
    )
    return {
        "plan": {"hash": sha256(plan), **plan},
        "environment": environment(seed),
        "cells": plain(_cells(asked, tallies, verdicts)),
        "thresholds": plain(thresholds),
        "exponents": plain(_exponents(thresholds, plan, confidence)),
    }


def _few(name, values):
    if len(values) > MAX_POINTS:
        raise ValueError(f"{name}: {len(values)} numbers, at most {MAX_POINTS} are allowed")
    return values


def _middle(eps):
    return eps[(len(eps) - 1) // 2]


def _pairs(eps, delta, deltas) -> list[tuple[float, float]]:
    """Every (eps, delta) that is judged, once; first along eps, then along delta."""
    along_eps = [(e, delta) for e in eps]
    return along_eps + [(_middle(eps), d) for d in deltas if d != delta]


def _check_removes(asked: Setting, amount: Amount) -> None:
    for d, network in zip(asked.widths, asked.networks, strict=True):
        if not any(removed_counts(network, asked.pruning, amount, asked.layers)):
            raise ValueError(f"amount = {amount}: removes nothing at width {d}, the gap is 0")


def _pilot(asked: Setting, amount: Amount, delta: float) -> tuple[float, ...]:
    """Epsilons from the 1 - delta quantile of the largest width's lower ends to the least's upper.

    The pilot's seed is another, so its trials are independent of those that judge. Nothing is
    judged at the epsilon that its tally has to be given.
    """
    other = dataclasses.replace(asked, seed=asked.seed ^ 0x80000000)
    least, largest = (
        engine.tally_run(
            other.prepare(network, amount)._replace(trials=PILOT_TRIALS), [1.0]
        ).gap_quantile(1.0 - delta)
        for network in (asked.networks[0], asked.networks[-1])
    )
    low, high = largest[0], least[1]
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"eps: the pilot saw gaps from {low:g} to {high:g}; give the epsilons")
    return tuple(float(f"{e:.3g}") for e in np.geomspace(low, high, _PILOT_EPS))


def _cells(
    asked: Setting, tallies: Sequence[Tally], verdicts: Mapping[tuple[float, float], list[Ends]]
) -> list[dict[str, Any]]:
    return [
        {
            "width": d,
            "eps": eps,
            "delta": delta,
            **tally.counts(eps)._asdict(),
            "p_low": ends.p_low,
            "p_high": ends.p_high,
            "verdict": ends.verdict,
            "reason": ends.reason,
        }
        for (eps, delta), row in verdicts.items()
        for d, tally, ends in zip(asked.widths, tallies, row, strict=True)
    ]


def _threshold(
    asked: Setting,
    network_of_width: Callable[[int], Network],
    amount: Amount,
    pair: tuple[float, float],
    row: Sequence[Ends],
) -> dict[str, Any]:
    """One (eps, delta): brackets of the three least widths, the theorem's, the estimate."""
    eps, delta = pair
    case = network_of_width, asked.law, asked.pruning, amount
    theorem = inverse.least_width(*case, eps=eps, delta=delta, layers=asked.layers)
    typical = asked.networks[0].is_dense and inverse.typical_least_width(
        *case, eps=eps, layers=asked.layers
    )
    brackets = {
        GAP: locate(asked.widths, [ends.verdict for ends in row]),
        LOWER: locate(asked.widths, [ends.lower for ends in row]),
        UPPER: locate(asked.widths, [ends.upper for ends in row]),
    }
    return {
        "eps": eps,
        "delta": delta,
        **{name: bracket._asdict() for name, bracket in brackets.items()},
        "theorem": theorem.width if theorem else None,
        "infinite_width": typical.width if typical else None,
    }


def _exponents(
    thresholds: Sequence[dict[str, Any]], plan: Mapping[str, Any], confidence: float
) -> list[dict[str, Any]]:
    """Exponents of d* in 1/eps and in 1/delta, of every kind of d*."""
    paper = 1.0 / plan["alpha"] if plan["alpha"] else None
    rows = []
    for variable, fixed, at in (
        ("eps", "delta", plan["delta"]),
        ("delta", "eps", plan["eps_of_deltas"]),
    ):
        chosen = [t for t in thresholds if t[fixed] == at]
        for kind in (GAP, LOWER, UPPER):
            closed = [t for t in chosen if None not in t[kind].values()]
            brackets = [(t[variable], t[kind]["above"] + 1, t[kind]["most"]) for t in closed]
            rows.append(_exponent(variable, kind, brackets, confidence))
        for kind in ("theorem", "infinite_width"):
            known = [(t[variable], t[kind], t[kind]) for t in chosen if t[kind]]
            if kind == "theorem" or variable == "eps":
                rows.append(_exponent(variable, kind, known, confidence))
        rows.append({"of": f"1/{variable}", "kind": "paper", "estimate": paper})
    return rows


def _exponent(variable, kind, brackets, confidence) -> dict[str, Any]:
    """Null where fewer than two brackets are closed."""
    row = {"of": f"1/{variable}", "kind": kind}
    if len(brackets) < 2:
        return row | dict.fromkeys(Exponent._fields) | {"points": len(brackets)}
    values, low, high = zip(*brackets, strict=True)
    return row | exponent([1.0 / v for v in values], low, high, confidence)._asdict()

"""How fast the gap falls with the width: a power law through the cases that differ by width alone.

Every limit is for a power law over the widths that were simulated; the p-value of its lack of fit
says whether one passes through the estimates at all. Finite widths bend the curve, so with many
trials it will not: then the slope is a summary, and its limits are those of no law.
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxprune.engine import Tally
from jaxprune.statistics import power_law
from jaxprune.studies.plan import Case

LEAST_WIDTHS = 3

LEAST_TRIALS = 100
"""With fewer the standard errors are themselves so uncertain that true power laws look bent."""

_RESOLUTION = 2.0**-7 / math.sqrt(12.0)
"""Standard deviation of log x over a bucket of the histograms, 0.8 % wide."""


def exponents(
    cases: Sequence[Case], tallies: Sequence[Tally], confidence: float
) -> list[dict[str, Any]]:
    """Slopes of log gap in log width, for dense networks at three widths or more.

    Args:
      cases: of a plan.
      tallies: one a case.
      confidence: of each slope's two-sided t limits.

    Returns:
      One a family of cases: `experiment`, `pruning`, `amount`, `domain`, `widths`, and of
      the `median_lower` and `median_upper` bound and the `typical` distance (root mean square, at
      one input) the fields of `statistics.PowerLaw`; None where fewer than three are positive and
      finite, or of 100 trials. The limits take estimates as independent, but cases share the
      seed: those of neighbouring widths correlate a little.
    """
    families: dict[tuple, list[tuple[int, Tally]]] = {}
    for case, tally in zip(cases, tallies, strict=True):
        shape = _shape(case)
        if shape is not None:
            width, ends = shape
            family = (case.title, case.pruning, case.amount, case.inputs, case.targets, case.pruned,
                      case.ball, case.network.activation, ends, case.trials)  # fmt: skip
            families.setdefault(family, []).append((width, tally))
    found = []
    for (title, pruning, amount, inputs, *_), members in families.items():
        by_width = dict(members)
        if len(by_width) == len(members) >= LEAST_WIDTHS:
            fit = lambda estimate, w=by_width: _fit(w, estimate, confidence)
            found.append(
                {
                    "experiment": title,
                    "pruning": pruning.name,
                    "amount": str(amount),
                    "domain": inputs,
                    "widths": sorted(by_width),
                    "median_lower": fit(lambda tally: _median(tally, 0)),
                    "median_upper": fit(lambda tally: _median(tally, 1)),
                    "typical": fit(_typical),
                }
            )
    return found


def _shape(case: Case) -> tuple[int, tuple] | None:
    """Width of the hidden layers of a dense network, if it is one, and what input and output are:
    a number, or "d" where they are as wide."""
    if not case.network.is_dense:
        return None
    first, *hidden, last = case.network.widths
    if len(set(hidden)) != 1:
        return None
    return hidden[0], tuple("d" if end == hidden[0] else end for end in (first, last))


def _median(tally: Tally, end: int) -> tuple[float, float]:
    """The median of one end of the bracket, and the standard error of its logarithm by ranks."""
    step = 0.5 / math.sqrt(tally.trials)
    low, middle, high = (tally.gap_quantile(min(1.0, 0.5 + s))[end] for s in (-step, 0.0, step))
    if not 0.0 < low <= middle <= high < math.inf:
        return math.nan, math.nan
    return middle, math.hypot(0.5 * math.log(high / low), _RESOLUTION)


def _typical(tally: Tally) -> tuple[float, float]:
    square, error = tally.mean_squared_gap()
    return (math.sqrt(square), 0.5 * error / square) if square > 0.0 else (math.nan, math.nan)


def _fit(by_width, estimate, confidence) -> dict[str, Any] | None:
    points = [
        (width, *estimate(tally))
        for width, tally in sorted(by_width.items())
        if tally.trials >= LEAST_TRIALS
    ]
    points = [p for p in points if all(map(math.isfinite, p)) and p[2] > 0.0]
    if len(points) < LEAST_WIDTHS:
        return None
    fit = power_law(*zip(*points, strict=True), confidence=confidence)
    return fit._asdict() | {"with_constant": fit.with_constant and fit.with_constant._asdict()}

"""The result of `studies.rare` in words, a table and a plot; nothing is computed here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxprune.report.section import Cell, Drawing, Section, Table
from jaxprune.report.words import drawn, law, number, number_down, number_up, percent
from jaxprune.statistics.splitting import EXTINCT, MIXING, SPREAD, UNRELIABLE

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes

DOUBTS = {
    MIXING: "twice the moves change the estimate",
    SPREAD: "replicas scatter too much",
    EXTINCT: "a replica died out",
}


def sections(result: dict[str, Any]) -> list[Section]:
    """One: what is estimated, the replicas, a row an end of the bracket, what is proved."""
    return [
        Section(
            _title(result["plan"]),
            text=_found(result),
            drawings=[Drawing("Every replica", lambda ax: plot(ax, result), 7.2, 4.0, 1.0)],
            tables=[_ends(result)],
            notes=_notes(result),
        )
    ]


def _found(result):
    plan, ends = result["plan"], result["ends"]
    low, high = number_down(ends["lower"]["low"]), number_up(ends["upper"]["high"])
    yield (
        f"Estimated: a network pruned in {', '.join(plan['layers'])} is further than "
        f"{plan['eps']:g} from the network it was pruned from, at some input of the unit ball, "
        f"with probability {low} to {high} (limits at {percent(plan['confidence'])} each). "
        + _proved(result)
    )


def _proved(result):
    if result["theorem"] is None:
        return "No theorem here bounds that probability below 1."
    return f"Certified by theorem: P(gap > ε) ≤ {number_up(result['theorem'])}."


def _ends(result):
    names = (
        "P(end > ε)", "estimate", "limits", "by replicas\nof half the moves",
        "trials that\nwould certify", "checks",
    )  # fmt: skip
    rows = []
    for end, found in _both(result):
        half = sum(found["short_replicas"]) / len(found["short_replicas"])
        trials = found["certifying_trials"]
        rows.append(
            [
                f"{end} end",
                Cell(number(found["p"]), found["p"]),
                Cell(f"{number_down(found['low'])} – {number_up(found['high'])}", found["high"]),
                Cell(number(half), half),
                Cell("> 10^12" if trials is None else f"{trials:,}", trials),
                _checks(found),
            ]
        )
    return Table(names, rows, left=["P(end > ε)", "checks"])


def _notes(result):
    return [
        "P(gap > ε) lies between the probabilities of the two ends; a pair that is not finite "
        "counts as above ε at the upper end only.",
        "All of this is estimated: limits are Student's, and about right if the moves mix. A part "
        "of the event that the replicas never met is not seen, whatever the checks say.",
        "Trials that would certify: so many independent pairs without a failure show, at the "
        "confidence of the limits, a probability at most the upper limit.",
    ]


def plot(ax: Axes, result: dict[str, Any]) -> Axes:
    """Every replica's estimate, both numbers of moves, with the limits of each end."""
    from matplotlib.ticker import NullFormatter

    plan, ends = result["plan"], _both(result)
    for row, found in enumerate(found for _, found in ends):
        kinds = ((found["short_replicas"], "x", -0.15), (found["replicas"], "o", 0.15))
        for values, marker, shift in kinds:
            shown = [p for p in values if p]
            steps = plan["splitting"]["steps"] * (1 if marker == "x" else 2)
            label = f"replicas, {steps} moves a level" if row == 0 else None
            ax.plot(shown, [row + shift] * len(shown), marker, color="C0", mfc="none", label=label)
        low = found["low"] or min((p for p in found["replicas"] if p), default=found["high"])
        label = f"mean and limits, {percent(plan['confidence'])}" if row == 0 else None
        ax.plot([low, found["high"]], [row] * 2, color="k", lw=1.6, label=label)
        if found["p"]:
            ax.plot(found["p"], row, "|", color="k", ms=14)
    if result["theorem"] is not None:
        ax.axvline(result["theorem"], color="k", ls="--", lw=1.2, label="certified by theorem")
    ax.set_xscale("log")
    # Whole powers of ten: labels between them collide.
    low, high = ax.get_xlim()
    ax.set_xlim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(ends)), [f"{end} end" for end, _ in ends])
    ax.set_ylim(-0.6, len(ends) + 0.3)
    ax.set_xlabel(f"P(end of the gap's bracket > {plan['eps']:g}), estimated")
    ax.set_title(drawn(_title(plan), 100), fontsize=9, y=1.0)
    ax.legend(fontsize=7.5, loc="upper left", ncols=2)
    return ax


def _title(plan):
    return (
        f"{plan['network']}: {plan['pruning']}, {plan['amount']}, ε = {plan['eps']:g}; {law(plan)}"
    )


def _both(result):
    return [(end, result["ends"][end]) for end in ("lower", "upper")]


def _checks(found):
    doubts = ", ".join(DOUBTS[doubt] for doubt in found["doubts"])
    return f"{UNRELIABLE}: {doubts}" if doubts else "none failed"

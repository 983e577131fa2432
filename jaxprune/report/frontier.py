"""The result of `studies.frontier` in words, tables and a plot; nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxprune.report.plots import ticks_1_2_5
from jaxprune.report.section import Cell, Drawing, Section, Table, at_most
from jaxprune.report.words import (
    claim_of,
    drawn,
    judged_cells,
    judged_names,
    law,
    number_down,
    number_up,
    percent,
)

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes

OPEN_BECAUSE = {
    "bracket": "the gap's bracket",
    "trials": "too few trials",
    "resolution": "the grid's step",
    None: "–",
}


def sections(result: dict[str, Any]) -> list[Section]:
    """One: the claim, what is known of its frontier, the plot, a row a width."""
    points, cut = at_most(result["points"], "widths")
    draw = lambda ax: plot(ax, result | {"points": points})
    return [
        Section(
            _title(result["plan"]),
            text=_found(result),
            drawings=[Drawing("The frontier by width", draw, 7.2, 5.0)],
            tables=[_points(result), _probes(result)],
            notes=[*_notes(result["plan"]), *cut],
        )
    ]


def _found(result):
    plan, last = result["plan"], result["points"][-1]
    pruned = f"to sparsity s in {', '.join(plan['layers'])}"
    yield f"Claim: {claim_of(plan['delta'], plan['eps'], pruned)}. Frontier: the largest such s."
    holds, violated = last["holds"], last["violated"]
    said = f"holds up to s = {_sparsity(holds, number_down)}" if holds else "is shown at no s"
    said += f", is violated from {_sparsity(violated, number_up)} on" if violated else ""
    yield f"{last['network']}: it {said}, with {percent(plan['confidence'])} confidence."


def _points(result):
    names = (
        "network", "holds\nup to", "violated\nfrom", "between them", "theorem",
        "infinite width,\nestimated",
    )  # fmt: skip
    rows = [
        [
            Cell(p["network"], p["width"]),
            Cell(_sparsity(p["holds"], number_down), p["holds"]),
            Cell(_sparsity(p["violated"], number_up), p["violated"]),
            OPEN_BECAUSE[p["open_because"]],
            Cell(_sparsity(p["theorem"], number_down), p["theorem"]),
            Cell(_sparsity(p["infinite_width"], number_down), p["infinite_width"]),
        ]
        for p in result["points"]
    ]
    return Table(names, rows, left=["network"])


def _probes(result):
    rows = [
        [
            Cell(p["network"], p["width"]),
            Cell(f"{100 * probe['sparsity']:.3g} %", probe["sparsity"]),
            *judged_cells(probe),
        ]
        for p in result["points"]
        for probe in p["probes"]
    ]
    names = ("network", "sparsity", *judged_names(result["plan"]["confidence"]))
    return Table(
        names, rows, left=["network", "verdict"], title=f"{len(rows)} sparsities looked at"
    )


def _notes(plan):
    return [
        f"With {percent(plan['confidence'])} confidence every verdict is right, of all "
        f"{plan['cells']} sparsities of the grids, in steps of {percent(plan['resolution'])}; "
        f"{plan['trials']} trials a width. Verdicts are those of the sparsities looked at; of the "
        "others, that the claim gets no easier with sparsity is assumed.",
        "Between the two ends, why the frontier is not known better: the gap's bracket (no number "
        "of trials would decide), too few trials, or the grid's step.",
        "Theorem: certified, no sampling. Infinite width: an estimate, a typical gap at one input.",
    ]


def plot(ax: Axes, result: dict[str, Any]) -> Axes:
    """Brackets of the frontier by width, between the theorem's line and infinite width's."""
    plan, points = result["plan"], result["points"]
    widths = [p["width"] for p in points]
    known = [p[key] for p in points for key in ("holds", "violated", "theorem", "infinite_width")]
    floor = 0.5 * min((q for q in known if q), default=1.0)
    low = [p["holds"] or floor for p in points]
    high = [p["violated"] or 1.0 for p in points]
    ax.fill_between(widths, low, high, color="C0", alpha=0.12, lw=0)
    ax.vlines(widths, low, high, color="C0", lw=1.4, label="open: neither shown")
    for key, marker, color, label in (
        ("holds", "^", "#1b7837", "holds up to here"),
        ("violated", "v", "#b2182b", "violated from here"),
    ):
        shown = [(p["width"], p[key]) for p in points if p[key]]
        ax.plot(*_columns(shown), marker, color=color, ms=7, label=label)
    for key, style, label in (
        ("theorem", "--", "theorem: certified up to here"),
        ("infinite_width", ":", "infinite width, one input: an estimate"),
    ):
        shown = [(p["width"], p[key]) for p in points if p[key]]
        missing = "" if len(shown) == len(points) else f" (none at {len(points) - len(shown)})"
        ax.plot(*_columns(shown), "k" + style, marker=".", lw=1.2, label=label + missing)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.9 * floor, top=1.25)
    if floor > 0.01:
        ticks_1_2_5(ax.yaxis)
    ax.set_xticks(widths, [str(d) for d in widths])
    ax.set_xlabel("width (neurons)")
    ax.set_ylabel(f"sparsity (share) of {drawn(', '.join(plan['layers']))}")
    ax.set_title(drawn(_title(plan), 90), fontsize=9, y=1.0)
    ax.legend(fontsize=7.5, loc="best")
    return ax


def _title(plan):
    return (
        f"Pruning frontier: {plan['pruning']}, ε = {plan['eps']:g}, δ = {plan['delta']:g}; "
        f"{law(plan)}"
    )


def _sparsity(value, rounded):
    return "–" if value is None else f"{rounded(100 * value)} %"


def _columns(pairs):
    return ([a for a, _ in pairs], [b for _, b in pairs])

"""The result of `studies.frontier` as a table and a plot; nothing is computed here."""

from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.report.words import law, number_down, number_up, percent, plain

OPEN_BECAUSE = {
    "bracket": "the gap's bracket",
    "trials": "too few trials",
    "resolution": "the grid's step",
    None: "–",
}


def render(result: dict[str, Any], console: Console) -> None:
    """Prints one row a width, then what the columns mean."""
    plan = result["plan"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("network")
    for name in ("holds\nup to", "violated\nfrom", "between them", "theorem", "infinite\nwidth"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in result["points"]:
        table.add_row(
            Text(plain(p["network"])),
            _sparsity(p["holds"], number_down),
            _sparsity(p["violated"], number_up),
            OPEN_BECAUSE[p["open_because"]],
            _sparsity(p["theorem"], number_down),
            _sparsity(p["infinite_width"], number_down),
        )
    console.print()
    console.print(Text(plain(_title(plan)), style="bold"))
    console.print(table)
    for line in caption(plan):
        console.print(Text(line), soft_wrap=False)


def caption(plan: dict[str, Any]) -> list[str]:
    """What the columns mean, with the confidence in words."""
    return [
        f"Sparsity of {', '.join(plain(name) for name in plan['layers'])}. Claim at each: "
        f"P(gap ≤ ε) ≥ 1 − δ; gap: sup ‖F(x) − f(x)‖ over the unit ball.",
        f"With {percent(plan['confidence'])} confidence every verdict is right, of all "
        f"{plan['cells']} sparsities of the grids, in steps of {percent(plan['resolution'])}; "
        f"{plan['trials']} trials a width.",
        "Between the two ends, why the frontier is not known better: the gap's bracket (no number "
        "of trials would decide), too few trials, or the grid's step.",
        "Theorem: certified, no sampling. Infinite width: an estimate, a typical gap at one input.",
    ]


def plot(result: dict[str, Any]) -> Figure:
    """Brackets of the frontier by width, between the theorem's line and infinite width's."""
    plan, points = result["plan"], result["points"]
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    ax = figure.add_subplot()
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
    ax.set_xticks(widths, [str(d) for d in widths])
    ax.set_xlabel("width")
    ax.set_ylabel(f"sparsity of {', '.join(plain(name) for name in plan['layers'])}"[:60])
    ax.set_title(plain(_title(plan)), fontsize=9, parse_math=False)
    ax.legend(fontsize=7.5, loc="best")
    return figure


def _title(plan):
    return (
        f"Pruning frontier: {plan['pruning']}, ε = {plan['eps']:g}, δ = {plan['delta']:g}; "
        f"{law(plan)}"
    )


def _sparsity(value, rounded):
    return "–" if value is None else f"{rounded(100 * value)} %"


def _columns(pairs):
    return ([a for a, _ in pairs], [b for _, b in pairs])

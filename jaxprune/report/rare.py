"""The result of `studies.rare` as a table and a plot; nothing is computed here."""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.report.words import law, number, number_down, number_up, percent, plain
from jaxprune.statistics.splitting import EXTINCT, MIXING, SPREAD, UNRELIABLE

DOUBTS = {
    MIXING: "twice the moves change the estimate",
    SPREAD: "replicas scatter too much",
    EXTINCT: "a replica died out",
}


def render(result: dict[str, Any], console: Console) -> None:
    """Prints one row an end of the bracket, then what the columns mean and what is proved."""
    plan = result["plan"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("P(end > ε)")
    for name in (
        "estimate",
        "limits",
        "by replicas\nof half the moves",
        "trials that\nwould certify",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checks")
    for end, found in result["ends"].items():
        short = found["short_replicas"]
        trials = found["certifying_trials"]
        table.add_row(
            f"{end} end",
            number(found["p"]),
            f"{number_down(found['low'])} – {number_up(found['high'])}",
            number(sum(short) / len(short)),
            "> 10^12" if trials is None else f"{trials:,}",
            _checks(found),
        )
    console.print()
    console.print(Text(plain(_title(plan)), style="bold"))
    console.print(table)
    for line in caption(result):
        console.print(Text(plain(line)), soft_wrap=False)


def caption(result: dict[str, Any]) -> list[str]:
    """What the columns mean, what they do not, and what the theorems say."""
    plan = result["plan"]
    proved = "no theorem here bounds P(gap > ε) below 1"
    if result["theorem"] is not None:
        proved = f"certified by theorem: P(gap > ε) ≤ {number_up(result['theorem'])}"
    return [
        f"Gap: sup ‖F(x) − f(x)‖ over the unit ball; pruned: {', '.join(plan['layers'])}. "
        "P(gap > ε) lies between the probabilities of the two ends; a pair that is not finite "
        "counts as above ε at the upper end only.",
        f"All of this is estimated: limits are Student's, {percent(plan['confidence'])} each, and "
        "about right if the moves mix. A part of the event that the replicas never met is not "
        "seen, whatever the checks say.",
        "Trials that would certify: so many independent pairs without a failure show, at the "
        "confidence of the limits, a probability at most the upper limit.",
        f"Beside it, {proved}.",
    ]


def plot(result: dict[str, Any]) -> Figure:
    """Every replica's estimate, both numbers of moves, with the limits of each end."""
    plan, ends = result["plan"], result["ends"]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    ax = figure.add_subplot()
    for row, found in enumerate(ends.values()):
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
    ax.set_yticks(range(len(ends)), [f"{end} end" for end in ends])
    ax.set_ylim(-0.6, len(ends) + 0.3)
    ax.set_xlabel(f"P(end of the gap's bracket > {plan['eps']:g}), estimated")
    ax.set_title(plain(_title(plan)), fontsize=9, parse_math=False)
    ax.legend(fontsize=7.5, loc="upper left", ncols=2)
    return figure


def _title(plan):
    return (
        f"{plan['network']}: {plan['pruning']}, {plan['amount']}, ε = {plan['eps']:g}; {law(plan)}"
    )


def _checks(found):
    doubts = ", ".join(DOUBTS[doubt] for doubt in found["doubts"])
    return f"{UNRELIABLE}: {doubts}" if doubts else "none failed"

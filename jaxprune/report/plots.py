"""Plots of a result. Every function takes and returns Matplotlib axes and computes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxprune.report.words import drawn, number_up, target
from jaxprune.statistics import ESTIMATED, HOLDS, UNDECIDED, VIOLATED

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MARKERS = ("o", "s", "^", "D", "v", "P")
VERDICT_MARKERS = {
    HOLDS: ("o", "#1b7837"),
    UNDECIDED: ("d", "#b8860b"),
    VIOLATED: ("x", "#b2182b"),
}
EXPLORATORY_MARKERS = {ESTIMATED: ("s", "#555555")}


def gap_against_width(
    ax: Axes, cells: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]] = ()
) -> Axes:
    """Brackets of the gap by width, one colour and marker per pruning and amount.

    Bars run from the 5 % quantile of the lower bound to the 95 % quantile of the upper; markers
    are the medians of the two. Lines: certified epsilon (dashed), for one input the typical gap of
    an infinitely wide network (dotted), and power laws fitted to the medians (solid).

    Args:
      ax: to draw on.
      cells: of one experiment; several cells of one case are drawn once.
      fits: of the result's `exponents`, those of the experiment.
    """
    series, lines = _series(cells, "pruning", "amount", "domain"), set()
    for i, (name, group) in enumerate(series.items()):
        group = sorted({c["network"]: c for c in group}.values(), key=_width)
        # Side by side at each width.
        x = [_width(c) * 1.06 ** (i - (len(series) - 1) / 2) for c in group]
        color = _brackets(ax, x, group, name, i)
        for key, (style, _) in _THEORY.items():
            if all(cell[key] is not None for cell in group):
                y = [c[key] if key == "certified_eps" else _typical(c) for c in group]
                ax.plot(
                    [_width(c) for c in group],
                    y,
                    style,
                    color=color,
                    marker=MARKERS[i % len(MARKERS)],
                    ms=2.5,
                    lw=1,
                )
                lines.add(key)
        for fit in fits:
            if family(fit) == family(group[0]):
                _power_laws(ax, fit, color)
    _upper_in_legend(ax)
    for style, label in (_THEORY[key] for key in _THEORY if key in lines):
        ax.plot([], [], style, color="grey", lw=1, label=label)
    if any(fit["median_lower"] or fit["median_upper"] for fit in fits):
        ax.plot([], [], "-", color="grey", lw=0.8, label="power laws fitted to the medians")
    ax.set_xscale("log", base=2)
    _log(ax, "y")
    widths = sorted({_width(cell) for cell in cells})
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.set_xlabel("width (channels)" if "conv" in cells[0]["network"] else "width (neurons)")
    ax.set_ylabel("gap, ‖F(x) − f(x)‖")
    _title(ax, cells[0]["experiment"])
    ax.legend(fontsize=6.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return ax


_THEORY = {
    "certified_eps": ("--", "certified ε"),
    "mean_squared_gap_infinite_width": (":", "one input, infinite width"),
}
"""Keys of cells drawn as lines: their style and what the legend says."""


def gap_against_sparsity(ax: Axes, cells: Sequence[dict[str, Any]]) -> Axes:
    """Brackets of the gap of trained networks by sparsity.

    Each method, domain and network has a colour and a marker.

    Bars and markers as in `gap_against_width`; text gives the change in accuracy.
    """
    series = _series(cells, "pruning", "domain", "network")
    for i, (name, group) in enumerate(series.items()):
        group = {c["sparsity"]: c for c in group}
        group = [group[q] for q in sorted(group)]
        x = [100 * c["sparsity"] + 1.6 * (i - (len(series) - 1) / 2) for c in group]
        color = _brackets(ax, x, group, name, i)
        tops = _quantiles(group, "gap_upper_quantiles", "0.95")
        for xi, yi, cell in zip(x, tops, group, strict=True):
            if math.isfinite(yi) and cell["accuracy_change"] is not None:
                ax.annotate(
                    f"{100 * cell['accuracy_change']:+.1f} pt",
                    (xi, yi),
                    (0, 3),
                    textcoords="offset points",
                    ha="right" if i == 0 else "left",
                    fontsize=6.5,
                    color=color,
                )
    _upper_in_legend(ax)
    _log(ax, "y")
    ax.margins(x=0.15, y=0.12)
    ax.set_xlabel("sparsity of the pruned layers (%)")
    ax.set_ylabel("gap (logits)")
    _title(ax, f"{cells[0]['experiment']}; change in accuracy")
    ax.legend(fontsize=6.5)
    return ax


def survival(ax: Axes, cell: dict[str, Any]) -> Axes:
    """Share of one case's trials whose gap exceeds t, by lower and by upper bound.

    Dots are the result's quantiles, known to 0.8 %; lines only join them. The band holds
    P(gap > t) at every t together: between the epsilons of the case it goes on as a survival
    function must, that never rises. The star is the theorem: at most delta above certified epsilon.
    """
    for side, style in (("lower", ".-"), ("upper", "s--")):
        quantiles = cell[f"gap_{side}_quantiles"].items()
        points = [(v, 1 - float(p)) for p, v in quantiles if v is not None]
        values, shares = [v for v, _ in points], [share for _, share in points]
        ax.plot(values, shares, style, ms=4, mfc="none", label=f"{side} bound of the gap")
    _log(ax, "x")
    ax.axhline(cell["delta"], color="grey", lw=0.8, ls=":", label=f"δ = {cell['delta']:g}")
    if cell["certified_eps"]:
        label = f"certified: P(gap > {number_up(cell['certified_eps'])}) ≤ δ"
        ax.axvline(cell["certified_eps"], color="k", lw=0.8, ls="-.")
        ax.plot(cell["certified_eps"], cell["delta"], "k*", ms=8, label=label)
    if cell["survival"]:
        _band(ax, cell)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("gap t, ‖F(x) − f(x)‖ (quantiles: to 0.8 %)")
    ax.set_ylabel("share of trials above t; limits of P(gap > t)")
    _title(ax, f"{target(cell)}: {cell['pruning']}, {cell['amount']}")
    ax.legend(fontsize=6.5)
    return ax


def limits(ax: Axes, cells: Sequence[dict[str, Any]]) -> Axes:
    """Confidence limits of P(gap <= eps) of every claim against the 1 - delta that it needs."""
    exploratory = any(cell["verdict"] == ESTIMATED for cell in cells)
    markers = EXPLORATORY_MARKERS if exploratory else VERDICT_MARKERS
    for verdict, (marker, color) in markers.items():
        rows = [(i, cell) for i, cell in enumerate(cells, 1) if cell["verdict"] == verdict]
        ax.hlines(
            [i for i, _ in rows],
            [cell["p_low"] for _, cell in rows],
            [cell["p_high"] for _, cell in rows],
            color=color,
            lw=1.4,
        )
        for key in ("p_low", "p_high"):
            ax.plot(
                [cell[key] for _, cell in rows], [i for i, _ in rows], marker, color=color, ms=3
            )
        ax.plot([], [], marker, color=color, label=f"{verdict} ({len(rows)})")
    ax.axvline(1 - cells[0]["delta"], color="grey", lw=0.8, ls=":", label="1 − δ")
    ax.set_ylim(len(cells) + 0.5, 0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(f"P(gap ≤ ε), one-sided {100 * cells[0]['confidence']:g} % limits")
    ax.set_ylabel("claim, by its number in the table")
    ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return ax


def last_of_series(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last case of each pruning, amount and domain: that of the largest width, as plans go."""
    return list({family(cell): cell for cell in cells}.values())


def family(row: dict[str, Any]) -> tuple[str, str, str]:
    """Pruning, amount and domain of a cell, or of a fit through the cells that share them."""
    return row["pruning"], row["amount"], row["domain"]


def _band(ax, cell):
    """Grey, between limits at some epsilons; above 0 and below 1 beyond them."""
    known = sorted(cell["survival"], key=lambda at: at["eps"])
    left, right = ax.get_xlim()
    inner = [at["eps"] for at in known]
    left, right = min(left, 0.8 * inner[0]), max(right, 1.25 * inner[-1])
    edges = [left, *inner, right]
    t = [x for pair in itertools.pairwise(edges) for x in pair]
    low = [x for x in (*(at["low"] for at in known), 0.0) for _ in range(2)]
    high = [x for x in (1.0, *(at["high"] for at in known)) for _ in range(2)]
    label = f"P(gap > t), {100 * cell['confidence']:g} % limits together"
    ax.fill_between(t, low, high, color="0.5", alpha=0.22, lw=0, label=label)
    ax.vlines(inner, [at["low"] for at in known], [at["high"] for at in known], "k", lw=1.4)
    for end in ("low", "high"):
        ax.plot(inner, [at[end] for at in known], "k_", ms=7)
    ax.set_xlim(left, right)


def _power_laws(ax, fit, color):
    """Of both medians, over the widths that were fitted."""
    widths = [min(fit["widths"]), max(fit["widths"])]
    for key in ("median_lower", "median_upper"):
        if law := fit[key]:
            y = [math.exp(law["intercept"] + law["slope"] * math.log(d)) for d in widths]
            ax.plot(widths, y, "-", color=color, lw=0.8, alpha=0.7)


def _log(ax, axis):
    """A log axis; where no number is finite and positive there is none, and a note says so."""
    low, high = (ax.dataLim.minposx, ax.dataLim.x1) if axis == "x" else (
        ax.dataLim.minposy, ax.dataLim.y1)  # fmt: skip
    if not math.isfinite(low):
        note = "no finite, positive gap to draw"
        ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", color="grey")
        return
    ax.set(**{f"{axis}scale": "log"})
    if high < 100 * low:  # powers of ten alone would be too few, every tenth too many
        ticks_1_2_5(ax.xaxis if axis == "x" else ax.yaxis)


def ticks_1_2_5(axis: Axis) -> None:
    """Labels 1, 2, 5, 10, ... on a log axis of few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _brackets(ax, x, cells, name, i):
    """Bars and medians of one series; returns its colour."""
    color, marker = f"C{i}", MARKERS[i % len(MARKERS)]
    low = _quantiles(cells, "gap_lower_quantiles", "0.05")
    high = _quantiles(cells, "gap_upper_quantiles", "0.95")
    ax.vlines(x, low, high, color=color, lw=1.2, alpha=0.8)
    for side, filled in (("lower", True), ("upper", False)):
        ax.plot(
            x,
            _quantiles(cells, f"gap_{side}_quantiles", "0.5"),
            marker,
            color=color,
            mfc=color if filled else "none",
            ms=5,
            label=name if filled else None,
        )
    return color


def _upper_in_legend(ax):
    """One entry for the open markers of all series: entries cost more time than what they name."""
    ax.plot([], [], "o", color="grey", mfc="none", ms=5, label="open: median upper bound")


def _series(cells, *keys):
    """Cells by those of the keys in which they differ; the name of a series is their values."""
    varying = [key for key in keys if len({cell[key] for cell in cells}) > 1] or keys[:1]
    series: dict[str, list] = {}
    for cell in cells:
        name = drawn(" ".join(cell[key].split(",")[0] for key in varying))
        series.setdefault(name, []).append(cell)
    return series


def _title(ax, text):
    ax.set_title(drawn(text, 90), fontsize=9, y=1.0)  # nothing above it to be measured


def _width(cell):
    return cell["widths"][1]


def _typical(cell):
    outputs = cell["widths"][-1]
    return math.sqrt(cell["mean_squared_gap_infinite_width"] * outputs)


def _quantiles(cells, key, p):
    return [math.nan if cell[key][p] is None else cell[key][p] for cell in cells]

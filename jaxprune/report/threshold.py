"""The result of `studies.threshold` in words, tables and plots; nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxprune.report.section import Cell, Drawing, Section, Table, at_most
from jaxprune.report.words import (
    between,
    claim_of,
    judged_cells,
    judged_names,
    law,
    number,
    percent,
)

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes

KINDS = {
    "gap": ("gap", "C0", "solid", 1.0),
    "lower end": ("lower end of its bracket alone", "C2", "dashed", 1.02),
    "upper end": ("upper end alone", "C3", "dotted", 0.98),
}
_NAMES = {"infinite_width": "infinite width, estimated"}
LINES = {
    "theorem": ("theorem", "k--"),
    "infinite_width": ("infinite width (one input, an estimate)", "k:"),
}


def sections(result: dict[str, Any]) -> list[Section]:
    """One: the claim, brackets of the least width, its exponents, the plots."""
    drawings, notes = [], _notes(result["plan"])
    for variable, sign in (("eps", "ε"), ("delta", "δ")):
        rows, cut = at_most(_along(result, variable), f"values of {sign}")
        shown = result | {"thresholds": rows}
        draw = lambda ax, shown=shown, variable=variable: plot(ax, shown, variable)
        drawings.append(Drawing(f"The threshold width against 1/{sign}", draw, 6.4, 5.2))
        notes += cut
    return [
        Section(
            _title(result["plan"]),
            text=_found(result),
            drawings=drawings,
            tables=[_thresholds(result), _exponents(result), _cells(result)],
            notes=notes,
        )
    ]


def _found(result):
    plan = result["plan"]
    pruned = f"by {plan['amount']} weights of {', '.join(plan['layers'])}"
    yield f"Claim: {claim_of('δ', 'ε', pruned)}. d*: the least width at which that is so."
    for row in result["exponents"]:
        if (row["of"], row["kind"]) == ("1/eps", "gap") and row["estimate"] is not None:
            low, high = between(row["low"], row["high"])
            yield (
                f"At δ = {plan['delta']:g} the slope of log d* in log 1/ε is "
                f"{_exponent(row['estimate'])}, between {low} and {high} with "
                f"{percent(plan['confidence'])} confidence, from {row['points']} values of ε."
            )


def _notes(plan):
    confidence = percent(plan["confidence"])
    twice = percent(1.0 - 2.0 * (1.0 - plan["confidence"]))
    pilot = " ε: picked by a pilot of other trials." if plan["eps_source"] == "pilot" else ""
    return [
        "d*: more than the first number and at most the second; – where no width simulated shows "
        "it. The same for either end of the gap's bracket in the gap's place. Theorem: certified, "
        "no sampling. Infinite width: an estimate.",
        f"With {confidence} confidence every verdict is right, of all {plan['cells']} cells "
        f"(width, ε, δ); {plan['trials']} trials a width.{pilot} That d* exceeds a violated width "
        "assumes that smaller widths are violated too.",
        "Exponents: least-squares slopes of log d*. Limits: of the true d*'s slope, at the same "
        f"confidence, no power law assumed. With scatter: t limits of a power law that the d* "
        f"scatter about, over all values in the brackets, {twice} together with the verdicts.",
    ]


def plot(ax: Axes, result: dict[str, Any], variable: str) -> Axes:
    """Brackets of d*, with the theorem's and infinite width's lines.

    Args:
      ax: to draw on.
      result: of the study.
      variable: "eps", against 1/ε, or "delta", against 1/δ.
    """
    plan, rows = result["plan"], _along(result, variable)
    x = [1.0 / t[variable] for t in rows]
    for kind, (label, color, style, shift) in KINDS.items():
        at = [s * shift for s in x]
        above, most = ([t[kind][end] for t in rows] for end in ("above", "most"))
        closed = [i for i in range(len(rows)) if above[i] and most[i]]
        ax.vlines(
            [at[i] for i in closed],
            [above[i] for i in closed],
            [most[i] for i in closed],
            color=color,
            linestyle=style,
            lw=3 if kind == "gap" else 1.4,
            label=f"{label}: exponent {_estimate(result, variable, kind)}",
        )
        # A bracket that is open on one side is an arrow that points there.
        for known, other, arrow in ((above, most, "^"), (most, above, "v")):
            for i, d in enumerate(known):
                if d:
                    open_end = other[i] is None
                    ax.plot(at[i], d, arrow if open_end else "_", color=color, ms=6, mfc="none")
    for kind, (label, style) in LINES.items():
        known = [(s, t[kind]) for s, t in zip(x, rows, strict=True) if t[kind]]
        estimate = _estimate(result, variable, kind)
        label = f"{label}: exponent {estimate}" if estimate else label
        ax.plot([s for s, _ in known], [d for _, d in known], style, marker=".", lw=1, label=label)
    if plan["alpha"]:
        _paper(ax, x, rows, plan)
    ax.set_xscale("log")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda d, _: f"{d:g}")
    ax.minorticks_off()
    values = [t[variable] for t in rows]
    ax.set_xticks(x, [f"1/{v:g}" for v in values], rotation=45)
    ax.set_xlabel("1/ε" if variable == "eps" else "1/δ")
    ax.set_ylabel("width (neurons)")
    fixed = f"δ = {plan['delta']:g}" if variable == "eps" else f"ε = {plan['eps_of_deltas']:g}"
    ax.set_title(fixed, fontsize=9, y=1.0)
    ax.plot([], [], "k^", mfc="none", ms=5, ls="", label="arrows: open on that side")
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return ax


def _paper(ax, x, rows, plan):
    """A line of the paper's slope 1/alpha, up to the top of the axis; its place means nothing."""
    start = min((t["gap"]["most"] for t in rows if t["gap"]["most"]), default=plan["widths"][0])
    top = max([*plan["widths"], *(t["theorem"] or 0 for t in rows)])
    end = min(max(x), min(x) * (top / start) ** plan["alpha"])
    slope = 1.0 / plan["alpha"]
    ax.plot(
        [min(x), end],
        [start, start * (end / min(x)) ** slope],
        color="grey",
        lw=1,
        label=f"slope of the paper's 1/α = {slope:g}",
    )


def _along(result, variable):
    """The thresholds of one axis, by rising 1/variable."""
    plan = result["plan"]
    fixed, at = ("delta", plan["delta"]) if variable == "eps" else ("eps", plan["eps_of_deltas"])
    rows = [t for t in result["thresholds"] if t[fixed] == at]
    return sorted(rows, key=lambda t: -t[variable])


def _estimate(result, variable, kind):
    for row in result["exponents"]:
        if (row["of"], row["kind"]) == (f"1/{variable}", kind):
            if row["estimate"] is None:
                return "unknown"
            exact = row["low"] == row["high"]
            limits = "" if exact else f" ({' to '.join(between(row['low'], row['high']))})"
            return f"{_exponent(row['estimate'])}{limits}"
    return ""


def _thresholds(result):
    names = (
        "ε", "δ", "d*", "of lower ends", "of upper ends", "theorem", "infinite width,\nestimated",
    )  # fmt: skip
    rows = [
        [
            Cell(number(t["eps"]), t["eps"]),
            Cell(number(t["delta"]), t["delta"]),
            *(Cell(_bracket(t[kind]), t[kind]["most"]) for kind in KINDS),
            *(Cell(str(t[key] or "–"), t[key]) for key in LINES),
        ]
        for t in result["thresholds"]
    ]
    return Table(names, rows)


def _bracket(ends):
    return f"{number(ends['above'])} to {number(ends['most'])}"


def _exponents(result):
    names = ("exponent of d* in", "of", "estimate", "limits", "with scatter", "points")
    rows = []
    for row in result["exponents"]:
        pairs = [(row.get(a), row.get(b)) for a, b in _LIMITS]
        limits = [
            Cell("–", None) if None in pair else Cell(" to ".join(between(*pair)), pair[0])
            for pair in pairs
        ]
        estimate, points = row["estimate"], row.get("points")
        rows.append(
            [
                row["of"],
                _NAMES.get(row["kind"], row["kind"]),
                Cell("–" if estimate is None else _exponent(estimate), estimate),
                *limits,
                Cell("" if points is None else str(points), points),
            ]
        )
    return Table(names, rows, left=["exponent of d* in"], group=1)


def _exponent(value):
    return f"{round(value, 2) + 0.0:.2f}"


def _cells(result):
    rows = [
        [
            *(Cell(number(cell[key]), cell[key]) for key in ("width", "eps", "delta")),
            *judged_cells(cell),
        ]
        for cell in result["cells"]
    ]
    names = ("width", "ε", "δ", *judged_names(result["plan"]["confidence"]))
    return Table(names, rows, left=["verdict"], title=f"{len(rows)} verdicts")


_LIMITS = (("low", "high"), ("scatter_low", "scatter_high"))


def _title(plan):
    return f"Threshold width: {plan['pruning']}, {plan['amount']} weights a layer; {law(plan)}"

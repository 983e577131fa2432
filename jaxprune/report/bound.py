"""The result of `studies.bound` in words, tables and a plot; nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxprune.report.plots import ticks_1_2_5
from jaxprune.report.section import BEST, Cell, Drawing, Section, Table, at_most
from jaxprune.report.words import MOST_DRAWN, claim_of, drawn, number, number_down, number_up

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes

ROUTES = {
    "norms": "products of norms (theorem 6)",
    "images": "images of the ball (theorem 8)",
}
_SPREAD = "spread"
_MARKERS = "osD^v<>PX*"


def sections(result: dict[str, Any]) -> list[Section]:
    """One a method, its certificate, its events, the norms, and what else is known; then what the
    words mean."""
    references = _references(result["methods"])
    said = [f"{name}: {reference}." for name, reference in references.items()]
    if _SPREAD in references:
        said.append("Spread: how many standard deviations above its mean a supremum may lie.")
    return [
        *(_method(result["plan"], method) for method in result["methods"]),
        Section("What the words mean", notes=[*_CAPTION, *said]),
    ]


def _method(plan, method):
    tables, drawings, notes = [], [], []
    if method["certificate"]["events"]:
        tables += [_events(method["certificate"]), _norms(method["norms"])]
    if any(row["bounds"] for row in method["norms"]):
        drawing, notes = _drawing(method["norms"])
        drawings.append(drawing)
    if method["inverses"]:
        tables.append(_inverses(plan, method["inverses"]))
    return Section(
        f"{plan['network']}: {method['pruning']}, {plan['amount']}, δ = {plan['delta']:g}",
        text=list(_found(plan, method)),
        drawings=drawings,
        tables=tables,
        notes=notes,
    )


def _drawing(norms):
    """The plot of so many norms and theorems as one shows, and notes on the others."""
    norms, cut = at_most(norms, "norms")
    names = dict.fromkeys(_theorem(answer["name"]) for row in norms for answer in row["bounds"])
    shown, more = at_most(list(names), "theorems", len(_MARKERS))
    norms = [
        row | {"bounds": [a for a in row["bounds"] if _theorem(a["name"]) in shown]}
        for row in norms
    ]
    left = 0.4 + 0.085 * min(MOST_DRAWN, max(len(_label(row)) for row in norms))
    draw = lambda ax: plot(ax, {"norms": norms})
    return Drawing("Every norm bound", draw, left + 4.5, 1.0 + 0.9 * len(norms), left), cut + more


def _label(row):
    return f"{', '.join(row['layers'])}: {row['matrix']}"


_CAPTION = (
    "Certified: theorems, no sampling (proofs in jaxprune/bounds/README.md).",
    "Norms: each theorem's answer at δ by itself, the least first.",
    "Typical distance: root mean square at one input, at infinite width: an estimate, and below "
    "the gap, which is a supremum over inputs.",
)


def _found(plan, method):
    certificate, limit, paper = method["certificate"], method["infinite_width"], method["paper"]
    pruned = f"in {', '.join(plan['layers'])}"
    yield (
        f"Certified by {ROUTES[certificate['route']]}: "
        f"{claim_of(plan['delta'], number_up(certificate['eps']), pruned)}."
    )
    if limit:
        correlation = limit["correlation"]
        yield (
            f"Typical distance at one input {number(limit['typical_gap'])}, correlation of target "
            f"and pruned outputs {'none' if correlation is None else f'{correlation:.4f}'}."
        )
    unmet = [h["name"] for h in paper["hypotheses"] if not h["met"]]
    name = paper["theorem"] or "no theorem of the paper speaks of this case"
    yield (
        f"Paper: {name}; {'not met: ' + '; '.join(unmet) if unmet else 'all hypotheses met'}. "
        "Its constants C1 to C6 have no numbers."
    )
    for name, (low, high) in method["thresholds"].items():
        yield (
            f"Threshold of {name}: between {number_down(low)} and {number_up(high)}, either end "
            f"passed with probability {plan['delta']:g}."
        )


def _down(sparsity):
    return f"{number_down(100 * sparsity)} %"


def _events(certificate):
    rows = [
        [
            event["layer"],
            event["what"],
            Cell(number(event["delta"]), event["delta"]),
            Cell(number_up(event["value"]), event["value"]),
            _SPREAD if event["name"] == "deviations" else event["name"],
        ]
        for event in certificate["events"]
    ]
    names = ("layer", "what is bounded", "δ", "bound", "by")
    return Table(names, rows, left=["layer", "what is bounded", "by"])


def _norms(norms):
    rows = []
    for row in norms:
        for i, answer in enumerate(row["bounds"]):
            style = BEST if i == 0 else ""
            mean = answer["mean"]
            rows.append(
                [
                    Cell(", ".join(row["layers"]), style=style),
                    Cell(row["matrix"], style=style),
                    Cell("–" if mean is None else number_up(mean), mean, style),
                    Cell(number_up(answer["value"]), answer["value"], style),
                    Cell(answer["name"], style=style),
                ]
            )
    names = ("layers", "matrix", "mean", "bound", "theorem")
    return Table(names, rows, left=["layers", "matrix", "theorem"], group=2)


def _inverses(plan, inverses):
    """Each row's two answers side by side."""
    names = (f"for ε = {plan['eps']:g}", "certified gap", "typical distance,\nestimated")
    rows = []

    def row(name, answers, words):
        found = (answers["theorem"], answers["infinite_width"])
        rows.append([name, *("–" if answer is None else words(answer) for answer in found)])

    row("P(gap > ε) at most", inverses["least_delta"], number_up)
    if width := inverses["least_width"]:
        row(f"least d of {'-'.join(map(str, width['widths']))}, {plan['amount']}", width, str)
    row("largest common sparsity", inverses["largest_sparsity"], _down)
    amounts = inverses["largest_amounts"]
    for name in plan["layers"]:
        row(
            f"layer by layer: weights of {name}",
            amounts,
            lambda x, name=name: str(x["removed"].get(name, "–")),
        )
    row("layer by layer: sparsity of all", amounts, lambda answer: _down(answer["sparsity"]))
    return Table(names, rows, left=names[:1])


def plot(ax: Axes, method: dict[str, Any]) -> Axes:
    """Every theorem's bound of every norm at delta, and those of which the certificate is made.

    Args:
      ax: to draw on.
      method: one of the result's.
    """
    answers = [
        (_theorem(answer["name"]), answer["value"], at)
        for at, row in enumerate(method["norms"])
        for answer in row["bounds"]
    ]
    names = list(dict.fromkeys(name for name, *_ in answers))
    labels = [drawn(_label(row)) for row in method["norms"]]
    for i, name in enumerate(names):
        found = [(value, at) for theorem, value, at in answers if theorem == name]
        # Apart, so that equal bounds are seen.
        shift = 0.5 * (i / max(len(names) - 1, 1) - 0.5)
        x, y = zip(*found, strict=True)
        marker = _MARKERS[i % len(_MARKERS)]
        ax.plot(
            x, [v + shift for v in y], marker, color=f"C{i % 10}", mfc="none", label=drawn(name)
        )
    ax.set_xscale("log")
    ticks_1_2_5(ax.xaxis)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x", lw=0.3)
    ax.set_xlabel("operator norm, at most, each with probability at least 1 − δ")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def _references(methods):
    """Of every theorem used, by its name without its order."""
    found = {}
    for method in methods:
        rows = [answer for row in method["norms"] for answer in row["bounds"]]
        for answer in method["certificate"]["events"] + rows:
            found[_theorem(answer["name"])] = answer["reference"]
    return found


def _theorem(name):
    return _SPREAD if name == "deviations" else name.split(", p = ")[0]

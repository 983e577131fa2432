"""The result of `studies.bound` on the terminal; nothing is computed here."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.report.words import number, number_down, number_up, plain

ROUTES = {
    "norms": "products of norms (theorem 6)",
    "images": "images of the ball (theorem 8)",
}
_SPREAD = "spread"
_NUMBERS = ("δ", "bound", "mean", "certified gap", "typical distance")


def render(result: dict[str, Any], console: Console) -> None:
    """Prints, for each method, the certificate, its events, the norms, and what else is known."""
    plan = result["plan"]
    for method in result["methods"]:
        title = f"{plan['network']}: {method['pruning']}, {plan['amount']}, δ = {plan['delta']:g}"
        console.print()
        console.print(Text(plain(title), style="bold"))
        for line in _sentences(plan, method):
            console.print(Text(plain(line)))
        console.print()
        if method["certificate"]["events"]:
            console.print(_events(method["certificate"]))
            console.print(_norms(method["norms"]))
        if method["inverses"]:
            console.print(_inverses(plan, method["inverses"]))
    console.print(Text(_CAPTION))
    for name, reference in _references(result["methods"]).items():
        console.print(Text(plain(f"{name}: {reference}.")))


_CAPTION = (
    "Certified: theorems, no sampling (proofs in jaxprune/bounds/README.md). Spread: how many "
    "standard deviations above its mean a supremum may lie. Norms: each theorem's answer at δ by "
    "itself, the least first. Typical distance: root mean square at one input, at infinite width: "
    "an estimate, and below the gap, which is a supremum over inputs."
)


def _sentences(plan, method):
    certificate, limit, paper = method["certificate"], method["infinite_width"], method["paper"]
    yield (
        f"P(gap ≤ {number_up(certificate['eps'])}) ≥ 1 − {plan['delta']:g}, certified by "
        f"{ROUTES[certificate['route']]}."
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
    table = _table("layer", "what is bounded", "δ", "bound", "by")
    for event in certificate["events"]:
        table.add_row(
            event["layer"],
            event["what"],
            number(event["delta"]),
            number_up(event["value"]),
            _SPREAD if event["name"] == "deviations" else event["name"],
        )
    return table


def _norms(rows):
    table = _table("layers", "matrix", "mean", "bound", "theorem")
    for row in rows:
        for i, answer in enumerate(row["bounds"]):
            table.add_row(
                ", ".join(row["layers"]) if i == 0 else "",
                row["matrix"] if i == 0 else "",
                "–" if answer["mean"] is None else number_up(answer["mean"]),
                number_up(answer["value"]),
                answer["name"],
                style="bold" if i == 0 else None,
            )
    return table


def _inverses(plan, inverses):
    """Each row's two answers side by side."""
    table = _table(f"for ε = {plan['eps']:g}", "certified gap", "typical distance")

    def row(name, answers, words):
        found = (answers["theorem"], answers["infinite_width"])
        table.add_row(name, *("–" if answer is None else words(answer) for answer in found))

    row("P(gap > ε) at most", inverses["least_delta"], number_up)
    if width := inverses["least_width"]:
        row(f"least d of {'-'.join(map(str, width['widths']))}, {plan['amount']}", width, str)
    row("largest common sparsity", inverses["largest_sparsity"], _down)
    amounts = inverses["largest_amounts"]
    for name in plan["layers"]:
        row(
            f"layer by layer: weights of {name}",
            amounts,
            lambda x, name=name: str(x["removed"][name]),
        )
    row("layer by layer: sparsity of all", amounts, lambda answer: _down(answer["sparsity"]))
    return table


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


def _table(*names):
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    return table

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


def render(result: dict[str, Any], console: Console) -> None:
    """Prints, for each method, the certificate, its events, the norms, and what else is known."""
    plan = result["plan"]
    for method in result["methods"]:
        title = f"{plan['network']}: {method['pruning']}, {plan['amount']}, δ = {plan['delta']:g}"
        console.print()
        console.print(Text(plain(title), style="bold"))
        for line in _sentences(plan, method):
            console.print(Text(plain(line)))
        if method["certificate"]["events"]:
            console.print()
            console.print(_events(method["certificate"]))
            console.print(_norms(method["norms"]))
    console.print(Text(_CAPTION))


_CAPTION = (
    "Certified: theorems, no sampling (proofs in jaxprune/bounds/README.md). Spread: how many "
    "standard deviations above its mean a supremum may lie. Norms: each theorem's answer at δ by "
    "itself, the least first. Typical: one input, infinite width, an estimate."
)


def _sentences(plan, method):
    certificate, limit, paper = method["certificate"], method["infinite_width"], method["paper"]
    yield (
        f"P(gap ≤ {number_up(certificate['eps'])}) ≥ {1 - plan['delta']:.12g}, certified by "
        f"{ROUTES[certificate['route']]}."
    )
    if limit:
        yield (
            f"Typical gap at one input {number(limit['typical_gap'])}, correlation of target and "
            f"pruned outputs {limit['correlation']:.4f}."
        )
    unmet = [h["name"] for h in paper["hypotheses"] if not h["met"]]
    name = paper["theorem"] or "no theorem of the paper speaks of this case"
    yield (
        f"Paper: {name}; {'not met: ' + '; '.join(unmet) if unmet else 'all hypotheses met'}. "
        "Its constants C1 to C6 have no numbers."
    )
    if inverses := method["inverses"]:
        yield from _inverse_sentences(plan["eps"], inverses)


def _inverse_sentences(eps, inverses):
    sparsity, amounts = inverses["largest_sparsity"], inverses["largest_amounts"]
    yield (
        f"Gap at most {eps:g}: common sparsity up to {_down(sparsity['theorem'])} certified"
        f"{_typical(sparsity['infinite_width'], _down)}."
    )
    removed = ", ".join(f"{name} {count}" for name, count in amounts["removed"].items())
    yield f"Layer by layer, certified: {removed} weights ({_down(amounts['sparsity'])} of them)."
    if widths := inverses["least_width"]:
        found = widths["theorem"]
        least = f"width {found}" if found else "no width up to 65536"
        yield f"With this amount: {least} certified{_typical(widths['infinite_width'], str)}."


def _down(sparsity):
    return f"{number_down(100 * sparsity)} %"


def _typical(value, words):
    return "" if value is None else f", {words(value)} typical"


def _events(certificate):
    table = _table("layer", "what is bounded", "δ", "bound", "by")
    for event in certificate["events"]:
        spread = event["name"] == "deviations"
        table.add_row(
            event["layer"],
            event["what"],
            number(event["delta"]),
            number_up(event["value"]),
            "spread" if spread else event["name"],
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


def _table(*names):
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in ("δ", "bound", "mean") else "left")
    return table

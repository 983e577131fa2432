"""A result as one self-contained HTML page, and the folder around it."""

import errno
import io
import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxprune.files import whole
from jaxprune.report import bound, frontier, plots, rare, threshold
from jaxprune.report.document import (
    Cell,
    Drawing,
    document,
    encoded,
    facts,
    folded,
    lines,
    paragraph,
    picture,
    pictures,
    table,
    text,
)
from jaxprune.report.reading import VERIFY, kind
from jaxprune.report.words import (
    caption,
    claim,
    eps,
    limits,
    number,
    number_up,
    slope,
    summary,
)

WORDS = {"frontier": frontier, "threshold": threshold, "rare": rare, "bound": bound}
TITLES = {
    "frontier": "Pruning frontier: the largest sparsity with P(gap ≤ ε) ≥ 1 − δ at each width",
    "threshold": "Threshold width: the least width with P(gap ≤ ε) ≥ 1 − δ, and its exponents",
    "rare": "Rare failures: P(gap > ε), estimated",
    "bound": "Certified gaps: P(gap ≤ ε) ≥ 1 − δ by theorems, no sampling",
}
MAX_CURVES = 4
"""Survival curves of an experiment, one a pruning, amount and domain."""

MAX_WORST = 3
"""Trials of a case whose replay is written out."""

_COLUMNS = (
    "claim", "verdict", "experiment", "target", "pruning", "amount", "ε", "P(gap ≤ ε) from", "to",
    "certified ε", "δ", "trials", "close", "between", "far", "nonfinite", "sparsity",
)  # fmt: skip
_LEFT = ("target", "pruning", "amount", "verdict", "layer", "command")


def write_folder(result: dict[str, Any], folder: Path) -> None:
    """Writes `result.json` and `report.html` into a run's folder, the numbers first.

    Those of the same run, of fewer trials, are replaced.
    """
    folder.mkdir(exist_ok=True)
    _write(_json(result), folder / "result.json")
    _write(page(result, run=str(folder)), folder / "report.html")


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes strict JSON to a new file."""
    write_new(_json(result), path)


def write_new(content: str, path: Path) -> None:
    """Writes text to a new file.

    Raises:
      FileExistsError: there is one.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, "exists", str(path))
    _write(content, path)


def _json(result):
    return json.dumps(result, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _write(content, path):
    with whole(path) as part:
        part.write_text(content, "utf-8")


def page(result: dict[str, Any], *, run: str | None = None) -> str:
    """The whole page as text: nothing remote, every text of the plan escaped, one script of ours.

    Args:
      result: of any study.
      run: path of the run's folder, for the commands that replay a trial; None if it is not known.

    Raises:
      ValueError: no result of a study.
    """
    of = kind(result)
    if of == VERIFY:
        return document(result["plan"]["title"], _verify(result, run))
    return document(TITLES[of], _study(WORDS[of], result))


def _study(words, result) -> Iterator[str]:
    """The page of any study but `verify`: its plot, and what it prints on the terminal."""
    yield facts(_short_facts(result))
    if draw := getattr(words, "plot", None):
        yield encoded(draw(result), "Plot of the result")
    stream = io.StringIO()
    words.render(result, Console(file=stream, width=120))
    yield f"<div class='wide' tabindex='0'><pre>{lines(stream.getvalue())}</pre></div>"
    yield _environment(result, {"plan hash": result["plan"]["hash"]})


def _short_facts(result):
    environment = result["environment"]
    names = ("jaxprune", "jax", "device", "seed")
    about = ", ".join(f"{n} {environment[n]}" for n in names if environment.get(n) is not None)
    return {"plan hash": result["plan"]["hash"], "environment": about}


def _environment(result, rows):
    return "<h2>Plan and environment</h2>" + facts(rows | result["environment"])


def _verify(result, run) -> Iterator[str]:
    cells = result["cells"]
    by_title = itertools.groupby(enumerate(cells, 1), key=lambda pair: pair[1]["experiment"])
    numbered = [(i, title, list(group)) for i, (title, group) in enumerate(by_title, 1)]
    yield paragraph(claim(result), "claim")
    yield f"<p><strong>{text(summary(result))}</strong></p>"
    yield facts(_short_facts(result))
    yield picture(Drawing("Limits of every claim", lambda ax: plots.limits(ax, cells), 7, 6))
    yield "<h2>Claims</h2>"
    yield _claims(numbered)
    yield from map(paragraph, caption(result))
    yield (
        "<p>Plots of the gap: filled markers are medians of the lower bound, open ones of the "
        "upper. Bars run from the 5 % quantile of the lower bound to the 95 % quantile of the "
        "upper, over trials; these quantiles are estimates. Survival curves: the grey band holds "
        "P(gap &gt; t) at every t together, from the counts at the case's ε.</p>"
    )
    for i, title, pairs in numbered:
        yield from _experiment(i, title, [cell for _, cell in pairs], result["exponents"])
    yield from _worst(cells, run)
    yield "<h2>Which layer makes the gap</h2>"
    yield paragraph("Not in this page: it takes pairs drawn anew. In Python: jp.layer_account.")
    plan, tallies = result["plan"]["hash"], result["blocks"]["tallies"]
    yield _environment(result, {"plan hash": plan, "hash of all counts": tallies})


def _experiment(i, title, cells, exponents) -> Iterator[str]:
    fits = [row for row in exponents if row["experiment"] == title]
    yield f"<h2>{i}. {text(title)}</h2>"
    if training := cells[0]["training"]:
        yield paragraph(f"Targets: {training}.")
    if law := cells[0]["law"]:
        yield paragraph(f"Weights: {law}.")
    if training:
        draw = lambda ax: plots.gap_against_sparsity(ax, cells)
    else:
        draw = lambda ax: plots.gap_against_width(ax, cells, fits)
    curves = plots.last_of_series(cells)
    shown = [
        Drawing("Survival curve of the gap", lambda ax, c=cell: plots.survival(ax, c))
        for cell in curves[:MAX_CURVES]
    ]
    yield pictures([Drawing("Quantiles of the gap", draw, height=5.0), *shown])
    if len(curves) > MAX_CURVES:
        yield paragraph(
            f"Survival curves: the first {MAX_CURVES} of {len(curves)}; the others' quantiles are "
            "in result.json."
        )
    for row in fits:
        yield paragraph(
            f"{row['pruning']}, {row['amount']}: gap ∝ width^slope, {slope(row['median_lower'])} "
            f"for the median lower bound, {slope(row['median_upper'])} for the upper."
        )


def _claims(numbered):
    rows = []
    for i, _, pairs in numbered:
        for n, cell in pairs:
            low, high = limits(cell)
            rows.append(
                [
                    Cell(str(n), n),
                    Cell(cell["verdict"], style=cell["verdict"]),
                    Cell(str(i), i),
                    cell["network"],
                    cell["pruning"],
                    cell["amount"],
                    Cell(eps(cell), cell["eps"]),
                    Cell(low, cell["p_low"]),
                    Cell(high, cell["p_high"]),
                    Cell(number_up(cell["certified_eps"]), cell["certified_eps"]),
                    Cell(number(cell["delta"]), cell["delta"]),
                    *(Cell(str(cell[key]), cell[key]) for key in _COUNTS),
                    Cell(f"{100 * cell['sparsity']:.3g} %", cell["sparsity"]),
                ]
            )
    return table(_COLUMNS, rows, left=_LEFT)


_COUNTS = ("trials", "close", "between", "far", "nonfinite")


def _worst(cells, run) -> Iterator[str]:
    cases = {cell["case"]: cell for cell in cells}
    place = "RUN" if run is None else shlex.quote(run)
    rows = [
        [
            Cell(str(case), case),
            cell["network"],
            cell["pruning"],
            cell["amount"],
            Cell(str(worst["trial"]), worst["trial"]),
            Cell(number(worst["gap"]), worst["gap"]),
            Cell(f"jaxprune replay {place} --case {case} --trial {worst['trial']}", style="code"),
        ]
        for case, cell in cases.items()
        for worst in cell["worst_trials"][:MAX_WORST]
    ]
    if rows:
        yield "<h2>Worst trials</h2>"
        yield paragraph(
            f"Up to {MAX_WORST} of each case, by the lower bound of the gap; each command rebuilds "
            "the pair and compares it with what is kept."
            + (" RUN is the folder with run.db." if run is None else "")
        )
        names = ("case", "target", "pruning", "amount", "trial", "gap at least", "command")
        yield folded(f"{len(rows)} trials", table(names, rows, left=_LEFT))

"""The result of `verify` on the terminal and as a page; nothing is computed here."""

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jaxprune.report import plots
from jaxprune.report.section import Cell, Drawing, Section, Table
from jaxprune.report.terminal import STYLES
from jaxprune.report.words import (
    COUNTS,
    caption,
    claim,
    eps,
    limits,
    number,
    number_up,
    plain,
    slope,
    summary,
    target,
)

MAX_CURVES = 4
"""Survival curves of an experiment, one a pruning, amount and domain."""

MAX_WORST = 3
"""Trials of a case whose replay is written out."""

_COLUMNS = (
    "claim", "verdict", "by theorem", "ε", "P(gap ≤ ε) from", "to", "certified ε", "trials",
    "close", "between", "far", "nonfinite", "δ", "experiment", "target", "pruning", "amount",
    "sparsity",
)  # fmt: skip
_LEFT = ("verdict", "by theorem", "target", "pruning", "amount", "layer", "command")


def render(result: dict[str, Any], console: Console) -> None:
    """Prints one table an experiment, then what the columns mean and a summary.

    Args:
      result: as returned by `studies.verify`.
      console: rich's; it leaves colours out where it is not a terminal.
    """
    for title, cells in itertools.groupby(result["cells"], key=lambda cell: cell["experiment"]):
        console.print()
        console.print(Text(plain(title), style="bold"))
        console.print(_table(list(cells)))
    if result["exponents"]:
        console.print()
        console.print(Text("Gap ∝ width^slope", style="bold"))
        console.print(_exponents(result["exponents"]))
    console.print()
    for line in caption(result):
        console.print(Text(line), soft_wrap=False)
    console.print()
    console.print(Text(summary(result), style="bold"))


def _exponents(found):
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("experiment: pruning, amount", overflow="fold")
    for name in ("median of\nlower bounds", "of upper\nbounds", "one input,\nrms"):
        table.add_column(name, no_wrap=True, min_width=19)
    for row in found:
        table.add_row(
            Text(plain(f"{row['experiment']}: {row['pruning']} {row['amount']}")),
            *(slope(row[key]) for key in ("median_lower", "median_upper", "typical")),
        )
    return table


def _table(cells):
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("target, pruning, amount")
    for name, width in (
        ("ε", 8),
        ("δ", 4),
        ("close/betw./\nfar/nonfin.", 11),
        ("P(gap ≤ ε)", 11),
        ("certi-\nfied ε", 6),
    ):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("verdict", no_wrap=True, min_width=9)
    last = None
    for cell in cells:
        case = plain(f"{target(cell)} {cell['pruning']} {cell['amount']}")
        counts = (cell[key] for key in COUNTS)
        table.add_row(
            Text("" if case == last else case),
            eps(cell) if cell["eps_source"] == "theorem" else f"{eps(cell)}  ",
            number(cell["delta"]),
            "/".join(str(count) for count in counts),
            "–".join(limits(cell)),
            number_up(cell["certified_eps"]),
            Text(cell["verdict"], style=STYLES.get(cell["verdict"], "")),
        )
        last = case
    return table


def sections(
    result: dict[str, Any], run: str | None = None, accounts: Sequence[dict[str, Any]] = ()
) -> list[Section]:
    """The claims; each experiment; worst trials; which layer makes the gap.

    Args:
      result: of `studies.verify`.
      run: path of the run's folder; None if it is not known.
      accounts: of some cases, as `studies.accounts` returns them.
    """
    cells = result["cells"]
    by_title = itertools.groupby(enumerate(cells, 1), key=lambda pair: pair[1]["experiment"])
    numbered = [(i, title, list(group)) for i, (title, group) in enumerate(by_title, 1)]
    return [
        Section(
            "Claims",
            text=[claim(result), f"{summary(result)}."],
            drawings=[Drawing("Limits of every claim", lambda ax: plots.limits(ax, cells), 7, 6)],
            tables=[_claims(numbered)],
            notes=[*caption(result), _PLOTS],
        ),
        *(
            _experiment(i, title, [cell for _, cell in pairs], result["exponents"])
            for i, title, pairs in numbered
        ),
        *_worst(cells, run),
        _accounts(cells, accounts),
    ]


_PLOTS = (
    "Plots of the gap: filled markers are medians of the lower bound, open ones of the upper. Bars "
    "run from the 5 % quantile of the lower bound to the 95 % quantile of the upper, over trials; "
    "these quantiles are estimates. Survival curves: the grey band holds P(gap > t) at every t "
    "together, from the counts at the case's ε, each curve by itself, with the confidence that its "
    "legend says."
)


def _experiment(i, title, cells, exponents):
    fits = [row for row in exponents if row["experiment"] == title]
    training, law = cells[0]["training"], cells[0]["law"]
    text = [f"Networks: {'; '.join(dict.fromkeys(cell['network'] for cell in cells))}."]
    text += [f"Targets: {training}."] if training else []
    text += [f"Weights: {law}."] if law else []
    if training:
        draw = lambda ax: plots.gap_against_sparsity(ax, cells)
    else:
        draw = lambda ax: plots.gap_against_width(ax, cells, fits)
    curves = plots.last_of_series(cells)
    notes = [
        f"{row['pruning']}, {row['amount']}: gap ∝ width^slope, {slope(row['median_lower'])} "
        f"for the median lower bound, {slope(row['median_upper'])} for the upper."
        for row in fits
        if row["median_lower"] or row["median_upper"]
    ]
    if len(curves) > MAX_CURVES:
        notes.append(
            f"Survival curves: the first {MAX_CURVES} of {len(curves)}; the others' quantiles are "
            "in result.json."
        )
    return Section(
        f"{i}. {title}",
        text,
        [
            Drawing("Quantiles of the gap", draw, height=5.0),
            *(
                Drawing("Survival curve of the gap", lambda ax, c=cell: plots.survival(ax, c))
                for cell in curves[:MAX_CURVES]
            ),
        ],
        notes=notes,
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
                    cell["by_theorem"] or "",
                    Cell(eps(cell), cell["eps"]),
                    Cell(low, cell["p_low"]),
                    Cell(high, cell["p_high"]),
                    Cell(number_up(cell["certified_eps"]), cell["certified_eps"]),
                    *(Cell(str(cell[key]), cell[key]) for key in ("trials", *COUNTS)),
                    Cell(number(cell["delta"]), cell["delta"]),
                    Cell(str(i), i),
                    target(cell),
                    cell["pruning"],
                    cell["amount"],
                    Cell(f"{100 * cell['sparsity']:.3g} %", cell["sparsity"]),
                ]
            )
    return Table(_COLUMNS, rows, left=_LEFT)


def _worst(cells, run):
    place = "RUN" if run is None else shlex.quote(run)
    rows = [
        [
            *_case(cell),
            Cell(str(worst["trial"]), worst["trial"]),
            Cell(number(worst["gap"]), worst["gap"]),
            Cell(f"jaxprune replay {place} --case {case} --trial {worst['trial']}", style="code"),
        ]
        for case, cell in _cases(cells).items()
        for worst in cell["worst_trials"][:MAX_WORST]
    ]
    if rows:
        names = ("case", "target", "pruning", "amount", "trial", "gap at least", "command")
        where = " RUN is the folder with run.db." if run is None else ""
        yield Section(
            "Worst trials",
            text=[
                f"Up to {MAX_WORST} of each case, by the lower bound of the gap; each command "
                f"rebuilds the pair and compares it with what is kept.{where}"
            ],
            tables=[Table(names, rows, left=_LEFT, title=f"{len(rows)} trials")],
        )


def _accounts(cells, accounts):
    by_case = _cases(cells)
    rows = [
        [
            *_case(by_case[account["case"]]),
            Cell(layer["layer"], n),
            *(
                Cell("–" if value is None else f"{100 * value:.3g} %", value)
                for value in layer["share"]
            ),
            *(Cell(number_up(layer[key]), layer[key]) for key in ("term", "bound")),
            Cell(str(account["counted"]), account["counted"]),
        ]
        for account in accounts
        for n, layer in enumerate(account["layers"])
    ]
    names = (
        "case", "target", "pruning", "amount", "layer", "share: median", "5 %", "95 %",
        "term, median", "bound, median", "pairs",
    )  # fmt: skip
    return Section(
        "Which layer makes the gap",
        text=[_ACCOUNTS if rows else "Not asked for: jaxprune report RUN --account 100."],
        tables=[Table(names, rows, left=_LEFT, group=4)] if rows else [],
    )


_ACCOUNTS = (
    "At the worst input found of each pair F(x) − f(x) is the sum of what each layer changes, as "
    "layers are switched from dense to pruned from input to output. Share: of the difference, "
    "along it (all of a pair add up to 100 %, one may be negative); term: its length; bound: of "
    "its length on the unit ball, proved. Medians and quantiles over the first pairs of the run, "
    "estimates all."
)


def _cases(cells):
    return {cell["case"]: cell for cell in cells}


def _case(cell):
    number = Cell(str(cell["case"]), cell["case"])
    return [number, target(cell), cell["pruning"], cell["amount"]]

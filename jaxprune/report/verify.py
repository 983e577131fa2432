"""The result of `verify` on the terminal and as a page; nothing is computed here."""

import itertools
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jaxprune.report import plots
from jaxprune.report.section import MAX_SERIES, Cell, Drawing, Section, Table, at_most
from jaxprune.report.terminal import STYLES
from jaxprune.report.words import (
    COUNTS,
    caption,
    claim,
    eps,
    how_sure,
    limits,
    number,
    number_up,
    percent,
    plain,
    slope,
    summary,
    target,
    warnings,
)
from jaxprune.statistics import ESTIMATED, HOLDS, UNDECIDED, VIOLATED

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


FEW_CLAIMS, MAX_EXPERIMENTS = 16, 12
"""Of a summary: so many claims have a verdict each, else so many experiments have counts."""


def header(
    title: str, claims: int, delta: float, confidence: float, *, until_decided: bool, audited: bool
) -> list[Text]:
    """What stands above the lines of `claim_lines`."""
    limits = f"one-sided, {percent(confidence)} each, not joint over claims"
    if until_decided:
        limits = f"of a {percent(confidence)} confidence sequence per claim"
    waits = "verdicts come after the audit" if audited else "depends on cases still running"
    return [
        Text(f"{plain(title)}: {claims} claims P(gap ≤ ε) ≥ {1.0 - delta:.12g}"),
        Text(f"Limits are {limits}."),
        Text(f"*: ε certified by a theorem. open: {waits}."),
    ]


def claim_lines(cells: Sequence[dict[str, Any]]) -> list[Text]:
    """One line per claim: case, epsilon, limits of P, verdict.

    Args:
      cells: of one case, with the keys that `studies.verify.Early` gives.
    """
    lines = []
    for cell in cells:
        verdict = cell["verdict"] or "open"
        asked = f"P(gap ≤ {eps(cell)})"
        line = Text(f"  {_named(cell):<34} {asked:<17} in {'–'.join(limits(cell))}  ")
        lines.append(line.append(verdict, style=STYLES.get(verdict, "")))
    return lines


def _named(cell):
    return plain(f"{target(cell)} {cell['pruning']} {cell['amount']}{_inputs(cell)}")


def _inputs(row):
    return "" if row["domain"] == "unit ball" else f", {row['domain']}"


def summarize(result: dict[str, Any], console: Console) -> None:
    """Prints what fits one screen: verdicts, or how many of each; how sure they are; warnings.

    Args:
      result: as returned by `studies.verify`.
      console: rich's.
    """
    cells = result["cells"]
    console.print()
    if len(cells) <= FEW_CLAIMS:
        _verdicts(cells, console)
    else:
        _counts(cells, console)
    console.print(Text(claim(result)))
    said = any(cell["verdict"] != ESTIMATED for cell in cells)
    sure = f" Verdicts: {how_sure(result)}." if said else ""
    console.print(Text(f"*: ε certified by a theorem.{sure}"))
    for line in warnings(result):
        console.print(Text(line))
    console.print(Text(f"{summary(result)}.", style="bold"))


def _verdicts(cells, console):
    for title, group in itertools.groupby(cells, key=lambda cell: cell["experiment"]):
        console.print(Text(plain(title), style="bold"))
        for _, case in itertools.groupby(group, key=lambda cell: cell["case"]):
            case = list(case)
            line = Text(f"  {_named(case[0]):<34}  ε = ")
            for i, cell in enumerate(case):
                line.append(", " if i else "").append(f"{eps(cell)} ")
                line.append(cell["verdict"], style=STYLES.get(cell["verdict"], ""))
            console.print(line)


_HEADS = {HOLDS: "hold", VIOLATED: "viol.", UNDECIDED: "undec.", ESTIMATED: "estim."}


def _counts(cells, console):
    """One line per experiment; those that have no room are added up."""
    groups = itertools.groupby(cells, key=lambda cell: cell["experiment"])
    groups = [(title, list(group)) for title, group in groups]
    shown, rest = groups[:MAX_EXPERIMENTS], groups[MAX_EXPERIMENTS:]
    if rest:
        others = [cell for _, group in rest for cell in group]
        shown.append((f"{len(rest)} more experiments", others))
    given = {cell["verdict"] for cell in cells}
    names = [name for name in _HEADS if name in given]
    rows = [("claims of", *map(_HEADS.get, names), "cert.")]
    for title, group in shown:
        counts = Counter(cell["verdict"] for cell in group)
        proved = sum(cell["by_theorem"] is not None for cell in group)
        rows.append((plain(title), *(counts[name] for name in names), proved))
    for i, (title, *numbers) in enumerate(rows):
        numbers = "".join(f"{number:>7}" for number in numbers)
        line = Text(title)
        line.truncate(console.width - len(numbers), overflow="ellipsis", pad=True)
        console.print(line.append(numbers), style="" if i else "bold")


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
    for name in ("median of\nlower bounds", "of upper\nbounds", "one input, rms,\nestimated"):
        table.add_column(name, no_wrap=True, min_width=19)
    for row in found:
        table.add_row(
            Text(plain(f"{row['experiment']}: {row['pruning']} {row['amount']}{_inputs(row)}")),
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
    fits = defaultdict(list)
    for row in result["exponents"]:
        fits[row["experiment"]].append(row)
    return [
        Section(
            "Claims",
            text=[claim(result), f"{summary(result)}."],
            drawings=[Drawing("Limits of every claim", lambda ax: plots.limits(ax, cells), 7, 6)],
            tables=[_claims(numbered)],
            notes=[*caption(result), _PLOTS],
        ),
        *(
            _experiment(i, title, [cell for _, cell in pairs], fits[title])
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


def _experiment(i, title, cells, fits):
    training, law = cells[0]["training"], cells[0]["law"]
    text = [f"Networks: {'; '.join(dict.fromkeys(cell['network'] for cell in cells))}."]
    text += [f"Targets: {training}."] if training else []
    text += [f"Weights: {law}."] if law else []
    keys = ("pruning", "domain", "network") if training else ("pruning", "amount", "domain")
    series = defaultdict(list)
    for cell in _cases(cells).values():
        series[tuple(cell[key] for key in keys)].append(cell)
    groups, cut = at_most(list(series.values()), "series", MAX_SERIES)
    shown, more = at_most([cell for group in groups for cell in group], "cases")
    if training:
        draw = lambda ax: plots.gap_against_sparsity(ax, shown)
    else:
        laws = {plots.family(fit): fit for fit in fits}
        draw = lambda ax: plots.gap_against_width(ax, shown, list(laws.values()))
    curves = plots.last_of_series(cells)
    notes = [
        f"{row['pruning']}, {row['amount']}{_inputs(row)}: gap ∝ width^slope, "
        f"{slope(row['median_lower'])} for the median lower bound, "
        f"{slope(row['median_upper'])} for the upper."
        for row in fits
        if row["median_lower"] or row["median_upper"]
    ]
    notes += cut + more
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

"""The result of `verify` as a table on the terminal."""

import itertools
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.report.words import (
    caption,
    eps,
    limits,
    number,
    number_up,
    plain,
    slope,
    summary,
    target,
)
from jaxprune.statistics import HOLDS, UNDECIDED, VIOLATED

STYLES = {HOLDS: "green", VIOLATED: "red", UNDECIDED: "yellow"}


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
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
        counts = (cell[key] for key in ("close", "between", "far", "nonfinite"))
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

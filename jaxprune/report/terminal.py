"""Sections of a result on a terminal."""

from collections.abc import Iterable

from rich import box, table
from rich.console import Console
from rich.text import Text

from jaxprune.report.section import BEST, Section, Table, cells
from jaxprune.report.words import plain
from jaxprune.statistics import HOLDS, UNDECIDED, VIOLATED

STYLES = {HOLDS: "green", VIOLATED: "red", UNDECIDED: "yellow", BEST: "bold"}


def print_sections(sections: Iterable[Section], console: Console) -> None:
    """Prints each: title, text, tables, notes."""
    for section in sections:
        console.print()
        console.print(Text(plain(section.title), style="bold"))
        for line in section.text:
            console.print(Text(plain(line)), soft_wrap=False)
        for shown in section.tables:
            if not shown.title:
                console.print(tabled(shown))
        for line in section.notes:
            console.print(Text(plain(line)), soft_wrap=False)


def tabled(shown: Table) -> table.Table:
    """As rich draws it; colours are left out where there is no terminal."""
    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in shown.names:
        left = name in shown.left
        drawn.add_column(name, justify="left" if left else "right", no_wrap=not left)
    last: list[str] = []
    for row in map(cells, shown.rows):
        head = [cell.text for cell in row[: shown.group]]
        texts = [
            "" if i < shown.group and head[: i + 1] == last[: i + 1] else plain(cell.text)
            for i, cell in enumerate(row)
        ]
        drawn.add_row(
            *(Text(t, style=STYLES.get(cell.style, "")) for t, cell in zip(texts, row, strict=True))
        )
        last = head
    return drawn

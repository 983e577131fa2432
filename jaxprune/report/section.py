"""What a result is shown as: sections of text, drawings and tables, in a terminal and in a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # Matplotlib is imported once something is drawn
    from matplotlib.axes import Axes

BEST = "best"
"""Style of a cell that stands out in its group."""

MAX_SHOWN, MAX_SERIES = 32, 8
"""Cases, widths or norms in one drawing, and names in its legend: each takes milliseconds to draw,
and more cannot be told apart."""


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
      text: as shown.
      value: by which it is sorted; None where there is nothing, a string for its own text.
      style: a verdict, `BEST`, "code" for what is typed, or "".
    """

    text: str
    value: float | str | None = ""
    style: str = ""


class Table(NamedTuple):
    """Rows under names.

    Attributes:
      names: of the columns; a line break where a narrow head may break.
      rows: as many cells each; a string is a `Cell` that sorts by its text.
      left: names of the columns whose text starts at the left.
      title: of a table that a page folds away and a terminal leaves out; "" for one that is shown.
      group: so many leading columns are said once, where rows that follow say the same.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    left: Sequence[str] = ()
    title: str = ""
    group: int = 0


class Drawing(NamedTuple):
    """A picture to be made.

    Attributes:
      name: what it shows, for those who cannot see it.
      draw: on axes, which it returns.
      width, height: inches, without what of the legend lies outside the axes.
      left: inches between the left edge and the axes.
    """

    name: str
    draw: Callable[[Axes], Axes]
    width: float = 6.4
    height: float = 4.2
    left: float = 0.85


class Section(NamedTuple):
    """A part of a result.

    Attributes:
      title: one line.
      text: what is claimed and what was found, a paragraph each.
      drawings: left out in a terminal.
      tables: of numbers.
      notes: what the columns mean and with what confidence, a paragraph each.
    """

    title: str
    text: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def at_most(
    rows: Sequence[Any], what: str, most: int = MAX_SHOWN
) -> tuple[Sequence[Any], list[str]]:
    """Those of `rows` that one drawing shows, and a note if there are more."""
    if len(rows) <= most:
        return rows, []
    note = f"Plot: the first {most} of {len(rows)} {what}; all are in result.json."
    return rows[:most], [note]


def cells(row: Sequence[Cell | str]) -> list[Cell]:
    """A row, its strings made cells."""
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]

"""The parts of a page: text that is inert, tables that sort, pictures, and the whole around them.

A page needs nothing but itself. Its policy allows one style and one script, each by its hash: the
script sorts tables, and without it nothing is missing but that.
"""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.report.words import plain

STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #fff; --line: #d0d0d0; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e6e6; --bg: #181818; --line: #444; --soft: #242424; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
       max-width: 84rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, li, dl { max-width: 52rem; } p { margin: .6rem 0; }
.claim { font-size: 1.1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { opacity: .75; } dd { margin: 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .45rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; overflow-wrap: normal; }
th.left, td.left { text-align: left; }
th { background: var(--soft); vertical-align: bottom; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
            cursor: pointer; text-align: inherit; }
th button::after { content: " \\2195"; opacity: .45; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
summary { cursor: pointer; font-weight: bold; margin: .8rem 0; }
pre { font-size: .75rem; line-height: 1.35; overflow-wrap: normal; }
code { font-size: .8rem; user-select: all; }
.holds { color: #1b7837; } .violated { color: #b2182b; } .undecided { color: #8a6d00; }
@media (prefers-color-scheme: dark) {
  .holds { color: #7fd68f; } .violated { color: #ff8a80; } .undecided { color: #e3c34b; }
}
img { max-width: 100%; background: #fff; border-radius: 4px; }
figure { margin: 1rem 0; } .plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
"""

# Rows with nothing in a column come last, whichever way it is sorted.
SCRIPT = """
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const order = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const by = x - y || 0;
        return (falling ? -1 : 1) * (by || (isNaN(x - y) ? x.localeCompare(y) : 0));
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
"""


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
      text: as shown.
      value: by which it is sorted; None where there is nothing, a string for its own text.
      style: a class of the style sheet, or "".
    """

    text: str
    value: float | str | None = ""
    style: str = ""


class Drawing(NamedTuple):
    """A picture to be made.

    Attributes:
      name: what it shows, for those who cannot see it.
      draw: on axes.
      width, height: inches.
    """

    name: str
    draw: Callable[[Axes], Axes]
    width: float = 6.4
    height: float = 4.2


def text(value: Any) -> str:
    """Text that is nothing but text, in an element or an attribute."""
    return html.escape(plain(value), quote=True)


def paragraph(value: Any, style: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p class='{style}'>{text(value)}</p>" if style else f"<p>{text(value)}</p>"


def facts(rows: Mapping[str, Any]) -> str:
    """Names and what they are."""
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows.items())
    return f"<dl>{inner}</dl>"


def table(
    names: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, left: Sequence[str] = ()
) -> str:
    """A table whose columns sort.

    Args:
      names: of the columns.
      rows: as many cells each; a string is a `Cell` that sorts by its text.
      left: names of the columns whose text starts at the left.
    """
    aligned = [" class='left'" if name in left else "" for name in names]
    head = "".join(
        f"<th scope='col'{a}>{text(name)}</th>" for name, a in zip(names, aligned, strict=True)
    )
    body = []
    for row in rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        body.append("".join(_cell(c, name in left) for c, name in zip(cells, names, strict=True)))
    inner = "".join(f"<tr>{row}</tr>" for row in body)
    return (
        f"<div class='wide' tabindex='0'><table class='sort'><thead><tr>{head}</tr></thead>"
        f"<tbody>{inner}</tbody></table></div>"
    )


def _cell(cell, left):
    style = " ".join(filter(None, (cell.style, "left" if left else "")))
    marks = f" class='{text(style)}'" if style else ""
    if cell.value is None:
        marks += " data-v=''"
    elif not isinstance(cell.value, str):
        marks += f" data-v='{cell.value!r}'"
    shown = f"<code>{text(cell.text)}</code>" if cell.style == "code" else text(cell.text)
    return f"<td{marks}>{shown}</td>"


def lines(value: str) -> str:
    """Text that is nothing but text, its lines kept."""
    return "\n".join(map(text, value.splitlines()))


def picture(drawing: Drawing) -> str:
    """A figure, its PNG inside the page."""
    figure = Figure(figsize=(drawing.width, drawing.height), layout="constrained")
    drawing.draw(figure.add_subplot())
    return encoded(figure, drawing.name)


def encoded(figure: Figure, name: str) -> str:
    """A figure that is drawn, its PNG inside the page; `name` is for those who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><img alt='{text(name)}' src='data:image/png;base64,{data}'></figure>"


def pictures(drawings: Iterable[Drawing]) -> str:
    """Figures side by side, as many as there is room for."""
    return f"<div class='plots'>{''.join(map(picture, drawings))}</div>"


def folded(name: str, inner: str) -> str:
    """What opens at a click, without any script."""
    return f"<details><summary>{text(name)}</summary>{inner}</details>"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page as text."""
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1>",
            *parts,
            f"<script>{SCRIPT}</script></body></html>",
        ]
    )

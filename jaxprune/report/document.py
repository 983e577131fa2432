"""The parts of a page: text that is inert, tables that sort, pictures, and the whole around them.

A page needs nothing but itself. Its policy allows one style and one script, each by its hash: the
script sorts tables, and without it nothing is missing but that.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxprune.report.section import Drawing, Section, Table, cells
from jaxprune.report.words import FONT, plain

MAX_DRAWINGS, MAX_ROWS = 36, 5000
"""Of a page: a drawing takes about a tenth of a second, and a browser has to lay out every row."""

STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #fff; --line: #d0d0d0; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e6e6; --bg: #181818; --line: #444; --soft: #242424; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
       max-width: 84rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, dl { max-width: 52rem; } p { margin: .6rem 0; font-size: .9rem; }
.found { font-size: 1.05rem; }
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
code { font-size: .8rem; user-select: all; }
.best { font-weight: bold; }
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


def text(value: Any) -> str:
    """Text that is nothing but text, in an element or an attribute."""
    return html.escape(plain(value), quote=True)


def facts(rows: Mapping[str, Any]) -> str:
    """Names and what they are."""
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows.items())
    return f"<dl>{inner}</dl>"


def table(shown: Table) -> str:
    """A table whose columns sort, folded away if it has a title."""
    left = [name in shown.left for name in shown.names]
    head = "".join(
        f"<th scope='col'{' class=left' * at_left}>{text(name)}</th>"
        for name, at_left in zip(shown.names, left, strict=True)
    )
    rows = shown.rows[:MAX_ROWS]
    body = "".join(f"<tr>{''.join(map(_cell, cells(row), left))}</tr>" for row in rows)
    whole = (
        f"<div class='wide' tabindex='0'><table class='sort'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
    if len(rows) < len(shown.rows):
        whole += f"<p>The first {MAX_ROWS} of {len(shown.rows)} rows; all are in result.json.</p>"
    return folded(shown.title, whole) if shown.title else whole


def _cell(cell, left):
    style = " ".join(filter(None, (cell.style, "left" if left else "")))
    marks = f" class='{text(style)}'" if style else ""
    if cell.value is None:
        marks += " data-v=''"
    elif not isinstance(cell.value, str):
        marks += f" data-v='{text(repr(cell.value))}'"
    shown = f"<code>{text(cell.text)}</code>" if cell.style == "code" else text(cell.text)
    return f"<td{marks}>{shown}</td>"


def picture(drawing: Drawing) -> str:
    """A figure, its PNG inside the page.

    Its margins are fixed, so that it is drawn once: Matplotlib's layouts draw it to measure it.
    Only a legend outside the axes is measured, and the figure grows by as much.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": [FONT], "text.usetex": False}):
        figure = Figure(figsize=(drawing.width, drawing.height), dpi=110)
        canvas = FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1))
        _place(ax, drawing, 0.0, 0.0, 0.0, 0.0)
        drawing.draw(ax)
        ax.minorticks_off()  # a quarter of the time
        legend = ax.get_legend()
        if legend is not None and legend.get_bbox_to_anchor() is not ax.bbox:
            box = legend.get_window_extent(canvas.get_renderer())
            left, bottom, right, top = (x / figure.dpi for x in box.extents)
            beyond = (-left, -bottom, right - drawing.width, top - drawing.height)
            _place(ax, drawing, *(max(0.0, length + _EDGE) for length in beyond))
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><img alt='{text(drawing.name)}' src='data:image/png;base64,{data}'></figure>"


_BOTTOM, _RIGHT, _TOP, _EDGE = 0.6, 0.2, 0.35, 0.05
"""Inches from the axes, or from a legend outside them, to the edges."""


def _place(ax, drawing, left, bottom, right, top):
    """Places axes within a figure that is larger than the drawing by so much on each side."""
    width, height = drawing.width + left + right, drawing.height + bottom + top
    ax.figure.set_size_inches(width, height)
    inner_width = drawing.width - drawing.left - _RIGHT
    inner_height = drawing.height - _BOTTOM - _TOP
    x, y = left + drawing.left, bottom + _BOTTOM
    ax.set_position((x / width, y / height, inner_width / width, inner_height / height))


def pictures(drawings: Iterable[Drawing]) -> str:
    """Figures side by side, as many as there is room for."""
    return f"<div class='plots'>{''.join(map(picture, drawings))}</div>"


def within_budget(sections: Sequence[Section]) -> tuple[list[Section], str]:
    """Sections with at most `MAX_DRAWINGS` drawings, and a line on those left out, or "".

    The first of every section goes before the second of any.
    """
    places = [(at, i) for i, shown in enumerate(sections) for at in range(len(shown.drawings))]
    if len(places) <= MAX_DRAWINGS:
        return list(sections), ""
    chosen = set(sorted(places)[:MAX_DRAWINGS])
    cut = [
        shown._replace(drawings=[d for at, d in enumerate(shown.drawings) if (at, i) in chosen])
        for i, shown in enumerate(sections)
    ]
    return cut, (
        f"Plots: {MAX_DRAWINGS} of {len(places)} are drawn; every number is in result.json."
    )


def section(shown: Section) -> Iterator[str]:
    """Its heading, what was found, pictures, tables, notes."""
    yield f"<h2>{text(shown.title)}</h2>"
    yield from (f"<p class='found'>{text(value)}</p>" for value in shown.text)
    if shown.drawings:
        yield pictures(shown.drawings)
    yield from map(table, shown.tables)
    yield from (f"<p>{text(value)}</p>" for value in shown.notes)


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

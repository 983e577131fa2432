"""The result of `verify` as one self-contained HTML page, and the folder around it."""

import base64
import errno
import html
import io
import itertools
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxprune.report import plots
from jaxprune.report.words import caption, eps, limits, number, number_up, plain, slope, summary

_STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #fff; --line: #d0d0d0; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e6e6; --bg: #181818; --line: #444; --soft: #242424; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
       max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .45rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { background: var(--soft); }
.holds { color: #1b7837; } .violated { color: #b2182b; } .undecided { color: #8a6d00; }
@media (prefers-color-scheme: dark) {
  .holds { color: #7fd68f; } .violated { color: #ff8a80; } .undecided { color: #e3c34b; }
}
img { max-width: 100%; background: #fff; border-radius: 4px; }
figure { margin: 1rem 0; } .plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
"""

_COLUMNS = (
    "target", "pruning", "amount", "ε", "verdict", "P(gap ≤ ε) from", "to", "certified ε", "δ",
    "trials", "close", "between", "far", "nonfinite", "sparsity",
)  # fmt: skip


def write_folder(result: dict[str, Any], folder: Path) -> None:
    """Writes `result.json` and `report.html` into a run's folder, the numbers first.

    Those of the same run, of fewer trials, are replaced.
    """
    folder.mkdir(exist_ok=True)
    _write(_json(result), folder / "result.json")
    _write(page(result), folder / "report.html")


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes strict JSON to a new file."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, "exists", str(path))
    _write(_json(result), path)


def _json(result):
    return json.dumps(result, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _write(text, path):
    """To a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)


def page(result: dict[str, Any]) -> str:
    """The whole page as text: no script, nothing remote, every text of the plan escaped."""
    plan, environment = result["plan"], result["environment"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(plan['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(plan['title'])}</h1><p><strong>{_text(summary(result))}</strong></p>",
        *(f"<p>{_text(line)}</p>" for line in caption(result)),
        "<p>Markers in the plots: filled for the median lower bound, open for the upper. Bars run "
        "from the 5 % quantile of the lower bound to the 95 % quantile of the upper, over trials; "
        "these quantiles are estimates. The confidence limits are in the tables.</p>",
        _figure(lambda ax: plots.limits(ax, result["cells"]), "Limits of every claim", 7, 6),
    ]
    for title, group in itertools.groupby(result["cells"], key=lambda cell: cell["experiment"]):
        cells = list(group)
        parts += [f"<h2>{_text(title)}</h2>", "<div class='plots'>", *_plots(cells), "</div>"]
        if training := cells[0]["training"]:
            parts.append(f"<p>Targets: {_text(training)}.</p>")
        if law := cells[0]["law"]:
            parts.append(f"<p>Weights: {_text(law)}.</p>")
        parts.append(_table(cells))
        parts += [
            f"<p>{_text(row['pruning'])}, {_text(row['amount'])}: gap ∝ width^slope, "
            f"{_text(slope(row['median_lower']))} for the median lower bound, "
            f"{_text(slope(row['median_upper']))} for the upper.</p>"
            for row in result["exponents"]
            if row["experiment"] == title
        ]
    tallies = result["blocks"]["tallies"]
    rows = {"plan hash": plan["hash"], "hash of all counts": tallies, **environment}
    parts += [
        "<h2>Plan and environment</h2><div class='wide'><table>",
        *(f"<tr><td>{_text(key)}</td><td>{_text(value)}</td></tr>" for key, value in rows.items()),
        "</table></div></body></html>",
    ]
    return "\n".join(parts)


def _plots(cells):
    trained = cells[0]["training"] is not None
    draw = plots.gap_against_sparsity if trained else plots.gap_against_width
    yield _figure(lambda ax: draw(ax, cells), "Gap")
    yield _figure(
        lambda ax: plots.survival(ax, cells[-1]), "Survival curve of the last case of the table"
    )


def _figure(draw, name, width=6.4, height=4.2):
    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><img alt='{_text(name)}' src='data:image/png;base64,{data}'></figure>"


def _table(cells):
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = []
    for cell in cells:
        verdict = cell["verdict"]
        values = [
            cell["network"],
            cell["pruning"],
            cell["amount"],
            eps(cell),
            verdict,
            *limits(cell),
            number_up(cell["certified_eps"]),
            number(cell["delta"]),
            *(cell[key] for key in ("trials", "close", "between", "far", "nonfinite")),
            f"{100 * cell['sparsity']:.3g} %",
        ]
        body = "".join(
            f"<td class='{_text(verdict)}'>{_text(value)}</td>"
            if value is verdict
            else f"<td>{_text(value)}</td>"
            for value in values
        )
        rows.append(f"<tr>{body}</tr>")
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _text(value):
    return html.escape(plain(value), quote=True)

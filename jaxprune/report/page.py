"""A result as one self-contained HTML page, and the folder around it."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxprune.files import utf8, whole, whole_and_new
from jaxprune.report import bound, frontier, rare, terminal, threshold, verify
from jaxprune.report.document import document, facts, section, text, within_budget
from jaxprune.report.reading import VERIFY, kind

TITLES = {
    "frontier": "Pruning frontier: the largest sparsity with P(gap ≤ ε) ≥ 1 − δ at each width",
    "threshold": "Threshold width: the least width with P(gap ≤ ε) ≥ 1 − δ, and its exponents",
    "rare": "Rare failures: P(gap > ε), estimated",
    "bound": "Certified gaps: P(gap ≤ ε) ≥ 1 − δ by theorems, no sampling",
}
_STUDIES = {"frontier": frontier, "threshold": threshold, "rare": rare, "bound": bound}


def render(result: dict[str, Any], console: Console) -> None:
    """Prints a result: claims, tables, what the columns mean.

    Args:
      result: of any study.
      console: rich's; it leaves colours out where it is not a terminal.

    Raises:
      ValueError: no result of a study.
    """
    of = kind(result)
    if of == VERIFY:
        verify.render(result, console)
    else:
        terminal.print_sections(_STUDIES[of].sections(result), console)


def summarize(result: dict[str, Any], console: Console) -> None:
    """Prints a result on one screen, as far as a study's tables do not.

    Raises:
      ValueError: no result of a study.
    """
    if kind(result) == VERIFY:
        verify.summarize(result, console)
    else:
        render(result, console)


def write_folder(
    result: dict[str, Any], folder: Path, check: Callable[[], None] | None = None
) -> None:
    """Writes `result.json` and `report.html` into a folder, the numbers first.

    Args:
      result: of any study.
      folder: that holds them; without `check` made if it is not there.
      check: of a run that is kept: raises unless the folder is still its own, and is called before
        each of the files is replaced. Without, both must be new.

    Raises:
      FileExistsError: there is one of the files, and no `check`.
    """
    if not check:
        folder.mkdir(exist_ok=True)
    texts = {"result.json": _json, "report.html": lambda result: page(result, run=str(folder))}
    for name, written in texts.items():
        content = utf8(written(result))
        if check:
            check()
        with (whole if check else whole_and_new)(folder / name) as file:
            file.write(content)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes strict JSON to a new file."""
    write_new(_json(result), path)


def write_new(content: str, path: Path) -> None:
    """Writes text to a new file.

    Raises:
      FileExistsError: there is one.
    """
    with whole_and_new(path) as file:
        file.write(utf8(content))


def _json(result):
    text = json.dumps(result, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    # The name of a folder may be no UTF-8; its bytes are surrogates then, which UTF-8 lacks.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def page(
    result: dict[str, Any], *, run: str | None = None, accounts: Sequence[dict[str, Any]] = ()
) -> str:
    """The whole page as text: nothing remote, every text of the plan escaped, one script of ours.

    Args:
      result: of any study.
      run: path of the run's folder, for the commands that replay a trial; None if it is not known.
      accounts: of a run of `verify`, as `studies.accounts` returns them.

    Raises:
      ValueError: no result of a study.
    """
    of = kind(result)
    if of == VERIFY:
        title, parts = result["plan"]["title"], verify.sections(result, run, accounts)
        about = {"hash of all counts": result["blocks"]["tallies"]}
    else:
        title, parts, about = TITLES[of], _STUDIES[of].sections(result), {}
    plan, environment = {"plan hash": result["plan"]["hash"]}, result["environment"]
    names = ("jaxprune", "jax", "device", "seed")
    said = ", ".join(f"{n} {environment[n]}" for n in names if environment.get(n) is not None)
    parts, cut = within_budget(parts)
    return document(
        title,
        [
            facts(plan | {"environment": said}),
            *([f"<p>{text(cut)}</p>"] if cut else []),
            *(line for part in parts for line in section(part)),
            "<h2>Plan and environment</h2>",
            facts(plan | about | environment),
        ],
    )

"""The folder of a result with one picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxprune.files import whole
from jaxprune.report.page import write_json

NAME = "plot.png"


def write_picture(
    result: dict[str, Any], draw: Callable[[dict[str, Any]], Figure], folder: Path
) -> None:
    """Writes `result.json` and `plot.png` into a new or empty folder, the numbers first."""
    folder.mkdir(exist_ok=True)
    write_json(result, folder / "result.json")
    with whole(folder / NAME) as part:
        draw(result).savefig(part, format="png", dpi=130, bbox_inches="tight")

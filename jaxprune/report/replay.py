"""A replayed trial on the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.report.words import number_down, number_up, plain


def render(facts: dict[str, Any], console: Console) -> None:
    """Prints a trial: the pair, its layers, its bracket at each epsilon.

    Args:
      facts: of `studies.replay`.
      console: rich's.
    """
    line = lambda text, style="": console.print(Text(plain(text), style=style))
    line(f"trial {facts['trial']} of case {facts['case']}: {facts['network']}", "bold")
    line(f"{facts['targets']}; {facts['pruning']}, {facts['amount']}; seed {facts['seed']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("layer", "weights", "removed", "sparsity"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for layer in facts["layers"]:
        share = layer["removed"] / layer["weights"]
        table.add_row(
            layer["layer"], str(layer["weights"]), str(layer["removed"]), f"{100 * share:.3g} %"
        )
    console.print(table)
    if facts["finite"]:
        low, high = number_down(facts["lower"]), number_up(facts["upper"])
        line(f"gap from {low} (found) to {high}; over the sampled inputs {facts['sampled']:.3g}")
    else:
        line("a weight or a bound is not a finite number: neither close nor far", "bold")
    line(_comparison(facts))


def _comparison(facts):
    if facts["same"] is None:
        return "its block is not in the run: nothing to compare with"
    if facts["same"]:
        return "its block comes out as it is kept, to the last bit"
    if facts["differs"]:
        return "its block differs from what is kept, and so does the run's " + ", ".join(
            facts["differs"]
        )
    return "its block DIFFERS from what is kept: the machine, or the file, is wrong"

"""The words and number formats that table and page share."""

import math
from collections import Counter
from typing import Any


def plain(text: Any) -> str:
    """Text without control characters, so that no plan can steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    return "–" if value is None else f"{value:.3g}"


def limits(cell: dict[str, Any]) -> tuple[str, str]:
    """Both limits of P(gap ≤ ε), three decimals rounded outward."""
    low, high = 1000 * cell["p_low"], 1000 * cell["p_high"]
    return f"{math.floor(low) / 1000:.3f}", f"{math.ceil(high) / 1000:.3f}"


def target(cell: dict[str, Any]) -> str:
    """Kind and widths of a cell's network, as much as a table has room for."""
    return cell["network"].split(",")[0]


def caption(result: dict[str, Any]) -> list[str]:
    """What the columns mean, with every confidence in words."""
    percent = f"{100 * result['plan']['confidence']:g} %"
    return [
        "Claim of each row: P(gap ≤ ε) ≥ 1 − δ, the gap being sup ‖F(x) − f(x)‖ over the unit ball "
        "(or the test images).",
        "Trials: close, proved upper bound ≤ ε; between, the bracket leaves it open; far, lower "
        "bound > ε; nonfinite counts for neither.",
        f"P(gap ≤ ε): exact one-sided limits (Clopper–Pearson), {percent} confidence each. "
        "*: ε is the theorem's certified one.",
        f"Verdicts (Holm over all {len(result['cells'])} claims): with {percent} confidence none "
        f"is wrongly said to hold, with {percent} none to be violated.",
    ]


def summary(result: dict[str, Any]) -> str:
    """How many claims hold."""
    counts = Counter(cell["verdict"] for cell in result["cells"])
    return (
        f"{len(result['cells'])} claims: {counts['holds']} hold, "
        f"{counts['violated']} violated, {counts['undecided']} undecided"
    )

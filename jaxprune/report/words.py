"""The words and number formats that table and page share."""

import functools
import math
from collections import Counter
from typing import Any

from jaxprune.report.section import Cell
from jaxprune.statistics import E_BH, ESTIMATED, HOLDS, UNDECIDED, VIOLATED
from jaxprune.statistics.regression import SIGNIFICANCE

COUNTS = ("close", "between", "far", "nonfinite")
FONT, MOST_DRAWN = "DejaVu Sans", 48
"""Of pictures: a font that Matplotlib brings; characters of a text."""


def plain(text: Any) -> str:
    """Text without control characters, so that no plan can steer a terminal."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def drawn(text: Any, most: int = MOST_DRAWN) -> str:
    """`plain` for a picture, cut to `most` characters.

    No formula begins at a dollar, no legend leaves it out, and what the font of pictures lacks is
    a replacement character.
    """
    shown = plain(text)
    shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
    shown = "".join(c if ord(c) in _glyphs() else "\ufffd" for c in shown).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


@functools.cache
def _glyphs():
    """Code points of `FONT`."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    return "–" if value is None else f"{value:.3g}"


def number_up(value: float | None) -> str:
    """Three significant digits, rounded up: what is certified stays certified as printed."""
    if not value:
        return number(value)
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return number(value) if value <= float(number(value)) else number(value + step)


def number_down(value: float | None) -> str:
    """Three significant digits, rounded down."""
    if not value:
        return number(value)
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return number(value) if value >= float(number(value)) else number(value - step)


def percent(share: float) -> str:
    """A share in percent, every digit that was given."""
    return f"{100 * share:.12g} %"


def eps(cell: dict[str, Any]) -> str:
    """A cell's ε; the theorem's is rounded up and starred."""
    if cell["eps_source"] == "theorem":
        return number_up(cell["eps"]) + " *"
    return f"{cell['eps']:g}"


def limits(cell: dict[str, Any]) -> tuple[str, str]:
    """Both limits of P(gap ≤ ε), three decimals rounded outward."""
    low, high = 1000 * cell["p_low"], 1000 * cell["p_high"]
    return f"{math.floor(low) / 1000:.3f}", f"{math.ceil(high) / 1000:.3f}"


def between(low: float, high: float) -> tuple[str, str]:
    """Limits to two decimals, rounded outward."""
    return f"{math.floor(100 * low) / 100:.2f}", f"{math.ceil(100 * high) / 100:.2f}"


def slope(fit: dict[str, Any] | None) -> str:
    """Limits of a power law's slope, rounded outward, and a mark where the law does not fit."""
    if fit is None:
        return "–"
    bent = " bent" if fit["lack_of_fit"] <= SIGNIFICANCE else ""
    return " to ".join(between(fit["low"], fit["high"])) + bent


def law(plan: dict[str, Any]) -> str:
    """The law of the weights in words."""
    return f"{plan['law']['family']} weights, scale {plan['law']['scaling']}"


def claim_of(delta: float | str, eps: float | str, pruned: str) -> str:
    """The claim P(gap <= eps) >= 1 - delta over the unit ball, in words.

    Args:
      delta, eps: numbers, or their signs where several are meant.
      pruned: what of a network is pruned, after "a network pruned".
    """
    return (
        f"with probability at least {_rest(delta)}, a network pruned {pruned} is within {eps} of "
        "the network it was pruned from, at every input of the unit ball"
    )


def _rest(delta: float | str) -> str:
    """1 - delta in percent, where that many digits are enough."""
    if isinstance(delta, str) or delta < 1e-9:
        return f"1 − {delta}"
    return percent(1.0 - delta)


def judged_names(confidence: float) -> tuple[str, ...]:
    """The columns of `judged_cells`; `confidence` is that of all of them together."""
    limits = f"P(gap ≤ ε), {percent(confidence)} together: from"
    return ("verdict", limits, "to", *COUNTS, "open because")


def judged_cells(found: dict[str, Any]) -> list[Cell]:
    """A verdict, its limits and counts as cells of a table."""
    low, high = limits(found)
    return [
        Cell(found["verdict"], style=found["verdict"]),
        Cell(low, found["p_low"]),
        Cell(high, found["p_high"]),
        *(Cell(str(found[key]), found[key]) for key in COUNTS),
        found["reason"] or "",
    ]


def target(cell: dict[str, Any]) -> str:
    """Kind and widths of a cell's network, as much as a table has room for."""
    return cell["network"].split(",")[0]


def how_sure(result: dict[str, Any]) -> str:
    """How often verdicts may be wrong."""
    confidence = result["cells"][0]["confidence"]
    if result["plan"]["correction"] == E_BH:
        share = percent(1.0 - confidence)
        return (
            f"the expected share of false verdicts is at most {share} among those that hold, and "
            "among those that are violated"
        )
    error = percent(1.0 - confidence)
    return (
        f"the probability that any claim is falsely said to hold is at most {error}, "
        f"and to be violated at most {error}"
    )


def caption(result: dict[str, Any]) -> list[str]:
    """What the columns mean, with every confidence in words."""
    confidence = percent(result["cells"][0]["confidence"])
    limits, test = "one-sided Clopper–Pearson limits", "Holm"
    if result["plan"]["until_decided"]:
        limits = "limits of a confidence sequence, right at any look,"
        test = "Holm on e-processes, right whenever a simulation stops,"
    if result["plan"]["correction"] == E_BH:
        test = "e-BH on e-values"
    return [
        "Claim of each row: P(gap ≤ ε) ≥ 1 − δ. Gap: sup ‖F(x) − f(x)‖ over a ball, or the "
        "largest over the test images. P: over weights (or trainings) and masks; images are fixed.",
        "Trials: close, upper bound ≤ ε; far, lower bound > ε, both proved in floating point; "
        "between, neither, or within 10⁻⁴ of ε; nonfinite. The last two count against either "
        "verdict.",
        "Where most trials are between, more trials will not decide: the bracket is too wide.",
        f"P(gap ≤ ε): {limits} from these counts, {confidence} confidence "
        "each. *: ε is the theorem's; certified ε is rounded up, and a claim whose ε is at least "
        "that is certified.",
        f"Verdicts ({test} over all {len(result['cells'])} claims, which may share trials): "
        f"{how_sure(result)}.",
        *_slopes(result),
        *_rerun(result),
        *warnings(result),
        _runs(result),
    ]


def _slopes(result):
    if result["exponents"]:
        confidence = percent(result["cells"][0]["confidence"])
        yield (
            f"Slopes: weighted least squares in log width, Student's limits at {confidence} each; "
            f"bent: a power law does not fit (p ≤ {SIGNIFICANCE:g}), and the limits are those of "
            "no law."
        )


def _rerun(result):
    """How many blocks were run twice."""
    if audited := result["blocks"]["audited"]:
        yield f"{audited} blocks were run twice and came out the same to the last bit."


def warnings(result: dict[str, Any]) -> list[str]:
    """What limits what the verdicts say: a failed audit, missing blocks, an exploratory run."""
    lines = []
    if failure := result["blocks"]["failed_audit"]:
        lines.append(
            f"An audit found that {failure}: what is said of probabilities is estimated until "
            "another one passes."
        )
    if not result["blocks"]["complete"]:
        lines.append(
            "Blocks are missing: a case counts up to the first missing one. Where trials were to "
            "be fixed, it has no verdict yet, and its limits are those of a confidence sequence."
        )
    runs = result["runs"]
    if runs["exploratory"]:
        seeds = ", ".join(str(seed) for seed in runs["seeds"])
        lines.append(
            f"The plan is for {runs['planned']}, and runs of seed {seeds} are known, so this run "
            f"is exploratory: its verdicts are {ESTIMATED}, its limits and slopes those of one run "
            "picked among several."
        )
    return lines


def _runs(result):
    """Which run of the plan this is, and which others are known."""
    plan, runs = result["plan"], result["runs"]
    seeds = ", ".join(str(seed) for seed in runs["seeds"])
    return (
        f"Plan {plan['hash'][:12]}, seed {runs['present']}; runs known of this plan: seed {seeds}."
    )


def summary(result: dict[str, Any]) -> str:
    """How many claims hold, and how many are proved."""
    counts = Counter(cell["verdict"] for cell in result["cells"])
    if counts[ESTIMATED]:
        return f"{len(result['cells'])} claims, {ESTIMATED} in an exploratory run"
    line = (
        f"{len(result['cells'])} claims: {counts[HOLDS]} hold, "
        f"{counts[VIOLATED]} violated, {counts[UNDECIDED]} undecided"
    )
    proved = sum(cell["by_theorem"] is not None for cell in result["cells"])
    return line + (f"; {proved} certified by theorem, whatever the trials say" if proved else "")


def claim(result: dict[str, Any]) -> str:
    """What the claims of `verify` say, in words."""
    cells = result["cells"]
    domains = " or ".join(dict.fromkeys(cell["domain"] for cell in cells))
    delta = " or ".join(map(_rest, dict.fromkeys(cell["delta"] for cell in cells)))
    return (
        f"Claims: with probability at least {delta}, a pruned network is within ε of the network "
        f"it was pruned from, at every input of: {domains}."
    )

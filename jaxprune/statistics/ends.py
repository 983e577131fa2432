"""Both ends of a bracket against delta, cell by cell of a study whose cells are fixed beforehand.

Holm's correction (`judge`) needs all p-values at hand. A study that looks at some of its cells
only, chosen by what other cells showed, is covered by Bonferroni's over ALL cells it might have
looked at: each cell's verdict is a function of its trials, whether anyone asks or not.
"""

from typing import NamedTuple

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.planning import trials_without_failure
from jaxprune.statistics.verdict import HOLDS, UNDECIDED, VIOLATED, Counts

BRACKET = "bracket"
"""Undecided, and no number of trials would decide it: shown, at the confidence of a verdict."""

TRIALS = "trials"
"""Undecided; more trials may decide it."""

TESTS = 4
"""One-sided tests of a cell; the two limits are right wherever two of them are."""


class Ends(NamedTuple):
    """What a cell's trials say of `P(gap <= eps) >= 1 - delta`, and of the same for both ends.

    Attributes:
      upper: verdict on `P(upper end <= eps) >= 1 - delta`.
      lower: verdict on `P(lower end <= eps) >= 1 - delta`.
      p_low: exact lower limit of P(gap <= eps), where only close trials count as successes.
      p_high: exact upper limit, where only far trials count as failures.
    """

    upper: str
    lower: str
    p_low: float
    p_high: float

    @property
    def verdict(self) -> str:
        """On the claim itself: it holds if its upper ends do, is violated if its lower ends do."""
        if self.upper == HOLDS:
            return HOLDS
        return VIOLATED if self.lower == VIOLATED else UNDECIDED

    @property
    def reason(self) -> str | None:
        """Why there is no verdict: `BRACKET`, `TRIALS`, or None if there is one."""
        if self.verdict != UNDECIDED:
            return None
        return BRACKET if (self.upper, self.lower) == (VIOLATED, HOLDS) else TRIALS


def level_of_one(confidence: float, cells: int) -> float:
    """The level of each test at which all verdicts and limits of `cells` cells are right together.

    Bonferroni, so under any dependence between the cells, common trials included.
    """
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    return (1.0 - confidence) / (TESTS * cells)


def least_trials(delta: float, level: float) -> int:
    """The least number of trials with which a cell can be said to hold, and to be violated."""
    return trials_without_failure(min(delta, 1.0 - delta), level)


def judge_ends(counts: Counts, delta: float, level: float) -> Ends:
    """Four exact binomial tests of one cell, and the limits that go with them.

    Args:
      counts: of independent trials; one that is not finite never counts as a success.
      delta: in (0, 1).
      level: of each test, see `level_of_one`.

    Raises:
      ValueError: a number out of range.
    """
    n, not_close = counts.trials, counts.not_close
    delta = validation.real("delta", delta, 0.0, 1.0)

    def verdict(most, least):
        """On a failure probability that `most` failures bound above and `least` below."""
        if binomial.p_value_at_most(most, n, delta) <= level:
            return HOLDS
        return VIOLATED if binomial.p_value_at_least(least, n, delta) <= level else UNDECIDED

    return Ends(
        upper=verdict(not_close, not_close),
        lower=verdict(counts.far + counts.nonfinite, counts.far),
        p_low=float(1.0 - binomial.upper_limit(not_close, n, level)),
        p_high=float(1.0 - binomial.lower_limit(counts.far, n, level)),
    )

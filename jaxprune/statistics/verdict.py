"""The decision about claims `P(gap <= eps) >= 1 - delta`.

A trial whose bracket leaves open on which side of epsilon the gap lies counts against either
answer, and so does one that is not finite.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.many import holm

HOLDS = "holds"
"""The claim is true, at the confidence stated with the verdict."""

VIOLATED = "violated"
"""The claim is false, at the confidence stated with the verdict."""

UNDECIDED = "undecided"
"""The trials do not tell."""

ESTIMATED = "estimated"
"""A number without a guarantee, by splitting or importance sampling: never a verdict on a claim."""


class Counts(NamedTuple):
    """Trials of one claim: upper end at most eps, open, lower end above eps, not finite."""

    close: int
    between: int
    far: int
    nonfinite: int


class Claim(NamedTuple):
    """`P(gap <= eps) >= 1 - delta`, with what its trials showed."""

    counts: Counts
    delta: float


class Decision(NamedTuple):
    """What the trials say of one claim.

    Attributes:
      verdict: `HOLDS`, `VIOLATED` or `UNDECIDED`.
      p_low: exact lower limit of P(gap <= eps), where only close trials count as successes.
      p_high: exact upper limit, where only far trials count as failures.
      p_value_holds: Holm-adjusted p-value of the null hypothesis that the claim is false.
      p_value_violated: Holm-adjusted p-value of the null hypothesis that it is true.
    """

    verdict: str
    p_low: float
    p_high: float
    p_value_holds: float
    p_value_violated: float


def judge(claims: Sequence[Claim], confidence: float = 0.99) -> list[Decision]:
    """Judges all claims of a plan together.

    Each limit, `p_low` and `p_high`, is one-sided Clopper-Pearson at the confidence by itself.
    The verdicts hold together: with the confidence no claim is said to hold that does not, and
    with the confidence none is said to be violated that is not (Holm over the claims, each kind
    of error by itself), however the claims' trials depend on each other.

    Args:
      claims: with independent trials within each claim.
      confidence: in (0, 1).

    Raises:
      ValueError: confidence, delta or a count out of range.
    """
    alpha = 1.0 - validation.real("confidence", confidence, 0.0, 1.0)
    for claim in claims:
        validation.instance("claim", claim, Claim, "a Claim(counts, delta) in a list")
        validation.instance(
            "counts", claim.counts, Counts, "Counts(close, between, far, nonfinite)"
        )
        validation.real("delta", claim.delta, 0.0, 1.0)
    counts = [
        Counts(*(validation.integer(k, v, 0, binomial.MAX_TRIALS) for k, v in c._asdict().items()))
        for c, _ in claims
    ]
    trials = [sum(c) for c in counts]
    not_close = [c.between + c.far + c.nonfinite for c in counts]
    far = [c.far for c in counts]
    deltas = [claim.delta for claim in claims]
    holds = holm(binomial.p_value_at_most(not_close, trials, deltas))
    violated = holm(binomial.p_value_at_least(far, trials, deltas))
    low = 1.0 - binomial.upper_limit(not_close, trials, alpha)
    high = 1.0 - binomial.lower_limit(far, trials, alpha)
    verdicts = np.where(holds <= alpha, HOLDS, np.where(violated <= alpha, VIOLATED, UNDECIDED))
    columns = (column.tolist() for column in (verdicts, low, high, holds, violated))
    return [Decision(*row) for row in zip(*columns, strict=True)]

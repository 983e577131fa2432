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

CERTIFIED = "certified"
"""True by a theorem whose every constant is a number; no trial was needed."""

ESTIMATED = "estimated"
"""Anything else that is said of a probability: it stands on assumptions that nothing here proves,
or on a run that was not planned. Never evidence for another verdict."""


class Counts(NamedTuple):
    """Trials of one claim: upper end at most eps, open, lower end above eps, not finite."""

    close: int
    between: int
    far: int
    nonfinite: int

    def checked(self) -> "Counts":
        """The same as Python integers; a ValueError that names the one out of range."""
        fields = self._asdict().items()
        return Counts(*(validation.integer(k, v, 0, binomial.MAX_TRIALS) for k, v in fields))

    @property
    def trials(self) -> int:
        return sum(self)

    @property
    def not_close(self) -> int:
        """Failures as far as anything is to be said for the claim."""
        return self.trials - self.close


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
      p_value_holds: p-value of the null hypothesis that the claim is false, adjusted for the
        number of claims.
      p_value_violated: the same of the null hypothesis that it is true.
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
    trials, not_close, far, deltas = columns(claims)
    return decide(
        alpha,
        holds=holm(binomial.p_value_at_most(not_close, trials, deltas)),
        violated=holm(binomial.p_value_at_least(far, trials, deltas)),
        low=1.0 - binomial.upper_limit(not_close, trials, alpha),
        high=1.0 - binomial.lower_limit(far, trials, alpha),
    )


def columns(claims: Sequence[Claim]) -> tuple[list[int], list[int], list[int], list[float]]:
    """Trials, trials not close, trials far and delta of each claim, all checked."""
    for claim in claims:
        validation.instance("claim", claim, Claim, "a Claim(counts, delta) in a list")
        validation.instance(
            "counts", claim.counts, Counts, "Counts(close, between, far, nonfinite)"
        )
        validation.real("delta", claim.delta, 0.0, 1.0)
    counts = [claim.counts.checked() for claim in claims]
    return (
        [c.trials for c in counts],
        [c.not_close for c in counts],
        [c.far for c in counts],
        [claim.delta for claim in claims],
    )


def decide(alpha: float, *, holds, violated, low, high) -> list[Decision]:
    """Verdicts of claims, each kind of error at `alpha`; arrays of one entry a claim.

    Args:
      alpha: the error allowed.
      holds, violated: p-values of the null hypotheses that each claim is false, and true,
        adjusted for their number.
      low, high: limits of P(gap <= eps).
    """
    verdicts = np.where(holds <= alpha, HOLDS, np.where(violated <= alpha, VIOLATED, UNDECIDED))
    rows = zip(*map(np.ndarray.tolist, (verdicts, low, high, holds, violated)), strict=True)
    return [Decision(*row) for row in rows]

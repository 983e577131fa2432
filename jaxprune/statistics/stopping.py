"""Claims whose trials are looked at while they come, and stop when they have said enough.

A look adds to the evidence for a claim and against it, as e-values (`sequential`). By Ville's
inequality the largest e-value of all looks, however many, exceeds 1 / alpha with probability at
most alpha where the null hypothesis is true: `exp(-largest)` is a p-value at any time one likes to
stop. So Holm's correction applies to claims that stopped at different times, for reasons of
their own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.statistics import sequential
from jaxprune.statistics.verdict import Claim, Counts, Decision, columns, decide


class Evidence(NamedTuple):
    """The largest logarithm of an e-value at any look so far.

    Attributes:
      holds: against the claim being false.
      violated: against its being true.
    """

    holds: float = 0.0
    violated: float = 0.0

    def look(self, counts: Counts, delta: float) -> "Evidence":
        """After one more look at a claim's trials, all of them since the first."""
        n = counts.trials
        holds = sequential.log_e_holds(counts.not_close, n, delta)
        violated = sequential.log_e_violated(counts.far, n, delta)
        return Evidence(max(self.holds, float(holds)), max(self.violated, float(violated)))

    def decides(self, level: float) -> bool:
        """Whether either p-value is at most `level`."""
        return max(self) >= -math.log(level)


def judge_stopped(
    claims: Sequence[Claim], evidence: Sequence[Evidence], confidence: float = 0.99
) -> list[Decision]:
    """`verdict.judge` of claims whose number of trials was decided by looking at them.

    The limits are those of a confidence sequence: right at any time one likes to stop.

    Args:
      claims: counts of all trials since the first.
      evidence: of each claim, looked at for the last time with these counts.
      confidence: in (0, 1).

    Raises:
      ValueError: as `judge`; lists of different lengths.
    """
    alpha = 1.0 - validation.real("confidence", confidence, 0.0, 1.0)
    if len(evidence) != len(claims):
        raise ValueError(f"evidence: {len(evidence)} for {len(claims)} claims")
    trials, not_close, far, _ = columns(claims)
    _, most = sequential.sequence_limits(not_close, trials, alpha)
    least, _ = sequential.sequence_limits(far, trials, alpha)
    return decide(
        alpha,
        holds=np.exp([-e.holds for e in evidence]),
        violated=np.exp([-e.violated for e in evidence]),
        low=1.0 - most,
        high=1.0 - least,
    )

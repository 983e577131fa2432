"""Claims whose trials are looked at while they come, and stop when they have said enough.

A look adds to the evidence for a claim and against it, as e-values (`sequential`). By Ville's
inequality the largest e-value of all looks, however many, exceeds 1 / alpha with probability at
most alpha where the null hypothesis is true: `exp(-largest)` is a p-value at any time one likes to
stop. So Holm's correction applies to claims that stopped at different times, for reasons of
their own. The last e-value is one, whenever the trials were stopped: e-BH takes those.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.statistics import sequential
from jaxprune.statistics.many import e_bh, holm
from jaxprune.statistics.verdict import Claim, Counts, Decision, columns, decide

HOLM = "holm"
"""Correction for many claims: none is wrong, with the confidence."""

E_BH = "e-bh"
"""Correction for many claims: few of those decided are wrong (false discovery rate)."""

CORRECTIONS = (HOLM, E_BH)


class Evidence(NamedTuple):
    """Logarithms of e-values.

    Attributes:
      holds: against the claim being false, the largest of all looks so far.
      violated: against its being true, likewise.
      last_holds, last_violated: of the last look.
    """

    holds: float = 0.0
    violated: float = 0.0
    last_holds: float = 0.0
    last_violated: float = 0.0

    def look(self, counts: Counts, delta: float) -> "Evidence":
        """After one more look at a claim's trials, all of them since the first."""
        n = counts.trials
        holds = float(sequential.log_e_holds(counts.not_close, n, delta))
        violated = float(sequential.log_e_violated(counts.far, n, delta))
        return Evidence(max(self.holds, holds), max(self.violated, violated), holds, violated)

    def decides(self, level: float, correction: str = HOLM) -> bool:
        """Whether the claim is decided with error `level`, by the evidence that is corrected."""
        largest = self.holds, self.violated
        last = self.last_holds, self.last_violated
        return max(last if correction == E_BH else largest) >= -math.log(level)


def judge_stopped(
    claims: Sequence[Claim],
    evidence: Sequence[Evidence],
    confidence: float = 0.99,
    correction: str = HOLM,
) -> list[Decision]:
    """`verdict.judge` of claims whose number of trials was decided by looking at them.

    The limits are those of a confidence sequence: right at any time one likes to stop.

    Args:
      claims: counts of all trials since the first.
      evidence: of each claim, looked at for the last time with these counts.
      confidence: in (0, 1).
      correction: `HOLM`, with the confidence no verdict of a kind is wrong; or `E_BH`, of the
        verdicts of a kind a share of at most 1 - confidence is wrong in the mean.

    Raises:
      ValueError: as `judge`; lists of different lengths.
    """
    alpha = 1.0 - validation.real("confidence", confidence, 0.0, 1.0)
    if len(evidence) != len(claims):
        raise ValueError(f"evidence: {len(evidence)} for {len(claims)} claims")
    trials, not_close, far, _ = columns(claims)
    validation.choice("correction", correction, CORRECTIONS)
    _, most = sequential.sequence_limits(not_close, trials, alpha)
    least, _ = sequential.sequence_limits(far, trials, alpha)
    if correction == E_BH:
        holds = e_bh([e.last_holds for e in evidence])
        violated = e_bh([e.last_violated for e in evidence])
    else:
        holds = holm(np.exp([-e.holds for e in evidence]))
        violated = holm(np.exp([-e.violated for e in evidence]))
    return decide(alpha, holds=holds, violated=violated, low=1.0 - most, high=1.0 - least)

"""Where a case stands while it is sampled, in words for whoever waits."""

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxprune.engine import Tally
from jaxprune.statistics import Claim, Counts, binomial, judge_stopped, sequential
from jaxprune.studies.cases import empty_tally
from jaxprune.studies.plan import Case, Plan


class Standing:
    """What the trials say of a case's first undecided claim, after each block.

    The limits are those of a confidence sequence, right however often one looks.

    Args:
      case: that is sampled.
      plan: its plan.
      watch: a `sampling.Watch` of it, of which nobody else makes use.
      kept: blocks of earlier sittings.
    """

    def __init__(self, case: Case, plan: Plan, watch: Any, kept: Iterable[Tally] = ()):
        self.case, self.plan, self.watch = case, plan, watch
        self.tally = sum(kept, empty_tally(case))
        self.before, self.start = self.tally.trials, time.perf_counter()

    def __call__(self, block: Tally) -> str:
        """After one more block."""
        self.tally += block
        self.watch(self.tally)
        evidence = self.watch.evidence
        decided = lambda e: evidence[e].decides(self.watch.level, self.watch.correction)
        eps = next((e for e in evidence if not decided(e)), next(iter(evidence)))
        counts, claim = self.tally.counts(eps), Claim(self.tally.counts(eps), self.plan.delta)
        (now,) = judge_stopped([claim], [evidence[eps]], self.plan.confidence_of_run)
        rate = (counts.trials - self.before) / max(time.perf_counter() - self.start, 1e-9)
        return (
            f"{counts.trials} trials, {rate:.3g}/s; P(gap <= {eps:.3g}) in {now.p_low:.3f} to "
            f"{now.p_high:.3f} ({100 * self.plan.confidence_of_run:g} % each); "
            f"{self._needed(counts)}"
        )

    def _needed(self, counts: Counts) -> str:
        """What would show that the claim holds, at the level of one claim among all."""
        delta, level, n = self.plan.delta, self.watch.level, self.case.trials
        if self.plan.until_decided:
            # The evidence of a case without a further failure grows with its trials.
            low, high = 0, max(n - counts.trials, 0)
            shows = lambda more: (
                -math.log(level)
                <= sequential.log_e_holds(counts.not_close, counts.trials + more, delta)
            )
            if not shows(high):
                return "the budget is too small to show that it holds"
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if shows(middle) else (middle + 1, high)
            return f"holds after {low} more trials if all are close"
        failures = np.arange(0, min(math.ceil(n * delta), 10**6) + 1)
        allowed = np.count_nonzero(binomial.p_value_at_most(failures, n, delta) <= level) - 1
        if allowed < counts.not_close:
            return "too many are not close to show that it holds"
        return f"holds if at most {allowed} of {n} are not close, {counts.not_close} so far"

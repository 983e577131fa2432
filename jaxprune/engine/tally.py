"""What is kept of the trials: integer counts, histograms and the exact worst, on the host.

Blocks may arrive in any order and grouping: every part merges exactly, associatively and
commutatively. Comparisons are made in float64, so epsilon is never moved by a cast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxprune import validation
from jaxprune.engine.sums import Distribution, Histogram, Integers, Moments
from jaxprune.engine.trial import Trial
from jaxprune.statistics import Counts, Mean, betting, empirical_bernstein, quantile_ranks
from jaxprune.types import BrokenInvariant

GUARD = 1e-4
"""Relative guard band around epsilon; a number this close to it decides nothing.

The ends of a bracket are theorems, and need none. But they differ by about 1e-6 between batch
shapes and machines, as the search goes other ways; with the band, counts hardly ever do."""

WORST_KEPT = 16


@dataclass(frozen=True)
class Tally:
    """The trials of one experiment.

    Attributes:
      eps: the epsilons at which trials are sorted, fixed before sampling.
      trials: all trials.
      close: for each epsilon, trials with `upper <= eps (1 - GUARD)`.
      far: for each epsilon, trials with `lower > eps (1 + GUARD)`.
      nonfinite: trials with a non-finite weight or bound; neither close nor far.
      lower, upper, sampled: histograms over the finite trials.
      squared: the finite trials' mean squared gaps per output.
      mean, relative: the finite trials' distances over the inputs, see `Trial`.
      target_correct, pruned_correct: sums over the finite trials.
      cap: a number fixed before sampling, such as a certified epsilon; infinite for none.
      capped_lower, capped_upper: of the finite trials, `min(bound, cap)`; empty without a cap.
      labelled: how many labelled inputs each trial had.
      changes: of the finite trials, by how many the pruned network has more correct.
      worst: `(lower, trial id)` of the largest lower bounds, largest first.
    """

    eps: tuple[float, ...]
    trials: int = 0
    close: tuple[int, ...] = ()
    far: tuple[int, ...] = ()
    nonfinite: int = 0
    lower: Histogram = field(default_factory=Histogram, repr=False)
    upper: Histogram = field(default_factory=Histogram, repr=False)
    sampled: Histogram = field(default_factory=Histogram, repr=False)
    squared: Moments = field(default=Moments(), repr=False)
    mean: Distribution = field(default_factory=Distribution, repr=False)
    relative: Distribution = field(default_factory=Distribution, repr=False)
    target_correct: int = 0
    pruned_correct: int = 0
    cap: float = math.inf
    capped_lower: Moments = field(default=Moments(), repr=False)
    capped_upper: Moments = field(default=Moments(), repr=False)
    labelled: int = 0
    changes: Integers = field(default_factory=Integers, repr=False)
    worst: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    def __post_init__(self):
        for name in ("close", "far"):
            if not getattr(self, name):
                object.__setattr__(self, name, (0,) * len(self.eps))

    @staticmethod
    def of(
        eps: Sequence[float],
        ids: Sequence[int],
        trials: Trial,
        labelled: int = 0,
        cap: float = math.inf,
    ) -> "Tally":
        """Tally of some trials.

        Args:
          eps: positive numbers.
          ids: the trials' ids.
          trials: arrays `(len(ids),)`.
          labelled: how many labelled inputs each trial had.
          cap: at which gaps are cut off for their mean.

        Raises:
          BrokenInvariant: a pair's lower bound exceeds its upper bound by more than the guard band.
        """
        t = Trial(*(np.asarray(field) for field in trials))
        ok = t.finite
        lower, upper = t.lower[ok].astype(np.float64), t.upper[ok].astype(np.float64)
        ids = np.asarray(ids)
        if (broken := lower > upper * (1 + GUARD)).any():
            i = int(np.flatnonzero(broken)[0])
            raise BrokenInvariant(f"trial {ids[ok][i]}: lower {lower[i]:g} > upper {upper[i]:g}")
        worst = zip(lower.tolist(), ids[ok].tolist(), strict=True)
        return Tally(
            eps=tuple(eps),
            trials=len(ids),
            close=tuple(int((upper <= e * (1 - GUARD)).sum()) for e in eps),
            far=tuple(int((lower > e * (1 + GUARD)).sum()) for e in eps),
            nonfinite=int((~ok).sum()),
            lower=Histogram.of(lower),
            upper=Histogram.of(upper),
            sampled=Histogram.of(t.sampled[ok]),
            squared=Moments.of(t.rms[ok].astype(np.float64) ** 2),
            mean=Distribution.of(t.mean[ok]),
            relative=Distribution.of(t.relative[ok]),
            target_correct=int(t.target_correct[ok].astype(np.int64).sum()),
            pruned_correct=int(t.pruned_correct[ok].astype(np.int64).sum()),
            cap=cap,
            capped_lower=_capped(lower, cap),
            capped_upper=_capped(upper, cap),
            labelled=labelled,
            changes=Integers.of(t.pruned_correct[ok].astype(np.int64) - t.target_correct[ok]),
            worst=_largest(worst),
        )

    def __add__(self, other: "Tally") -> "Tally":
        """The two tallies as one; both must be of the same questions and disjoint trials."""
        for name in ("eps", "cap", "labelled"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"{name} = {theirs}: {mine} is needed to add tallies")
        return Tally(
            eps=self.eps,
            cap=self.cap,
            labelled=self.labelled,
            close=_add(self.close, other.close),
            far=_add(self.far, other.far),
            worst=_largest((*self.worst, *other.worst)),
            **{
                name: getattr(self, name) + getattr(other, name)
                for name in (
                    "trials",
                    "nonfinite",
                    "lower",
                    "upper",
                    "sampled",
                    "squared",
                    "mean",
                    "relative",
                    "target_correct",
                    "pruned_correct",
                    "changes",
                    "capped_lower",
                    "capped_upper",
                )
            },
        )

    @property
    def finite(self) -> int:
        return self.trials - self.nonfinite

    def counts(self, eps: float) -> Counts:
        """Close, between, far and non-finite trials at one of the tally's epsilons.

        Raises:
          ValueError: trials were not sorted at this epsilon.
        """
        if eps not in self.eps:
            raise ValueError(f"eps = {eps!r}: one of {self.eps} is needed, fixed before sampling")
        i = self.eps.index(eps)
        between = self.finite - self.close[i] - self.far[i]
        return Counts(self.close[i], between, self.far[i], self.nonfinite)

    def gap_quantile(self, p: float) -> tuple[float, float]:
        """The p-quantile of the trials' gaps: of their lower bounds, and of their upper.

        Estimates, to 0.8 %, rounded outward; non-finite trials count as infinite.
        """
        p = validation.real("p", p, 0.0, 1.0, open=False)
        return (
            self.lower.quantile(p, self.trials, above=False),
            self.upper.quantile(p, self.trials, above=True),
        )

    def gap_quantile_limits(self, tail: float, alpha: float) -> tuple[float, float]:
        """Limits of the gap that a fraction `tail` of all pairs exceeds, by order statistics.

        With probability 1 - alpha both are right, whatever the distribution, if the number of
        trials was fixed beforehand (`statistics.quantile_ranks`). The lower one is of lower bounds,
        the upper one of upper bounds, rounded outward by at most 0.8 %; a trial that is not finite
        counts as the smallest of the ones and the largest of the others.

        Returns:
          0 and infinity where the trials are too few.
        """
        low, high, _, _ = quantile_ranks(self.trials, tail, alpha)
        least = 0.0
        if low is not None and low > self.nonfinite:
            least = self.lower.ranked(low - self.nonfinite, above=False)
        return least, math.inf if high is None else self.upper.ranked(high, above=True)

    def mean_squared_gap(self) -> tuple[float, float]:
        """Mean over the finite trials of the mean squared gap per output, and its standard error.

        NaN where there are too few trials.
        """
        return self.squared.mean()

    def mean_capped_gap_limits(self, alpha: float) -> Mean:
        """Limits of the mean of `min(gap, cap)` over all pairs, each at alpha by itself.

        By empirical Bernstein bounds (`statistics.empirical_bernstein`), for a number of trials
        fixed beforehand; the lower one from lower bounds, the upper one from upper bounds. A trial
        that is not finite counts as 0 and as the cap.

        Raises:
          ValueError: there is no cap.
        """
        if not math.isfinite(self.cap):
            raise ValueError(f"cap = {self.cap}: one is needed, fixed before sampling")

        def limits(moments):
            n = moments.count
            mean, error = moments.mean() if n else (0.0, 0.0)
            return empirical_bernstein(
                min(mean, self.cap),
                error**2 * n if n > 1 else 0.0,
                n,
                alpha,
                low=0.0,
                high=self.cap,
                nonfinite=self.nonfinite,
                sides=1,
            )

        return Mean(limits(self.capped_lower).low, limits(self.capped_upper).high)

    def accuracy_change_limits(self, alpha: float, seed: int) -> Mean:
        """Limits of the mean change in accuracy over all pairs, each at alpha by itself.

        By betting (`statistics.betting`), for a number of trials fixed beforehand. A tally does
        not keep the trials' order; independent trials may be taken in one drawn from the seed. A
        trial that is not finite counts as -1 in the lower limit and as 1 in the upper.

        Args:
          alpha: in (0, 1).
          seed: of the order.

        Raises:
          ValueError: no inputs were labelled.
        """
        if not self.labelled:
            raise ValueError("labelled = 0: labelled inputs are needed for an accuracy")
        values = self.changes.each() / self.labelled
        values = np.concatenate([values, np.full(self.nonfinite, np.nan)])
        values = np.random.default_rng(seed).permutation(values)
        planned = max(1, self.trials)
        return betting(values, values, alpha, low=-1.0, high=1.0, planned=planned, sides=1)

    def mean_distance(self) -> tuple[float, float]:
        """`||F(x) - f(x)||`, averaged over the inputs and the finite trials; its standard error.

        The inputs are the rows of a data set, or the random samples of a ball. The error is of the
        average over trials; the inputs of a data set are fixed.
        """
        return self.mean.mean()

    def mean_distance_quantile(self, p: float) -> tuple[float, float]:
        """The p-quantile of the trials' mean distances, to 0.8 %, rounded down and up.

        Non-finite trials count as infinite.
        """
        return self.mean.quantile(p, self.trials)

    def relative_distance(self) -> tuple[float, float]:
        """`max ||F(x) - f(x)|| / ||F(x)||` over the inputs, averaged over the finite trials.

        Returns:
          The average and its standard error; infinite and NaN if `F(x) = 0 != f(x)` anywhere.
        """
        return self.relative.mean()

    def relative_distance_quantile(self, p: float) -> tuple[float, float]:
        """The p-quantile of the trials' largest relative distances; see `relative_distance`.

        To 0.8 %, rounded down and up; non-finite trials count as infinite.
        """
        return self.relative.quantile(p, self.trials)


def _capped(bounds, cap):
    return Moments.of(np.minimum(bounds, cap)) if math.isfinite(cap) else Moments()


def _add(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _largest(pairs):
    return tuple(sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:WORST_KEPT])

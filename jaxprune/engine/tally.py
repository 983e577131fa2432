"""What is kept of the trials: integer counts, histograms and the exact worst, on the host.

Blocks may arrive in any order and grouping: every part merges exactly, associatively and
commutatively. Comparisons are made in float64, so epsilon is never moved by a cast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxprune import validation
from jaxprune.engine.trial import Trial
from jaxprune.statistics import Counts

GUARD = 1e-4
"""Relative guard band around epsilon; a number this close to it decides nothing. The same trial
differs by about 1e-6 between batch shapes, and float32 from float64 by at most 5e-6 in 500 pairs
of widths 16 to 256: the band is 20 times that."""

WORST_KEPT = 16
_BUCKETS = 2**16


class BrokenBracket(RuntimeError):
    """A lower bound above its upper bound: the code, the compiler or the machine is wrong."""


@dataclass(frozen=True)
class Histogram:
    """Counts of non-negative float32 numbers by their top 16 bits: buckets 0.8 % wide.

    Attributes:
      counts: int64 `(65536,)`.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64))

    @staticmethod
    def of(values: np.ndarray) -> "Histogram":
        buckets = np.asarray(values, np.float32).view(np.uint32) >> 16
        return Histogram(np.bincount(buckets, minlength=_BUCKETS).astype(np.int64))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.counts + other.counts)

    def quantile(self, p: float, total: int, *, above: bool) -> float:
        """The p-quantile of `total` numbers, of which those not counted here are infinite.

        Args:
          p: in [0, 1].
          total: at least the number of values counted.
          above: return the upper edge of the quantile's bucket instead of the lower one.

        Returns:
          The edge; infinity where the quantile is not among the counted.
        """
        rank = max(1, math.ceil(p * total))
        cumulative = np.cumsum(self.counts)
        if total == 0 or rank > cumulative[-1]:
            return math.inf
        bucket = int(np.searchsorted(cumulative, rank))
        edges = np.array([bucket << 16, (bucket << 16) | 0xFFFF], np.uint32).view(np.float32)
        return float(edges[int(above and bucket > 0)])


@dataclass(frozen=True)
class ExactSum:
    """A sum of float64 numbers without rounding, in units of 2^-1074."""

    units: int = 0

    @staticmethod
    def of(values: np.ndarray) -> "ExactSum":
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("values: finite numbers are needed")
        mantissas, exponents = np.frexp(values)
        mantissas = (mantissas * 2.0**53).astype(np.int64)
        shifts = exponents + (1074 - 53)
        total = 0
        for shift in np.unique(shifts):
            m = mantissas[shifts == shift]
            # Two halves, so that int64 holds the sum of 2^36 of them.
            part = (int((m >> 26).sum()) << 26) + int((m & (2**26 - 1)).sum())
            total += part << int(shift) if shift >= 0 else part >> int(-shift)
        return ExactSum(total)

    def __add__(self, other: "ExactSum") -> "ExactSum":
        return ExactSum(self.units + other.units)

    def over(self, count: int) -> float:
        """The sum divided by a count, rounded once."""
        return self.units / (count << 1074)


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
      mean_square, mean_fourth: sums of the trials' mean squared gap and of its square.
      target_correct, pruned_correct: sums over the finite trials.
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
    mean_square: ExactSum = field(default=ExactSum(), repr=False)
    mean_fourth: ExactSum = field(default=ExactSum(), repr=False)
    target_correct: int = 0
    pruned_correct: int = 0
    worst: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    @staticmethod
    def of(eps: Sequence[float], ids: Sequence[int], trials: Trial) -> "Tally":
        """Tally of some trials.

        Args:
          eps: positive numbers.
          ids: the trials' ids.
          trials: arrays `(len(ids),)`.

        Raises:
          BrokenBracket: a pair's lower bound exceeds its upper bound by more than the guard band.
        """
        t = Trial(*(np.asarray(field) for field in trials))
        ok = t.finite
        lower, upper = t.lower[ok].astype(np.float64), t.upper[ok].astype(np.float64)
        ids = np.asarray(ids)
        if (broken := lower > upper * (1 + GUARD)).any():
            i = int(np.flatnonzero(broken)[0])
            raise BrokenBracket(f"trial {ids[ok][i]}: lower {lower[i]:g} > upper {upper[i]:g}")
        mean_square = t.rms[ok].astype(np.float64) ** 2
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
            mean_square=ExactSum.of(mean_square),
            mean_fourth=ExactSum.of(mean_square**2),
            target_correct=int(t.target_correct[ok].astype(np.int64).sum()),
            pruned_correct=int(t.pruned_correct[ok].astype(np.int64).sum()),
            worst=_largest(worst),
        )

    def __add__(self, other: "Tally") -> "Tally":
        """The two tallies as one; both must be of the same epsilons and disjoint trials."""
        if self.eps != other.eps:
            raise ValueError(f"eps = {other.eps}: {self.eps} is needed to add tallies")
        return Tally(
            eps=self.eps,
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
                    "mean_square",
                    "mean_fourth",
                    "target_correct",
                    "pruned_correct",
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

    def mean_squared_gap(self) -> tuple[float, float]:
        """Mean over the finite trials of the mean squared gap per output, and its standard error.

        NaN where there are too few trials.
        """
        n = self.finite
        if n == 0:
            return math.nan, math.nan
        mean = self.mean_square.over(n)
        variance = max(0.0, self.mean_fourth.over(n) - mean**2)
        return mean, math.sqrt(variance / (n - 1)) if n > 1 else math.nan


def _add(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True)) if a and b else a or b


def _largest(pairs):
    return tuple(sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:WORST_KEPT])

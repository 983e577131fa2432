"""Counts and sums that merge exactly, in any order and grouping."""

import math
from dataclasses import dataclass, field

import numpy as np

from jaxprune import validation

_NONE = np.zeros(0, np.int64)
_NONE.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Integers:
    """How often each integer occurred.

    Attributes:
      values: int64, rising.
      counts: int64, how often each occurred, at least once.
    """

    values: np.ndarray = field(default_factory=lambda: _NONE)
    counts: np.ndarray = field(default_factory=lambda: _NONE)

    @staticmethod
    def of(values: np.ndarray) -> "Integers":
        return Integers(*np.unique(np.asarray(values, np.int64), return_counts=True))

    def __add__(self, other: "Integers") -> "Integers":
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Integers(values, counts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Integers)
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.counts, other.counts)
        )

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    def each(self) -> np.ndarray:
        """All of them, sorted."""
        return np.repeat(self.values, self.counts)


@dataclass(frozen=True)
class Histogram:
    """Counts of non-negative float32 numbers by their top 16 bits: buckets 0.8 % wide.

    Attributes:
      buckets: those top bits.
    """

    buckets: Integers = field(default_factory=Integers)

    @staticmethod
    def of(values: np.ndarray) -> "Histogram":
        return Histogram(Integers.of(np.asarray(values, np.float32).view(np.uint32) >> 16))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.buckets + other.buckets)

    def quantile(self, p: float, total: int, *, above: bool) -> float:
        """The p-quantile of `total` numbers, of which those not counted here are infinite.

        Args:
          p: in [0, 1].
          total: at least the number of values counted.
          above: return the upper edge of the quantile's bucket instead of the lower one.

        Returns:
          The edge; infinity where the quantile is not among the counted.
        """
        return self.ranked(max(1, math.ceil(p * total)), above=above) if total else math.inf

    def ranked(self, rank: int, *, above: bool) -> float:
        """The number of a rank, the smallest having rank 1; as `quantile`."""
        cumulative = np.cumsum(self.buckets.counts)
        if not len(cumulative) or rank > cumulative[-1]:
            return math.inf
        bucket = int(self.buckets.values[np.searchsorted(cumulative, rank)])
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
class Moments:
    """How many finite numbers there are, their sum and the sum of their squares."""

    count: int = 0
    total: ExactSum = ExactSum()
    squares: ExactSum = ExactSum()

    @staticmethod
    def of(values: np.ndarray) -> "Moments":
        values = np.asarray(values, np.float64)
        return Moments(len(values), ExactSum.of(values), ExactSum.of(values**2))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def mean(self) -> tuple[float, float]:
        """The mean and its standard error; NaN where there are too few numbers."""
        n = self.count
        if n == 0:
            return math.nan, math.nan
        mean = self.total.over(n)
        variance = max(0.0, self.squares.over(n) - mean**2)
        return mean, math.sqrt(variance / (n - 1)) if n > 1 else math.nan


@dataclass(frozen=True)
class Distribution:
    """Non-negative float32 numbers, some of them infinite.

    Attributes:
      histogram: of the finite ones.
      moments: of the finite ones.
      infinite: how many of them are infinite.
    """

    histogram: Histogram = field(default_factory=Histogram)
    moments: Moments = Moments()
    infinite: int = 0

    @staticmethod
    def of(values: np.ndarray) -> "Distribution":
        finite = values[np.isfinite(values)]
        return Distribution(Histogram.of(finite), Moments.of(finite), len(values) - len(finite))

    def __add__(self, other: "Distribution") -> "Distribution":
        return Distribution(
            self.histogram + other.histogram,
            self.moments + other.moments,
            self.infinite + other.infinite,
        )

    def mean(self) -> tuple[float, float]:
        """The mean and its standard error: infinite and NaN if a number is infinite."""
        return (math.inf, math.nan) if self.infinite else self.moments.mean()

    def quantile(self, p: float, total: int) -> tuple[float, float]:
        """`Histogram.quantile`, rounded down and up."""
        p = validation.real("p", p, 0.0, 1.0, open=False)
        return (
            self.histogram.quantile(p, total, above=False),
            self.histogram.quantile(p, total, above=True),
        )

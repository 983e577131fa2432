"""The family of norm bounds: what each theorem says of the norm of one random matrix.

Every member answers the same two questions: a number that `E ||X||` does not exceed, and a number
that `||X||` exceeds with probability at most delta. `Tail` holds the members that apply to one
matrix, reads them at any delta, and names the least. Proofs: README.md.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

ORDERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
"""The p of the trace moments `E tr (X Xᵀ)^p` that are looked at."""


class NormBound(NamedTuple):
    """`P(||X|| > value) <= delta`.

    Attributes:
      value: the bound.
      name: which bound it is, and its parameter.
      reference: where it is proved.
      mean: what the same theorem bounds E ||X|| by, of magnitude pruning's parts over the event of
        README, theorem 2; infinity if nothing.
    """

    value: float
    name: str
    reference: str
    mean: float = math.inf


NOTHING = NormBound(0.0, "no entries", "-", 0.0)


class Member(Protocol):
    """One theorem applied to one matrix X, of standard entries.

    Attributes:
      name: what the field calls it.
      reference: where it is proved.
      mean: at least E ||X||; infinity if the theorem does not say.
    """

    name: str
    reference: str
    mean: float

    def tail(self, log_delta: np.ndarray) -> np.ndarray:
        """`P(||X|| > tail) <= delta` for each `log delta`, any shape."""

    def describe(self, log_delta: float) -> str:
        """The name, with the parameter used at this delta."""


@dataclass(frozen=True)
class TraceMoments:
    """Markov's inequality, `P(||X|| >= t) <= E ||X||^(2p) / t^(2p)`, at the best p.

    Attributes:
      log_moments: at least `log E ||X||^(2p)`, one a p of `ORDERS`.
    """

    name: str
    reference: str
    log_moments: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.exp(min(v / (2 * p) for p, v in zip(ORDERS, self.log_moments, strict=True)))

    def _logarithms(self, log_delta):
        log_delta = np.asarray(log_delta)[..., None]
        return (np.asarray(self.log_moments) - log_delta) / (2 * np.asarray(ORDERS))

    def tail(self, log_delta):
        return np.exp(np.min(self._logarithms(log_delta), axis=-1))

    def describe(self, log_delta):
        return f"{self.name}, p = {ORDERS[int(np.argmin(self._logarithms(log_delta)))]}"


@dataclass(frozen=True)
class Concentrated:
    """`P(||X|| >= mean + t) <= exp(-t² / (2 lipschitz²))`."""

    name: str
    reference: str
    mean: float
    lipschitz: float

    def tail(self, log_delta):
        return self.mean + self.lipschitz * np.sqrt(-2.0 * np.asarray(log_delta))

    def describe(self, log_delta):
        return self.name


@dataclass(frozen=True)
class Bernstein:
    """`P(||X|| >= t) <= dimension exp(-(t²/2) / (variance + bound t / 3))`, Bernstein's tail.

    J. A. Tropp, An introduction to matrix concentration inequalities, 2015, Theorem 6.1.1.

    Attributes:
      dimension: rows and columns together, of all matrices whose largest norm is meant.
      variance: the larger of `||E X Xᵀ||` and `||E Xᵀ X||`.
      bound: of every entry.
    """

    name: str
    reference: str
    dimension: float
    variance: float
    bound: float

    @property
    def mean(self) -> float:
        log_dimension = math.log(self.dimension)
        return math.sqrt(2 * self.variance * log_dimension) + self.bound * log_dimension / 3

    def tail(self, log_delta):
        exponent = math.log(self.dimension) - np.asarray(log_delta)
        linear = self.bound * exponent / 3
        return linear + np.sqrt(linear**2 + 2 * self.variance * exponent)

    def describe(self, log_delta):
        return self.name


@dataclass(frozen=True)
class Always:
    """`||X|| <= mean` on every draw."""

    name: str
    reference: str
    mean: float

    def tail(self, log_delta):
        return np.full(np.shape(log_delta), self.mean)

    def describe(self, log_delta):
        return self.name


@dataclass(frozen=True)
class Tail:
    """All that is known of the norm of one random matrix, ready to be read at any delta.

    Attributes:
      scale: a factor on everything below.
      members: the theorems that apply; none if X = 0.
    """

    scale: float
    members: tuple[Member, ...]

    @property
    def is_zero(self) -> bool:
        return not self.members

    @property
    def mean(self) -> float:
        """At least E ||X||."""
        return self.scale * min((member.mean for member in self.members), default=0.0)

    def values(self, log_delta: np.ndarray) -> np.ndarray:
        """The least bound at each `log delta`, of any shape."""
        if self.is_zero:
            return np.zeros(np.shape(log_delta))
        return self.scale * np.min([member.tail(log_delta) for member in self.members], axis=0)

    def each(self, delta: float) -> tuple[NormBound, ...]:
        """Every member's answer, the least first; each holds with probability `1 - delta`."""
        log_delta = math.log(delta)
        answers = [
            NormBound(
                self.scale * float(member.tail(log_delta)),
                member.describe(log_delta),
                member.reference,
                self.scale * member.mean,
            )
            for member in self.members
        ]
        return tuple(sorted(answers, key=lambda answer: answer.value))

    def at(self, delta: float) -> NormBound:
        """The least of the bounds; the choice depends on no random quantity."""
        return NOTHING if self.is_zero else self.each(delta)[0]


ZERO = Tail(0.0, ())

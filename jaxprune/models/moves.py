"""Distances of a model and its pruned copy at given inputs, and what they say of further ones."""

from dataclasses import dataclass, field

import numpy as np

from jaxprune import validation
from jaxprune.statistics import (
    Claim,
    Counts,
    Decision,
    judge,
    lower_limit,
    quantile_ranks,
    upper_limit,
)

BAND = 20.0
"""A distance this many times its rounding error from epsilon, or less, counts neither way."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Distances `||F(x) - f(x)||` of a model and its pruned copy at n inputs.

    What is said of probabilities is about further inputs, if these n were drawn independently from
    the same source, and the masks were chosen without them.

    Attributes:
      distances: `(n,)` float64, Euclidean over all outputs of an input.
      sizes: `(n,)` float64, of `||F(x)||`.
      width: how many outputs an input has.
      error: the largest error of a distance against float64, over `||F|| + ||F - f||`, at up to 64
        inputs. NaN if the model computes in a type of its own whatever its parameters have; then
        nothing is decided. `dataclasses.replace(moves, error=0.0)` takes its outputs as they are.
      changed: how many finite inputs have another largest output (class) than before, as computed;
        None unless an output is a vector of at least two.
      correct, pruned_correct: how many labelled inputs were, and are, classified correctly; None
        without labels.
    """

    distances: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    width: int
    error: float
    changed: int | None = None
    correct: int | None = None
    pruned_correct: int | None = None

    @property
    def n(self) -> int:
        """How many inputs."""
        return len(self.distances)

    @property
    def largest(self) -> float:
        """The largest distance; NaN if one is not a number."""
        return float(np.max(self.distances))

    @property
    def finite(self) -> np.ndarray:
        """`(n,)` Boolean, where both outputs are finite."""
        return np.isfinite(self.distances) & np.isfinite(self.sizes)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """`(n,)` lower and upper ends of the distances, 20 times their rounding error apart.

        0 and infinity where an output is not finite, or the error unknown.
        """
        with np.errstate(invalid="ignore"):
            band = BAND * self.error * (self.sizes + self.distances)
            low, high = np.maximum(self.distances - band, 0.0), self.distances + band
        told = self.finite & np.isfinite(band)
        return np.where(told, low, 0.0), np.where(told, high, np.inf)

    def counts(self, eps: float) -> Counts:
        """Inputs that move at most eps, too near to eps to tell, further, and not finite."""
        eps = validation.real("eps", eps, 0.0, np.inf)
        low, high = self.ends
        finite = int(self.finite.sum())
        close, far = int((high <= eps).sum()), int((low > eps).sum())
        return Counts(close, finite - close - far, far, self.n - finite)

    def within(self, eps: float, delta: float = 0.05, confidence: float = 0.99) -> Decision:
        """Whether `P(||F(x) - f(x)|| <= eps) >= 1 - delta` over inputs x.

        Args:
          eps: fixed before the distances were seen.
          delta: share of inputs that may move further, in (0, 1).
          confidence: of the verdict and of each limit by itself, see `statistics.judge`.
        """
        return judge([Claim(self.counts(eps), delta)], confidence)[0]

    def quantile(self, tail: float, confidence: float = 0.99) -> tuple[float, float]:
        """Limits of the distance that a share `tail` of all inputs exceeds, by order statistics.

        Both hold together with the confidence, whatever the distribution of distances. An input
        whose outputs are not finite counts as 0 in the lower limit, as infinite in the upper.

        Returns:
          0 and infinity where the inputs are too few.
        """
        confidence = validation.real("confidence", confidence, 0.0, 1.0)
        ranks = quantile_ranks(self.n, tail, 1.0 - confidence)
        low, high = map(np.sort, self.ends)
        return (
            0.0 if ranks.low is None else float(low[ranks.low - 1]),
            np.inf if ranks.high is None else float(high[ranks.high - 1]),
        )

    def changed_share(self, confidence: float = 0.99) -> tuple[float, float]:
        """Limits of the share of all inputs whose class changes (Clopper-Pearson, two-sided).

        An input whose outputs are not finite counts against either limit.

        Raises:
          ValueError: an output is no vector of at least two.
        """
        if self.changed is None:
            raise ValueError("changed = None: the model's outputs are no classes")
        half = 0.5 * (1.0 - validation.real("confidence", confidence, 0.0, 1.0))
        most = self.changed + self.n - int(self.finite.sum())
        low, high = lower_limit(self.changed, self.n, half), upper_limit(most, self.n, half)
        return float(low), float(high)

    def __str__(self):
        low, high = self.quantile(0.05)
        lines = [
            f"{self.n} inputs: distance {np.mean(self.distances):.4g} in the mean, "
            f"{self.largest:.4g} at most; outputs {np.mean(self.sizes):.4g} in the mean",
            f"95 % of all inputs move at most q, q in [{low:.4g}, {high:.4g}] (99 % confidence)",
        ]
        if self.changed is not None:
            low, high = self.changed_share()
            share = f"{100 * low:.2f} % to {100 * high:.2f} % of all inputs (99 % confidence)"
            lines.append(f"{self.changed} change class: {share}")
        if self.correct is not None:
            lines.append(f"{self.correct} were correct, {self.pruned_correct} are now")
        return "\n".join(lines)

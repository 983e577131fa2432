"""A plan and its cases."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxprune import bounds
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.studies.plan.keys import TEST_IMAGES
from jaxprune.studies.result import sha256
from jaxprune.studies.trained import Recipe


@dataclass(frozen=True)
class Case:
    """One simulation of a plan, and the epsilons at which it is judged.

    Attributes:
      title: of its experiment.
      network: the architecture.
      targets: the law of sampled targets, or the recipe of trained ones.
      pruning: the method.
      amount: of each pruned layer.
      pruned: one Boolean a layer.
      domain: `UNIT_BALL`, `LINF_BALL` or `TEST_IMAGES`.
      ball: over which the gap is bracketed, unless it is taken over the test images.
      trials: independent pairs.
      certificate: the explicit theorem at the plan's delta; None for trained targets, and for
        another ball than the unit ball.
      eps: `(epsilon, "theorem" or "asked")`, fixed before sampling.
    """

    title: str
    network: Network
    targets: Law | Recipe
    pruning: Pruning
    amount: Amount
    pruned: tuple[bool, ...]
    domain: str
    ball: UnitBall | LinfBall
    trials: int
    certificate: bounds.Certificate | None
    eps: tuple[tuple[float, str], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the pruned layers."""
        return tuple(itertools.compress(self.network.names, self.pruned))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """(Expected) fraction removed from each layer."""
        return tuple(
            self.pruning.removed(self.amount, count) / count if chosen else 0.0
            for count, chosen in zip(self.network.weight_counts, self.pruned, strict=True)
        )

    @property
    def inputs(self) -> str:
        """What the gap is taken over, as results say it."""
        return TEST_IMAGES if self.domain == TEST_IMAGES else str(self.ball)

    def __str__(self):
        return f"{self.network}: {self.pruning}, {self.amount}"


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before sampling.

    Attributes:
      title: heading of the report.
      seed: of all random keys.
      delta: the claim is P(gap <= eps) >= 1 - delta.
      confidence: of every limit and of the verdicts together.
      until_decided: whether a case's sampling ends once its claims are decided.
      correction: `statistics.HOLM` or `statistics.E_BH`.
      stream: of random bits, of `bits.STREAMS`.
      runs: for how many seeds the plan is.
      cases: in the order of the report.
      source: the plan as plain data, with the command line's values and defaults filled in.
    """

    title: str
    seed: int
    delta: float
    confidence: float
    until_decided: bool
    correction: str
    stream: str
    runs: int
    cases: tuple[Case, ...]
    source: Mapping[str, Any]

    @property
    def confidence_of_run(self) -> float:
        """Of the limits and verdicts of one run: all planned runs share the error allowed."""
        return 1.0 - (1.0 - self.confidence) / self.runs

    @property
    def hash(self) -> str:
        """SHA-256 of the plan's canonical JSON."""
        return sha256(self.source)

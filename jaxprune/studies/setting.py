"""What frontier and threshold have in common: networks by width, and how pairs are drawn."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxprune import engine, validation
from jaxprune.engine import keys
from jaxprune.engine.simulate import MAX_TRIALS_AT_ONCE
from jaxprune.gaps import UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning
from jaxprune.statistics import least_trials, level_of_one
from jaxprune.studies.result import Progress, law_source

MAX_CELLS = 100_000
MAX_WIDTHS = 100
"""Each is a program of its own."""

Layers = str | Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True)
class Setting:
    """Everything about a study's pairs but the amount pruned; checked by `setting`."""

    widths: tuple[int, ...]
    networks: tuple[Network, ...]
    law: Law
    pruning: Pruning
    layers: Layers
    trials: int
    confidence: float
    domain: UnitBall
    seed: int

    def prepare(self, network: Network, amount: Amount) -> engine.Run:
        """The simulation of one network; equal trials whatever the amount."""
        return engine.prepare(
            network,
            self.law,
            self.pruning,
            amount,
            trials=self.trials,
            layers=self.layers,
            domain=self.domain,
            seed=self.seed,
        )

    def level(self, cells: int, deltas: Sequence[float]) -> float:
        """The level of each test; refuses too few trials for any cell to be said to hold."""
        validation.integer("cells (widths times sparsities, or epsilons)", cells, 1, MAX_CELLS)
        level = level_of_one(self.confidence, cells)
        for delta in deltas:
            needed = least_trials(delta, level)
            if self.trials < needed:
                raise ValueError(
                    f"trials = {self.trials}: at least {needed} are needed for any verdict at "
                    f"delta = {delta:g} and confidence = {self.confidence:g} of {cells} cells"
                )
        return level

    def facts(self) -> dict[str, Any]:
        """For the plan of a result."""
        chosen = zip(
            self.networks[0].names, select_layers(self.networks[0], self.layers), strict=True
        )
        return {
            "networks": [str(network) for network in self.networks],
            "widths": self.widths,
            "law": law_source(self.law),
            "pruning": self.pruning.name,
            "layers": [name for name, c in chosen if c],
            "trials": self.trials,
            "confidence": self.confidence,
            "samples": self.domain.samples,
            "starts": self.domain.starts,
            "steps": self.domain.steps,
            "seed": self.seed,
        }


def setting(
    network_of_width: Callable[[int], Network],
    law: Law,
    pruning: Pruning,
    *,
    widths: Sequence[int],
    layers: Layers,
    trials: int,
    confidence: float,
    domain: UnitBall | None,
    seed: int,
) -> Setting:
    """Checks what does not depend on the amount.

    Raises:
      ValueError: an argument out of range; one line that names it.
    """
    if not isinstance(widths, Iterable) or isinstance(widths, str) or not len(tuple(widths)):
        raise ValueError(f"widths = {widths!r}: a list of at least one width is needed")
    widths = tuple(sorted({validation.integer("width", d, 1) for d in widths}))
    validation.integer("number of widths", len(widths), 1, MAX_WIDTHS)
    trials = validation.integer("trials", trials, 1, MAX_TRIALS_AT_ONCE)
    domain = UnitBall() if domain is None else domain
    return Setting(
        widths,
        tuple(network_of_width(d) for d in widths),
        validation.instance("law", law, Law, "uniform(...) or normal(...)"),
        validation.instance("pruning", pruning, Pruning, "jp.magnitude, jp.random or jp.bernoulli"),
        layers,
        trials,
        validation.real("confidence", confidence, 0.0, 1.0),
        validation.instance("domain", domain, UnitBall, "UnitBall(...)"),
        validation.integer("seed", seed, 0, keys.MAX_SEED),
    )


def numbers(name: str, values: Sequence[float], high: float = math.inf) -> tuple[float, ...]:
    """A list of at least one number in (0, high), each once, ascending."""
    if not isinstance(values, Iterable) or isinstance(values, str) or not len(tuple(values)):
        raise ValueError(f"{name} = {values!r}: a list of at least one number is needed")
    return tuple(sorted({validation.real(name, value, 0.0, high) for value in values}))


class Steps:
    """Progress of a study that goes through steps of known work, one after the other."""

    def __init__(self, progress: Callable[[Progress], None] | None, work: Sequence[float]):
        self._progress, self._work, self._step = progress, tuple(work), 0

    def at(self, doing: str, share: float, note: str = "") -> None:
        """Reports the share in [0, 1] that is done of the current step, and what is known."""
        if self._progress:
            done = sum(self._work[: self._step]) + self._work[self._step] * share
            self._progress(Progress(doing, done, sum(self._work), note))

    def next(self) -> None:
        """The current step is done."""
        self._step += 1

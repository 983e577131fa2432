"""Rare probabilities by importance sampling with a defensive mixture: estimates only.

Draws come from `a0 nominal + (1 - a0) proposal`, so that no weight `nominal / mixture` exceeds
1 / a0 (Hesterberg 1995). Without the nominal part a proposal that misses a piece of the event
would leave weights unbounded there, and the sample would not show it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.splitting import certifying_trials
from jaxprune.statistics.verdict import ESTIMATED

LEAST_SHARE = 0.1
FEW = 30
"""With fewer draws in the event the upper limit is the exact one of the mixture, over a0."""

_BLOCK = 2**16


@dataclass(frozen=True)
class Weighted:
    """An estimated probability. It never certifies: `verdict` has one value.

    Attributes:
      p: mean of `weight * event`.
      low, high: two-sided limits by the normal law of that mean; with fewer than 30 draws in the
        event, high is `1 / a0` times the exact limit of the mixture's probability.
      confidence: of the limits.
      draws: how many.
      events: draws in the event.
      effective: effective sample size of the draws in the event, `(sum w)^2 / sum w^2`.
      largest_share: of one draw in that sum; near 1, a single draw decides.
      most: largest weight of all draws, at most `1 / a0`.
      certifying_trials: trials without an event that would certify `P <= high`; None beyond 10^12.
    """

    p: float
    low: float
    high: float
    confidence: float
    draws: int
    events: int
    effective: float
    largest_share: float
    most: float
    certifying_trials: int | None

    @property
    def verdict(self) -> str:
        return ESTIMATED


def importance(
    nominal: Callable,
    proposal: Callable,
    log_ratio: Callable,
    event: Callable,
    *,
    draws: int,
    nominal_share: float = LEAST_SHARE,
    confidence: float = 0.99,
    seed: int = 0,
) -> Weighted:
    """Estimates `P(event)` under the nominal law.

    Args:
      nominal: `(rng, n) -> (n, ...)` draws of the nominal law.
      proposal: the same of the proposal.
      log_ratio: `(n, ...) -> (n,)`, log of proposal over nominal density, both normalised.
      event: `(n, ...) -> (n,)` Booleans.
      draws: how many.
      nominal_share: a0, the mixture's weight on the nominal law, at least 0.1.
      confidence: of the limits, in (0, 1).
      seed: from 0 to 2^32 - 1.

    Raises:
      ValueError: an argument out of range, or a log ratio that is no number.
    """
    draws = validation.integer("draws", draws, 2, 2**40)
    a0 = validation.real("nominal_share", nominal_share, LEAST_SHARE, 1.0, open=False)
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    rng = np.random.default_rng(validation.integer("seed", seed, 0, 2**32 - 1))
    events, total, squares, most, largest = 0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, draws, _BLOCK):
        n = min(_BLOCK, draws - start)
        plain = rng.binomial(n, a0)
        x = np.concatenate([nominal(rng, plain), proposal(rng, n - plain)])
        w = weights(log_ratio(x), a0)
        inside = w[validation.array("event", event(x), bool)]
        events += len(inside)
        total += inside.sum()
        squares += (inside**2).sum()
        most = max(most, w.max())
        largest = max(largest, inside.max(initial=0.0))
    p = total / draws
    error = math.sqrt(max(0.0, squares / draws - p**2) / (draws - 1))
    margin = special.ndtri(0.5 + 0.5 * confidence) * error
    # The mixture gives the event at least a0 times its nominal probability.
    # So its limits follow from the draws alone, where these are too few for the normal law.
    level = (1.0 - confidence) / (2 if events else 1)
    most_events = binomial.upper_limit(events, draws, level) / a0
    high = p + margin if events >= FEW else most_events
    high = float(min(1.0, high))
    return Weighted(
        p=float(p),
        low=float(max(0.0, p - margin)),
        high=high,
        confidence=confidence,
        draws=draws,
        events=events,
        effective=float(total**2 / squares) if squares else 0.0,
        largest_share=float(largest / total) if total else 0.0,
        most=float(most),
        certifying_trials=certifying_trials(high, confidence),
    )


def weights(log_ratio, nominal_share: float) -> np.ndarray:
    """`nominal / mixture` density at each draw, from the log of proposal over nominal density.

    Raises:
      ValueError: a log ratio that is no number.
      AssertionError: a weight above `1 / nominal_share`, which no input can cause.
    """
    a0 = validation.real("nominal_share", nominal_share, LEAST_SHARE, 1.0, open=False)
    log_ratio = validation.array("log_ratio", log_ratio, np.float64)
    if np.isnan(log_ratio).any():
        raise ValueError("log_ratio = nan: a number for every draw is needed")
    with np.errstate(over="ignore"):  # a ratio beyond float64 gives weight 0
        w = 1.0 / (a0 + (1.0 - a0) * np.exp(log_ratio)) if a0 < 1 else np.ones_like(log_ratio)
    if not (w <= 1.0 / a0).all():
        raise AssertionError(f"weight {w.max()}: at most {1.0 / a0} is possible")
    return w

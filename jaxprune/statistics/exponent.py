"""The exponent of a power law whose values are known to within brackets only."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune import validation

MAX_POINTS = 12
"""Values at which an exponent is fitted: their brackets have 2^12 corners."""


class Exponent(NamedTuple):
    """Slope s of `log d = c + s log x`, least squares with equal weights.

    Equal weights, since the slope of a curve that is no exact power law depends on them: with
    these it is one number of the true values, not one of how well each happened to be known.

    Attributes:
      estimate: slope through the brackets' geometric means.
      low, high: least and greatest slope of all values inside the brackets. If the brackets hold
        together with some confidence, so do these limits, for the least-squares slope of the true
        values; no power law is assumed.
      scatter_low, scatter_high: least and greatest t limit (k - 2 degrees of freedom) of all
        values inside the brackets. Should the true values scatter about a power law, independent
        and Gaussian in log d, they enclose its exponent unless a bracket (1 - its confidence) or
        the t limits (1 - theirs) fail. Infinite if k = 2.
      power_law: whether one exact power law passes through all brackets.
      points: how many brackets, k.
    """

    estimate: float
    low: float
    high: float
    scatter_low: float
    scatter_high: float
    power_law: bool
    points: int


def exponent(x, low, high, confidence: float) -> Exponent:
    """Fits `d ~ x^s` to values known to lie between `low` and `high`.

    Both pairs of limits are exact: the slope is linear in log d, and a t limit is the slope plus
    a multiple of the length of the residuals, which is convex; over a box of values the extremes
    of either are at its corners.

    Args:
      x: `(k,)` positive numbers, not all equal, k from 2 to 12.
      low, high: `(k,)` positive numbers, `low <= high`.
      confidence: of the two-sided t limits, in (0, 1).

    Raises:
      ValueError: a number out of range.
    """
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    x, low, high = (
        np.array([validation.real(name, v, 0.0, math.inf) for v in values])
        for name, values in (("x", x), ("low", low), ("high", high))
    )
    k = len(x)
    if not 2 <= k <= MAX_POINTS or len(low) != k or len(high) != k or len(set(x.tolist())) == 1:
        raise ValueError(f"x = {x.tolist()}: 2 to {MAX_POINTS} numbers, not all equal, are needed")
    if (low > high).any():
        raise ValueError(f"low = {low.tolist()}: at most high = {high.tolist()} is allowed")
    x, low, high = np.log(x), np.log(low), np.log(high)
    centred = x - x.mean()
    spread = centred @ centred
    weight = centred / spread  # slope = weight . log d
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    slopes = corners @ weight
    margin = np.full(len(slopes), math.inf)
    if k > 2:
        residuals = corners - corners.mean(axis=1, keepdims=True) - slopes[:, None] * centred
        error = np.sqrt((residuals**2).sum(axis=1) / (k - 2) / spread)
        margin = special.stdtrit(k - 2, 0.5 + 0.5 * confidence) * error
    return Exponent(
        estimate=float(weight @ (low + high) / 2),
        low=float(slopes.min()),
        high=float(slopes.max()),
        scatter_low=float((slopes - margin).min()),
        scatter_high=float((slopes + margin).max()),
        power_law=_stabbed(x, low, high),
        points=k,
    )


def _stabbed(x, low, high) -> bool:
    """Whether a line `c + s x` passes through all segments `[low, high]` at x.

    For a given s some c does if `low_j - s x_j <= high_i - s x_i` for all i and j, which bounds s
    from both sides pair by pair.
    """
    least, most = -math.inf, math.inf
    for i, j in itertools.permutations(range(len(x)), 2):
        if x[j] > x[i]:
            least = max(least, (low[j] - high[i]) / (x[j] - x[i]))
            most = min(most, (high[j] - low[i]) / (x[j] - x[i]))
        elif x[j] == x[i] and low[j] > high[i]:
            return False
    return bool(least <= most + 1e-12)

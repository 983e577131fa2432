"""Limits of the mean of quantities that lie in a range known beforehand.

Only independence is assumed and the range: of an accuracy's change [-1, 1], of a gap zero to its
certificate. No limit of a mean is valid without a range; Student's is not for skewed quantities.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.statistics.binomial import MAX_TRIALS

MOST_OF_CAPITAL = 0.75
"""A bet risks at most this part of the capital; 1/2 or 3/4 in Waudby-Smith & Ramdas."""

HALVINGS = 60
"""Of the range, when a limit is searched; the limit returned lies on the outer side."""


class Mean(NamedTuple):
    """Limits of a mean."""

    low: float
    high: float


def empirical_bernstein(
    mean: float,
    variance: float,
    trials: int,
    alpha: float,
    *,
    low: float,
    high: float,
    nonfinite: int = 0,
    sides: int = 2,
) -> Mean:
    """Limits from a mean and a variance, for a number of trials fixed beforehand.

    Maurer & Pontil 2009, theorem 4: on [0, 1], with L = log(e / alpha), the mean of n quantities
    with sample variance V differs from the true one by at most

        sqrt(2 V L / n) + 7 L / (3 (n - 1)),

    e the number of events each of which has probability alpha / e: Bernstein's inequality fails,
    or the standard deviation is too small (their theorem 10). Two events for one side, three for
    both, which share the second; four if trials that are not finite make two samples of one.

    If lower and upper ends of each quantity are known, take `low` from the lower ends and `high`
    from the upper, each with `sides=1` at alpha / 2.

    Args:
      mean: of the finite trials.
      variance: of the finite trials, the sum of squares divided by their number minus one.
      trials: how many are finite; independent.
      alpha: in (0, 1).
      low, high: the range, known before any trial.
      nonfinite: how many others there are: each counts as `low` in the lower limit, as `high` in
        the upper.
      sides: 2 for limits that hold together, 1 for each at alpha by itself.

    Raises:
      ValueError: a number out of range.
    """
    low, high = _range(low, high)
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    sides = validation.integer("sides", sides, 1, 2)
    finite = validation.integer("trials", trials, 0, MAX_TRIALS)
    lost = validation.integer("nonfinite", nonfinite, 0, MAX_TRIALS)
    n = finite + lost
    if n < 2:
        return Mean(low, high)
    width = high - low
    if finite:
        # Rounding may put either a little outside its range.
        slack = 1e-9 * max(abs(low), abs(high))
        mean = validation.real("mean", mean, low - slack, high + slack, open=False)
    else:
        mean = low
    if finite > 1:
        most = width**2 * finite / (finite - 1)
        variance = validation.real("variance", variance, 0.0, most, open=False)
    else:
        variance = 0.0
    events = 2 * sides if lost or sides == 1 else 3
    log = math.log(events / alpha)

    def with_lost(value):
        """Mean and margin where each lost trial has the value."""
        centre = mean + (value - mean) * lost / n
        squares = variance * max(finite - 1, 0) + (value - mean) ** 2 * finite * lost / n
        spread = math.sqrt(2 * squares / (n - 1) * log / n)
        return centre, spread + width * 7 * log / (3 * (n - 1))

    centre, margin = with_lost(low)
    least = max(low, centre - margin)
    centre, margin = with_lost(high)
    return Mean(least, min(high, centre + margin))


def betting(
    lower, upper, alpha: float, *, low: float, high: float, planned: int | None = None, sides=2
) -> Mean:
    """Limits from the trials in their order; they hold at every number of trials at once.

    So trials may be looked at, and stopped, at any time. Hedged capital of Waudby-Smith & Ramdas
    2023: who starts with 1 and bets `b_t` on trial t that the mean of quantities in [0, 1] exceeds
    m has, after n trials,

        K_n(m) = prod_t (1 + b_t (x_t - m)),   0 <= b_t <= 3/4 / m,

    where b_t depends on earlier trials alone. If the mean is m or less, K is a supermartingale and
    never reaches 1 / alpha with probability 1 - alpha (Ville), so the lower limit is the least m
    with `K_n(m) < 1 / alpha`. K falls in m. The upper limit is the lower one of 1 - x.

    It needs no independence: the mean of each trial given the earlier ones is enough.

    Args:
      lower, upper: `(n,)` ends of each quantity, in an order fixed beforehand: that of the trials'
        ids, not the one in which they were done. Where either is not finite, the trial counts as
        `low` in the lower limit and as `high` in the upper.
      alpha: in (0, 1).
      low, high: the range, known before any trial.
      planned: number of trials for which the bets are tuned; None for no number in particular.
        The limits hold whatever it is, if fixed beforehand.
      sides: 2 for limits that hold together, each at alpha / 2; 1 for each at alpha by itself.

    Raises:
      ValueError: a number out of range, or a lower end above its upper end.
    """
    low, high = _range(low, high)
    level = validation.real("alpha", alpha, 0.0, 1.0) / validation.integer("sides", sides, 1, 2)
    if planned is not None:
        planned = validation.integer("planned", planned, 1, MAX_TRIALS)
    lower = validation.array("lower", lower, np.float64)
    upper = validation.array("upper", upper, np.float64)
    if lower.ndim != 1 or lower.shape != upper.shape:
        raise ValueError(f"lower, upper: two vectors are needed, not {lower.shape}, {upper.shape}")
    ok = np.isfinite(lower) & np.isfinite(upper)
    if (lower[ok] > upper[ok]).any():
        raise ValueError("lower: an end above its upper end")
    if (lower[ok] < low).any() or (upper[ok] > high).any():
        raise ValueError(f"lower, upper: not in the range [{low:g}, {high:g}] fixed beforehand")
    scaled = lambda x: np.clip((x - low) / (high - low), 0.0, 1.0)
    from_low = _least_mean(np.where(ok, scaled(lower), 0.0), level, planned)
    from_high = _least_mean(1.0 - np.where(ok, scaled(upper), 1.0), level, planned)
    return Mean(low + (high - low) * from_low, high - (high - low) * from_high)


def _least_mean(x, level: float, planned: int | None) -> float:
    """The least m in [0, 1] at which the capital stays below 1 / level, rounded down."""
    bets = _bets(x, level, planned)
    goal = math.log(1.0 / level)
    below, above = 0.0, 1.0
    for _ in range(HALVINGS):
        m = (below + above) / 2
        capital = np.log1p(np.minimum(bets, MOST_OF_CAPITAL / m) * (x - m)).sum()
        below, above = (below, m) if capital < goal else (m, above)
    return below


def _bets(x, level: float, planned: int | None):
    """Predictable plug-in: the bets that suit the mean and the variance of the earlier trials.

    `sqrt(2 log(2 / alpha) / (s_{t-1}^2 t log(1 + t)))`, with the mean started at 1/2 and the
    variance at 1/4, each as one trial more; `planned` instead of `t log(1 + t)` if given.
    """
    t = np.arange(1.0, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    earlier = np.concatenate([[0.25], variances[:-1]])[: len(x)]
    horizon = t * np.log1p(t) if planned is None else planned
    return np.sqrt(2 * math.log(1.0 / level) / (earlier * horizon))


def _range(low, high):
    low = validation.real("low", low, -math.inf, math.inf)
    return low, validation.real("high", high, low, math.inf)

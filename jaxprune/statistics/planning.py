"""How many trials to plan: for no failure, for a width of the limits, for a power of the test.

Exact binomial tails; the answers are saw-toothed in the number of trials, since counts are whole.
Where more trials may again be too few, the number returned is the one from which on all are enough.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.distribution import tolerance_trials


def trials_without_failure(delta: float, alpha: float) -> int:
    """The least n such that n trials without failure show a failure probability below `delta`.

    `(1 - delta)^n <= alpha`: 460,517,017 for delta 1e-8 at alpha 0.01. It is also the least number
    whose largest value is an upper tolerance limit of content `1 - delta` (Wilks 1941).

    Args:
      delta: in (0, 1).
      alpha: in (0, 1).

    Raises:
      ValueError: a number out of range, or more than 10^12 trials.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    return tolerance_trials(delta, alpha)


def trials_for_half_width(half_width: float, p: float, alpha: float) -> int:
    """Trials whose two-sided Clopper-Pearson limits are at most `2 half_width` apart.

    From this number on, as long as at most a fraction `p` of them fail.

    Args:
      half_width: in (0, 1/2).
      p: in (0, 1/2]; 1/2 is the widest case.
      alpha: in (0, 1), of both sides together.

    Raises:
      ValueError: a number out of range, or more than 10^12 trials.
    """
    half_width = validation.real("half_width", half_width, 0.0, 0.5)
    p = validation.real("p", p, 0.0, 0.5 + 1e-12)
    alpha = validation.real("alpha", alpha, 0.0, 1.0)

    def enough(n):
        k = np.floor(n * p).astype(np.int64)
        low, high = binomial.limits(k, n, alpha)
        return high - low <= 2 * half_width

    return _from_which_on(enough, tooth=1.0 / p)


def trials_for_power(delta: float, p: float, alpha: float, power: float) -> int:
    """Trials with which the exact test decides rightly with probability at least `power`.

    The test is of a claim with tail `delta` at level `alpha`; the failure probability is `p`. Below
    delta the claim is to be said to hold, above delta to be violated. From this number on.

    Args:
      delta: in (0, 1).
      p: in (0, 1), not delta.
      alpha: in (0, 1).
      power: in (0, 1).

    Raises:
      ValueError: a number out of range, or more than 10^12 trials.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    p = validation.real("p", p, 0.0, 1.0)
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    power = validation.real("power", power, 0.0, 1.0)
    if p == delta:
        raise ValueError(f"p = {p!r}: another number than delta is needed")

    def enough(n):
        if p < delta:  # few failures decide: the largest such count, -1 for none
            decides = lambda k: binomial.p_value_at_most(k, n, delta) <= alpha
            k = _last(decides, n)
            return np.where(k < 0, 0.0, binomial.p_value_at_most(np.maximum(k, 0), n, p)) >= power
        decides = lambda k: binomial.p_value_at_least(k, n, delta) > alpha
        k = _last(decides, n) + 1  # the least count that decides, n + 1 for none
        return np.where(k > n, 0.0, binomial.p_value_at_least(np.minimum(k, n), n, p)) >= power

    return _from_which_on(enough, tooth=1.0 / min(delta, 1.0 - delta))


def _last(true_up_to: Callable, n: np.ndarray) -> np.ndarray:
    """The last count 0 .. n up to which a falling condition is true, -1 for none."""
    low, high = np.full(n.shape, -1, np.int64), n.astype(np.int64) + 1
    while (high - low > 1).any():
        middle = np.clip((low + high) // 2, 0, n)
        true = true_up_to(middle)
        wide = high - low > 1
        low, high = np.where(wide & true, middle, low), np.where(wide & ~true, middle, high)
    return low


def _from_which_on(enough: Callable, tooth: float) -> int:
    """The n from which on `enough` is true, of a condition that is so but for teeth of a length."""
    low, high = 0, 1
    while not enough(np.array([high]))[0]:
        low, high = high, 2 * high
        _check(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(np.array([middle]))[0] else (middle, high)
    # Teeth before and behind: the last that fails there is the last of all.
    near = np.arange(max(1, high - 2), high + math.ceil(8 * tooth) + 8)
    failing = near[~enough(near)]
    return int(failing[-1]) + 1 if len(failing) else high


def _check(n):
    if n > binomial.MAX_TRIALS:
        raise ValueError(f"trials: more than {binomial.MAX_TRIALS:g} would be needed")

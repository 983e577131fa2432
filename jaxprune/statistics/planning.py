"""How many trials to plan: for no failure, for a width of the limits, for a power of the test.

Exact binomial tails; the answers are saw-toothed in the number of trials, since counts are whole.
Where more trials may again be too few, the number returned is the one from which on all are enough.
"""

import math
from collections.abc import Callable

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.binomial import MAX_TRIALS
from jaxprune.statistics.distribution import first_integer, tolerance_trials


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

    count = lambda n: math.floor(n * p)
    start = lambda k: first_integer(lambda n: count(n) >= k, 1, MAX_TRIALS)

    def enough(n):
        low, high = binomial.limits(count(n), n, alpha)
        return high - low <= 2 * half_width

    # From n = start(k) on the count is k and the limits close in: at start(k) they are widest.
    return _from_which_on(enough, start, again=8)


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

    again = math.ceil(8 / (1.0 - delta))
    if p < delta:
        # Up to k failures decide from n = start(k) on; before start(k + 1) they are least likely.
        start = lambda k: tolerance_trials(delta, alpha, rank=k + 1)
        enough = lambda k: binomial.p_value_at_most(k, start(k + 1) - 1, p) >= power
        return start(_last_failing(enough, again) + 1)

    # From n = start(k) on k failures are too few; there those that decide are least likely.
    few = lambda k, n: binomial.p_value_at_least(k, n, delta) > alpha
    start = lambda k: first_integer(lambda n: few(k, n), max(k, 1), MAX_TRIALS)

    def enough(n):
        k = first_integer(lambda k: not few(k, n), 0, n)
        return k <= n and binomial.p_value_at_least(k, n, p) >= power

    return _from_which_on(enough, start, again)


def _from_which_on(enough: Callable[[int], bool], start: Callable[[int], int], again: int) -> int:
    """The number of trials from which on all are enough.

    From each start(k) to the next a number that is enough is followed by such.
    """
    k = _last_failing(lambda k: enough(_within(start(k))), again)
    return first_integer(enough, start(k), start(k + 1) - 1) if k >= 0 else start(0)


def _last_failing(enough: Callable[[int], bool], again: int) -> int:
    """The last k = 0, 1, ... of which a rising condition is false, -1 for none.

    For `again` numbers more it may fall back, as rounded counts make it.
    """
    high = 0
    while not enough(high):
        high = 2 * high + 1
    k = first_integer(enough, 0, high)
    return max((j for j in range(k, k + again) if not enough(j)), default=k - 1)


def _within(n):
    if n > MAX_TRIALS:
        raise ValueError(f"trials: more than {MAX_TRIALS:g} would be needed")
    return n

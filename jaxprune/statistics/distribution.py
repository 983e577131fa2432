"""The whole distribution of a gap: its survival function, its quantiles, tolerance limits.

Nothing is assumed of the distribution; it may have atoms. Probabilities are those of the upper
tail, given as such: a quantile of which 1e-6 lies above is that of `tail = 1e-6`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.verdict import Counts


class Ranks(NamedTuple):
    """Order statistics `X_(low) <= q <= X_(high)` around a quantile; the smallest has rank 1.

    Attributes:
      low: rank of the lower limit; None where even the smallest trial may lie above q too often.
      high: rank of the upper limit; None where even the largest may lie below q too often.
      miss_low: exact P(X_(low) > q) of a continuous distribution, at least that of any other.
      miss_high: exact P(X_(high) < q), likewise.
    """

    low: int | None
    high: int | None
    miss_low: float
    miss_high: float


class Survival(NamedTuple):
    """Limits of P(gap > eps) at all epsilons of a grid together.

    Attributes:
      low, high: float64 `(m,)`.
      level: of each of the 2m exact binomial limits.
      half_width: of the band of Dvoretzky, Kiefer & Wolfowitz that cuts them, infinite if none.
    """

    low: np.ndarray
    high: np.ndarray
    level: float
    half_width: float


def dkw_half_width(trials: int, alpha: float, *, sides: int = 2) -> float:
    """`e` with `P(sup |F_n - F| > e) <= alpha`, F_n the empirical distribution of n trials.

    Dvoretzky, Kiefer & Wolfowitz 1956 with the constant of Massart 1990,
    `P(sup |F_n - F| > e) <= 2 exp(-2 n e^2)` and `P(sup (F_n - F) > e) <= exp(-2 n e^2)`, the
    latter where it is at most 1/2. With atoms the probabilities are smaller.

    Args:
      trials: independent, their number fixed beforehand.
      alpha: in (0, 1); in (0, 1/2) if one-sided.
      sides: 2, or 1 for `sup (F_n - F)` or `sup (F - F_n)`, not both.

    Raises:
      ValueError: a number out of range.
    """
    n = validation.integer("trials", trials, 1, binomial.MAX_TRIALS)
    sides = validation.integer("sides", sides, 1, 2)
    alpha = validation.real("alpha", alpha, 0.0, 1.0 if sides == 2 else 0.5)
    return math.sqrt(math.log(sides / alpha) / (2 * n))


def dkw_at_look(trials: int, look: int, alpha: float, *, sides: int = 2) -> float:
    """Half widths that hold at all looks 0, 1, 2, ... together, to stop at any of them.

    Look k spends `alpha / ((k + 1) (k + 2))`, which add up to alpha. How many trials a look has
    must not depend on what earlier looks showed; where it does, or nobody counted the looks,
    `look = trials - 1` is right: a look after each trial.

    Args:
      trials: the independent trials at this look.
      look: its number, from 0.
      alpha, sides: as in `dkw_half_width`.
    """
    k = validation.integer("look", look, 0, binomial.MAX_TRIALS)
    return dkw_half_width(trials, alpha / ((k + 1) * (k + 2)), sides=sides)


def quantile_ranks(trials: int, tail: float, alpha: float, *, sides: int = 2) -> Ranks:
    """Ranks of the trials between which a quantile lies, the closest that are sure enough.

    The quantile is `q = inf {x : P(X > x) <= tail}`. At least l trials are at most q unless more
    than n - l exceed it, and these are Bin(n, tail) or fewer. If lower and upper ends of each
    trial are known, `low` counts among the lower ends, sorted, and `high` among the upper ones; a
    trial that is not finite is the smallest of those and the largest of these.

    Args:
      trials: independent, their number fixed beforehand.
      tail: in (0, 1). For a quantile near the lower edge, take that of -X:
        `(n + 1 - high, n + 1 - low)`.
      alpha: in (0, 1).
      sides: 2 for ranks that hold together, each at alpha / 2; 1 for each at alpha by itself.

    Raises:
      ValueError: a number out of range.
    """
    n = validation.integer("trials", trials, 1, binomial.MAX_TRIALS)
    tail = validation.real("tail", tail, 0.0, 1.0)
    level = validation.real("alpha", alpha, 0.0, 1.0) / validation.integer("sides", sides, 1, 2)
    at_least = lambda k: float(binomial.p_value_at_least(k, n, tail))
    at_most = lambda k: float(binomial.p_value_at_most(k, n, tail))
    # In numbers of trials above q: the least k that is hardly reached, the least that is.
    too_many = first_integer(lambda k: at_least(k) <= level, 1, n)
    enough = first_integer(lambda k: at_most(k) > level, 0, n)
    low = n + 1 - too_many if too_many <= n else None
    high = n + 1 - enough if enough > 0 else None
    return Ranks(
        low,
        high,
        miss_low=at_least(too_many) if low else 0.0,
        miss_high=at_most(enough - 1) if high else 0.0,
    )


def tolerance_trials(tail: float, alpha: float, *, rank: int = 1) -> int:
    """The least n with `P(P(X > m) > tail) <= alpha`, m the rank-th largest of n trials.

    Wilks 1941. That is `P(Bin(n, tail) < rank) <= alpha`, `(1 - tail)^n <= alpha` for the largest:
    of a continuous distribution exact, of any other safe.

    Args:
      tail: in (0, 1), what may lie above m.
      alpha: in (0, 1).
      rank: 1 for the largest trial, 2 for the second largest, ...

    Raises:
      ValueError: a number out of range, or more than 10^12 trials are needed.
    """
    tail = validation.real("tail", tail, 0.0, 1.0)
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    rank = validation.integer("rank", rank, 1, binomial.MAX_TRIALS)
    enough = lambda n: binomial.p_value_at_most(rank - 1, n, tail) <= alpha
    n = first_integer(enough, rank, binomial.MAX_TRIALS)
    if n > binomial.MAX_TRIALS:
        raise ValueError(f"trials: more than {binomial.MAX_TRIALS:g} would be needed")
    return n


def survival(counts: Sequence[Counts], alpha: float) -> Survival:
    """Limits of P(gap > eps) that hold together, with 1 - alpha, at every epsilon of a grid.

    At each epsilon the exact limits of Clopper & Pearson, each at `alpha / (2 m)` (Bonferroni),
    which also resolve tails. Only far trials raise the lower limit; all that are not close raise
    the upper one: the true gaps lie between, so limits from these counts enclose theirs.

    In the middle of a distribution, on a fine grid, those are wider than the band of
    `dkw_half_width`, which costs the same whatever m. Where the widest pair that m, n and alpha
    allow, at n / 2, would be so, half of alpha goes to the band, half to the exact limits, and the
    tighter of each counts. This is settled by m, n and alpha, before any trial.

    Args:
      counts: of the same independent trials at each epsilon, which must be fixed beforehand, in
        rising order.
      alpha: in (0, 1).

    Raises:
      ValueError: alpha out of range, no counts, or counts that cannot be of the same trials.
    """
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    counts, n = _of_the_same_trials(counts)
    m = len(counts)
    level, half = alpha / (2 * m), math.inf
    if n and _widest(n, level) > 2 * dkw_half_width(n, alpha):
        level, half = alpha / (4 * m), dkw_half_width(n, alpha / 2)
    far = [c.far for c in counts]
    not_close = [c.not_close for c in counts]
    low = binomial.lower_limit(far, [n] * m, level)
    high = binomial.upper_limit(not_close, [n] * m, level)
    return Survival(
        low=np.maximum(low, np.array(far) / max(n, 1) - half),
        high=np.minimum(high, np.array(not_close) / max(n, 1) + half),
        level=level,
        half_width=half,
    )


def _widest(n, level):
    """Width of the widest pair of exact limits, that of n / 2 failures."""
    return float(binomial.upper_limit(n // 2, n, level) - binomial.lower_limit(n // 2, n, level))


def _of_the_same_trials(counts):
    counts = [c.checked() for c in counts]
    if not counts:
        raise ValueError("counts = []: those of at least one epsilon are needed")
    for a, b in itertools.pairwise(counts):
        same = a.trials == b.trials and a.nonfinite == b.nonfinite
        if not (same and a.close <= b.close and a.far >= b.far):
            raise ValueError(
                f"counts = {tuple(a)}, {tuple(b)}: the same trials, at rising epsilons, are needed"
            )
    return counts, counts[0].trials


def first_integer(true_from, low: int, high: int) -> int:
    """The first integer in [low, high] from which on a condition is true, or high + 1."""
    high += 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true_from(middle) else (middle + 1, high)
    return low

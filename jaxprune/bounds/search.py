"""Searches over whole numbers for the point at which a bound passes eps.

Each ends at two neighbours, one on either side of eps, so its answer is exact there; that no other
such point exists rests on the bound being monotone, which is the caller's to know.
"""

import math
from collections.abc import Callable, Iterator

_SECANT_STEPS = 8


def doubling(low: int, high: int) -> Iterator[int]:
    """low, 2 low, 4 low, ... below high, then high."""
    n = low
    while n < high:
        yield n
        n *= 2
    yield high


def largest(at: Callable[[int], float], low: int, high: int, eps: float) -> int:
    """The largest n from low to high with `at(n) <= eps` where `at` rises; low if there is none."""
    if at(high) <= eps:
        return high
    if high - low <= 1 or at(low + 1) > eps:
        return low
    return boundary(at, high, low + 1, eps)[1]


def before_refusal(
    at: Callable[[int], float], fails: int, refused: int, eps: float
) -> tuple[int, int | None]:
    """A number that holds, between one that fails and one at which `at` is NaN.

    Returns:
      The largest number found to fail, and one found to hold or None.
    """
    while refused - fails > 1:
        n = (fails + refused) // 2
        value = at(n)
        if value <= eps:
            return fails, n
        fails, refused = (fails, n) if math.isnan(value) else (n, refused)
    return fails, None


def boundary(at: Callable[[int], float], fails: int, holds: int, eps: float) -> tuple[int, int]:
    """Neighbours between which `at(n) <= eps` changes, from any two between which it does.

    Regula falsi in log n and log at(n) with the Illinois modification (M. Dowell, P. Jarratt,
    BIT 11, 1971), since bounds are nearly powers of n; then bisection. NaN fails.
    """

    def excess(n):
        value = at(n)
        return math.log(value / eps) if value != 0 else -math.inf

    over, under, kept = excess(fails), excess(holds), None
    step = 0
    while abs(fails - holds) > 1:
        share = over / (over - under) if step < _SECANT_STEPS else 0.5
        if not 0.0 < share < 1.0:
            share = 0.5
        n = round(fails * (holds / fails) ** share)
        n = min(max(n, min(fails, holds) + 1), max(fails, holds) - 1)
        value = excess(n)
        if value <= 0:
            holds, under = n, value
            over, kept = (over / 2 if kept == "fails" else over), "fails"
        else:
            fails, over = n, value
            under, kept = (under / 2 if kept == "holds" else under), "holds"
        step += 1
    return fails, holds

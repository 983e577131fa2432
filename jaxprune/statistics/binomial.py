"""Exact binomial limits and tests, in terms of failures: never of one minus something small.

Clopper & Pearson 1934. Their coverage is never below nominal; that of Wilson's or Jeffreys'
intervals is (Brown, Cai & DasGupta 2001), so those decide nothing here.
"""

import numpy as np
from scipy import special

from jaxprune import validation

MAX_TRIALS = 10**12


def upper_limit(failures, trials, alpha):
    """`U` with `P(p > U) <= alpha` whatever the failure probability p.

    Args:
      failures: integers, any shape.
      trials: integers up to 10^12, at least `failures`.
      alpha: in (0, 1), one-sided.

    Returns:
      float64, the least p with `p_value_at_most(failures, trials, p) <= alpha`; 1 where all
      trials fail.

    Raises:
      ValueError: counts that are no integers in range, or alpha outside (0, 1).
    """
    k, n, alpha = checked(failures, trials, alpha)
    limit = least(lambda p: _at_most(k, n, p) <= alpha, np.broadcast_shapes(k.shape, alpha.shape))
    return np.where(k == n, 1.0, limit)[()]


def lower_limit(failures, trials, alpha):
    """`L` with `P(p < L) <= alpha`; arguments as in `upper_limit`. 0 where no trial fails.

    The largest p with `p_value_at_least(failures, trials, p) <= alpha`.
    """
    k, n, alpha = checked(failures, trials, alpha)
    beyond = least(lambda p: _at_least(k, n, p) > alpha, np.broadcast_shapes(k.shape, alpha.shape))
    return np.where(k == 0, 0.0, np.nextafter(beyond, 0.0))[()]


def limits(failures, trials, alpha):
    """Two-sided limits: `P(p < L or p > U) <= alpha`, half of it on either side.

    Args are those of `upper_limit`, alpha of both sides together.
    """
    half = 0.5 * validation.array("alpha", alpha, np.float64)
    return lower_limit(failures, trials, half), upper_limit(failures, trials, half)


def least(true_from, shape):
    """The least float64 in [0, 1] from which on a rising condition is true, or 1.

    Bisection on the bits of p, which are ordered like p. `scipy.special.betaincinv` is not used:
    it returns a wrong root for some large counts, e.g. for (1000, 10^9 - 999, 0.01).
    """
    low = np.full(shape, -1, np.int64)
    high = np.full(shape, np.float64(1.0).view(np.int64))
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        true = true_from(middle.view(np.float64))
        low, high = np.where(true, low, middle), np.where(true, middle, high)
    return high.view(np.float64)


def p_value_at_most(failures, trials, p):
    """`P(Bin(trials, p) <= failures)`: evidence against a failure probability of p or more."""
    return _at_most(*checked(failures, trials, p, "p"))[()]


def p_value_at_least(failures, trials, p):
    """`P(Bin(trials, p) >= failures)`: evidence against a failure probability of p or less."""
    return _at_least(*checked(failures, trials, p, "p"))[()]


def _at_most(k, n, p):
    return np.where(k == n, 1.0, special.betaincc(k + 1, np.maximum(n - k, 1), p))


def _at_least(k, n, p):
    return np.where(k == 0, 1.0, special.betainc(np.maximum(k, 1), n - k + 1, p))


def checked(failures, trials, level, name="alpha"):
    """Counts and a level in (0, 1) as float64 arrays; a ValueError where they are out of range."""
    n = _integers("trials", trials, 0, MAX_TRIALS)
    k = _integers("failures", failures, 0, MAX_TRIALS)
    if (k > n).any():
        raise ValueError(f"failures = {failures!r}: at most trials = {trials!r} are allowed")
    level = validation.array(name, level, np.float64)
    for value in np.ravel(level).tolist():
        validation.real(name, value, 0.0, 1.0)
    return *np.broadcast_arrays(k, n), level


def _integers(name, values, low, high):
    array = validation.array(name, values, object)
    checked = [validation.integer(name, value, low, high) for value in array.ravel()]
    return np.array(checked, np.float64).reshape(array.shape)  # exact: below 2^53

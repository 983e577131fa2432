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
      float64; 1 where all trials fail.

    Raises:
      ValueError: counts that are no integers in range, or alpha outside (0, 1).
    """
    k, n, alpha = _checked(failures, trials, alpha)
    with np.errstate(divide="ignore"):
        zero = -np.expm1(np.log(alpha) / np.maximum(n, 1))  # 1 - alpha^(1/n)
    inner = special.betainccinv(k + 1, np.maximum(n - k, 1), alpha)
    return np.where(k == n, 1.0, np.where(k == 0, zero, inner))[()]


def lower_limit(failures, trials, alpha):
    """`L` with `P(p < L) <= alpha`; arguments as in `upper_limit`. 0 where no trial fails."""
    k, n, alpha = _checked(failures, trials, alpha)
    inner = special.betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.where(k == 0, 0.0, inner)[()]


def p_value_at_most(failures, trials, p):
    """`P(Bin(trials, p) <= failures)`: evidence against a failure probability of p or more."""
    k, n, p = _checked(failures, trials, p, "p")
    tail = special.betaincc(k + 1, np.maximum(n - k, 1), p)
    return np.where(k == n, 1.0, tail)[()]


def p_value_at_least(failures, trials, p):
    """`P(Bin(trials, p) >= failures)`: evidence against a failure probability of p or less."""
    k, n, p = _checked(failures, trials, p, "p")
    tail = special.betainc(np.maximum(k, 1), n - k + 1, p)
    return np.where(k == 0, 1.0, tail)[()]


def _checked(failures, trials, level, name="alpha"):
    n = _integers("trials", trials, 0, MAX_TRIALS)
    k = _integers("failures", failures, 0, MAX_TRIALS)
    if (k > n).any():
        raise ValueError(f"failures = {failures!r}: at most trials = {trials!r} are allowed")
    for value in np.ravel(level):
        validation.real(name, value, 0.0, 1.0)
    return k, n, np.asarray(level, np.float64)


def _integers(name, values, low, high):
    array = np.asarray(values, dtype=object)
    checked = [validation.integer(name, value, low, high) for value in array.ravel()]
    return np.array(checked, np.float64).reshape(array.shape)  # exact: below 2^53

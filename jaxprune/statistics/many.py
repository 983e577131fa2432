"""Many claims at once."""

import numpy as np

from jaxprune import validation


def e_bh(log_e_values, alpha):
    """Which of m null hypotheses to reject, with a false discovery rate of at most alpha.

    The k largest e-values, k the largest with `k e_(k) >= m / alpha` (Wang & Ramdas, JRSS-B 2022),
    under any dependence. The e-values are those of one common time, fixed or a stopping time; the
    largest of many looks is no e-value (Tavyrikov, Goeman & de Heide 2025), so evidence that was
    kept as such goes to `stopping.judge_stopped` instead.

    Args:
      log_e_values: `(m,)` logarithms.
      alpha: in (0, 1).

    Returns:
      bool `(m,)`.

    Raises:
      ValueError: alpha out of range, or a number that is NaN.
    """
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    log_e = np.asarray(log_e_values, np.float64)
    if np.isnan(log_e).any():
        raise ValueError("log_e_values: NaN is no evidence")
    order = np.argsort(-log_e, kind="stable")
    k = np.arange(1, len(log_e) + 1)
    passed = np.flatnonzero(log_e[order] + np.log(k) >= np.log(max(len(log_e), 1) / alpha))
    rejected = np.zeros(len(log_e), bool)
    rejected[order[: passed[-1] + 1 if len(passed) else 0]] = True
    return rejected


def fixed_sequence(p_values, alpha):
    """How many null hypotheses to reject, tested in an order fixed beforehand, each at full alpha.

    The first that is not rejected ends the sequence; the probability of any false rejection is at
    most alpha (Maurer, Hothorn & Lehmacher 1995). From the largest epsilon down it finds the
    smallest that passes.

    Args:
      p_values: `(m,)`, in that order.
      alpha: in (0, 1).

    Raises:
      ValueError: alpha out of range.
    """
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    failed = np.flatnonzero(~(np.asarray(p_values, np.float64) <= alpha))
    return int(failed[0]) if len(failed) else len(p_values)


def holm(p_values):
    """Holm's step-down adjusted p-values (Holm 1979), valid under any dependence.

    Rejecting where the adjusted value is at most alpha keeps the probability of any false
    rejection at most alpha.

    Args:
      p_values: `(m,)`.

    Returns:
      float64 `(m,)`, at most 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted

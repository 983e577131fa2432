"""Many claims at once."""

import numpy as np

from jaxprune import validation


def e_bh(log_e_values):
    """Levels at which e-BH rejects each of m null hypotheses (Wang & Ramdas, JRSS-B 2022).

    It rejects those of the k largest e-values, k the largest with `k e_(k) >= m / alpha`; so the
    hypothesis of the j-th largest at any alpha of at least `min over k >= j of m / (k e_(k))`.
    Rejecting where this is at most alpha keeps the false discovery rate, the mean share of false
    ones among the rejected, at most alpha under any dependence. Each e-value is of a time at which
    its trials were stopped; the largest of many looks is no e-value (Tavyrikov, Goeman & de Heide
    2025).

    Args:
      log_e_values: `(m,)` logarithms.

    Returns:
      float64 `(m,)`, at most 1.

    Raises:
      ValueError: a number that is NaN.
    """
    log_e = validation.array("log_e_values", log_e_values, np.float64)
    if np.isnan(log_e).any():
        raise ValueError("log_e_values: NaN is no evidence")
    order = np.argsort(-log_e, kind="stable")
    k = np.arange(1, len(log_e) + 1)
    levels = np.log(max(len(log_e), 1)) - np.log(k) - log_e[order]
    adjusted = np.empty_like(log_e)
    adjusted[order] = np.exp(np.minimum(np.minimum.accumulate(levels[::-1])[::-1], 0.0))
    return adjusted


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
    p = validation.array("p_values", p_values, np.float64)
    failed = np.flatnonzero(~(p <= alpha))
    return int(failed[0]) if len(failed) else len(p)


def holm(p_values):
    """Holm's step-down adjusted p-values (Holm 1979), valid under any dependence.

    Rejecting where the adjusted value is at most alpha keeps the probability of any false
    rejection at most alpha.

    Args:
      p_values: `(m,)`.

    Returns:
      float64 `(m,)`, at most 1.
    """
    p = validation.array("p_values", p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted

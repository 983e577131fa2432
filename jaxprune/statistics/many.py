"""Many claims at once."""

import numpy as np


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

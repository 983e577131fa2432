"""The tail of `(1 - θ) ||X||_F² + θ ||X 1||²`, θ in [0, 1]: how X meets vectors of one sign.

Its moments are at most those of `||X 1||²`, the sum of the squared row sums. README, theorem 8.
"""

import math

import numpy as np
from scipy import special

from jaxprune.bounds.norm_family import ORDERS, Tail, TraceMoments
from jaxprune.bounds.trace_moments import (
    Size,
    finite_moments,
    log_series_power,
    sum_log_moments,
)

_REFERENCE = "README theorem 8, part 2; Markov's inequality"


def row_sum_tail(log_moment: np.ndarray, density: float, size: Size) -> Tail:
    """The tail of the root of `(1 - θ) ||X||_F² + θ ||X 1||²`, for any θ in [0, 1].

    Args:
      log_moment: `log μ_k` of a weight that is present, k = 1 .. the highest order.
      density: the probability that it is.
      size: of a dense layer.
    """
    order = min(ORDERS[-1], finite_moments(log_moment))
    log_sum, present = sum_log_moments(log_moment[:order], density, size.columns)
    k = np.arange(1, order + 1)
    row = np.concatenate([[0.0], log_sum + math.log(present) - special.gammaln(k + 1)])
    total = log_series_power(row, size.rows)[1:] + special.gammaln(k + 1)
    moments = tuple(float(total[p - 1]) if p <= order else math.inf for p in ORDERS)
    return Tail(1.0, (TraceMoments("row sums", _REFERENCE, moments),))

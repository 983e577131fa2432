"""The threshold τ of magnitude pruning: the (k+1)-th smallest of D magnitudes (README, theorem 2).

With F the distribution function of |w|, `F(τ) ~ Beta(k + 1, D - k)`. H. A. David, H. N. Nagaraja,
Order Statistics, 3rd ed., section 2.3.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from jaxprune import validation
from jaxprune.laws import Family, Law
from jaxprune.networks import Layer
from jaxprune.pruning import Amount
from jaxprune.statistics import upper_limit


def magnitude_threshold(layer: Layer, law: Law, amount: Amount, *, delta: float = 0.05) -> float:
    """What τ of one layer exceeds with probability `delta`, exactly, for any symmetric law.

    Removed weights are at most τ in magnitude, kept ones at least. Given τ, the removed weights
    are i.i.d. with the law of w given `|w| <= τ`, in uniformly random places (README, theorem 2).

    Args:
      layer: the layer.
      law: of its weights.
      amount: how much of it is removed.
      delta: in (0, 1); 1 - delta for a lower limit.

    Raises:
      ValueError: delta out of range, or an amount that leaves no weight.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    count = math.prod(layer.weight_shape)
    removed = amount.count(count)
    if removed == count:
        raise ValueError(f"amount = {amount}: a threshold needs a weight that is kept")
    level = threshold_level(count, removed, delta)
    return law.scale(*layer.fans) * float(law.family.magnitude_quantile(level))


def threshold_level(count: int, removed: int, delta: float) -> float:
    """`P(F(τ) > level) <= delta`.

    The beta tail is binomial, `P(Beta(k + 1, D - k) > p) = P(Bin(D, p) <= k)`, so its quantile is
    the Clopper-Pearson limit.

    Args:
      count: D.
      removed: k, from 0 to D - 1.
      delta: in (0, 1).
    """
    return float(upper_limit(removed, count, delta))


def threshold_log_moments(
    family: Family, count: int, removed: int, orders: Sequence[int]
) -> np.ndarray:
    """At least `log E τ^(2p)`, one a p of `orders`.

    τ is rounded up to the next point of a grid. Above the grid, for laws without a bound,
    `E[τ^(2p); F(τ) > u] <= (E τ^(4p) P(F(τ) > u))^(1/2)` and `E τ^(4p) <= D E |X|^(4p)`.

    Args:
      family: of X; τ is that of its standard variable.
      count: D.
      removed: k, from 1 to D - 1.
      orders: the p.
    """
    a, b = removed + 1.0, float(count - removed)
    mean = a / (a + b)
    spread = math.sqrt(mean * (1.0 - mean) / (a + b + 1.0))
    bounded = math.isfinite(family.bound)
    top = 1.0 if bounded else 1.0 - 1e-12
    near = mean + spread * np.linspace(-10.0, 10.0, 401)
    far = np.geomspace(0.1 * mean, 1.0, 4000)
    u = np.unique(np.append(np.clip(np.concatenate([near, far]), 0.1 * mean, top), top))
    log_tau = np.log(family.magnitude_quantile(u))
    moments = []
    with np.errstate(divide="ignore"):  # log 0 where a tail underflows or points coincide
        log_exceeds = np.log(special.betaincc(a, b, u))
        for p in orders:
            # By parts: Q(u_0)^(2p) + Σ P(F(τ) > u_i) (Q(u_(i+1))^(2p) - Q(u_i)^(2p)).
            steps = np.log(-np.expm1(-2 * p * np.diff(log_tau))) + 2 * p * log_tau[1:]
            terms = [*(log_exceeds[:-1] + steps), 2 * p * log_tau[0]]
            if not bounded:
                beyond = math.log(count) + family.log_moment(2 * p)
                beyond += log_exceeds[-1] if math.isfinite(beyond) else 0.0
                terms.append(0.5 * beyond)
            moments.append(float(special.logsumexp(terms)))
    return np.array(moments)

"""Gaussian matrices that dominate a random matrix with independent symmetric entries.

Of a family only two numbers count: the deviation of a normal variable that exceeds the entry in
convex order, and how tightly Lipschitz functions of the entries concentrate. README, theorem 3.
"""

import math

from jaxprune.laws import NORMAL, UNIFORM, Family

_OWN_DEVIATION = {NORMAL: 1.0}
_OWN_LIPSCHITZ = {NORMAL: 1.0, UNIFORM: 2 / math.pi}


def gaussian_deviation(family: Family, level: float = 1.0) -> float:
    """s such that `E F(X) <= E F(s G)` for convex F, X of independent entries, G standard normal.

    Densities fall in |x|, so |x| <= b implies that |x| is at most uniform on [0, b] in stochastic
    order; and uniform entries on [-b, b] are below normal ones of deviation `b √(2π) / 4` in convex
    order, by Ohlin's lemma.

    Args:
      family: the standard variable.
      level: the entries are conditioned on |x| being at most its quantile of this level.

    Returns:
      s, infinity if there is none.
    """
    bound = float(family.magnitude_quantile(level)) if level < 1.0 else family.bound
    return min(_OWN_DEVIATION.get(family, math.inf), bound * math.sqrt(2 * math.pi) / 4)


def gaussian_lipschitz(family: Family, level: float = 1.0) -> float:
    """c such that `P(F >= E F + t) <= exp(-t² / (2 c² L²))` for F that is L-Lipschitz in Frobenius.

    c² is a constant of the logarithmic Sobolev inequality, which Herbst's argument turns into this
    tail: 1 of the normal law, `(2/π)²` of the uniform law on [-1, 1] (README, theorem 3). An entry
    whose magnitude is at most its quantile of `level` is a `level`-Lipschitz function of one
    without this condition, as densities fall in |x|. Other bounded entries: S. Boucheron, G.
    Lugosi, P. Massart, Concentration inequalities, 2013, Theorem 6.10, where F has to be convex.

    Args:
      family: the standard variable.
      level: as in `gaussian_deviation`.

    Returns:
      c, infinity if there is none.
    """
    if family in _OWN_LIPSCHITZ:
        return level * _OWN_LIPSCHITZ[family]
    bound = float(family.magnitude_quantile(level)) if level < 1.0 else family.bound
    return 2 * bound

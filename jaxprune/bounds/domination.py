"""Gaussian matrices that dominate a random matrix with independent symmetric entries.

Of a family only two numbers count: the deviation of a normal variable that exceeds the entry in
convex order, and the Lipschitz constant of the entry as a function of a standard normal variable.
README, theorem 3.
"""

import math

from jaxprune.laws import Family

_OWN_DEVIATION = {"normal": 1.0}
_OWN_LIPSCHITZ = {"normal": 1.0, "uniform": math.sqrt(2 / math.pi)}


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
    return min(_OWN_DEVIATION.get(family.name, math.inf), bound * math.sqrt(2 * math.pi) / 4)


def gaussian_lipschitz(family: Family, level: float = 1.0) -> float:
    """c such that `P(F >= E F + t) <= exp(-t² / (2 c² L²))` for convex F, L-Lipschitz in Frobenius.

    Normal and uniform entries are c-Lipschitz functions of normal ones, and conditioning on a
    magnitude of at most the quantile of `level` multiplies c by `level`: Boucheron, Lugosi, Massart,
    Concentration inequalities, 2013, Theorem 5.6. Other bounded entries: ibid. Theorem 6.10.

    Args:
      family: the standard variable.
      level: as in `gaussian_deviation`.

    Returns:
      c, infinity if there is none.
    """
    if family.name in _OWN_LIPSCHITZ:
        return level * _OWN_LIPSCHITZ[family.name]
    bound = float(family.magnitude_quantile(level)) if level < 1.0 else family.bound
    return 2 * bound

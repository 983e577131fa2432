"""Sums over the closed walks of `E tr (X Xᵀ)^p`, sorted by shape (README, theorem 1).

A walk steps between the n rows and the m columns of X; a shape is a walk up to renaming them. How
many walks have u rows and v columns is known exactly, weighted as for a Gaussian matrix; walks on
trees, the most frequent ones if X is sparse, are added up with their own weights.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from jaxprune.bounds.wishart import log_shape_counts

HIGHEST_ORDER = 64
"""The p up to which shapes are counted: the count takes a time of p⁵, 0.2 s for 64."""


def all_shapes(
    log_moment: np.ndarray, density: float, n: int, m: int, orders: Sequence[int]
) -> np.ndarray:
    """A bound on `log E tr (X Xᵀ)^p`: every walk by its weight for a Gaussian matrix.

    With c of `log_shape_counts` and `w(e)` the largest product of `density μ_k / (2k-1)!!` over at
    least e cells whose k add up to p,

        E tr (X Xᵀ)^p <= Σ c[u, v] (n)_u (m)_v w(u + v - 1).

    Args:
      log_moment: `log μ_k` for k = 1, 2, ..., up to the highest order at least.
      density: the probability of being kept.
      n: rows.
      m: columns.
      orders: the p, each at most HIGHEST_ORDER.

    Returns:
      `(orders,)`, the logarithm of the bound.
    """
    products = _largest_products(log_moment, density, max(orders, default=1))
    return np.array([_weighted_shapes(products[:, p], n, m, p, 0) for p in orders])


def trees_apart(
    log_moment: np.ndarray, density: float, n: int, m: int, orders: Sequence[int]
) -> np.ndarray:
    """`all_shapes` with the walks on trees summed exactly, but for `n^u m^v` in place of `(n)_u
    (m)_v`. The others use at least `u + v` cells, and `u + v <= p`:

        E tr (X Xᵀ)^p <= Σ_trees n^u m^v ∏ density μ_k + Σ_(u+v <= p) c[u, v] (n)_u (m)_v w(u + v).

    Args and result are those of `all_shapes`; infinity where the first sum leaves float64's range.
    """
    products = _largest_products(log_moment, density, max(orders, default=1))
    rest = [_weighted_shapes(products[:, p], n, m, p, 1) for p in orders]
    trees = _log_tree_walks(log_moment + math.log(density), n, m, max(orders, default=1))
    return np.logaddexp(trees[list(orders)], rest)


def _weighted_shapes(log_products, n, m, p, excess):
    """`log Σ c[u, v] (n)_u (m)_v w(u + v - 1 + excess)`; the weight is -inf beyond p cells."""
    weight = np.maximum.accumulate(log_products[::-1])[::-1]  # at least e cells
    u = np.arange(p + 1)
    cells = np.add.outer(u, u) - 1 + excess
    weight = np.where(cells <= p, weight[np.clip(cells, 0, p)], -np.inf)
    terms = log_shape_counts(p) + _log_falling(n, p)[:, None] + _log_falling(m, p) + weight
    return special.logsumexp(terms)


def _log_falling(n, p):
    """`log (n)_u` for u = 0 .. p."""
    factors = np.maximum(n - np.arange(p), 0)
    logs = np.log(factors, out=np.full(p, -np.inf), where=factors > 0)
    return np.concatenate([[0.0], np.cumsum(logs)])


def _largest_products(log_moment, density, p):
    """`[e, s]`: log of the largest `∏ density μ_k / (2k-1)!!` over e cells whose k add up to s."""
    k = np.arange(1, p + 1)
    factor = math.log(density) + log_moment[:p] - np.cumsum(np.log(2.0 * k - 1))
    lag = np.arange(p + 1)[:, None] - k
    best = np.full((p + 1, p + 1), -np.inf)
    best[0, 0] = 0.0
    for e in range(1, p + 1):
        before = np.where(lag >= 0, best[e - 1][np.maximum(lag, 0)], -np.inf)
        best[e] = np.max(before + factor, axis=1)
    return best


def _log_tree_walks(log_weight, n, m, p):
    """`log Σ n^u m^v ∏ weight_k` over the shapes of closed walks on trees, lengths 2, 4, ..., 2p.

    Let F[l, s] add up the walks of length 2s from a root that is left l times. The first child met
    is entered k times, in `(l-1 choose k-1)` ways among the l departures, and its edge weighs
    `weight_k`; the j departures from it are dealt out to its k visits in `(j+k-1 choose j)` ways.
    So, with ' for roots of the other kind,

        F[l, s] = Σ_k (l-1 choose k-1) size' weight_k Σ_s' H'[k, s'] F[l-k, s-k-s'],
        H[k, s] = Σ_j (j+k-1 choose j) F[j, s].

    All terms are positive.

    Args:
      log_weight: `log weight_k` of an edge used 2k times, k = 1 .. p or more.
      n: rows, where the walks start.
      m: columns.
      p: the highest order.

    Returns:
      `(p + 1,)`; infinity where float64 might overflow.
    """
    k = np.arange(1, p + 1)
    # Weights relative to those of edges used twice; then no sum falls below √(m/n).
    unit = log_weight[0] + 0.5 * math.log(n * m)
    relative = log_weight[:p] + 0.5 * math.log(n * m) - k * unit
    steepest = np.maximum.accumulate(relative / k) + 0.5 * abs(math.log(n / m))
    top = int(np.sum(k * steepest <= 250.0))  # beside at most 10^68 shapes
    walks = np.full(p + 1, np.inf)
    if top == 0:
        return walks
    i = np.arange(top + 1)
    first_met = special.binom(i[:, None] - 1, i - 1)  # [l, k]
    dealt_out = special.binom(i[:, None] + i - 1, i[:, None])  # [j, k]
    first_met[:, 0] = dealt_out[:, 0] = 0.0
    child = np.exp(np.concatenate([[0.0], relative[:top]]))
    weights = child * math.sqrt(m / n), child * math.sqrt(n / m)  # root: a row, a column
    f = np.zeros((2, top + 1, top + 1))
    f[:, 0, 0] = 1.0
    h = np.zeros_like(f)
    h[:, 1:, 0] = 1.0
    for s in range(1, top + 1):
        for root in (0, 1):
            for k in range(1, s + 1):
                later = f[root, : s - k + 1, : s - k + 1][:, ::-1] @ h[1 - root, k, : s - k + 1]
                f[root, k : s + 1, s] += first_met[k : s + 1, k] * weights[root][k] * later
        h[:, :, s] = f[:, :, s] @ dealt_out
    walks[: top + 1] = np.log(f[0].sum(axis=0)) + i * unit + math.log(n)
    return walks

"""Trace moments of sparse random matrices, by comparison with Gaussian ones (README, theorem 1).

A random matrix with symmetric entries is compared, closed walk by closed walk, with a Gaussian
matrix of another size. A convolution is treated frequency by frequency, each no worse than the sum
of the kernel's taps (README, theorem 4).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune.bounds.closed_walks import HIGHEST_ORDER, all_shapes, trees_apart
from jaxprune.bounds.norm_family import ORDERS
from jaxprune.bounds.wishart import log_trace_moment, log_trace_moment_estimate
from jaxprune.laws import Family
from jaxprune.networks import Conv, Layer


class Size(NamedTuple):
    """What the theorems need to know of a layer: its norm is a maximum over random matrices.

    Attributes:
      rows: of each matrix.
      columns: of each matrix.
      taps: how many weights, times phases, add up to one of its entries.
      frequencies: how many matrices there are.
    """

    rows: int
    columns: int
    taps: int
    frequencies: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.taps


def size_of(layer: Layer) -> Size:
    """A dense layer is one matrix; a convolution has one a frequency of its torus."""
    if not isinstance(layer, Conv):
        return Size(layer.d_out, layer.d_in, 1, 1)
    if layer.kernel == 1:
        return Size(layer.c_out, layer.c_in, 1, 1)  # the same matrix at every frequency
    # Conjugate frequencies count once; those at 0 or at half a turn are their own conjugates.
    own = math.prod(1 + (side % 2 == 0) for side in layer.torus)
    frequencies = (math.prod(layer.torus) + own) // 2
    return Size(layer.c_out, layer.c_in, layer.kernel**2, frequencies)


def comparison(
    log_moment: np.ndarray, density: float, n: int, m: int, orders: Sequence[int] = ORDERS
) -> np.ndarray:
    """A bound on `log E tr (X Xᵀ)^p` by the closed walks of Gaussian matrices (README, theorem 1).

    X has n x m entries, each kept with probability `density`, the kept ones independent symmetric
    with `E X^(2k) <= μ_k` (or dominated by such in each walk). Up to HIGHEST_ORDER the shapes of
    the walks are counted; beyond it they are compared with a Gaussian matrix of another size.

    Args:
      log_moment: `log μ_k` for k = 1, 2, ..., up to the highest order at least.
      density: the probability of being kept.
      n: rows.
      m: columns.
      orders: the p.

    Returns:
      `(orders,)`, the logarithm of the bound.
    """
    counted = [p for p in orders if p <= HIGHEST_ORDER]
    bound = dict(zip(counted, all_shapes(log_moment, density, n, m, counted), strict=True))
    return np.array(
        [bound[p] if p in bound else _other_size(log_moment, density, n, m, p) for p in orders]
    )


def tree_walks(
    log_moment: np.ndarray, density: float, n: int, m: int, orders: Sequence[int] = ORDERS
) -> np.ndarray:
    """`comparison` of the walks that do not run on a tree; those that do have their own weights.

    Args and result are those of `comparison`; infinity beyond HIGHEST_ORDER.
    """
    counted = [p for p in orders if p <= HIGHEST_ORDER]
    bound = dict(zip(counted, trees_apart(log_moment, density, n, m, counted), strict=True))
    return np.array([bound.get(p, math.inf) for p in orders])


def same_variance(
    log_moment: np.ndarray, density: float, n: int, m: int, orders: Sequence[int] = ORDERS
) -> np.ndarray:
    """Comparison with a Gaussian matrix of the same size: exact if X is Gaussian.

    Args and result are those of `comparison`.
    """
    k = np.arange(1, max(orders) + 1)
    relative = math.log(density) + log_moment[: max(orders)] - _log_double_factorial(max(orders))
    log_variance = np.maximum.accumulate(relative / k)
    return np.array([p * log_variance[p - 1] + log_trace_moment(n, m, p) for p in orders])


def _other_size(log_moment, density, n, m, p):
    """For every σ with `ρ = max_k density μ_k / (σ^(2k) (2k-1)!!) <= 1`, r >= min(n, p) and
    s >= min(m, p)

        E tr (X Xᵀ)^p <= C σ^(2p) E tr (G Gᵀ)^p,    G standard Gaussian, r x s,
        C = max over u + v <= p + 1 of (n)_u (m)_v ρ^(u+v-1) / ((r)_u (s)_v).

    σ, r and s are free: a grid is searched with an estimate of the Gaussian moment, and the best
    is evaluated exactly. For dense X and for mild densities it is `r = n, s = m, ρ = 1`.
    """
    k = np.arange(1, p + 1)
    relative = math.log(density) + log_moment[:p] - _log_double_factorial(p)
    log_sigma = np.max(relative / (2 * k)) + np.linspace(0.0, -0.5 * math.log(density), 25)
    log_rho = np.minimum(np.max(relative - 2 * k * log_sigma[:, None], axis=1), 0.0)
    slack = np.unique(np.round(np.linspace(0, p - 1, 7)))
    rho, slack = np.broadcast_arrays(np.exp(log_rho)[:, None], slack)
    # The factor below 1 keeps the rounding of exp(0) from adding a row; any r would be valid.
    r = np.clip(np.ceil(rho * n * (1 - 1e-12)) + slack, min(n, p), max(n, p)).ravel()
    s = np.clip(np.ceil(rho * m * (1 - 1e-12)) + slack, min(m, p), max(m, p)).ravel()
    log_rho, log_sigma = (
        np.broadcast_to(x[:, None], rho.shape).ravel() for x in (log_rho, log_sigma)
    )
    outside = _log_shapes(log_rho, n, m, r, s, p) + 2 * p * log_sigma
    best = np.argmin(outside + log_trace_moment_estimate(r, s, p))
    return float(outside[best]) + log_trace_moment(int(r[best]), int(s[best]), p)


def _log_double_factorial(p):
    """`log (2k-1)!!` for k = 1 .. p."""
    return np.cumsum(np.log(2 * np.arange(1, p + 1) - 1.0))


def _log_shapes(log_rho, n, m, r, s, p):
    """log C of `_other_size`, one a candidate `(log_rho, r, s)`."""

    def ratios(size, other):
        # log (size)_u / (other)_u for u = 1, 2, ...; a walk sees no more vertices than there are.
        u = np.arange(min(size, p))
        return np.cumsum(np.log(size - u) - np.log(other[:, None] - u), axis=1)

    rows, columns = ratios(n, r), ratios(m, s)
    rows = rows + log_rho[:, None] * np.arange(1, rows.shape[1] + 1)
    columns = columns + log_rho[:, None] * np.arange(1, columns.shape[1] + 1)
    most_columns = np.maximum.accumulate(columns, axis=1)
    u = np.arange(1, rows.shape[1] + 1)
    v = np.minimum(p + 1 - u, columns.shape[1])
    return np.max(rows + most_columns[:, v - 1], axis=1) - log_rho


def sum_log_moments(log_moment: np.ndarray, density: float, taps: int) -> tuple[np.ndarray, float]:
    """Even moments of a sum S of independent symmetric entries, each present or 0.

    All terms of `Σ_k E S^(2k) t^(2k) / (2k)! = (1 + Σ_k density μ_k t^(2k) / (2k)!)^taps` are
    positive: no cancellation. Larger μ_k make all moments of S larger.

    Args:
      log_moment: `(p,)`, `log μ_k` of one entry that is present, k = 1 .. p.
      density: the probability that it is.
      taps: how many entries add up.

    Returns:
      `(p,)` logarithms of `E S^(2k) / present`, and `present`, the probability that at least one
      entry is.
    """
    if taps == 1:
        return log_moment, density
    order = len(log_moment)
    log_factorial = special.gammaln(2 * np.arange(1, order + 1) + 1)
    base = np.concatenate([[0.0], math.log(density) + log_moment - log_factorial])
    power = log_series_power(base, taps)
    present = 1.0 if density == 1.0 else -math.expm1(taps * math.log1p(-density))
    return power[1:] + log_factorial - math.log(present), present


def log_series_power(log_series: np.ndarray, power: int) -> np.ndarray:
    """Logarithms of the coefficients of a power of a series with positive ones.

    Args:
      log_series: `(p + 1,)` logarithms of the coefficients of 1, x, ..., x^p.
      power: at least 1.
    """
    lag = np.subtract.outer(np.arange(len(log_series)), np.arange(len(log_series)))

    def times(a, b):
        return special.logsumexp(np.where(lag >= 0, a + b[np.maximum(lag, 0)], -np.inf), axis=1)

    result = log_series
    for bit in bin(power)[3:]:  # by repeated squaring
        result = times(result, result)
        if bit == "1":
            result = times(result, log_series)
    return result


def trace_log_moments(
    log_moment: np.ndarray, density: float, size: Size, compare: Callable = comparison
) -> tuple[float, ...]:
    """At least `log Σ_ω E tr (K̂(ω) K̂(ω)*)^p`, one a p of `ORDERS` (README, theorems 1 and 4);
    infinity where a weight's moment of order 2p is.

    Args:
      log_moment: `log μ_k` of a weight that is present, k = 1 .. the highest order.
      density: the probability that it is.
      size: of the layer.
      compare: `comparison`, `tree_walks` or `same_variance`.
    """
    known = finite_moments(log_moment)
    log_sum, present = sum_log_moments(log_moment[:known], density, size.taps)
    orders = [p for p in ORDERS if p <= known]
    bound = compare(log_sum, present, size.rows, size.columns, orders)
    infinite = (math.inf,) * (len(ORDERS) - len(orders))
    return (*(math.log(size.frequencies) + bound).tolist(), *infinite)


def finite_moments(log_moment: np.ndarray) -> int:
    """How many moments of a law are finite, from the first on: higher ones bound nothing."""
    return int(np.argmin(np.append(np.isfinite(log_moment), False)))


def log_moments(family: Family, p: int) -> np.ndarray:
    """`(p,)`: `log E X^(2k)` for k = 1 .. p."""
    return np.array([family.log_moment(k) for k in range(1, p + 1)])


def truncated_log_moments(family: Family, level: float, p: int) -> tuple[np.ndarray, np.ndarray]:
    """At least `log E[X^(2k) | |X| <= τ]` and `log E[X^(2k) | |X| > τ]`, for `τ = Q(level)`.

    Q is the quantile function of |X|, and `∫ Q(u)^(2k) du` over (0, level) is the part of E X^(2k)
    below τ. The density of |X| does not rise, so Q is convex, so is Q^(2k), and the integral lies
    between the midpoint rule and the trapezoid rule.

    Args:
      family: of X.
      level: P(|X| <= τ).
      p: the highest order.

    Returns:
      `(p,)` logarithms below and above τ, for k = 1 .. p.
    """
    # Cells shrink towards τ, where Q^(2k) is steep.
    edges = level * (1.0 - np.linspace(1.0, 0.0, 4097) ** 2)
    widths, middles = np.diff(edges) / level, 0.5 * (edges[1:] + edges[:-1])
    log_tau = math.log(family.magnitude_quantile(level))
    k = np.arange(1, p + 1)
    log_whole = log_moments(family, p)

    def powers(u):
        # Relative to τ^(2k), lest a small τ underflow.
        return np.exp(2 * k[:, None] * (np.log(family.magnitude_quantile(u)) - log_tau))

    at_edges = np.pad(powers(edges[1:]), ((0, 0), (1, 0)))  # Q(0) = 0
    trapezoid = 0.5 * (at_edges[:, 1:] + at_edges[:, :-1]) @ widths
    midpoint = powers(middles) @ widths
    below = np.log(trapezoid) + 2 * k * log_tau
    share_below = midpoint * level * np.exp(2 * k * log_tau - log_whole)
    # The floor stands above the rounding error of the difference.
    above = np.log(np.maximum(1.0 - share_below, 1e-12) / (1.0 - level)) + log_whole
    return np.minimum(below, log_whole), above  # truncation only makes |X| smaller

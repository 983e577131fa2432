"""Operator norms of random matrices with high probability, every constant a number.

One idea serves every case: a random matrix with symmetric entries is compared, closed walk by
closed walk, with a Gaussian matrix (`comparison`), and Markov's inequality turns the trace moment
into a probability. Dense matrices also have sharper bounds of their own; the least is taken and
named. The proofs are in README.md, to whose items the names refer.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune import validation
from jaxprune.bounds.wishart import log_trace_moment, log_trace_moment_estimate
from jaxprune.laws import Family, Law

METHODS = ("random", "bernoulli", "magnitude")
ORDERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
THRESHOLD_SHARE = 0.1
"""The part of delta that the threshold of magnitude pruning uses."""

# X = φ(g) of a standard normal g with |φ'| at most this number.
_GAUSSIAN_LIPSCHITZ = {"normal": 1.0, "uniform": math.sqrt(2 / math.pi)}
# E ||X|| is at most this number times √n + √m: Gordon; convex order.
_MEAN = {"normal": 1.0, "uniform": math.sqrt(2 * math.pi) / 4}

_MOMENTS = "closed walks against a Gaussian matrix, README theorem 1, and Markov's inequality"
_FROBENIUS = "k entries of at most R: the norm is at most R √k"
_CONCENTRATION = {
    "normal": "Davidson & Szarek 2001, Theorem II.13",
    "uniform": "convex order and Gaussian concentration, README theorem 3",
}


class NormBound(NamedTuple):
    """`P(||X|| > value) <= delta`.

    Attributes:
      value: the bound.
      name: which bound it is, and its parameter.
      reference: where it is proved.
    """

    value: float
    name: str
    reference: str


NOTHING = NormBound(0.0, "no entries", "-")


@dataclass(frozen=True)
class Tail:
    """What is known of the norm of one random matrix, ready to be read at any delta.

    Attributes:
      scale: a factor on everything below.
      log_moments: `log E tr (X Xᵀ)^p` at most, one a p of `ORDERS`; empty if X = 0.
      mean: E ||X|| at most; infinity if no concentration is known.
      lipschitz: `P(||X|| >= mean + t) <= exp(-t² / (2 lipschitz²))`.
      concentration: reference of the latter.
      ceiling: `||X|| <= ceiling` always.
    """

    scale: float
    log_moments: tuple[float, ...]
    mean: float = math.inf
    lipschitz: float = math.inf
    concentration: str = ""
    ceiling: float = math.inf

    @property
    def is_zero(self) -> bool:
        return not self.log_moments

    def at(self, delta: float) -> NormBound:
        """The least of the bounds that each hold with probability `1 - delta`."""
        if self.is_zero:
            return NOTHING
        log_delta = math.log(delta)
        # Markov: P(||X|| >= t) <= E tr (X Xᵀ)^p / t^(2p)
        values = [(v - log_delta) / (2 * p) for p, v in zip(ORDERS, self.log_moments, strict=True)]
        best = min(range(len(ORDERS)), key=values.__getitem__)
        markov = self.scale * math.exp(values[best])
        gaussian = self.scale * (self.mean + self.lipschitz * math.sqrt(-2 * log_delta))
        bounds = (
            NormBound(markov, f"trace moment, p = {ORDERS[best]}", _MOMENTS),
            NormBound(gaussian, "concentration", self.concentration),
            NormBound(self.scale * self.ceiling, "Frobenius norm", _FROBENIUS),
        )
        return min(bounds)


ZERO = Tail(0.0, ())


def comparison(log_moment: np.ndarray, density: float, n: int, m: int, p: int) -> float:
    """A bound on `log E tr (X Xᵀ)^p` by Gaussian matrices of other sizes (README, theorem 1).

    X has n x m entries, each kept with probability `density`, the kept ones independent symmetric
    with `E X^(2k) <= μ_k` (or dominated by such in each walk). For every σ with
    `ρ = max_k density μ_k / (σ^(2k) (2k-1)!!) <= 1` and all r >= min(n, p), s >= min(m, p)

        E tr (X Xᵀ)^p <= C σ^(2p) E tr (G Gᵀ)^p,    G standard Gaussian, r x s,
        C = max over u + v <= p + 1 of (n)_u (m)_v ρ^(u+v-1) / ((r)_u (s)_v).

    σ, r and s are free: a grid is searched with an estimate of the Gaussian moment, and the best
    is evaluated exactly. For dense X and for mild densities it is `r = n, s = m, ρ = 1`.

    Args:
      log_moment: `(p,)` or longer, `log μ_k` for k = 1, 2, ...
      density: the probability of being kept.
      n: rows.
      m: columns.
      p: the order.

    Returns:
      The logarithm of the bound.
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
    """log C of `comparison`, one a candidate `(log_rho, r, s)`."""

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


@lru_cache(maxsize=4096)
def _standard_tail(family: Family, n: int, m: int, density: float) -> Tail:
    log_moment = np.array([family.log_moment(k) for k in range(1, ORDERS[-1] + 1)])
    moments = tuple(comparison(log_moment, density, n, m, p) for p in ORDERS)
    if density < 1.0:
        return Tail(1.0, moments)
    mean = min(math.exp(v / (2 * p)) for p, v in zip(ORDERS, moments, strict=True))
    mean = min(mean, _MEAN.get(family.name, math.inf) * (math.sqrt(n) + math.sqrt(m)))
    # Entries in [-b, b]: Boucheron, Lugosi & Massart 2013, Theorem 6.10, with b' - b = 2b.
    lipschitz = _GAUSSIAN_LIPSCHITZ.get(family.name, 2 * family.bound)
    reference = _CONCENTRATION.get(family.name, "Boucheron, Lugosi & Massart 2013, Theorem 6.10")
    return Tail(1.0, moments, mean, lipschitz, reference)


class PrunedTails(NamedTuple):
    """The two parts of one weight matrix.

    Attributes:
      kept: the norm of W∘M.
      removed: the norm of W - W∘M.
      spent: both hold outside one event of this probability, which is to be added once.
    """

    kept: Tail
    removed: Tail
    spent: float


def weight_tail(law: Law, d_out: int, d_in: int, density: float = 1.0) -> Tail:
    """The norm of a weight matrix of which a random part `density` is present.

    Each entry is present independently with this probability, or exactly `density d_out d_in`
    entries are, uniformly chosen: fixing the count lowers every trace moment (README, lemma 2).

    Args:
      law: of the weights.
      d_out: rows.
      d_in: columns.
      density: 1 for W itself.
    """
    if density == 0.0:
        return ZERO
    tail = _standard_tail(law.family, d_out, d_in, density)
    return replace(tail, scale=law.scale(d_in, d_out))


def pruned_tails(
    law: Law, d_out: int, d_in: int, method: str, removed: float, delta: float
) -> PrunedTails:
    """The norms of the kept and the removed part of a weight matrix (README, theorem 2).

    Args:
      law: of the weights.
      d_out: rows.
      d_in: columns.
      method: "random" (exactly `removed` weights, uniformly chosen), "bernoulli" (each weight
        with probability `removed / D`) or "magnitude" (the `removed` smallest of |w|).
      removed: how many of the D weights are removed (expected number for "bernoulli").
      delta: the probability that magnitude pruning may spend on its threshold.
    """
    count = d_out * d_in
    if removed == 0:
        return PrunedTails(weight_tail(law, d_out, d_in), ZERO, 0.0)
    if removed == count:
        return PrunedTails(ZERO, weight_tail(law, d_out, d_in), 0.0)
    q, scale = removed / count, law.scale(d_in, d_out)
    if method == "magnitude":
        level = threshold_level(count, removed, delta)
        parts = _magnitude_tails(law.family, d_out, d_in, q, level)
        kept, rest = (replace(tail, scale=scale) for tail in parts)
        tau = float(law.family.magnitude_quantile(level))
        return PrunedTails(kept, replace(rest, ceiling=tau * math.sqrt(removed)), delta)
    kept = weight_tail(law, d_out, d_in, 1.0 - q)
    rest = weight_tail(law, d_out, d_in, q)
    if method == "random":
        rest = replace(rest, ceiling=law.family.bound * math.sqrt(removed))
    return PrunedTails(kept, rest, 0.0)


def threshold_level(count: int, removed: int, delta: float) -> float:
    """`P(F(τ) > level) <= delta`, F the distribution function of |w|, τ the magnitude threshold.

    τ is the smallest magnitude kept, the (k+1)-th of D: `F(τ) ~ Beta(k + 1, D - k)`. H. A. David,
    H. N. Nagaraja, Order Statistics, 3rd ed., section 2.3.
    """
    return float(special.betainccinv(removed + 1, count - removed, delta))


@lru_cache(maxsize=1024)
def _magnitude_tails(family: Family, n: int, m: int, q: float, level: float):
    # Either part is dominated by the whole matrix, in every trace moment.
    whole = _standard_tail(family, n, m, 1.0).log_moments
    if level > 1.0 - 1e-9:
        return Tail(1.0, whole), Tail(1.0, whole)
    below, above = truncated_log_moments(family, level, ORDERS[-1])
    kept, removed = (
        tuple(
            min(comparison(log_moment, density, n, m, p), w)
            for p, w in zip(ORDERS, whole, strict=True)
        )
        for log_moment, density in ((above, 1.0 - q), (below, q))
    )
    return Tail(1.0, kept), Tail(1.0, removed)


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
    log_whole = np.array([family.log_moment(int(j)) for j in k])

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


def norm_bound(law: Law, d_out: int, d_in: int, delta: float, *, density: float = 1.0) -> NormBound:
    """A number that the norm of a weight matrix exceeds with probability at most `delta`.

    Args:
      law: of the weights.
      d_out: rows.
      d_in: columns.
      delta: in (0, 1).
      density: the fraction of the weights present, chosen at random; 1 for a dense matrix.
    """
    d_out, d_in = validation.integer("d_out", d_out, 1), validation.integer("d_in", d_in, 1)
    delta = validation.real("delta", delta, 0.0, 1.0)
    density = validation.real("density", density, 0.0, 1.0, open=False)
    return weight_tail(law, d_out, d_in, density).at(delta)


def removed_norm_bound(
    law: Law, d_out: int, d_in: int, delta: float, *, method: str, removed: float
) -> NormBound:
    """A number that the norm of the removed part exceeds with probability at most `delta`.

    Args:
      law: of the weights.
      d_out: rows.
      d_in: columns.
      delta: in (0, 1).
      method: "random", "bernoulli" or "magnitude".
      removed: how many weights are removed; the expected number for "bernoulli".
    """
    d_out, d_in = validation.integer("d_out", d_out, 1), validation.integer("d_in", d_in, 1)
    delta = validation.real("delta", delta, 0.0, 1.0)
    removed = removed_count(method, removed, d_out * d_in)
    spent = THRESHOLD_SHARE * delta
    tails = pruned_tails(law, d_out, d_in, method, removed, spent)
    return tails.removed.at(delta - tails.spent)


def removed_count(method: str, removed: float, count: int) -> float:
    """`removed` if it is a possible number of removed weights out of `count`."""
    if validation.choice("method", method, METHODS) == "bernoulli":
        return validation.real("removed", removed, 0.0, count, open=False)
    return validation.integer("removed", removed, 0, count)

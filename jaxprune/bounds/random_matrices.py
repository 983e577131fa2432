"""Operator norms of random matrices with high probability, every constant a number.

One idea serves every case: a random matrix with symmetric entries is compared, closed walk by
closed walk, with a Gaussian matrix (`comparison`), and Markov's inequality turns the trace moment
into a probability. A convolution is treated frequency by frequency, each no worse than the sum of
the kernel's taps (`trace_log_moments`). Matrices of which nothing is removed also have sharper
bounds of their own; the least is taken and named. The proofs are in README.md, to whose items the
names refer.
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
from jaxprune.networks import Conv, Layer
from jaxprune.pruning import METHODS, Amount, Pruning
from jaxprune.statistics import upper_limit

ORDERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
THRESHOLD_SHARE = 0.1
"""The part of delta that the threshold of magnitude pruning uses."""

# X = φ(g) of a standard normal g with |φ'| at most this number.
_GAUSSIAN_LIPSCHITZ = {"normal": 1.0, "uniform": math.sqrt(2 / math.pi)}
# E ||X|| is at most this number times √n + √m: Gordon; convex order.
_MEAN = {"normal": 1.0, "uniform": math.sqrt(2 * math.pi) / 4}

_MOMENTS = "closed walks against a Gaussian matrix, README theorems 1 and 4, Markov's inequality"
_FROBENIUS = "k entries of at most R, README theorems 3 and 4"
_CONCENTRATION = "README theorem 3; of a convolution, theorem 4"


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
      log_moments: at least `log E ||X||^(2p)`, one a p of `ORDERS`; empty if X = 0.
      mean: E ||X|| at most; infinity if no concentration is known.
      lipschitz: `P(||X|| >= mean + t) <= exp(-t² / (2 lipschitz²))`.
      ceiling: `||X|| <= ceiling` always.
    """

    scale: float
    log_moments: tuple[float, ...]
    mean: float = math.inf
    lipschitz: float = math.inf
    ceiling: float = math.inf

    @property
    def is_zero(self) -> bool:
        return not self.log_moments

    def at(self, delta: float) -> NormBound:
        """The least of the bounds that each hold with probability `1 - delta`."""
        if self.is_zero:
            return NOTHING
        log_delta = math.log(delta)
        # Markov: P(||X|| >= t) <= E ||X||^(2p) / t^(2p)
        values = [(v - log_delta) / (2 * p) for p, v in zip(ORDERS, self.log_moments, strict=True)]
        best = min(range(len(ORDERS)), key=values.__getitem__)
        markov = self.scale * math.exp(values[best])
        gaussian = self.scale * (self.mean + self.lipschitz * math.sqrt(-2 * log_delta))
        bounds = (
            NormBound(markov, f"trace moment, p = {ORDERS[best]}", _MOMENTS),
            NormBound(gaussian, "concentration", _CONCENTRATION),
            NormBound(self.scale * self.ceiling, "Frobenius norm", _FROBENIUS),
        )
        return min(bounds)


ZERO = Tail(0.0, ())


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
    lag = np.arange(order + 1)[:, None] - np.arange(order + 1)

    def times(a, b):
        return special.logsumexp(np.where(lag >= 0, a + b[np.maximum(lag, 0)], -np.inf), axis=1)

    power = base
    for bit in bin(taps)[3:]:  # by repeated squaring
        power = times(power, power)
        if bit == "1":
            power = times(power, base)
    present = 1.0 if density == 1.0 else -math.expm1(taps * math.log1p(-density))
    return power[1:] + log_factorial - math.log(present), present


def trace_log_moments(log_moment: np.ndarray, density: float, size: Size) -> tuple[float, ...]:
    """At least `log Σ_ω E tr (K̂(ω) K̂(ω)*)^p`, one a p of `ORDERS` (README, theorems 1 and 4).

    Args:
      log_moment: `log μ_k` of a weight that is present, k = 1 .. the highest order.
      density: the probability that it is.
      size: of the layer.
    """
    log_sum, present = sum_log_moments(log_moment, density, size.taps)
    union = math.log(size.frequencies)
    return tuple(union + comparison(log_sum, present, size.rows, size.columns, p) for p in ORDERS)


@lru_cache(maxsize=4096)
def _standard_tail(family: Family, size: Size, density: float) -> Tail:
    log_moment = np.array([family.log_moment(k) for k in range(1, ORDERS[-1] + 1)])
    moments = trace_log_moments(log_moment, density, size)
    if density < 1.0:
        return Tail(1.0, moments)
    mean = min(math.exp(v / (2 * p)) for p, v in zip(ORDERS, moments, strict=True))
    if size.taps == 1:
        root = math.sqrt(size.rows) + math.sqrt(size.columns)
        mean = min(mean, _MEAN.get(family.name, math.inf) * root)
    # Entries in [-b, b]: Boucheron, Lugosi & Massart 2013, Theorem 6.10, with b' - b = 2b.
    lipschitz = _GAUSSIAN_LIPSCHITZ.get(family.name, 2 * family.bound)
    return Tail(1.0, moments, mean, lipschitz * math.sqrt(size.taps))


class PrunedTails(NamedTuple):
    """The two parts of one layer's weights.

    Attributes:
      kept: the norm of W∘M.
      removed: the norm of W - W∘M.
      spent: both hold outside one event of this probability, which is to be added once.
    """

    kept: Tail
    removed: Tail
    spent: float


def weight_tail(layer: Layer, law: Law, density: float = 1.0) -> Tail:
    """The norm of a layer of which a random part `density` of the weights is present.

    Each weight is present independently with this probability, or exactly `density D` of D are,
    uniformly chosen: fixing the count lowers every trace moment (README, lemma 2).

    Args:
      layer: the layer.
      law: of the weights.
      density: 1 for W itself.
    """
    if density == 0.0:
        return ZERO
    tail = _standard_tail(law.family, size_of(layer), density)
    return replace(tail, scale=law.scale(*layer.fans))


def pruned_tails(layer: Layer, law: Law, method: str, removed: float, delta: float) -> PrunedTails:
    """The norms of the kept and the removed part of a layer (README, theorem 2).

    Args:
      layer: the layer.
      law: of the weights.
      method: "random" (exactly `removed` weights, uniformly chosen), "bernoulli" (each weight
        with probability `removed / D`) or "magnitude" (the `removed` smallest of |w|).
      removed: how many of the D weights are removed (expected number for "bernoulli").
      delta: the probability that magnitude pruning may spend on its threshold.
    """
    size = size_of(layer)
    if removed == 0:
        return PrunedTails(weight_tail(layer, law), ZERO, 0.0)
    if removed == size.weights:
        return PrunedTails(ZERO, weight_tail(layer, law), 0.0)
    q = removed / size.weights
    # `removed` weights of at most R have at most this norm over R.
    root = math.sqrt(removed * min(removed, size.taps))
    if method == "magnitude":
        level = threshold_level(size.weights, removed, delta)
        parts = _magnitude_tails(law.family, size, q, level)
        kept, rest = (replace(tail, scale=law.scale(*layer.fans)) for tail in parts)
        tau = float(law.family.magnitude_quantile(level))
        return PrunedTails(kept, replace(rest, ceiling=tau * root), delta)
    kept, rest = weight_tail(layer, law, 1.0 - q), weight_tail(layer, law, q)
    if method == "random":
        rest = replace(rest, ceiling=law.family.bound * root)
    return PrunedTails(kept, rest, 0.0)


def threshold_level(count: int, removed: int, delta: float) -> float:
    """`P(F(τ) > level) <= delta`, F the distribution function of |w|, τ the magnitude threshold.

    τ is the smallest magnitude kept, the (k+1)-th of D: `F(τ) ~ Beta(k + 1, D - k)`. H. A. David,
    H. N. Nagaraja, Order Statistics, 3rd ed., section 2.3. That tail is binomial, `P(Beta(k + 1,
    D - k) > p) = P(Bin(D, p) <= k)`, so its quantile is the Clopper-Pearson limit.
    """
    return float(upper_limit(removed, count, delta))


@lru_cache(maxsize=1024)
def _magnitude_tails(family: Family, size: Size, q: float, level: float):
    # Either part is dominated by the whole, in every trace moment.
    whole = _standard_tail(family, size, 1.0).log_moments
    if level > 1.0 - 1e-9:
        return Tail(1.0, whole), Tail(1.0, whole)
    below, above = truncated_log_moments(family, level, ORDERS[-1])
    kept, removed = (
        tuple(np.minimum(trace_log_moments(log_moment, density, size), whole).tolist())
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


def norm_bound(layer: Layer, law: Law, *, delta: float = 0.05, density: float = 1.0) -> NormBound:
    """A number that the norm of a random layer exceeds with probability at most `delta`.

    Args:
      layer: the layer; the norm is that of its linear map, zero padding and stride included.
      law: of the weights.
      delta: in (0, 1).
      density: the fraction of the weights present, chosen at random; 1 for all of them.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    density = validation.real("density", density, 0.0, 1.0, open=False)
    return weight_tail(layer, law, density).at(delta)


def removed_norm_bound(
    layer: Layer, law: Law, pruning: Pruning, amount: Amount, *, delta: float = 0.05
) -> NormBound:
    """A number that the norm of the removed part exceeds with probability at most `delta`.

    Args:
      layer: the layer.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of the layer is removed.
      delta: in (0, 1).
    """
    method = method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)
    removed = pruning.removed(amount, size_of(layer).weights)
    tails = pruned_tails(layer, law, method, removed, THRESHOLD_SHARE * delta)
    return tails.removed.at(delta - tails.spent)


def method_name(method: Pruning) -> str:
    """The name of a pruning method that the theorems cover; others are refused."""
    if method not in METHODS.values():
        raise ValueError(f"pruning = {method}: one of {', '.join(METHODS)} is needed")
    return method.name

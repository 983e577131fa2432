"""Operator norms of layers and of their kept and removed parts, every constant a number.

The theorems are the members of one family (`norm_family`); here a layer, a law and a pruning method
become the members that apply. The proofs are in README.md, to whose items the references point.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.bounds.domination import gaussian_deviation, gaussian_lipschitz
from jaxprune.bounds.norm_family import (
    ORDERS,
    ZERO,
    Always,
    Bernstein,
    Concentrated,
    Member,
    NormBound,
    Tail,
    TraceMoments,
)
from jaxprune.bounds.threshold import threshold_level, threshold_log_moments
from jaxprune.bounds.trace_moments import (
    Size,
    comparison,
    log_moments,
    same_variance,
    size_of,
    trace_log_moments,
    tree_walks,
    truncated_log_moments,
)
from jaxprune.laws import NORMAL, UNIFORM, Family, Law
from jaxprune.networks import Layer
from jaxprune.pruning import METHODS, Amount, Pruning

THRESHOLD_SHARE = 0.1
"""The part of delta that the threshold of magnitude pruning uses."""

_COMPARISON = "closed walks of a Gaussian matrix, README theorems 1 and 4, Markov's inequality"
_TREE_WALKS = "the same with walks on trees apart, README theorems 1 and 4, Markov's inequality"
_SAME_VARIANCE = "Gaussian matrix of the same size, README theorems 1 and 4, Markov's inequality"
_BERNSTEIN = "Tropp 2015, Theorem 6.1.1; of a fixed count and of a convolution README theorem 3"
_GAUSSIAN = "Davidson & Szarek 2001, Theorem II.13; of a masked matrix README theorem 3"
_CONVEX_ORDER = "Ohlin's lemma, Gordon's mean, log-Sobolev concentration, README theorem 3"
_CONCENTRATION = "least mean, log-Sobolev concentration, README theorem 3; convolutions, theorem 4"
_FROBENIUS = "k entries of at most R, README theorems 3 and 4"


def _moment_members(
    log_moment, density, size, bound, whole=np.inf, threshold=np.inf
) -> tuple[Member, ...]:
    """Theorems that need nothing but bounds of the entries' moments.

    `whole` holds trace moments of a matrix that dominates this one in every closed walk, and
    `threshold` those of a variable that times a matrix of uniform entries dominates it.
    """
    members: list[Member] = []
    for name, reference, compare in (
        ("comparison", _COMPARISON, comparison),
        ("tree walks", _TREE_WALKS, tree_walks),
        ("same variance", _SAME_VARIANCE, same_variance),
    ):
        moments = np.minimum(trace_log_moments(log_moment, density, size, compare), whole)
        if np.any(np.isfinite(threshold)):
            uniform = trace_log_moments(log_moments(UNIFORM, ORDERS[-1]), density, size, compare)
            moments = np.minimum(moments, threshold + np.array(uniform))
        members.append(TraceMoments(name, reference, tuple(moments.tolist())))
    if math.isfinite(bound):
        # A sum of `taps` phases times entries; all frequencies side by side are one matrix.
        variance = density * math.exp(log_moment[0]) * max(size.rows, size.columns) * size.taps
        dimension = size.frequencies * (size.rows + size.columns)
        members.append(Bernstein("matrix Bernstein", _BERNSTEIN, dimension, variance, bound))
    return tuple(members)


def _dominated_members(family, size, level=1.0) -> tuple[Member, ...]:
    """Dense layers, masked or not: given the mask, zeroing entries lowers the mean of the norm."""
    deviation = gaussian_deviation(family, level)
    if size.taps > 1 or not math.isfinite(deviation):
        return ()
    own = family == NORMAL and level == 1.0
    name, reference = ("Gaussian", _GAUSSIAN) if own else ("convex order", _CONVEX_ORDER)
    mean = deviation * (math.sqrt(size.rows) + math.sqrt(size.columns))
    return (Concentrated(name, reference, mean, gaussian_lipschitz(family, level)),)


@lru_cache(maxsize=4096)
def _standard_tail(family: Family, size: Size, density: float) -> Tail:
    members = _moment_members(log_moments(family, ORDERS[-1]), density, size, family.bound)
    members += _dominated_members(family, size)
    lipschitz = gaussian_lipschitz(family) * math.sqrt(size.taps)
    if density == 1.0 and math.isfinite(lipschitz):
        mean = min(member.mean for member in members)
        members += (Concentrated("concentration", _CONCENTRATION, mean, lipschitz),)
    return Tail(1.0, members)


class PrunedTails(NamedTuple):
    """The two parts of one layer's weights.

    Attributes:
      kept: the norm of W∘M.
      removed: the norm of W - W∘M.
      spent: both, and their means, hold outside one event of this probability, which is to be
        added once.
      level: outside it, removed weights of magnitude pruning are at most the quantile of this level
        of |x|; 1 for other methods.
    """

    kept: Tail
    removed: Tail
    spent: float
    level: float = 1.0


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
        parts = _magnitude_tails(law.family, size, removed, level)
        kept, rest = (replace(tail, scale=law.scale(*layer.fans)) for tail in parts)
        tau = float(law.family.magnitude_quantile(level))
        return PrunedTails(kept, _few(rest, tau * root), delta, level)
    kept, rest = weight_tail(layer, law, 1.0 - q), weight_tail(layer, law, q)
    if method == "random":
        rest = _few(rest, law.family.bound * root)
    return PrunedTails(kept, rest, 0.0)


def _few(tail: Tail, ceiling: float) -> Tail:
    if math.isinf(ceiling):
        return tail
    return replace(tail, members=(*tail.members, Always("Frobenius norm", _FROBENIUS, ceiling)))


@lru_cache(maxsize=1024)
def _magnitude_tails(family: Family, size: Size, count: int, level: float):
    """Kept and removed part; either is dominated by the whole, in every trace moment."""
    q = count / size.weights
    whole = tuple(
        member
        for member in _standard_tail(family, size, 1.0).members
        if isinstance(member, TraceMoments)
    )
    if level > 1.0 - 1e-9:
        return Tail(1.0, whole), Tail(1.0, whole)
    moments = np.min([member.log_moments for member in whole], axis=0)
    below, above = truncated_log_moments(family, level, ORDERS[-1])
    tau = float(family.magnitude_quantile(level))
    kept = _moment_members(above, 1.0 - q, size, family.bound, moments)
    threshold = threshold_log_moments(family, size.weights, count, ORDERS)
    removed = _moment_members(below, q, size, tau, moments, threshold)
    return Tail(1.0, kept), Tail(1.0, removed + _dominated_members(family, size, level))


def norm_bounds(
    layer: Layer, law: Law, *, delta: float = 0.05, density: float = 1.0
) -> tuple[NormBound, ...]:
    """What each theorem of the family says of the norm of a random layer, the least first.

    Args:
      layer: the layer; the norm is that of its linear map, zero padding and stride included.
      law: of the weights.
      delta: in (0, 1), for each answer by itself.
      density: the fraction of the weights present, chosen at random; 1 for all of them.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    density = validation.real("density", density, 0.0, 1.0, open=False)
    return weight_tail(layer, law, density).each(delta)


def norm_bound(layer: Layer, law: Law, *, delta: float = 0.05, density: float = 1.0) -> NormBound:
    """A number that the norm of a random layer exceeds with probability at most `delta`.

    Args are those of `norm_bounds`, of whose answers this is the least.
    """
    delta = validation.real("delta", delta, 0.0, 1.0)
    density = validation.real("density", density, 0.0, 1.0, open=False)
    return weight_tail(layer, law, density).at(delta)


def removed_norm_bounds(
    layer: Layer, law: Law, pruning: Pruning, amount: Amount, *, delta: float = 0.05
) -> tuple[NormBound, ...]:
    """What each theorem of the family says of the norm of the removed part, the least first.

    Args:
      layer: the layer.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of the layer is removed.
      delta: in (0, 1), for each answer by itself.
    """
    tail, rest = _removed_tail(layer, law, pruning, amount, delta)
    return tail.each(rest)


def removed_norm_bound(
    layer: Layer, law: Law, pruning: Pruning, amount: Amount, *, delta: float = 0.05
) -> NormBound:
    """A number that the norm of the removed part exceeds with probability at most `delta`.

    Args are those of `removed_norm_bounds`, of whose answers this is the least.
    """
    tail, rest = _removed_tail(layer, law, pruning, amount, delta)
    return tail.at(rest)


def _removed_tail(layer, law, pruning, amount, delta):
    method = method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)
    removed = pruning.removed(amount, size_of(layer).weights)
    tails = pruned_tails(layer, law, method, removed, THRESHOLD_SHARE * delta)
    return tails.removed, delta - tails.spent


def method_name(method: Pruning) -> str:
    """The name of a pruning method that the theorems cover; others are refused."""
    validation.instance("pruning", method, Pruning, "jp.magnitude or jp.random")
    if method not in METHODS.values():
        raise ValueError(f"pruning = {method}: one of {', '.join(METHODS)} is needed")
    return method.name

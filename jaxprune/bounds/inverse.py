"""The theorems read backwards: the least width, and the largest sparsity, for a given epsilon.

Each answer comes with the value at its neighbour, where the bound fails. Between the two the search
is exact; that nothing beyond them qualifies rests on the bound falling with width and rising with
sparsity, which `probes` lets a reader check and no theorem promises.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from jaxprune import validation
from jaxprune.bounds import random_matrices
from jaxprune.bounds.certificate import Certificate, certify_counts
from jaxprune.bounds.counts import Amounts, removed_counts
from jaxprune.bounds.infinite_width import infinite_width_counts
from jaxprune.bounds.search import before_refusal, boundary, doubling, largest
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Fraction, Pruning


class LeastWidth(NamedTuple):
    """The least width found at which the gap is small enough.

    Attributes:
      width: the width d.
      eps: certified (or typical) gap at d, at most what was asked.
      below: the same at d - 1, more than was asked; None if d is the least width allowed, or if
        nothing can be, or is, removed at d - 1.
      probes: every `(width, gap)` looked at, ascending.
    """

    width: int
    eps: float
    below: float | None
    probes: tuple[tuple[int, float], ...]


class LargestSparsity(NamedTuple):
    """The largest sparsity found, common to all pruned layers, at which the gap is small enough.

    Attributes:
      sparsity: the fraction q, a multiple of 1/D of the largest pruned layer; 0 if not even one
        weight may go.
      removed: weights removed from each pruned layer by `Fraction(q)`, by its name.
      eps: certified (or typical) gap, at most what was asked.
      above: the same with one weight more from the largest layer, more than was asked; None if
        all are removed.
      probes: every `(sparsity, gap)` looked at, ascending.
    """

    sparsity: float
    removed: dict[str, float]
    eps: float
    above: float | None
    probes: tuple[tuple[float, float], ...]


@lru_cache(maxsize=4096)
def _certificate(network, law, method, removed, delta) -> Certificate:
    return certify_counts(network, law, method, removed, delta)


def certified_gap(
    law: Law, pruning: Pruning, delta: float
) -> Callable[[Network, tuple[float, ...]], float]:
    """`(network, weights removed from each layer) -> eps` of `certify`, each computed once."""
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    method = random_matrices.method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)
    return lambda network, removed: _certificate(network, law, method, removed, delta).eps


def typical_gap(
    law: Law, pruning: Pruning, input_norm: float
) -> Callable[[Network, tuple[float, ...]], float]:
    """`(network, weights removed from each layer) -> infinite_width's typical gap`."""
    validation.instance("law", law, Law, "uniform(...) or normal(...)")

    def gap(network, removed):
        return infinite_width_counts(network, law, pruning, removed, input_norm).typical_gap

    return gap


def least_width(
    network_of_width: Callable[[int], Network],
    law: Law,
    pruning: Pruning,
    amount: Amounts,
    *,
    eps: float,
    delta: float = 0.05,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    widths: tuple[int, int] = (1, 65536),
) -> LeastWidth | None:
    """The least width at which `certify` gives at most `eps`: a certificate at that width.

    Widths are doubled from the least one on until one qualifies, then the boundary is closed in
    on. Widths at which the network is too large, or at which the amount cannot be removed or is
    no weight at all, do not qualify.

    Args:
      network_of_width: `d -> Network`.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of each chosen layer is removed; one, or `{layer name: amount}`.
      eps: the gap that is allowed, positive.
      delta: in (0, 1), the probability that the certificate may fail.
      layers: which layers are pruned, see `networks.select_layers`.
      widths: least and greatest width looked at.

    Returns:
      The width, or None if none up to the greatest qualifies.

    Raises:
      ValueError: a number or a name out of range, or an amount that no width allows.
    """
    gap = certified_gap(law, pruning, delta)
    return _least_width(network_of_width, pruning, amount, layers, widths, gap, eps)


def typical_least_width(
    network_of_width: Callable[[int], Network],
    law: Law,
    pruning: Pruning,
    amount: Amounts,
    *,
    eps: float,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    widths: tuple[int, int] = (1, 65536),
    input_norm: float = 1.0,
) -> LeastWidth | None:
    """An ESTIMATE of the width from which on a typical gap is at most `eps`; not a certificate.

    The typical gap is `infinite_width`'s root of `E ||F(x) - f(x)||²` at ONE input: no supremum,
    no probability, and a limit of great widths applied at every width. See `least_width`.
    """
    gap = typical_gap(law, pruning, input_norm)
    return _least_width(network_of_width, pruning, amount, layers, widths, gap, eps)


def largest_sparsity(
    network: Network,
    law: Law,
    pruning: Pruning,
    *,
    eps: float,
    delta: float = 0.05,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
) -> LargestSparsity:
    """The largest common sparsity at which `certify` gives at most `eps`: a certificate at it.

    Args:
      network: dense and convolution layers.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      eps: the gap that is allowed, positive.
      delta: in (0, 1), the probability that the certificate may fail.
      layers: which layers are pruned, see `networks.select_layers`.

    Raises:
      ValueError: a number or a name out of range.
    """
    gap = certified_gap(law, pruning, delta)
    return _largest_sparsity(network, pruning, layers, gap, eps)


def typical_largest_sparsity(
    network: Network,
    law: Law,
    pruning: Pruning,
    *,
    eps: float,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    input_norm: float = 1.0,
) -> LargestSparsity:
    """An ESTIMATE of the sparsity up to which a typical gap is at most `eps`; not a certificate.

    See `typical_least_width` for what is typical, `largest_sparsity` for the rest.
    """
    gap = typical_gap(law, pruning, input_norm)
    return _largest_sparsity(network, pruning, layers, gap, eps)


def least_delta(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amounts,
    *,
    eps: float,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
) -> float | None:
    """A proven bound of `P(gap > eps)`: a delta at which `certify` gives eps.

    The least one to 1 %, where the certified gap falls as delta grows.

    Args:
      network: dense and convolution layers.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of each chosen layer is removed; one, or `{layer name: amount}`.
      eps: the gap that is allowed, positive.
      layers: which layers are pruned, see `networks.select_layers`.

    Returns:
      The probability, at least 1e-300, or None if no theorem says anything of this eps.

    Raises:
      ValueError: a number or a name out of range.
    """
    eps = validation.real("eps", eps, 0.0, math.inf)
    removed = removed_counts(network, pruning, amount, layers)
    gap = lambda log_delta: certified_gap(law, pruning, math.exp(log_delta))(network, removed)
    low, high = math.log(1e-300), math.log1p(-(2.0**-20))
    if gap(low) <= eps:
        return math.exp(low)
    if not gap(high) <= eps:
        return None
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if gap(middle) <= eps else (middle, high)
    return math.exp(high)


def _least_width(network_of_width, pruning, amount, layers, widths, gap, eps):
    eps = validation.real("eps", eps, 0.0, math.inf)
    low = validation.integer("widths", widths[0], 1)
    high = validation.integer("widths", widths[1], low)
    refusals = []

    @cache
    def at(d):
        """NaN where there is nothing to bound."""
        try:
            network = network_of_width(d)
            removed = removed_counts(network, pruning, amount, layers)
        except ValueError as error:
            refusals.append(error)
            return math.nan
        return gap(network, removed) if any(removed) else math.nan

    probed = []

    def probe(d):
        if d not in probed:
            probed.append(d)
        return at(d)

    fails, holds = None, None
    for d in doubling(low, high):
        value = probe(d)
        if value <= eps:
            holds = d
            break
        if math.isnan(value) and fails is not None and not math.isnan(at(fails)):
            fails, holds = before_refusal(probe, fails, d, eps)
            break
        fails = d
    values = [at(d) for d in probed]
    if all(map(math.isnan, values)):
        # A width that is not refused removes nothing.
        empty = len(refusals) < len(values)
        nothing = ValueError(f"amount = {amount}: removes nothing at widths {low} to {high}")
        raise nothing if empty else refusals[-1]
    if holds is None:
        return None
    if fails is not None:
        fails, holds = boundary(probe, fails, holds, eps)
    below = None if fails is None or math.isnan(at(fails)) else at(fails)
    known = sorted(d for d in probed if not math.isnan(at(d)))
    return LeastWidth(holds, at(holds), below, tuple((d, at(d)) for d in known))


def _largest_sparsity(network, pruning, layers, gap, eps):
    eps = validation.real("eps", eps, 0.0, math.inf)
    chosen = select_layers(network, layers)
    sizes = [size for size, c in zip(network.weight_counts, chosen, strict=True) if c]
    most = max(sizes)

    def removed(k):
        return removed_counts(network, pruning, Fraction(k / most), layers)

    known = {0: 0.0}

    def at(k):
        if k not in known:
            known[k] = gap(network, removed(k))
        return known[k]

    k = largest(at, 0, most, eps)
    names = (name for name, c in zip(network.names, chosen, strict=True) if c)
    counts = (count for count, c in zip(removed(k), chosen, strict=True) if c)
    return LargestSparsity(
        sparsity=k / most,
        removed=dict(zip(names, counts, strict=True)),
        eps=at(k),
        above=at(k + 1) if k < most else None,
        probes=tuple((j / most, known[j]) for j in sorted(known)),
    )

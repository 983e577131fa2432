"""The theorems read backwards: the least width, and the largest sparsity, for a given epsilon.

Each answer comes with the value at its neighbour, where the bound fails. Between the two the search
is exact; that nothing beyond them qualifies rests on the bound falling with width and rising with
sparsity, which `probes` lets a reader check and no theorem promises.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from jaxprune import validation
from jaxprune.bounds import random_matrices
from jaxprune.bounds.certificate import Certificate, certify_counts
from jaxprune.bounds.counts import Amounts, removed_counts
from jaxprune.bounds.infinite_width import infinite_width_counts
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Count, Fraction, Pruning

_SECANT_STEPS = 8
_SHARES = 64


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


class LargestAmounts(NamedTuple):
    """Amounts layer by layer at which the gap is certified.

    Attributes:
      amounts: of each pruned layer by its name; what `certify` and `infinite_width` take.
      sparsity: the fraction removed of the weights of all pruned layers together.
      eps: certified gap, at most what was asked.
    """

    amounts: dict[str, Count]
    sparsity: float
    eps: float


@lru_cache(maxsize=4096)
def _certificate(network, law, method, removed, delta) -> Certificate:
    return certify_counts(network, law, method, removed, delta)


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
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    method = random_matrices.method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)

    def gap(network, removed):
        return _certificate(network, law, method, removed, delta).eps

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

    def gap(network, removed):
        return infinite_width_counts(network, law, pruning, removed, input_norm).typical_gap

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
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    method = random_matrices.method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)

    def gap(removed):
        return _certificate(network, law, method, removed, delta).eps

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

    def gap(removed):
        return infinite_width_counts(network, law, pruning, removed, input_norm).typical_gap

    return _largest_sparsity(network, pruning, layers, gap, eps)


def largest_amounts(
    network: Network,
    law: Law,
    pruning: Pruning,
    *,
    eps: float,
    delta: float = 0.05,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
) -> LargestAmounts:
    """Amounts layer by layer that remove many weights while `certify` gives at most `eps`.

    Each layer gets a share of eps, and loses what `certify` allows at that share if it alone is
    pruned; the shares that remove the most weights (of 64 parts, by dynamic programming) are
    scaled until the certificate of all layers together is eps. Alone-certificates ignore how the
    layers interact, so this is not the optimum of the certificate. What does hold: the result is
    certified, it removes at least as many weights as `largest_sparsity`, and no single layer can
    lose one weight more. For random pruning, whose bound grows like the root of a layer's
    sparsity, nearly all of eps often goes to one layer: that is the optimum, not an accident.

    Args:
      network: dense and convolution layers.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      eps: the gap that is allowed, positive.
      delta: in (0, 1), the probability that the certificate may fail.
      layers: which layers may be pruned, see `networks.select_layers`.

    Raises:
      ValueError: a number or a name out of range.
    """
    common = largest_sparsity(network, law, pruning, eps=eps, delta=delta, layers=layers)
    method = random_matrices.method_name(pruning)
    sizes = network.weight_counts
    chosen = [i for i, c in enumerate(select_layers(network, layers)) if c]

    def gap(removed: Mapping[int, int]) -> float:
        counts = tuple(removed.get(i, 0) for i in range(len(sizes)))
        return _certificate(network, law, method, counts, delta).eps

    alone = {i: _alone(lambda k, i=i: gap({i: k}), sizes[i]) for i in chosen}

    def shared(part: int) -> dict[int, int]:
        return _best_shares(alone, part / _SHARES * eps) if part else dict.fromkeys(chosen, 0)

    part = _largest(lambda j: gap(shared(j)), 0, 4 * _SHARES, eps)
    starts = [shared(part), {i: int(common.removed[network.names[i]]) for i in chosen}]
    removed = max(starts, key=lambda counts: sum(counts.values()))
    for i in sorted(chosen, key=lambda i: -sizes[i]):
        others = dict(removed)
        removed[i] = _largest(lambda k, o=others, i=i: gap(o | {i: k}), removed[i], sizes[i], eps)
    return LargestAmounts(
        {network.names[i]: Count(removed[i]) for i in chosen},
        sum(removed.values()) / sum(sizes[i] for i in chosen),
        gap(removed),
    )


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
    for d in _doubling(low, high):
        value = probe(d)
        if value <= eps:
            holds = d
            break
        if math.isnan(value) and fails is not None and not math.isnan(at(fails)):
            fails, holds = _largest_allowed(probe, fails, d, eps)
            break
        fails = d
    values = [at(d) for d in probed]
    if all(map(math.isnan, values)):
        raise (
            refusals[-1]
            if refusals
            else ValueError(f"amount = {amount}: removes nothing at widths {low} to {high}")
        )
    if holds is None:
        return None
    if fails is not None:
        fails, holds = _boundary(probe, fails, holds, eps)
    below = None if fails is None or math.isnan(at(fails)) else at(fails)
    known = sorted(d for d in probed if not math.isnan(at(d)))
    return LeastWidth(holds, at(holds), below, tuple((d, at(d)) for d in known))


def _doubling(low, high):
    d = low
    while d < high:
        yield d
        d *= 2
    yield high


def _largest_allowed(at, fails, refused, eps):
    """Whether a width holds between one that fails and one that is refused as too large."""
    while refused - fails > 1:
        d = (fails + refused) // 2
        value = at(d)
        if value <= eps:
            return fails, d
        fails, refused = (fails, d) if math.isnan(value) else (d, refused)
    return fails, None


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
            known[k] = gap(removed(k))
        return known[k]

    k = _largest(at, 0, most, eps)
    names = (name for name, c in zip(network.names, chosen, strict=True) if c)
    counts = (count for count, c in zip(removed(k), chosen, strict=True) if c)
    return LargestSparsity(
        sparsity=k / most,
        removed=dict(zip(names, counts, strict=True)),
        eps=at(k),
        above=at(k + 1) if k < most else None,
        probes=tuple((j / most, known[j]) for j in sorted(known)),
    )


def _largest(at, low, high, eps):
    """The largest k from low to high with `at(k) <= eps` where `at` rises; low if there is none."""
    if at(high) <= eps:
        return high
    if high - low <= 1 or at(low + 1) > eps:
        return low
    return _boundary(at, high, low + 1, eps)[1]


def _boundary(at, fails, holds, eps):
    """Neighbours between which `at(n) <= eps` changes, from any two between which it does.

    Regula falsi in log n and log at(n) with the Illinois modification (M. Dowell, P. Jarratt,
    BIT 11, 1971), since bounds are nearly powers of n; then bisection.
    """

    def excess(n):
        value = at(n)
        return math.log(value / eps) if value != 0 else -math.inf

    over, under, kept = excess(fails), excess(holds), None
    step = 0
    while abs(fails - holds) > 1:
        share = over / (over - under) if step < _SECANT_STEPS else 0.5
        if not 0.0 < share < 1.0:
            share = 0.5
        n = round(fails * (holds / fails) ** share)
        n = min(max(n, min(fails, holds) + 1), max(fails, holds) - 1)
        value = excess(n)
        if value <= 0:
            holds, under = n, value
            over, kept = (over / 2 if kept == "fails" else over), "fails"
        else:
            fails, over = n, value
            under, kept = (under / 2 if kept == "holds" else under), "holds"
        step += 1
    return fails, holds


def _alone(gap, size):
    """`(k, gap)` of one layer pruned alone, on a grid of counts, made to rise."""
    k = np.unique(np.round(np.geomspace(1, size, 12)).astype(np.int64))
    return k, np.maximum.accumulate([gap(int(j)) for j in k])


def _best_shares(alone, eps):
    """Counts of largest sum if each layer's own gap is its share of eps, in 64 parts."""
    budgets = np.arange(1, _SHARES + 1) / _SHARES * eps
    best, plans = np.zeros(_SHARES + 1), [{} for _ in range(_SHARES + 1)]
    for i, (k, gap) in alone.items():
        inverse = np.exp(np.interp(np.log(budgets), np.log(gap), np.log(k)))
        count = np.concatenate([[0.0], np.where(budgets < gap[0], 0.0, np.floor(inverse))])
        totals = [best[: b + 1] + count[b::-1] for b in range(_SHARES + 1)]
        spent = [int(np.argmax(total)) for total in totals]
        plans = [plans[s] | {i: int(count[b - s])} for b, s in enumerate(spent)]
        best = np.array([total.max() for total in totals])
    return plans[-1]

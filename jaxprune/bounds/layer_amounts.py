"""The theorems read backwards, layer by layer: how much each layer may lose at a given epsilon."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.bounds.inverse import (
    certified_gap,
    largest_sparsity,
    typical_gap,
    typical_largest_sparsity,
)
from jaxprune.bounds.search import largest
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Count, Pruning

_SHARES = 64


class LargestAmounts(NamedTuple):
    """Amounts layer by layer at which the gap is small enough.

    Attributes:
      amounts: of each pruned layer by its name; what `certify` and `infinite_width` take.
      sparsity: the fraction removed of the weights of all pruned layers together.
      eps: certified (or typical) gap, at most what was asked.
    """

    amounts: dict[str, Count]
    sparsity: float
    eps: float


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
    certified, it removes at least as many weights as `largest_sparsity` (expected numbers rounded
    down), and no single layer can lose one weight more. For random pruning, whose bound grows like
    the root of a layer's sparsity, nearly all of eps often goes to one layer: that is the optimum,
    not an accident.

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
    gap = certified_gap(law, pruning, delta)
    return _largest_amounts(network, layers, gap, eps, common.removed)


def typical_largest_amounts(
    network: Network,
    law: Law,
    pruning: Pruning,
    *,
    eps: float,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    input_norm: float = 1.0,
) -> LargestAmounts:
    """An ESTIMATE of amounts at which a typical gap is at most `eps`; not a certificate.

    See `largest_amounts` for how they are found, `typical_least_width` for what is typical.
    """
    common = typical_largest_sparsity(
        network, law, pruning, eps=eps, layers=layers, input_norm=input_norm
    )
    gap = typical_gap(law, pruning, input_norm)
    return _largest_amounts(network, layers, gap, eps, common.removed)


def _largest_amounts(network, layers, gap_of, eps, common):
    sizes = network.weight_counts
    chosen = [i for i, c in enumerate(select_layers(network, layers)) if c]

    def gap(removed: Mapping[int, int]) -> float:
        return gap_of(network, tuple(removed.get(i, 0) for i in range(len(sizes))))

    # Whole numbers of expected counts are not those that were certified: check.
    starts = [dict.fromkeys(chosen, 0), {i: int(common[network.names[i]]) for i in chosen}]
    if len(chosen) > 1:
        starts.append(_shared(gap, {i: sizes[i] for i in chosen}, eps))
    removed = max((s for s in starts if gap(s) <= eps), key=lambda s: sum(s.values()))
    while True:
        before = dict(removed)
        for i in sorted(chosen, key=lambda i: -sizes[i]):
            others = dict(removed)
            removed[i] = largest(
                lambda k, o=others, i=i: gap(o | {i: k}), removed[i], sizes[i], eps
            )
        if removed == before:
            break
    return LargestAmounts(
        {network.names[i]: Count(removed[i]) for i in chosen},
        sum(removed.values()) / sum(sizes[i] for i in chosen),
        gap(removed),
    )


def _shared(gap, sizes, eps):
    """Counts of most weights by shares of eps, the shares scaled until all together give eps."""
    alone = {i: _alone(lambda k, i=i: gap({i: k}), size) for i, size in sizes.items()}

    def shared(part: int) -> dict[int, int]:
        return _best_shares(alone, part / _SHARES * eps) if part else dict.fromkeys(sizes, 0)

    return shared(largest(lambda j: gap(shared(j)), 0, 4 * _SHARES, eps))


def _alone(gap, size):
    """`(k, gap)` of one layer pruned alone, on a grid of counts, made to rise; no gap of 0."""
    k = np.unique(np.round(np.geomspace(1, size, 12)).astype(np.int64))
    gaps = np.maximum.accumulate([gap(int(j)) for j in k])
    return k[gaps > 0], gaps[gaps > 0]


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

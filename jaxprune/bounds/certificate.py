"""The network theorem: a number that the gap of a pruned network exceeds rarely.

Proof: README.md, theorems 5 and 6. Nothing here depends on a sample; weights and masks are random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from jaxprune import validation
from jaxprune.bounds import random_matrices
from jaxprune.bounds.random_matrices import NormBound, Tail
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning


class Event(NamedTuple):
    """One of the events whose probabilities add up to delta.

    Attributes:
      layer: name of the layer.
      matrix: "weights" W, "kept" W∘M or "removed" W - W∘M.
      delta: its share of the whole delta; for magnitude pruning the share of "removed" also pays
        for the layer's threshold event, outside which both parts' bounds are stated.
      bound: of the norm.
    """

    layer: str
    matrix: str
    delta: float
    bound: NormBound


class Certificate(NamedTuple):
    """`P(sup over ||x|| <= 1 of ||F(x) - f(x)|| <= eps) >= 1 - delta`.

    Attributes:
      eps: the certified gap.
      delta: of the whole statement.
      weights: bound on ||W_i||, one a layer; None where the proof does not need it.
      kept: bound on ||W_i∘M_i||, likewise.
      removed: bound on ||W_i - W_i∘M_i||, 0 in layers that are not pruned.
      order: names of the pruned layers in the order in which the proof switches them.
      events: which bounds were used and how delta is split among them.
    """

    eps: float
    delta: float
    weights: tuple[float | None, ...]
    kept: tuple[float | None, ...]
    removed: tuple[float, ...]
    order: tuple[str, ...]
    events: tuple[Event, ...]


def certify(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amount,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    delta: float = 0.05,
) -> Certificate:
    """Bounds the gap of a network over the unit ball (README, theorem 6).

    Args:
      network: dense and convolution layers.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of each chosen layer is removed.
      layers: which layers are pruned, see `networks.select_layers`.
      delta: in (0, 1), the probability that the statement may fail.

    Raises:
      ValueError: another pruning method, or a number or a name out of range.
    """
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    method = random_matrices.method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)
    removed = [
        pruning.removed(amount, count) if chosen else 0
        for count, chosen in zip(network.weight_counts, select_layers(network, layers), strict=True)
    ]
    return certify_counts(network, law, method, removed, delta)


def certify_counts(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> Certificate:
    """`certify` by the number of weights removed from each layer (expected for "bernoulli")."""
    if not any(removed):
        nothing = (None,) * len(removed)
        return Certificate(0.0, delta, nothing, nothing, (0.0,) * len(removed), (), ())
    return min(
        (plan.best_split() for plan in _plans(network, law, method, removed, delta)),
        key=lambda certificate: certificate.eps,
    )


def switching_order(
    weights: Sequence[float], kept: Sequence[float], removed: Sequence[float]
) -> tuple[int, ...]:
    """The order of switching from dense to pruned that makes the telescoping sum least.

    Swapping two neighbours shows that larger `(||W|| - ||W∘M||) / ||W - W∘M||` goes first.

    Args:
      weights: `(l)` norms of W.
      kept: `(l)` norms of W∘M.
      removed: `(l)` norms of W - W∘M; layers with 0 are not switched.

    Returns:
      Indices of the switched layers.
    """
    pruned = [i for i, b in enumerate(removed) if b > 0]
    return tuple(sorted(pruned, key=lambda i: -(weights[i] - kept[i]) / removed[i]))


def telescoping_sum(
    order: Sequence[int],
    weights: Sequence[float],
    kept: Sequence[float],
    removed: Sequence[float],
) -> float:
    """`Σ_k removed_k ∏ (kept_j, j switched before k) ∏ (weights_j, j not yet switched)`."""
    total = 0.0
    for position, k in enumerate(order):
        before = order[:position]
        others = (kept[j] if j in before else weights[j] for j in range(len(weights)) if j != k)
        total += removed[k] * math.prod(others)
    return total


@dataclass(frozen=True)
class _Plan:
    """A proof but for the split of delta: the switching order and the events that it needs.

    Attributes:
      names: of the layers.
      lipschitz: of all activations together.
      order: the pruned layers as they are switched.
      tails: of each norm that the proof needs, by layer and matrix.
      spent: by layer, what its threshold takes of delta.
      delta: of the whole statement.
    """

    names: tuple[str, ...]
    lipschitz: float
    order: tuple[int, ...]
    tails: dict[tuple[int, str], Tail]
    spent: tuple[float, ...]
    delta: float

    @property
    def events(self) -> list[tuple[int, str]]:
        return [key for key, tail in self.tails.items() if not tail.is_zero]

    def bounds(self, shares: np.ndarray) -> dict[tuple[int, str], NormBound]:
        """One bound a needed norm; `shares` is how the events split what thresholds leave."""
        deltas = dict(zip(self.events, shares * (self.delta - sum(self.spent)), strict=True))
        return {key: tail.at(deltas.get(key, 1.0)) for key, tail in self.tails.items()}

    def norms(self, bounds) -> dict[str, list[float | None]]:
        norms = {
            matrix: [
                getattr(bounds.get((i, matrix)), "value", None) for i in range(len(self.names))
            ]
            for matrix in ("weights", "kept", "removed")
        }
        for i in self.order:
            # ||W∘M|| <= ||W|| + ||W - W∘M|| costs no event
            if norms["weights"][i] is not None:
                through = norms["weights"][i] + norms["removed"][i]
                own = norms["kept"][i]
                norms["kept"][i] = through if own is None else min(own, through)
        return norms

    def eps(self, shares: np.ndarray) -> float:
        norms = self.norms(self.bounds(shares))
        removed = [b or 0.0 for b in norms["removed"]]
        total = telescoping_sum(self.order, norms["weights"], norms["kept"], removed)
        return self.lipschitz * total

    def best_split(self) -> Certificate:
        equal = np.full(len(self.events), 1.0 / len(self.events))
        found = optimize.minimize(
            lambda x: math.log(self.eps(special.softmax(x))),
            np.zeros(len(equal)),
            method="L-BFGS-B",
            bounds=[(-15.0, 15.0)] * len(equal),
        )
        return self.certificate(min(equal, special.softmax(found.x), key=self.eps))

    def certificate(self, shares: np.ndarray) -> Certificate:
        bounds = self.bounds(shares)
        norms = self.norms(bounds)
        split = shares * (self.delta - sum(self.spent))
        return Certificate(
            eps=self.eps(shares),
            delta=self.delta,
            weights=tuple(norms["weights"]),
            kept=tuple(norms["kept"]),
            removed=tuple(b or 0.0 for b in norms["removed"]),
            order=tuple(self.names[i] for i in self.order),
            events=tuple(
                Event(self.names[i], matrix, float(part) + spent, bounds[i, matrix])
                for (i, matrix), part, spent in zip(
                    self.events,
                    split,
                    (self.spent[i] if m == "removed" else 0.0 for i, m in self.events),
                    strict=True,
                )
            ),
        )


def _plans(network, law, method, removed, delta) -> list[_Plan]:
    """Two proofs: kept parts with events of their own, or kept <= weights + removed."""
    layers = range(len(removed))
    pruned = [i for i in layers if removed[i] > 0]
    # Magnitude pruning: one threshold event a pruned layer, the rest is left to the norms.
    share = random_matrices.THRESHOLD_SHARE * delta / len(pruned)
    weights = [random_matrices.weight_tail(layer, law) for layer in network.layers]
    parts = [
        random_matrices.pruned_tails(layer, law, method, k, share)
        for layer, k in zip(network.layers, removed, strict=True)
    ]
    guess = delta / (len(weights) + 2 * len(pruned))
    order = switching_order(
        [tail.at(guess).value for tail in weights],
        [part.kept.at(guess).value for part in parts],
        [part.removed.at(guess).value for part in parts],
    )

    def plan(kept, dense):
        tails = {(i, "weights"): weights[i] for i in layers if i not in pruned or i in dense}
        if len(layers) == 1:
            tails = {}
        tails |= {(i, "kept"): parts[i].kept for i in kept}
        tails |= {(i, "removed"): parts[i].removed for i in pruned}
        lipschitz = network.activation.lipschitz ** (len(layers) - 1)
        spent = tuple(part.spent for part in parts)
        return _Plan(network.names, lipschitz, order, tails, spent, delta)

    own = plan(kept=order[:-1], dense=order[1:])
    if len(order) == 1:
        return [own]
    return [own, plan(kept=(), dense=order)]

"""The first route to a certificate: products of norms, layer switched by layer.

Proof: README.md, theorems 5 and 6. Serves every network, convolutions included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.bounds import random_matrices
from jaxprune.bounds.norm_family import NormBound, Tail
from jaxprune.bounds.proof import Certificate, Event, best_shares
from jaxprune.laws import Law
from jaxprune.networks import Network


def certify_by_norms(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> Certificate:
    """The better of two proofs by theorem 6 (README).

    Args:
      network: dense and convolution layers.
      law: of the weights.
      method: "random", "bernoulli" or "magnitude".
      removed: weights removed from each layer, not all 0; expected number for "bernoulli".
      delta: of the whole statement.
    """
    plans = _plans(network, law, method, removed, delta)
    return min((plan.certificate() for plan in plans), key=lambda certificate: certificate.eps)


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


def telescoping_sum(order: Sequence[int], weights: Sequence, kept: Sequence, removed: Sequence):
    """`Σ_k removed_k ∏ (kept_j, j switched before k) ∏ (weights_j, j not yet switched)`.

    The norms are numbers, or arrays of one shape.
    """
    total = 0.0
    for position, k in enumerate(order):
        before = order[:position]
        others = (kept[j] if j in before else weights[j] for j in range(len(weights)) if j != k)
        total = total + removed[k] * math.prod(others)
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

    def norms(self, values) -> dict[str, list]:
        """By matrix and layer; None where the proof needs no bound."""
        norms = {
            matrix: [values.get((i, matrix)) for i in range(len(self.names))]
            for matrix in ("weights", "kept", "removed")
        }
        for i in self.order:
            # ||W∘M|| <= ||W|| + ||W - W∘M|| costs no event
            if norms["weights"][i] is not None:
                through = norms["weights"][i] + norms["removed"][i]
                own = norms["kept"][i]
                norms["kept"][i] = through if own is None else np.minimum(own, through)
        return norms

    def eps(self, shares: np.ndarray) -> np.ndarray:
        """`(b, events)` shares of what the thresholds leave of delta, to `(b,)` values."""
        log_delta = np.log(shares * (self.delta - sum(self.spent)))
        zero = np.zeros(len(shares))
        values = {key: zero for key in self.tails}
        for j, key in enumerate(self.events):
            values[key] = self.tails[key].values(log_delta[:, j])
        norms = self.norms(values)
        removed = [0.0 if b is None else b for b in norms["removed"]]
        total = telescoping_sum(self.order, norms["weights"], norms["kept"], removed)
        return self.lipschitz * (total + zero)

    def certificate(self) -> Certificate:
        shares = best_shares(self.eps, len(self.events))
        split = dict(zip(self.events, shares * (self.delta - sum(self.spent)), strict=True))
        bounds: dict[tuple[int, str], NormBound] = {
            key: tail.at(split.get(key, 1.0)) for key, tail in self.tails.items()
        }
        norms = self.norms({key: bound.value for key, bound in bounds.items()})
        as_floats = {
            matrix: tuple(None if v is None else float(v) for v in values)
            for matrix, values in norms.items()
        }
        return Certificate(
            eps=float(self.eps(shares[None])[0]),
            delta=self.delta,
            weights=as_floats["weights"],
            kept=as_floats["kept"],
            removed=tuple(b or 0.0 for b in as_floats["removed"]),
            order=tuple(self.names[i] for i in self.order),
            events=tuple(
                Event(
                    self.names[i],
                    matrix,
                    float(part) + (self.spent[i] if matrix == "removed" else 0.0),
                    bounds[i, matrix],
                )
                for (i, matrix), part in split.items()
            ),
            route="norms",
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

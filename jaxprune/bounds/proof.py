"""What a proof consists of: events whose probabilities add up to delta, and eps outside them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune.bounds.norm_family import NormBound


class Event(NamedTuple):
    """One of the events whose probabilities add up to delta.

    Attributes:
      layer: name of the layer.
      matrix: what is bounded: the norm of "weights" W, "kept" W∘M or "removed" W - W∘M, or a
        supremum of `images`, named there.
      delta: its share of the whole delta. For magnitude pruning the "norms" route counts the
        threshold's share with "removed"; the "images" route has an event "threshold" of its own.
      bound: the number, and the theorem behind it.
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
      removed: bound on ||W_i - W_i∘M_i||, 0 in layers that are not pruned; None where a pruned
        layer is bounded on the image of the ball alone.
      order: names of the pruned layers in the order in which the proof switches them.
      events: which bounds were used and how delta is split among them.
      route: "norms" (README, theorem 6) or "images" (theorem 8).
      radii: "images": bound on the norms of the target's hidden states, one a layer from the input
        (1) to the last hidden layer.
      errors: "images": bound on the norms of the hidden states' differences, likewise.
    """

    eps: float
    delta: float
    weights: tuple[float | None, ...]
    kept: tuple[float | None, ...]
    removed: tuple[float | None, ...]
    order: tuple[str, ...]
    events: tuple[Event, ...]
    route: str
    radii: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()


def best_shares(eps: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """How `count` events share their probability: a local minimum, never worse than equal shares.

    Any shares that add up to 1 are a proof; the search needs no guarantee.

    Args:
      eps: `(b, count)` shares to `(b,)` values.
      count: at least 1.

    Returns:
      `(count,)` positive shares that add up to 1.
    """
    from scipy import optimize  # here, so that importing the package stays light

    equal = np.full(count, 1.0 / count)
    if count == 1:
        return equal
    step = 1e-5
    steps = np.concatenate([np.zeros((1, count)), step * np.eye(count)])

    def value_and_slope(x):
        values = np.log(eps(special.softmax(x + steps, axis=1)))
        return values[0], (values[1:] - values[0]) / step

    found = optimize.minimize(
        value_and_slope,
        np.zeros(count),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-15.0, 15.0)] * count,
        options={"maxiter": 100},
    )
    candidates = np.stack([equal, special.softmax(found.x)])
    return candidates[int(np.argmin(eps(candidates)))]

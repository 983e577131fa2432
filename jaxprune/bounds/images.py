"""The second route to a certificate: images of the ball in place of products of norms.

Dense layers only. Proof: README.md, theorem 8.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from jaxprune import laws
from jaxprune.bounds import random_matrices
from jaxprune.bounds.ball_images import (
    REMOVED,
    ROW_SUMS,
    WEIGHTS,
    BallImages,
    LayerFacts,
)
from jaxprune.bounds.domination import gaussian_deviation, gaussian_lipschitz
from jaxprune.bounds.norm_family import ORDERS, ZERO, NormBound, Tail
from jaxprune.bounds.proof import Certificate, Event, best_shares
from jaxprune.bounds.row_sums import row_sum_tail
from jaxprune.bounds.trace_moments import log_moments, size_of, truncated_log_moments
from jaxprune.laws import Law
from jaxprune.networks import Network

_REFERENCE = "README theorem 8: Chevet, Gordon, contraction, concentration"
_THRESHOLD = "README theorem 2: the threshold's quantile level"

Key = tuple[int, str]
"""A layer, counted from 0, and the supremum that one event bounds."""


def certify_by_images(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> Certificate | None:
    """Theorem 8 (README), for dense networks.

    Args:
      network: the network.
      law: of the weights.
      method: "random", "bernoulli" or "magnitude".
      removed: weights removed from each layer, not all 0; expected number for "bernoulli".
      delta: of the whole statement.

    Returns:
      The certificate; None for a convolution, or a law that is neither uniform nor normal.
    """
    if not network.is_dense:
        return None
    if law.family not in (laws.UNIFORM, laws.NORMAL):
        return None
    images = ball_images(network, law, method, removed, delta)
    proofs = [images.together] if images.by_magnitude else [images.together, images.apart]
    found = (_certificate(network, images, proof, delta) for proof in proofs)
    return min(found, key=lambda certificate: certificate.eps)


def _certificate(network, images, proof, delta) -> Certificate:
    """The best split of delta among the events of `proof`, after what the thresholds spent."""
    names, layers = network.names, images.layers
    rest = delta - sum(layer.spent for layer in layers)
    keys: list[Key] = []

    def note(i, what):
        keys.append((i, what))
        return 1.0

    proof(note, note)

    def tail(i, what):
        layer = layers[i]
        return {WEIGHTS: layer.weights, REMOVED: layer.removed, ROW_SUMS: layer.row_sums}[what]

    def solve(shares):
        """`(b, events)` shares of `rest`."""
        log_delta = dict(zip(keys, np.log(shares * rest).T, strict=True))
        return proof(
            lambda i, what: tail(i, what).values(log_delta[i, what]),
            lambda i, what: np.sqrt(-2.0 * log_delta[i, what]),
        )

    shares = best_shares(lambda shares: solve(shares).eps, len(keys))
    solution = solve(shares[None])
    events = []
    for (i, what), part in zip(keys, (shares * rest).tolist(), strict=True):
        if what in (WEIGHTS, REMOVED, ROW_SUMS):
            bound = tail(i, what).at(part)
        else:
            bound = NormBound(math.sqrt(-2.0 * math.log(part)), "deviations", _REFERENCE)
        events.append(Event(names[i], what, part, bound))
    events += [
        Event(name, "threshold", layer.spent, NormBound(layer.level, "quantile level", _THRESHOLD))
        for name, layer in zip(names, layers, strict=True)
        if layer.spent
    ]
    norms = {(event.layer, event.matrix): event.bound.value for event in events}
    return Certificate(
        eps=_number(solution.eps),
        delta=delta,
        weights=tuple(norms.get((name, WEIGHTS)) for name in names),
        kept=(None,) * len(names),
        removed=tuple(
            0.0 if layer.removed.is_zero else norms.get((name, REMOVED))
            for name, layer in zip(names, layers, strict=True)
        ),
        order=tuple(
            name for name, layer in zip(names, layers, strict=True) if not layer.removed.is_zero
        ),
        events=tuple(events),
        route="images",
        radii=tuple(map(_number, solution.radii)),
        errors=tuple(map(_number, solution.errors)),
    )


def _number(x) -> float:
    return float(np.ravel(x)[0])


@lru_cache(maxsize=1024)
def _removed_entries(family, size, count, level) -> tuple[Tail, float]:
    """Row sums of the removed part, at scale 1, and the deviation of one removed entry."""
    moments = log_moments(family, ORDERS[-1])
    if 0.0 < level < 1.0:
        moments = truncated_log_moments(family, level, ORDERS[-1])[0]
    tail = row_sum_tail(moments, count / size.weights, size) if count > 0 else ZERO
    return tail, math.exp(0.5 * moments[0])


def ball_images(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> BallImages:
    """What theorem 8 needs of a network; args are those of `certify_by_images`, dense layers."""
    pruned = sum(k > 0 for k in removed)
    share = random_matrices.THRESHOLD_SHARE * delta / pruned
    s = network.activation
    layers = []
    for layer, k in zip(network.layers, removed, strict=True):
        part = random_matrices.pruned_tails(layer, law, method, k, share)
        scale = law.scale(*layer.fans)
        row_sums, deviation = _removed_entries(law.family, size_of(layer), float(k), part.level)
        layers.append(
            LayerFacts(
                rows=layer.d_out,
                columns=layer.d_in,
                deviation=scale * gaussian_deviation(law.family),
                lipschitz=scale * gaussian_lipschitz(law.family),
                weights=random_matrices.weight_tail(layer, law),
                removed=part.removed,
                row_sums=replace(row_sums, scale=scale),
                frobenius=scale * math.sqrt(k) * deviation,
                removed_lipschitz=scale * gaussian_lipschitz(law.family, part.level),
                level=part.level,
                spent=part.spent,
            )
        )
    one_sided = s.lipschitz
    if s.positively_homogeneous:
        # s(z) = c z + (L - c) max(z, 0); the positive part of g has half of its energy.
        one_sided = s.least_slope + (s.lipschitz - s.least_slope) / math.sqrt(2)
    return BallImages(
        tuple(layers),
        one_sided,
        slope=s.lipschitz,
        least_slope=s.least_slope,
        homogeneous=s.positively_homogeneous,
        gaussian=law.family is laws.NORMAL,
        by_magnitude=method == "magnitude",
        fixed_count=method != "bernoulli",
    )

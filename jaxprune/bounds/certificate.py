"""The network theorem: a number that the gap of a pruned network exceeds rarely.

Two routes lead there, `telescoped` (any network) and `images` (dense layers); each is a theorem by
itself and depends on no sample, so the smaller number holds. README.md, theorems 5, 6 and 8.
"""

from collections.abc import Callable, Sequence

from jaxprune import validation
from jaxprune.bounds import random_matrices
from jaxprune.bounds.counts import Amounts, removed_counts
from jaxprune.bounds.images import certify_by_images
from jaxprune.bounds.proof import Certificate
from jaxprune.bounds.telescoped import certify_by_norms
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Pruning


def certify(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amounts,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    delta: float = 0.05,
) -> Certificate:
    """Bounds the gap of a network over the unit ball (README, theorems 6 and 8).

    Args:
      network: dense and convolution layers.
      law: of the weights.
      pruning: random, bernoulli or magnitude.
      amount: how much of each chosen layer is removed: one amount, or `{layer name: amount}`, which
        chooses the layers as well.
      layers: which layers are pruned, see `networks.select_layers`.
      delta: in (0, 1), the probability that the statement may fail.

    Raises:
      ValueError: another pruning method, or a number or a name out of range.
    """
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    method = random_matrices.method_name(pruning)
    delta = validation.real("delta", delta, 0.0, 1.0)
    removed = removed_counts(network, pruning, amount, layers)
    return certify_counts(network, law, method, removed, delta)


def certify_counts(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> Certificate:
    """`certify` by the number of weights removed from each layer (expected for "bernoulli")."""
    if not any(removed):
        nothing = (None,) * len(removed)
        zeros = (0.0,) * len(removed)
        return Certificate(0.0, delta, nothing, nothing, zeros, (), (), "norms")
    routes = (
        certify_by_norms(network, law, method, removed, delta),
        certify_by_images(network, law, method, removed, delta),
    )
    return min((route for route in routes if route is not None), key=lambda route: route.eps)

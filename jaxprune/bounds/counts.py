"""How many weights each layer loses: what every theorem here takes instead of an amount."""

from collections.abc import Callable, Mapping, Sequence

from jaxprune import validation
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning

Amounts = Amount | Mapping[str, Amount]
"""One amount for all pruned layers, or one a layer by its name."""


def removed_counts(
    network: Network,
    pruning: Pruning,
    amount: Amounts,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
) -> tuple[float, ...]:
    """Weights removed from each layer, 0 where nothing is pruned; the expected number if random.

    Args:
      network: the network.
      pruning: the method.
      amount: one for all chosen layers, or `{layer name: amount}`, which chooses them.
      layers: which layers are pruned, see `networks.select_layers`; not beside such a mapping.

    Raises:
      ValueError: an unknown layer, an amount that a layer cannot lose, or two choices of layers.
    """
    if isinstance(amount, Mapping):
        if layers != "middle":
            raise ValueError(f"layers = {layers!r}: the names in amount choose the layers")
        chosen = select_layers(network, tuple(amount))
        amounts = [amount.get(name) for name in network.names]
    else:
        chosen = select_layers(network, layers)
        amounts = [amount] * len(chosen)
    for one in amounts:
        if one is not None:
            validation.instance("amount", one, Amount, "jp.Fraction, jp.Sublinear or jp.Count")
    return tuple(
        pruning.removed(one, count) if pruned else 0
        for one, count, pruned in zip(amounts, network.weight_counts, chosen, strict=True)
    )

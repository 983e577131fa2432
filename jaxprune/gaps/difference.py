"""The difference of a network and its pruned copy, carried through the layers.

Subtracting two nearly equal outputs loses the digits of a small gap. With `a = W h`, `P` the
removed part of `W` and `e` the difference of the hidden states, the recursion

    d = P h + (W - P) e,    e' = s(a) - s(a - d)

keeps the digits of d: no step subtracts two numbers that are large against their difference and
are themselves rounded.
"""

import jax
import jax.numpy as jnp

from jaxprune.networks import Network
from jaxprune.types import Params

Removed = tuple[jax.Array | None, ...]
"""The removed part `P_i = W_i - W_i * M_i` of each layer; None where nothing is ever removed."""


def removed_part(params: Params, masks: tuple[jax.Array | None, ...]) -> Removed:
    """`P_i`, exactly; a mask of None means a layer that is left alone."""
    return tuple(
        None if mask is None else jnp.where(mask, 0.0, w)
        for w, mask in zip(params, masks, strict=True)
    )


def evaluate(
    network: Network, params: Params, removed: Removed, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`F(x)` and `F(x) - f(x)`.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.
      x: inputs `(*in_shape, n)`, or one of shape `in_shape`.

    Returns:
      Two arrays `(*out_shape, n)`, or `out_shape`.
    """
    import chex  # here, so that importing the package stays light

    batch = x.shape[len(network.in_shape) :]
    chex.assert_shape(x, (*network.in_shape, *batch))
    h, e = x, None  # e of None: no difference so far, whatever x
    for layer, w, p in zip(network.layers, params, removed, strict=True):
        a = layer(w, h)
        d = None if e is None else layer(w if p is None else w - p, e)
        if p is not None:
            d = layer(p, h) if d is None else d + layer(p, h)
        e = None if d is None else network.activation.difference(a, d)
        h = network.activation.fn(a)
    return a, jnp.zeros_like(a) if d is None else d


def difference(network: Network, params: Params, removed: Removed, x: jax.Array) -> jax.Array:
    """`F(x) - f(x)` alone, see `evaluate`."""
    return evaluate(network, params, removed, x)[1]

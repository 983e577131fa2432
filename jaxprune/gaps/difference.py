"""The difference of a network and its pruned copy, carried through the layers.

Subtracting two nearly equal outputs loses the digits of a small gap. With `a = W h`, `P` the
removed part of `W` and `e` the difference of the hidden states, the recursion

    d = P h + (W - P) e,    e' = s(a) - s(a - d)

keeps the digits of d: no step subtracts two numbers that are large against their difference and
are themselves rounded.
"""

import math

import jax
import jax.numpy as jnp

from jaxprune.gaps.lengths import largest, lengths
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


FAR = 2.0**-3
"""Subtracting outputs errs by 2e-7 (3 layers) to 5e-7 (8 layers) of the outputs, so from this share
of them on by less than a tenth of the engine's guard band; it takes 6 products in place of 8."""

LEAST_FEATURES = 16
"""With fewer, an output or a state may by chance be small against the terms of its sum, and so
against its rounding error; as a whole, 16 features are 16 times less than typical once in 10^15."""


def evaluate_typical(
    network: Network, params: Params, removed: Removed, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `evaluate`, for weights as a law draws them, and inputs that all pairs of a batch share.

    Where a pair's largest distance is at least `FAR` of its largest output, the difference may be
    that of the outputs. There is no gradient.
    """

    def batch(params, removed):
        def subtracted(params, removed):
            kept = [w if p is None else w - p for w, p in zip(params, removed, strict=True)]
            outputs = network(params, x)
            return outputs, outputs - network(kept, x)

        carried = lambda params, removed: evaluate(network, params, removed, x)
        shape = len(params[0]), *network.out_shape, *x.shape[len(network.in_shape) :]
        nothing = jnp.zeros(shape, params[0].dtype)
        # A guess, which costs time alone if it is wrong.
        pruned = [wp for wp in zip(params, removed, strict=True) if wp[1] is not None]
        far = jnp.all(sum(_squares(p) / _squares(w) for w, p in pruned) > FAR**2)
        pairs = params, removed
        outputs, d = jax.lax.cond(far, jax.vmap(subtracted), lambda *_: (nothing, nothing), *pairs)
        longest = jax.vmap(lambda y: largest(lengths(y)))
        near = ~(longest(d) > FAR * longest(outputs))  # what is not finite, too
        outputs, exact = jax.lax.cond(
            jnp.any(near), jax.vmap(carried), lambda *_: (outputs, d), *pairs
        )
        return outputs, jnp.where(near.reshape(-1, *[1] * (d.ndim - 1)), exact, d)

    @jax.custom_batching.custom_vmap
    def pair(params, removed):
        one = jax.tree.map(lambda w: w[None], (params, removed))
        return jax.tree.map(lambda y: y[0], batch(*one))

    @pair.def_vmap
    def _(size, batched, *pair):
        spread = lambda w, has: w if has else jnp.broadcast_to(w, (size, *w.shape))
        return batch(*jax.tree.map(spread, pair, tuple(batched))), (True, True)

    if all(p is None for p in removed):
        return evaluate(network, params, removed, x)
    return pair(params, removed)


def is_typical(network: Network) -> bool:
    """Whether every layer of drawn weights has features enough that float32 keeps the distance."""
    return min(math.prod(layer.out_shape) for layer in network.layers) >= LEAST_FEATURES


def _squares(y):
    """Sums of squares over all axes but the first."""
    return jnp.sum(jnp.square(y), axis=tuple(range(1, y.ndim)))

"""Which layer makes the gap: layers are switched from dense to pruned one at a time.

With the layers of S pruned and the others dense, let `F_S` be the network. Along an order of the
pruned layers k,

    F - f = sum_k t_k,    t_k = F_S - F_(S + k),    S the layers switched before k,

exactly, at every input; and over the unit ball, with `a_j = ||W_j||`, `p_j = ||W_j * M_j||`,
`b_j = ||W_j - W_j * M_j||` and Lipschitz constants L of the activations,

    ||t_k|| <= (prod L) b_k prod_(j switched before k) p_j prod_(other j) a_j.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gaps import norms
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.difference import Removed, difference
from jaxprune.gaps.lengths import lengths
from jaxprune.gaps.sandwich import UnitBall
from jaxprune.networks import Network
from jaxprune.types import Key, Params


class Account(NamedTuple):
    """The gap of one pair by pruned layer; m of them, in the order of the network.

    Attributes:
      distance: `()` length of `F(x) - f(x)` at an input x.
      terms: `(m,)` length of each `t_k(x)`.
      shares: `(m,)` projection of `t_k(x)` on `F(x) - f(x)`, over the latter's length: they add
        up to 1, one may be negative. NaN where the distance is 0.
      bounds: `(m,)` proven bounds over the unit ball of each term of the order that makes their
        sum least; the sum bounds the gap.
    """

    distance: jax.Array
    terms: jax.Array
    shares: jax.Array
    bounds: jax.Array


def layer_account(
    network: Network, params: Params, removed: Removed, x: jax.Array, order: Sequence[int]
) -> Account:
    """Splits the difference at one input, and its bound, by layer.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.
      x: of shape `network.in_shape`.
      order: indices of the pruned layers, first switched first; of `terms` and `shares` alone.
    """
    t = switch_terms(network, params, removed, x, order)
    total = jnp.sum(t, axis=0)
    # In units of the largest entry, lest squares underflow.
    most = jnp.max(jnp.abs(total))
    unit = jnp.where(most > 0, most, 1.0)
    u = total / unit
    shares = jnp.sum(t / unit * u[None], axis=1) / jnp.sum(u * u)
    bounds = telescoping_terms(network, params, removed)
    return Account(lengths(total[:, None])[0], lengths(t.T), shares, bounds)


def switch_terms(
    network: Network, params: Params, removed: Removed, x: jax.Array, order: Sequence[int]
) -> jax.Array:
    """`t_k(x)`, `(m, outputs)`, in the order of the network; see `layer_account`."""
    now, terms = list(params), {}
    for k in order:
        alone = tuple(p if i == k else None for i, p in enumerate(removed))
        terms[k] = difference(network, tuple(now), alone, x).reshape(-1)
        now[k] = now[k] - removed[k]
    return jnp.stack([terms[k] for k in sorted(terms)])


def telescoping_terms(network: Network, params: Params, removed: Removed) -> jax.Array:
    """Bounds of the terms in the order of switching that makes their sum least.

    Layers are switched in falling order of `(a - p) / b`: exchanging neighbours j, k changes
    `b_j a_k + p_j b_k` into `b_k a_j + p_k b_j`.

    Returns:
      `(m,)` float32, upper bounds in floating point, in the order of the network; 0 exactly where
      nothing is removed, NaN or infinite if a weight is.
    """
    pruned = [i for i, p in enumerate(removed) if p is not None]
    with jax.enable_x64(True):
        mantissa, exponent = norms.power(network.activation.lipschitz, len(params) - 1)
        common = jnp.float64(mantissa)
        for i, (layer, w) in enumerate(zip(network.layers, params, strict=True)):
            if i not in pruned:
                size, k = _in_units(norms.norm_bound(layer, w))
                common, exponent = common * size, exponent + k

        def stacked(weights):
            return jnp.stack([norms.norm_bound(network.layers[i], weights(i)) for i in pruned])

        nothing = jnp.stack([norms.is_zero(removed[i]) for i in pruned])
        b = jnp.where(nothing, 0.0, stacked(lambda i: removed[i]))
        if len(pruned) == 1:  # its own norms before and after multiply nothing
            terms = norms.shifted(b * common, exponent)
        else:
            # In float64: in float32 a subnormal weight that is kept may be flushed to 0.
            kept = lambda i: norms.as_float64(params[i]) - norms.as_float64(removed[i])
            a, p = stacked(lambda i: params[i]), stacked(kept)
            place = jnp.argsort(jnp.argsort(jnp.where(b > 0, (p - a) / b, 0.0)))
            before = place[None, :] < place[:, None]
            others = jnp.where(before, p[None, :], a[None, :])
            others = jnp.where(jnp.eye(len(pruned), dtype=bool), 1.0, others)
            others, k = _in_units(others)
            terms = b * common * jnp.prod(others, axis=1)
            terms = norms.shifted(terms, exponent + jnp.sum(k, axis=1))
        terms = terms * (1.0 + 2.0**-22) + jnp.finfo(jnp.float32).tiny
        return jnp.where(nothing, 0.0, terms).astype(jnp.float32)


def _in_units(size):
    """A number in units of a power of two, and its exponent: products stay within float64."""
    return size / norms.power_of_two(size), norms.exponent(size)


def worst_input(
    domain: UnitBall, key: Key, network: Network, params: Params, removed: Removed
) -> jax.Array:
    """The input of the unit ball with the largest `||F - f||` that sampling and ascent find."""
    x = domain.draw(key, network.in_shape)
    values = lengths(difference(network, params, removed, x))
    values, x = ascend(network, params, removed, x, values, domain.starts, domain.steps)
    return x[..., jnp.argmax(values)]


def worst_row(rows: jax.Array, network: Network, params: Params, removed: Removed) -> jax.Array:
    """The row of `(n, *in_shape)` with the largest `||F - f||`."""
    values = lengths(difference(network, params, removed, jnp.moveaxis(rows, 0, -1)))
    return rows[jnp.argmax(values)]

"""Upper bound of the gap over the unit ball: layers are switched from dense to pruned in turn."""

import jax
import jax.numpy as jnp

from jaxprune.gaps.difference import Removed
from jaxprune.gaps.norms import norm_bound
from jaxprune.networks import Network
from jaxprune.types import Params


def telescoping_bound(network: Network, params: Params, removed: Removed) -> jax.Array:
    """`sup ||F - f|| <= prod L_i * sum_k b_k prod_(j before k) p_j prod_(j after k) a_j`.

    `a_j = ||W_j||`, `p_j = ||W_j * M_j||`, `b_j = ||P_j||`; "before" means switched before k. The
    sum is least when layers are switched in falling order of `(a - p) / b`: exchanging neighbours
    j, k changes `b_j a_k + p_j b_k` into `b_k a_j + p_k b_j`. Any order gives a bound.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.

    Returns:
      `()` float32, an upper bound in floating point; 0 exactly if all removed parts are 0.
    """
    pruned = [i for i, p in enumerate(removed) if p is not None]
    if not pruned:
        return jnp.float32(0.0)
    wanted = {("removed", i): removed[i] for i in pruned}
    # With one pruned layer, its own norms before and after pruning multiply nothing.
    alone = pruned if len(pruned) == 1 else []
    wanted |= {("dense", i): w for i, w in enumerate(params) if i not in alone}
    wanted |= {("pruned", i): params[i] - removed[i] for i in pruned if i not in alone}
    norms = _norm_bounds(network, wanted)

    common = jnp.float32(network.activation.lipschitz ** (len(params) - 1))
    for i in range(len(params)):
        if i not in pruned:
            common = _times(common, norms["dense", i])
    b = jnp.stack([norms["removed", i] for i in pruned])
    one = jnp.float32(1.0)
    a = jnp.stack([norms.get(("dense", i), one) for i in pruned])
    p = jnp.stack([norms.get(("pruned", i), one) for i in pruned])
    order = jnp.argsort(jnp.where(b > 0, (p - a) / b, 0.0))
    b, a, p = b[order], a[order], p[order]
    total = jnp.float32(0.0)
    for k in range(len(pruned)):
        term = b[k]
        for norm in (*p[:k], *a[k + 1 :]):
            term = _times(term, norm)
        total = total + term
    return _times(common, total) * (1.0 + 4 * (len(params) + 2) * 2.0**-24)


def _times(x, y):
    """A product of norms that does not vanish by underflow."""
    least = jnp.where((x > 0) & (y > 0), jnp.finfo(jnp.float32).tiny, 0.0)
    return jnp.maximum(x * y, least)


def _norm_bounds(network: Network, weights: dict) -> dict:
    """`norm_bound` of every entry of `{(what, layer index): weights}`, like layers together."""
    groups = {}
    for what, i in weights:
        groups.setdefault(network.layers[i], []).append((what, i))
    norms = {}
    for layer, names in groups.items():
        stacked = jnp.stack([weights[name] for name in names])
        bounds = jax.vmap(lambda w, layer=layer: norm_bound(layer, w))(stacked)
        norms |= {name: bounds[j] for j, name in enumerate(names)}
    return norms

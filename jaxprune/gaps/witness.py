"""The distance of a pair at given inputs, between two proven ends.

A distance in float32 proves nothing: where outputs cancel, its relative error has no bound. Here
the recursion of `difference` runs in float64, and beside it a bound of what rounding has done so
far. With `g` the relative error of an inner product, `|.|` the Euclidean norm of a column, `||W||`
at least the norm of a layer and of the layer with the absolute weights, and `H, A, D, E` at least
the norms of the errors of `h, a, d, e`,

    A = ||W|| (H + g |h|)
    D = ||P|| (H + g |h|) + ||W - P|| (E + g |e|) + g |d|
    H' = L A + r |a|,    E' = L (A + D) + q |d|

since `s(a) - s(a - d)` moves by at most L where a or d does; L, r and q are those of the activation
(`lipschitz`, `fn_error`, `difference_error`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.gaps.difference import Removed
from jaxprune.gaps.lengths import lengths, per_column
from jaxprune.gaps.norms import as_float64, frobenius, growth, is_zero
from jaxprune.networks import Conv, Layer, Network
from jaxprune.types import Gap, Params

_TINY = 1e-290  # covers underflow


def inside(x: jax.Array) -> jax.Array:
    """Float32 columns `(..., n)` in float64; what rounding put outside the unit ball is in it."""
    with jax.enable_x64(True):
        x = as_float64(x)
        longest = jnp.maximum(lengths(x) * (1.0 + growth(x[..., 0].size)), 1.0)
        return x / per_column(longest, x)


def distances(
    network: Network,
    params: Params,
    removed: Removed,
    x: jax.Array,
    length: Callable[[jax.Array], jax.Array] = lengths,
) -> tuple[jax.Array, jax.Array, Gap]:
    """Brackets `||F - f||` at each of some inputs.

    Args:
      network: the network.
      params: the target's float32 weights.
      removed: from `removed_part`.
      x: `(*in_shape, n)`, float32 or float64.
      length: norm of each column, at most the sum of absolute values.

    Returns:
      `F(x)` and `F(x) - f(x)`, `(*out_shape, n)` float64, and the bracket, two arrays `(n,)`
      float64; where nothing is removed both ends are 0.
    """
    with jax.enable_x64(True):
        h, e = as_float64(x), None
        past_h, past_e = jnp.zeros(h.shape[-1]), None
        s = network.activation
        for layer, w, p in zip(network.layers, params, removed, strict=True):
            w, g = as_float64(w), growth(layer.fans[0])
            p = None if p is None else as_float64(p)
            of_h = past_h + g * lengths(h)
            a, past_a = layer(w, h), _size(layer, w) * of_h + _TINY
            parts = []
            if e is not None:
                kept = w if p is None else w - p
                parts.append((layer(kept, e), _size(layer, kept) * (past_e + g * lengths(e))))
            if p is not None:
                parts.append((layer(p, h), _size(layer, p) * of_h))
            if parts:
                d, past_d = (sum(terms) for terms in zip(*parts, strict=True))
                of_d = lengths(d)
                past_d = past_d + growth(2) * of_d + _TINY
                e = s.difference(a, d)
                past_e = s.lipschitz * (past_a + past_d) + s.difference_error * of_d + _TINY
            h = s.fn(a)
            past_h = s.lipschitz * past_a + s.fn_error * lengths(a) + _TINY
        if not parts:
            return a, jnp.zeros_like(a), Gap(*[jnp.zeros(a.shape[-1])] * 2)
        found = length(d)
        # Of the sum of absolute values, which no other norm exceeds. What is not a number gets here
        # by `lengths`, even where the norm drops it.
        outputs = d[..., 0].size
        error = (math.sqrt(outputs) * past_d + growth(outputs) * found) * (1.0 + 2.0**-20)
        nothing = jnp.all(jnp.stack([is_zero(p) for p in removed if p is not None]))
        error = jnp.where(nothing, 0.0, error)
        return a, d, Gap(jnp.maximum(found - error, 0.0), found + error)


def lower_end(
    network: Network,
    params: Params,
    removed: Removed,
    x: jax.Array,
    found: jax.Array,
    length: Callable[[jax.Array], jax.Array] = lengths,
) -> jax.Array:
    """The lower end of a pair's gap: that of the distance at the best of some inputs.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.
      x: `(*in_shape, n)` inputs of the domain.
      found: `(n,)` lengths there, in float32.
      length: as in `distances`.

    Returns:
      `()` float64; NaN as soon as one length is not finite.
    """
    best = x[..., jax.lax.argmax(found, 0, jnp.int32)][..., None]
    with jax.enable_x64(True):
        lower = distances(network, params, removed, best, length)[2].lower[0]
        return jnp.where(jnp.all(jnp.isfinite(found)), lower, jnp.nan)


def rounded(gap: Gap) -> Gap:
    """A float64 bracket in float32, rounded outward."""
    with jax.enable_x64(True):
        least = jnp.finfo(jnp.float32).tiny
        upper = jnp.where(gap.upper == 0.0, 0.0, gap.upper * (1.0 + 2.0**-23) + least)
        return Gap(rounded_down(gap.lower), upper.astype(jnp.float32))


def rounded_down(lower: jax.Array) -> jax.Array:
    """A float64 lower end in float32; 0 below its normal numbers."""
    with jax.enable_x64(True):
        least = jnp.finfo(jnp.float32).tiny
        lower = jnp.where(lower < 2.0 * least, 0.0, lower * (1.0 - 2.0**-23))
        return lower.astype(jnp.float32)


def _size(layer: Layer, w: jax.Array) -> jax.Array:
    """At least the norm of a layer with weights w, or with their absolute values.

    Of a convolution the sum over its taps, each of which reads another pixel for each output.
    """
    taps = layer.kernel if isinstance(layer, Conv) else 1
    return taps * frobenius(w.reshape(1, -1))

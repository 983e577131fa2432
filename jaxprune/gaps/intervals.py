"""Upper bound of the gap over the cube `||x||_inf <= r`: intervals of the pair, and norms.

Target and pruned network are carried together. With h and g their hidden states, `e = h - g`,
`a = W h`, `b = K g` (K the kept part of W, P the removed one), the difference of the outputs is

    d = P h + K e = P g + W e = a - b,    e' = s(a) - s(b),

and each of these has an interval in every neuron (interval arithmetic as in Gowal et al. 2018; of
the difference, as in ReluDiff, Paulsen et al. 2020). Intervals forget that all neurons see one x,
which costs about the root of the width in each layer. So Euclidean norms go beside them: a neuron
is also at most the norm of its row times that of the state, and the norms are at most `r sqrt(n)`
times `multiplier_bound`, whose proof gives `||F(x) - f(x)|| <= bound ||x||` for every x.

All of it is float64, rounded outward; tanh and erf are taken to err by less than 2^-44 of their
value, some hundred times what the libraries state.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.activations import Activation
from jaxprune.gaps import norms
from jaxprune.gaps.difference import Removed
from jaxprune.gaps.multipliers import multiplier_bound
from jaxprune.networks import Conv, Layer, Network
from jaxprune.types import Params

_TINY = 1e-290  # covers underflow
_FUNCTION = 2.0**-44  # above the relative error of an activation


class Interval(NamedTuple):
    """`low <= v <= high` in every entry; float64 arrays of one shape."""

    low: jax.Array
    high: jax.Array


class OutputNorms(NamedTuple):
    """A bound for each norm of the outputs; `()` arrays."""

    linf: jax.Array
    l1: jax.Array
    l2: jax.Array


def interval_bounds(
    network: Network, params: Params, removed: Removed, radius: float | jax.Array
) -> OutputNorms:
    """At least `sup ||F - f||` over `||x||_inf <= radius`.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.
      radius: of the inputs.

    Returns:
      float32 upper bounds in floating point; 0 exactly if all removed parts are 0, NaN or infinite
      if a weight is.

    Raises:
      ValueError: circular padding with a kernel wider than the image.
    """
    for layer in network.layers:
        if isinstance(layer, Conv) and layer.padding == "CIRCULAR":
            # A neuron reads each pixel at most once: its row's norm is that of its kernel.
            if layer.kernel > (side := min(layer.size)):
                raise ValueError(
                    f"kernel = {layer.kernel}: at most the image's side {side} is allowed with "
                    "circular padding over an ℓ∞ ball"
                )
    pruned = [i for i, p in enumerate(removed) if p is not None]
    if not pruned:
        return OutputNorms(*[jnp.float32(0.0)] * 3)
    with jax.enable_x64(True):
        d, norm = _output(network, params, removed, radius)
        sizes = _sizes(d)
        finite = jnp.all(jnp.isfinite(sizes))
        nothing = jnp.all(jnp.stack([norms.is_zero(removed[i]) for i in pruned]))

        def rounded(bound):
            bound = jnp.where(finite, bound, jnp.nan)
            bound = bound * (1.0 + norms.growth(sizes.size) + 2.0**-22)
            return jnp.where(nothing, 0.0, bound + jnp.finfo(jnp.float32).tiny).astype(jnp.float32)

        # The Euclidean norm may be less than what the intervals add up to.
        return OutputNorms(
            linf=rounded(jnp.minimum(jnp.max(sizes), norm)),
            l1=rounded(jnp.minimum(jnp.sum(sizes), math.sqrt(sizes.size) * norm)),
            l2=rounded(norm),
        )


class _State(NamedTuple):
    """A hidden state: intervals of its entries, and at least its Euclidean norm."""

    box: Interval
    norm: jax.Array


def _output(network, params, removed, radius) -> tuple[Interval, jax.Array]:
    """Intervals of `F(x) - f(x)`, and at least its Euclidean norm."""
    s = network.activation
    side = jnp.full(network.in_shape, jnp.asarray(radius, jnp.float64))
    length = _length(side)
    h = g = _State(Interval(-side, side), length)
    e = d = None
    for i, layer in enumerate(network.layers):
        w = norms.as_float64(params[i])
        p = None if removed[i] is None else norms.as_float64(removed[i])
        kept = w if p is None else w - p
        a, b = _image(layer, w, h), _image(layer, kept, g)
        if p is not None or e is not None:
            ways = [_difference(a, b)]
            for state, other in ((h, kept), (g, w)):
                parts = [_image(layer, p, state)] if p is not None else []
                parts += [_image(layer, other, e)] if e is not None else []
                ways.append(_sum(parts))
            box = _intersection(ways)
            start = Network(network.layers[: i + 1], s, network.in_shape)
            slope = norms.as_float64(multiplier_bound(start, params[: i + 1], removed[: i + 1]))
            d = _State(box, jnp.minimum(slope * length, _length(_sizes(box))))
        if i < len(network.layers) - 1:
            e = None if d is None else _limited(s, _activated_difference(s, a, b, d.box), d.norm)
            size = norms.norm_bound(layer, w)
            h = _limited(s, _activated(s, a), size * h.norm)
            # Both networks are one until a layer is pruned.
            size = size if p is None else norms.norm_bound(layer, kept)
            g = h if d is None else _limited(s, _activated(s, b), size * g.norm)
    return d.box, d.norm


def _limited(s: Activation, box: Interval, norm: jax.Array) -> _State:
    """The state after an activation, of `norm` before it."""
    norm = s.lipschitz * norm * (1.0 + 4 * norms.UNIT)
    return _State(box, jnp.minimum(norm, _length(_sizes(box))))


def _image(layer: Layer, w: jax.Array, x: _State) -> Interval:
    """Of `W x`: the least of what intervals and norms allow.

    With centre c and radius r of x, `W x` is within `|W| r` of `W c`. What is added to r is above
    the rounding of both products, of length n, and of c and r.
    """
    c = 0.5 * x.box.low + 0.5 * x.box.high
    r = jnp.maximum(x.box.high - c, c - x.box.low)
    r = r + 2 * norms.growth(layer.fans[0]) * (jnp.abs(c) + r)
    centre, reach = layer(w, c), layer(jnp.abs(w), r) + _TINY
    rows = jnp.sqrt(jnp.sum(w.reshape(len(w), -1) ** 2, axis=1))
    rows = rows * x.norm * (1.0 + norms.growth(layer.fans[0])) + _TINY
    rows = rows.reshape(-1, *[1] * (centre.ndim - 1))
    return Interval(jnp.maximum(centre - reach, -rows), jnp.minimum(centre + reach, rows))


def _activated(s: Activation, a: Interval) -> Interval:
    """Of s(a), s nondecreasing."""
    return _outward(Interval(s.fn(a.low), s.fn(a.high)), _FUNCTION)


def _activated_difference(s: Activation, a: Interval, b: Interval, d: Interval) -> Interval:
    """Of `s(a) - s(b)` over a and b in their intervals with `a - b` in that of d.

    The largest value has the largest d, as s does not decrease: were both a and b free to move,
    d could grow. Along `b = a - d` the value is monotone in a for ReLU and leaky ReLU, and for s
    odd with slopes that fall away from 0 it is largest or least at `a = d/2` and monotone on
    either side. So the ends of a's interval and the point nearest to d/2 are all there is to try.
    """

    def values(d, ends):
        ends = (*ends, jnp.clip(0.5 * d, *ends))
        pairs = [(at, at - d) for at in ends]
        rounding = [
            _FUNCTION * (jnp.abs(s.fn(a)) + jnp.abs(s.fn(b)))
            + 4 * norms.UNIT * s.lipschitz * jnp.abs(b)
            + _TINY
            for a, b in pairs
        ]
        return [(s.fn(a) - s.fn(b), r) for (a, b), r in zip(pairs, rounding, strict=True)]

    def ends(d):
        """Where `b = a - d` meets both intervals, rounded outward."""
        shifted = _outward(Interval(b.low + d, b.high + d), 4 * norms.UNIT)
        return jnp.maximum(a.low, shifted.low), jnp.minimum(a.high, shifted.high)

    # Where d can grow no further for the sake of a or b, the ends cross: the last point counts.
    low, high = ends(d.high)
    most = [v + r for v, r in values(d.high, (jnp.minimum(low, high), high))]
    low, high = ends(d.low)
    least = [v - r for v, r in values(d.low, (low, jnp.maximum(low, high)))]
    by_slope = Interval(
        jnp.where(d.low < 0, s.lipschitz, s.least_slope) * d.low,
        jnp.where(d.high > 0, s.lipschitz, s.least_slope) * d.high,
    )
    by_value = Interval(jnp.min(jnp.stack(least), axis=0), jnp.max(jnp.stack(most), axis=0))
    return _intersection([by_value, _outward(by_slope, 4 * norms.UNIT)])


def _difference(a: Interval, b: Interval) -> Interval:
    return _outward(Interval(a.low - b.high, a.high - b.low), 4 * norms.UNIT)


def _sum(parts: list[Interval]) -> Interval:
    low, high = (sum(ends) for ends in zip(*parts, strict=True))
    return _outward(Interval(low, high), 4 * norms.UNIT)


def _intersection(parts: list[Interval]) -> Interval:
    lows, highs = zip(*parts, strict=True)
    return Interval(jnp.max(jnp.stack(lows), axis=0), jnp.min(jnp.stack(highs), axis=0))


def _outward(x: Interval, relative: float) -> Interval:
    return Interval(
        x.low - relative * jnp.abs(x.low) - _TINY, x.high + relative * jnp.abs(x.high) + _TINY
    )


def _sizes(x: Interval) -> jax.Array:
    """The largest absolute value of each entry."""
    return jnp.maximum(jnp.abs(x.low), jnp.abs(x.high))


def _length(sizes: jax.Array) -> jax.Array:
    return norms.frobenius(sizes.reshape(1, -1)) * (1.0 + 4 * norms.UNIT)

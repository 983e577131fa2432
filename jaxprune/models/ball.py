"""Brackets of the gap over the whole unit ball, for a given model whose layers are a stack.

With one further channel that is t at every pixel, and layers `[[W, (b / t) kappa], [0, kappa]]`
(the last without the second row), kappa weights that keep a channel of ones, a biased stack is one
without biases, if its activation keeps t > 0: README.md in this folder. Over the unit ball
`||x~||^2 <= 1 + t^2 N`, N the pixels that the first kappa reads, 1 if that layer is dense; and the
bound of `gaps.multiplier_bound` grows in proportion to the radius.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import activations, validation
from jaxprune.activations import Activation
from jaxprune.engine import GUARD, keys
from jaxprune.gaps import UnitBall, difference, lengths, multiplier_bound
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.climb import climb, scaled, within_ball
from jaxprune.gaps.lengths import largest
from jaxprune.gaps.witness import inside, lower_end
from jaxprune.models.known import Known, check_outputs, known
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model, is_model, params_of
from jaxprune.networks import Conv, Layer, Network
from jaxprune.types import BrokenInvariant, Gap

SCALES = (0.0625, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Values of t √N, nearly: t is a power of two; the least bound is taken."""


def ball_gap(
    model: Any,
    masks: Masks,
    stack: Activation | Network = activations.relu,
    *,
    order: Sequence[str] | None = None,
    domain: UnitBall | None = None,
    seed: int = 0,
) -> Gap:
    """Brackets `sup ||F(x) - f(x)||` over the unit ball for one model and its masks.

    Args:
      model: a stack of layers or its parameters, see `known`.
      masks: of its weights, and of its biases if those are pruned.
      stack: see `known`.
      order: see `known`.
      domain: how the lower end is searched for; None for `UnitBall()`.
      seed: of the sampled inputs.

    Returns:
      Two floats, both theorems in floating point: the lower end is the largest distance found,
      less what rounding may have added. No chance is involved: the model is given, and every input
      counts.

    Raises:
      ValueError: as `known`, for the model or its pruned copy; masks of another model or of arrays
        that are no part of the stack; outputs that overflow float32; or biases
        with an activation that is not positively homogeneous with s(1) = 1 (relu, leaky_relu,
        identity).
    """
    validation.instance("masks", masks, Masks, "the Masks that prune gives")
    read = known(model, stack, order=order)
    masks.check(params_of(model))
    for name in masks:
        if name not in read.paths + read.biases:
            raise ValueError(f"mask of {name}: no part of the stack {' -> '.join(read.paths)}")
    domain = UnitBall() if domain is None else domain
    validation.instance("domain", domain, UnitBall, "a UnitBall")
    key = keys.trial_key(keys.root_key(seed), keys.INPUTS, 0, (np.uint32(0), np.uint32(0)))
    removed = _removed(read, masks)
    if is_model(model):
        whole = Model.of(model)
        pruned = Model(whole.apply, masks.apply(whole.params))
        check_outputs(pruned, _rest(read, removed), "pruned model")
    gap = (_with_biases if read.biased else _without)(read, removed, domain, key)
    if not math.isfinite(gap.lower):
        raise ValueError("model: float32 overflows in its outputs; smaller weights are needed")
    if gap.lower > gap.upper * (1 + GUARD):
        raise BrokenInvariant(f"lower {gap.lower:g} > upper {gap.upper:g}")
    return gap


def _removed(read, masks):
    """What goes of each layer's weights and bias; None where nothing is masked."""
    gone = lambda mask, w: None if mask is None else np.where(mask, np.float32(0), w)
    return [
        (gone(mask, w), gone(bias_mask, b))
        for (mask, bias_mask), w, b in zip(
            read.laid_out(masks), read.weights, read.offsets, strict=True
        )
    ]


def _rest(read, removed):
    """The pruned stack."""
    less = lambda w, p: w if p is None else w - p
    weights, offsets = (
        tuple(map(less, whole, parts))
        for whole, parts in zip(
            (read.weights, read.offsets), zip(*removed, strict=True), strict=True
        )
    )
    return read._replace(weights=weights, offsets=offsets)


def _without(read, removed, domain, key):
    stack = read.network, read.weights, tuple(p for p, _ in removed)
    found, x = _climbed(*stack, domain=domain, key=key)
    return Gap(float(_lower(*stack, x, found)), float(multiplier_bound(*stack)))


def _with_biases(read, removed, domain, key):
    activation = read.network.activation
    if not activation.positively_homogeneous or _at_one(activation) != 1.0:
        needed = "a positively homogeneous s with s(1) = 1 (relu, leaky_relu, identity)"
        raise ValueError(f"stack = {activation}: biases need {needed}")
    pixels = _pixels(read.network.layers[0])
    uppers = [
        _radius(t, pixels) * float(multiplier_bound(*_lifted(read, removed, t)))
        for t in _exact_scales(read)
    ]
    finite = [upper for upper in uppers if math.isfinite(upper)]
    stack = _lifted(read, removed, 1.0, alone=True)
    found, x = _climbed_beside(*stack, domain=domain, key=key)
    lower = float(_lower(*stack, x, found, beside=True))
    return Gap(lower, min(finite, default=math.inf))


def _at_one(activation):
    with jax.enable_x64(True):
        return float(activation.fn(np.float64(1.0)))


@functools.partial(jax.jit, static_argnames=("network", "beside"))
def _lower(network, weights, removed, x, found, *, beside=False):
    """`lower_end`; `beside` is whether a further channel of ones is added to the inputs x."""
    x = inside(x)
    with jax.enable_x64(True):
        return lower_end(network, weights, removed, _with_ones(x) if beside else x, found)


def _radius(t, pixels):
    """At least the norm of any `(x, t)`, t at so many pixels; the rest is room for rounding."""
    return math.sqrt(1.0 + t * t * pixels) * (1.0 + 2.0**-50)


def _exact_scales(read):
    """Those t by which every bias can be divided, and shared out among pixels, unrounded."""
    unit = 2.0 ** -round(math.log2(_pixels(read.network.layers[0])) / 2)
    biases = [
        (b, _kappa(layer).max())
        for b, layer in zip(read.offsets, read.network.layers, strict=True)
        if b is not None
    ]

    def exact(t):
        back = lambda b, share: b / np.float32(t) * share / share * np.float32(t)
        return all(np.array_equal(back(b, share), b) for b, share in biases)

    with np.errstate(over="ignore", under="ignore"):
        return [t * unit for t in SCALES if exact(t * unit)]


def _lifted(read: Known, removed, t, *, alone=False):
    """Network, weights and removed parts with the further channel t; in NumPy, which keeps IEEE.

    With t = 1 and `alone`, which is that of `_kappa`, the lifted network is the stack itself.
    """
    layers, last = read.network.layers, len(read.weights) - 1
    wider = tuple(_wider(layer, last=i == last) for i, layer in enumerate(layers))
    weights = tuple(
        _lift(layer, to, w, b, t, corner=1.0, alone=alone)
        for layer, to, w, b in zip(layers, wider, read.weights, read.offsets, strict=True)
    )
    gone = tuple(
        None if p is None and q is None else _lift(layer, to, p, q, t, corner=0.0, alone=alone)
        for layer, to, (p, q) in zip(layers, wider, removed, strict=True)
    )
    return Network(wider, read.network.activation, wider[0].in_shape), weights, gone


def _wider(layer: Layer, *, last):
    """The layer with the further channel at its input and, unless it is the last, its output."""
    more = 0 if last else 1
    if isinstance(layer, Conv):
        return replace(layer, c_in=layer.c_in + 1, c_out=layer.c_out + more)
    image = (layer.image[0] + 1, *layer.image[1:]) if layer.image else ()
    into = math.prod(image) if image else layer.d_in + 1
    return replace(layer, d_in=into, d_out=layer.d_out + more, image=image)


def _lift(layer, wider, w, b, t, *, corner, alone):
    """`[[w, (b / t) kappa], [0, corner kappa]]`, the last layer's first row of it; None is 0."""
    out, into = layer.weight_shape[:2]
    b = np.zeros(out, np.float32) if b is None else b
    kappa = _kappa(layer, alone=alone)
    column = np.multiply.outer(np.append(b / np.float32(t), np.float32(corner)), kappa)
    lifted = np.zeros(wider.weight_shape, np.float32)
    lifted[:out, :into] = 0.0 if w is None else w
    lifted[:, into:] = column[: len(lifted)]
    return lifted


def _kappa(layer: Layer, *, alone=False):
    """Weights from one channel to one that keep ones: float32 `(1, side, side)`, or `(pixels,)`.

    A convolution's tap is one that never falls on padding. A dense layer takes the mean of as many
    pixels as make the division exact, of normal numbers; at one pixel alone, which is exact
    whatever the bias, the weights would be longer.
    """
    if isinstance(layer, Conv):
        kappa = np.zeros((1, layer.kernel, layer.kernel), np.float32)
        centre = (layer.kernel - 1) // 2
        kappa[0, centre, centre] = 1.0
        return kappa
    kappa = np.zeros(math.prod(layer.image[1:]), np.float32)
    pixels = 1 if alone else _pixels(layer)
    kappa[:pixels] = 1.0 / pixels
    return kappa


def _pixels(layer: Layer) -> int:
    """How many pixels of the further channel the layer reads."""
    if isinstance(layer, Conv):
        return math.prod(layer.out_shape[1:])
    return 2 ** (math.prod(layer.image[1:]).bit_length() - 1)


_static = functools.partial(jax.jit, static_argnames=("network", "domain"))


@_static
def _climbed(network, weights, removed, *, domain, key):
    """The distances that ascent finds from each start, NaN if a sample has none; and where."""
    x = domain.draw(key, network.in_shape)
    values = lengths(difference(network, weights, removed, x))
    return _unless_lost(
        values, *ascend(network, weights, removed, x, values, domain.starts, domain.steps)
    )


@_static
def _climbed_beside(network, weights, removed, *, domain, key):
    """`_climbed` for a stack with a further channel, which is 1 and no part of the inputs."""
    at = lambda x: difference(network, weights, removed, _with_ones(x))
    channels, *sides = network.in_shape
    x = domain.draw(key, (channels - 1, *sides))
    values = lengths(at(x))
    starts = x[..., jax.lax.top_k(values, domain.starts)[1]]
    return _unless_lost(
        values, *climb(at, lengths, scaled, within_ball(domain.steps), starts, domain.steps)
    )


def _unless_lost(values, found, x):
    """What was found, and where; NaN in its place if a sampled distance is not finite."""
    return jnp.where(jnp.isfinite(largest(values)), found, jnp.nan), x


def _with_ones(x):
    return jnp.concatenate([x, jnp.ones((1, *x.shape[1:]), x.dtype)])

"""Brackets of the gap over the whole unit ball, for a given model whose layers are a stack.

With `x~ = (x, t)` and layers `[[W, b / t], [0, 1]]` (`[W, b / t]` the last) a biased stack is one
without biases, if its activation keeps t > 0: README.md in this folder. Over the unit ball
`||x~||^2 <= 1 + t^2`, and the bound of `gaps.multiplier_bound` grows in proportion to the radius.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import activations, inputs, networks, validation
from jaxprune.activations import Activation
from jaxprune.engine import GUARD, keys
from jaxprune.gaps import UnitBall, difference, lengths, measure_ball, multiplier_bound
from jaxprune.gaps.climb import climb, scaled, within_ball
from jaxprune.gaps.lengths import largest
from jaxprune.models.known import Known, known
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model, is_model
from jaxprune.networks import Network
from jaxprune.types import BrokenInvariant, Gap

SCALES = (0.0625, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Values of t, powers of two; the least bound is taken."""


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
      Two floats. The lower end is the largest distance found, in float32; the upper end is a
      theorem in floating point. No chance is involved: the model is given, and every input counts.

    Raises:
      ValueError: as `known`; masks of another model; outputs that overflow float32; or biases
        with an activation that is not positively homogeneous with s(1) = 1 (relu, leaky_relu,
        identity).
    """
    validation.instance("masks", masks, Masks, "the Masks that prune gives")
    read = known(model, stack, order=order)
    masks.check(Model.of(model).params if is_model(model) else model)
    domain = UnitBall() if domain is None else domain
    validation.instance("domain", domain, UnitBall, "a UnitBall")
    key = keys.trial_key(keys.root_key(seed), keys.INPUTS, 0, (np.uint32(0), np.uint32(0)))
    removed = _removed(read, masks)
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


_measure = jax.jit(measure_ball, static_argnums=(0, 2))
_upper = jax.jit(multiplier_bound, static_argnums=0)


def _without(read, removed, domain, key):
    parts = tuple(p for p, _ in removed)
    gap = _measure(domain, key, read.network, read.weights, parts).gap
    return Gap(float(gap.lower), float(gap.upper))


def _with_biases(read, removed, domain, key):
    activation = read.network.activation
    if not activation.positively_homogeneous:
        raise ValueError(f"stack = {activation}: biases need relu, leaky_relu or identity")
    uppers = [_radius(t) * float(_upper(*_lifted(read, removed, t))) for t in _exact_scales(read)]
    finite = [upper for upper in uppers if math.isfinite(upper)]
    lower = _found(*_lifted(read, removed, 1.0), domain=domain, key=key)
    return Gap(float(lower), min(finite, default=math.inf))


def _radius(t):
    """At least the norm of any `(x, t)`; the rest is room for rounding."""
    return math.sqrt(1.0 + t * t) * (1.0 + 2.0**-50)


def _exact_scales(read):
    """Those t by which every bias can be divided without rounding."""
    biases = np.concatenate([b for b in read.offsets if b is not None])
    with np.errstate(over="ignore", under="ignore"):
        exact = lambda t: np.array_equal(biases / np.float32(t) * np.float32(t), biases)
        return [t for t in SCALES if exact(t)]


def _lifted(read: Known, removed, t):
    """Network, weights and removed parts with the further feature t; in NumPy, which keeps IEEE."""
    weights, gone = [], []
    last = len(read.weights) - 1
    for i, (w, b, (p, q)) in enumerate(zip(read.weights, read.offsets, removed, strict=True)):
        lift = functools.partial(_lift, shape=w.shape, t=np.float32(t), last=i == last)
        weights.append(lift(w, b, corner=1.0))
        gone.append(None if p is None and q is None else lift(p, q, corner=0.0))
    widths = [w.shape[1] for w in weights] + [len(weights[-1])]
    network = networks.dense(widths, read.network.activation)
    return network, tuple(weights), tuple(gone)


def _lift(w, b, *, shape, t, last, corner):
    """`[[w, b / t], [0, corner]]`, the last layer's without its last row; None is 0."""
    out, into = shape
    lifted = np.zeros((out + (not last), into + 1), np.float32)
    lifted[:out, :into] = 0.0 if w is None else w
    lifted[:out, into] = 0.0 if b is None else b / t
    if not last:
        lifted[out, into] = corner
    return lifted


@functools.partial(jax.jit, static_argnames=("network", "domain"))
def _found(network, weights, removed, *, domain, key):
    """The largest distance that sampling and ascent find."""

    def at(x):
        one = jnp.ones((1, x.shape[1]), x.dtype)
        return difference(network, weights, removed, jnp.concatenate([x, one]))

    x = inputs.sphere(key, domain.samples, (network.in_shape[0] - 1,))
    values = lengths(at(x))
    starts = x[:, jax.lax.top_k(values, domain.starts)[1]]
    found, _ = climb(at, lengths, scaled, within_ball(domain.steps), starts, domain.steps)
    return largest(jnp.append(found, values))

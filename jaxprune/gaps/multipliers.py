"""Upper bound of the gap over the unit ball: target and pruned network as one system.

Let `h` be the target's hidden state and `e` the difference of both networks' states, so that a
layer maps `(h, e)` to `z = W h`, `d = P h + (W - P) e`, and an activation with slopes in [c, L]
obeys, neuron by neuron,

    (h - c z)(L z - h) >= 0,    (e - c d)(L d - e) >= 0.

Added to a quadratic form with any positive multipliers, these inequalities bound it by a form in
`(z, d)`, and so, layer by layer from the output, `||F(x) - f(x)||^2` by a form in x. README.md in
this folder has the proof, in floating point too. Multipliers of this kind are those of LipSDP
(Fazlyab et al., NeurIPS 2019) and, one scalar a layer, of ECLipsE-Fast (Xu & Sivaranjani, NeurIPS
2024); both bound the Lipschitz constant of one network. Here they bound the distance of a pair.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gaps import norms, tuning
from jaxprune.gaps.difference import Removed
from jaxprune.gaps.tuning import MARGIN, Stage, in_units, largest, level
from jaxprune.networks import Conv, Dense, Network
from jaxprune.types import Params

H, E = 0, 1
_LOST = 1e-250
"""More than the numbers of one step can lose by underflow, for a form of level 1."""


def multiplier_bound(network: Network, params: Params, removed: Removed) -> jax.Array:
    """At least `sup ||F - f||` over the unit ball.

    Args:
      network: the network.
      params: the target's weights.
      removed: from `removed_part`.

    Returns:
      `()` float32, an upper bound in floating point; 0 exactly if all removed parts are 0, NaN or
      infinite if a weight is.
    """
    # Part of the program of a caller that traces it; else one of its own for each network, not one
    # for each operation.
    traced = any(isinstance(w, jax.core.Tracer) for w in jax.tree.leaves((params, removed)))
    return (_bound if traced else _compiled)(network, params, removed)


def _bound(network, params, removed):
    pruned = [i for i, p in enumerate(removed) if p is not None]
    if not pruned:
        return jnp.float32(0.0)
    with jax.enable_x64(True):
        layers, scale = _scaled(network, params, removed)
        square, half = _form_of_input(network, layers, pruned)
        # A form that no multiplier of ours bounds: never seen, but a bound is owed.
        formed = jnp.isfinite(square)
        bound = jnp.where(formed, jnp.sqrt(square), _by_frobenius(network, layers))
        mantissa, more = norms.power(network.activation.lipschitz, len(params) - 1)
        bound = norms.shifted(mantissa * bound, jnp.where(formed, half, 0) + scale + more)
        nothing = jnp.all(jnp.stack([norms.is_zero(removed[i]) for i in pruned]))
        bound = bound * (1.0 + 2.0**-22) + jnp.finfo(jnp.float32).tiny
        # The kept weights of a layer that alone is pruned enter no form.
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(weights.w)) for weights in layers]))
        bound = jnp.where(nothing, 0.0, bound)
        return jnp.where(finite, bound, jnp.nan).astype(jnp.float32)


_compiled = jax.jit(_bound, static_argnums=0)


class _Weights(NamedTuple):
    """One layer in units of powers of two: `w` W, `p` P or None, `kept` W - P.

    P is in the units of W times those of e, which make the largest P of the network about 1.
    """

    w: jax.Array
    p: jax.Array | None
    kept: jax.Array


def _scaled(network, params, removed):
    """The layers, and k: a bound of theirs is to be multiplied by 2^k."""
    pairs, total = [], 0
    for w, p in zip(params, removed, strict=True):
        w = norms.as_float64(w)
        scale = norms.power_of_two(jnp.max(jnp.abs(w)))
        total = total + norms.exponent(scale)
        pairs.append((w / scale, None if p is None else norms.as_float64(p) / scale))
    sizes = jnp.stack([jnp.max(jnp.abs(p)) for _, p in pairs if p is not None])
    unit = norms.power_of_two(jnp.max(sizes))
    layers = [_Weights(w, None, w) if p is None else _Weights(w, p / unit, w - p) for w, p in pairs]
    return layers, total + norms.exponent(unit)


def _blocks(pruned, i):
    """Which of h and e count between layers i - 1 and i (0-based)."""
    return [H] * (max(pruned) >= i) + [E] * (min(pruned) < i)


def _form_of_input(network, layers, pruned):
    """`(a, k)`: at least `a 4^k` is the largest eigenvalue of a form Q with
    `||F(x) - f(x)||^2 <= x^* Q x`."""
    torus, dilations = shared_torus(network)
    form, half = None, 0  # of the state after layer i; the output's is ||d||^2
    stages = []

    def apart(i):
        """Whether the inputs of layer i are laid out in another way than its outputs."""
        layer = network.layers[i]
        alone = isinstance(layer, Conv) and torus is None
        return i > 0 and (alone or type(layer) is not type(network.layers[i - 1]))

    for i in reversed(range(len(layers))):
        ins = _blocks(pruned, i)
        outs = [E] if i == len(layers) - 1 else _blocks(pruned, i + 1)
        if not apart(i):
            stages.append(_stage(network, layers[i], i, ins, outs, torus, dilations))
            if i > 0 and not apart(i - 1):
                continue
            (form, k), stages = _through_stages(form, stages), []
            half = half + k
        if apart(i):
            into = network.layers[i - 1]
            matrices = 1 if isinstance(into, Dense) else len(norms.frequencies(torus or into.torus))
            width = into.out_shape[0]
            form = _through_norms(network.layers[i], layers[i], form, ins, outs, width, matrices)
            form, k = _levelled(form)
            half = half + k
    return norms.eigenvalue_bound(form), half


def _levelled(form):
    """A form over a power of four near its level, and half the exponent of that power.

    What was computed from a form of level 1 has lost at most `_LOST`, where numbers were so small
    that they were flushed to 0.
    """
    form = form + _LOST * norms.identity(form)
    k = norms.exponent(level(form)) // 2
    return form * norms.shifted(jnp.float64(1.0), -2 * k), k


def _stage(network, weights, i, ins, outs, torus, dilations):
    """Layer i as matrices that map the states before it to those behind it."""
    layer = network.layers[i]
    place = (torus, dilations[i]) if isinstance(layer, Conv) and torus else ()
    blocks = {H: {H: weights.w}, E: {H: weights.p, E: weights.kept}}
    rows, error = [], 0.0
    for b in outs:
        parts = []
        for a in ins:
            w = blocks[b].get(a)
            t = norms.transfer(layer, jnp.zeros_like(weights.w) if w is None else w, *place)
            error = error + t.error
            parts.append(t.matrices)
        rows.append(jnp.concatenate(parts, axis=-1))
    slope = network.activation.least_slope / network.activation.lipschitz
    # Where the image does not fill the shared torus, states are 0 whatever y is: slope 0. Without
    # one, the form behind is a multiple of the identity on each state, and only grows if they are
    # taken to be s(y) (README, section 4).
    fills = layer.padding == "CIRCULAR" and layer.stride * dilations[i] == 1 if place else True
    matrix = jnp.concatenate(rows, axis=-2)
    return Stage(matrix, error * (1.0 + 1e-12), len(outs), slope if fills else 0.0)


def _through_stages(form, stages):
    """From the form behind the first of the stages (None: the output) to that before the last.

    Returns:
      The latter, of level 1, and k, by whose power `4^k` it is to be multiplied.
    """
    half = 0
    if form is None:
        first, *stages = stages
        form, rounding = norms.gram(first.matrix)
        error = first.error
        form = _plus(form, rounding + 2 * norms.frobenius(first.matrix) * error + error**2)
        form, half = _levelled(form)
    for stage, multipliers in zip(stages, tuning.tune(form, stages), strict=True):
        if stage.slope == 1.0:
            form = _through_identity(form, stage)
        else:
            t = multipliers * level(form)
            top = largest(in_units(form, jnp.sqrt(t)))
            units = jnp.sqrt(t * jnp.maximum(1.0, (1.0 + MARGIN) * top))
            form = _through_activation(form, stage, units)
        form, k = _levelled(form)
        half = half + k
    return form, half


def _plus(form, slack):
    return form + jnp.max(slack) * (1.0 + 1e-12) * norms.identity(form)


def _through_identity(form, stage):
    """`M^* Q M`."""
    size = norms.frobenius(stage.matrix) + stage.error
    product = norms.adjoint(stage.matrix) @ form @ stage.matrix
    slack = (3 * norms.growth(form.shape[-1]) * size + 2 * stage.error) * size
    return _plus(_hermitian(product), slack * norms.frobenius(form))


def _through_activation(form, stage, units):
    """From `s^* Q s` to a form of the state before: `y = M s_before`, s the activation of y.

    With multipliers T = U^2, in units U, in which T = 1,

        s^* Q s <= max_s { s^* Q s + (s - c y)^* (y - s) }
                 = ((1 + c)/2)^2 y^* (1 - Q)^(-1) y - c y^* y.
    """
    c, n = stage.slope, form.shape[-1]
    matrix = units[None, :, None] * stage.matrix
    form = in_units(form, units)
    error = jnp.max(units) * stage.error
    size = norms.frobenius(matrix) + error
    # Room for the rounding of the factor: L L^* <= 1 - Q - room / 2.
    room = max(1e-9, 4 * n * norms.growth(n))
    lower = norms.cholesky((1.0 - room) * norms.identity(form) - form)
    right = 0.5 * (1.0 + c) * matrix
    y = norms.solve_lower(lower, right)
    residual = norms.frobenius(right - lower @ y)
    rounding = norms.growth(n) * norms.frobenius(lower) * norms.frobenius(y)
    residual = residual + 2 * rounding + error + norms.UNIT * 8 * size
    product, slack = norms.gram(y)
    slack = slack + 2 * residual**2 / room
    if c > 0.0:
        linear, linear_slack = norms.gram(matrix)
        product = product - c * linear
        slack = slack + c * (linear_slack + 2 * error * size)
    return _plus(_hermitian(product), slack)


def _hermitian(a):
    return 0.5 * (a + norms.adjoint(a))


def _through_norms(layer, weights, form, ins, outs, width, matrices):
    """The same across a layer whose inputs are laid out in another way than its outputs.

    Activations contract, and `(a + b)^2 <= 2 a^2 + 2 b^2`: the form is bounded by multiples of
    `||h||^2` and `||e||^2`.
    """
    sizes, top, rounding = {E: 1.0}, 1.0, 32 * norms.UNIT
    if form is not None:
        n = form.shape[-1] // len(outs)
        own = [form[:, k * n : (k + 1) * n, k * n : (k + 1) * n] for k in range(len(outs))]
        tops = [largest(block) for block in own]
        units = [jnp.sqrt(jnp.where(size > 0, size, 1.0)) for size in tops]
        top = norms.eigenvalue_bound(in_units(form, jnp.repeat(jnp.stack(units), n)))
        rounding = rounding + norms.growth(form.shape[-1]) * form.shape[-1]
        sizes = {b: unit**2 for b, unit in zip(outs, units, strict=True)}
    norm = {name: norms.norm_bound(layer, w) for name, w in _named(weights)}
    both = 2.0 if weights.p is not None and E in ins else 1.0
    of_h = jnp.zeros(())
    if H in outs:
        of_h = sizes[H] * norm["w"] ** 2
    if E in outs and weights.p is not None:
        of_h = of_h + both * sizes[E] * norm["p"] ** 2
    of_e = both * sizes[E] * norm["kept"] ** 2 if E in outs else jnp.zeros(())
    total = jnp.stack([{H: of_h, E: of_e}[b] for b in ins]) * top * (1.0 + rounding)
    dtype = jnp.float64 if matrices == 1 else jnp.complex128
    diagonal = jnp.repeat(total, width).astype(dtype)
    return jnp.broadcast_to(jnp.diag(diagonal)[None], (matrices, len(diagonal), len(diagonal)))


def _named(weights):
    yield "w", weights.w
    if weights.p is not None:
        yield "p", weights.p
    yield "kept", weights.kept


def _by_frobenius(network, layers):
    """The telescoping sum `sum_k b_k prod_(j < k) a_j prod_(j > k) p_j` of Frobenius norms: a of W,
    b of P, p of W - P."""
    total, before = 0.0, 1.0  # gap so far, norm of the target so far
    for layer, weights in zip(network.layers, layers, strict=True):
        factor = layer.kernel if isinstance(layer, Conv) else 1.0
        a, b, p = (
            0.0 if w is None else factor * norms.frobenius(w.reshape(1, -1))
            for w in (weights.w, weights.p, weights.kept)
        )
        total, before = p * total + b * before + _LOST, before * a
    return total * (1.0 + 1e-9)


def shared_torus(network: Network) -> tuple[tuple[int, int] | None, list[int]]:
    """A torus on which all convolutions of a network are circular ones with dilated kernels.

    After a stride a the image stands on every a-th point, and the next kernel's taps are a apart.
    The torus is large enough that reads beyond an image meet points that hold zeros; images with
    circular padding must fill it.

    Returns:
      The sides, None if there is no such torus, and one dilation a layer.
    """
    convolutions = [layer for layer in network.layers if isinstance(layer, Conv)]
    steps = [layer.stride if isinstance(layer, Conv) else 1 for layer in network.layers]
    dilations = [1, *itertools.accumulate(steps[:-1], lambda a, b: a * b)]
    if not convolutions:
        return None, dilations
    sides = []
    for axis in range(2):
        wanted, circular = [], []
        for layer, dilation in zip(network.layers, dilations, strict=True):
            if not isinstance(layer, Conv):
                continue
            side, out = layer.size[axis], layer.out_shape[1 + axis]
            if layer.padding == "CIRCULAR":
                circular.append(dilation * side)
                continue
            last = layer.stride * (out - 1) + layer.kernel - 1 - layer.pads[0]
            beyond = max(layer.pads[0], last - (side - 1))
            wanted.append(dilation * (side - 1 + beyond) + 1)
        if circular and (wanted or len(set(circular)) > 1):
            return None, dilations
        sides.append(circular[0] if circular else max(wanted))
    return (sides[0], sides[1]), dilations

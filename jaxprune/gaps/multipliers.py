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

from jaxprune.gaps import norms
from jaxprune.gaps.difference import Removed
from jaxprune.networks import Conv, Dense, Network
from jaxprune.types import Params

# tau over the largest eigenvalue of Q, less 1, at least slope 0; the bound is flat around it. A
# Q with one eigenvalue would want 1, at any least slope c times (1 + c) / (1 - c).
MARGIN = 0.4
STEPS = 12
H, E = 0, 1


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
    pruned = [i for i, p in enumerate(removed) if p is not None]
    if not pruned:
        return jnp.float32(0.0)
    with jax.enable_x64(True):
        layers, scale = _scaled(network, params, removed)
        bound = jnp.sqrt(_form_of_input(network, layers, pruned))
        # A form that no multiplier of ours bounds: never seen, but a bound is owed.
        bound = jnp.where(jnp.isfinite(bound), bound, _by_frobenius(network, layers))
        nothing = jnp.all(jnp.stack([norms.is_zero(removed[i]) for i in pruned]))
        bound = bound * scale * (1.0 + 2.0**-22) + jnp.finfo(jnp.float32).tiny
        return jnp.where(nothing, 0.0, bound).astype(jnp.float32)


class _Weights(NamedTuple):
    """One layer, divided by a power of two; P is None where nothing is removed."""

    w: jax.Array
    p: jax.Array | None

    @property
    def kept(self):
        return self.w if self.p is None else self.w - self.p


def _scaled(network, params, removed):
    layers, total = [], 1.0
    for w, p in zip(params, removed, strict=True):
        w = w.astype(jnp.float64)
        scale = norms.power_of_two(jnp.max(jnp.abs(w)))
        total = total * scale
        layers.append(_Weights(w / scale, None if p is None else p.astype(jnp.float64) / scale))
    return layers, total * network.activation.lipschitz ** (len(layers) - 1)


def _blocks(pruned, i):
    """Which of h and e count between layers i - 1 and i (0-based)."""
    return [H] * (max(pruned) >= i) + [E] * (min(pruned) < i)


def _form_of_input(network, layers, pruned):
    """The largest eigenvalue of a form Q with `||F(x) - f(x)||^2 <= x^* Q x`."""
    torus, dilations = shared_torus(network)
    least_slope = network.activation.least_slope / network.activation.lipschitz
    form = None  # of the state after layer i; the output's is ||d||^2
    for i in reversed(range(len(layers))):
        layer, weights = network.layers[i], layers[i]
        ins = _blocks(pruned, i)
        outs = [E] if form is None else _blocks(pruned, i + 1)
        alone = isinstance(layer, Conv) and torus is None
        if i > 0 and (alone or type(layer) is not type(network.layers[i - 1])):
            into = network.layers[i - 1]
            matrices = 1 if isinstance(into, Dense) else len(norms.frequencies(torus or into.torus))
            form = _through_norms(layer, weights, form, ins, outs, into.out_shape[0], matrices)
            continue
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
        matrix = jnp.concatenate(rows, axis=-2)
        if form is None:
            form, rounding = norms.gram(matrix)
            form = _plus(form, rounding + 2 * norms.frobenius(matrix) * error + error**2)
        else:
            form = _through_activation(form, matrix, error, len(outs), least_slope)
    return norms.eigenvalue_bound(form)


def _plus(form, slack):
    return form + jnp.max(slack) * (1.0 + 1e-12) * norms.identity(form)


def _units(form, count):
    """For each of `count` equal blocks about the root of its largest eigenvalue."""
    n = form.shape[-1] // count
    blocks = jnp.stack([form[:, k * n : k * n + n, k * n : k * n + n] for k in range(count)])
    size = jnp.max(norms.eigenvalue_estimate(blocks, STEPS), axis=1)
    return jnp.where(size > 0, jnp.sqrt(jnp.maximum(size, 0.0)), 1.0)


def _through_activation(form, matrix, error, count, c):
    """From `s^* Q s` to a form of the state before: `y = M s_before`, s the activation of y.

    In units in which the blocks of Q are alike, with one multiplier tau for all neurons,

        s^* Q s <= max_s { s^* Q s + tau (s - c y)^* (y - s) }
                 = ((1 + c)/2)^2 tau^2 y^* (tau - Q)^(-1) y - c tau y^* y.
    """
    units = jnp.repeat(_units(form, count), form.shape[-1] // count)
    matrix = units[None, :, None] * matrix
    form = form / (units[None, :, None] * units[None, None, :])
    error = jnp.max(units) * error
    size = norms.frobenius(matrix) + error
    if c == 1.0:  # s = y
        n = form.shape[-1]
        product = norms.adjoint(matrix) @ form @ matrix
        slack = (3 * norms.growth(n) * size + 2 * error) * size * norms.frobenius(form)
        return _plus(_hermitian(product), slack)
    n = form.shape[-1]
    margin = MARGIN * (1.0 + c) / (1.0 - c)
    tau = (1.0 + margin) * jnp.max(norms.eigenvalue_estimate(form, STEPS))
    tau = jnp.where(tau > 0, tau, 1.0)
    # Room for the rounding of the factor: R^* R <= tau - Q - room / 2.
    room = tau * max(1e-9, 4 * n * norms.growth(n))
    lower = norms.cholesky((tau - room) * norms.identity(form) - form)
    right = 0.5 * (1.0 + c) * tau * matrix
    y = norms.solve_lower(lower, right)
    residual = norms.frobenius(right - lower @ y)
    rounding = norms.growth(n) * norms.frobenius(lower) * norms.frobenius(y)
    residual = residual + 2 * rounding + tau * (error + norms.UNIT * 8 * size)
    product, slack = norms.gram(y)
    slack = slack + 2 * residual**2 / room
    if c > 0.0:
        linear, linear_slack = norms.gram(matrix)
        product = product - c * tau * linear
        slack = slack + c * tau * (linear_slack + 2 * error * size)
    return _plus(_hermitian(product), slack)


def _hermitian(a):
    return 0.5 * (a + norms.adjoint(a))


def _through_norms(layer, weights, form, ins, outs, width, matrices):
    """The same across a layer whose inputs are laid out in another way than its outputs.

    Activations contract, and `(a + b)^2 <= 2 a^2 + 2 b^2`: the form is bounded by multiples of
    `||h||^2` and `||e||^2`.
    """
    units, largest = {E: 1.0}, 1.0
    if form is not None:
        units = _units(form, len(outs))
        scales = jnp.repeat(units, form.shape[-1] // len(outs))
        largest = norms.eigenvalue_bound(form / (scales[None, :, None] * scales[None, None, :]))
        units = dict(zip(outs, units, strict=True))
    norm = {name: norms.norm_bound(layer, w) for name, w in _named(weights)}
    zero = jnp.zeros(())
    both = 2.0 if weights.p is not None and E in ins else 1.0
    of_h = zero
    if H in outs:
        of_h = (units[H] * norm["w"]) ** 2
    if E in outs and weights.p is not None:
        of_h = of_h + both * (units[E] * norm["p"]) ** 2
    of_e = both * (units[E] * norm["kept"]) ** 2 if E in outs else zero
    sizes = jnp.stack([{H: of_h, E: of_e}[b] for b in ins]) * largest
    sizes = sizes * (1.0 + norms.growth(len(scales)) * len(scales) if form is not None else 1.0)
    dtype = jnp.float64 if matrices == 1 else jnp.complex128
    diagonal = jnp.repeat(sizes, width).astype(dtype)
    return jnp.broadcast_to(jnp.diag(diagonal)[None], (matrices, len(diagonal), len(diagonal)))


def _named(weights):
    yield "w", weights.w
    if weights.p is not None:
        yield "p", weights.p
    yield "kept", weights.kept


def _by_frobenius(network, layers):
    """The telescoping sum `sum_k b_k prod_(j < k) p_j prod_(j > k) a_j` of Frobenius norms."""
    total, before = 0.0, 1.0  # gap so far, norm of the target so far
    for layer, weights in zip(network.layers, layers, strict=True):
        factor = layer.kernel if isinstance(layer, Conv) else 1.0
        a, b, p = (
            0.0 if w is None else factor * norms.frobenius(w.reshape(1, -1))
            for w in (weights.w, weights.p, weights.kept)
        )
        total, before = p * total + b * before, before * a
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

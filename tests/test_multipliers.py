"""The upper bound of a pair against brute force, linear networks, and a NumPy re-implementation."""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import Compilations
from oracles import (
    NOT_FINITE,
    PAIRS,
    batch,
    explicit,
    matrix,
    pair,
    removal,
    removed_part,
    with_activation,
    worst_of_pairs,
)

from jaxprune import activations, gaps, networks, pruning
from jaxprune.gaps import multipliers, norms, tuning
from jaxprune.gaps.account import telescoping_terms
from jaxprune.gaps.multipliers import shared_torus
from jaxprune.gaps.tuning import MARGIN, MARGINS
from jaxprune.networks import Conv, Dense, Network

ci, slow = pytest.mark.ci, pytest.mark.slow


@functools.partial(jax.jit, static_argnums=0)
def bounds_of(network, params, removed):
    return jax.vmap(functools.partial(gaps.multiplier_bound, network))(params, removed)


def upper_bounds(network, pairs):
    """Bounds of pairs `(params, removed)` in one batch: `(n,)` float64."""
    return np.asarray(bounds_of(network, *batch(pairs)), np.float64)


LINEAR = networks.dense((6, 9, 7, 5), activations.identity)
SHALLOW = networks.dense((6, 9, 5))
SMALL = networks.dense((3, 3, 2, 3))
CONVOLUTIONS = {
    "same": networks.convolutional((2, 3, 4), 6),
    "same, strides": networks.convolutional((2, 3, 3, 2), 8, strides=(2, 1, 2)),
    "same, even kernel": networks.convolutional((2, 3, 2), 5, kernel=2),
    "valid": networks.convolutional((2, 3, 4), 7, padding="VALID", strides=(2, 1)),
    "circular": networks.convolutional((2, 3, 3), 6, padding="CIRCULAR"),
    "circular, strides": networks.convolutional((2, 3, 3), 6, padding="CIRCULAR", strides=(2, 1)),
    "circular, no common torus": networks.convolutional(
        (2, 3, 3), 5, padding="CIRCULAR", strides=(2, 1)
    ),
    "read-out": networks.convolutional((1, 3, 4), 6, strides=(2, 1), outputs=5),
    "circular, read-out": networks.convolutional(
        (1, 3, 4), 5, padding="CIRCULAR", strides=2, outputs=5
    ),
}


def carried_gap(params, removed):
    """`||W_l ... W_1 - K_l ... K_1||` of dense layers; no digits of small parts are lost."""
    product, d = np.eye(params[0].shape[1]), 0.0
    for w, p in zip(params, removed, strict=True):
        w, p = w.astype(np.float64), p.astype(np.float64)
        product, d = w @ product, (w - p) @ d + p @ product if np.ndim(d) else p @ product
    return np.linalg.norm(d, 2)


def linear_gap(network, params, removed):
    """`||W_l ... W_1 - K_l ... K_1||`."""
    full, kept = (
        np.linalg.multi_dot(ms[::-1]) if len(ms) > 1 else ms[0]
        for ms in explicit(network, params, removed)
    )
    return np.linalg.norm(full - kept, 2)


def test_linear_dense_networks_are_exact():
    """With all layers pruned, with nothing removed from some of them, and with small parts.

    Rounding is small against the gap, not against the outputs.
    """
    pairs = [
        removal(LINEAR, 0, which=which, everywhere=True)
        for which in ("all", "dense1", "dense2", "dense3", ["dense1", "dense3"])
    ]
    for size in (1e-5, 1e-10, 1e-36):
        params, masks = pair(LINEAR, 1)
        tiny = np.float32(size)
        params = tuple(np.where(m, w, tiny * w) for w, m in zip(params, masks, strict=True))
        pairs.append((params, removed_part(params, masks)))
    for (params, removed), bound in zip(pairs, upper_bounds(LINEAR, pairs), strict=True):
        exact = carried_gap(params, removed)
        assert exact <= bound <= 1.01 * exact


@pytest.mark.parametrize(
    "which",
    ["dense2", *(pytest.param(w, marks=ci) for w in ("dense1", "dense3", ["dense1", "dense3"]))],
    ids=str,
)
def test_linear_dense_networks_with_layers_left_alone_are_exact(which):
    params, removed = removal(LINEAR, 0, which=which)
    exact = linear_gap(LINEAR, params, removed)
    assert exact <= upper_bounds(LINEAR, [(params, removed)])[0] <= 1.01 * exact


@pytest.mark.parametrize(
    ("name", "which"),
    [
        *(
            pytest.param(name, "all", marks=[] if name == "circular" else ci)
            for name in CONVOLUTIONS
        ),
        *(pytest.param(name, "last", marks=ci) for name in CONVOLUTIONS if "strides" in name),
    ],
)
def test_linear_convolutions_against_explicit_matrices(name, which):
    network = with_activation(CONVOLUTIONS[name], activations.identity)
    which = network.names[-1] if which == "last" else which
    params, removed = removal(network, 0, which=which)
    exact = linear_gap(network, params, removed)
    bound = upper_bounds(network, [(params, removed)])[0]
    assert exact <= bound
    if name == "circular":
        assert bound <= 1.01 * exact


MANY = 500
"""The batch of pairs of `SMALL`: its tests run one program."""


def bounds_of_small(pairs):
    pairs = list(pairs)
    return upper_bounds(SMALL, pairs + pairs[:1] * (MANY - len(pairs)))[: len(pairs)]


def largest_of_any_slopes(network, params, removed):
    """The relaxed problem by brute force: any slopes for h and, apart from them, for e."""
    full, kept = explicit(network, params, removed)
    slopes = np.array(list(itertools.product((network.activation.least_slope, 1.0), repeat=5)))
    of_h, of_e = (a.reshape(-1, 5, 1) for a in np.broadcast_arrays(slopes[:, None], slopes[None]))
    h, e = np.eye(3)[None], np.zeros((1, 3, 3))
    for w, k, neurons in zip(full, kept, (slice(0, 3), slice(3, 5), None), strict=True):
        h, e = w @ h, (w - k) @ h + k @ e
        if neurons:
            h, e = of_h[:, neurons] * h, of_e[:, neurons] * e
    return np.linalg.norm(e, 2, axis=(1, 2)).max()


@pytest.mark.parametrize(
    ("which", "activation"),
    [
        pytest.param(which, activation, marks=tier)
        for activation, tiers in (
            (activations.relu, (ci, slow, ci)),
            (activations.leaky_relu(0.3), (slow, ci, slow)),
        )
        for which, tier in zip(("all", "middle", "dense3"), tiers, strict=True)
    ],
    ids=str,
)
def test_no_choice_of_slopes_exceeds_the_bound(which, activation):
    network = with_activation(SMALL, activation)
    pairs = [removal(network, seed, which=which) for seed in range(8)]
    if (network, which) == (SMALL, "all"):
        found = bounds_of_small(pairs)
    else:
        found = upper_bounds(network, pairs)
    largest = np.array([largest_of_any_slopes(network, *pair) for pair in pairs])
    assert (largest <= found * (1 + 1e-9)).all()
    assert np.median(found / largest) < 1.5


def reference(full, kept, pruned, c):
    """The same multipliers by eigenvalues and inverses of NumPy, for dense layers."""
    blocks = lambda i: ["h"] * (max(pruned) >= i) + ["e"] * (min(pruned) < i)
    top = lambda q: np.linalg.eigvalsh(q)[-1]
    last = len(full) - 1
    matrices, counts = [], []
    for i, (w, k) in enumerate(zip(full, kept, strict=True)):
        into = {"h": {"h": w, "e": 0 * w}, "e": {"h": w - k, "e": k}}
        rows = ["e"] if i == last else blocks(i + 1)
        matrices.append(np.block([[into[b][a] for a in blocks(i)] for b in rows]))
        counts.append(len(rows))

    def start(form, m, count):
        parts = []
        for d, r in zip(
            np.split(np.diag(form), count), np.split((m**2).sum(axis=1), count), strict=True
        ):
            size, d, r = d.mean(), *(np.maximum(a, 0.1 * a.mean()) for a in (d, r))
            parts.append(size * np.sqrt(d / d.mean() * r.mean() / r))
        return np.concatenate(parts)

    def backwards(multipliers, margin):
        """Multipliers made feasible, the maximisers `s = A y`, the form of the input, its unit."""
        ts, maps, unit = [], [], 1.0
        form = matrices[last].T @ matrices[last]
        for i in reversed(range(last)):
            m, level = matrices[i], np.diag(form).max()
            form, unit = form / level, unit * level
            t = start(form, m, counts[i]) if multipliers is None else multipliers[i]
            raised = (1 + margin) * top(form / np.sqrt(np.outer(t, t)))
            t = t * (raised if multipliers is None else max(1, raised))
            maps.insert(0, (1 + c) / 2 * np.linalg.inv(np.diag(t) - form) * t)
            ts.insert(0, t)
            form = m.T @ ((1 + c) / 2 * t[:, None] * maps[0] - c * np.diag(t)) @ m
        return ts, maps, form, unit

    multipliers = None
    for margin in MARGINS:
        ts, maps, form, _ = backwards(multipliers, margin)
        density = np.linalg.matrix_power(form / np.diag(form).max(), 8)
        multipliers = []
        for m, t, a in zip(matrices[:-1], ts, maps, strict=True):
            y = m @ density @ m.T
            density = a @ y @ a.T
            less, more = np.diag(density) + c * np.diag(y), (1 + c) * np.diag(a @ y)
            multipliers.append(
                t * np.sqrt(np.clip(less / np.maximum(more, 1e-3 * less + 1e-30), 0.5, 2))
            )
    *_, form, unit = backwards(multipliers, MARGIN)
    return np.sqrt(unit * top(form))


def test_small_bounds_against_numpy():
    pairs = [removal(SMALL, seed) for seed in range(20)]
    for (params, removed), bound in zip(pairs, bounds_of_small(pairs), strict=True):
        expected = reference(*explicit(SMALL, params, removed), range(3), 0.0)
        assert bound == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("c", "which"),
    [
        pytest.param(0.0, "all", marks=slow),
        pytest.param(0.0, "middle", marks=ci),
        pytest.param(0.0, "dense1", marks=slow),
        pytest.param(0.2, "all", marks=ci),
    ],
)
def test_bound_against_numpy(c, which):
    network = networks.dense((20, 30, 25, 30, 10), activations.leaky_relu(c))
    params, removed = removal(network, 0, q=0.1, which=which)
    pruned = [i for i, p in enumerate(removed) if p is not None]
    expected = reference(*explicit(network, params, removed), pruned, c)
    assert upper_bounds(network, [(params, removed)])[0] == pytest.approx(expected, rel=0.02)


@ci
@pytest.mark.parametrize(
    ("padding", "stride", "activation"),
    [
        ("SAME", 1, activations.identity),
        ("SAME", 2, activations.leaky_relu(0.9)),
        ("VALID", 1, activations.identity),
        ("CIRCULAR", 2, activations.identity),
    ],
    ids=str,
)
def test_edges_of_an_image_are_no_activations(padding, stride, activation):
    """A box, then a Laplacian: nothing is left on the torus, but at the edges of the image."""
    network = networks.convolutional((1, 1, 1), 8, padding=padding, strides=(stride, 1))
    network = with_activation(network, activation)
    box, laplacian = np.ones((3, 3), np.float32), np.ones((3, 3), np.float32)
    laplacian[1, 1] = -8
    params = tuple(w[None, None] for w in (box, laplacian))
    removed = (params[0], None)
    exact = linear_gap(network, params, removed)
    least = 1.0 if activation is activations.identity else 0.5
    assert least * exact <= upper_bounds(network, [(params, removed)])[0]


@ci
def test_a_convolution_of_one_pixel_is_a_dense_layer():
    layers = tuple(Conv(a, b, 1, (1, 1)) for a, b in ((6, 9), (9, 5)))
    conv = Network(layers, activations.relu, (6, 1, 1))
    params, removed = removal(SHALLOW, 0)
    as_kernels = lambda ws: tuple(w[:, :, None, None] for w in ws)
    one = upper_bounds(conv, [(as_kernels(params), as_kernels(removed))])
    assert one == pytest.approx(upper_bounds(SHALLOW, [(params, removed)]), rel=1e-3)


def test_shared_torus_holds_the_network():
    """Layers as circular convolutions on the torus agree with the layers, pixel by pixel."""
    rng = np.random.default_rng(0)
    for name, network in CONVOLUTIONS.items():
        torus, dilations = shared_torus(network)
        assert (torus is None) == (name in ("circular, no common torus", "circular, read-out"))
        if torus is None:
            continue
        for layer, dilation in zip(network.layers, dilations, strict=True):
            if isinstance(layer, Dense):
                continue
            x = rng.normal(size=(layer.c_in, *layer.size)).astype(np.float32)
            w = rng.normal(size=layer.weight_shape).astype(np.float32)
            spread = np.zeros((layer.c_in, *torus))
            rows, columns = (dilation * np.arange(side) for side in layer.size)
            spread[:, rows[:, None], columns] = x
            total = np.zeros((layer.c_out, *torus))
            for i, j in np.ndindex(layer.kernel, layer.kernel):
                shift = [dilation * (layer.pads[0] - t) for t in (i, j)]
                total += np.einsum("oi,iyx->oyx", w[:, :, i, j], np.roll(spread, shift, (1, 2)))
            expected = (matrix(layer, w) @ x.ravel()).reshape(layer.out_shape)
            rows, columns = (
                dilation * layer.stride * np.arange(side) for side in layer.out_shape[1:]
            )
            np.testing.assert_allclose(
                total[:, rows[:, None], columns], expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(SMALL, id="small"),
        pytest.param(PAIRS["dense, leaky"], id="dense, leaky", marks=slow),
        pytest.param(PAIRS["valid, strides"], id="valid, strides", marks=slow),
    ],
)
def test_no_distance_exceeds_its_bound(network):
    """500 pairs each; `pytest -m slow -k exceeds` takes 10^5, of five networks."""
    bounds = functools.partial(bounds_of, network)
    upper, largest = worst_of_pairs(network, bounds, MANY, seed=1)
    assert (largest > 0).mean() > 0.95 and (largest <= upper * (1 + 1e-12)).all()
    ratios = np.divide(upper, largest, out=np.full_like(upper, np.inf), where=largest > 0)
    assert np.median(ratios) < 4


def positive_definite(rows):
    """Whether a symmetric matrix of fractions is: all pivots of an exact elimination positive."""
    rows = [list(row) for row in rows]
    for k, row in enumerate(rows):
        if row[k] <= 0:
            return False
        for below in rows[k + 1 :]:
            factor = below[k] / row[k]
            below[k:] = [b - factor * a for a, b in zip(row[k:], below[k:], strict=True)]
    return True


def fractions(a):
    """A complex matrix as the real one of twice the size, exactly."""
    if np.iscomplexobj(a):
        a = np.block([[a.real, -a.imag], [a.imag, a.real]])
    return np.vectorize(Fraction, otypes=[object])(a)


@pytest.mark.parametrize(
    ("dtype", "c"),
    [
        *((float, 0.0), (complex, 0.3)),
        *(pytest.param(*case, marks=ci) for case in ((float, 0.3), (complex, 0.0))),
    ],
)
def test_each_step_in_exact_arithmetic(dtype, c):
    """`[[T - Q, B], [B^*, Q' + c M^* T M]]`, `B = (1 + c)/2 T M`, is positive definite for the
    floats Q, M, U (T = U^2) and Q' as they stand: by Schur's complement, what the step claims."""
    rng = np.random.default_rng(7)
    n, m = 6, 4

    def draw(*shape):
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if dtype is complex else x

    with jax.enable_x64(True):
        bound = jax.jit(norms.eigenvalue_bound)
        stage = lambda m: tuning.Stage(m, jnp.zeros(()), 2, c)
        step = jax.jit(lambda q, m, u: multipliers._through_activation(q, stage(m), u))
        for size in (1.0, 1e-20, 1e12):
            root, w = draw(n, n), draw(n, m)
            form = size * (root.conj().T @ root)
            form = (form + form.conj().T) / 2
            units = np.sqrt(1.3 * np.linalg.eigvalsh(form)[-1] * rng.uniform(1, 2, n))
            new = np.asarray(step(form[None], w[None], units))[0]
            assert (new == new.conj().T).all()
            t = fractions(np.diag(units).astype(dtype)) ** 2
            form, w, half = fractions(form), fractions(w), (1 + Fraction(c)) / 2
            linear = Fraction(c) * (w.T @ t @ w)

            def holds(new, form=form, t=t, side=half * (t @ w), linear=linear):
                rest = fractions(new) + linear
                return positive_definite(np.block([[t - form, side], [side.T, rest]]))

            assert holds(new)
            # With the same multipliers the least of all bounds is hardly smaller.
            assert not holds(new - 1e-6 * np.linalg.norm(new, 2) * np.eye(m))
            top = Fraction(float(bound(new[None]))) * fractions(np.eye(m, dtype=dtype))
            assert positive_definite(top - fractions(new))


GAINS = (1e-30, 1e-12, 1e-6, 1e12)


@functools.cache
def bounds_of_extremes():
    """A pair, the same times each gain, one removed weight of 1e-40, and for each value that is not
    finite one pair a layer."""
    params, masks = pair(SMALL, 0)
    pairs = [(params, removed_part(params, masks))]
    for gain in GAINS:
        scaled = tuple(np.float32(gain) * w for w in params)
        pairs.append((scaled, removed_part(scaled, masks)))
    hardly, only = (params[0].copy(), *params[1:]), [np.ones_like(mask) for mask in masks]
    hardly[0][1, 2] = 1e-40
    only[0][1, 2] = False
    pairs.append((hardly, removed_part(hardly, only)))
    for value, i in itertools.product(NOT_FINITE, range(len(params))):
        broken = [w.copy() for w in params]
        broken[i][0, 0] = value
        pairs.append((tuple(broken), removed_part(broken, masks)))
    one, *rest = bounds_of_small(pairs)
    n = len(GAINS)
    return one, dict(zip(GAINS, rest[:n], strict=True)), rest[n], rest[n + 1 :]


@pytest.mark.parametrize("gain", GAINS)
def test_bound_scales_with_the_weights(gain):
    one, scaled, _, _ = bounds_of_extremes()
    expected = one * float(np.float32(gain)) ** 3
    bound = scaled[gain]
    assert bound == pytest.approx(expected, rel=1e-5) or expected <= bound < 1e-37


@ci
def test_bound_of_weights_near_the_end_of_float32():
    """Of two layers: of three the gap would leave float32."""
    params, masks = pair(SHALLOW, 0)
    scaled = tuple(np.float32(1e18) * w for w in params)
    pairs = [(ws, removed_part(ws, masks)) for ws in (params, scaled)]
    one, large = upper_bounds(SHALLOW, pairs)
    assert large == pytest.approx(one * float(np.float32(1e18)) ** 2, rel=1e-5)


def test_a_part_that_is_hardly_there_is_bounded_all_the_same():
    """One weight of 1e-40 removed: float32 cannot hold the gap's square, or the weight normally."""
    assert 0 < bounds_of_extremes()[2] < 1e-37


def test_nonfinite_weights_have_no_finite_bound():
    assert not np.isfinite(bounds_of_extremes()[3]).any()


@ci
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "network",
    [networks.dense((6, 9, 7, 5)), CONVOLUTIONS["same"], CONVOLUTIONS["read-out"]],
    ids=str,
)
def test_nonfinite_weights_beside_layers_left_alone_have_no_finite_bound(network, kept):
    params, masks = pair(network, 0, which=network.names[1])
    masks[1][(0,) * masks[1].ndim] = kept
    pairs = []
    for value, i in itertools.product(NOT_FINITE, range(len(params))):
        broken = [w.copy() for w in params]
        broken[i][(0,) * broken[i].ndim] = value
        pairs.append((tuple(broken), removed_part(broken, masks)))
    assert not np.isfinite(upper_bounds(network, pairs)).any()


SCALES = {
    "least normal": [2.0**-126] * 9 + [2.0**126] * 9,
    "subnormal last": [2.0**-133] * 8 + [2.0**118] * 9,
    "subnormal first": [2.0**118] * 9 + [2.0**-133] * 8,
    "odd": [1.5 * 2.0**-119] * 9 + [2.0**119] * 9,
    "vanishes": [2.0**-100] * 12 + [2.0**90] * 5,
}


def chains(which):
    """Chains of one neuron as one batch of pairs, and their gaps in exact arithmetic."""
    columns = np.array([[1.0] * (18 - len(scales)) + scales for scales in SCALES.values()])
    params = tuple(columns.astype(np.float32).T[:, :, None, None])
    pruned = 0 if which == "first" else 17
    removed = tuple(w if i == pruned else None for i, w in enumerate(params))
    return params, removed, [math.prod(map(Fraction, scales)) for scales in SCALES.values()]


def assert_tight(bounds, exact):
    for bound, product in zip(np.asarray(bounds).tolist(), exact, strict=True):
        assert Fraction(bound) >= product
        assert bound <= 1.02 * float(product) + 2.0**-125


def test_units_of_products_that_leave_float64_are_exact():
    """Powers of two are taken out of the layers as one whole number, in exact arithmetic."""
    network = networks.dense((1,) * 19)
    params, removed, exact = chains("first")

    def in_units(params, removed):
        layers, k = multipliers._scaled(network, params, removed)
        return [layers[0].p, *(layer.w for layer in layers[1:])], k

    with jax.enable_x64(True):
        factors, exponents = jax.jit(jax.vmap(in_units))(params, removed)
    factors, exponents = np.stack(factors).reshape(18, -1).T, np.asarray(exponents).tolist()
    for own, k, product in zip(factors.tolist(), exponents, exact, strict=True):
        assert math.prod(map(Fraction, own)) * Fraction(2) ** k == product


@pytest.mark.parametrize(
    ("activation", "which"),
    [
        pytest.param(activations.relu, "first", marks=slow),
        pytest.param(activations.identity, "last", marks=ci),
        pytest.param(activations.relu, "last", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_products_that_leave_float64_on_the_way(activation, which):
    params, removed, exact = chains(which)
    assert_tight(bounds_of(networks.dense((1,) * 19, activation), params, removed), exact)


@ci
@pytest.mark.parametrize("which", ["first", "last"])
def test_products_of_norms_that_leave_float64_on_the_way(which):
    params, removed, exact = chains(which)
    terms = jax.vmap(functools.partial(telescoping_terms, networks.dense((1,) * 19)))
    assert_tight(np.asarray(jax.jit(terms)(params, removed))[:, 0], exact)


@ci
def test_bounds_of_norms_multiply_to_no_less():
    """Never above the telescoped product of norms by more than the norms' own slack."""
    network = networks.dense((30, 30, 30, 30))
    params, removed = removal(network, 0, which="middle", method=pruning.magnitude)
    norm_bound = jax.jit(gaps.norm_bound, static_argnums=0)
    product = np.prod([
        float(norm_bound(layer, w))
        for layer, w in zip(network.layers, (params[0], removed[1], params[2]), strict=True)
    ])  # fmt: skip
    assert upper_bounds(network, [(params, removed)])[0] <= 0.7 * product


@pytest.mark.ci
def test_a_bound_by_itself_is_one_program(pytestconfig):
    """Outside `jit`, as many operations would be as many programs, at each call again."""
    (plugin,) = (p for p in pytestconfig.pluginmanager.get_plugins() if isinstance(p, Compilations))
    network, rng = networks.dense((2, 3, 2)), np.random.default_rng(0)
    before, bounds = plugin.total, []
    for _ in range(2):
        params = tuple(rng.normal(size=s).astype(np.float32) for s in network.weight_shapes)
        removed = (params[0] * (abs(params[0]) < 0.5), None)
        bounds.append((float(gaps.multiplier_bound(network, params, removed)), params, removed))
    assert plugin.total == before + 1
    for bound, params, removed in bounds:
        compiled = jax.jit(functools.partial(gaps.multiplier_bound, network))
        assert bound == float(compiled(params, removed)) > 0

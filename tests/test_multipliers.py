"""The upper bound of a pair against brute force, linear networks, and a NumPy re-implementation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gaps import matrix, norm_bound, pair

from jaxprune import activations, gaps, networks, pruning
from jaxprune.gaps.multipliers import shared_torus
from jaxprune.gaps.tuning import MARGIN, MARGINS
from jaxprune.networks import Conv, Dense, Network

multiplier_bound = jax.jit(gaps.multiplier_bound, static_argnums=0)

DENSE = networks.dense((6, 9, 7, 5))
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


def with_activation(network, activation):
    return Network(network.layers, activation, network.in_shape)


def explicit(network, params, removed):
    """The layers of target and pruned network as float64 matrices."""
    kept = [w if p is None else w - p for w, p in zip(params, removed, strict=True)]
    return tuple(
        [matrix(layer, w) for layer, w in zip(network.layers, ws, strict=True)]
        for ws in (params, kept)
    )


def linear_gap(network, params, removed):
    """`||W_l ... W_1 - K_l ... K_1||`."""
    full, kept = (
        np.linalg.multi_dot(ms[::-1]) if len(ms) > 1 else ms[0]
        for ms in explicit(network, params, removed)
    )
    return np.linalg.norm(full - kept, 2)


@pytest.mark.parametrize(
    "which", ["all", "dense1", "dense2", "dense3", ["dense1", "dense3"]], ids=str
)
def test_linear_dense_networks_are_exact(which, key):
    network = with_activation(DENSE, activations.identity)
    params, masks = pair(network, key, which=which)
    removed = gaps.removed_part(params, masks)
    exact = linear_gap(network, params, removed)
    assert exact <= float(multiplier_bound(network, params, removed)) <= 1.01 * exact


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linear_convolutions_against_explicit_matrices(name, key):
    network = with_activation(CONVOLUTIONS[name], activations.identity)
    for which in ("all", network.names[-1]) if "strides" in name else ("all",):
        params, masks = pair(network, key, which=which)
        removed = gaps.removed_part(params, masks)
        exact = linear_gap(network, params, removed)
        bound = float(multiplier_bound(network, params, removed))
        assert exact <= bound
        if name == "circular":
            assert bound <= 1.01 * exact


SMALL = networks.dense((3, 3, 2, 3))


@pytest.mark.parametrize("activation", [activations.relu, activations.leaky_relu(0.3)], ids=str)
@pytest.mark.parametrize("which", ["all", "middle", "dense3"])
def test_no_choice_of_slopes_exceeds_the_bound(activation, which, key):
    """Brute force of the relaxed problem: any slopes for h and, apart from them, for e."""
    network = with_activation(SMALL, activation)
    ratios = []
    for i in range(8):
        params, masks = pair(network, jax.random.fold_in(key, i), which=which)
        removed = gaps.removed_part(params, masks)
        full, kept = explicit(network, params, removed)
        bound = float(multiplier_bound(network, params, removed))
        slopes = [np.diag(d) for d in itertools.product((activation.least_slope, 1.0), repeat=5)]
        largest = 0.0
        for of_h, of_e in itertools.product(slopes, repeat=2):
            h, e = np.eye(3), np.zeros((3, 3))
            for j, (w, k) in enumerate(zip(full, kept, strict=True)):
                h, e = w @ h, (w - k) @ h + k @ e
                block = (slice(0, 3), slice(3, 5), None)[j]
                if block:
                    h, e = of_h[block, block] @ h, of_e[block, block] @ e
            largest = max(largest, np.linalg.norm(e, 2))
        assert largest <= bound * (1 + 1e-9)
        ratios.append(bound / largest)
    assert np.median(ratios) < 1.5


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


@pytest.mark.parametrize(
    ("c", "which"), [(0.0, "all"), (0.0, "middle"), (0.0, "dense1"), (0.2, "all")]
)
def test_bound_against_numpy(c, which, key):
    network = networks.dense((20, 30, 25, 30, 10), activations.leaky_relu(c))
    params, masks = pair(network, key, q=0.1, which=which)
    removed = gaps.removed_part(params, masks)
    pruned = [i for i, p in enumerate(removed) if p is not None]
    expected = reference(*explicit(network, params, removed), pruned, c)
    assert float(multiplier_bound(network, params, removed)) == pytest.approx(expected, rel=0.02)


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
    params = tuple(jnp.asarray(w)[None, None] for w in (box, laplacian))
    removed = (params[0], None)
    exact = linear_gap(network, params, removed)
    least = 1.0 if activation is activations.identity else 0.5
    assert least * exact <= float(multiplier_bound(network, params, removed))


def test_a_convolution_of_one_pixel_is_a_dense_layer(key):
    conv = Network(
        tuple(Conv(a, b, 1, (1, 1)) for a, b in ((6, 9), (9, 5))), activations.relu, (6, 1, 1)
    )
    dense = networks.dense((6, 9, 5))
    params, masks = pair(dense, key)
    removed = gaps.removed_part(params, masks)
    as_kernels = lambda ws: tuple(w[:, :, None, None] for w in ws)
    one = multiplier_bound(conv, as_kernels(params), as_kernels(removed))
    assert float(one) == pytest.approx(float(multiplier_bound(dense, params, removed)), rel=1e-3)


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
            expected = np.asarray(layer(w, x))
            rows, columns = (
                dilation * layer.stride * np.arange(side) for side in layer.out_shape[1:]
            )
            np.testing.assert_allclose(
                total[:, rows[:, None], columns], expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("gain", [1e-30, 1e-12, 1e12, 1e18])
def test_bound_scales_with_the_weights(gain, key):
    network = networks.dense((8, 8, 8))
    params, masks = pair(network, key)
    one = float(multiplier_bound(network, params, gaps.removed_part(params, masks)))
    params = tuple(jnp.float32(gain) * w for w in params)
    scaled = float(multiplier_bound(network, params, gaps.removed_part(params, masks)))
    expected = one * float(np.float32(gain)) ** 2
    assert scaled == pytest.approx(expected, rel=1e-5) or (scaled >= expected and expected < 1e-37)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["same", "read-out"])
def test_nonfinite_weights_have_no_finite_bound(value, name, key):
    for network in (DENSE, CONVOLUTIONS[name]):
        params, masks = pair(network, key, which=network.names[1])
        for i in range(len(params)):
            broken = list(params)
            broken[i] = broken[i].at[(0,) * broken[i].ndim].set(value)
            bound = multiplier_bound(network, tuple(broken), gaps.removed_part(broken, masks))
            assert not np.isfinite(bound)


def test_a_part_that_is_hardly_there_is_bounded_all_the_same(key):
    """One weight of 1e-40 removed: float32 cannot hold the gap's square, or the weight normally."""
    network = networks.dense((4, 4, 4))
    params, _ = pair(network, key)
    params = (params[0].at[1, 2].set(1e-40), params[1])
    mask = jnp.ones((4, 4), bool).at[1, 2].set(False)
    removed = gaps.removed_part(params, (mask, None))
    assert 0 < float(multiplier_bound(network, params, removed)) < 1e-37


def test_bounds_of_norms_multiply_to_no_less(key):
    """Never above the telescoped product of norms by more than the norms' own slack."""
    network = networks.dense((30, 30, 30, 30))
    params, masks = pair(network, key, which="middle", method=pruning.magnitude)
    removed = gaps.removed_part(params, masks)
    product = np.prod([
        float(norm_bound(layer, w))
        for layer, w in zip(network.layers, (params[0], removed[1], params[2]), strict=True)
    ])  # fmt: skip
    assert float(multiplier_bound(network, params, removed)) <= 0.7 * product

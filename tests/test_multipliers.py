"""The upper bound of a pair against brute force, linear networks, and a NumPy re-implementation."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gaps import matrix, norm_bound, pair

from jaxprune import activations, gaps, networks, pruning
from jaxprune.gaps import multipliers, norms, tuning
from jaxprune.gaps.account import telescoping_terms
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


def worst_of_pairs(network, trials, seed):
    """Upper bounds of random pairs, and the largest float64 distance that ascent finds in each.

    Pairs are pruned at random or by magnitude in turn, each layer by 2 %, 10 % or 50 %. Slopes of
    the activation are c and 1; the iteration is the generalised power iteration, in NumPy.
    """
    rng = np.random.default_rng(seed)
    params, removed, full, kept = [], [], [], []
    for layer in network.layers:
        w = rng.uniform(-1, 1, (trials, math.prod(layer.weight_shape))).astype(np.float32)
        by_size = np.arange(trials)[:, None] % 2 == 1
        rank = np.where(by_size, np.abs(w), rng.random(w.shape)).argsort(axis=1).argsort(axis=1)
        count = np.ceil(rng.choice([0.02, 0.1, 0.5], (trials, 1)) * w.shape[1])
        p = np.where(rank < count, w, np.float32(0))
        # A layer is linear in its weights: the matrix of each weight does for all pairs.
        units = np.eye(w.shape[1], dtype=np.float32).reshape(-1, *layer.weight_shape)
        units = np.stack([matrix(layer, unit) for unit in units])
        for ws, weights in ((full, w), (kept, w - p)):
            ws.append(np.tensordot(weights.astype(np.float64), units, 1))
        for arrays, array in ((params, w), (removed, p)):
            arrays.append(array.reshape(trials, *layer.weight_shape))
    bounds = jax.jit(jax.vmap(lambda w, p: gaps.multiplier_bound(network, w, p)))
    upper = np.concatenate([
        bounds(tuple(w[i : i + 500] for w in params), tuple(p[i : i + 500] for p in removed))
        for i in range(0, trials, 500)
    ]).astype(np.float64)  # fmt: skip
    c = network.activation.least_slope

    def run(ws, x):
        slopes = []
        for w in ws[:-1]:
            y = w @ x
            slopes.append(np.where(y > 0, 1.0, c))
            x = slopes[-1] * y
        return ws[-1] @ x, slopes

    def pull(ws, slopes, d):
        g = ws[-1].swapaxes(1, 2) @ d
        for w, slope in zip(ws[-2::-1], slopes[::-1], strict=True):
            g = w.swapaxes(1, 2) @ (slope * g)
        return g

    x = rng.normal(size=(trials, full[0].shape[2], 8))
    largest = np.zeros(trials)
    for _ in range(15):
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
        (a, slopes), (b, others) = run(full, x), run(kept, x)
        largest = np.maximum(largest, np.linalg.norm(a - b, axis=1).max(axis=1))
        x = pull(full, slopes, a - b) - pull(kept, others, a - b)
    return upper, largest


PAIRS = {
    "dense": networks.dense((6, 7, 6, 5)),
    "dense, leaky": networks.dense((5, 8, 3, 8, 4), activations.leaky_relu(0.3)),
    "valid, strides": networks.convolutional(
        (1, 2, 2), 7, padding="VALID", strides=(2, 1), activation=activations.leaky_relu(0.5)
    ),
    "same": networks.convolutional((1, 2, 1), 4, activation=activations.identity),
    "circular, read-out": networks.convolutional((1, 2), 3, padding="CIRCULAR", outputs=3),
}


@pytest.mark.parametrize("name", ["dense, leaky", "valid, strides"])
def test_no_distance_exceeds_its_bound(name):
    """500 pairs each; `pytest -m slow -k exceeds` takes 10^5, of all five networks."""
    upper, largest = worst_of_pairs(PAIRS[name], 500, seed=1)
    assert (largest > 0).mean() > 0.95 and (largest <= upper * (1 + 1e-12)).all()
    assert np.median(upper / largest) < 4


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


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("c", [0.0, 0.3])
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
        step = jax.jit(
            lambda q, m, u: multipliers._through_activation(
                q, tuning.Stage(m, jnp.zeros(()), 2, c), u
            )
        )
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


@pytest.mark.parametrize(
    "scales",
    [
        [2.0**-126] * 9 + [2.0**126] * 9,
        [2.0**-133] * 8 + [2.0**118] * 9,
        [2.0**118] * 9 + [2.0**-133] * 8,
        [1.5 * 2.0**-119] * 9 + [2.0**119] * 9,
        [2.0**-100] * 12 + [2.0**90] * 5,
    ],
    ids=["least normal", "subnormal last", "subnormal first", "odd", "vanishes"],
)
@pytest.mark.parametrize("which", ["first", "last"])
def test_products_that_leave_float64_on_the_way(scales, which):
    """Chains of one neuron: the gap is the product, in exact arithmetic."""
    scales = [1.0] * (18 - len(scales)) + scales  # one program for all
    network = networks.dense((1,) * 19)
    params = tuple(jnp.full((1, 1), scale, jnp.float32) for scale in scales)
    masks = [None] * 18
    masks[0 if which == "first" else -1] = jnp.zeros((1, 1), bool)
    removed = gaps.removed_part(params, tuple(masks))
    exact = math.prod(Fraction(scale) for scale in scales)
    for bound in (
        float(multiplier_bound(network, params, removed)),
        float(jax.jit(telescoping_terms, static_argnums=0)(network, params, removed)[0]),
    ):
        assert Fraction(bound) >= exact
        assert bound <= 1.02 * float(exact) + 2.0**-125


@pytest.mark.parametrize("size", [1e-5, 1e-10, 1e-36])
def test_small_removed_parts_keep_their_digits(size, key):
    """Rounding is small against the gap, not against the outputs."""
    network = networks.dense((5, 6, 5), activations.identity)
    params, masks = pair(network, key)
    tiny = jnp.float32(size)
    params = tuple(jnp.where(m, w, tiny * w) for w, m in zip(params, masks, strict=True))
    removed = gaps.removed_part(params, masks)
    (a, b), (p, q) = ([np.asarray(w, np.float64) for w in ws] for ws in (params, removed))
    exact = np.linalg.norm((b - q) @ p + q @ a, 2)
    assert exact <= float(multiplier_bound(network, params, removed)) <= 1.01 * exact


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

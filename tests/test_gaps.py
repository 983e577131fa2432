"""The sandwich against float64, SVD, brute force and explicit matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import activations, gaps, laws, networks, pruning
from jaxprune.engine.tally import GUARD
from jaxprune.gaps import UnitBall
from jaxprune.gaps.difference import evaluate, evaluate_typical
from jaxprune.gaps.lengths import largest, lengths
from jaxprune.networks import Conv, Dense

ACTIVATIONS = [
    activations.relu,
    activations.leaky_relu(0.2),
    activations.tanh,
    activations.identity,
]


def pair(network, key, *, q=0.3, method=pruning.random, which="all", law=None):
    """Weights and masks of one pair."""
    law = law or laws.uniform(scaling="he")
    pruned = networks.select_layers(network, which)
    params, masks = [], []
    for i, layer in enumerate(network.layers):
        weight_key, mask_key = jax.random.split(jax.random.fold_in(key, i))
        bits = jax.random.bits(weight_key, layer.weight_shape)
        w = laws.sample(law.family, law.scale(*layer.fans), bits)
        level = jnp.int32(method.level(pruning.Fraction(q), w.size))
        params.append(w)
        masks.append(
            method.mask(jax.random.bits(mask_key, w.shape), w, level) if pruned[i] else None
        )
    return tuple(params), tuple(masks)


def matrix(layer, w):
    """The layer as an explicit float64 matrix on flattened inputs."""
    if layer.kind == "dense":
        return np.asarray(w, np.float64)
    shape = (layer.c_in, *layer.size)
    basis = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    columns = jax.vmap(lambda x: layer(w, x).reshape(-1))(basis)
    return np.asarray(columns, np.float64).T


measure_ball = jax.jit(gaps.measure_ball, static_argnums=(0, 2))
norm_bound = jax.jit(gaps.norm_bound, static_argnums=0)


def matrix_norm_bound(a):
    return norm_bound(Dense(a.shape[1], a.shape[0]), a)


NUMPY_ACTIVATIONS = {
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu(0.2)": lambda a: np.where(a > 0, a, 0.2 * a),
    "tanh": np.tanh,
    "identity": lambda a: a,
}


def forward64(network, matrices, x):
    """The network in NumPy's float64, layer by layer, from explicit matrices; x is (n, d)."""
    h = np.asarray(x, np.float64).reshape(len(x), -1).T
    for m in matrices[:-1]:
        h = NUMPY_ACTIVATIONS[str(network.activation)](m @ h)
    return (matrices[-1] @ h).T


def difference64(network, params, masks, x):
    kept = [w if m is None else jnp.where(m, w, 0) for w, m in zip(params, masks, strict=True)]
    full, pruned = (
        [matrix(layer, w) for layer, w in zip(network.layers, ws, strict=True)]
        for ws in (params, kept)
    )
    return forward64(network, full, x) - forward64(network, pruned, x)


NETWORKS = {
    "dense": networks.dense((6, 9, 7, 5)),
    "one layer": networks.dense((6, 5)),
    "conv same": networks.convolutional((2, 3, 4), 6),
    "conv valid": networks.convolutional((2, 3, 4), 7, padding="VALID", strides=(2, 1)),
    "conv circular": networks.convolutional((2, 3, 3), 6, padding="CIRCULAR"),
    "conv readout": networks.convolutional((1, 3, 4), 6, strides=(2, 1), outputs=5),
}


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *((name, activations.relu) for name in NETWORKS),
        *(("dense", activation) for activation in ACTIVATIONS),
    ],
    ids=str,
)
def test_difference_is_the_difference(name, activation, key):
    network = NETWORKS[name]
    network = networks.Network(network.layers, activation, network.in_shape)
    params, masks = pair(network, key)
    removed = gaps.removed_part(params, masks)
    x = np.random.default_rng(0).normal(size=(10, *network.in_shape)).astype(np.float32)
    at = lambda x: gaps.difference(network, params, removed, x)
    columns = jnp.moveaxis(jax.jit(at)(jnp.moveaxis(x, 0, -1)), -1, 0)
    expected = difference64(network, params, masks, x)
    for got in (columns, jnp.stack([at(one) for one in x])):
        np.testing.assert_allclose(
            np.asarray(got).reshape(10, -1), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_differences_keep_their_digits(size, key):
    """A removed part of relative size 1e-9 is lost by subtracting outputs; here it is not."""
    network = networks.dense((64, 64, 64, 64))
    params, _ = pair(network, key)
    w = np.array(params[1])
    w[5, :] = np.float32(size) * w[5, :]
    mask = np.ones_like(w, bool)
    mask[5, :] = False
    params = (params[0], jnp.asarray(w), params[2])
    masks = (None, jnp.asarray(mask), None)
    x = np.abs(np.random.default_rng(0).normal(size=(20, 64))).astype(np.float32)
    removed = gaps.removed_part(params, masks)
    got = gaps.difference(network, params, removed, x.T)
    expected = difference64(network, params, masks, x)
    error = np.abs(np.asarray(got.T, np.float64) - expected).max() / np.abs(expected).max()
    assert error < 1e-4  # subtracting float32 outputs errs by more than the difference itself


def test_pairs_of_one_batch_are_evaluated_each_as_it_needs(key):
    """By subtraction where the gap is large; a small one beside it loses no digit."""
    network = networks.dense((32, 32, 32, 32))
    x = np.abs(np.random.default_rng(0).normal(size=(32, 10))).astype(np.float32)
    params, masks = pair(network, key)
    removed = gaps.removed_part(params, masks)
    tiny = jnp.zeros((32, 32), bool).at[5].set(True)  # the row that goes is 1e-7 of the others
    small = (params[0], params[1] * jnp.where(tiny, 1e-7, 1.0), params[2])
    none, second = jnp.ones((32, 32), bool), ~tiny
    broken = (params[0].at[1, 2].set(jnp.nan), *params[1:])
    pairs = [
        (params, masks),
        (small, (none, second, none)),
        (params, (none, none, none)),
        (broken, masks),
    ]
    weights, parts = (
        tuple(jnp.stack(w) for w in zip(*each, strict=True))
        for each in ([p for p, _ in pairs], [gaps.removed_part(*p) for p in pairs])
    )
    evaluated = lambda w, p: evaluate_typical(network, w, p, x)
    _, d = jax.jit(jax.vmap(evaluated))(weights, parts)
    for i in (0, 1, 2):
        exact = difference64(network, pairs[i][0], pairs[i][1], x.T)
        error = np.abs(np.asarray(d[i].T, np.float64) - exact).max()
        assert error <= 1e-5 * np.abs(exact).max()
    assert np.isnan(d[3]).any() and not np.isnan(d[:3]).any()
    np.testing.assert_allclose(evaluated(params, removed)[1], d[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("widths", [(16,) * 4, (64, 64, 64, 16), (32,) * 9], ids=str)
def test_outputs_are_subtracted_only_where_that_keeps_the_digits(widths):
    """Gaps about and above the share from which on it is done, against float64."""
    network, worst, subtracted = networks.dense(widths), 0.0, 0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(widths[0], 6)).astype(np.float32)
    at = jax.jit(lambda w, p: (evaluate_typical(network, w, p, x), evaluate(network, w, p, x)))
    for q in np.geomspace(0.003, 0.1, 60):
        params = tuple(
            rng.uniform(-1, 1, shape).astype(np.float32) * np.float32((6 / shape[1]) ** 0.5)
            for shape in network.weight_shapes
        )
        masks = tuple(rng.random(shape) >= q for shape in network.weight_shapes)
        (_, d), (_, carried) = at(params, gaps.removed_part(params, masks))
        subtracted += bool((d != carried).any())
        gap = np.linalg.norm(difference64(network, params, masks, x.T), axis=1).max()
        worst = max(worst, abs(float(lengths(d).max()) - gap) / gap if gap else 0.0)
    assert 10 <= subtracted < 60 and worst <= GUARD / 10


def test_given_networks_whose_outputs_cancel_lose_no_digit():
    """Rows orthogonal to the kept weights: F is as small as F - f, and its terms are not."""
    rng = np.random.default_rng(0)
    w = rng.choice([-1, 1], (16, 256)) * rng.uniform(0.5, 1, (16, 256))
    gone = rng.choice(256, 8, replace=False)
    w[:, gone] = 0.4
    x = rng.normal(size=(4, 256))
    kept = np.delete(np.arange(256), gone)
    q, _ = np.linalg.qr(w[:, kept].T)
    x[:, kept] -= x[:, kept] @ q @ q.T
    x[:, gone] *= 1e-4
    w, x = w.astype(np.float32), x.astype(np.float32)
    tally = jp.simulate(
        networks.dense((256, 16)),
        (w[None],),
        pruning.magnitude,
        pruning.Count(8 * 16),
        eps=[1.0],
        trials=1,
        layers="all",
        domain=x,
    )
    exact = np.linalg.norm(x[:, gone].astype(float) @ w[:, gone].T.astype(float), axis=1).max()
    assert tally.worst[0][0] == pytest.approx(exact, rel=GUARD / 10)


SHAPES = [(1, 1), (8, 8), (64, 64), (256, 256), (16, 128), (128, 16), (1, 50), (50, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e20])
def test_matrix_norm_bound_against_svd(shape, size):
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(shape[0], 1)) * rng.normal(size=(1, shape[1]))
    for a in (rng.uniform(-1, 1, shape), low_rank, (rng.random(shape) < 0.1) + 0.0):
        a = (a * size).astype(np.float32)
        exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)[0]
        bound = float(matrix_norm_bound(jnp.asarray(a)))
        assert exact <= bound <= 1.02 * exact or exact == bound == 0


def test_svd_against_power_iteration_and_bound():
    """A power iteration stays below the norm, the bound above, the SVD between."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = rng.normal(size=(32, 32)).astype(np.float32)
        x = rng.normal(size=32)
        for _ in range(1000):
            x = a.T @ (a @ x)
            x /= np.linalg.norm(x)
        below, exact = np.linalg.norm(a @ x), np.linalg.norm(a.astype(np.float64), 2)
        above = float(matrix_norm_bound(jnp.asarray(a)))
        assert below <= exact * (1 + 1e-6) and exact <= above
        assert above <= 1.01 * exact and below >= 0.9 * exact


@pytest.mark.parametrize("n", [1, 8, 33 * 33, 4096, 100_000])
def test_a_maximum_does_not_lose_what_is_not_a_number(n):
    """XLA's own maximum does on some CPUs, of some thousand numbers and more."""
    values = np.random.default_rng(n).random(n).astype(np.float32)
    assert float(jax.jit(largest)(values)) == float(largest(values)) == values.max()
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, n // 2, n - 1):
            hurt = values.copy()
            hurt[place] = value
            assert np.isnan(largest(hurt)) and np.isnan(jax.jit(largest)(hurt))
            assert np.isnan(lengths(hurt[:, None])) or np.isinf(value)


def test_norm_bounds_of_zero_and_of_nonfinite_matrices():
    layer = Conv(2, 2, 3, (5, 5))
    assert float(matrix_norm_bound(jnp.zeros((4, 4)))) == 0
    assert float(norm_bound(layer, jnp.zeros(layer.weight_shape))) == 0
    for value in (np.nan, np.inf, -np.inf):
        for size in (4, 100):
            a = np.zeros((size, size), np.float32)
            a[1, 2] = value
            assert not np.isfinite(matrix_norm_bound(jnp.asarray(a)))
        w = np.zeros(layer.weight_shape, np.float32)
        w[0, 1, 2, 2] = value
        assert not np.isfinite(norm_bound(layer, jnp.asarray(w)))


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(7, 6)])
def test_convolution_norm_against_the_explicit_matrix(padding, stride, kernel, size):
    layer = Conv(3, 4, kernel, size, stride, padding)
    rng = np.random.default_rng(kernel)
    for w in (rng.normal(size=layer.weight_shape), np.ones(layer.weight_shape)):
        w = jnp.asarray(w, jnp.float32)
        exact = np.linalg.norm(matrix(layer, w), 2)
        bound = float(norm_bound(layer, w))
        assert exact <= bound
        if padding == "CIRCULAR" and stride == 1:
            assert bound <= 1.01 * exact


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_convolution_norm_where_it_lies_between_the_frequencies_of_the_image(kernel, side):
    """Alternating taps answer most to frequencies that an image of odd sides does not hold."""
    taps = (-1.0) ** np.arange(kernel, dtype=np.float32)
    for w in (np.outer(taps, taps), np.outer(np.arange(kernel) == 0, taps)):
        for padding in ("SAME", "VALID") if kernel <= side else ("SAME",):
            layer = Conv(1, 1, kernel, (side, side), 1, padding)
            weights = jnp.asarray(w.reshape(layer.weight_shape), jnp.float32)
            exact = np.linalg.norm(matrix(layer, weights), 2)
            assert exact <= float(norm_bound(layer, weights))


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_convolution_norm_at_the_ends_of_float32(size):
    layer = Conv(3, 4, 3, (5, 5), 1, "CIRCULAR")
    w = np.random.default_rng(0).normal(size=layer.weight_shape).astype(np.float32)
    exact = np.linalg.norm(matrix(layer, jnp.asarray(w)), 2) * size
    assert exact <= float(norm_bound(layer, jnp.asarray(w * np.float32(size)))) <= 1.01 * exact


@pytest.mark.parametrize(
    ("name", "activation", "method"),
    [
        *((name, activations.relu, pruning.random) for name in NETWORKS),
        *(("conv readout", activation, pruning.magnitude) for activation in ACTIVATIONS),
        *(("dense", activations.tanh, method) for method in pruning.METHODS.values()),
    ],
    ids=str,
)
def test_conformance_of_the_sandwich(name, activation, method, key):
    """lower <= upper, ascent >= sampling, and no float64 distance in the ball above the bound."""
    network = NETWORKS[name]
    network = networks.Network(network.layers, activation, network.in_shape)
    ball = UnitBall(samples=16, starts=4, steps=5)

    @jax.jit
    @jax.vmap
    def run(key):
        params, masks = pair(network, key, method=method)
        removed = gaps.removed_part(params, masks)
        # Not the jitted one: a jit inside a vmap is batched outside the bound's double precision.
        return gaps.measure_ball(ball, key, network, params, removed)

    keys = jax.random.split(key, 20)
    result = jax.tree.map(np.asarray, run(keys))
    assert (result.gap.lower <= result.gap.upper).all()
    assert (result.gap.lower >= result.sampled).all() and (result.sampled > 0).all()
    params, masks = pair(network, keys[0], method=method)
    x = np.random.default_rng(0).normal(size=(200, *network.in_shape))
    x /= np.sqrt((x**2).sum(axis=tuple(range(1, x.ndim)), keepdims=True))
    distances = np.linalg.norm(difference64(network, params, masks, x), axis=1)
    assert distances.max() <= result.gap.upper[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_pruned_has_gap_zero_exactly(name, key):
    network = NETWORKS[name]
    params, masks = pair(network, key, q=0.0)
    for each in (masks, (None,) * len(params)):
        removed = gaps.removed_part(params, each)
        result = measure_ball(UnitBall(8, 2, 3), key, network, params, removed)
        assert result.gap.lower == result.gap.upper == result.sampled == result.rms == 0


def test_everything_pruned_in_a_linear_layer_leaves_the_target_s_norm(key):
    network = networks.dense((20, 30))
    params, masks = pair(network, key, q=1.0)
    exact = np.linalg.norm(np.asarray(params[0], np.float64), 2)
    ball = UnitBall(samples=64, starts=8, steps=300)
    removed = gaps.removed_part(params, masks)
    gap = measure_ball(ball, key, network, params, removed).gap
    assert 0.9999 * exact <= gap.lower <= exact * (1 + 1e-5)
    assert exact <= gap.upper <= 1.01 * exact


def test_everything_pruned_in_a_middle_layer_leaves_the_target(key):
    network = NETWORKS["dense"]
    params, masks = pair(network, key, q=1.0, which="middle")
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    result = gaps.measure_rows(x, network, params, gaps.removed_part(params, masks))
    target = forward64(network, [np.asarray(w, np.float64) for w in params], x)
    expected = np.linalg.norm(target, axis=1)
    assert result.gap.lower == result.gap.upper == pytest.approx(expected.max(), rel=1e-5)
    assert result.rms**2 == pytest.approx((expected**2).mean() / 5, rel=1e-5)


def test_ascent_finds_the_supremum_of_small_networks(key):
    """Brute force over activation patterns: on each, F - f is linear and its supremum over the
    cone is at most the norm of the linear piece, reached if the singular vector lies inside."""
    network = networks.dense((2, 3, 2))
    angles = np.linspace(0, 2 * np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ball = UnitBall(samples=32, starts=8, steps=40)
    found = []
    for i in range(20):
        params, masks = pair(network, jax.random.fold_in(key, i), q=0.4)
        removed = gaps.removed_part(params, masks)
        gap = measure_ball(ball, key, network, params, removed).gap
        exact = np.linalg.norm(difference64(network, params, masks, circle), axis=1).max()
        assert gap.lower <= exact * (1 + 1e-5)
        found.append(float(gap.lower) / exact)
    assert np.median(found) > 0.9999 and min(found) > 0.9


def test_pruned_norms_follow_the_square_root_and_the_power_three_halves(key):
    """||removed|| / ||W|| -> sqrt(q) at random and q^(3/2) by magnitude, uniform weights."""
    w = np.asarray(laws.sample(laws.UNIFORM, 1.0, jax.random.bits(key, (512, 512))))
    q = 0.1
    level = jnp.int32(round(q * w.size))
    for method, expected in ((pruning.random, q**0.5), (pruning.magnitude, q**1.5)):
        mask = np.asarray(method.mask(jax.random.bits(key, (2, 512, 512))[1], w, level))
        ratio = np.linalg.norm(np.where(mask, 0, w), 2) / np.linalg.norm(w, 2)
        assert ratio == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("arguments", [{"samples": 0}, {"starts": 65}, {"steps": -1}])
def test_bad_balls(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        UnitBall(**arguments)


@pytest.mark.parametrize("exponent", [-30, -10, 0, 10, 18, 30, 38])
def test_lengths_neither_overflow_nor_vanish(exponent):
    """At 10^38 the reciprocal of an entry is below the least normal float."""
    d = np.random.default_rng(0).uniform(-2, 2, (3, 20)).astype(np.float32)
    d *= np.float32(10.0**exponent)
    exact = np.linalg.norm(d.astype(np.float64), axis=0)
    np.testing.assert_allclose(jax.jit(lengths)(d), exact, rtol=1e-6)

"""Models read as stacks, and brackets over the unit ball against brute force in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import (
    CANONICAL,
    applied,
    apply,
    dense_stack,
    outputs64,
    randomly_removed,
    relu64,
    smallest_removed,
)

import jaxprune as jp
from jaxprune import activations, models, networks
from jaxprune.gaps import UnitBall, multiplier_bound
from jaxprune.models import Masks, ball, ball_gap, known

KEY = jax.random.key(3, impl="threefry2x32")
ACTIVATIONS = {
    "relu": (activations.relu, relu64),
    "leaky_relu": (activations.leaky_relu(0.1), lambda a: np.where(a > 0, a, 0.1 * a)),
    "identity": (activations.identity, lambda a: a),
}
ci = pytest.mark.ci


def disc(radii=40, angles=1440):
    """Points of the unit disc, its edge included."""
    r, a = np.meshgrid(np.linspace(0, 1, radii), np.linspace(0, 2 * np.pi, angles))
    return np.stack([r * np.cos(a), r * np.sin(a)], -1).reshape(-1, 2)


def distances64(params, masks, x, fn=relu64):
    """`|F(x) - f(x)|` at rows x."""
    both = [outputs64(p, x, fn) for p in (params, applied(params, masks))]
    return np.linalg.norm(both[0] - both[1], axis=1)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("activation", "scale", "widths"),
    [
        pytest.param(
            activation,
            scale,
            widths,
            marks=() if scale >= 1 and (activation, widths) == ("relu", CANONICAL) else ci,
            id=f"{activation}-{scale}-{len(widths)}",
        )
        for activation in ACTIVATIONS
        for scale in (0.0, 0.1, 1.0, 10.0)
        for widths in ((2, 5), CANONICAL)
    ],
)
def test_brackets_hold_the_gap_over_a_whole_disc(activation, scale, widths):
    s, fn = ACTIVATIONS[activation]
    params = dense_stack(widths, biases=scale)
    masks = smallest_removed(params, 0.4, biases=0.3)
    gap = ball_gap(params, masks, s)
    d = distances64(params, masks, disc(), fn)
    assert gap.lower >= 0.97 * d.max()  # of all inputs of a fine grid
    assert d.max() <= gap.upper and gap.lower <= gap.upper
    assert gap.upper <= 8 * gap.lower


@pytest.mark.ci
def test_one_layer_is_nearly_exact():
    """`sup |P x + q|` over the ball is `sqrt(|P|^2 + q^2)` if q is orthogonal to P's range."""
    params = {
        "weight": np.array([[4.0, 0.0], [0.0, 2.0], [0.0, 0.0]], np.float32),
        "bias": np.array([0.0, 0.0, 4.0], np.float32),
    }
    everything = Masks({name: np.zeros(x.shape, bool) for name, x in params.items()})
    gap = ball_gap(params, everything)
    assert gap.lower == pytest.approx(32**0.5, rel=1e-5)
    assert 32**0.5 <= gap.upper <= 32**0.5 * 1.003  # t = 1
    only = lambda name: ball_gap(params, Masks({name: everything[name]}))
    assert only("weight").lower == pytest.approx(4.0, rel=1e-5)
    assert only("bias").lower == pytest.approx(4.0, rel=1e-5)
    assert 4.0 <= only("bias").upper <= 4.0 * 1.005  # t = 16: sqrt(1 + 1/256)


@ci
def test_many_masks_and_inputs_never_exceed_the_bound():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for seed in range(30):
        params = dense_stack((8, 16, 16, 4), seed, biases=10.0 ** rng.uniform(-2, 1))
        # Of other masks four starts may miss the largest distance.
        masks = models.prune(params, "random", rng.uniform(0.05, 0.9), key=jax.random.key(seed))
        gap = ball_gap(params, masks, domain=UnitBall(16, 4, 20))
        d = distances64(params, masks, x)
        assert d.max() <= gap.upper and gap.lower <= gap.upper
        assert gap.lower > d.max() * 0.98


@pytest.mark.parametrize("biased", [pytest.param(False, marks=ci), True])
def test_the_lower_end_is_no_rounding_error(biased):
    """`W_2 P_1` is nearly 0: in float32 its terms leave more than they sum to."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 64)).astype(np.float32)
    second[-1] = -np.dot(second[:-1].astype(float), first[:-1]) / first[-1]
    exact = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(first, second, strict=True))
    params = {"0.weight": first[:, None], "1.weight": second[None]}
    if biased:
        params["0.bias"] = np.zeros(64, np.float32)
    masks = Masks({"0.weight": np.zeros((64, 1), bool)})
    gap = ball_gap(params, masks, activations.identity)
    # Ascent in float32 may end inside the ball, where distances are smaller; never larger ones.
    assert 0.5 * float(abs(exact)) < gap.lower <= float(abs(exact)) * (1 + 1e-12)


@pytest.mark.parametrize("t", ball.SCALES)
def test_the_lifted_stack_is_the_biased_one(t):
    params = dense_stack((3, 6, 5, 2))
    masks = smallest_removed(params, 0.5, biases=0.5)
    read = known(params)
    network, weights, removed = ball._lifted(read, ball._removed(read, masks), t)
    x = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    further = np.concatenate([x, np.full((9, 1), t, np.float32)], axis=1)
    kept = [w - p for w, p in zip(weights, removed, strict=True)]
    for ws, of in ((weights, params), (kept, applied(params, masks))):
        out = by_hand(network, ws, [None] * 3, further)
        np.testing.assert_allclose(out, outputs64(of, x), rtol=1e-12, atol=1e-12)


def test_the_radius_is_rounded_up_and_scales_are_exact():
    from fractions import Fraction

    for t in ball.SCALES:
        for pixels in (1, 7, 2**31 - 1):
            assert Fraction(ball._radius(t, pixels)) ** 2 >= 1 + Fraction(t) ** 2 * pixels
    tiny = dense_stack((2, 3))
    tiny["layers.0.bias"] = np.array([1.0, 2.0**-126, 3e38], np.float32)
    # Above 1 a smaller one would lose, by 1/16 to 1/2 the large one overflows.
    assert ball._exact_scales(known(tiny)) == [1.0, 2.0, 4.0, 8.0, 16.0]
    tiny["layers.0.bias"][1] = 3 * 2.0**-149
    assert ball._exact_scales(known(tiny)) == [1.0]


@pytest.mark.ci
def test_without_biases_it_is_the_packages_own_bound():
    # A bound of either kind may be the smaller by a few percent; here neither is by much.
    params = dense_stack(seed=1, biases=0.0)
    masks = smallest_removed(params, 0.5)
    weights = tuple(params.values())
    removed = tuple(np.where(masks[p], np.float32(0), w) for p, w in params.items())
    bound = jax.jit(multiplier_bound, static_argnums=0)
    expected = float(bound(networks.dense(CANONICAL), weights, removed))
    gap = ball_gap(params, masks)
    assert gap.upper == pytest.approx(expected, rel=1e-6)
    # Biases that are 0 cost next to nothing: t = 1/16.
    zeros = params | {
        f"layers.{i}.bias": np.zeros(len(w), np.float32) for i, w in enumerate(weights)
    }
    lifted = ball_gap(zeros, masks)
    assert lifted.lower == pytest.approx(gap.lower, rel=0.02)
    assert gap.upper * 0.999 <= lifted.upper <= 1.02 * gap.upper


@pytest.mark.ci
def test_nothing_removed_is_no_gap():
    for params in (dense_stack(), dense_stack(biases=0.0)):
        assert ball_gap(params, smallest_removed(params, 0.0, biases=0.0)) == (0.0, 0.0)


@ci
@pytest.mark.parametrize("biases", [0.0, 1.0])
def test_no_masks_are_no_gap(biases):
    params = dense_stack(biases=biases)
    assert ball_gap(params, Masks()) == (0.0, 0.0)
    assert ball_gap(params, smallest_removed(params, 0.0)) == (0.0, 0.0)


def test_flax_and_equinox_layouts_are_one_network():
    params = dense_stack()
    masks = smallest_removed(params, 0.5, biases=0.5)
    turn = lambda name, x: np.asarray(x).T if name.endswith("weight") else np.asarray(x)
    rename = lambda name: name.replace("weight", "kernel")
    flax = {rename(name): turn(name, x) for name, x in params.items()}
    flax_masks = Masks({rename(name): turn(name, x) for name, x in masks.items()})
    assert ball_gap(flax, flax_masks) == ball_gap(params, masks)


def conv_params(layout, biased=False):
    """Two convolutions and a read-out on 6 x 6 images, laid out as in Equinox or in Flax."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 3
    first, second, out = draw(3, 1, 3, 3), draw(4, 3, 3, 3), draw(5, 4 * 36)
    biases = {f"{i}.bias": draw(n) for i, n in enumerate((3, 4, 5)) if biased}
    if layout == "first":
        ones = lambda name, b: b if name == "2.bias" else b[:, None, None]
        biases = {name: ones(name, b) for name, b in biases.items()}
        return {"0.weight": first, "1.weight": second, "2.weight": out, **biases}
    flat = out.reshape(5, 4, 6, 6).transpose(2, 3, 1, 0).reshape(-1, 5)
    turned = [w.transpose(2, 3, 1, 0) for w in (first, second)]
    return {"0.kernel": turned[0], "1.kernel": turned[1], "2.kernel": flat, **biases}


CONV = jp.convolutional((1, 3, 4), 6, 3, outputs=5)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_convolutions_are_read_in_either_layout(layout):
    for biased in (False, True):
        read = known(conv_params(layout, biased), CONV)
        weights = list(conv_params("first").values())
        for w, expected in zip(read.weights, weights, strict=True):
            np.testing.assert_array_equal(w, expected)
        biases = [conv_params("last", biased).get(f"{i}.bias") for i in range(3)]
        for b, expected in zip(read.offsets, biases, strict=True):
            assert (b is None) == (not biased)
            np.testing.assert_array_equal(b, expected, strict=biased)


@ci
@pytest.mark.parametrize("layout", ["first", "last"])
def test_convolutions(layout):
    params = conv_params(layout)
    masks = smallest_removed(params, 0.5)
    read = known(params, CONV)
    removed = tuple(p for p, _ in ball._removed(read, masks))
    upper = float(jax.jit(multiplier_bound, static_argnums=0)(CONV, read.weights, removed))
    gap = ball_gap(params, masks, CONV)
    assert gap.upper == pytest.approx(upper, rel=1e-6) and 0 < gap.lower < gap.upper
    x = np.random.default_rng(0).normal(size=(2000, 36))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert distances(CONV, params, masks, x).max() <= gap.lower * 1.001


def drawn(network, seed=0, biases=1.0):
    """Weights and biases of any network, under names as PyTorch has them."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, layer in enumerate(network.layers):
        w = rng.normal(size=layer.weight_shape) / layer.fans[0] ** 0.5
        params[f"{i}.weight"] = w.astype(np.float32)
        params[f"{i}.bias"] = (biases * rng.normal(size=len(w))).astype(np.float32)
    return params


def layer_by_hand(layer, w, x):
    """One layer at images x, in float64: a sum over taps, or a product with flattened images."""
    x = x.astype(np.float64)
    if isinstance(layer, networks.Dense):
        return np.einsum("oi,ni->no", w.astype(np.float64), x.reshape(len(x), -1))
    k, before = layer.kernel, 0 if layer.padding == "VALID" else (layer.kernel - 1) // 2
    after = 0 if layer.padding == "VALID" else k - 1 - before
    mode = "wrap" if layer.padding == "CIRCULAR" else "constant"
    x = np.pad(x, [(0, 0), (0, 0), (before, after), (before, after)], mode=mode)
    rows, columns = (side - k + 1 for side in x.shape[2:])
    return sum(
        np.einsum("oi,nihw->nohw", w[:, :, i, j], x[:, :, i : i + rows, j : j + columns])
        for i in range(k)
        for j in range(k)
    )[:, :, :: layer.stride, :: layer.stride]


def by_hand(network, weights, biases, x):
    """F at images x, in float64; a bias of None is 0."""
    fn = ACTIVATIONS[network.activation.name.partition("(")[0]][1]
    for i, (layer, w, b) in enumerate(zip(network.layers, weights, biases, strict=True)):
        x = layer_by_hand(layer, w, x if i == 0 else fn(x))
        x = x if b is None else x + b.astype(np.float64).reshape(1, -1, *[1] * (x.ndim - 2))
    return x


def distances(network, params, masks, x):
    """`|F(x) - f(x)|` at rows x, in float64, of the networks as they are, biases added."""
    outputs = [
        by_hand(network, read.weights, read.offsets, x.reshape(-1, *network.in_shape))
        for read in (known(p, network) for p in (params, applied(params, masks)))
    ]
    return np.linalg.norm((outputs[0] - outputs[1]).reshape(len(x), -1), axis=1)


def farthest(of, dimension, seed=0, points=20_000, rounds=60):
    """The largest value found by points of the ball and ever smaller steps from the best."""
    rng = np.random.default_rng(seed)
    into = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    x = into(rng.normal(size=(points, dimension)))
    values = of(x)
    for i in range(rounds):
        best = x[np.argsort(values)[-40:]]
        step = 0.5 * 0.85**i * rng.normal(size=(10, *best.shape))
        x = np.concatenate([best, into((best + step).reshape(-1, dimension))])
        values = of(x)
    return values.max()


TINY = {
    "same": jp.convolutional((1, 2, 2), 2, 2),  # an even kernel: no padding before the image
    "strides": jp.convolutional((1, 2), 3, 3, strides=2, outputs=2),
    "valid": jp.convolutional((1, 3, 2), 3, 2, padding="VALID"),
    "circular": jp.convolutional(
        (1, 2, 2), 3, 3, padding="CIRCULAR", activation=activations.leaky_relu(0.1)
    ),
}


@ci
@pytest.mark.parametrize("name", TINY)
def test_biased_convolutions_hold_the_gap_over_the_whole_ball(name):
    network = TINY[name]
    for seed, scale in enumerate((0.0, 0.1, 1.0, 10.0)):
        params = drawn(network, seed, scale)
        masks = smallest_removed(params, 0.4, biases=0.5 if scale else None)
        gap = ball_gap(params, masks, network)
        of = lambda x, p=params, m=masks: distances(network, p, m, x)
        found = farthest(of, np.prod(network.in_shape))
        assert found <= gap.upper and gap.lower <= gap.upper
        assert 0.9 * found <= gap.lower <= 1.001 * found
        assert gap.upper <= 20 * gap.lower


LAYERS = [
    (padding, stride, kernel)
    for padding in networks.PADDINGS
    for stride in (1, 2, 3)
    for kernel in (1, 2, 3, 4)
]


def read_by_the_first(network):
    """Marks of the pixels of the further channel that its tap reads, from the padding's rule."""
    layer = network.layers[0]
    if isinstance(layer, networks.Dense):
        sides = layer.image[1:]
        return (np.arange(np.prod(sides, dtype=int)) < ball._pixels(layer)).reshape(sides)
    before = 0 if layer.padding == "VALID" else (layer.kernel - 1) // 2
    at = [o * layer.stride - before + (layer.kernel - 1) // 2 for o in range(layer.out_shape[1])]
    marks = np.zeros(layer.size)
    marks[np.ix_(at, at)] = 1.0  # an index beyond the image is an error, or is met twice
    assert min(at) >= 0 and marks.sum() == ball._pixels(layer) == len(at) ** 2
    return marks


def lifted_and_not(network, params, masks, t):
    """F and f at a few images, by hand: with biases, and as lifted at (x, t) without any."""
    read = known(params, network)
    wider, weights, removed = ball._lifted(read, ball._removed(read, masks), t)
    x = np.random.default_rng(1).normal(size=(5, *network.in_shape))
    further = np.broadcast_to(t * read_by_the_first(network), (5, 1, *network.in_shape[1:]))
    kept = [w - p for w, p in zip(weights, removed, strict=True)]
    for biased, lifted in ((read, weights), (known(applied(params, masks), network), kept)):
        yield (
            by_hand(network, biased.weights, biased.offsets, x),
            by_hand(wider, lifted, [None] * len(lifted), np.concatenate([x, further], axis=1)),
        )


@pytest.mark.parametrize(("padding", "stride", "kernel"), LAYERS)
@pytest.mark.parametrize("outputs", [None, 3])
def test_the_lifted_convolutions_are_the_biased_ones(padding, stride, kernel, outputs):
    """At every output the tap reads the image: also at its edges, at strides, in the read-out."""
    network = jp.convolutional(
        (2, 3, 2), 14, kernel, strides=(stride, 1), padding=padding, outputs=outputs
    )
    params = drawn(network)
    masks = smallest_removed(params, 0.5, biases=0.5)
    for t in (0.0625, 1.0):
        for biased, lifted in lifted_and_not(network, params, masks, t):
            np.testing.assert_allclose(lifted, biased, rtol=1e-12, atol=1e-12)


def test_lifted_dense_layers_behind_images_are_the_biased_ones():
    """Also where a dense layer is the first, or hands the further channel on."""
    conv = networks.Conv(1, 2, 3, (3, 3))
    dense = networks.Dense
    for layers in (
        (conv, dense(18, 4, (2, 3, 3)), dense(4, 2)),
        (dense(18, 4, (2, 3, 3)), dense(4, 2)),
        (dense(4, 3), dense(3, 2)),
    ):
        network = networks.Network(layers, activations.relu, layers[0].in_shape)
        params = drawn(network)
        masks = smallest_removed(params, 0.5, biases=0.5)
        for biased, lifted in lifted_and_not(network, params, masks, 0.25):
            np.testing.assert_allclose(lifted, biased, rtol=1e-12, atol=1e-12)


def test_a_tap_on_the_padding_would_be_seen(monkeypatch):
    """The first tap of a 3 x 3 kernel reads zeros at the image's edge: biases would vanish."""
    corner = np.zeros((1, 3, 3), np.float32)
    corner[0, 0, 0] = 1.0
    network = jp.convolutional((1, 2, 2), 5, 3)
    params = drawn(network)
    masks = smallest_removed(params, 0.5)
    monkeypatch.setattr(ball, "_kappa", lambda layer, alone: corner)
    ((biased, lifted), _) = lifted_and_not(network, params, masks, 1.0)
    differs = np.abs(biased - lifted).max(axis=(0, 1)) > 1e-6
    assert differs[0].all() and differs[:, 0].all() and not differs[2:, 2:].any()


def test_a_read_out_shares_its_bias_among_pixels_exactly():
    """36 pixels: 32 of them take 1/32 each, as long as what they take is a float."""
    layer = networks.Dense(36, 2, (1, 6, 6))
    np.testing.assert_array_equal(ball._kappa(layer), [2.0**-5] * 32 + [0.0] * 4)
    params = drawn(CONV, biases=1.0)
    scales = ball._exact_scales(known(params, CONV))
    assert scales == [s / 8 for s in ball.SCALES]  # 1 / sqrt(36), to a power of two
    params["2.bias"][:] = 2.0**-147
    assert ball._exact_scales(known(params, CONV)) == scales[:4]  # by 1/8 and 32: 2^-149
    params["2.bias"][0] = 2.0**127
    assert ball._exact_scales(known(params, CONV)) == []


@ci
def test_without_an_exact_scale_nothing_is_proved():
    params = drawn(CONV, biases=1.0)
    params["2.bias"][:] = 2.0**-147
    params["2.bias"][0] = 2.0**127
    assert ball_gap(params, smallest_removed(params, 0.5, biases=0.5), CONV).upper == np.inf


ONE = {
    "same": jp.convolutional((1, 3), 5, 3),
    "strides": jp.convolutional((1, 3), 5, 3, strides=2),
    "valid": jp.convolutional((1, 3), 5, 3, padding="VALID"),
}


@ci
@pytest.mark.parametrize("name", ONE)
def test_biases_of_one_convolution_alone(name):
    """`F(x) - f(x)` is q at each of N pixels, whatever x: `|q| sqrt(N)`. t^2 N is 128 or more."""
    network, n = ONE[name], {"same": 25, "strides": 9, "valid": 9}[name]
    params = drawn(network)
    masks = Masks({"0.bias": np.array([False, True, False])})
    expected = np.linalg.norm(params["0.bias"][[0, 2]].astype(np.float64)) * n**0.5
    gap = ball_gap(params, masks, network)
    assert gap.lower == pytest.approx(expected, rel=1e-5)
    assert expected <= gap.upper <= expected * (1 + 1 / 128) ** 0.5 * 1.003


@ci
def test_one_convolution_is_nearly_exact():
    """Where P x and q are in different channels, `sup |P x + q|` is `sqrt(|P|^2 + N q^2)`."""
    network = jp.convolutional((1, 2), 4, 2, padding="CIRCULAR")
    params = {
        "weight": np.stack([np.ones((1, 2, 2)), np.zeros((1, 2, 2))]).astype(np.float32),
        "bias": np.array([0.0, 1.0], np.float32),
    }  # |P| = 4, at constant images
    everything = Masks({name: np.zeros(x.shape, bool) for name, x in params.items()})
    gap = ball_gap(params, everything, network)
    assert gap.lower == pytest.approx(32**0.5, rel=1e-4)
    assert 32**0.5 <= gap.upper <= 32**0.5 * 1.003  # t = 1/4


@ci
def test_layouts_of_convolutions_with_biases_are_one_network():
    gaps = []
    for layout in ("first", "last"):
        params = conv_params(layout, biased=True)
        masks = smallest_removed(params, 0.5, biases=0.5)
        assert masks["0.bias"].shape == ((3, 1, 1) if layout == "first" else (3,))
        read = known(params, CONV)
        np.testing.assert_array_equal(
            read.offsets[0], conv_params("last", biased=True)["0.bias"], strict=True
        )
        gaps.append(ball_gap(params, masks, CONV))
    assert gaps[0] == gaps[1] and 0 < gaps[0].lower < gaps[0].upper
    # As PyTorch has it: outputs first, biases without further axes.
    flat = conv_params("first", biased=True)
    flat |= {name: x.reshape(-1) for name, x in flat.items() if name.endswith("bias")}
    flat_masks = smallest_removed(flat, 0.5, biases=0.5)
    assert ball_gap(flat, flat_masks, CONV) == gaps[0]


def test_counters_and_keys_belong_to_no_layer():
    params = dense_stack()
    assert known(params | {"steps": np.int32(3) * np.ones(1, np.int32), "key": KEY}).biased


def test_a_safetensors_file_is_a_model(tmp_path):
    params = dense_stack()
    save_file(params, tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    masks = smallest_removed(loaded, 0.8)
    masks.save(tmp_path / "masks.safetensors")
    masks = Masks.load(tmp_path / "masks.safetensors", loaded)
    assert known(loaded).paths == tuple(f"layers.{i}.weight" for i in range(3))
    assert ball_gap(loaded, masks) == ball_gap(params, masks)
    assert "untouched: 3 arrays of 27 weights, 0 removed: layers.0.bias" in str(
        masks.summary(loaded)
    )


@ci
def test_a_safetensors_file_of_convolutions_is_a_model(tmp_path):
    save_file(conv_params("first"), tmp_path / "conv.safetensors")
    loaded = load_file(tmp_path / "conv.safetensors")
    masks = smallest_removed(loaded, 0.5)
    assert ball_gap(loaded, masks, CONV) == ball_gap(conv_params("first"), masks, CONV)


@pytest.mark.parametrize("layout", [pytest.param("first", marks=ci), "last"])
def test_what_was_read_is_a_model(layout):
    """A file's stack is compared on data, by the names and layouts of its arrays."""
    params = conv_params(layout, biased=True)
    masks = smallest_removed(params, 0.5, biases=0.5)
    x = np.random.default_rng(0).normal(size=(70, 1, 6, 6)).astype(np.float32)
    moved = models.moves(known(params, CONV), masks, x)
    expected = distances(CONV, params, masks, x.reshape(70, -1))
    np.testing.assert_allclose(moved.distances, expected, rtol=1e-4)
    assert moved.floats == "float32" and 0 < moved.float64_error < 1e-4


@ci
@pytest.mark.parametrize("layout", ["first", "last"])
def test_what_was_read_is_compared_with_another(layout):
    params = conv_params(layout, biased=True)
    masks = smallest_removed(params, 0.5, biases=0.5)
    x = np.random.default_rng(0).normal(size=(70, 1, 6, 6)).astype(np.float32)
    moved = models.moves(known(params, CONV), masks, x)
    other = known(applied(params, masks), CONV)
    np.testing.assert_array_equal(
        models.moves(known(params, CONV), other, x).distances, moved.distances
    )


def test_layers_come_in_the_order_of_their_numbers():
    params = {f"layers.{i}.weight": np.eye(3, dtype=np.float32) * (i + 1) for i in range(12)}
    read = known(params)
    assert [w[0, 0] for w in read.weights] == list(range(1, 13))
    order = list(reversed(read.paths))
    assert known(params, order=order).paths == tuple(order)


ORDER = ["second.weight", "first.weight"]


def out_of_order(params, x, fn=jax.nn.relu):
    x = fn(x @ params["second.weight"].T + params["second.bias"][None])
    return x @ params["first.weight"].T + params["first.bias"][None]


def test_a_model_is_compared_with_what_was_read():
    inner = dense_stack((4, 4, 4))
    params = {
        name.replace("layers.0", "second").replace("layers.1", "first"): p
        for name, p in inner.items()
    }
    read = known((params, out_of_order), order=ORDER)
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    out = np.asarray(jax.jit(lambda x: read(x))(x))
    np.testing.assert_allclose(out.T, outputs64(inner, x.T), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"first\.weight -> second\.weight with relu"):
        known((params, out_of_order))
    with pytest.raises(ValueError, match="with identity between"):
        known((params, out_of_order), activations.identity, order=ORDER)
    for other in (
        lambda p, x: out_of_order(p, x, jnp.tanh),
        lambda p, x: out_of_order(p, x)[:, :2],
        lambda p, x: out_of_order(p, x) * jnp.nan,
    ):
        with pytest.raises(ValueError, match="with relu between"):
            known((params, other), order=ORDER)


def by_rows(params, x):
    """Weight normalisation of weights that are stored normalised."""
    w = params["layers.0.weight"]
    x = jax.nn.relu(x @ (w / jnp.linalg.norm(w, axis=1, keepdims=True)).T)
    return x @ params["layers.1.weight"].T


def read_once(params, x):
    """Tied weights: the second copy is there, and never read."""
    w = params["layers.0.weight"]
    return jax.nn.relu(x @ w.T) @ w.T


def tied():
    params = dense_stack((4, 4, 4), biases=0.0)
    w = params["layers.0.weight"].astype(np.float64)
    # Entries of 1/2 alone: rows of norm 1 without rounding.
    params["layers.0.weight"] = (np.sign(w) / 2).astype(np.float32)
    params["layers.1.weight"] = params["layers.0.weight"]
    masks = randomly_removed(params, 0.5, 3)
    return params, Masks({"layers.0.weight": masks["layers.0.weight"]})


@pytest.mark.parametrize("apply", [by_rows, pytest.param(read_once, marks=ci)])
def test_the_pruned_model_is_compared_with_the_pruned_stack(apply):
    params, masks = tied()
    known((params, apply))
    with pytest.raises(ValueError, match=r"pruned model: is not layers\.0\.weight -> layers\.1"):
        ball_gap((params, apply), masks)


@ci
@pytest.mark.parametrize("other", [by_rows, read_once])
def test_such_a_model_passes_where_nothing_is_pruned(other):
    params, masks = tied()
    assert ball_gap((params, other), Masks()) == (0.0, 0.0)
    assert ball_gap((params, apply), masks) == ball_gap(params, masks)


def test_a_model_has_the_bracket_of_its_parameters():
    params = dense_stack(biases=0.0)
    masks = smallest_removed(params, 0.5)
    assert ball_gap((params, apply), masks) == ball_gap(params, masks)


@pytest.mark.parametrize("fn", [jax.nn.gelu, pytest.param(jax.nn.silu, marks=ci)])
def test_activations_that_look_alike_far_out_are_others(fn):
    params = {
        "layers.0.weight": np.array([[100.0], [-100.0], [0.1]], np.float32),
        "layers.1.weight": np.array([[1.0, 1.0, 1.0]], np.float32),
    }
    with pytest.raises(ValueError, match="with relu between"):
        known((params, lambda p, x: apply(p, x, fn)))


@ci
def test_a_large_bias_of_the_output_hides_nothing():
    params = dense_stack((4, 8, 3))
    params["layers.1.bias"] += np.float32(1e6)
    with pytest.raises(ValueError, match="with relu between"):
        known((params, lambda p, x: apply(p, x, lambda a: jax.nn.leaky_relu(a, 1e-3))))
    assert known((params, apply)).biased


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_no_stack(kind):
    """Also where the outputs are float32 again, and where the parameters have the type."""
    params = dense_stack((4, 8, 3))
    half = {name: p.astype(kind) for name, p in params.items()}
    own = lambda p, x: apply(p, x, kind=kind)
    hidden = lambda p, x: apply(p, x, lambda a: jax.nn.relu(a.astype(kind)).astype(a.dtype))
    for model in ((params, own), (params, hidden), (half, own)):
        with pytest.raises(ValueError, match=f"computes in {jnp.dtype(kind)}; float32"):
            known(model)
    assert known((half, lambda p, x: apply(p, x, kind=jnp.float32))).biased


@ci
@pytest.mark.parametrize("kind", [None, jnp.float32])
@pytest.mark.parametrize("biases", [0.0, 1.0, 100.0])
def test_honest_deep_models_pass(kind, biases):
    """Also those that compute in float32 whatever they are given."""
    params = dense_stack((64, 512, 512, 512, 512, 10), biases=biases)
    for p in (params, applied(params, smallest_removed(params, 0.5))):
        assert len(known((p, lambda p, x: apply(p, x, kind=kind))).weights) == 5


def of_a_loop(params, x):
    """Its state is float32, so that float64 does not fit into it."""
    zero = jnp.zeros(x.shape, jnp.float32)
    return apply(params, jax.lax.fori_loop(0, 1, lambda _, c: c + x, zero))


def test_a_model_that_float64_breaks_is_compared_in_its_own_floats():
    params = dense_stack()
    assert known((params, of_a_loop)).paths == known(params).paths
    with pytest.raises(ValueError, match=r"is not layers\.0\.weight -> "):
        known((params, lambda p, x: of_a_loop(p, 1.001 * x)))


OWN = {
    "shape": lambda p, x: x.reshape(-1, 3) @ p["w"],
    "arguments": lambda p, x, t: x @ p["w"].T,
    "embedding": lambda p, x: jnp.asarray(p["w"])[x],
    "depthwise": lambda p, x: jax.lax.conv_general_dilated(x, p["w"], (1,), "SAME"),
    "own": lambda p, x: 1 / 0,
}


@pytest.mark.parametrize("name", OWN)
def test_what_a_model_raises_is_said_in_one_line(name):
    model = {"w": W}, OWN[name]
    for call in (known, lambda model: ball_gap(model, Masks())):
        with pytest.raises(
            ValueError, match=r"model: a stack takes inputs of shape \(2,\), it said"
        ):
            call(model)


HALF = activations.Activation(
    "half relu", lambda a: 0.5 * jax.nn.relu(a), lambda a, d: 0.5 * d, 0.0, 0.5, True, 1e-15, 1e-15
)
W = np.ones((3, 2), np.float32)
HUGE = {name: 1e30 * w for name, w in dense_stack(biases=0.0).items()}
NAN = np.full((3, 2), np.nan, np.float32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: known({"bias": W[0]}), "no array of two or more axes"),
        (lambda: known({"a.weight": W, "norm.scale": W[0]}), "norm.scale: belongs to no layer"),
        (lambda: known({"w1": W, "w2": W.T, "b": W[0]}), "b: belongs to no layer"),
        (lambda: known({"w": W, "b": W[:, 0], "bias": W[:, 0]}), "bias: belongs to no layer"),
        (lambda: known({"w": W, "b": W[0]}), r"b has shape \(2,\): \(3,\) is needed"),
        (lambda: known({"a": W, "b.w": W}), "b.w takes 2 features: the one before gives 3"),
        (lambda: known({"v": W.astype(np.int8), "w": W}), r"v: int8 of shape \(3, 2\); floats"),
        (lambda: known({"v": W.astype(complex), "w": W}), "v: complex128 of shape"),
        (
            lambda: known({"v": np.ones((0, 3), np.float32), "w": W}),
            r"v: float32 of shape \(0, 3\)",
        ),
        (lambda: known({"w": W, "b": np.ones(3, int)}), r"b: int64 of shape \(3,\)"),
        (lambda: known(({"v": W > 0, "w": W}, lambda p, x: x @ W.T)), "v: bool of shape"),
        (
            lambda: known(({"w": W}, lambda p, x: (x @ p["w"].T, x))),
            "model: gives tuple; one array",
        ),
        (lambda: known(({"w": W}, lambda p, x: x @ p["w"].T > 0)), "model: gives bool of shape"),
        (lambda: known({"w": W.astype(">f4")}), "w is >f4: the machine's own byte order"),
        (lambda: known({"w": np.ma.array(W)}), "w: a masked array, whose mask would be lost"),
        (lambda: known({"w": W}, order=["v"]), "each of 'w' once"),
        (lambda: known({"w": W}, order=["w", "w"]), "each of 'w' once"),
        (lambda: known({"w": W}, "relu"), "stack = 'relu'"),
        (lambda: known({"w": W}, jp.dense((3, 2))), r"w has shape \(3, 2\): \(2, 3\) is needed"),
        (lambda: known({"w": W}, jp.dense((2, 3, 3))), "has 1 weight arrays"),
        (lambda: known({"w": W.reshape(3, 2, 1, 1)}), "convolutions need their Network"),
        (lambda: known({"w": NAN}), "w: not all entries are finite"),
        (lambda: known({"w": W.astype(float) / 3}), "w: float64 with more digits than float32"),
        (lambda: known({"w": W.astype(float) * 1e300}), "more digits than float32"),
        (
            lambda: known(
                {**conv_params("first"), "0.bias": np.zeros((3, 6, 6), np.float32)}, CONV
            ),
            r"0.bias has shape \(3, 6, 6\): \(3,\) is needed",
        ),
        (
            lambda: known({**conv_params("first"), "2.bias": np.zeros((5, 1, 1))}, CONV),
            r"2.bias has shape \(5, 1, 1\)",
        ),
        (
            lambda: ball_gap(
                conv_params("first", biased=True),
                Masks(),
                jp.convolutional((1, 3, 4), 6, 3, outputs=5, activation=jp.tanh),
            ),
            "biases need a positively",
        ),
        (lambda: ball_gap({"w": W, "b": W[:, 0]}, Masks(), jp.tanh), "biases need a positively"),
        (lambda: ball_gap({"w": W, "b": W[:, 0]}, Masks(), HALF), r"half relu: .* s\(1\) = 1"),
        (
            lambda: ball_gap({"w": W, "gate": np.ones(2, int)}, Masks({"gate": W[0] < 0})),
            "mask of gate: no part of the stack w",
        ),
        (lambda: ball_gap({"w": W}, Masks({"v": W > 0})), "mask = 'v'"),
        (lambda: ball_gap({"w": W}, Masks({"w": W.T > 0})), "does not fit"),
        (lambda: ball_gap(HUGE, smallest_removed(HUGE, 0.5)), "overflows in"),
        (lambda: ball_gap({"w": W}, {"w": W > 0}), "the Masks that prune gives"),
        (lambda: ball_gap({"w": W}, Masks(), domain="ball"), "domain = 'ball'"),
        (lambda: ball_gap({"w": W}, Masks(), seed=-1), "seed = -1"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@ci
def test_without_biases_other_activations_do():
    params = dense_stack((4, 8, 3), biases=0.0)
    gap = ball_gap(params, smallest_removed(params, 0.5), jp.tanh)
    assert 0 < gap.lower < gap.upper < 10 * gap.lower


@pytest.mark.ci
def test_a_bias_below_normal_numbers_is_no_other_network():
    """Behind an image of two pixels half of the bias is no float32; the gap is 2^-149."""
    least = np.float32(2.0**-149)
    network = networks.Network(
        (networks.Conv(1, 2, 1, (1, 2)), networks.Dense(4, 1, (2, 1, 2))),
        activations.relu,
        (1, 1, 2),
    )
    params = {
        "conv1": {"weight": np.array([1, -1], np.float32).reshape(2, 1, 1, 1)},
        "dense2": {
            "weight": np.array([[2, 0, 2, 0]], np.float32) * least,
            "bias": np.array([-1], np.float32) * least,
        },
    }
    gone = {"dense2.weight": np.zeros((1, 4), bool), "dense2.bias": np.zeros(1, bool)}
    gap = ball_gap(params, Masks(gone), network)
    assert gap.lower <= 2.0**-149 <= gap.upper

"""Models read as stacks, and brackets over the unit ball against brute force in NumPy's float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxprune as jp
from jaxprune import activations, models, networks
from jaxprune.gaps import UnitBall, multiplier_bound
from jaxprune.models import Masks, ball, ball_gap, known

KEY = jax.random.key(3, impl="threefry2x32")
ACTIVATIONS = {
    "relu": (activations.relu, lambda a: np.maximum(a, 0.0)),
    "leaky_relu": (activations.leaky_relu(0.1), lambda a: np.where(a > 0, a, 0.1 * a)),
    "identity": (activations.identity, lambda a: a),
}


def stack(widths, seed=0, biases=1.0):
    """Parameters with outputs first; no biases if their scale is 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        w = rng.normal(size=(b, a)) / a**0.5
        params[f"layers.{i}.weight"] = w.astype(np.float32)
        if biases:
            params[f"layers.{i}.bias"] = (biases * rng.normal(size=b)).astype(np.float32)
    return params


def forward(params, x, fn, masks=()):
    """F at rows x, in float64."""
    wide = {k: np.where(masks[k], v, 0) if k in masks else v for k, v in params.items()}
    count = sum(name.endswith("weight") for name in wide)
    for i in range(count):
        w = wide[f"layers.{i}.weight"].astype(np.float64)
        x = x @ w.T + wide.get(f"layers.{i}.bias", np.zeros(len(w), np.float32)).astype(np.float64)
        x = fn(x) if i < count - 1 else x
    return x


def disc(radii=40, angles=1440):
    """Points of the unit disc, its edge included."""
    r, a = np.meshgrid(np.linspace(0, 1, radii), np.linspace(0, 2 * np.pi, angles))
    return np.stack([r * np.cos(a), r * np.sin(a)], -1).reshape(-1, 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("widths", [(2, 5), (2, 12, 12, 3)])
def test_brackets_hold_the_gap_over_a_whole_disc(activation, scale, widths):
    s, fn = ACTIVATIONS[activation]
    params, x = stack(widths, biases=scale), disc()
    masks = models.prune(params, amount=0.4)
    if scale:
        masks = masks & models.prune(params, amount=0.3, layers="*.bias")
    gap = ball_gap(params, masks, s)
    d = np.linalg.norm(forward(params, x, fn) - forward(params, x, fn, masks), axis=1)
    assert gap.lower >= 0.97 * d.max()  # of all inputs of a fine grid
    assert d.max() <= gap.upper and gap.lower <= gap.upper
    assert gap.upper <= 8 * gap.lower


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
    assert 4.0 <= only("bias").upper <= 4.0 * 1.04  # t = 4: sqrt(1 + 1/16)


def test_many_masks_and_inputs_never_exceed_the_bound():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for seed in range(30):
        params = stack((8, 16, 16, 4), seed, biases=10.0 ** rng.uniform(-2, 1))
        masks = models.prune(params, "random", rng.uniform(0.05, 0.9), key=jax.random.key(seed))
        gap = ball_gap(params, masks, domain=UnitBall(16, 4, 20))
        fn = ACTIVATIONS["relu"][1]
        d = np.linalg.norm(forward(params, x, fn) - forward(params, x, fn, masks), axis=1)
        assert d.max() <= gap.upper and gap.lower <= gap.upper
        assert gap.lower > d.max() * 0.98


@pytest.mark.parametrize("t", ball.SCALES)
def test_the_lifted_stack_is_the_biased_one(t):
    params = stack((3, 6, 5, 2))
    masks = models.prune(params, amount=0.5) & models.prune(params, amount=0.5, layers="*.bias")
    read = known(params)
    network, weights, removed = ball._lifted(read, ball._removed(read, masks), t)
    x = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    column = np.concatenate([x, np.full((9, 1), t, np.float32)], axis=1).T
    fn = ACTIVATIONS["relu"][1]
    kept = [w - p for w, p in zip(weights, removed, strict=True)]
    for ws, of in ((weights, ()), (kept, masks)):
        out = np.asarray(network(tuple(map(jnp.asarray, ws)), jnp.asarray(column))).T
        np.testing.assert_allclose(out, forward(params, x, fn, of), rtol=1e-5, atol=1e-5)


def test_the_radius_is_rounded_up_and_scales_are_exact():
    from fractions import Fraction

    for t in ball.SCALES:
        assert Fraction(ball._radius(t)) ** 2 >= 1 + Fraction(t) ** 2
    tiny = stack((2, 3))
    tiny["layers.0.bias"] = np.array([1.0, 2.0**-126, 3e38], np.float32)
    # By 2 and 4 the small one loses, by 1/16 to 1/2 the large one overflows.
    assert ball._exact_scales(known(tiny)) == [1.0, 2.0, 4.0]
    tiny["layers.0.bias"][1] = 3 * 2.0**-149
    assert ball._exact_scales(known(tiny)) == [1.0]


def test_without_biases_it_is_the_packages_own_bound():
    params = stack((6, 10, 10, 3), biases=0.0)
    masks = models.prune(params, amount=0.5)
    weights = tuple(map(jnp.asarray, params.values()))
    removed = tuple(jnp.where(masks[p], 0, w) for p, w in params.items())
    bound = jax.jit(multiplier_bound, static_argnums=0)
    expected = float(bound(networks.dense((6, 10, 10, 3)), weights, removed))
    gap = ball_gap(params, masks)
    assert gap.upper == pytest.approx(expected, rel=1e-6)
    # Biases that are 0 cost next to nothing: t = 1/16.
    zeros = params | {
        f"layers.{i}.bias": np.zeros(len(w), np.float32) for i, w in enumerate(weights)
    }
    lifted = ball_gap(zeros, masks)
    assert lifted.lower == pytest.approx(gap.lower, rel=0.02)
    assert gap.upper * 0.999 <= lifted.upper <= 1.02 * gap.upper


def test_nothing_removed_is_no_gap():
    params = stack((4, 8, 3))
    assert ball_gap(params, Masks()) == (0.0, 0.0)
    assert ball_gap(params, models.prune(params, amount=0.0)) == (0.0, 0.0)
    unbiased = stack((4, 8, 3), biases=0.0)
    assert ball_gap(unbiased, Masks()) == (0.0, 0.0)


def test_flax_and_equinox_layouts_are_one_network():
    params = stack((6, 9, 4))
    masks = models.prune(params, amount=0.5)
    turn = lambda name, x: np.asarray(x).T if name.endswith("weight") else np.asarray(x)
    rename = lambda name: name.replace("weight", "kernel")
    flax = {rename(name): turn(name, x) for name, x in params.items()}
    flax_masks = Masks({rename(name): turn(name, x) for name, x in masks.items()})
    assert ball_gap(flax, flax_masks) == ball_gap(params, masks)


def conv_params(layout):
    """Two convolutions and a read-out on 6 x 6 images, without biases."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 3
    first, second, out = draw(3, 1, 3, 3), draw(4, 3, 3, 3), draw(5, 4 * 36)
    if layout == "first":
        return {"0.weight": first, "1.weight": second, "2.weight": out}
    flat = out.reshape(5, 4, 6, 6).transpose(2, 3, 1, 0).reshape(-1, 5)
    turned = [w.transpose(2, 3, 1, 0) for w in (first, second)]
    return {"0.kernel": turned[0], "1.kernel": turned[1], "2.kernel": flat}


CONV = jp.convolutional((1, 3, 4), 6, 3, outputs=5)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_convolutions(layout):
    params = conv_params(layout)
    masks = models.prune(params, "magnitude", 0.5)
    read = known(params, CONV)
    for w, expected in zip(read.weights, conv_params("first").values(), strict=True):
        np.testing.assert_array_equal(w, expected)
    removed = tuple(p for p, _ in ball._removed(read, masks))
    upper = float(jax.jit(multiplier_bound, static_argnums=0)(CONV, read.weights, removed))
    gap = ball_gap(params, masks, CONV)
    assert gap.upper == pytest.approx(upper, rel=1e-6) and 0 < gap.lower < gap.upper
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 2000)).astype(np.float32)
    x /= np.linalg.norm(x.reshape(-1, 2000), axis=0)
    kept = tuple(w - p for w, p in zip(read.weights, removed, strict=True))
    d = np.asarray(CONV(read.weights, x) - CONV(kept, x))
    assert np.linalg.norm(d, axis=0).max() <= gap.lower * 1.001


def test_counters_and_keys_belong_to_no_layer():
    params = stack((4, 8, 3))
    assert known(params | {"steps": np.int32(3) * np.ones(1, np.int32), "key": KEY}).biased


def test_a_safetensors_file_is_a_model(tmp_path):
    params = stack((6, 9, 9, 4))
    save_file(params, tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    masks = models.prune(loaded, amount=0.8)
    masks.save(tmp_path / "masks.safetensors")
    masks = Masks.load(tmp_path / "masks.safetensors", loaded)
    assert known(loaded).paths == tuple(f"layers.{i}.weight" for i in range(3))
    assert ball_gap(loaded, masks) == ball_gap(params, masks)
    assert "untouched: 3 arrays of 22 weights, 0 removed: layers.0.bias" in str(
        masks.summary(loaded)
    )
    save_file(conv_params("first"), tmp_path / "conv.safetensors")
    loaded = load_file(tmp_path / "conv.safetensors")
    masks = models.prune(loaded, amount=0.5)
    assert ball_gap(loaded, masks, CONV) == ball_gap(conv_params("first"), masks, CONV)


def test_layers_come_in_the_order_of_their_numbers():
    params = {f"layers.{i}.weight": np.eye(3, dtype=np.float32) * (i + 1) for i in range(12)}
    read = known(params)
    assert [w[0, 0] for w in read.weights] == list(range(1, 13))
    order = list(reversed(read.paths))
    assert known(params, order=order).paths == tuple(order)


def apply(params, x, fn=jax.nn.relu):
    x = fn(x @ params["second.weight"].T + params["second.bias"][None])
    return x @ params["first.weight"].T + params["first.bias"][None]


def square():
    return {k.replace("s.0", "second").replace("s.1", "first").replace("layer", ""): v
            for k, v in stack((4, 4, 4)).items()}  # fmt: skip


def test_a_model_is_compared_with_what_was_read():
    params = square()
    order = ["second.weight", "first.weight"]
    read = known((params, apply), order=order)
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    np.testing.assert_allclose(read(x).T, apply(params, x.T), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"first\.weight -> second\.weight with relu"):
        known((params, apply))
    with pytest.raises(ValueError, match="with identity between"):
        known((params, apply), activations.identity, order=order)
    with pytest.raises(ValueError, match="with relu between"):
        known((params, lambda p, x: apply(p, x, jnp.tanh)), order=order)
    with pytest.raises(ValueError, match="with relu between"):
        known((params, lambda p, x: apply(p, x)[:, :2]), order=order)
    with pytest.raises(ValueError, match="with relu between"):
        known((params, lambda p, x: apply(p, x) * jnp.nan), order=order)


W = np.ones((3, 2), np.float32)
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
                {**conv_params("first"), "0.bias": np.zeros((3, 1, 1), np.float32)}, CONV
            ),
            "0.bias: convolutions with biases",
        ),
        (lambda: ball_gap({"w": W, "b": W[:, 0]}, Masks(), jp.tanh), "biases need relu"),
        (lambda: ball_gap({"w": W}, Masks({"v": W > 0})), "mask = 'v'"),
        (lambda: ball_gap({"w": W}, Masks({"w": W.T > 0})), "does not fit"),
        (lambda: ball_gap({"1": 1e30 * W, "2": 1e30 * W.T}, Masks({"1": W < 0})), "overflows in"),
        (lambda: ball_gap({"w": W}, {"w": W > 0}), "the Masks that prune gives"),
        (lambda: ball_gap({"w": W}, Masks(), domain="ball"), "domain = 'ball'"),
        (lambda: ball_gap({"w": W}, Masks(), seed=-1), "seed = -1"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_without_biases_other_activations_do():
    params = stack((4, 8, 3), biases=0.0)
    gap = ball_gap(params, models.prune(params, amount=0.5), jp.tanh)
    assert 0 < gap.lower < gap.upper < 10 * gap.lower

"""Layers against SciPy, activations against their own definitions.

All cases of a test are outputs of one compiled program.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import signal

from jaxprune import activations, networks
from jaxprune.networks import Conv, Dense
from jaxprune.products import DIRECT_CHANNELS

CHANNELS = [2, DIRECT_CHANNELS]
STRIDES = [1, 2, 3]
ACTIVATIONS = [*activations.ACTIVATIONS.values(), activations.leaky_relu(0.3)]


def brute_force_convolution(layer, w, x):
    mode = "wrap" if layer.padding == "CIRCULAR" else "constant"
    k = layer.kernel
    pads = (0, 0) if layer.padding == "VALID" else ((k - 1) // 2, k // 2)
    x = np.pad(x, ((0, 0), pads, pads), mode=mode)
    planes = [
        sum(signal.correlate2d(x[i], w[o, i], "valid") for i in range(layer.c_in))
        for o in range(layer.c_out)
    ]
    return np.stack(planes)[:, :: layer.stride, :: layer.stride]


def convolution_inputs(layer, *batch):
    rng = np.random.default_rng(layer.kernel)
    normal = lambda shape: rng.normal(size=(*batch, *shape)).astype(np.float32)
    return normal(layer.weight_shape), normal(layer.in_shape), normal(layer.out_shape)


def convolutions(kernels):
    """Of every pair of kernel, stride and padding one in every run; all of them in `-m ci`."""
    cases = []
    for channels, kernel, stride in itertools.product(CHANNELS, kernels, STRIDES):
        for i, padding in enumerate(networks.PADDINGS):
            layer = Conv(channels, 3, kernel, (7, 6), stride, padding)
            marks = [] if (kernel + stride + i) % 3 == 0 else [pytest.mark.ci]
            name = f"{channels}-{kernel}-{stride}-{padding}"
            cases.append(pytest.param(layer, marks=marks, id=name))
    return cases


FORWARD, BACKWARD = convolutions([1, 2, 3, 5]), convolutions([2, 3])


def alike(layer, cases):
    """The layers of the same tier and channels, which are compiled together."""
    (own,) = (case for case in cases if case.values == (layer,))
    tier = [case.values[0] for case in cases if case.marks == own.marks]
    return tuple(other for other in tier if other.c_in == layer.c_in)


@functools.cache
def convolution_outputs(layers):
    """By layer: kernel, image and output."""
    inputs = [convolution_inputs(layer)[:2] for layer in layers]
    run = jax.jit(lambda inputs: [f(w, x) for f, (w, x) in zip(layers, inputs, strict=True)])
    return {f: (*at, y) for f, at, y in zip(layers, inputs, run(inputs), strict=True)}


@pytest.mark.parametrize("layer", FORWARD)
def test_convolution(layer):
    w, x, y = convolution_outputs(alike(layer, FORWARD))[layer]
    assert y.shape == layer.out_shape
    np.testing.assert_allclose(y, brute_force_convolution(layer, w, x), rtol=1e-5, atol=3e-5)


@functools.cache
def convolution_gradients(layers):
    """By layer: kernels, images, what is pulled back, and the two gradients of each."""
    inputs = [convolution_inputs(layer, 2) for layer in layers]

    @jax.jit
    def run(inputs):
        pull = lambda layer: jax.vmap(lambda w, x, u: jax.vjp(layer, w, x)[1](u))
        return [pull(layer)(*at) for layer, at in zip(layers, inputs, strict=True)]

    outputs = jax.device_get(run(inputs))
    return {f: (*at, *of) for f, at, of in zip(layers, inputs, outputs, strict=True)}


@pytest.mark.parametrize("layer", BACKWARD)
def test_gradients_of_a_convolution(layer):
    """`u . y(w, x)` is linear in w and in x: its gradients have to give it back."""
    rng = np.random.default_rng(100 + layer.kernel)
    pairs = convolution_gradients(alike(layer, BACKWARD))[layer]
    for w, x, u, of_w, of_x in zip(*pairs, strict=True):
        other_w, other_x = (rng.normal(size=at.shape).astype(np.float32) for at in (w, x))
        y_w, y_x = (brute_force_convolution(layer, *at) for at in ((other_w, x), (w, other_x)))
        atol = 1e-6 * np.linalg.norm(u) * np.linalg.norm(w) * np.linalg.norm(x)
        np.testing.assert_allclose(np.sum(of_w * other_w), np.sum(u * y_w), rtol=0, atol=atol)
        np.testing.assert_allclose(np.sum(of_x * other_x), np.sum(u * y_x), rtol=0, atol=atol)


def test_gradients_of_a_dense_layer():
    """With no, one and two axes of columns."""
    rng = np.random.default_rng(0)
    layer = Dense(6, 5, image=(2, 1, 3))
    w = rng.normal(size=(4, 5, 6)).astype(np.float32)
    batches = [(), (3,), (3, 2)]
    xs = [rng.normal(size=(4, 2, 1, 3, *batch)).astype(np.float32) for batch in batches]
    us = [rng.normal(size=(4, 5, *batch)).astype(np.float32) for batch in batches]
    pull = jax.vmap(lambda w, x, u: jax.vjp(layer, w, x)[1](u))
    run = jax.jit(lambda w, xs, us: [pull(w, *at) for at in zip(xs, us, strict=True)])
    columns = lambda y, rows: y.reshape(4, rows, -1).astype(np.float64)
    for x, u, (of_w, of_x) in zip(xs, us, run(w, xs, us), strict=True):
        of_y, flat = columns(u, 5), columns(x, 6)
        np.testing.assert_allclose(of_w, of_y @ flat.transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
        expected = (w.transpose(0, 2, 1) @ of_y).reshape(x.shape)
        np.testing.assert_allclose(of_x, expected, rtol=1e-5, atol=1e-6)


@functools.cache
def many_at_once():
    """By layer: five kernels on six images, by the layer and by lax."""
    rng = np.random.default_rng(0)
    grid = itertools.product(CHANNELS, networks.PADDINGS)
    layers = [Conv(channels, 4, 3, (8, 8), 1, padding) for channels, padding in grid]
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    inputs = [(normal(5, *layer.weight_shape), normal(6, *layer.in_shape)) for layer in layers]

    def ours(layer, ws, x):
        return jnp.moveaxis(jax.vmap(layer, (0, None))(ws, jnp.moveaxis(x, 0, -1)), -1, 1)

    def lax(layer, ws, x):
        pads = [layer.pads] * 2
        if layer.padding == "CIRCULAR":
            x, pads = jnp.pad(x, ((0, 0), (0, 0), *pads), mode="wrap"), [(0, 0)] * 2
        return jax.vmap(lambda w: jax.lax.conv_general_dilated(x, w, (1, 1), pads))(ws)

    both = lambda layer, at: (ours(layer, *at), lax(layer, *at))
    run = jax.jit(lambda inputs: [both(*at) for at in zip(layers, inputs, strict=True)])
    return dict(zip(layers, run(inputs), strict=True))


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_many_kernels_and_images_at_once_are_those_of_lax(padding, channels):
    """A trial's kernels with all images as columns, under vmap over trials."""
    ours, lax = many_at_once()[Conv(channels, 4, 3, (8, 8), 1, padding)]
    np.testing.assert_allclose(ours, lax, rtol=1e-5, atol=1e-4)


def test_forward_of_a_dense_network():
    rng = np.random.default_rng(0)
    network = networks.dense((4, 5, 3, 2), activations.leaky_relu(0.1))
    ws = [rng.normal(size=shape) for shape in network.weight_shapes]
    x = rng.normal(size=4)
    h = x
    for w in ws[:-1]:
        a = w @ h
        h = np.where(a > 0, a, 0.1 * a)
    params = tuple(np.float32(w) for w in ws)
    three = np.float32(np.stack([x, -x, 2 * x], axis=1))
    run = jax.jit(lambda params, x, columns: (network(params, x), network(params, columns)))
    one, columns = map(np.asarray, run(params, np.float32(x), three))
    np.testing.assert_allclose(one, ws[-1] @ h, rtol=1e-5)
    assert columns.shape == (2, 3)
    np.testing.assert_allclose(columns[:, 0], ws[-1] @ h, rtol=1e-5)


def test_a_readout_flattens_the_last_image():
    network = networks.convolutional((1, 4, 6), 8, strides=(2, 1), outputs=10)
    assert network.names == ("conv1", "conv2", "dense3")
    assert network.weight_shapes == ((4, 1, 3, 3), (6, 4, 3, 3), (10, 96))
    assert network.widths == (1, 4, 6, 10)
    assert network.layers[1].fans == (36, 54)
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    ws = tuple(shaped(*shape) for shape in network.weight_shapes)
    for columns in ((), (3,)):
        y = jax.eval_shape(network, ws, shaped(1, 8, 8, *columns))
        assert y.shape == (*network.out_shape, *columns) == (10, *columns)


GRID = np.linspace(-3, 3, 121)
FAR = np.array([-20.0, -10.0, 10.0, 20.0])
SIZES = [1.0, 1e-3, 1e-8, 1e-20]
PAIRS = {"nan": (np.full(5000, np.nan), np.ones(5000)), "to nan": (np.ones(5000), np.nan)}
"""Parts of one vector of inputs: a, or a and d."""


def some_pairs(size):
    rng = np.random.default_rng(1)
    return rng.normal(size=500).astype(np.float32), (size * rng.normal(size=500)).astype(np.float32)


@functools.cache
def activated():
    """By activation, by part: s(a) and s(a) - s(a - d)."""
    points = {"zero": np.zeros(1), "grid": GRID, "2.5 grid": 2.5 * GRID, "far": FAR}
    points["-1"] = np.array([-1.0])
    parts = {name: (a, 0.0) for name, a in points.items()} | PAIRS
    parts |= {size: some_pairs(size) for size in SIZES}
    ends = np.cumsum([len(a) for a, _ in parts.values()])[:-1]
    a = np.concatenate([a for a, _ in parts.values()])
    d = np.concatenate([np.broadcast_to(d, len(a)) for a, d in parts.values()])
    run = jax.jit(lambda a, d: [(s.fn(a), s.difference(a, d)) for s in ACTIVATIONS])
    named = lambda y: dict(zip(parts, np.split(np.asarray(y), ends), strict=True))
    outputs = run(a.astype(np.float32), d.astype(np.float32))
    return {s: tuple(map(named, y)) for s, y in zip(ACTIVATIONS, outputs, strict=True)}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
class TestActivation:
    def test_is_zero_at_zero(self, activation):
        values, _ = activated()[activation]
        assert values["zero"] == 0

    def test_constants(self, activation):
        values, _ = activated()[activation]
        a, b = np.meshgrid(GRID, GRID)
        sa, sb = np.meshgrid(*[values["grid"].astype(np.float64)] * 2)
        slopes = ((sa - sb) / np.where(a == b, 1, a - b))[np.abs(a - b) > 0.5]
        assert slopes.min() >= activation.least_slope - 1e-5
        assert slopes.max() <= activation.lipschitz + 1e-5
        # The least is approached far out.
        assert abs(min(np.diff(values["far"])[[0, 2]]) / 10 - activation.least_slope) < 1e-5
        scaled, straight = values["2.5 grid"], np.float32(2.5) * values["grid"]
        assert np.allclose(scaled, straight, atol=1e-5) == activation.positively_homogeneous

    @pytest.mark.parametrize("size", SIZES)
    def test_difference_keeps_its_digits(self, activation, size):
        values, differences = activated()[activation]
        a, d = (x.astype(np.float64) for x in some_pairs(size))
        if activation.name == "tanh":
            exact = np.tanh(d) * (1 - np.tanh(a) * np.tanh(a - d))
        elif activation.name == "erf":
            with mpmath.workdps(60):
                pairs = zip(map(mpmath.mpf, a), map(mpmath.mpf, d), strict=True)
                exact = np.array([float(mpmath.erf(x) - mpmath.erf(x - y)) for x, y in pairs])
        else:
            slope = float(values["-1"][0]) / -1.0
            both_signs = np.sign(a) != np.sign(a - d)
            exact = np.where(a > 0, d, slope * d)
            s = lambda z: np.where(z > 0, z, slope * z)
            exact = np.where(both_signs, s(a) - s(a - d), exact)
        got = differences[size].astype(np.float64)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6 * size)

    def test_keeps_nan(self, activation):
        values, differences = activated()[activation]
        for value in (values["nan"], differences["nan"]):
            assert np.isnan(value).all() or activation.name == "identity"
        assert np.isnan(differences["to nan"]).all()


def test_equal_networks_share_compiled_programs():
    traces = []
    ws, x = (np.ones((2, 2), np.float32),) * 2, np.ones(2, np.float32)

    def run(network, w, x):
        traces.append(1)
        return network(w, x)

    run = jax.jit(run, static_argnums=0)
    for _ in range(2):
        network = networks.dense((2, 2, 2), activations.leaky_relu(0.2))
        run(network, ws, x)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: networks.dense((4,)), "widths"),
        (lambda: networks.dense((4, -1)), "width"),
        (lambda: networks.dense((4, 2.0)), "width"),
        (lambda: networks.dense((4, True)), "width"),
        (lambda: networks.dense((4,) * 258), "layers = 257"),
        (lambda: networks.convolutional((1,) * 257, 8, outputs=2), "layers = 257"),
        (lambda: networks.dense((4, 4), "tanh"), "activation"),
        (lambda: networks.convolutional((3, 4), 8, activation=jnp.tanh), "activation"),
        (lambda: networks.dense((2**20, 2**20)), "dense1"),
        (lambda: networks.convolutional((3,), 8), "channels"),
        (lambda: networks.convolutional((3, 4), 2), "kernel"),
        (lambda: networks.convolutional((3, 4), 8, padding="FULL"), "padding"),
        (lambda: networks.convolutional((3, 4), 8, strides=(1, 1)), "strides"),
        (lambda: networks.convolutional((3, 4), 8, strides=0), "stride"),
        (lambda: networks.convolutional((3, 4), 8, outputs=0), "outputs"),
        (lambda: activations.leaky_relu(1.5), "slope"),
        (lambda: networks.select_layers(networks.dense((2, 2)), "middle"), "layers"),
        (lambda: networks.select_layers(networks.dense((2, 2)), ["dense9"]), "layers"),
    ],
)
def test_bad_networks(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_select_layers():
    network = networks.dense((2, 2, 2, 2))
    select = networks.select_layers
    assert select(network) == (False, True, False)
    assert select(network, "all") == (True, True, True)
    assert select(network, ["dense1", "dense3"]) == (True, False, True)
    assert select(network, lambda name: name != "dense1") == (False, True, True)
    assert select(network, "dense3") == (False, False, True)

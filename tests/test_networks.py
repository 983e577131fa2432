"""Layers against SciPy, activations against their own definitions."""

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


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", CHANNELS)
def test_convolution(padding, stride, kernel, channels):
    rng = np.random.default_rng(kernel)
    layer = Conv(channels, 3, kernel, (7, 6), stride, padding)
    w = rng.normal(size=layer.weight_shape).astype(np.float32)
    x = rng.normal(size=layer.in_shape).astype(np.float32)
    y = layer(w, x)
    assert y.shape == layer.out_shape
    np.testing.assert_allclose(y, brute_force_convolution(layer, w, x), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_of_a_convolution(padding, stride, kernel, channels):
    """`u . y(w, x)` is linear in w and in x: its gradients have to give it back."""
    rng = np.random.default_rng(kernel)
    layer = Conv(channels, 3, kernel, (7, 6), stride, padding)
    ws, other_ws = rng.normal(size=(2, 2, *layer.weight_shape)).astype(np.float32)
    xs, other_xs = rng.normal(size=(2, 2, *layer.in_shape)).astype(np.float32)
    us = rng.normal(size=(2, *layer.out_shape)).astype(np.float32)
    pulled = jax.jit(jax.vmap(lambda w, x, u: jax.vjp(layer, w, x)[1](u)))(ws, xs, us)
    for w, other_w, x, other_x, u, of_w, of_x in zip(
        ws, other_ws, xs, other_xs, us, *pulled, strict=True
    ):
        y_w, y_x = (brute_force_convolution(layer, *at) for at in ((other_w, x), (w, other_x)))
        atol = 1e-6 * np.linalg.norm(u) * np.linalg.norm(w) * np.linalg.norm(x)
        np.testing.assert_allclose(np.sum(of_w * other_w), np.sum(u * y_w), rtol=0, atol=atol)
        np.testing.assert_allclose(np.sum(of_x * other_x), np.sum(u * y_x), rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [(), (3,), (3, 2)], ids=str)
def test_gradients_of_a_dense_layer(batch):
    rng = np.random.default_rng(0)
    layer = Dense(6, 5, image=(2, 1, 3))
    w = rng.normal(size=(4, 5, 6)).astype(np.float32)
    x = rng.normal(size=(4, 2, 1, 3, *batch)).astype(np.float32)
    u = rng.normal(size=(4, 5, *batch)).astype(np.float32)
    of_w, of_x = jax.vmap(lambda w, x, u: jax.vjp(layer, w, x)[1](u))(w, x, u)
    columns = lambda y, rows: y.reshape(4, rows, -1).astype(np.float64)
    us, xs = columns(u, 5), columns(x, 6)
    np.testing.assert_allclose(of_w, us @ xs.transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
    expected = (w.transpose(0, 2, 1) @ us).reshape(x.shape)
    np.testing.assert_allclose(of_x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_many_kernels_and_images_at_once_are_those_of_lax(padding, channels):
    """A trial's kernels with all images as columns, under vmap over trials."""
    rng = np.random.default_rng(0)
    layer = Conv(channels, 4, 3, (8, 8), 1, padding)
    w = rng.normal(size=(5, *layer.weight_shape)).astype(np.float32)
    x = rng.normal(size=(6, *layer.in_shape)).astype(np.float32)
    ours = jax.jit(jax.vmap(layer, (0, None)))(w, np.moveaxis(x, 0, -1))
    pads = [layer.pads] * 2
    if padding == "CIRCULAR":
        x, pads = np.pad(x, ((0, 0), (0, 0), *pads), mode="wrap"), [(0, 0)] * 2
    lax = jax.vmap(lambda w: jax.lax.conv_general_dilated(x, w, (1, 1), pads))(w)
    np.testing.assert_allclose(jnp.moveaxis(ours, -1, 1), lax, rtol=1e-5, atol=1e-4)


def test_forward_of_a_dense_network():
    rng = np.random.default_rng(0)
    network = networks.dense((4, 5, 3, 2), activations.leaky_relu(0.1))
    ws = [rng.normal(size=shape) for shape in network.weight_shapes]
    x = rng.normal(size=4)
    h = x
    for w in ws[:-1]:
        a = w @ h
        h = np.where(a > 0, a, 0.1 * a)
    params = tuple(jnp.float32(w) for w in ws)
    np.testing.assert_allclose(network(params, jnp.float32(x)), ws[-1] @ h, rtol=1e-5)
    columns = network(params, jnp.float32(np.stack([x, -x, 2 * x], axis=1)))
    assert columns.shape == (2, 3)
    np.testing.assert_allclose(columns[:, 0], ws[-1] @ h, rtol=1e-5)


def test_a_readout_flattens_the_last_image():
    network = networks.convolutional((1, 4, 6), 8, strides=(2, 1), outputs=10)
    assert network.names == ("conv1", "conv2", "dense3")
    assert network.weight_shapes == ((4, 1, 3, 3), (6, 4, 3, 3), (10, 96))
    assert network.widths == (1, 4, 6, 10)
    assert network.layers[1].fans == (36, 54)
    ws = tuple(jnp.ones(shape) for shape in network.weight_shapes)
    assert network(ws, jnp.ones((1, 8, 8))).shape == network.out_shape == (10,)
    assert network(ws, jnp.ones((1, 8, 8, 3))).shape == (10, 3)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
class TestActivation:
    grid = np.linspace(-3, 3, 121)

    def test_is_zero_at_zero(self, activation):
        assert activation.fn(jnp.zeros(1)) == 0

    def test_constants(self, activation):
        a, b = np.meshgrid(self.grid, self.grid)
        sa, sb = (np.asarray(activation.fn(jnp.asarray(z)), np.float64) for z in (a, b))
        slopes = ((sa - sb) / np.where(a == b, 1, a - b))[np.abs(a - b) > 0.5]
        assert slopes.min() >= activation.least_slope - 1e-5
        assert slopes.max() <= activation.lipschitz + 1e-5
        # The least is approached far out.
        far = np.asarray(activation.fn(jnp.array([-20.0, -10.0, 10.0, 20.0], jnp.float32)))
        assert abs(min(np.diff(far)[[0, 2]]) / 10 - activation.least_slope) < 1e-5
        scaled = np.asarray(activation.fn(jnp.asarray(2.5 * self.grid)))
        straight = np.asarray(2.5 * activation.fn(jnp.asarray(self.grid)))
        assert np.allclose(scaled, straight, atol=1e-5) == activation.positively_homogeneous

    @pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 1e-20])
    def test_difference_keeps_its_digits(self, activation, size):
        rng = np.random.default_rng(1)
        a = rng.normal(size=500).astype(np.float32)
        d = (size * rng.normal(size=500)).astype(np.float32)
        got = np.asarray(activation.difference(jnp.asarray(a), jnp.asarray(d)), np.float64)
        a, d = a.astype(np.float64), d.astype(np.float64)
        if activation.name == "tanh":
            exact = np.tanh(d) * (1 - np.tanh(a) * np.tanh(a - d))
        elif activation.name == "erf":
            with mpmath.workdps(60):
                pairs = zip(map(mpmath.mpf, a), map(mpmath.mpf, d), strict=True)
                exact = np.array([float(mpmath.erf(x) - mpmath.erf(x - y)) for x, y in pairs])
        else:
            slope = float(activation.fn(jnp.float32(-1.0))) / -1.0
            both_signs = np.sign(a) != np.sign(a - d)
            exact = np.where(a > 0, d, slope * d)
            s = lambda z: np.where(z > 0, z, slope * z)
            exact = np.where(both_signs, s(a) - s(a - d), exact)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6 * size)

    def test_keeps_nan(self, activation):
        nan = jnp.full(5000, jnp.nan)
        one = jnp.ones(5000)
        for value in (activation.fn(nan), activation.difference(nan, one)):
            assert jnp.all(jnp.isnan(value)) or activation.name == "identity"
        assert jnp.all(jnp.isnan(activation.difference(one, nan)))


def test_equal_networks_share_compiled_programs():
    traces = []

    def run(network, w, x):
        traces.append(1)
        return network(w, x)

    run = jax.jit(run, static_argnums=0)
    for _ in range(2):
        network = networks.dense((2, 2, 2), activations.leaky_relu(0.2))
        run(network, (jnp.ones((2, 2)),) * 2, jnp.ones(2))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: networks.dense((4,)), "widths"),
        (lambda: networks.dense((4, -1)), "width"),
        (lambda: networks.dense((4, 2.0)), "width"),
        (lambda: networks.dense((4, True)), "width"),
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

"""Dense and convolutional stacks without biases, as in the paper: `F(x) = W_l s(... s(W_1 x))`.

Everything here is about ONE network. Inputs are columns: `F` maps `(*in_shape, n)` to
`(*out_shape, n)`, n inputs at once, as well as one input without the last axis. A layer is then one
matrix product, and stays one under `vmap` over networks.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import activations, validation
from jaxprune.activations import Activation
from jaxprune.products import correlate, product
from jaxprune.types import Params

PADDINGS = ("SAME", "VALID", "CIRCULAR")
MAX_WEIGHTS = 2**31 - 1
MAX_LAYERS = 256
"""Each takes a second or so to compile, and tenths of one to certify."""


@dataclass(frozen=True)
class Dense:
    """`y = W x` with `W` of shape `(d_out, d_in)`; an image at the input is flattened.

    Attributes:
      image: shape of that image, `()` if the input is none.
    """

    d_in: int
    d_out: int
    image: tuple[int, ...] = ()
    kind: str = field(default="dense", init=False)

    @property
    def weight_shape(self):
        return (self.d_out, self.d_in)

    @property
    def fans(self) -> tuple[int, int]:
        return self.d_in, self.d_out

    @property
    def in_shape(self):
        return self.image or (self.d_in,)

    @property
    def out_shape(self):
        return (self.d_out,)

    def __call__(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return product(w, x.reshape(self.d_in, *x.shape[len(self.in_shape) :]))


@dataclass(frozen=True)
class Conv:
    """Cross-correlation of a `(c_in, h, w)` image with a `(c_out, c_in, k, k)` kernel.

    Attributes:
      size: `(h, w)` of the input.
      padding: "SAME" (`(k-1)//2` zeros before and `k//2` after, at every stride), "CIRCULAR" (the
        same rows from the periodic image) or "VALID" (none).
    """

    c_in: int
    c_out: int
    kernel: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    kind: str = field(default="conv", init=False)

    @property
    def weight_shape(self):
        return (self.c_out, self.c_in, self.kernel, self.kernel)

    @property
    def fans(self) -> tuple[int, int]:
        return self.c_in * self.kernel**2, self.c_out * self.kernel**2

    @property
    def in_shape(self):
        return (self.c_in, *self.size)

    @property
    def pads(self) -> tuple[int, int]:
        """Rows added before and after the image along each axis."""
        if self.padding == "VALID":
            return (0, 0)
        return ((self.kernel - 1) // 2, self.kernel // 2)

    @property
    def torus(self) -> tuple[int, int]:
        """Sides of the least torus on which the layer is part of a circular convolution.

        On it an image and the zeros around it do not meet their own copies, so padding with zeros
        or not at all, and striding, keep some rows and columns of the circular operator: its norm
        bounds theirs. With circular padding and stride 1 the two are equal.
        """
        gap = max(self.pads) if self.padding == "SAME" else 0
        return self.size[0] + gap, self.size[1] + gap

    @property
    def out_shape(self):
        sides = [(side + sum(self.pads) - self.kernel) // self.stride + 1 for side in self.size]
        return (self.c_out, *sides)

    def __call__(self, w: jax.Array, x: jax.Array) -> jax.Array:
        pads, columns = self.pads, x.shape[3:]
        if self.padding == "CIRCULAR":
            x = jnp.pad(x, [(0, 0), pads, pads] + [(0, 0)] * len(columns), mode="wrap")
            pads = (0, 0)
        y = correlate(self.stride, pads, w, x.reshape(*x.shape[:3], -1))
        return y.reshape(*y.shape[:3], *columns)


Layer = Dense | Conv


@dataclass(frozen=True)
class Network:
    """A stack of linear layers with one activation between them; static and hashable.

    Attributes:
      layers: first to last.
      activation: after every layer but the last.
      in_shape: `(d,)` or `(c, h, w)` of one input.
    """

    layers: tuple[Layer, ...]
    activation: Activation
    in_shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """`("dense1", "dense2", ...)`: kind and 1-based position, as in the paper's W_i."""
        return tuple(f"{layer.kind}{i}" for i, layer in enumerate(self.layers, start=1))

    @property
    def is_dense(self) -> bool:
        """Whether no layer is a convolution."""
        return all(isinstance(layer, Dense) for layer in self.layers)

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(layer.weight_shape for layer in self.layers)

    @property
    def weight_counts(self) -> tuple[int, ...]:
        """Number of weights of each layer, `D_i`."""
        return tuple(math.prod(shape) for shape in self.weight_shapes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.layers[-1].out_shape

    @property
    def widths(self) -> tuple[int, ...]:
        """Features (dense) or channels (convolution) at the input and after each layer."""
        return (self.in_shape[0], *(layer.out_shape[0] for layer in self.layers))

    def __str__(self):
        widths = "-".join(str(d) for d in self.widths)
        text = f"{self.layers[0].kind} {widths}"
        conv = self.layers[0]
        if isinstance(conv, Conv):
            text += f", {conv.kernel}x{conv.kernel} on {conv.size[0]}x{conv.size[1]}"
            text += f", {conv.padding.lower()} padding"
            strides = [layer.stride for layer in self.layers if isinstance(layer, Conv)]
            if max(strides) > 1:
                text += f", strides {'-'.join(map(str, strides))}"
        return f"{text}, {self.activation}"

    def __call__(self, params: Params, x: jax.Array) -> jax.Array:
        """`F(x)` for inputs `(*in_shape, n)`, or for one of shape `in_shape`."""
        for layer, w in zip(self.layers[:-1], params[:-1], strict=True):
            x = self.activation.fn(layer(w, x))
        return self.layers[-1](params[-1], x)


def dense(widths: Sequence[int], activation: Activation = activations.relu) -> Network:
    """A fully connected network.

    Args:
      widths: `(d_0, ..., d_l)`, input to output.
      activation: between the layers.

    Raises:
      ValueError: fewer than two widths, more than 256 layers, or a width below 1.
    """
    widths = validation.instance(
        "widths", widths, Sequence | np.ndarray, "a list of at least two widths"
    )
    if len(widths) < 2:
        raise ValueError(f"widths = {tuple(widths)!r}: at least two widths are needed")
    widths = [validation.integer("width", d, 1) for d in widths]
    _check_activation(activation)
    layers = tuple(Dense(a, b) for a, b in itertools.pairwise(widths))
    return _checked(Network(layers, activation, (widths[0],)))


def convolutional(
    channels: Sequence[int],
    size: int,
    kernel: int = 3,
    *,
    strides: Sequence[int] | int = 1,
    padding: str = "SAME",
    outputs: int | None = None,
    activation: Activation = activations.relu,
) -> Network:
    """A stack of convolutions over square images, with a dense read-out if `outputs` is given.

    Args:
      channels: `(c_0, ..., c_l)`, input to the last convolution.
      size: side of the input image in pixels.
      kernel: side of every kernel.
      strides: one for all layers, or one a layer.
      padding: "SAME", "VALID" or "CIRCULAR".
      outputs: width of a dense layer on the flattened last image; None for none.
      activation: between the layers.

    Raises:
      ValueError: a number below 1, more than 256 layers, an unknown padding, or an image smaller
        than a kernel.
    """
    channels = validation.instance(
        "channels", channels, Sequence | np.ndarray, "a list of at least two"
    )
    if len(channels) < 2:
        raise ValueError(f"channels = {tuple(channels)!r}: at least two numbers are needed")
    channels = [validation.integer("channels", c, 1) for c in channels]
    _check_activation(activation)
    side = validation.integer("size", size, 1)
    kernel = validation.integer("kernel", kernel, 1)
    validation.choice("padding", padding, PADDINGS)
    count = len(channels) - 1
    strides = list(strides) if isinstance(strides, Sequence) else [strides] * count
    if len(strides) != count:
        raise ValueError(f"strides = {strides!r}: one a convolution ({count}) is needed")
    layers: list[Layer] = []
    for c_in, c_out, stride in zip(channels[:-1], channels[1:], strides, strict=True):
        if kernel > side:
            raise ValueError(f"kernel = {kernel}: at most the image's side {side} is allowed")
        stride = validation.integer("stride", stride, 1)
        layers.append(Conv(c_in, c_out, kernel, (side, side), stride, padding))
        side = layers[-1].out_shape[1]
    if outputs is not None:
        outputs = validation.integer("outputs", outputs, 1)
        image = layers[-1].out_shape
        layers.append(Dense(math.prod(image), outputs, image))
    return _checked(Network(tuple(layers), activation, (channels[0], size, size)))


def _check_activation(activation) -> None:
    needed = "jp.relu, jp.tanh, jp.erf, jp.identity or jp.leaky_relu(slope)"
    validation.instance("activation", activation, Activation, needed)


def _checked(network: Network) -> Network:
    validation.integer("layers", len(network.layers), 1, MAX_LAYERS)
    for shape in (network.in_shape, *(layer.out_shape for layer in network.layers)):
        if math.prod(shape) > MAX_WEIGHTS:
            raise ValueError(f"an image of {shape} features: at most {MAX_WEIGHTS} are allowed")
    for name, count in zip(network.names, network.weight_counts, strict=True):
        if count > MAX_WEIGHTS:
            raise ValueError(f"{name} has {count} weights: at most {MAX_WEIGHTS} are allowed")
    return network


def select_layers(
    network: Network, which: str | Sequence[str] | Callable[[str], bool] = "middle"
) -> tuple[bool, ...]:
    """Which layers are pruned.

    Args:
      network: the network.
      which: "middle" (all but the first and the last, as in the paper), "all", a list of layer
        names, or a predicate on the name.

    Returns:
      One Boolean a layer.

    Raises:
      ValueError: an unknown name, or no layer chosen.
    """
    names = network.names
    if which == "middle":
        chosen = tuple(0 < i < len(names) - 1 for i in range(len(names)))
    elif which == "all":
        chosen = (True,) * len(names)
    elif callable(which):
        chosen = tuple(bool(which(name)) for name in names)
    elif isinstance(which, str):
        validation.choice("layers", which, ("middle", "all", *names))
        chosen = tuple(name == which for name in names)
    else:
        if not isinstance(which, Sequence):
            raise ValueError(f"layers = {which!r}: a name or a list of names is needed")
        for name in which:
            validation.choice("layers", name, names)
        chosen = tuple(name in which for name in names)
    if not any(chosen):
        raise ValueError(f"layers = {which!r}: chooses none of {', '.join(names)}")
    return chosen

"""A given model read as a network of this package: a stack of layers with one activation."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import activations, inputs, networks, validation
from jaxprune.activations import Activation
from jaxprune.engine import keys
from jaxprune.gaps.lengths import per_column
from jaxprune.models import paths
from jaxprune.models.model import Model, is_model
from jaxprune.models.precision import is_floating, narrowest, widened
from jaxprune.networks import Conv, Dense, Layer, Network

KERNEL = "kernel"
"""The name of a weight array whose outputs come last, as in Flax; of all others they come first."""

LAYOUT = f"outputs last in arrays called {KERNEL}, first in others"
"""How weights are read, as errors say it."""

BIASES = ("bias", "b")
"""What a bias is called beside its weights."""

NORMS = (0.0, *(4.0**k for k in range(-8, 8)))
"""Of the inputs at which a model is compared with what was read of it."""

AGREE = 1e-5
"""Largest distance there, relative to `||F(x) - F(0)||`."""

ROUNDING = {4: 1e-6, 8: 1e-12}
"""What rounding may add, relative to `||F(x)||`, by the bytes of the floats that compute it."""


class Known(NamedTuple):
    """A model as a stack: `a_i = W_i h_(i-1) + b_i`, `h_i = s(a_i)`, the last a the output.

    Attributes:
      network: layers and activation, without the biases.
      paths: names of the weights in the model, first layer to last.
      weights: float32 arrays, each of its layer's `weight_shape`.
      biases: names of the biases; None for a layer without.
      offsets: float32 `(out,)` biases, or None.
      params: weights and biases by name, float32 in the shapes that they have in the model.
    """

    network: Network
    paths: tuple[str, ...]
    weights: tuple[np.ndarray, ...]
    biases: tuple[str | None, ...]
    offsets: tuple[np.ndarray | None, ...]
    params: dict[str, np.ndarray]

    @property
    def biased(self) -> bool:
        """Whether any layer has a bias."""
        return any(bias is not None for bias in self.biases)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`F(x)` for inputs `(*in_shape, n)`, as columns `(*out_shape, n)`."""
        fn = lambda h: h
        for layer, w, b in zip(self.network.layers, self.weights, self.offsets, strict=True):
            a = layer(jnp.asarray(w), fn(x))
            x = a if b is None else a + b.reshape(-1, *[1] * (a.ndim - 1))
            fn = self.network.activation.fn
        return x

    @property
    def model(self) -> Model:
        """The stack as a model of rows `(n, *in_shape)`, with the parameters' own names."""

        def apply(params, x):
            weights, offsets = zip(*self.laid_out(params), strict=True)
            y = self._replace(weights=weights, offsets=offsets)(jnp.moveaxis(x, 0, -1))
            return jnp.moveaxis(y, -1, 0)

        return Model(apply, self.params)

    def laid_out(self, arrays: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        """For each layer what `arrays` has for weights and bias, laid out as they are, or None.

        Args:
          arrays: by name and in the shape of the model's arrays.
        """
        turned = lambda path, layer: _turned(path, arrays[path], layer)
        return [
            (
                turned(path, layer) if path in arrays else None,
                arrays[bias].reshape(-1) if bias in arrays else None,
            )
            for path, bias, layer in zip(self.paths, self.biases, self.network.layers, strict=True)
        ]


def known(
    model: Any,
    stack: Activation | Network = activations.relu,
    *,
    order: Sequence[str] | None = None,
) -> Known:
    """Reads a stack of layers from a model or from its parameters alone.

    Arrays of two or more axes are weights; an array called `bias` or `b` beside exactly one of
    them is its bias. Weights called `kernel` have their outputs last, as in Flax, all others first,
    as in Equinox and PyTorch; a dense `kernel` behind convolutions takes images flattened with
    channels last, all others with channels first. A convolution's bias is one number a channel,
    `(out,)` or, as in Equinox, `(out, 1, 1)`.

    Args:
      model: what `Model.of` takes; or a pytree of parameters alone, such as
        `safetensors.numpy.load_file` gives. A model's own outputs are compared with those of the
        stack at 0 and a few inputs of norm 4^-8 to 4^7, in float64; of parameters alone order,
        layout and activation are taken on trust.
      stack: the activation between dense layers; or the whole network, which convolutions need.
      order: names of the weights, first layer to last; None for the natural order of their names
        ("layers.2" before "layers.10").

    Raises:
      ValueError: an array that belongs to no layer, weights or biases that are not floating or
        empty, layers that do not fit together, weights that are not finite or beyond float32's
        digits, biases that vary from pixel to pixel, or a model that computes something else, or
        in half precision.
    """
    whole = Model.of(model) if is_model(model) else None
    found = paths.floating(whole.params if whole else model)
    _refuse_others(paths.arrays(whole.params if whole else model), found)
    names = _weights(found, order)
    bias_of = _biases(found, names)
    layers = _layers(stack, names, found)
    for name, layer in zip(names, layers, strict=True):
        _check_shapes(name, bias_of[name], layer, found)
    if isinstance(stack, Network):
        network = stack
    else:
        network = Network(layers, stack, layers[0].in_shape)
    params = {
        name: _float32(name, found[name]) for name in [*names, *filter(None, bias_of.values())]
    }
    read = Known(
        network,
        tuple(names),
        tuple(_turned(name, params[name], y) for name, y in zip(names, layers, strict=True)),
        tuple(bias_of.values()),
        tuple(b and params[b].reshape(-1) for b in bias_of.values()),
        params,
    )
    if whole:
        check_outputs(whole, read)
    return read


def _natural(name):
    """A key that sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _last(name):
    return name.rpartition(".")[2]


def _folder(name):
    return name.rpartition(".")[0]


def _weights(found, order):
    """Names of the weights, first layer to last."""
    names = [name for name in found if found[name].ndim >= 2 and _last(name) not in BIASES]
    if not names:
        raise ValueError("model: has no array of two or more axes, and so no layer")
    if order is None:
        return sorted(names, key=_natural)
    if isinstance(order, str) or sorted(order) != sorted(names):
        raise ValueError(f"order = {order!r}: each of {', '.join(map(repr, names))} once is needed")
    return list(order)


def _refuse_others(arrays, found):
    """Raises a ValueError for what would be a weight or a bias if it were floating, or had any."""
    for name, x in arrays.items():
        if name not in found and (x.ndim >= 2 or _last(name) in BIASES):
            raise ValueError(f"{name}: {x.dtype} of shape {x.shape}; floats are needed")


def _biases(found, names):
    """Name of each weight's bias, or None."""
    of = dict.fromkeys(names)
    for bias in (name for name in found if name not in of):
        beside = [name for name in names if _folder(name) == _folder(bias)]
        if _last(bias) not in BIASES or len(beside) != 1 or of[beside[0]]:
            raise ValueError(f"{bias}: belongs to no layer; a stack of layers alone is needed")
        of[beside[0]] = bias
    return of


def _layers(stack, names, found):
    if isinstance(stack, Network):
        if len(stack.layers) != len(names):
            needed = f"{len(stack.layers)} are needed for {stack}"
            raise ValueError(
                f"model: has {len(names)} weight arrays ({', '.join(names)}); {needed}"
            )
        return stack.layers
    validation.instance("stack", stack, Activation, "an activation of this package or a Network")
    for name in names:
        if found[name].ndim != 2:
            raise ValueError(
                f"{name} has shape {found[name].shape}: convolutions need their Network"
            )
    sides = [found[name].shape[:: -1 if _last(name) == KERNEL else 1] for name in names]
    for name, before, (_, d_in) in zip(names[1:], sides, sides[1:], strict=False):
        if d_in != before[0]:
            raise ValueError(
                f"{name} takes {d_in} features: the one before gives {before[0]}; order? {LAYOUT}"
            )
    return networks.dense([sides[0][1], *(d_out for d_out, _ in sides)], stack).layers


def _turned(name, w, layer: Layer):
    """Weights, or a mask of theirs, laid out as the layer's `weight_shape`."""
    if _last(name) != KERNEL:
        return w
    if isinstance(layer, Conv):
        return w.transpose(3, 2, 0, 1)
    if isinstance(layer, Dense) and layer.image:
        c, rows, columns = layer.image
        return w.reshape(rows, columns, c, -1).transpose(3, 2, 0, 1).reshape(-1, layer.d_in)
    return w.T


def _check_shapes(name, bias, layer, found):
    out, into, *sides = layer.weight_shape
    wanted = (*sides, into, out) if _last(name) == KERNEL else layer.weight_shape
    if found[name].shape != wanted:
        raise ValueError(f"{name} has shape {found[name].shape}: {wanted} is needed")
    if bias and found[bias].shape not in ((out,), (out, *[1] * len(sides))):
        raise ValueError(f"{bias} has shape {found[bias].shape}: {(out,)} is needed")


def _float32(name, x):
    x = np.asarray(x)
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: not all entries are finite")
    with np.errstate(over="ignore"):
        short = x.astype(np.float32)
    if (short != x).any():
        raise ValueError(f"{name}: {x.dtype} with more digits than float32; round the model first")
    return short


def check_outputs(whole: Model, read: Known, which: str = "model") -> None:
    """Compares a model with a stack at 0 and at inputs of norm 4^-8 to 4^7.

    In float64, where the model lets itself be computed in it; else in its own float32.

    Args:
      whole: the model.
      read: the stack.
      which: what the model is called.

    Raises:
      ValueError: the model gives something else, or computes in half precision.
    """
    shape = read.network.in_shape
    x = np.asarray(_probes(shape))
    rows = np.moveaxis(x, -1, 0)
    # Flax has channels last, and so have the images that come out.
    last = len(shape) > 1 and _last(read.paths[0]) == KERNEL
    given = np.moveaxis(rows, 1, -1) if last else rows
    own = _floats(whole, given, which)
    if own and own.itemsize < 4:
        raise ValueError(f"{which}: computes in {own}; float32 or wider is needed")
    stack = read.weights, read.offsets, x
    with jax.default_matmul_precision("highest"):
        try:
            with jax.enable_x64(True):
                wide = widened((whole.params, given))
                kind = narrowest(whole.apply, *wide)
                got, expected = _outputs(whole, read, wide, widened(stack))
        except Exception:  # other people's code, in floats that it was not written for
            kind, got = own, jax.jit(whole.apply)(whole.params, given)
            with jax.enable_x64(True):
                expected = jax.jit(partial(_of_stack, read))(*widened(stack))
    got, expected = np.asarray(got, np.float64), np.moveaxis(np.asarray(expected), -1, 0)
    if last and got.ndim == 4:
        got = np.moveaxis(got, -1, 1)
    if got.shape != expected.shape or not _agree(got, expected, kind or np.dtype(np.float64)):
        raise ValueError(
            f"{which}: is not {' -> '.join(read.paths)} with {read.network.activation} between; "
            f"another order, stack or layout is needed ({LAYOUT})"
        )


@partial(jax.jit, static_argnums=0)
def _probes(shape):
    """Inputs of the norms `NORMS`, as columns."""
    x = inputs.sphere(keys.root_key(0), len(NORMS), shape)
    return x * per_column(jnp.asarray(NORMS, jnp.float32), x)


def _floats(whole, given, which):
    """The narrowest floats that the model computes in, if it takes inputs as the stack does."""
    try:
        y = jax.eval_shape(whole.apply, whole.params, given)
        kind = narrowest(whole.apply, whole.params, given)
    except Exception as error:  # whatever the model's library raises
        needed = f"a stack takes inputs of shape {given.shape[1:]}"
        raise ValueError(f"{which}: {needed}, it said {validation.said(error)}") from error
    if not is_floating(y):
        got = f"{y.dtype} of shape {y.shape}" if hasattr(y, "dtype") else type(y).__name__
        raise ValueError(f"{which}: gives {got}; one array of floats is needed")
    return kind


def _outputs(whole, read, of_model, of_stack):
    """Outputs of the model and of the stack, compiled as one program."""
    both = lambda of_model, of_stack: (whole.apply(*of_model), _of_stack(read, *of_stack))
    return jax.jit(both)(of_model, of_stack)


def _of_stack(read, weights, offsets, x):
    return read._replace(weights=weights, offsets=offsets)(x)


def _agree(got, expected, kind):
    """Whether outputs are the same, relative to how far an input moves them from those at 0."""
    size = lambda y: np.linalg.norm(y.reshape(len(y), -1), axis=1)
    allowed = AGREE * size(expected - expected[:1]) + ROUNDING[kind.itemsize] * size(expected)
    return bool(np.all(size(got - expected) <= allowed))

"""What is removed together: single weights, neurons, tiles, some of every group of weights.

Axes are the array's own: in this package and in Equinox outputs come first, in Flax last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import validation
from jaxprune.models.selection import in_order, magnitudes, ordered

Shape = tuple[int, ...]
Reduction = Callable[[jax.Array, tuple[int, ...]], jax.Array]
NORMS = ("l2", "sum")


@dataclass(frozen=True)
class Weights:
    """Every weight by itself."""

    def units(self, shape: Shape) -> Shape:
        """Shape of the array of what is removed together."""
        return shape

    def over(self, of: Reduction, x: jax.Array) -> jax.Array:
        """A reduction (sum, max, any) over each unit."""
        return x

    def scores(self, x: jax.Array) -> jax.Array:
        """Floats in the order of the units' scores, from the scores of weights."""
        return x

    def spread(self, kept: jax.Array, shape: Shape) -> jax.Array:
        """Mask of the weights from that of the units."""
        return kept


@dataclass(frozen=True)
class Neurons:
    """Neurons or filters: whole slices along the axis of outputs.

    Those of the last layer are the model's outputs, such as its classes: they go, too, unless
    `layers=` leaves that layer out.

    Attributes:
      axis: of outputs.
      by: "l2" scores a slice by the norm of its scores, "sum" by their sum. Scores below zero,
        as GraSP's, have no norm and need "sum".
      bias: None leaves biases alone, so that a removed neuron still gives its activation at the
        bias. A name ("bias") removes with each neuron its entry in the array of that name beside
        the weights, where there is one; but not while another array of two or more axes beside it
        has the neuron too (the weights of a GRU's input and state), and is not rid of it.
    """

    axis: int
    by: str = "l2"
    bias: str | None = None

    def __post_init__(self):
        validation.integer("axis", self.axis, -32, 31)
        validation.choice("by", self.by, NORMS)
        if self.bias is not None:
            validation.instance("bias", self.bias, str, "a name or None")

    def units(self, shape: Shape) -> Shape:
        return (shape[_axis(self.axis, shape)],)

    def over(self, of: Reduction, x: jax.Array) -> jax.Array:
        axis = _axis(self.axis, x.shape)
        return of(x, tuple(i for i in range(x.ndim) if i != axis))

    def scores(self, x: jax.Array) -> jax.Array:
        return _scores(self, x)

    def spread(self, kept: jax.Array, shape: Shape) -> jax.Array:
        axis = _axis(self.axis, shape)
        line = kept.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return jnp.broadcast_to(line, shape)


@dataclass(frozen=True)
class Block:
    """Tiles of the last axes, starting at index 0; the last tile along an axis may be short.

    Attributes:
      shape: of a tile; axes before those it names are not grouped.
      by: as for `Neurons`. A short tile has fewer scores to count, and goes the sooner for it.
    """

    shape: Shape
    by: str = "l2"

    def __post_init__(self):
        sides = validation.instance("shape", self.shape, tuple, "a tuple of sides")
        if not sides:
            raise ValueError("shape = (): at least one side is needed")
        for side in sides:
            validation.integer("side of a block", side, 1)
        validation.choice("by", self.by, NORMS)

    def _sides(self, shape):
        if len(self.shape) > len(shape):
            raise ValueError(f"blocks of {self.shape}: an array of shape {shape} has fewer axes")
        return (1,) * (len(shape) - len(self.shape)) + self.shape

    def units(self, shape: Shape) -> Shape:
        return tuple(-(-d // side) for d, side in zip(shape, self._sides(shape), strict=True))

    def over(self, of: Reduction, x: jax.Array) -> jax.Array:
        # What fills the last tiles is 0: nothing to a sum, or to a maximum of what is not negative.
        sides, units = self._sides(x.shape), self.units(x.shape)
        pads = [(0, u * b - d) for u, b, d in zip(units, sides, x.shape, strict=True)]
        tiled = jnp.pad(x, pads).reshape(
            [n for pair in zip(units, sides, strict=True) for n in pair]
        )
        return of(tiled, tuple(range(1, 2 * x.ndim, 2)))

    def scores(self, x: jax.Array) -> jax.Array:
        return _scores(self, x)

    def spread(self, kept: jax.Array, shape: Shape) -> jax.Array:
        for axis, side in enumerate(self._sides(shape)):
            kept = jnp.repeat(kept, side, axis)
        return kept[tuple(slice(d) for d in shape)]


@dataclass(frozen=True)
class NM:
    """N:M sparsity: n of every m consecutive weights along an axis are kept.

    The groups start at index 0. A last group of r < m weights keeps min(n, r). The structure is
    the amount. (Zhou et al., "Learning N:M fine-grained structured sparse neural networks from
    scratch", ICLR 2021, arXiv:2102.04010.)

    Attributes:
      n: how many are kept, 0 to m.
      m: length of a group.
      axis: along which weights are grouped.
    """

    n: int
    m: int
    axis: int

    def __post_init__(self):
        validation.integer("m", self.m, 1, 1024)
        validation.integer("n", self.n, 0, self.m)
        validation.integer("axis", self.axis, -32, 31)

    def units(self, shape: Shape) -> Shape:
        return shape

    def keep(self, scores: jax.Array) -> jax.Array:
        """Mask of the highest scores of each group; of equal ones the higher index stays."""
        axis = _axis(self.axis, scores.shape)
        lines = jnp.moveaxis(ordered(scores), axis, -1)
        length = lines.shape[-1]
        # What fills the last group is highest and behind all others: it comes before none.
        ends = [(0, 0)] * (lines.ndim - 1) + [(0, -length % self.m)]
        most = jnp.iinfo(lines.dtype).max
        s = jnp.pad(lines, ends, constant_values=most).reshape(-1, self.m)
        place = jnp.arange(self.m)[None]

        def count(j, rank):
            other = jax.lax.dynamic_slice_in_dim(s, j, 1, axis=1)
            return rank + ((other < s) | ((other == s) & (j < place)))

        # A rank by comparison with every other: groups are short.
        rank = jax.lax.fori_loop(0, self.m, count, jnp.zeros(s.shape, jnp.int32))
        sizes = np.minimum(self.m, np.arange(length, 0, -self.m))
        removed = np.maximum(sizes - self.n, 0).astype(np.int32)
        kept = rank >= np.tile(removed, len(s) // len(removed))[:, None]
        kept = kept.reshape(*lines.shape[:-1], -1)[..., :length]
        return jnp.moveaxis(kept, -1, axis)


Structure = Weights | Neurons | Block | NM


def _axis(axis, shape):
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis = {axis}: an array of shape {shape} has no such axis")
    return axis % len(shape)


def _scores(structure, x):
    return structure.over(jnp.sum, x) if structure.by == "sum" else _norms(structure, x)


def _norms(structure, x):
    """Floats in the order of the Euclidean norms of units, of whatever size.

    A norm is `r 2^e`: e the exponent of its unit's largest entry, r the norm of the entries over
    2^e, of which no square that matters over- or underflows. The product may, and is never made:
    in the integers that order floats e adds to the high bits, and has more room than in a float.
    """
    kind = jnp.finfo(x.dtype)
    digits, one = kind.nmant, kind.maxexp - 1
    size = magnitudes(x)
    # The exponent of subnormal numbers is that of the least normal ones, without a leading 1.
    exponent = jnp.maximum(size >> digits, 1)
    top = structure.over(jnp.max, exponent)
    leading = jnp.where(size >> digits > 0, 1 << digits, 0).astype(size.dtype)
    whole = ((size & ((1 << digits) - 1)) | leading).astype(x.dtype)
    # By their bits, as a processor may take subnormal floats for zero; the least power will do.
    power = jnp.maximum(exponent - structure.spread(top, x.shape) - digits, 1 - one) + one
    scaled = whole * jax.lax.bitcast_convert_type(power << digits, x.dtype)
    root = jnp.sqrt(structure.over(jnp.sum, scaled**2))
    bits = jax.lax.bitcast_convert_type(root, size.dtype)
    norms = in_order(bits + ((top - 2 * one) << digits), x.dtype)
    return jnp.where(top > 2 * one, jnp.inf, norms)  # infinity and NaN

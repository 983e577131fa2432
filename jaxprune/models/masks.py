"""Masks of one model: which weights are kept."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import validation
from jaxprune.files import whole
from jaxprune.models.model import params_of
from jaxprune.models.paths import arrays, check_name, leaf_names, put
from jaxprune.models.summary import Summary, summarise

FORMAT = {"jaxprune": "masks"}
"""What marks a file of ours."""

SHAPES = "shapes"
"""Which note has the shapes of masks kept in bits; without it they are Boolean arrays."""

NOTES = "__metadata__"
"""Where a safetensors file has it, among the names of its arrays."""


@jax.tree_util.register_pytree_node_class
class Masks(Mapping):
    """Name of an array of a model to a Boolean array of its shape, True where a weight is kept.

    Arrays without a mask are kept whole. Masks measure: a pruned weight is a zero in a dense
    array. They pass through `jit` and `vmap` as pytrees, the names being static.
    """

    def __init__(self, masks: Mapping[str, jax.Array] | None = None):
        """Takes masks by the names of `models.arrays`; None for none.

        Raises:
          ValueError: no dictionary, a name that is no string, or a mask that is no Boolean array.
        """
        masks = {} if masks is None else masks
        validation.instance("masks", masks, Mapping, "a dictionary from names to Boolean arrays")
        for name in masks:
            validation.instance("name of a mask", name, str, "a string")
        # In one order, so that equal masks are equal pytrees wherever they come from.
        self._masks = dict(sorted(masks.items()))
        for name, mask in self._masks.items():
            validation.unmasked(f"mask of {name}", mask)
            if getattr(mask, "dtype", None) != np.dtype(bool):
                raise ValueError(f"mask of {name}: a Boolean array is needed")

    def __getitem__(self, name: str) -> jax.Array:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self):
        return f"Masks({', '.join(f'{name}: {mask.shape}' for name, mask in self.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        same = lambda name: bool(np.array_equal(self[name], other[name]))
        return self.keys() == other.keys() and all(map(same, self))

    __hash__ = None

    def tree_flatten(self):
        return tuple(self._masks.values()), tuple(self._masks)

    @classmethod
    def tree_unflatten(cls, names, masks):
        # Unchecked: what JAX passes through its transformations need not be arrays.
        new = object.__new__(cls)
        new._masks = dict(zip(names, masks, strict=True))
        return new

    def check(self, params: Any) -> None:
        """Raises a ValueError unless every mask has its array in `params`, of its shape."""
        found = arrays(params)
        for name, mask in self.items():
            check_name("mask", name, found)
            if mask.shape != found[name].shape:
                raise ValueError(f"mask of {name}: {mask.shape} does not fit {found[name].shape}")

    def apply(self, params: Any) -> Any:
        """The pruned model: zeros instead of removed weights, whatever those are, NaN included.

        Types stay what they are; every leaf without a mask is the same object as before.

        Raises:
          ValueError: a mask whose array is missing or has another shape; or, under `jit`, an array
            of NumPy's of a type that JAX does not have without `jax.enable_x64`.
        """
        self.check(params)
        found = arrays(params)
        return put(params, {name: _zeroed(name, found[name], mask) for name, mask in self.items()})

    def __and__(self, other: "Masks") -> "Masks":
        """Keeps what both keep; an array that only one has a mask for is whole in the other.

        Raises:
          ValueError: two masks of one array differ in shape, or no Masks.
        """
        validation.instance("other masks", other, Masks, "the Masks that prune gives")
        both = {**self, **other}
        for name in self.keys() & other.keys():
            if self[name].shape != other[name].shape:
                raise ValueError(
                    f"masks of {name}: {self[name].shape} and {other[name].shape} differ"
                )
            both[name] = self[name] & other[name]
        return Masks(both)

    def tree(self, params: Any) -> Any:
        """Masks in the structure of the parameters, for `jax.tree.map` and optimizers.

        Args:
          params: a pytree of parameters, or what `Model.of` takes.

        Returns:
          The parameters' tree with a Boolean array of its shape for every array, all True without
          a mask, and True for leaves that are no arrays. `optax.masked` takes one truth value for
          each array: `jax.tree.map(lambda kept: not kept.all(), masks.tree(params))` says which
          have weights removed.

        Raises:
          ValueError: a mask that does not fit.
        """
        self.check(params)
        params = params_of(params)
        # A view of one number, of whatever shape.
        whole = {name: np.broadcast_to(np.True_, x.shape) for name, x in arrays(params).items()}
        return put(params, dict.fromkeys(leaf_names(params), np.True_) | whole | dict(self))

    def violations(self, params: Any) -> dict[str, int]:
        """How many removed weights are not zero, by array; empty for a model that obeys its masks.

        Args:
          params: a model or its parameters, such as a checkpoint of a pruned model trained further.

        Returns:
          Name to count, of arrays that have any; NaN is not zero.

        Raises:
          ValueError: a mask that does not fit.
        """
        self.check(params)
        found = arrays(params)
        left = {name: _left(found[name], mask) for name, mask in self.items()}
        return {name: count for name, count in left.items() if count}

    def summary(self, params: Any, pruned: Any = None) -> Summary:
        """What is kept of every array, and proof that all others are untouched.

        Beside it stands how many zeros the model has as it is given: none to speak of before it is
        pruned, as many as the masks remove after; see `violations`.

        Args:
          params: the model that was pruned.
          pruned: what has become of it; None for `apply(params)`.

        Raises:
          ValueError: an array without mask differs in `pruned` by a bit, a removed weight is
            not zero or a kept one differs; or a mask does not fit.
        """
        self.check(params)
        return summarise(self, params, self.apply(params) if pruned is None else pruned)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, a bit for each weight, at once or not at all.

        Raises:
          ValueError: an array is called as the format calls its own notes.
          OSError: the file cannot be written.
        """
        from safetensors.numpy import save

        if NOTES in self:
            raise ValueError(f"mask = {NOTES!r}: a safetensors file can have no array of this name")
        bits = {name: np.packbits(np.asarray(mask)) for name, mask in self.items()}
        shapes = json.dumps({name: mask.shape for name, mask in self.items()})
        with whole(Path(path)) as file:
            file.write(save(bits, {**FORMAT, SHAPES: shapes}))

    @classmethod
    def load(cls, path: str | Path, params: Any = None) -> "Masks":
        """Reads what `save` wrote.

        Args:
          path: of the file.
          params: if given, every mask has to fit its array in it.

        Raises:
          ValueError: the file is damaged, is none of masks, or does not fit; one line.
          OSError: the file cannot be read.
        """
        masks = cls(_read(Path(path)))
        if params is not None:
            masks.check(params)
        return masks


def _read(path):
    from safetensors.numpy import load

    data = path.read_bytes()
    try:
        tensors = load(data)
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
    except Exception as error:  # the library has failures of its own, KeyError among them
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: no safetensors file, or a damaged one: {reason}") from None
    notes = header.get(NOTES, {})
    if not FORMAT.items() <= notes.items():
        raise ValueError(f"{path}: a safetensors file, but not of masks")
    if SHAPES in notes:
        shapes = _shapes(path, notes[SHAPES], tensors)
        return {name: _unpacked(path, name, x, shapes[name]) for name, x in tensors.items()}
    for name, x in tensors.items():
        # NumPy takes any byte for a Boolean, and computes nonsense with those above 1.
        if x.dtype != bool or (x.reshape(-1).view(np.uint8) > 1).any():
            raise ValueError(f"{path}: {name} is no Boolean array")
    return tensors


def _shapes(path, text, tensors):
    """The shapes of the masks, none of which has more weights than memory has bits."""
    is_side = lambda side: type(side) is int and 0 <= side < 2**63
    try:
        shapes = json.loads(text)
        ok = shapes.keys() == tensors.keys() and all(
            type(shape) is list and len(shape) <= 32 and all(map(is_side, shape))
            for shape in shapes.values()
        )
    except Exception:  # whatever else it is
        ok = False
    if not ok:
        raise ValueError(f"{path}: a damaged file of masks: its shapes are not those of its arrays")
    return shapes


def _unpacked(path, name, bits, shape):
    size = math.prod(shape)
    try:
        if bits.dtype == np.uint8 and bits.shape == (-(-size // 8),):
            kept = np.unpackbits(bits)
            if not kept[size:].any():
                return kept[:size].astype(bool).reshape(shape)
    except ValueError:  # more in one axis than NumPy counts, none in another
        pass
    raise ValueError(f"{path}: {name} is no Boolean array of shape {tuple(shape)}")


def _left(x, mask):
    """How many removed weights are not zero."""
    return int(np.count_nonzero(np.asarray(x)[~np.asarray(mask)]))


def _zeroed(name, x, mask):
    if isinstance(x, np.ndarray):
        try:
            return np.where(np.asarray(mask), x, np.zeros((), x.dtype))
        except jax.errors.TracerArrayConversionError:
            if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
                raise ValueError(f"{name} is {x.dtype}: jax.enable_x64 is needed") from None
    return jnp.where(mask, x, np.zeros((), x.dtype))

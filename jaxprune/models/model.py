"""A given model: its parameters and the function that they are the parameters of."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Apply = Callable[[Any, jax.Array], jax.Array]

TRAINING = ("deterministic", "use_running_average")
"""Attributes of Flax modules that are False in training: outputs then hang on chance or batch."""


@dataclass(frozen=True)
class Model:
    """`F(x) = apply(params, x)` for a batch of inputs.

    Attributes:
      apply: `(params, (n, ...)) -> (n, ...)`, a pure function of JAX, as in evaluation: each output
        depends on its own input alone.
      params: a pytree, whose arrays are named as those of the module.
    """

    apply: Apply
    params: Any

    @staticmethod
    def of(model: Any) -> "Model":
        """A model as it is written elsewhere.

        Args:
          model: a Flax NNX module, called with a batch; an Equinox module, called with one input;
            a pair `(params, apply)` as in the attributes, for all others; or a `Model`.

        Raises:
          ValueError: none of these, or a module in training.
        """
        nnx, eqx = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
        if isinstance(model, Model):
            return _of_arrays(model.params, model.apply)
        if nnx and isinstance(model, nnx.Module):
            _refuse_training(nnx, model)
            graph, params = nnx.split(model)
            return Model(lambda params, x: nnx.merge(graph, params)(x), params)
        if eqx and isinstance(model, eqx.Module) and callable(model):
            _refuse_noise(model)
            return _of_arrays(model, lambda model, x: jax.vmap(model)(x))
        if is_pair(model):
            _refuse_linen(model[1])
            return _of_arrays(*model)
        raise ValueError(
            f"model of type {type(model).__name__}: a Flax NNX module, an Equinox module that can "
            "be called, or a pair (params, apply) is needed"
        )


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers, truth values or keys; texts and objects are not."""
    if isinstance(leaf, jax.Array):
        return True
    return isinstance(leaf, np.ndarray) and (
        leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)
    )


@jax.tree_util.register_static
class _Fixed:
    """A leaf that is no array, as part of the tree's structure: JAX traces arrays alone."""

    def __init__(self, leaf):
        self.leaf = leaf

    def __eq__(self, other):
        if not isinstance(other, _Fixed) or type(self.leaf) is not type(other.leaf):
            return False
        try:
            return self.leaf is other.leaf or bool(self.leaf == other.leaf)
        except (TypeError, ValueError):  # objects without a truth value, such as arrays of text
            return False

    def __hash__(self):
        return hash(type(self.leaf))


def arrays_alone(params: Any) -> Any:
    """The tree with every leaf that is no array as part of its structure."""
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) else _Fixed(leaf), params)


def alike(params: Any, others: Any) -> bool:
    """Whether two trees have leaves in the same places, be they arrays or not."""
    places = lambda tree: jax.tree.structure(tree, is_leaf=_is_fixed)
    return places(params) == places(others)


def _is_fixed(node):
    return isinstance(node, _Fixed)


def _of_arrays(params, apply):
    if all(map(is_array, jax.tree.leaves(params))):
        return Model(apply, params)
    given = lambda leaf: leaf.leaf if _is_fixed(leaf) else leaf
    whole = lambda params: jax.tree.map(given, params, is_leaf=_is_fixed)
    return Model(lambda params, x: apply(whole(params), x), arrays_alone(params))


def is_pair(model: Any) -> bool:
    """Whether it is `(params, apply)`; a module with arrays of its own is no apply."""
    is_tuple = isinstance(model, tuple) and len(model) == 2
    return is_tuple and callable(model[1]) and not _is_module(model[1])


def params_of(model: Any) -> Any:
    """The parameters of a pair or a `Model`; all else is parameters as it is."""
    if isinstance(model, Model):
        return model.params
    return model[0] if is_pair(model) else model


def is_model(model: Any) -> bool:
    """Whether `Model.of` takes it: parameters alone are no model."""
    libraries = [sys.modules[name] for name in ("flax.nnx", "equinox") if name in sys.modules]
    return is_pair(model) or isinstance(model, (Model, *(library.Module for library in libraries)))


def _is_module(x):
    """Whether it has arrays of its own, unlike the modules that Equinox makes of functions."""
    nnx, eqx = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    if nnx and isinstance(x, nnx.Module):
        return True
    return bool(eqx and isinstance(x, eqx.Module) and any(map(eqx.is_array, jax.tree.leaves(x))))


def _refuse_linen(apply):
    linen = sys.modules.get("flax.linen")
    if linen and isinstance(apply, linen.Module):
        name = type(apply).__name__
        raise ValueError(f"model = (variables, {name}): (variables, {name}.apply) is needed")


def _refuse_training(nnx, model):
    for path, module in nnx.iter_modules(model):
        for name in TRAINING:
            if getattr(module, name, None) is False:
                where = ".".join(map(str, path)) or type(module).__name__
                raise ValueError(f"model: {where} has {name} = False; set it to evaluation before")


def _refuse_noise(model):
    """For Equinox what `_refuse_training` is for Flax; a dropout of nothing is none."""
    trains = lambda node: getattr(node, "inference", None) is False and getattr(node, "p", 1) != 0
    for path, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=trains)[0]:
        if trains(node):
            where = jax.tree_util.keystr(path, simple=True, separator=".") or type(node).__name__
            how = "equinox.nn.inference_mode(model) is needed"
            raise ValueError(f"model: {where} has inference = False; {how}")

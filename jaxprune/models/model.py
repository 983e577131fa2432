"""A given model: its parameters and the function that they are the parameters of."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

Apply = Callable[[Any, jax.Array], jax.Array]

TRAINING = ("deterministic", "use_running_average")
"""Attributes of Flax modules that are False in training: outputs then hang on chance or batch."""


@dataclass(frozen=True)
class Model:
    """`F(x) = apply(params, x)` for a batch of inputs.

    Attributes:
      apply: `(params, (n, ...)) -> (n, ...)`, a pure function of JAX, as in evaluation: each output
        depends on its own input alone.
      params: a pytree of arrays, named as those of the module.
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
            return model
        if nnx and isinstance(model, nnx.Module):
            _refuse_training(nnx, model)
            graph, params = nnx.split(model)
            return Model(lambda params, x: nnx.merge(graph, params)(x), params)
        if eqx and isinstance(model, eqx.Module) and callable(model):
            _refuse_noise(model)
            params, rest = eqx.partition(model, eqx.is_array)
            return Model(lambda params, x: jax.vmap(eqx.combine(params, rest))(x), params)
        if is_pair(model):
            _refuse_linen(model[1])
            return Model(model[1], model[0])
        raise ValueError(
            f"model of type {type(model).__name__}: a Flax NNX module, an Equinox module that can "
            "be called, or a pair (params, apply) is needed"
        )


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

"""Pruning of one model at once: scores, structure and amount to masks."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import session, validation
from jaxprune.models import scores as methods
from jaxprune.models.amounts import Group, LayerAmount, groups
from jaxprune.models.masks import Masks
from jaxprune.models.model import params_of
from jaxprune.models.paths import Arrays, Layers, check_name, floating, norms, select
from jaxprune.models.precision import is_floating
from jaxprune.models.scores import wide
from jaxprune.models.selection import lowest, lowest_on_host
from jaxprune.models.structures import NM, Neurons, Structure, Weights
from jaxprune.pruning import Pruning
from jaxprune.types import Key

Method = str | Pruning | Mapping[str, jax.Array] | Callable[[Any], Mapping[str, jax.Array]]
"""Scores by name, a function of the parameters that gives them, "magnitude" or "random".

`jaxprune.magnitude` and `jaxprune.random` stand for their names.
"""

METHODS = ("magnitude", "random")

FUNCTIONS = {
    "snip": "lambda p: models.snip(loss, p, x, y)",
    "grasp": "lambda p: models.grasp(loss, p, x, y)",
    "synflow": "lambda p: models.synflow(apply, p, in_shape)",
}
"""How methods are written that need more than the parameters."""


def prune(
    params: Any,
    method: Method = "magnitude",
    amount: LayerAmount | None = None,
    *,
    layers: Layers = None,
    structure: Structure | None = None,
    key: Key | None = None,
    masks: Masks | None = None,
) -> Masks:
    """Removes the lowest scores: exactly as many as the amount says.

    Equal scores go in the order of their flat index; under one threshold for several layers, in
    the order of the layers in the tree first. The same arguments give the same masks. It runs
    under `jit` and `vmap`, where only NaN and infinite scores cannot be refused: NaN
    then counts as the highest score and goes last.

    Args:
      params: a pytree of parameters, or what `Model.of` takes.
      method: "magnitude", "random", scores by name, or a function of the parameters that gives
        them, such as `lambda p: models.snip(loss, p, x, y)`. The highest scores are kept.
      amount: a sparsity (the fraction removed), an `Amount`, `Global`, `ErdosRenyi` or a
        dictionary from names or patterns to amounts of single layers. It counts what the
        structure removes together: half of 10 neurons are 5. None with `NM`, and only there. A
        sparsity, also that of `Global` or in a dictionary, may be traced.
      layers: which arrays, see `select`; by default matrices and kernels.
      structure: `Weights()`, `Neurons`, `Block` or `NM`; None for single weights.
      key: for "random".
      masks: of earlier pruning. What they removed stays removed, and counts as removed: if that
        is more than the amount, nothing more goes. What is left of a unit is scored by its rest.

    Returns:
      Masks of the chosen layers, and of those that `masks` had.

    Raises:
      ValueError: an argument that does not fit, scores of a layer that are not finite, or settings
        of JAX that `session.check` refuses.

    Warns:
      UserWarning: neurons are removed, and the model has a norm of their number that has no masks.
    """
    session.check()
    params = params_of(params)
    structure = Weights() if structure is None else structure
    chosen = select(params, layers)
    plan = planned(chosen, amount, structure)
    return pruned(params, method, plan, chosen, structure, key, masks)


def planned(chosen: Arrays, amount: LayerAmount | None, structure: Structure) -> list[Group]:
    """Thresholds and counts of the chosen layers; empty for N:M."""
    validation.instance("structure", structure, Structure, "Weights, Neurons, Block or NM")
    shapes = {path: w.shape for path, w in chosen.items()}
    units = {path: int(np.prod(structure.units(shape))) for path, shape in shapes.items()}
    if isinstance(structure, NM):
        if amount is not None:
            raise ValueError(f"amount = {amount!r}: N:M says itself how much goes")
        return []
    return groups(amount, shapes, units)


def pruned(
    params: Any,
    method: Method,
    plan: Sequence[Group],
    chosen: Arrays,
    structure: Structure,
    key: Key | None,
    masks: Masks | None,
) -> Masks:
    """`prune` with its counts worked out."""
    masks = Masks() if masks is None else masks
    masks.check(params)
    shapes = {path: w.shape for path, w in chosen.items()}
    earlier = {path: masks[path] for path in chosen if path in masks}
    method = method.name if isinstance(method, Pruning) else method
    if isinstance(method, str) and method in FUNCTIONS:
        raise ValueError(f"method = {method!r}: a function is needed, {FUNCTIONS[method]}")
    if isinstance(method, str) and validation.choice("method", method, METHODS) == "random":
        scores, of_units = _random(params, structure, shapes, key), True
    else:
        # Of magnitude those of the chosen layers alone are computed.
        found = methods.magnitude(_on_host(chosen)) if isinstance(method, str) else method
        found = found(params) if callable(found) else found
        scores, of_units = _on_host(_fitting(found, shapes)), False
    earlier, removed = _on_host(earlier), [group.removed for group in plan]
    with _precision(scores):
        if not of_units:
            _refuse(scores, earlier, structure)
        traced = _is_traced([scores, earlier, removed])
        # What is known is computed, also while other things are traced.
        with nullcontext() if traced else jax.ensure_compile_time_eval():
            layers = _Layers(structure, shapes, of_units, traced)
            new = layers.kept(scores, earlier, [group.paths for group in plan], removed)
    masks = Masks({**masks, **new})
    masks &= _biases(params, structure, chosen, masks)
    if isinstance(structure, Neurons):
        less = [
            path
            for group in plan
            for path in group.paths
            if _is_traced(group.removed) or group.removed
        ]
        _warn_of_norms(params, structure, {path: shapes[path] for path in less}, masks)
    return masks


def _is_traced(tree):
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _on_host(arrays):
    """Arrays of NumPy, from whatever devices; as they are if one is traced."""
    return dict(arrays) if _is_traced(arrays) else jax.device_get(dict(arrays))


class _Layers(NamedTuple):
    """From scores to masks, layer by layer.

    Under `jit` all is traced. Else no program is compiled for the shapes of single weights: what
    goes by entries is NumPy's, and the k lowest are found at a few padded sizes.

    Attributes:
      structure: what goes together.
      shapes: of the layers' arrays.
      of_units: whether scores are those of units.
      traced: whether any number is.
    """

    structure: Structure
    shapes: dict[str, tuple[int, ...]]
    of_units: bool
    traced: bool

    def kept(self, scores, earlier, together, removed):
        """Masks of the layers, without what the earlier ones removed."""
        of = self._by_groups if isinstance(self.structure, NM) else self._by_thresholds
        new = of(scores, earlier, together, removed)
        return new if self.traced else jax.device_put(new)

    def _by_groups(self, scores, earlier, together, removed):
        """Of N:M, which says itself how much goes."""
        return {
            path: self._run(_kept_of_groups, s, earlier.get(path)) for path, s in scores.items()
        }

    def _by_thresholds(self, scores, earlier, together, removed):
        units = {
            path: self._run(_units, s, earlier.get(path), of_units=self.of_units)
            for path, s in scores.items()
        }
        new = {}
        for paths, k in zip(together, removed, strict=True):
            flat = jnp if self.traced else np
            marks = flat.concatenate([flat.ravel(units[path]) for path in paths])
            marks = lowest(marks, k) if self.traced else lowest_on_host(marks, k)
            ends = np.cumsum([units[path].size for path in paths])[:-1]
            for path, gone in zip(paths, flat.split(marks, ends), strict=True):
                stays = ~gone.reshape(units[path].shape)
                new[path] = self._run(_spread, stays, earlier.get(path), shape=self.shapes[path])
        return new

    def _run(self, of, *arrays, **static):
        """A function of arrays, where the structure needs more than NumPy as one program."""
        static["structure"] = self.structure
        if self.traced or isinstance(self.structure, Weights):
            return of(*arrays, **static, of=jnp if self.traced else np)
        return jax.device_get(_compiled(of, *jax.device_put(arrays), **static))


@partial(jax.jit, static_argnums=0, static_argnames=("structure", "of_units", "shape"))
def _compiled(of, *arrays, **static):
    return of(*arrays, **static, of=jnp)


def _units(s, earlier, *, structure, of_units, of):
    """The scores of units, lowest where an earlier mask has removed all of one."""
    s = wide(s)
    if not of_units:
        # What is left of a unit is scored by its rest.
        s = s if earlier is None else of.where(earlier, s, of.zeros((), s.dtype))
        s = structure.scores(s)
    return s if earlier is None else of.where(_gone(earlier, structure), -of.inf, s)


def _kept_of_groups(s, earlier, *, structure, of):
    s = wide(s)
    s = s if earlier is None else of.where(earlier, s, -of.inf)
    kept = structure.keep(s)
    return kept if earlier is None else kept & earlier


def _spread(stays, earlier, *, structure, shape, of):
    kept = structure.spread(stays, shape)
    return kept if earlier is None else kept & earlier


def _gone(mask, structure):
    """Which units a mask removes whole."""
    return ~structure.over(jnp.any, mask)


_gone_compiled = jax.jit(_gone, static_argnames="structure")


def units_gone(chosen: Arrays, structure: Structure, masks: Masks) -> dict[str, int]:
    """How many units of each layer that has a mask it removes whole."""
    gone = {path: _gone_compiled(masks[path], structure) for path in chosen if path in masks}
    return {path: int(np.sum(np.asarray(x))) for path, x in gone.items()}


def _random(params, structure, shapes, key):
    """Coins of units, not of their weights, so that short tiles stay as often as others."""
    if key is None:
        raise ValueError('key = None: "random" needs a key')
    places = {path: i for i, path in enumerate(floating(params))}
    units = {path: structure.units(shape) for path, shape in shapes.items()}
    return methods.coins_of(key, {path: (places[path], of) for path, of in units.items()})


def _fitting(scores, shapes):
    """The scores of the chosen layers, if they are floats of the right shapes."""
    validation.instance("method", scores, Mapping, "scores by name, or a function or name of such")
    for path, shape in shapes.items():
        check_name("scores", path, scores)
        s = validation.unmasked(f"scores of {path}", scores[path])
        if getattr(s, "shape", None) != shape or not is_floating(s):
            raise ValueError(f"scores of {path}: floats of shape {shape} are needed")
    return {path: scores[path] for path in shapes}


def _refuse(scores, earlier, structure):
    """Raises a ValueError for scores that have no order, if they are known by now."""
    # What NumPy has already is looked at there: no program has to be compiled for it.
    on_host = all(isinstance(s, np.ndarray) for s in scores.values())
    try:
        if on_host:
            faults = _faults(scores, {p: np.asarray(mask) for p, mask in earlier.items()}, np)
        else:
            faults = {p: np.asarray(f) for p, f in _faults_on_device(scores, earlier).items()}
    except jax.errors.TracerArrayConversionError:
        return
    for path, (not_finite, negative) in faults.items():
        if not_finite:
            raise ValueError(
                f"scores of {path}: not all are finite (NaN weights, or an overflow that float64 "
                "may avoid)"
            )
        if negative and getattr(structure, "by", None) == "l2":
            raise ValueError(f"scores of {path}: some are below 0, where by='sum' is needed")


def _faults(scores, earlier, of=jnp):
    """For each layer whether a score that matters is not finite, and whether one is negative."""
    counts = lambda path, marks: of.any(marks & earlier[path] if path in earlier else marks)
    both = lambda path, s: of.stack([counts(path, ~of.isfinite(s)), counts(path, s < 0)])
    return {path: both(path, s) for path, s in scores.items()}


_faults_on_device = jax.jit(_faults)


def _precision(scores):
    """JAX in double precision if any score is."""
    double = any(s.dtype == np.float64 for s in scores.values())
    return jax.enable_x64(True) if double else nullcontext()


def _warn_of_norms(params, structure, shapes, masks):
    """Says what removed neurons put out behind a norm, which is nowhere in the masks."""
    sizes = {path: math.prod(structure.units(shape)) for path, shape in shapes.items()}
    found = {name: x.size for name, x in floating(params).items()}
    of = norms(params)
    seen_to = {of[name] for name in masks if name in of}
    behind = {
        norm: path
        for path, size in sizes.items()
        for name, norm in of.items()
        if found.get(name) == size and norm not in seen_to
    }
    if behind:
        norm, path = min(behind.items())
        more = f" (and {len(behind) - 1} more)" if len(behind) > 1 else ""
        warnings.warn(
            "a neuron removed in front of a norm still puts out its bias - scale mean / "
            f"sqrt(variance): if {norm} is behind {path}{more}, mask its scale and bias as well",
            stacklevel=4,
        )


def _biases(params, structure, chosen, masks):
    """Masks of the biases: an entry goes if its unit is gone from every weight beside the bias."""
    if not isinstance(structure, Neurons) or structure.bias is None:
        return Masks()
    found, axis = floating(params), structure.axis
    bias_of = lambda path: ".".join([*path.split(".")[:-1], structure.bias])
    feeding, shapes = {}, {}
    for bias in sorted({bias_of(path) for path in chosen if bias_of(path) != path} & found.keys()):
        shape, size = found[bias].shape, found[bias].size
        beside = {path: w for path, w in found.items() if bias_of(path) == bias != path}
        # Equinox's convolutions have a bias with axes of length 1 behind the first.
        line = max(shape, default=1) == size
        of = {}
        for path, w in beside.items():
            fits = line and -w.ndim <= axis < w.ndim and w.shape[axis] == size
            if path in chosen and not fits:
                raise ValueError(f"{bias} has shape {shape}, not ({w.shape[axis]},)")
            # Weights that were not chosen still feed their units.
            if path in chosen or (fits and w.ndim >= 2):
                of[path] = masks.get(path, np.ones(w.shape, bool))
        feeding[bias], shapes[bias] = of, shape
    if not feeding:
        raise ValueError(f"bias = {structure.bias!r}: no chosen layer has one")
    return Masks(_biases_kept(feeding, structure, tuple(shapes.items())))


@partial(jax.jit, static_argnames=("structure", "shapes"))
def _biases_kept(feeding, structure, shapes):
    """Masks of the biases, from those of the weights that feed their units."""
    kept = {}
    for bias, shape in shapes:
        gone = [_gone(mask, structure) for mask in feeding[bias].values()]
        kept[bias] = ~jnp.all(jnp.stack(gone), 0).reshape(shape)
    return kept

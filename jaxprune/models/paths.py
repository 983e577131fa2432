"""The arrays of any pytree of parameters by name, and the choice of those that are pruned.

A name is the way to an array through dictionaries, lists, attributes: "layers.0.weight". The
variables of Flax NNX go by their own name: "linear.kernel", not "linear.kernel.value".
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from jaxprune import validation
from jaxprune.models.model import Model, is_array, is_pair
from jaxprune.models.precision import is_floating

Arrays = dict[str, jax.Array | np.ndarray]
"""Arrays by their dotted paths, in the order of the tree."""

Layers = str | Sequence[str] | Callable[[str, jax.Array], bool] | None
"""Which layers are pruned; see `select`."""

APART = ("bias", "scale")
"""What arrays are called that are pruned on demand alone."""

KERNEL = "kernel"
KERNELS = (KERNEL, "weight", "w")
"""What matrices and kernels are called whatever their shape is."""

TABLE = re.compile(r"embed|(?<![a-z])(wte|wpe)(?![a-z])|prelu", re.IGNORECASE)
"""How what is looked up is called, or its owner; and PReLU, whose slopes look like a kernel."""

ADDED = re.compile(r"(?<![a-z])(pos|position|positional|tokens?|cls)(?![a-z])|slope", re.IGNORECASE)
"""How position tables, class tokens and slopes are called themselves."""

NORM = re.compile(r"norm|(?<![a-z])(bn|ln)(?![a-z])", re.IGNORECASE)
"""How norms are called: LayerNorm, batch_norm_1, bn2, ln_f."""

Build = Callable[[Any], Any]


def _plain(params: Any) -> tuple[Any, Build]:
    """A pytree of each array once, and what makes of such a tree again what `params` is."""
    if is_pair(params):
        tree, build = _plain(params[0])
        return tree, lambda new: (build(new), params[1])
    if isinstance(params, Model):
        tree, build = _plain(params.params)
        return tree, lambda new: Model(params.apply, build(new))
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(params, nnx.Module):
        # For JAX a variable in two places would be two; Flax has it in the first of them.
        graph, state = nnx.split(params)
        return state, lambda new: nnx.merge(graph, new)
    return params, lambda new: new


def _named(params: Any) -> tuple[list[str], list[Any], Build]:
    """Names, leaves, and what makes `params` of other leaves.

    All names differ, those of leaves that are no arrays, too.
    """
    params, build = _plain(params)
    found, tree = jax.tree_util.tree_flatten_with_path(params)
    variables = _flax_variables(params)
    # Flax's key of the array inside a variable is its own affair and has changed before.
    names = [_name(path[:-1] if path[:-1] in variables else path) for path, _ in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"params: two leaves are called {twice!r}")
    return names, [leaf for _, leaf in found], lambda new: build(jax.tree.unflatten(tree, new))


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _flax_variables(params):
    """The NNX variables in a tree by key path; nobody who has not imported Flax has any."""
    variables, places = dict(_variables(params)), {}
    for path, node in variables.items():
        first = places.setdefault(id(node), path)
        if first != path:
            both = f"{_name(first)} and {_name(path)} are one variable"
            raise ValueError(f"params: {both}; the Flax module that has both is needed")
    return variables


def _variables(params):
    found, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_variable)
    return [(path, node) for path, node in found if _is_variable(node)]


def _is_variable(node):
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def _owners(params: Any) -> dict[str, str]:
    """Name of a leaf to that of the class whose attribute it is; empty for dictionaries, lists."""
    if is_pair(params):
        return _owners(params[0])
    if isinstance(params, Model):
        return _owners(params.params)
    # A Flax module as it is: its state has no classes.
    found, _ = jax.tree_util.tree_flatten_with_path(params)
    variables = {path for path, _ in _variables(params)}
    names = (_name(path[:-1] if path[:-1] in variables else path) for path, _ in found)
    return dict(zip(names, _classes(params), strict=True))


def _classes(node: Any, owner: str = "") -> list[str]:
    """For each leaf the name of the class whose attribute it is, in the tree's order."""
    children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    if any(child is node for child in children):
        return [owner]
    # A variable belongs to its module, and is no owner; what a dictionary or list is tells nothing.
    if not _is_variable(node):
        plain = isinstance(node, Mapping) or type(node) in (list, tuple)
        owner = "" if plain else type(node).__name__
    return [name for child in children for name in _classes(child, owner)]


def leaf_names(params: Any) -> list[str]:
    """The names of all leaves, arrays or not."""
    return _named(params)[0]


def arrays(params: Any) -> Arrays:
    """All arrays of a pytree; leaves that are none (functions, numbers) are left out.

    Args:
      params: a pytree, or a model that `Model.of` takes, whose parameters are meant. A variable
        that a Flax module has in several places is one array, under the first of its names; an
        array in several places of any other pytree is several, as for JAX (`equinox.nn.Shared`
        has it once).

    Raises:
      ValueError: two leaves have the same name, as in `{"a.b": x, "a": {"b": y}}`, or one Flax
        variable stands in several modules that do not form one; or an array that JAX does not
        take, masked or of another machine's byte order.
    """
    names, leaves, _ = _named(params)
    found = {name: x for name, x in zip(names, leaves, strict=True) if is_array(x)}
    for name, x in found.items():
        validation.unmasked(name, x)
        if isinstance(x, np.ndarray) and not x.dtype.isnative:
            needed = f"the machine's own byte order is needed, x.astype({x.dtype.name!r})"
            raise ValueError(f"{name} is {x.dtype.str}: {needed}")
    return found


def floating(params: Any) -> Arrays:
    """All arrays of floating numbers that have any: what can be pruned.

    Raises:
      ValueError: one of NumPy's long doubles, which JAX does not have.
    """
    found = {name: x for name, x in arrays(params).items() if is_floating(x) and x.size > 0}
    for name, x in found.items():
        if x.dtype.itemsize > 8:
            raise ValueError(f"{name} is {x.dtype}: float64 or narrower is needed")
    return found


def statistics(params: Any) -> set[str]:
    """Names of the running statistics: Flax's `BatchStat`, Linen's collection "batch_stats"."""
    nnx = sys.modules.get("flax.nnx")
    found = _flax_variables(_plain(params)[0]).items()
    of_flax = {_name(path) for path, node in found if isinstance(node, nnx.BatchStat)}
    return of_flax | {name for name in arrays(params) if name.startswith("batch_stats.")}


def replace(params: Any, new: Mapping[str, jax.Array]) -> Any:
    """The pytree with some of its arrays replaced; all other leaves are the same objects.

    Args:
      params: a pytree or a model, as for `arrays`.
      new: arrays by name, each of the shape and type of the one it replaces.

    Raises:
      ValueError: an unknown name (the nearest are suggested), no array, another shape or type.
    """
    old = arrays(params)
    for name, x in new.items():
        check_name("name", name, old)
        if not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(f"{name}: an array is needed, not a {type(x).__name__}")
        if (x.shape, x.dtype) != (old[name].shape, old[name].dtype):
            there = f"{old[name].dtype} of shape {old[name].shape}"
            raise ValueError(f"{name} is {there}: {x.dtype} of shape {x.shape} does not fit")
    return put(params, new)


def put(params: Any, new: Mapping[str, jax.Array]) -> Any:
    """`replace` that takes any type, for derivatives in others, and trusts its names."""
    names, leaves, build = _named(params)
    named = zip(names, leaves, strict=True)
    return build([new.get(name, leaf) for name, leaf in named])


def select(params: Any, layers: Layers = None) -> Arrays:
    """The arrays that are pruned.

    Args:
      params: a pytree.
      layers: None for matrices and kernels, by name and shape: floating arrays of two or more
        axes, but for
        - those called `bias` or `scale`, and those whose owner is a norm: its name (the part before
          the array's own) or, in a tree of modules, its class contains `norm`, or `bn` or `ln` as a
          word (`bn2`, `ln_f`);
        - embeddings, which are looked up: `embed`, or `wte` or `wpe` as a word, in an array's own
          name; or, of two axes and not called `kernel`, in its owner's class, or name where that is
          in a dictionary. So are slopes of `prelu`;
        - position tables, class tokens, slopes: `pos`, `position`, `positional`, `token`, `tokens`,
          `cls` as a word, or `slope`, in an array's own name;
        - arrays of three or more axes that are there to be broadcast, the first of length 1 or all
          but one, unless they are called `kernel`, `weight` or `w`.
        Or one or several names or patterns ("encoder.*.weight"), or a predicate on name and array.
        Those choose among all floating arrays.

    Returns:
      Name to array, in the order of the tree.

    Raises:
      ValueError: a name or pattern that fits no floating array (the nearest names are
        suggested), or nothing chosen.
    """
    found = floating(params)
    if layers is None:
        # The number of axes does not tell: Equinox's biases of convolutions and norms of images
        # have several.
        apart = _apart(params, found)
        chosen = {name: x for name, x in found.items() if x.ndim >= 2 and name not in apart}
    elif callable(layers):
        chosen = {name: x for name, x in found.items() if layers(name, x)}
    else:
        wanted = [layers] if isinstance(layers, str) else layers
        if not isinstance(wanted, Iterable):
            raise ValueError(f"layers = {layers!r}: names, patterns or a predicate are needed")
        fits = {pattern: matching(pattern, found) for pattern in wanted}
        for pattern, names in fits.items():
            if not names:
                check_name("layers", pattern, found)
        chosen = {name: x for name, x in found.items() if any(name in f for f in fits.values())}
    if not chosen:
        raise ValueError(f"layers = {layers!r}: no floating array is chosen")
    return chosen


def _apart(params, found):
    """Names of biases, scales, norms' own, and what is looked up, added or broadcast."""
    apart = set(norms(params))
    for name, owner_class in _owners(params).items():
        if name in found and not _multiplies(*_parts(name), owner_class, found[name].shape):
            apart.add(name)
    return apart


def norms(params: Any) -> dict[str, str]:
    """Names of the arrays that are a norm's own, statistics included, to that of the norm."""
    is_norm = lambda owner, owner_class: NORM.search(owner) or NORM.search(owner_class)
    return {
        name: name[: -len(own) - 1] or owner_class
        for name, owner_class in _owners(params).items()
        for owner, own in [_parts(name)]
        if is_norm(owner, owner_class)
    }


def _parts(name):
    """Of a dotted name the owner's and the array's own; Haiku's modules have slashes."""
    *_, owner, own = ["", *re.split(r"[./]", name)]
    return owner, own


def _multiplies(owner, own, owner_class, shape):
    """Whether an array is a matrix or a kernel; see `select`."""
    if own in APART or ADDED.search(own) or TABLE.search(own):
        return False
    if own != KERNEL and len(shape) == 2 and TABLE.search(owner_class or owner):
        return False
    broadcast = shape[:1] == (1,) or sum(side > 1 for side in shape) <= 1
    return own in KERNELS or len(shape) < 3 or not broadcast


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that are the pattern, or fit it as files fit one in a shell."""
    return [name for name in names if name == pattern or fnmatchcase(name, str(pattern))]


def check_name(what: str, name: Any, names: Iterable[str]) -> None:
    """Raises a ValueError that suggests the nearest names if `name` is not one of them."""
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"{what} = {name!r}: fits none of {len(names)} arrays{hint}")

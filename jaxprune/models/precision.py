"""What floats a model computes in, and the same model in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def is_floating(a: Any) -> bool:
    """Whether it is an array of floats."""
    return hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)


def widened(tree: Any) -> Any:
    """Every floating array in float64, NumPy's in NumPy; under `jax.enable_x64`."""
    leaves, structure = jax.tree.flatten(tree)
    device = {i: a for i, a in enumerate(leaves) if is_floating(a) and isinstance(a, jax.Array)}
    # One program for all arrays, not one for each shape.
    device = _widened(device) if device else {}
    host = lambda a: np.asarray(a, np.float64) if is_floating(a) else a
    leaves = [device[i] if i in device else host(a) for i, a in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


@jax.jit
def _widened(arrays):
    return {i: a.astype(jnp.float64) for i, a in arrays.items()}


def narrowest(fn: Callable, *args: Any) -> np.dtype | None:
    """The narrowest floats among what is computed of the arguments, None for none.

    What is computed of constants alone does not count, nor do truth values as floats, which are
    exact; what is computed and not used does.
    """
    found = _computed(jax.make_jaxpr(fn)(*args).jaxpr, set())
    return min(found, key=lambda kind: kind.itemsize, default=None)


def _computed(jaxpr, constants) -> Iterator[np.dtype]:
    """Types of what the program computes of those of its inputs that are not constants."""
    constants = constants | set(jaxpr.constvars)
    fixed = lambda v: isinstance(v, core.Literal) or v in constants
    for eqn in jaxpr.eqns:
        if all(map(fixed, eqn.invars)):
            constants.update(eqn.outvars)
            continue
        inner = list(_jaxprs(eqn.params))
        for sub in inner:
            same = len(sub.invars) == len(eqn.invars)
            pairs = zip(sub.invars, eqn.invars, strict=True) if same else ()
            yield from _computed(sub, {v for v, outer in pairs if fixed(outer)})
        if not inner and not all(map(_is_truth, eqn.invars)):
            yield from (np.dtype(v.aval.dtype) for v in eqn.outvars if is_floating(v.aval))


def _is_truth(v):
    return str(getattr(v.aval, "dtype", "")) == "bool"


def _jaxprs(x):
    """The programs within an equation: of loops, branches, functions."""
    if isinstance(x, core.ClosedJaxpr):
        yield x.jaxpr
    elif isinstance(x, core.Jaxpr):
        yield x
    elif isinstance(x, dict):
        yield from (jaxpr for value in x.values() for jaxpr in _jaxprs(value))
    elif isinstance(x, list | tuple):
        yield from (jaxpr for value in x for jaxpr in _jaxprs(value))

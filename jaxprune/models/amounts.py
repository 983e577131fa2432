"""How much of each layer is removed, or of all layers together."""

import fractions
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import validation
from jaxprune.models.paths import check_name, matching
from jaxprune.models.precision import is_floating
from jaxprune.pruning import Amount, Fraction

Shape = tuple[int, ...]
MOST = 2**31 - 1


@dataclass(frozen=True)
class Global:
    """The nearest whole number to `q D` of the D units of all chosen layers, by one threshold.

    q may be traced, see `groups`.
    """

    q: float

    def __post_init__(self):
        if not isinstance(self.q, jax.core.Tracer):
            object.__setattr__(self, "q", _sparsity(self.q))


@dataclass(frozen=True)
class ErdosRenyi:
    """Sparsity q of all layers together, larger layers being sparser.

    The density of a layer is proportional to (sum of its sides) / (product of its sides); layers
    that this would keep more than whole are kept whole, and the others share the rest (Evci, Gale,
    Menick, Castro & Elsen, "Rigging the lottery", ICML 2020, arXiv:1911.11134, section 3). The
    whole counts are those below the exact ones, the largest remainders rounded up until the total
    is the nearest whole number to the wanted one.

    Attributes:
      q: fraction removed of all layers together.
      kernel: whether the sides of kernels count, too ("Erdos-Renyi-Kernel"); if not, only numbers
        of inputs and outputs do.
      axes: of inputs and outputs, for `kernel=False`: `(0, 1)` here and in Equinox, `(-2, -1)`
        in Flax.
    """

    q: float
    kernel: bool = True
    axes: tuple[int, int] = (0, 1)

    def __post_init__(self):
        object.__setattr__(self, "q", _sparsity(self.q))
        pair = validation.instance("axes", self.axes, tuple, "a pair (0, 1)")
        if len(pair) != 2:
            raise ValueError(f"axes = {pair}: two axes are needed, of inputs and of outputs")
        for axis in pair:
            validation.integer("axis", axis, -32, 31)

    def removed(self, shapes: Mapping[str, Shape], units: Mapping[str, int]) -> dict[str, int]:
        """Number removed of each layer.

        Args:
          shapes: of the layers' arrays, by name.
          units: what each has of what is removed together.
        """
        total = sum(units.values())
        wanted = total - round(self.q * total)
        share = {path: self._share(shape) for path, shape in shapes.items()}
        whole: set[str] = set()
        while True:
            others = [path for path in units if path not in whole]
            rest = wanted - sum(units[path] for path in whole)
            per = sum(share[path] * units[path] for path in others)
            scale = rest / per if others else 0
            beyond = {path for path in others if scale * share[path] > 1}
            if not beyond:
                break
            whole |= beyond
        exact = {
            path: fractions.Fraction(size) if path in whole else scale * share[path] * size
            for path, size in units.items()
        }
        kept = {path: math.floor(x) for path, x in exact.items()}
        missing = wanted - sum(kept.values())
        # Sorting is stable: of equal remainders the first layer's is rounded up.
        for path in sorted(exact, key=lambda path: kept[path] - exact[path])[:missing]:
            kept[path] += 1
        return {path: units[path] - kept[path] for path in units}

    def _share(self, shape):
        sides = shape if self.kernel or len(shape) < 2 else self._channels(shape)
        return fractions.Fraction(sum(sides) or 1, math.prod(sides))

    def _channels(self, shape):
        n = len(shape)
        places = {axis % n for axis in self.axes if -n <= axis < n}
        if len(places) < 2:
            raise ValueError(f"axes = {self.axes}: are not two axes of an array of shape {shape}")
        return [shape[place] for place in places]


LayerAmount = float | jax.Array | Amount | Global | ErdosRenyi | Mapping[str, float | Amount]
"""A sparsity, an amount for every layer, one for all together, or one for each name or pattern."""


class Group(NamedTuple):
    """Layers with a common threshold.

    Attributes:
      paths: their names.
      removed: how many units of them are removed; a traced int32 if the amount is traced.
      units: how many they have.
    """

    paths: tuple[str, ...]
    removed: int | jax.Array
    units: int


def groups(
    amount: LayerAmount, shapes: Mapping[str, Shape], units: Mapping[str, int]
) -> list[Group]:
    """Who shares a threshold, and how much goes.

    Args:
      amount: how much. Of a sparsity that is traced, by itself, in a dictionary or in `Global`, the
        count is that of its value; one that is not in [0, 1] is moved there, NaN to 0.
      shapes: of the chosen layers' arrays, by name.
      units: what each has of what is removed together.

    Raises:
      ValueError: no amount, one out of range, axes that a layer does not have, or a dictionary
        that does not give every chosen layer exactly one.
    """
    if isinstance(amount, Global):
        total = sum(units.values())
        plan = [Group(tuple(units), _count(amount.q, total), total)]
    elif isinstance(amount, ErdosRenyi):
        removed = amount.removed(shapes, units)
        plan = [Group((path,), removed[path], size) for path, size in units.items()]
    else:
        of = _each(amount, units) if isinstance(amount, Mapping) else dict.fromkeys(units, amount)
        plan = [Group((path,), _count(of[path], size), size) for path, size in units.items()]
    for group in plan:
        if group.units > MOST:
            raise ValueError(f"{group.units} weights under one threshold: at most {MOST} fit")
    return plan


def _sparsity(q):
    """As a float of Python: narrower ones lose whole weights in products, or overflow."""
    return validation.real("sparsity", q, 0.0, 1.0, open=False)


def _count(amount, size):
    """How many of so many units go."""
    if not isinstance(amount, jax.core.Tracer):
        return _amount(amount).count(size)
    if amount.ndim or not is_floating(amount):
        raise ValueError(f"amount = {amount!r}: one sparsity is needed, a float")
    with jax.enable_x64(True):  # what Python's floats are
        q = jnp.clip(jnp.nan_to_num(amount.astype(jnp.float64)), 0.0, 1.0)
        return jnp.round(q * size).astype(jnp.int32)


def _amount(amount):
    if isinstance(amount, Amount):
        return amount
    if isinstance(amount, str) or not hasattr(amount, "__float__"):
        raise ValueError(f"amount = {amount!r}: a sparsity or an amount is needed")
    return Fraction(validation.real("amount", amount, 0.0, 1.0, open=False))


def _each(amounts, names):
    fits = {pattern: matching(pattern, names) for pattern in amounts}
    for pattern, found in fits.items():
        if not found:
            check_name("amount", pattern, names)
    of = {}
    for name in names:
        patterns = [pattern for pattern, found in fits.items() if name in found]
        if len(patterns) != 1:
            which = f"amounts of {', '.join(map(repr, patterns))}" if patterns else "no amount"
            raise ValueError(f"amount: layer {name!r} has {which}, and needs exactly one")
        of[name] = amounts[patterns[0]]
    return of

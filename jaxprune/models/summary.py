"""What masks leave of a model, as numbers and as a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.models.paths import arrays
from jaxprune.models.precision import is_floating


class Row(NamedTuple):
    """One array.

    Attributes:
      path: its name.
      shape: of the array.
      weights: how many it has; keys, counters and all else that is not floating has none, unless
        it has a mask.
      kept: how many are kept.
      zeros: how many are zero in the model as it was given.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction removed; 0 of an array that has no weights."""
        return 1.0 - self.kept / self.weights if self.weights else 0.0


class Summary(NamedTuple):
    """What is kept.

    Attributes:
      pruned: a row for each array with a mask, in the order of the model.
      untouched: a row for each array without one, found the same to the bit.
    """

    pruned: tuple[Row, ...]
    untouched: tuple[Row, ...]

    @property
    def masked(self) -> Row:
        """All arrays with a mask together."""
        return _together("masked", self.pruned)

    @property
    def total(self) -> Row:
        """All arrays of the model together; those that are not floating have no weights."""
        return _together("total", self.pruned + self.untouched)

    def __str__(self):
        rows = [(r.path, "x".join(map(str, r.shape)) or "()", r) for r in self.pruned]
        rows += [("masked", "", self.masked), ("total", "", self.total)]
        path, shape = (max(len(row[i]) for row in rows) for i in range(2))
        head = f"{'weights':>12} {'kept':>12} {'sparsity':>9} {'zeros':>9}"
        lines = [f"{'':{path}}  {'':{shape}} {head}"]
        for name, size, row in rows:
            zeros = row.zeros / max(row.weights, 1)
            numbers = f"{row.weights:>12,} {row.kept:>12,} {row.sparsity:>9.2%} {zeros:>9.2%}"
            lines.append(f"{name:{path}}  {size:{shape}} {numbers}")
        left, weights = len(self.untouched), sum(row.weights for row in self.untouched)
        names = ", ".join(row.path for row in self.untouched)
        untouched = f"untouched: {left} arrays of {weights:,} weights, 0 removed"
        lines.append(untouched + f": {names}" * bool(left))
        return "\n".join(lines)


def summarise(masks: Mapping[str, jax.Array], params: Any, pruned: Any) -> Summary:
    """Compares a model before and after with its masks; see `Masks.summary`."""
    before, after = arrays(params), arrays(pruned)
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        raise ValueError(f"{name} is in only one of the models before and after")
    rows = {True: [], False: []}
    for name, x in before.items():
        kept = np.asarray(masks[name]) if name in masks else None
        if not _as_told(x, after[name], kept):
            what = "was changed without a mask" if kept is None else "is not what its mask says"
            raise ValueError(f"{name} {what}")
        weights = x.size if name in masks or is_floating(x) else 0
        count = weights if kept is None else int(np.count_nonzero(kept))
        zeros = weights - int(np.count_nonzero(np.asarray(x))) if weights else 0
        rows[name in masks].append(Row(name, x.shape, weights, count, zeros))
    return Summary(tuple(rows[True]), tuple(rows[False]))


def _as_told(before, after, kept):
    if after is before and kept is None:
        return True
    if jax.dtypes.issubdtype(before.dtype, jax.dtypes.prng_key):
        before, after = jax.random.key_data(before), jax.random.key_data(after)
    before, after = np.asarray(before), np.asarray(after)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return False
    if kept is None:
        return before.tobytes() == after.tobytes()
    removed = not np.count_nonzero(after[~kept])
    return removed and before[kept].tobytes() == after[kept].tobytes()


def _together(name, rows):
    return Row(name, (), *(sum(row[i] for row in rows) for i in (2, 3, 4)))

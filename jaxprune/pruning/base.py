"""What a pruning method is."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxprune.laws import Family
from jaxprune.pruning.amounts import Amount


@dataclass(frozen=True)
class Pruning:
    """A pruning method, one layer at a time.

    Attributes:
      name: what the field calls it.
      level: `(amount, size) -> int`; the amount as the one whole number that `mask` takes, so
        that every amount runs the same compiled program.
      mask: `(bits, w, level) -> bool` of w's shape, True where a weight is kept; bits are random
        uint32 of that shape, which deterministic methods ignore.
      removed: `(amount, size)`; the number of weights removed, expected if it is random.
      kept_energy: `(family, sparsity) -> E[w^2 mask] / E w^2`, which is all that the gap of an
        infinitely wide network depends on.
    """

    name: str
    level: Callable[[Amount, int], int]
    mask: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    removed: Callable[[Amount, int], float]
    kept_energy: Callable[[Family, float], float]

    def __str__(self):
        return self.name


def exact_count(amount: Amount, size: int) -> int:
    """Level, and number removed, of a method that removes an exact number of weights."""
    return amount.count(size)

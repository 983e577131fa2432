"""How much of a layer is removed. *Sparsity* is the fraction removed, as in the field."""

import math
from dataclasses import dataclass

from jaxprune import validation


@dataclass(frozen=True)
class Fraction:
    """The same sparsity q in every layer: the nearest whole number to `q D` of D weights.

    A half goes to the even one, as Python's `round` does.
    """

    q: float

    def __post_init__(self):
        # As a float of Python: narrower ones lose whole weights in the products below.
        q = validation.real("sparsity", self.q, 0.0, 1.0, open=False)
        object.__setattr__(self, "q", q)

    def __str__(self):
        return f"{100 * self.q:g} %"

    def rate(self, size: int) -> float:
        """Fraction of a layer of `size` weights that is removed."""
        return self.q

    def count(self, size: int) -> int:
        """Number of weights removed from a layer of `size` weights."""
        return round(self.q * size)


@dataclass(frozen=True)
class Sublinear:
    """The paper's amount: `floor(D^(1 - alpha))` of D weights, alpha in (0, 1)."""

    alpha: float

    def __post_init__(self):
        object.__setattr__(self, "alpha", validation.real("alpha", self.alpha, 0.0, 1.0))

    def __str__(self):
        return f"D^{1 - self.alpha:g}"

    def rate(self, size: int) -> float:
        """`D^(-alpha)`."""
        return float(size) ** -self.alpha

    def count(self, size: int) -> int:
        """`floor(D^(1 - alpha))`; a power that is whole but for rounding counts as whole."""
        power = float(size) ** (1.0 - self.alpha)
        return min(size, math.floor(power * (1.0 + 1e-12)))


@dataclass(frozen=True)
class Count:
    """Exactly k weights of every pruned layer."""

    k: int

    def __post_init__(self):
        object.__setattr__(self, "k", validation.integer("count", self.k, 0))

    def __str__(self):
        return f"{self.k} weights"

    def rate(self, size: int) -> float:
        """`k / D`."""
        return self.count(size) / size

    def count(self, size: int) -> int:
        """k; a layer with fewer weights is refused with a ValueError."""
        return validation.integer("count", self.k, 0, size)


Amount = Fraction | Sublinear | Count

"""Images of the unit ball under random layers: how far they reach, and how wide they are.

A layer is independent of the layers before it, so of the set that the ball has become by then. What
a random matrix does to a fixed set depends on two numbers, the set's radius and its Gaussian width
`E sup <g, t>`, and a set that the directions of the matrix' largest singular values miss is
stretched by less than the norm. Both numbers are carried through the layers, for the target's
hidden states h and for the differences e of both networks' states. Proof: README.md, theorem 8.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from jaxprune.bounds.norm_family import Tail

WEIGHTS, REMOVED, ROW_SUMS = "weights", "removed", "row sums of removed"


@dataclass(frozen=True)
class LayerFacts:
    """What the proof knows of one layer; everything in the units of the weights.

    Attributes:
      rows, columns: of W.
      deviation: of Gaussian entries that dominate W's in convex order.
      lipschitz: with which functions of W concentrate, see `gaussian_lipschitz`.
      weights: the norm of W.
      removed: the norm of W - W∘M.
      row_sums: that of `row_sum_tail` for W - W∘M.
      frobenius: at least the root of `E ||W - W∘M||_F²`.
      removed_lipschitz: `lipschitz` of the removed entries, given which they are.
      level: of magnitude pruning's threshold, see `random_matrices.PrunedTails`.
      spent: what that takes of delta.
    """

    rows: int
    columns: int
    deviation: float
    lipschitz: float
    weights: Tail
    removed: Tail
    row_sums: Tail
    frobenius: float
    removed_lipschitz: float
    level: float
    spent: float


@dataclass(frozen=True)
class BallImages:
    """A network and its pruning.

    Attributes:
      layers: first to last.
      one_sided: m with `||s(G t)|| <= m √rows ||t||` in the mean, G standard Gaussian.
      slope: the largest of the activation.
      least_slope: the least.
      homogeneous: the activation has no other slopes.
      gaussian: the weights are normal.
      by_magnitude: the kept part depends on the removed one.
      fixed_count: the number of removed weights is not random.
    """

    layers: tuple[LayerFacts, ...]
    one_sided: float
    slope: float
    least_slope: float
    homogeneous: bool
    gaussian: bool
    by_magnitude: bool
    fixed_count: bool

    def states(self, spread: Callable, of: str) -> tuple[Callable, Callable, Callable]:
        """Radius and width of the set of states that enter a layer, and the radius of the outputs.

        Args:
          spread: see `together`.
          of: "h" for the target, "h~" for the pruned network.
        """
        layers, slope = self.layers, self.slope

        @cache
        def radius(i):
            if i == 0:
                return 1.0
            layer, r = layers[i - 1], radius(i - 1)
            sides = self.one_sided * math.sqrt(layer.rows) * r + slope * width(i - 1)
            spreading = slope * layer.lipschitz * r * spread(i - 1, f"radius of {of}")
            return layer.deviation * sides + spreading

        @cache
        def width(i):
            if i == 0:
                return math.sqrt(layers[0].columns)
            layer = layers[i - 1]
            mean = layer.deviation * math.sqrt(layer.rows) * width(i - 1)
            spreading = layer.lipschitz * radius(i - 1) * spread(i - 1, f"width of {of}")
            return slope * (mean + spreading)

        def outputs():
            i = len(layers) - 1
            layer, r = layers[i], radius(i)
            mean = layer.deviation * (math.sqrt(layer.rows) * r + width(i))
            return mean + layer.lipschitz * r * spread(i, f"radius of {of}")

        return radius, width, outputs

    def together(self, norm: Callable, spread: Callable) -> "Solution":
        """Theorem 8, parts 1 to 4: the differences e are carried through the layers.

        Args:
          norm: `(layer, what) -> bound of that norm`.
          spread: `(layer, what) -> √(2 log(1/δ))` with the δ of that event.
        """
        layers, slope = self.layers, self.slope
        first = next(i for i, layer in enumerate(layers) if not layer.removed.is_zero)
        removed = cache(lambda i: norm(i, REMOVED))
        radius, width, _ = self.states(spread, "h")

        @cache
        def removed_radius(i):
            """Of the image of the target states under the removed part of layer i."""
            if i == 0 or not self.homogeneous:
                return removed(i) * radius(i)
            before, r = layers[i - 1], radius(i - 1)
            mean = before.deviation * (norm(i, ROW_SUMS) * r + removed(i) * width(i - 1))
            spreading = before.lipschitz * r * removed(i) * spread(i, "radius of removed h")
            linear = mean + spreading
            if self.gaussian:
                return slope * linear
            # s(z) = (L + c)/2 z + (L - c)/2 |z|
            odd, even = 0.5 * (slope + self.least_slope), 0.5 * (slope - self.least_slope)
            halves = odd * linear + even * removed(i) * norm(i - 1, WEIGHTS) * r
            return np.minimum(halves, removed(i) * radius(i))

        def removed_width(i):
            """Of the image of the target states under the removed part of layer i."""
            layer = layers[i]
            if not self.fixed_count:
                return math.sqrt(layer.rows) * removed_radius(i)
            spreading = layer.removed_lipschitz * radius(i) * spread(i, "width of removed h")
            if i == 0:
                return layer.frobenius + spreading
            before = layers[i - 1]
            mean = before.deviation * width(i - 1)
            mean = mean + before.lipschitz * radius(i - 1) * spread(i, "mean width of removed h")
            return slope * layer.frobenius * mean + spreading

        errors = [0.0] * first
        size, breadth = 0.0, 0.0  # radius and width of the set of differences e
        for i in range(first, len(layers)):
            layer, hidden = layers[i], i < len(layers) - 1
            into, into_breadth = size, breadth
            # d = A e + (removed part) h, where A is the kept part
            size = breadth = 0.0
            if i > first:
                size = layer.deviation * (math.sqrt(layer.rows) * into + into_breadth)
                size = size + layer.lipschitz * into * spread(i, "radius of e")
                if hidden:
                    breadth = layer.deviation * math.sqrt(layer.rows) * into_breadth
                    breadth = breadth + layer.lipschitz * into * spread(i, "width of e")
            if not layer.removed.is_zero:
                # By magnitude A is W, and the removed part meets h - e in place of h.
                meets_e = self.by_magnitude and i > first
                size = size + removed_radius(i) + (removed(i) * into if meets_e else 0.0)
                if hidden:
                    breadth = breadth + removed_width(i)
                    breadth = breadth + (removed(i) * into_breadth if meets_e else 0.0)
            if hidden:
                spare = (slope - self.least_slope) * math.sqrt(layer.rows / (2 * math.pi))
                breadth = slope * breadth + spare * size
                size = slope * size
                breadth = np.minimum(breadth, math.sqrt(layer.rows) * size)
                errors.append(size)
        last = max(i for i, layer in enumerate(layers) if not layer.removed.is_zero)
        return Solution(size, [radius(i) for i in range(last + 1)], errors)

    def apart(self, norm: Callable, spread: Callable) -> "Solution":
        """Theorem 8, part 5: `||F|| + ||f||`, which does not grow with depth as products do."""
        radius, _, outputs = self.states(spread, "h")
        eps = outputs() + self.states(spread, "h~")[2]()
        return Solution(eps, [radius(i) for i in range(len(self.layers))], [])


@dataclass(frozen=True)
class Solution:
    """What a proof of `BallImages` finds: numbers, or arrays of one shape.

    Attributes:
      eps: bound of the gap.
      radii: bounds of ||h|| from the input on, as far as the proof needs them.
      errors: bounds of ||e|| after each hidden layer.
    """

    eps: np.ndarray
    radii: list
    errors: list

"""The second route to a certificate: images of the unit ball in place of products of norms.

A layer is independent of the layers before it, so of the set that the ball has become by then. What
a random matrix does to a fixed set depends on two numbers, the set's radius and its Gaussian width
`E sup <g, t>`, and a set that the directions of the matrix' largest singular values miss is
stretched by less than the norm. Both numbers are carried through the layers, for the target's
hidden states h and for the differences e of both networks' states. Dense layers only. Proof:
README.md, theorem 8.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from jaxprune import laws
from jaxprune.bounds import random_matrices
from jaxprune.bounds.domination import gaussian_deviation, gaussian_lipschitz
from jaxprune.bounds.norm_family import ORDERS, ZERO, NormBound, Tail
from jaxprune.bounds.proof import Certificate, Event, best_shares
from jaxprune.bounds.random_matrices import PrunedTails
from jaxprune.bounds.row_sums import row_sum_tail
from jaxprune.bounds.trace_moments import size_of, truncated_log_moments
from jaxprune.laws import Law
from jaxprune.networks import Network

_REFERENCE = "README theorem 8: Chevet, Gordon, contraction, Gaussian concentration"
_THRESHOLD = "README theorem 2: the threshold's quantile level"
REMOVED, ROW_SUMS = "removed", "row sums of removed"

Key = tuple[int, str]
"""A layer, counted from 0, and the supremum that one event bounds."""


@dataclass(frozen=True)
class _Layer:
    """What the proof knows of one layer; everything in the units of the weights.

    Attributes:
      rows, columns: of W.
      deviation: of Gaussian entries that dominate W's in convex order.
      lipschitz: with which functions of W concentrate, see `gaussian_lipschitz`.
      removed: the norm of W - W∘M.
      row_sums: that of `row_sum_tail` for W - W∘M.
      frobenius: at least the root of `E ||W - W∘M||_F²`.
      removed_lipschitz: `lipschitz` of the removed entries, given which they are.
    """

    rows: int
    columns: int
    deviation: float
    lipschitz: float
    removed: Tail
    row_sums: Tail
    frobenius: float
    removed_lipschitz: float


@dataclass(frozen=True)
class _Problem:
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

    layers: tuple[_Layer, ...]
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

    def together(self, norm: Callable, spread: Callable) -> "_Solution":
        """Theorem 8, parts 1 to 4: the differences e are carried through the layers.

        Args:
          norm: `(layer, what) -> bound of that norm of W - W∘M`.
          spread: `(layer, what) -> √(2 log(1/δ))` with the δ of that event.
        """
        layers, slope = self.layers, self.slope
        first = next(i for i, layer in enumerate(layers) if not layer.removed.is_zero)
        removed = cache(lambda i: norm(i, REMOVED))
        radius, width, _ = self.states(spread, "h")

        def removed_radius(i):
            """Of the image of the target states under the removed part of layer i."""
            if i == 0 or not (self.homogeneous and self.gaussian):
                return removed(i) * radius(i)
            before, r = layers[i - 1], radius(i - 1)
            mean = before.deviation * (norm(i, ROW_SUMS) * r + removed(i) * width(i - 1))
            spreading = before.lipschitz * r * removed(i) * spread(i, "radius of removed h")
            return slope * (mean + spreading)

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
        return _Solution(size, [radius(i) for i in range(last + 1)], errors)

    def apart(self, norm: Callable, spread: Callable) -> "_Solution":
        """Theorem 8, part 5: `||F|| + ||f||`, which does not grow with depth as products do."""
        radius, _, outputs = self.states(spread, "h")
        eps = outputs() + self.states(spread, "h~")[2]()
        return _Solution(eps, [radius(i) for i in range(len(self.layers))], [])


@dataclass(frozen=True)
class _Solution:
    """What `_Problem.solve` finds: numbers, or arrays of one shape.

    Attributes:
      eps: bound of the gap.
      radii: bounds of ||h|| from the input on, as far as the proof needs them.
      errors: bounds of ||e|| after each hidden layer.
    """

    eps: np.ndarray
    radii: list
    errors: list


def certify_by_images(
    network: Network, law: Law, method: str, removed: Sequence[float], delta: float
) -> Certificate | None:
    """Theorem 8 (README), for dense networks.

    Args:
      network: the network.
      law: of the weights.
      method: "random", "bernoulli" or "magnitude".
      removed: weights removed from each layer, not all 0; expected number for "bernoulli".
      delta: of the whole statement.

    Returns:
      The certificate; None for a convolution, or a law that is neither uniform nor normal.
    """
    dense = all(layer.kind == "dense" for layer in network.layers)
    if not dense or law.family not in (laws.UNIFORM, laws.NORMAL):
        return None
    pruned = [i for i, k in enumerate(removed) if k > 0]
    share = random_matrices.THRESHOLD_SHARE * delta / len(pruned)
    parts = [
        random_matrices.pruned_tails(layer, law, method, k, share)
        for layer, k in zip(network.layers, removed, strict=True)
    ]
    problem = _problem(network, law, method, removed, parts)
    spent = {i: part.spent for i, part in enumerate(parts)}
    found = [_certificate(network, problem, problem.together, spent, delta)]
    if method != "magnitude":
        found.append(_certificate(network, problem, problem.apart, {}, delta))
    return min(found, key=lambda certificate: certificate.eps)


def _certificate(network, problem, proof, spent, delta) -> Certificate:
    """The best split of delta among the events of `proof`, after what the thresholds spent."""
    names, layers = network.names, problem.layers
    rest = delta - sum(spent.values())
    keys: list[Key] = []

    def note(i, what):
        keys.append((i, what))
        return 1.0

    proof(note, note)

    def tail(i, what):
        return layers[i].row_sums if what == ROW_SUMS else layers[i].removed

    def solve(shares):
        """`(b, events)` shares of `rest`."""
        log_delta = dict(zip(keys, np.log(shares * rest).T, strict=True))
        return proof(
            lambda i, what: tail(i, what).values(log_delta[i, what]),
            lambda i, what: np.sqrt(-2.0 * log_delta[i, what]),
        )

    shares = best_shares(lambda shares: solve(shares).eps, len(keys))
    solution = solve(shares[None])
    events = []
    for (i, what), part in zip(keys, (shares * rest).tolist(), strict=True):
        if what in (REMOVED, ROW_SUMS):
            bound = tail(i, what).at(part)
        else:
            bound = NormBound(math.sqrt(-2.0 * math.log(part)), "deviations", _REFERENCE)
        events.append(Event(names[i], what, part, bound))
    events += [
        Event(names[i], "threshold", part, NormBound(1.0, "order statistic", _THRESHOLD))
        for i, part in spent.items()
        if part
    ]
    norms = {event.layer: event.bound.value for event in events if event.matrix == REMOVED}
    return Certificate(
        eps=_number(solution.eps),
        delta=delta,
        weights=(None,) * len(names),
        kept=(None,) * len(names),
        removed=tuple(
            0.0 if layer.removed.is_zero else norms.get(name)
            for name, layer in zip(names, layers, strict=True)
        ),
        order=tuple(
            name for name, layer in zip(names, layers, strict=True) if not layer.removed.is_zero
        ),
        events=tuple(events),
        route="images",
        radii=tuple(map(_number, solution.radii)),
        errors=tuple(map(_number, solution.errors)),
    )


def _number(x) -> float:
    return float(np.ravel(x)[0])


def _problem(network, law, method, removed, parts: list[PrunedTails]) -> _Problem:
    s = network.activation
    layers = []
    for layer, k, part in zip(network.layers, removed, parts, strict=True):
        scale = law.scale(*layer.fans)
        log_moments = np.array([law.family.log_moment(j) for j in range(1, ORDERS[-1] + 1)])
        if 0.0 < part.level < 1.0:
            log_moments = truncated_log_moments(law.family, part.level, ORDERS[-1])[0]
        row_sums = ZERO
        if k > 0:
            size = size_of(layer)
            row_sums = row_sum_tail(log_moments, k / size.weights, size, scale)
        layers.append(
            _Layer(
                rows=layer.d_out,
                columns=layer.d_in,
                deviation=scale * gaussian_deviation(law.family),
                lipschitz=scale * gaussian_lipschitz(law.family),
                removed=part.removed,
                row_sums=row_sums,
                frobenius=scale * math.sqrt(k * math.exp(log_moments[0])),
                removed_lipschitz=scale * gaussian_lipschitz(law.family, part.level),
            )
        )
    one_sided = s.lipschitz
    if s.positively_homogeneous:
        # s(z) = c z + (L - c) max(z, 0); the positive part of g has half of its energy.
        one_sided = s.least_slope + (s.lipschitz - s.least_slope) / math.sqrt(2)
    return _Problem(
        tuple(layers),
        one_sided,
        slope=s.lipschitz,
        least_slope=s.least_slope,
        homogeneous=s.positively_homogeneous,
        gaussian=law.family is laws.NORMAL,
        by_magnitude=method == "magnitude",
        fixed_count=method != "bernoulli",
    )

"""The typical gap at ONE input as the hidden widths grow: a limit, not a bound.

In the limit the pre-activations (z, z̃) of target and pruned network are centred Gaussian pairs,
independent across neurons, and pruning enters through the kept energy alone. README, theorem 7;
for the target alone: Y. Cho, L. K. Saul, Kernel methods for deep learning, NeurIPS 2009.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxprune import validation
from jaxprune.activations import Activation, erf
from jaxprune.bounds.counts import Amounts, removed_counts
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Pruning

# Nodes of the trapezoid rule on [-_REACH, _REACH] standard deviations.
_NODES = 601
_REACH = 9.0


class Moments(NamedTuple):
    """Second moments of one neuron's pre-activation: z of the target, z̃ of the pruned network.

    Attributes:
      target: `E z²`.
      pruned: `E z̃²`.
      cross: `E z z̃`.
      mean_squared_gap: `E (z - z̃)²`, free of the cancellation in `target + pruned - 2 cross`.
    """

    target: float
    pruned: float
    cross: float
    mean_squared_gap: float

    @property
    def rms_gap(self) -> float:
        """Root of `mean_squared_gap`."""
        return math.sqrt(self.mean_squared_gap)

    @property
    def correlation(self) -> float:
        """Of z and z̃; NaN if one of them vanishes."""
        scale = math.sqrt(self.target) * math.sqrt(self.pruned)
        return min(1.0, self.cross / scale) if scale > 0.0 else math.nan


class InfiniteWidth(NamedTuple):
    """A pair of networks at one input, in the limit of great hidden widths.

    Attributes:
      layers: moments after each linear layer; the last one's are those of an output.
      kept_energy: `E[w² m] / E w²` of each layer.
      outputs: how many outputs there are.
    """

    layers: tuple[Moments, ...]
    kept_energy: tuple[float, ...]
    outputs: int

    @property
    def output(self) -> Moments:
        """Moments of one output."""
        return self.layers[-1]

    @property
    def mean_squared_gap(self) -> float:
        """`E (F - f)²` per output."""
        return self.output.mean_squared_gap

    @property
    def rms_gap(self) -> float:
        """Root of the mean squared gap per output."""
        return self.output.rms_gap

    @property
    def typical_gap(self) -> float:
        """Root of `E ||F(x) - f(x)||²`, all outputs together."""
        return math.sqrt(self.outputs) * self.rms_gap

    @property
    def correlation(self) -> float:
        """Of an output of the target and the same output of the pruned network."""
        return self.output.correlation


def infinite_width(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amounts,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    input_norm: float = 1.0,
) -> InfiniteWidth:
    """Second moments at an input of norm `input_norm`, in the limit of great hidden widths.

    Positively homogeneous activations and erf have closed forms, in which a small gap keeps its
    digits. Others are integrated by the trapezoid rule in two dimensions, whose error on a smooth
    integrand against a Gaussian falls exponentially: tanh to 1e-12 of the moments for
    pre-activations of deviation up to 10; with a kink in s, to about 1e-4.

    Args:
      network: dense layers only.
      law: of the weights; of their law only the variance and the kept energy count.
      pruning: any method; it enters through its kept energy at each layer's sparsity.
      amount: how much of each chosen layer is removed; one, or `{layer name: amount}`.
      layers: which layers are pruned, see `networks.select_layers`.
      input_norm: Euclidean norm of the input.

    Raises:
      ValueError: a convolution, or a number or a name out of range.
    """
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    removed = removed_counts(network, pruning, amount, layers)
    return infinite_width_counts(network, law, pruning, removed, input_norm)


def infinite_width_counts(
    network: Network,
    law: Law,
    pruning: Pruning,
    removed: Sequence[float],
    input_norm: float = 1.0,
) -> InfiniteWidth:
    """`infinite_width` by the (expected) number of weights removed from each layer."""
    if not network.is_dense:
        raise ValueError(f"network = {', '.join(network.names)}: dense layers only are needed")
    kept_energy = [
        pruning.kept_energy(law.family, k / count) if k else 1.0
        for k, count in zip(removed, network.weight_counts, strict=True)
    ]
    return from_kept_energy(network, law, kept_energy, input_norm)


def from_kept_energy(
    network: Network, law: Law, kept_energy: Sequence[float], input_norm: float = 1.0
) -> InfiniteWidth:
    """The recursion over the layers, given `κ = E[w² m] / E w²` of each.

    With v = Var w and d the fan-in of a layer, the pre-activations' moments go

        E z²        <-  v d E s(z)²
        E z̃²        <-  v d κ E s(z̃)²
        E (z - z̃)²  <-  v d [(1 - κ) E s(z)² + κ E (s(z) - s(z̃))²].

    The last line adds positive numbers only, so a small gap keeps its digits: its relative error
    is that of `1 - κ` (1e-16 / (1 - κ)) for positively homogeneous activations.
    """
    input_norm = validation.real("input_norm", input_norm, 0.0, math.inf, open=False)
    # The input counts as a layer of activations with this mean square a feature.
    target = pruned = input_norm**2 / network.layers[0].d_in
    difference = 0.0
    moments = []
    for i, (layer, kappa) in enumerate(zip(network.layers, kept_energy, strict=True)):
        if i > 0:
            target, pruned, difference = _activate(network.activation, target, pruned, difference)
        gain = layer.d_in * law.variance(*layer.fans)
        difference = gain * ((1.0 - kappa) * target + kappa * difference)
        target, pruned = gain * target, gain * kappa * pruned
        cross = 0.5 * (target + pruned - difference)
        moments.append(Moments(target, pruned, cross, difference))
    return InfiniteWidth(tuple(moments), tuple(kept_energy), network.layers[-1].d_out)


def _activate(s: Activation, a: float, b: float, d: float) -> tuple[float, float, float]:
    """`E s(z)², E s(z̃)², E (s(z) - s(z̃))²` from `a = E z², b = E z̃², d = E (z - z̃)²`."""
    if s.positively_homogeneous:
        above, below = (float(_float64(s.fn, x)) for x in (1.0, -1.0))
        return _homogeneous(above, -below, a, b, d)
    if s == erf:
        return _erf_square(a), _erf_square(b), _erf_difference(a, b, d)
    return _quadrature(s, a, b, d)


def _homogeneous(above, below, a, b, d):
    """For `s(z) = above z⁺ - below z⁻`, i.e. `below z + (above - below) relu(z)`."""
    c = above - below
    square = 0.5 * (above**2 + below**2)
    # E (z - z̃)(relu(z) - relu(z̃)) = d / 2
    difference = (below**2 + below * c) * d + c**2 * _relu_difference(a, b, d)
    return square * a, square * b, difference


def _relu_difference(a, b, d):
    """`E (relu(z) - relu(z̃))²`: the arc-cosine kernel of degree 1, written without cancellation.

    Cho & Saul 2009, eq. (6): `E relu(z) relu(z̃) = √(ab)/(2π) (sin θ + (π - θ) cos θ)`.
    """
    ab = math.sqrt(a * b)
    if ab == 0.0:
        return 0.5 * (a + b)
    # d = (√a - √b)² + 4 √(ab) sin²(θ/2)
    radial = ((a - b) / (math.sqrt(a) + math.sqrt(b))) ** 2
    theta = 2.0 * math.asin(math.sqrt(min(max((d - radial) / (4.0 * ab), 0.0), 1.0)))
    if theta < 0.05:
        chord = theta**3 / 3 - theta**5 / 30 + theta**7 / 840
    else:
        chord = math.sin(theta) - theta * math.cos(theta)
    return 0.5 * d - ab / math.pi * chord


def _erf_square(a):
    """`E erf(z)²`: C. K. I. Williams, Computing with infinite networks, NeurIPS 1996, eq. (11)."""
    return 2.0 / math.pi * math.asin(2.0 * a / (1.0 + 2.0 * a))


def _erf_difference(a, b, d):
    """`E (erf(z) - erf(z̃))²`, Williams' kernel written without cancellation.

    With `P² = 1 + 2a`, `Q² = 1 + 2b` and `c = E z z̃` it is `(2/π) (2γ - α - β)`, where `cos α =
    1 - 1/P²`, `cos β = 1 - 1/Q²` and `cos γ = 2c / PQ = 1 - (1 + e) / PQ`, `e = d - (P - Q)² / 2`.
    For `Y = (α + β) / 2` the difference of `cos Y - cos γ` is a small number over PQ, and
    `γ - Y` follows from `cos Y - cos γ = 2 sin((γ + Y) / 2) sin((γ - Y) / 2)`.
    """
    p, q = math.sqrt(1.0 + 2.0 * a), math.sqrt(1.0 + 2.0 * b)
    step = (2.0 * (a - b) / (p + q)) ** 2  # (P - Q)²
    half_alpha, half_beta = (math.asin(1.0 / (math.sqrt(2.0) * x)) for x in (p, q))
    y = half_alpha + half_beta
    gamma = 2.0 * math.asin(math.sqrt(min(1.0, (1.0 + d - 0.5 * step) / (2.0 * p * q))))
    cosines = math.cos(half_alpha) * math.cos(half_beta) + 1.0 - 0.5 / (p * q)
    fall = d - 0.5 * step * (1.0 + 1.0 / (p * q * cosines))  # PQ (cos Y - cos γ)
    # (γ - Y) / 2; rounding may leave a tiny negative fall where z̃ is a multiple of z
    half = math.asin(min(1.0, max(0.0, fall) / (2.0 * p * q * math.sin(0.5 * (gamma + y)))))
    return 8.0 / math.pi * half


def _quadrature(s, a, b, d):
    x = np.linspace(-_REACH, _REACH, _NODES)
    weight = np.exp(-0.5 * x**2)
    weight /= weight.sum()
    # z - z̃ = slope z + an independent part
    slope = 0.5 * (a - b + d) / a if a > 0.0 else 0.0
    rest = math.sqrt(max(d - slope**2 * a, 0.0))
    z = math.sqrt(a) * x[:, None]
    change = _float64(s.difference, *np.broadcast_arrays(z, slope * z + rest * x))
    squares = (_float64(s.fn, math.sqrt(v) * x) ** 2 for v in (a, b))
    target, pruned = (float(weight @ square) for square in squares)
    return target, pruned, float(weight @ change**2 @ weight)


def _float64(fn, *args):
    """An activation's function in float64, whatever the session's precision and guards."""
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        return np.asarray(fn(*(jax.numpy.asarray(arg, "float64") for arg in args)), np.float64)

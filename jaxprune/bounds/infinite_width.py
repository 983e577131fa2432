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
from jaxprune.activations import Activation
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning

_NODES = 200


class InfiniteWidth(NamedTuple):
    """Second moments of one output of the target, F, and of the pruned network, f.

    Attributes:
      target: `E F²`.
      pruned: `E f²`.
      cross: `E F f`.
      mean_squared_gap: `E (F - f)²`, free of the cancellation in `target + pruned - 2 cross`.
    """

    target: float
    pruned: float
    cross: float
    mean_squared_gap: float


def infinite_width(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amount,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    input_norm: float = 1.0,
) -> InfiniteWidth:
    """Second moments at an input of norm `input_norm`, in the limit of great hidden widths.

    Positively homogeneous activations have a closed form, in which a small gap keeps its digits.
    Others are integrated by Gauss-Hermite quadrature: tanh to about 1e-9 for pre-activations of
    deviation up to 1.5, to 1e-3 up to 4; with a kink in s, two digits.

    Args:
      network: dense layers only.
      law: of the weights; of their law only the variance and the kept energy count.
      pruning: any method; it enters through its kept energy at each layer's sparsity.
      amount: how much of each chosen layer is removed.
      layers: which layers are pruned, see `networks.select_layers`.
      input_norm: Euclidean norm of the input.

    Raises:
      ValueError: a convolution, or a number or a name out of range.
    """
    if any(layer.kind != "dense" for layer in network.layers):
        raise ValueError(f"network = {', '.join(network.names)}: dense layers only are needed")
    input_norm = validation.real("input_norm", input_norm, 0.0, math.inf, open=False)
    kept_energy = [
        pruning.kept_energy(law.family, pruning.removed(amount, count) / count) if chosen else 1.0
        for count, chosen in zip(network.weight_counts, select_layers(network, layers), strict=True)
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
    # The input counts as a layer of activations with this mean square a feature.
    target = pruned = input_norm**2 / network.layers[0].d_in
    difference = 0.0
    for i, (layer, kappa) in enumerate(zip(network.layers, kept_energy, strict=True)):
        if i > 0:
            target, pruned, difference = _activate(network.activation, target, pruned, difference)
        gain = layer.d_in * law.variance(*layer.fans)
        difference = gain * ((1.0 - kappa) * target + kappa * difference)
        target, pruned = gain * target, gain * kappa * pruned
    return InfiniteWidth(target, pruned, 0.5 * (target + pruned - difference), difference)


def _activate(s: Activation, a: float, b: float, d: float) -> tuple[float, float, float]:
    """`E s(z)², E s(z̃)², E (s(z) - s(z̃))²` from `a = E z², b = E z̃², d = E (z - z̃)²`."""
    if s.positively_homogeneous:
        above, below = (float(_float64(s.fn, x)) for x in (1.0, -1.0))
        return _homogeneous(above, -below, a, b, d)
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


def _quadrature(s, a, b, d):
    x, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight = weight / weight.sum()
    z, u = np.meshgrid(math.sqrt(a) * x, x, indexing="ij")
    weights = weight[:, None] * weight
    # z - z̃ = slope z + an independent part
    slope = 0.5 * (a - b + d) / a if a > 0.0 else 0.0
    rest = math.sqrt(max(d - slope**2 * a, 0.0))
    change = _float64(s.difference, z, slope * z + rest * u)
    squares = (_float64(s.fn, math.sqrt(v) * x) ** 2 for v in (a, b))
    target, pruned = (float(weight @ square) for square in squares)
    return target, pruned, float((weights * change**2).sum())


def _float64(fn, *args):
    """An activation's function in float64, whatever the session's precision."""
    with jax.enable_x64(True):
        return np.asarray(fn(*(jax.numpy.asarray(arg, "float64") for arg in args)), np.float64)

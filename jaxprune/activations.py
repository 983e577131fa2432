"""Activations, each with the facts that the bounds use."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from jaxprune import validation


@dataclass(frozen=True)
class Activation:
    """An activation s with s(0) = 0.

    Attributes:
      name: what the field calls it; an argument stands in parentheses.
      fn: s, elementwise.
      difference: `(a, d) -> s(a) - s(a - d)` without the cancellation of that subtraction.
      least_slope: the largest c >= 0 with c <= (s(a) - s(b)) / (a - b) for all a != b.
      lipschitz: the least L with (s(a) - s(b)) / (a - b) <= L.
      positively_homogeneous: s(t a) = t s(a) for t >= 0.
      fn_error: in float64 `fn(a)` errs by at most this times |a|. Of one's own activation it is
        taken on trust, as are the four above.
      difference_error: and `difference(a, d)` by at most this times |d|.
    """

    name: str
    fn: Callable[[jax.Array], jax.Array]
    difference: Callable[[jax.Array, jax.Array], jax.Array]
    least_slope: float
    lipschitz: float
    positively_homogeneous: bool
    fn_error: float
    difference_error: float

    def __str__(self):
        return self.name


def _relu_difference(a, d):
    # a > 0: s(a) = a, and s(a - d) is a - d or 0.  a <= 0: s(a) = 0, and s(a - d) is d's excess.
    return jnp.where(a > 0, jnp.minimum(d, a), jnp.minimum(d - a, 0.0))


def _tanh_difference(a, d):
    # tanh(a) - tanh(b) = tanh(a - b) (1 - tanh(a) tanh(b))
    return jnp.tanh(d) * (1.0 - jnp.tanh(a) * jnp.tanh(a - d))


# Gauss-Legendre on [-1, 1]: on the intervals of `_erf_difference` to 1e-8, below float32's spacing.
_NODES, _WEIGHTS = (tuple(x.tolist()) for x in np.polynomial.legendre.leggauss(5))


def _erf_difference(a, d):
    # Where e^(-t²) hardly varies over the interval, integrate it; else erf's tails keep the digits:
    # erf(a) - erf(b) = sign (erfc(|b|) - erfc(|a|)) if a and b have one sign.
    b = a - d
    middle, half = a - 0.5 * d, 0.5 * d
    density = sum(
        w * jnp.exp(-((middle + x * half) ** 2)) for x, w in zip(_NODES, _WEIGHTS, strict=True)
    )
    near = half * density * (2.0 / math.sqrt(math.pi))
    tails = jnp.sign(a) * (special.erfc(jnp.abs(b)) - special.erfc(jnp.abs(a)))
    far = jnp.where(a * b > 0, tails, special.erf(a) - special.erf(b))
    return jnp.where(jnp.abs(d) * (1.0 + jnp.abs(a)) < 1.0, near, far)


def _identity(a):
    return a


def _identity_difference(a, d):
    return d


@dataclass(frozen=True)
class _Leaky:
    """Leaky ReLU; a frozen record so that equal slopes share one compiled program."""

    slope: float

    def __call__(self, a):
        return self.slope * a + (1.0 - self.slope) * jax.nn.relu(a)


@dataclass(frozen=True)
class _LeakyDifference:
    slope: float

    def __call__(self, a, d):
        return self.slope * d + (1.0 - self.slope) * _relu_difference(a, d)


_EXACT = 1e-15, 1e-15  # a few roundings

relu = Activation("relu", jax.nn.relu, _relu_difference, 0.0, 1.0, True, *_EXACT)
"""`max(a, 0)`."""

tanh = Activation("tanh", jnp.tanh, _tanh_difference, 0.0, 1.0, False, 1e-14, 1e-14)
"""The hyperbolic tangent."""

erf = Activation(
    "erf", special.erf, _erf_difference, 0.0, 2.0 / math.sqrt(math.pi), False, 1e-14, 2e-8
)
"""The error function. Its largest slope, at 0, is 2/√π."""

identity = Activation("identity", _identity, _identity_difference, 1.0, 1.0, True, *_EXACT)
"""The input itself: linear networks."""


def leaky_relu(slope: float = 0.01) -> Activation:
    """`max(a, slope * a)` for a slope in [0, 1]."""
    slope = validation.real("slope", slope, 0.0, 1.0, open=False)
    return Activation(
        f"leaky_relu({slope:g})", _Leaky(slope), _LeakyDifference(slope), slope, 1.0, True, *_EXACT
    )


ACTIVATIONS = {
    "relu": relu,
    "leaky_relu": leaky_relu(),
    "tanh": tanh,
    "erf": erf,
    "identity": identity,
}

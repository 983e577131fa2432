"""Activations, each with the facts that the bounds use."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

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
    """

    name: str
    fn: Callable[[jax.Array], jax.Array]
    difference: Callable[[jax.Array, jax.Array], jax.Array]
    least_slope: float
    lipschitz: float
    positively_homogeneous: bool

    def __str__(self):
        return self.name


def _relu_difference(a, d):
    # a > 0: s(a) = a, and s(a - d) is a - d or 0.  a <= 0: s(a) = 0, and s(a - d) is d's excess.
    return jnp.where(a > 0, jnp.minimum(d, a), jnp.minimum(d - a, 0.0))


def _tanh_difference(a, d):
    # tanh(a) - tanh(b) = tanh(a - b) (1 - tanh(a) tanh(b))
    return jnp.tanh(d) * (1.0 - jnp.tanh(a) * jnp.tanh(a - d))


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


relu = Activation("relu", jax.nn.relu, _relu_difference, 0.0, 1.0, True)
tanh = Activation("tanh", jnp.tanh, _tanh_difference, 0.0, 1.0, False)
identity = Activation("identity", _identity, _identity_difference, 1.0, 1.0, True)


def leaky_relu(slope: float = 0.01) -> Activation:
    """`max(a, slope * a)` for a slope in [0, 1]."""
    slope = validation.real("slope", slope, 0.0, 1.0, open=False)
    return Activation(
        f"leaky_relu({slope:g})", _Leaky(slope), _LeakyDifference(slope), slope, 1.0, True
    )


ACTIVATIONS = {"relu": relu, "leaky_relu": leaky_relu(), "tanh": tanh, "identity": identity}

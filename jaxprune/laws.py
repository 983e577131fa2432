"""Laws of the weights: i.i.d., symmetric, one scale a layer.

A law is a standard variable (uniform on [-1, 1], or normal) times a scale that depends on the
layer's fans. Everything the bounds need to know of a law (moments, quantiles, kept energy) is
stated here on the host in float64; everything the engine needs is `sample`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from scipy import special

from jaxprune import validation


@dataclass(frozen=True)
class Family:
    """A symmetric standard variable X with a density that falls in |x| (or is flat).

    Attributes:
      name: what the field calls it.
      magnitude: |X| as a function of a uniform variable on (0, 1]; float32, on the device.
      variance: E X^2.
      bound: the least b with |X| <= b almost surely; infinity if there is none.
      log_moment: log E X^(2j) for an integer j >= 1; infinity where that moment is, j = 1 excepted.
      magnitude_quantile: the p-quantile of |X|.
      kept_energy: E[X^2; |X| > quantile(q)] / E X^2, the energy that survives the removal of
        the fraction q of smallest magnitude.
    """

    name: str
    magnitude: Callable[[jax.Array], jax.Array]
    variance: float
    bound: float
    log_moment: Callable[[int], float]
    magnitude_quantile: Callable[[float], float]
    kept_energy: Callable[[float], float]


def _uniform_magnitude(u):
    return u


def _uniform_log_moment(j):
    return -math.log(2 * j + 1)


def _uniform_magnitude_quantile(p):
    return np.asarray(p, np.float64)[()]


def _uniform_kept_energy(q):
    return 1.0 - q**3


def _normal_magnitude(u):
    # The survival function's inverse keeps its digits in the tail, where the inverse of the
    # distribution function has none left in float32. Rounding may bring u to 1: keep |X| > 0.
    return -ndtri(jnp.minimum(0.5 * u, 0.5 - 2.0**-25))


def _normal_log_moment(j):
    # (2j-1)!! = (2j)! / (2^j j!)
    return math.lgamma(2 * j + 1) - j * math.log(2.0) - math.lgamma(j + 1)


def _normal_magnitude_quantile(p):
    return special.ndtri(0.5 + 0.5 * np.asarray(p, np.float64))[()]


def _normal_kept_energy(q):
    tau = _normal_magnitude_quantile(q)
    density = math.exp(-0.5 * tau**2) / math.sqrt(2 * math.pi) if math.isfinite(tau) else 0.0
    return 1.0 - q + (2.0 * tau * density if density else 0.0)


UNIFORM = Family(
    "uniform",
    _uniform_magnitude,
    1 / 3,
    1.0,
    _uniform_log_moment,
    _uniform_magnitude_quantile,
    _uniform_kept_energy,
)
NORMAL = Family(
    "normal",
    _normal_magnitude,
    1.0,
    math.inf,
    _normal_log_moment,
    _normal_magnitude_quantile,
    _normal_kept_energy,
)

_VARIANCES = {
    "he": lambda fan_in, fan_out: 2.0 / fan_in,
    "glorot": lambda fan_in, fan_out: 2.0 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1.0 / fan_in,
}
SCALINGS = ("max", *_VARIANCES)


@functools.lru_cache(maxsize=64)
def check_family(family: Family) -> None:
    """Compares what a family says of one variable, wherever two of its statements meet.

    Theorems rest on all of them. Quantiles Q of |X| at 1,054 levels say whether the density falls,
    which makes Q convex from Q(0) = 0 on, and bound all moments, `E X^(2j) = ∫ Q^(2j)`; a law that
    differs between those levels passes.

    Raises:
      ValueError: two statements that do not go together; it names them.
    """
    named = f"family = {family.name!r}"
    variance = validation.real(f"{named}: variance", family.variance, 0.0, math.inf)
    u = np.append(np.linspace(0.0, 1.0, 1025)[:-1], 1.0 - 2.0 ** -np.arange(11.0, 41.0))
    q = np.asarray([family.magnitude_quantile(p) for p in u], np.float64)
    # What is not finite fails a comparison, which says what is needed; a warning would not.
    with np.errstate(all="ignore"):
        slopes = np.diff(q) / np.diff(u)
        squares = np.cumsum(np.diff(u) * [q[:-1] ** 2, q[1:] ** 2], axis=1)  # below and above ∫ Q²
        removed = variance * (1.0 - np.asarray([family.kept_energy(p) for p in u[1:]]))
        j = np.array([1, 2, 3, 4, 8, 16, 32, 64, 128])
        moments = np.asarray([family.log_moment(int(k)) for k in j])
        least = special.logsumexp(
            2.0 * j[:, None] * np.log(q[1:-1]) + np.log(np.diff(u)[1:]), axis=1
        )
        room = 1e-9
        starts = np.isfinite(q).all() and abs(q[0]) <= room * q[1]
        falls = (np.diff(slopes) >= -room * slopes[1:]).all()
        low, high = squares[0] - room * variance, squares[1] + room * variance
        for right, told in (
            (starts, "magnitude_quantile finite below 1, and 0 at 0,"),
            (falls, "a density that falls in |x|, so that magnitude_quantile is convex,"),
            ((q <= family.bound * (1.0 + room)).all(), "magnitude_quantile at most bound"),
            (abs(moments[0] - math.log(variance)) <= room, "log_moment(1) = log(variance)"),
            ((moments >= least - room).all(), "log_moment at least that of magnitude_quantile"),
            (
                ((low <= removed) & (removed <= high)).all(),
                "kept_energy that of magnitude_quantile",
            ),
        ):
            if not right:
                raise ValueError(f"{named}: {told} is needed")
    if not _draws_its_quantiles(family):
        raise ValueError(f"{named}: magnitude with those quantiles is needed")


def _draws_its_quantiles(family):
    """Whether `magnitude` takes uniform numbers to |X|, rising or falling."""
    u = (np.arange(64) + 0.5) / 64.0
    drawn = np.sort(np.asarray(jax.jit(family.magnitude)(u.astype(np.float32)), np.float64))
    wanted = np.asarray([family.magnitude_quantile(p) for p in u])
    return np.allclose(drawn, wanted, rtol=1e-4, atol=0.0)


@dataclass(frozen=True)
class Law:
    """i.i.d. weights: `scale(fan_in, fan_out)` times a standard variable.

    Attributes:
      family: the standard variable.
      scaling: "max" multiplies it by `gain / sqrt(max(fan_in, fan_out))`, as the paper does;
        "he", "glorot" and "lecun" give the weights `gain^2` times that rule's variance.
      gain: a factor on every weight; the paper's K under "max".
    """

    family: Family
    scaling: str = "max"
    gain: float = 1.0

    def __post_init__(self):
        validation.instance("family", self.family, Family, "laws.UNIFORM, laws.NORMAL or a Family")
        if self.family not in (UNIFORM, NORMAL):
            check_family(self.family)
        validation.choice("scaling", self.scaling, SCALINGS)
        validation.real("gain", self.gain, 0.0, math.inf)

    def __str__(self):
        gain = "" if self.gain == 1 else f", gain {self.gain:.4g}"
        return f"{self.family.name}, scale {self.scaling}{gain}"

    def scale(self, fan_in: int, fan_out: int) -> float:
        """The factor on the standard variable: half-width (uniform) or deviation (normal)."""
        if self.scaling == "max":
            return self.gain / math.sqrt(max(fan_in, fan_out))
        variance = _VARIANCES[self.scaling](fan_in, fan_out)
        return self.gain * math.sqrt(variance / self.family.variance)

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Variance of one weight."""
        return self.scale(fan_in, fan_out) ** 2 * self.family.variance


def uniform(gain: float = 1.0, scaling: str = "max") -> Law:
    """Uniform weights; by default the paper's, on `[-gain, gain] / sqrt(max(fan))`."""
    return Law(UNIFORM, scaling, gain)


def normal(gain: float = 1.0, scaling: str = "max") -> Law:
    """Gaussian weights; by default with deviation `gain / sqrt(max(fan))`."""
    return Law(NORMAL, scaling, gain)


LAWS = {"uniform": uniform, "normal": normal}


def sample(family: Family, scale: jax.Array, bits: jax.Array) -> jax.Array:
    """Weights from raw random bits: one bit is the sign, 31 bits the magnitude.

    Args:
      family: the standard variable.
      scale: `()` factor on it.
      bits: uint32 of the weights' shape.

    Returns:
      float32 weights, never zero, symmetric to the last bit.
    """
    if bits.dtype != jnp.uint32:
        raise ValueError(f"bits of type {bits.dtype}: uint32 is needed")
    magnitude = (bits & 0x7FFFFFFF).astype(jnp.int32)
    u = magnitude.astype(jnp.float32) * 2.0**-31 + 2.0**-32
    value = scale * family.magnitude(u)
    return jnp.where(bits >> 31 == 1, -value, value)

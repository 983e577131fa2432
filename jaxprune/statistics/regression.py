"""A power law through estimates with standard errors: weighted, with a test of the law itself.

`exponent` is for values known to within brackets, without errors; this is for estimates, as of a
gap's quantile at several widths, each with the standard error that its trials gave it.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune import validation

MAX_POINTS = 1000

FLOOR_MARGIN = 10.0
"""Estimates below this many times the float floor are dropped."""

SIGNIFICANCE = 0.01
"""A p-value of the lack of fit up to this says that no power law holds."""

STARTS = 20
"""Slopes from which the law with a constant is searched."""


class WithConstant(NamedTuple):
    """`y = exp(intercept) x^slope + constant`, `constant >= 0`.

    Attributes:
      slope, intercept, constant: of least weighted squares in log y.
      low, high: t limits of the slope (k - 3 degrees of freedom) from the curvature at the
        optimum, scale estimated; infinite if there is no degree of freedom.
      lack_of_fit: chi-squared p-value, k - 3 degrees of freedom; NaN if there is none.
    """

    slope: float
    low: float
    high: float
    intercept: float
    constant: float
    lack_of_fit: float


class PowerLaw(NamedTuple):
    """`log y = intercept + slope log x`, least squares weighted with the inverse variances.

    Attributes:
      slope, intercept: estimates.
      low, high: t limits of the slope, k - 2 degrees of freedom, scale estimated; infinite if
        k = 2. Right if the errors given are, up to one common factor.
      scale: that factor, estimated: the root of chi-squared over k - 2. NaN if k = 2.
      lack_of_fit: p-value of the hypothesis that a power law holds and the errors are right as
        given: P(chi-squared of k - 2 >= that of the fit). NaN if k = 2.
      points: how many estimates were fitted, k.
      dropped: x of the estimates below 10 float floors.
      with_constant: the law with a constant added, where lack of fit shows and k >= 4; else None.
        It is the slope to trust if it fits and this does not.
    """

    slope: float
    low: float
    high: float
    intercept: float
    scale: float
    lack_of_fit: float
    points: int
    dropped: tuple[float, ...]
    with_constant: WithConstant | None


def power_law(
    x,
    y,
    errors,
    *,
    confidence: float = 0.95,
    float_floor: float = 0.0,
    significance: float = SIGNIFICANCE,
) -> PowerLaw:
    """Fits `y ~ x^slope` to estimates.

    With w = 1 / errors^2 and means weighted by w,

        slope = sum w (log x - mean) log y / sum w (log x - mean)^2,

    whose standard error is `scale / sqrt(sum w (log x - mean)^2)`. The scale is estimated, with
    Student's t, since errors estimated from trials are often too small; normal limits that trust
    them cover less than they say. So do these if the estimates scatter besides, by the same at
    very different errors (82 instead of 95 % measured): `lack_of_fit` should show that.

    Args:
      x: `(k,)` positive numbers, at least two different ones not dropped.
      y: `(k,)` positive independent estimates.
      errors: `(k,)` standard errors of log y, i.e. relative ones of y, positive.
      confidence: of the two-sided limits of the slope, in (0, 1).
      float_floor: what y would be measured as if it were zero, of rounding alone; estimates below
        ten times this are dropped, and reported.
      significance: with a lack of fit at or below this p-value a constant is added to the law.

    Raises:
      ValueError: a number out of range, or too few estimates above the floor.
    """
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    significance = validation.real("significance", significance, 0.0, 1.0)
    float_floor = validation.real("float_floor", float_floor, 0.0, math.inf, open=False)
    x, y, errors = (
        np.array([validation.real(name, v, 0.0, math.inf) for v in values])
        for name, values in (("x", x), ("y", y), ("errors", errors))
    )
    if not len(x) == len(y) == len(errors) <= MAX_POINTS:
        raise ValueError(f"x, y, errors: equally many numbers, up to {MAX_POINTS}, are needed")
    kept = y >= FLOOR_MARGIN * float_floor
    dropped = tuple(x[~kept].tolist())
    if len(set(x[kept].tolist())) < 2:
        raise ValueError(f"x = {x[kept].tolist()}: two different ones above the floor are needed")
    u, v, errors = np.log(x[kept]), np.log(y[kept]), errors[kept]
    # In units of the least error, whose square may be no float.
    unit = errors.min()
    k, w = len(u), (errors / unit) ** -2.0

    centre = w @ u / w.sum()
    spread = w @ (u - centre) ** 2
    slope = float(w @ ((u - centre) * v) / spread)
    intercept = float(w @ (v - slope * u) / w.sum())
    chi2 = float(w @ ((v - intercept - slope * u) / unit) ** 2)
    scale, p = _scale(chi2, k - 2)
    margin = _margin(scale * unit / math.sqrt(spread), k - 2, confidence)
    constant = None
    if k >= 4 and p <= significance:
        constant = _with_constant(u, v, errors, slope, confidence)
    return PowerLaw(
        slope, slope - margin, slope + margin, intercept, scale, p, k, dropped, constant
    )


def _with_constant(u, v, errors, slope, confidence) -> WithConstant:
    """Least squares of `(log(exp(a) (x / x0)^s + c) - log y) / errors` over a, s and `c >= 0`.

    The best from many starts: the sum of squares has more than one minimum. Lengths are in units
    of the middle of the data, so the answer does not depend on the units of x and y.
    """
    from scipy import optimize  # here, so that importing the package stays light

    u0, v0 = u.mean(), v.mean()
    u, v = u - u0, v - v0

    def law(theta):
        a, s, c = theta
        return np.logaddexp(a + s * u, np.log(c) if c > 0 else -np.inf)

    residuals = lambda theta: (law(theta) - v) / errors

    def jacobian(theta):
        a, s, _ = theta
        share = np.exp(a + s * u - law(theta))  # of the power in the sum
        return np.stack([share, share * u, np.exp(-law(theta))], axis=1) / errors[:, None]

    def starts():
        """For each slope the best of several constants, with the `a` that suits both."""
        for s in slope + np.linspace(-3.0, 3.0, STARTS):
            thetas = []
            for c in math.exp(v.min()) * np.linspace(0.0, 0.99, STARTS):
                a = np.average(np.log(np.exp(v) - c) - s * u, weights=errors**-2.0)
                thetas.append((a, s, c))
            yield min(thetas, key=lambda theta: (residuals(theta) ** 2).sum())

    bounds = [-np.inf, -np.inf, 0.0], np.inf
    with np.errstate(over="ignore"):  # of steps too long, which the search then shortens
        fits = [
            optimize.least_squares(residuals, start, jacobian, bounds, x_scale="jac")
            for start in starts()
        ]
    fit = min(fits, key=lambda f: f.cost)
    a, s, c = fit.x
    free = len(u) - 3
    scale, p = _scale(2 * fit.cost, free)
    j = jacobian(fit.x)
    try:
        error = scale * math.sqrt(np.linalg.inv(j.T @ j)[1, 1])
    except (np.linalg.LinAlgError, ValueError):  # no constant can be told from the power
        error = math.inf
    margin = _margin(error, free, confidence)
    return WithConstant(
        slope=float(s),
        low=float(s - margin),
        high=float(s + margin),
        intercept=float(a - s * u0 + v0),
        constant=float(c * math.exp(v0)),
        lack_of_fit=p,
    )


def _scale(chi2: float, free: int) -> tuple[float, float]:
    """Root of chi-squared per degree of freedom, and its p-value; NaN where there is none."""
    if free < 1:
        return math.nan, math.nan
    return math.sqrt(chi2 / free), float(special.chdtrc(free, chi2))


def _margin(error: float, free: int, confidence: float) -> float:
    """Student's; infinite without a degree of freedom."""
    if free < 1 or not math.isfinite(error):
        return math.inf
    return float(special.stdtrit(free, 0.5 + 0.5 * confidence) * error)

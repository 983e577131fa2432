"""Tests and limits that may be looked at after every trial, and stop at any time one likes.

All are mixtures of likelihood ratios, martingales of mean 1 under the hypothesis that they test
(Robbins, Ann. Math. Stat. 41, 1970); by Ville's inequality one ever exceeds 1 / alpha with
probability at most alpha. Everything is a logarithm, and in terms of failures: k in n trials, whose
probability is theta.
"""

import math

import numpy as np
from scipy import special

from jaxprune import validation
from jaxprune.statistics import binomial

PRIOR = 0.5
"""Both parameters of the beta prior: the mixture costs about half a log n (Krichevsky-Trofimov)."""


def log_mixture(failures, trials, p):
    """Logarithm of the mixture `∫ L(θ) dBeta(1/2, 1/2) / L(p)` of likelihoods L of k failures.

    A martingale under θ = p: the probability that it ever exceeds 1 / alpha is at most alpha.

    Args:
      failures: integers k, any shape.
      trials: integers n up to 10^12, at least `failures`.
      p: in (0, 1).

    Raises:
      ValueError: a number out of range.
    """
    k, n, p = binomial.checked(failures, trials, p, "p")
    return _log_mixture(k, n, p)[()]


def sequence_limits(failures, trials, alpha):
    """A confidence sequence: with probability `1 - alpha` θ is within all limits ever seen.

    Args:
      failures: integers, any shape.
      trials: integers up to 10^12, at least `failures`.
      alpha: in (0, 1), of both sides together.

    Returns:
      The least and the greatest p with `log_mixture < log(1 / alpha)`, float64, rounded outward;
      0 and 1 where there is no trial.

    Raises:
      ValueError: a number out of range.
    """
    k, n, alpha = binomial.checked(failures, trials, alpha)
    mode, most = k / np.maximum(n, 1.0), -np.log(alpha)
    shape = np.broadcast_shapes(k.shape, alpha.shape)
    inside = lambda p: _log_mixture(k, n, p) < most
    low = binomial.least(lambda p: (p >= mode) | inside(p), shape)
    high = binomial.least(lambda p: (p > mode) & ~inside(p), shape)
    low = np.where(k == 0, 0.0, np.nextafter(low, 0.0))
    return low[()], np.where(k == n, 1.0, high)[()]


def log_e_holds(failures, trials, delta):
    """Evidence for `θ < delta`: log of an e-process against every θ of at least delta.

    The mixture over the part of the prior below delta. A trial multiplies it by a factor whose
    mean falls as θ grows beyond delta, where it is 1: a supermartingale under each θ >= delta.

    Args:
      failures: integers, any shape: every trial that is not a proven success.
      trials: integers up to 10^12, at least `failures`.
      delta: in (0, 1).

    Returns:
      float64; minus infinity where it underflows.

    Raises:
      ValueError: a number out of range.
    """
    k, n, delta = binomial.checked(failures, trials, delta, "delta")
    below = lambda a, b: special.betainc(a, b, delta)
    return _truncated(k, n, delta, below)[()]


def log_e_violated(failures, trials, delta):
    """Evidence for `θ > delta`, as `log_e_holds`; failures are proven ones here."""
    k, n, delta = binomial.checked(failures, trials, delta, "delta")
    above = lambda a, b: special.betaincc(a, b, delta)
    return _truncated(k, n, delta, above)[()]


def _truncated(k, n, p, part):
    with np.errstate(divide="ignore"):
        posterior = np.log(part(PRIOR + k, PRIOR + n - k))
    return _log_mixture(k, n, p) + posterior - np.log(part(PRIOR, PRIOR))


def _log_mixture(k, n, p):
    """`log B(A, B) - log B(1/2, 1/2) - k log p - (n - k) log(1 - p)`, A = k + 1/2, B = n - k + 1/2.

    By Stirling's formula, `A log(A / Mp) + B log(B / M(1 - p))`, M = n + 1, and small terms: as
    deviances, without the cancellation that would leave no digit at n = 10^12.
    """
    a, b, m = PRIOR + k, PRIOR + n - k, 2 * PRIOR + n
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q = 1.0 - p
        deviance = _deviance(a, m * p) + _deviance(b, m * q)
        prior = PRIOR * (np.log(p) + np.log1p(-p))
    stirling = _stirling(a) + _stirling(b) - _stirling(m)
    small = 0.5 * (math.log(2 * math.pi) + np.log(m) - np.log(a) - np.log(b)) + stirling
    # log B(1/2, 1/2) = log π; at p = 0 or 1 the likelihood is 0, or the mixture's share of 1.
    value = deviance + prior + small - math.log(math.pi)
    certain = special.betaln(a, b) - math.log(math.pi)
    value = np.where(p <= 0.0, np.where(k == 0, certain, np.inf), value)
    return np.where(p >= 1.0, np.where(k == n, certain, np.inf), value)


def _deviance(x, mean):
    """`x log(x / mean) - x + mean`, to full relative precision (Loader 2000)."""
    u = (x - mean) / mean
    near = np.clip(u, -0.05, 0.05)
    j = np.arange(2, 16)
    series = ((-near[..., None]) ** j / (j * (j - 1))).sum(axis=-1)
    far = (1.0 + u) * np.log1p(u) - u
    return mean * np.where(np.abs(u) < 0.05, series, far)


def _stirling(z):
    """`log Γ(z) - (z - 1/2) log z + z - log(2π)/2` for z of at least 1/2."""
    w = 1.0 / np.maximum(z, 10.0)
    series = w / 12 - w**3 / 360 + w**5 / 1260 - w**7 / 1680 + w**9 / 1188
    z = np.minimum(z, 10.0)
    direct = special.gammaln(z) - (z - 0.5) * np.log(z) + z - 0.5 * math.log(2 * math.pi)
    return np.where(w < 0.1, series, direct)


class Sprt:
    """Wald's test of `θ = p0` against `θ = p1`, both known, with conservative thresholds.

    The probability of accepting p1 where p0 is true is at most alpha, of the reverse at most beta
    (Wald 1945: thresholds 1 / alpha and beta, no approximation).

    Args:
      p0, p1: failure probabilities in (0, 1), different.
      alpha, beta: the two errors, in (0, 1).

    Raises:
      ValueError: a number out of range.
    """

    def __init__(self, p0: float, p1: float, *, alpha: float = 0.01, beta: float = 0.01):
        self.p0 = validation.real("p0", p0, 0.0, 1.0)
        self.p1 = validation.real("p1", p1, 0.0, 1.0)
        if self.p0 == self.p1:
            raise ValueError(f"p1 = {p1!r}: another number than p0 is needed")
        self.accept_p1 = -math.log(validation.real("alpha", alpha, 0.0, 1.0))
        self.accept_p0 = math.log(validation.real("beta", beta, 0.0, 1.0))

    def log_ratio(self, failures, trials):
        """`log L(p1) / L(p0)` of integers of any shape."""
        k, n, _ = binomial.checked(failures, trials, self.p0, "p0")
        fail = math.log(self.p1) - math.log(self.p0)
        pass_ = math.log1p(-self.p1) - math.log1p(-self.p0)
        return (k * fail + (n - k) * pass_)[()]

    def decide(self, failures: int, trials: int) -> float | None:
        """`p0` or `p1`, whichever is accepted; None while more trials are needed."""
        ratio = self.log_ratio(failures, trials)
        if ratio >= self.accept_p1:
            return self.p1
        return self.p0 if ratio <= self.accept_p0 else None

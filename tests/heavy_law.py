"""A law with two finite even moments: |X| of density `A (1 + x)^-(A + 1)`, its sign a fair coin."""

import math

import jax.numpy as jnp
import numpy as np

from jaxprune.laws import Family

A = 5.5


def log_moment(j):
    if 2 * j >= A:
        return math.inf
    return math.lgamma(2 * j + 1) + math.lgamma(A - 2 * j) - math.lgamma(A)


def quantile(p):
    return np.expm1(-np.log1p(-np.asarray(p, np.float64)) / A)[()]


def kept_energy(q):
    part = lambda c: (1.0 - q) ** (1.0 - c) / (1.0 - c)
    return (part(2 / A) - 2 * part(1 / A) + part(0.0)) / math.exp(log_moment(1))


LOMAX = Family(
    "lomax",
    lambda u: jnp.expm1(-jnp.log(u) / A),
    math.exp(log_moment(1)),
    math.inf,
    log_moment,
    quantile,
    kept_energy,
)

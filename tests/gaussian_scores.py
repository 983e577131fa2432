"""Scores of independent standard normal numbers, whose exceedance probabilities are known, and the
smallest ball for pairs that are scored, for the tests of splitting."""

import math

import numpy as np

from jaxprune.gaps import UnitBall
from jaxprune.statistics import Problem
from jaxprune.statistics.splitting import gaussian_step

D = 20
ONE_INPUT = UnitBall(samples=2, starts=1, steps=1)


def gaussian(score):
    """A score of 20 independent standard normal numbers."""
    return Problem(
        sample=lambda rng, n: (rng.standard_normal((n, D)),),
        score=lambda x: score(x[0]),
        move=lambda rng, x, scale: (gaussian_step(rng, x[0], scale),),
    )


def projection(z):
    return z.sum(axis=1) / math.sqrt(D)


LINEAR = gaussian(projection)
TWO_SIDED = gaussian(lambda z: np.abs(projection(z)))

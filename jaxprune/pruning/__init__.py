"""Pruning methods, one a file, and the amounts they take."""

from jaxprune.pruning.amounts import Amount, Count, Fraction, Sublinear
from jaxprune.pruning.base import Pruning
from jaxprune.pruning.magnitude import magnitude
from jaxprune.pruning.random import bernoulli, random
from jaxprune.pruning.selection import magnitude_keys, smallest

METHODS = {method.name: method for method in (random, bernoulli, magnitude)}

__all__ = [
    "METHODS",
    "Amount",
    "Count",
    "Fraction",
    "Pruning",
    "Sublinear",
    "bernoulli",
    "magnitude",
    "magnitude_keys",
    "random",
    "smallest",
]

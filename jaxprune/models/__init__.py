"""Pruning of one given model: any pytree of parameters.

`prune` puts a method's scores, a structure and an amount together into `Masks`.
"""

from jaxprune.models.amounts import ErdosRenyi, Global
from jaxprune.models.iterative import Iterated, iterative
from jaxprune.models.masks import Masks
from jaxprune.models.paths import arrays, replace, select
from jaxprune.models.prune import prune
from jaxprune.models.scores import grasp, magnitude, random, snip, synflow
from jaxprune.models.structures import NM, Block, Neurons, Weights
from jaxprune.models.summary import Row, Summary
from jaxprune.pruning.amounts import Count, Fraction, Sublinear

__all__ = [
    "NM",
    "Block",
    "Count",
    "ErdosRenyi",
    "Fraction",
    "Global",
    "Iterated",
    "Masks",
    "Neurons",
    "Row",
    "Sublinear",
    "Summary",
    "Weights",
    "arrays",
    "grasp",
    "iterative",
    "magnitude",
    "prune",
    "random",
    "replace",
    "select",
    "snip",
    "synflow",
]

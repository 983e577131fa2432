"""One given model: prune any pytree of parameters, and see how far the model moves.

`prune` puts a method's scores, a structure and an amount together into `Masks`; `moves` compares
the model with its pruned copy on data, `ball_gap` over the whole unit ball.
"""

from jaxprune.models.amounts import ErdosRenyi, Global
from jaxprune.models.ball import ball_gap
from jaxprune.models.iterative import Iterated, iterative
from jaxprune.models.known import Known, known
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model
from jaxprune.models.moves import Moves, moves, simulate_masks
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
    "Known",
    "Masks",
    "Model",
    "Moves",
    "Neurons",
    "Row",
    "Sublinear",
    "Summary",
    "Weights",
    "arrays",
    "ball_gap",
    "grasp",
    "iterative",
    "known",
    "magnitude",
    "moves",
    "prune",
    "random",
    "replace",
    "select",
    "simulate_masks",
    "snip",
    "synflow",
]

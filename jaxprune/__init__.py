"""How far is a pruned network from the network it was pruned from, and with what probability?"""

from jaxprune import models
from jaxprune.activations import erf, identity, leaky_relu, relu, tanh
from jaxprune.bounds import certify, infinite_width
from jaxprune.engine import Tally, layer_account, simulate
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.inputs import into_ball
from jaxprune.laws import Law, normal, uniform
from jaxprune.networks import Network, convolutional, dense
from jaxprune.pruning import Count, Fraction, Sublinear, bernoulli, magnitude, random
from jaxprune.statistics import Claim, Counts, Decision, judge

__version__ = "0.1.0"

__all__ = [
    "Claim",
    "Count",
    "Counts",
    "Decision",
    "Fraction",
    "Law",
    "LinfBall",
    "Network",
    "Sublinear",
    "Tally",
    "UnitBall",
    "bernoulli",
    "certify",
    "convolutional",
    "dense",
    "erf",
    "identity",
    "infinite_width",
    "into_ball",
    "judge",
    "layer_account",
    "leaky_relu",
    "magnitude",
    "models",
    "normal",
    "random",
    "relu",
    "simulate",
    "tanh",
    "uniform",
]

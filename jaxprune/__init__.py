"""How far is a pruned network from the network it was pruned from, and with what probability?

Names are imported when they are first used (PEP 562): `import jaxprune` is light.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same for type checkers and editors, which run nothing
    from jaxprune import bounds as bounds
    from jaxprune import engine as engine
    from jaxprune import gaps as gaps
    from jaxprune import models as models
    from jaxprune import pruning as pruning
    from jaxprune import report as report
    from jaxprune import statistics as statistics
    from jaxprune import studies as studies
    from jaxprune.activations import erf, identity, leaky_relu, relu, tanh
    from jaxprune.bounds import certify, infinite_width
    from jaxprune.engine import Tally, layer_account
    from jaxprune.engine.simulate import simulate  # `engine.simulate` is a module, too
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

_NAMES = {
    "activations": ("erf", "identity", "leaky_relu", "relu", "tanh"),
    "bounds": ("certify", "infinite_width"),
    "engine": ("Tally", "layer_account", "simulate"),
    "gaps": ("LinfBall", "UnitBall"),
    "inputs": ("into_ball",),
    "laws": ("Law", "normal", "uniform"),
    "networks": ("Network", "convolutional", "dense"),
    "pruning": ("Count", "Fraction", "Sublinear", "bernoulli", "magnitude", "random"),
    "statistics": ("Claim", "Counts", "Decision", "judge"),
}
_ROOMS = ("models", "report", "studies", *_NAMES)
_HOME = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # which would take any name for a name of ours

    def __getattr__(name: str) -> object:
        if name in _HOME:
            value = getattr(importlib.import_module(f"jaxprune.{_HOME[name]}"), name)
        elif name in _ROOMS:
            value = importlib.import_module(f"jaxprune.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})

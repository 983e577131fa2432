"""The engine: one pure trial, batched into blocks, counted exactly."""

from jaxprune.engine.simulate import prepare, run_blocks, simulate
from jaxprune.engine.tally import GUARD, Tally
from jaxprune.engine.trial import Design, Numbers, Trial, run_trial

__all__ = [
    "GUARD",
    "Design",
    "Numbers",
    "Tally",
    "Trial",
    "prepare",
    "run_blocks",
    "run_trial",
    "simulate",
]

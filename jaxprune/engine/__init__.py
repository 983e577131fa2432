"""The engine: one pure trial, batched into blocks, counted exactly."""

from jaxprune.engine.account import LayerAccount, layer_account
from jaxprune.engine.rare import rare_failure
from jaxprune.engine.run import Run, compiled_block, prepare, run_blocks, simulate, tally_run
from jaxprune.engine.tally import GUARD, Tally
from jaxprune.engine.trial import Design, Numbers, Trial, run_trial

__all__ = [
    "GUARD",
    "Design",
    "LayerAccount",
    "Numbers",
    "Run",
    "Tally",
    "Trial",
    "compiled_block",
    "layer_account",
    "prepare",
    "rare_failure",
    "run_blocks",
    "run_trial",
    "simulate",
    "tally_run",
]

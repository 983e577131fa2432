"""The engine: one pure trial, batched into blocks, counted exactly."""

from jaxprune.engine.account import LayerAccount, layer_account
from jaxprune.engine.rare import ENDS, rare_failure
from jaxprune.engine.run import Block, Run, compiled_block, prepare, run_blocks, simulate, tally_run
from jaxprune.engine.tally import GUARD, Tally
from jaxprune.engine.trial import Design, Numbers, Pair, Trial

__all__ = [
    "ENDS",
    "GUARD",
    "Block",
    "Design",
    "LayerAccount",
    "Numbers",
    "Pair",
    "Run",
    "Tally",
    "Trial",
    "compiled_block",
    "layer_account",
    "prepare",
    "rare_failure",
    "run_blocks",
    "simulate",
    "tally_run",
]

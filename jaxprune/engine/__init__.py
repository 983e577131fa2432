"""The engine: one pure trial, batched into blocks, counted exactly, kept in a store."""

from jaxprune.engine.account import LayerAccount, layer_account
from jaxprune.engine.blocks import Done, run_blocks
from jaxprune.engine.programs import Block, compiled_block, draw, fitted
from jaxprune.engine.rare import ENDS, rare_failure
from jaxprune.engine.run import Run, prepare
from jaxprune.engine.simulate import Tallied, empty_tally, simulate, tally_blocks, tally_run
from jaxprune.engine.store import Store
from jaxprune.engine.tally import GUARD, Tally
from jaxprune.engine.trial import Design, Numbers, Pair, Trial

__all__ = [
    "ENDS",
    "GUARD",
    "Block",
    "Design",
    "Done",
    "LayerAccount",
    "Numbers",
    "Pair",
    "Run",
    "Store",
    "Tallied",
    "Tally",
    "Trial",
    "compiled_block",
    "draw",
    "empty_tally",
    "fitted",
    "layer_account",
    "prepare",
    "rare_failure",
    "run_blocks",
    "simulate",
    "tally_blocks",
    "tally_run",
]

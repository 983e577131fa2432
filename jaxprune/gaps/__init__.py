"""The gap of one pair: lower bounds, certified norms, upper bounds, the sandwich."""

from jaxprune.gaps.account import (
    Account,
    layer_account,
    switch_terms,
    telescoping_terms,
    worst_input,
    worst_row,
)
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.difference import Removed, difference, removed_part
from jaxprune.gaps.intervals import interval_bounds
from jaxprune.gaps.lengths import lengths
from jaxprune.gaps.linf import LinfBall, measure_linf_ball
from jaxprune.gaps.multipliers import multiplier_bound, shared_torus
from jaxprune.gaps.norms import frequencies, norm_bound
from jaxprune.gaps.rows import Measurement, measure_rows
from jaxprune.gaps.sandwich import UnitBall, measure_ball

__all__ = [
    "Account",
    "LinfBall",
    "Measurement",
    "Removed",
    "UnitBall",
    "ascend",
    "difference",
    "frequencies",
    "interval_bounds",
    "layer_account",
    "lengths",
    "measure_ball",
    "measure_linf_ball",
    "measure_rows",
    "multiplier_bound",
    "norm_bound",
    "removed_part",
    "shared_torus",
    "switch_terms",
    "telescoping_terms",
    "worst_input",
    "worst_row",
]

"""The gap of one pair: lower bounds, certified norms, upper bounds, the sandwich."""

from jaxprune.gaps.ascent import ascend, lengths
from jaxprune.gaps.difference import Removed, difference, removed_part
from jaxprune.gaps.multipliers import multiplier_bound, shared_torus
from jaxprune.gaps.norms import frequencies, norm_bound
from jaxprune.gaps.sandwich import Measurement, UnitBall, measure_ball, measure_rows

__all__ = [
    "Measurement",
    "Removed",
    "UnitBall",
    "ascend",
    "difference",
    "frequencies",
    "lengths",
    "measure_ball",
    "measure_rows",
    "multiplier_bound",
    "norm_bound",
    "removed_part",
    "shared_torus",
]

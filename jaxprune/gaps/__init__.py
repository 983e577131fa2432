"""The gap of one pair: lower bounds, certified norms, upper bounds, the sandwich."""

from jaxprune.gaps.ascent import ascend, lengths
from jaxprune.gaps.difference import Removed, difference, removed_part
from jaxprune.gaps.norms import MAX_ENTRIES, convolution_norm_bound, matrix_norm_bound, norm_bound
from jaxprune.gaps.sandwich import Measurement, UnitBall, measure_ball, measure_rows
from jaxprune.gaps.telescoping import telescoping_bound

__all__ = [
    "MAX_ENTRIES",
    "Measurement",
    "Removed",
    "UnitBall",
    "ascend",
    "convolution_norm_bound",
    "difference",
    "lengths",
    "matrix_norm_bound",
    "measure_ball",
    "measure_rows",
    "norm_bound",
    "removed_part",
    "telescoping_bound",
]

"""Statistics on the host, in float64: exact limits, many claims at once, verdicts."""

from jaxprune.statistics.binomial import (
    lower_limit,
    p_value_at_least,
    p_value_at_most,
    upper_limit,
)
from jaxprune.statistics.many import holm
from jaxprune.statistics.verdict import (
    HOLDS,
    UNDECIDED,
    VIOLATED,
    Claim,
    Counts,
    Decision,
    judge,
)

__all__ = [
    "HOLDS",
    "UNDECIDED",
    "VIOLATED",
    "Claim",
    "Counts",
    "Decision",
    "holm",
    "judge",
    "lower_limit",
    "p_value_at_least",
    "p_value_at_most",
    "upper_limit",
]

"""Statistics on the host, in float64: exact limits, many claims at once, verdicts."""

from jaxprune.statistics.binomial import (
    lower_limit,
    p_value_at_least,
    p_value_at_most,
    upper_limit,
)
from jaxprune.statistics.ends import (
    BRACKET,
    TRIALS,
    Ends,
    judge_ends,
    least_trials,
    level_of_one,
)
from jaxprune.statistics.exponent import MAX_POINTS, Exponent, exponent
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
    "BRACKET",
    "HOLDS",
    "MAX_POINTS",
    "TRIALS",
    "UNDECIDED",
    "VIOLATED",
    "Claim",
    "Counts",
    "Decision",
    "Ends",
    "Exponent",
    "exponent",
    "holm",
    "judge",
    "judge_ends",
    "least_trials",
    "level_of_one",
    "lower_limit",
    "p_value_at_least",
    "p_value_at_most",
    "upper_limit",
]

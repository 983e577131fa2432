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
from jaxprune.statistics.importance import Weighted, importance
from jaxprune.statistics.many import holm
from jaxprune.statistics.splitting import (
    UNRELIABLE,
    Estimate,
    Problem,
    Splitting,
    estimate,
    failure_free_trials,
    ideal_interval,
)
from jaxprune.statistics.verdict import (
    ESTIMATED,
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
    "ESTIMATED",
    "HOLDS",
    "MAX_POINTS",
    "TRIALS",
    "UNDECIDED",
    "UNRELIABLE",
    "VIOLATED",
    "Claim",
    "Counts",
    "Decision",
    "Ends",
    "Estimate",
    "Exponent",
    "Problem",
    "Splitting",
    "Weighted",
    "estimate",
    "exponent",
    "failure_free_trials",
    "holm",
    "ideal_interval",
    "importance",
    "judge",
    "judge_ends",
    "least_trials",
    "level_of_one",
    "lower_limit",
    "p_value_at_least",
    "p_value_at_most",
    "upper_limit",
]

"""Statistics on the host, in float64: exact limits, many claims at once, verdicts."""

from jaxprune.statistics.binomial import (
    limits,
    lower_limit,
    p_value_at_least,
    p_value_at_most,
    upper_limit,
)
from jaxprune.statistics.distribution import (
    Ranks,
    Survival,
    dkw_at_look,
    dkw_half_width,
    quantile_ranks,
    survival,
    tolerance_trials,
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
from jaxprune.statistics.many import e_bh, fixed_sequence, holm
from jaxprune.statistics.means import Mean, betting, empirical_bernstein
from jaxprune.statistics.planning import (
    trials_for_half_width,
    trials_for_power,
    trials_without_failure,
)
from jaxprune.statistics.regression import PowerLaw, WithConstant, power_law
from jaxprune.statistics.sequential import (
    Sprt,
    log_e_holds,
    log_e_violated,
    log_mixture,
    sequence_limits,
)
from jaxprune.statistics.splitting import (
    UNRELIABLE,
    Estimate,
    Problem,
    Splitting,
    estimate,
    ideal_interval,
)
from jaxprune.statistics.stopping import CORRECTIONS, E_BH, HOLM, Evidence, judge_stopped
from jaxprune.statistics.verdict import (
    CERTIFIED,
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
    "CERTIFIED",
    "CORRECTIONS",
    "ESTIMATED",
    "E_BH",
    "HOLDS",
    "HOLM",
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
    "Evidence",
    "Exponent",
    "Mean",
    "PowerLaw",
    "Problem",
    "Ranks",
    "Splitting",
    "Sprt",
    "Survival",
    "Weighted",
    "WithConstant",
    "betting",
    "dkw_at_look",
    "dkw_half_width",
    "e_bh",
    "empirical_bernstein",
    "estimate",
    "exponent",
    "fixed_sequence",
    "holm",
    "ideal_interval",
    "importance",
    "judge",
    "judge_ends",
    "judge_stopped",
    "least_trials",
    "level_of_one",
    "limits",
    "log_e_holds",
    "log_e_violated",
    "log_mixture",
    "lower_limit",
    "p_value_at_least",
    "p_value_at_most",
    "power_law",
    "quantile_ranks",
    "sequence_limits",
    "survival",
    "tolerance_trials",
    "trials_for_half_width",
    "trials_for_power",
    "trials_without_failure",
    "upper_limit",
]

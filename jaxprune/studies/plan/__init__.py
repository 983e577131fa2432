"""Plans: what is sampled and what is claimed, written down before any of it is looked at.

A plan is a TOML file. Its top level holds the keys in `PLAN_KEYS`; each
`[[experiment]]` is a table of the keys in `EXPERIMENT_KEYS`, and stands for every combination of
its networks, prunings, amounts and domains. `studies/plans/full.toml` shows most of them.
"""

from jaxprune.studies.plan.keys import (
    EXPERIMENT_KEYS,
    LINF_BALL,
    PLAN_KEYS,
    TEST_IMAGES,
    THEOREM,
    UNIT_BALL,
)
from jaxprune.studies.plan.reading import (
    BUDGET,
    BUNDLED,
    FIRST,
    MAX_PLAN_BYTES,
    load,
    parse,
)
from jaxprune.studies.plan.records import Case, Plan

__all__ = [
    "BUDGET",
    "BUNDLED",
    "EXPERIMENT_KEYS",
    "FIRST",
    "LINF_BALL",
    "MAX_PLAN_BYTES",
    "PLAN_KEYS",
    "TEST_IMAGES",
    "THEOREM",
    "UNIT_BALL",
    "Case",
    "Plan",
    "load",
    "parse",
]

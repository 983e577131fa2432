"""The list of seeded faults fits today's code; `python tests/mutations/run.py` runs them."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from mutations.run import ROOT, faults, mutated

FAULTS = faults()
KEYS = {"name", "kind", "file", "old", "new", "tests"}


def test_there_are_at_least_forty_of_every_kind():
    assert len(FAULTS) == len({fault["name"] for fault in FAULTS}) >= 40
    kinds = Counter(fault["kind"] for fault in FAULTS)
    assert set(kinds) == {"statistics", "engine", "gaps", "bounds", "pruning", "models", "studies"}
    assert kinds["statistics"] >= 16 and min(kinds.values()) >= 3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_changes_one_place_and_leaves_a_program(fault):
    assert set(fault) == KEYS
    assert Path(ROOT, fault["tests"].split()[0].partition("::")[0]).is_file()
    text = Path(ROOT, fault["file"]).read_text("utf-8")
    changed = ast.parse(mutated(text, fault))
    assert ast.dump(changed) != ast.dump(ast.parse(text))

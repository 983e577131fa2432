"""The list of seeded faults fits today's code; `python tests/mutations/run.py` runs them."""

import ast
import shlex
from collections import Counter
from pathlib import Path

import pytest
from mutations.run import ROOT, faults, mutated

FAULTS = faults()
KEYS = {"name", "kind", "file", "old", "new", "tests"}
TIERS = {"pytest.mark.ci", "pytest.mark.slow", "ci", "slow"}


def test_there_are_at_least_forty_of_every_kind():
    assert len(FAULTS) == len({fault["name"] for fault in FAULTS}) >= 40
    kinds = Counter(fault["kind"] for fault in FAULTS)
    assert set(kinds) == {"statistics", "engine", "gaps", "bounds", "pruning", "models", "studies"}
    assert kinds["statistics"] >= 16 and min(kinds.values()) >= 3


def default_tests(path):
    """Names of a module's test functions that are not wholly of another tier."""
    tree = ast.parse(Path(ROOT, path).read_text("utf-8"))
    marked = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    assert not any(tier in marks for tier in TIERS for marks in marked), f"{path}: another tier"
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
            found |= {prefix + f.name for f in inner if is_default(node) and is_default(f)}
    return found


def is_default(node):
    """Whether a test, or a class of tests, has no mark of another tier."""
    marks = {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())}
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not TIERS & marks


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_changes_one_place_and_leaves_a_program(fault):
    assert set(fault) == KEYS
    text = Path(ROOT, fault["file"]).read_text("utf-8")
    changed = ast.parse(mutated(text, fault))
    assert ast.dump(changed) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_names_tests_of_the_default_tier(fault):
    for node in shlex.split(fault["tests"]):
        path, _, name = node.partition("::")
        assert name.partition("[")[0] in default_tests(path), f"{node}: no such default test"

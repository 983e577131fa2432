"""The list of seeded faults fits today's code; `python tests/mutations/run.py` runs them."""

import ast
import shlex
from collections import Counter
from pathlib import Path

import pytest
from mutations.run import ROOT, faults, mutated, sessions

FAULTS = faults()
KEYS = {"name", "kind", "file", "old", "new", "tests"}
TIERS = {"pytest.mark.ci", "pytest.mark.slow"}


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
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not TIERS & {ast.unparse(decorator) for decorator in node.decorator_list}
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_changes_one_place_and_leaves_a_program(fault):
    assert set(fault) == KEYS
    text = Path(ROOT, fault["file"]).read_text("utf-8")
    changed = ast.parse(mutated(text, fault))
    assert ast.dump(changed) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_names_tests_of_the_default_tier(fault):
    first, *rest = shlex.split(fault["tests"])
    for argument in (first, *(a for a in rest if a.startswith("tests/"))):
        path, _, name = argument.partition("::")
        names = default_tests(path)
        assert not name or name.partition("[")[0] in names, f"{argument}: no such default test"


def test_tests_without_a_fault_run_in_one_session():
    named = [{"tests": "tests/a.py::b[1] tests/a.py::c"}, {"tests": "tests/a.py::c"}]
    options = [{"tests": "tests/d.py -k 'e or f'"}] * 2
    assert sessions([*named, *options], 2) == [
        ["-n", "2", "tests/a.py::b[1]", "tests/a.py::c"],
        ["-n0", "tests/d.py", "-k", "e or f"],
    ]

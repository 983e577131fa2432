"""Imports run one way; nothing unsafe, private or misleading is used."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxprune"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import, besides itself, `types` and `validation`.
ALLOWED = {
    "types": set(),
    "validation": set(),
    "bits": set(),
    "files": set(),
    "session": set(),
    "laws": set(),
    "activations": set(),
    "networks": {"activations", "products"},
    "products": set(),
    "inputs": {"bits", "laws"},
    "pruning": {"bits", "laws"},
    "statistics": set(),
    "gaps": {"activations", "bits", "inputs", "networks"},
    "bounds": {"activations", "laws", "networks", "pruning", "statistics"},
    "engine": {
        "bits",
        "files",
        "gaps",
        "inputs",
        "laws",
        "networks",
        "pruning",
        "session",
        "statistics",
    },
    "models": {
        "activations",
        "bits",
        "engine",
        "files",
        "gaps",
        "inputs",
        "networks",
        "pruning",
        "session",
        "statistics",
    },
    "studies": {
        "activations",
        "bits",
        "bounds",
        "engine",
        "files",
        "gaps",
        "inputs",
        "laws",
        "networks",
        "pruning",
        "session",
        "statistics",
    },
    "report": {"files", "statistics"},  # the words of verdicts
    "cli": {
        "activations",
        "engine",
        "files",
        "laws",
        "networks",
        "pruning",
        "report",
        "session",
        "statistics",
        "studies",
    },
}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if room(path) in ("__init__", "__main__"):
        return
    for module, name in imports(path):
        if module.split(".")[0] != "jaxprune":
            continue
        target = module.split(".")[1] if "." in module else name
        if (target and (PACKAGE / target).exists()) or (PACKAGE / f"{target}.py").exists():
            allowed = ALLOWED[room(path)] | {room(path), "types", "validation"}
            assert target in allowed, f"{room(path)} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_unsafe_or_private(path):
    text = path.read_text()
    for pattern in (r"\bpickle\b", r"allow_pickle", r"\beval\(", r"jax\._src", r"yaml\.load"):
        assert not re.search(pattern, text), f"{pattern} in {path}"
    for module, _ in imports(path):
        assert not module.startswith(("jax._", "jax.core", "scipy.stats", "pickle"))


def test_vmap_over_trials_stands_in_the_engine_alone():
    """Elsewhere `vmap` runs over inputs, keys, training seeds, or in a rule of how to batch."""
    users = {str(p.relative_to(PACKAGE)) for p in MODULES if "jax.vmap" in p.read_text()}
    assert users == {
        "engine/account.py",
        "engine/keys.py",
        "engine/programs.py",
        "models/model.py",
        "studies/trained.py",
    }

"""`import jaxprune` is light, and every public name is there all the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxprune

HEAVY = (
    "matplotlib sklearn pandas xarray pyarrow flax equinox rich optax chex safetensors "
    "scipy.stats scipy.optimize"
).split()


NEW_INTERPRETER = """
import sys
import jaxprune as jp
print(*dir(jp))
print(*sys.modules)
jp.statistics.holm
print(*sys.modules)
from jaxprune import Tally, models
first = jp.simulate.__module__, Tally.__module__, models.prune.__module__
from jaxprune import *
print(*sys.modules)
import jaxprune.cli
print(*sys.modules)
print(*first, jp.engine.rare_failure.__name__, jp.studies.__name__, jp.report.page.__name__,
      all(getattr(jp, name) is not None for name in jp.__all__))
"""


@pytest.fixture(scope="module")
def printed():
    """Lines of `NEW_INTERPRETER`, as words."""
    command = [sys.executable, "-c", NEW_INTERPRETER]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        (1, "jaxprune"),
        (2, "jaxprune.statistics.many"),
        (3, "jaxprune.engine.simulate"),  # all that a simulation needs
    ],
)
def test_no_heavy_library_is_imported(printed, line, needed):
    assert needed in printed[line]
    assert not {name for name in HEAVY if name in printed[line]}


def test_commands_import_what_draws_once_they_draw(printed):
    assert "jaxprune.report" in printed[4] and "matplotlib" not in printed[4]


def test_every_name_is_there_in_a_fresh_interpreter(printed):
    assert set(printed[0]) >= set(jaxprune.__all__)
    assert printed[5] == [
        "jaxprune.engine.simulate",
        "jaxprune.engine.tally",
        "jaxprune.models.prune",
        "rare_failure",
        "jaxprune.studies",
        "page",
        "True",
    ]


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(Path(jaxprune.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (".".join(node.module.split(".")[:2]), alias.name)
        for node in block.body
        for alias in node.names
    }
    homes = {(f"jaxprune.{home}", name) for name, home in jaxprune._HOME.items()}
    rooms = {name for name in jaxprune._ROOMS if (Path(jaxprune.__file__).parent / name).is_dir()}
    assert seen == homes | {("jaxprune", name) for name in rooms}
    assert set(jaxprune.__all__) == {*jaxprune._HOME, "models"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"jaxprune.*'simulat'"):
        jaxprune.simulat  # noqa: B018
    with pytest.raises(ImportError, match="simulat"):
        exec("from jaxprune import simulat", {})

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


def fresh(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("statement", "needed"),
    [
        ("import jaxprune", "jaxprune"),
        ("from jaxprune import *", "jaxprune.engine.simulate"),  # all that a simulation needs
        ("import jaxprune; jaxprune.statistics.holm", "jaxprune.statistics.many"),
    ],
)
def test_no_heavy_library_is_imported(statement, needed):
    loaded = fresh(f"import sys\n{statement}\nprint(*sys.modules)")
    assert needed in loaded
    assert not {name for name in HEAVY if name in loaded}


def test_every_name_is_there_in_a_fresh_interpreter():
    names = set(fresh("import jaxprune\nprint(*dir(jaxprune))"))
    assert names >= set(jaxprune.__all__)
    found = fresh(
        "import jaxprune as jp\n"
        "from jaxprune import Tally, models\n"
        "print(jp.simulate.__module__, Tally.__module__, models.prune.__module__)\n"
        "print(jp.engine.rare_failure.__name__, jp.studies.__name__, jp.report.page.__name__)\n"
        "print(all(getattr(jp, name) is not None for name in jp.__all__))"
    )
    assert found == [
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

"""The plugin that counts compilations, and the ceiling that a tier must stay below."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from compilations import TIERS, Compilations


def test_each_compilation_is_counted_where_it_happens(pytestconfig):
    plugins = pytestconfig.pluginmanager.get_plugins()
    (plugin,) = (p for p in plugins if isinstance(p, Compilations))
    before, module = plugin.total, plugin.modules["tests/test_compilations.py"][1]
    function = jax.jit(lambda x: 3.0 * x + 1.0)
    for _ in range(2):
        function(np.float32(1.0))
    assert plugin.total == before + 1
    assert plugin.modules["tests/test_compilations.py"][1] == module + 1


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("count", "status", "expected"), [(10, 0, 0), (11, 0, 1), (11, 2, 2), (10, 1, 1)]
)
def test_a_tier_above_its_ceiling_fails(tier, count, status, expected):
    plugin = Compilations.__new__(Compilations)
    plugin.modules = {"a": [1, 4, 0.0, 0.0], "b": [1, count - 4, 0.0, 0.0]}
    plugin.config = SimpleNamespace(
        getoption=lambda name: {"markexpr": tier}[name],
        getini=lambda name: {TIERS[tier]: "10"}[name],
    )
    session = SimpleNamespace(exitstatus=status)
    plugin.pytest_sessionfinish(session)
    assert session.exitstatus == expected


def test_a_selection_of_one_s_own_has_no_ceiling():
    plugin = Compilations.__new__(Compilations)
    plugin.config = SimpleNamespace(getoption=lambda name: "not slow")
    assert plugin.ceiling == 0

"""A pytest plugin that counts XLA compilations, by test module, and fails a tier that has too many.

The count is nearly the same on every machine, unlike seconds. Programs found in the persistent
cache are counted, too; those of subprocesses are not. The ceilings are `max_compilations` and
`max_compilations_ci` in `pyproject.toml`.
"""

import collections
import time

import jax
import pytest

EVENT = "/jax/core/compile/backend_compile_duration"
TIERS = {"ci": "max_compilations_ci", "not ci and not slow": "max_compilations"}
SHOWN = 10


def add_ceilings(parser) -> None:
    """Declares the keys of `pyproject.toml`."""
    for name in TIERS.values():
        parser.addini(name, "most XLA compilations of a tier before the run fails", default="0")


class Compilations:
    """Counts in each process; the one that started the others adds up, prints and judges."""

    def __init__(self, config):
        self.config = config
        # By module: tests, compilations, seconds in them, seconds of processor time.
        self.modules = collections.defaultdict(lambda: [0, 0, 0.0, 0.0])
        self.current = "collection"
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event, seconds, **_):
        if event == EVENT:
            row = self.modules[self.current]
            row[1] += 1
            row[2] += seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.current = item.nodeid.partition("::")[0]
        started = time.process_time()
        try:
            return (yield)
        finally:
            row = self.modules[self.current]
            row[0] += 1
            row[3] += time.process_time() - started

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        output = getattr(self.config, "workeroutput", None)
        if output is not None:
            output["compilations"] = dict(self.modules)
        elif self.ceiling and self.total > self.ceiling and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        for module, row in getattr(node, "workeroutput", {}).get("compilations", {}).items():
            self.modules[module] = [a + b for a, b in zip(self.modules[module], row, strict=True)]

    @property
    def total(self) -> int:
        return sum(row[1] for row in self.modules.values())

    @property
    def ceiling(self) -> int:
        """Of the tier that was asked for; 0 for none."""
        name = TIERS.get(self.config.getoption("markexpr"))
        return int(self.config.getini(name)) if name else 0

    def pytest_terminal_summary(self, terminalreporter):
        most = f", at most {self.ceiling} allowed" if self.ceiling else ""
        seconds = sum(row[2] for row in self.modules.values())
        spent = sum(row[3] for row in self.modules.values())
        write = terminalreporter.write_line
        write(f"{self.total} XLA compilations{most}; {seconds:.0f} s in them, {spent:.0f} s of CPU")
        costly = sorted(self.modules.items(), key=lambda item: (-item[1][1], -item[1][3]))
        if self.config.getoption("verbose") <= 0:
            costly = costly[:SHOWN]
        for module, (tests, count, seconds, spent) in costly:
            write(f"{count:6} {seconds:7.1f} s {spent:7.1f} s CPU {tests:5} tests  {module}")
        if self.ceiling and self.total > self.ceiling:
            terminalreporter.write_line("FAILED: too many XLA compilations", red=True)

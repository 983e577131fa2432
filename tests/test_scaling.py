"""The scaling benchmark: its command line, its JSON and its memory figures; no timing is judged."""

import json
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import command
    import scaling

    return lambda *words: command.carry_out(scaling.parser(), scaling.check, scaling.run, words)


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import scaling_tasks

    return scaling_tasks


@pytest.mark.parametrize(
    "words",
    [
        ["--what", "nothing"],
        ["--widt", "8"],
        ["--trials", "many"],
        ["--trials", "0"],
        ["--depths", "101"],
        ["--seconds", "nan"],
        ["--rounds", "0"],
        ["--json", "/no/such/folder/file.json"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_2(scaling, capsys, words):
    try:
        status = scaling(*words)
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr()
    assert status == 2 and not said.out
    assert said.err.startswith("scaling: ") and said.err.count("\n") == 1


@pytest.mark.ci
def test_rows_of_trials_and_memory_are_strict_json(scaling, tmp_path, capsys):
    path = tmp_path / "rows.json"
    words = ["--what", "trials", "memory", "--trials", "64", "--rounds", "1", "--json", str(path)]
    assert scaling(*words) == 0

    def refuse(name):
        raise AssertionError(f"{name} is no strict JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found["options"]["trials"] == [64]
    machine, trials, memory = found["rows"]
    assert [row["what"] for row in found["rows"]] == ["machine", "trials", "memory"]
    assert machine["cores"] >= 1
    assert trials["trials"] == memory["trials"] == 64
    for row, names in (
        (trials, ("compile", "seconds", "rate")),
        (memory, ("compiled_mib", "peak_mib")),
    ):
        for name in names:
            assert row[name] > 0 and row[f"{name}_rounds"] == [row[name]]
            assert row[f"{name}_iqr_percent"] == 0
    assert trials["rate"] == pytest.approx(64 / trials["seconds"])
    growth = memory["peak_mib"] - memory["compiled_mib"]
    assert memory["growth_mib"] == pytest.approx(growth) and growth >= 0
    assert "growth mib" in capsys.readouterr().out


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are set back on Linux alone")
def test_a_child_s_peak_grows_with_what_it_allocates(tasks):
    source = """import numpy as np, scaling_tasks
tasks = scaling_tasks
np.ones(2**24)  # 128 MiB, gone when the peak is set back
tasks.reset_peak()
x = np.ones(options["mib"] * 2**17)
result = tasks.memory()["peak"]
"""
    peaks = [tasks.fresh(source, mib=mib) for mib in (1, 65, 257)]
    assert peaks[0] > 0
    for more, low, high in ((64, *peaks[:2]), (192, *peaks[1:])):
        assert high - low == pytest.approx(more * 2**20, rel=0.25)


@pytest.mark.ci
def test_a_child_that_fails_says_why_and_sees_no_cache_unless_it_is_given(tasks, monkeypatch):
    monkeypatch.setenv(tasks.CACHE, "/somewhere")
    source = f"result = os.environ.get({tasks.CACHE!r})"
    assert tasks.fresh(source) is None
    assert tasks.fresh(source, cache="/elsewhere") == "/elsewhere"
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        tasks.fresh("result = 1 / 0")

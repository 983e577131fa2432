"""`jaxprune frontier` and `jaxprune threshold` as a user meets them; see also test_verify.py."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from tiny_plan import TINY

from jaxprune import cli, report, session
from jaxprune.cli import common
from jaxprune.engine import keys

SHARED = ["--depth", "1", "--layers", "all", "--widths", "3", "4", "--seed", "7", "--gain", "2"]
SHARED += ["--trials", "200"]  # equal blocks: both commands run the same programs
COMMANDS = {
    "frontier": ["--eps", "1.4", "--delta", "0.3", "--resolution", "0.3"],
    "threshold": ["--eps", "0.2", "0.5", "--delta", "0.3", "--deltas", "0.3"],
}


@pytest.fixture(scope="module", params=COMMANDS)
def command(request, tmp_path_factory):
    """Name, folder and printed text of a command that was run."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = io.TextIOWrapper(io.BytesIO(), "utf-8")
        patch.setattr("sys.stdout", text)
        outputs = ["--out", "out", "--json", "copy.json"]
        assert cli.main([name, *SHARED, *COMMANDS[name], *outputs]) == 0
        text.seek(0)
        return name, folder, text.read()


@pytest.mark.ci
def test_threshold_picks_its_own_epsilons(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["threshold", *SHARED, "--delta", "0.3", "--deltas", "0.3", "--out", "o"]) == 0
    plan = json.loads((tmp_path / "o" / "result.json").read_text("utf-8"))["plan"]
    assert plan["eps_source"] == "pilot" and len(plan["eps"]) == 8
    assert plan["eps"] == sorted(plan["eps"]) and plan["eps"][0] > 0


def test_programs_are_kept_unless_jax_is_told_otherwise(tmp_path, monkeypatch):
    set_before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        common.keep_programs()  # the suite's own cache stays
        assert jax.config.jax_compilation_cache_dir == set_before
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv(common.CACHE, "")
        common.keep_programs()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.delenv(common.CACHE)
        common.keep_programs()
        (folder,) = (tmp_path / "jaxprune").iterdir()
        assert jax.config.jax_compilation_cache_dir == str(folder)
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "beneath"))
        (tmp_path / "file").write_text("")
        common.keep_programs()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", set_before)


def test_programs_not_used_for_longest_make_room(tmp_path):
    for name, size, age in (("old", 40, 3), ("used", 40, 1), ("new", 40, 2), ("newest", 10, 0)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (2e9 - age, 1e9))
    (tmp_path / "folder").mkdir()
    common._make_room(tmp_path, 130)
    assert len(list(tmp_path.iterdir())) == 5
    common._make_room(tmp_path, 60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "newest", "used"]


def test_a_program_that_cannot_be_read_is_nobody_s_concern():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        common.keep_programs()
        for verb in ("reading", "writing"):
            text = f"Error {verb} persistent compilation cache entry for 'x': E"
            warnings.warn(text, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in caught] == ["something else"]


@pytest.fixture
def bound(monkeypatch):
    """Puts another function in the place of a command."""
    return lambda run: monkeypatch.setattr(cli.bound, "run", run)


DEBUGGING = {
    "jax_debug_infs": True,
    "jax_debug_nans": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_host": "disallow",
    "jax_transfer_guard_device_to_device": "disallow",
}
IN_CI = "jax_debug_infs", "jax_transfer_guard"


@pytest.mark.parametrize("name", DEBUGGING)
def test_settings_for_finding_faults_stop_no_command(bound, name):
    """Commands have their own, in every thread; the library refuses them before it samples."""
    setting = name.removeprefix("jax_")
    before = getattr(jax.config, name)
    with getattr(jax, setting)(DEBUGGING[name]):
        with pytest.raises(ValueError, match=f"{name} = .* with jax.{setting}") as refusal:
            keys.root_key(0)
        assert "\n" not in str(refusal.value)
    jax.config.update(name, DEBUGGING[name])
    try:
        bound(lambda _: check_in_a_thread() or 0)
        assert cli.main(["bound"]) == 0
        with pytest.raises(ValueError, match=name):
            session.check()  # the caller's own settings are back
        with ThreadPoolExecutor(1) as pool:
            pool.submit(session.thread_settings()(session.check)).result()
            with pytest.raises(ValueError, match=name):
                pool.submit(session.check).result()
    finally:
        jax.config.update(name, before)


def check_in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.check).result()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.ci if name in IN_CI else pytest.mark.slow)
        for name in DEBUGGING
    ],
)
def test_the_environment_changes_no_count(tmp_path, name):
    (tmp_path / "plan.toml").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-m", "jaxprune", "verify", "--plan", "plan.toml", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {name.upper(): str(DEBUGGING[name]).lower()},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["bound"], ["--help"], ["--version"], ["bound", "--help"]])
def test_a_full_disk_behind_stdout_is_status_3(bound, monkeypatch, capsys, arguments):
    bound(lambda _: common.print_safely(lambda _: print("x" * 100_000)) or 0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
    assert status == 3
    assert capsys.readouterr().err == "jaxprune: standard output: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_interrupted_command_leaves_nothing_to_be_written(bound, monkeypatch, capsys):
    """At its end Python would fail to, with another status."""

    def interrupted(_):
        print("x")
        raise KeyboardInterrupt

    bound(interrupted)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main(["bound"]) == 130
    assert capsys.readouterr().err == "jaxprune: interrupted\n"


def test_a_stderr_that_takes_nothing_costs_no_stdout(monkeypatch, tmp_path):
    def write(_):
        raise OSError(errno.ENOSPC, "full")

    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", SimpleNamespace(write=write))
        with pytest.raises(SystemExit) as end:
            cli.main(["nothing"])
        print("seen")
    monkeypatch.undo()
    assert end.value.code == 2 and (tmp_path / "out").read_text() == "seen\n"


def test_a_closed_stdout_is_status_3_and_stderr_is_not_missed(bound, monkeypatch, capsys):
    bound(lambda _: pytest.fail("run"))
    monkeypatch.setattr("sys.stdout", None)
    assert cli.main(["bound"]) == 3
    assert capsys.readouterr().err == "jaxprune: standard output is closed\n"
    monkeypatch.setattr("sys.stderr", None)
    assert cli.main(["bound"]) == 3
    sys.stderr.close()


def test_a_user_without_home_and_entry_has_a_home(bound, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")
    cache = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(common.CACHE)
        jax.config.update("jax_compilation_cache_dir", None)
        patch.setattr(common, "_make_room", lambda *_: None)
        patch.setattr("pathlib.Path.mkdir", lambda *_, **__: None)
        bound(lambda _: 0)
        assert cli.main(["bound"]) == 0 and str(Path.home()) == "/"
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.parametrize("argument", ["--eps=--", "--json=--", "--widths=--"])
def test_two_dashes_are_no_value(bound, capsys, argument):
    bound(lambda _: pytest.fail("run"))
    with pytest.raises(SystemExit) as end:
        cli.main(["bound", argument])
    assert end.value.code == 2 and "'--' is no value" in capsys.readouterr().err


@pytest.mark.ci
def test_spoiled_programs_change_nothing(tmp_path):
    """Every kept program in pieces: the same counts, and not a word about it."""
    (tmp_path / "plan.toml").write_text(TINY)
    kept = {"JAX_COMPILATION_CACHE_DIR", *(name.upper() for name in common.KEEP_ALL)}
    environment = {key: value for key, value in os.environ.items() if key not in kept}
    found = []
    for out in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-m", "jaxprune", "verify", "--plan", "plan.toml", "--out", out],
            cwd=tmp_path,
            env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        found.append(json.loads((tmp_path / out / "result.json").read_text("utf-8")))
        (folder,) = (tmp_path / "cache" / "jaxprune").iterdir()
        files = sorted(folder.iterdir())
        assert len(files) > 5
        for i, path in enumerate(files):
            path.write_bytes(b"garbage" if i % 2 else path.read_bytes()[: path.stat().st_size // 2])
    assert found[0]["blocks"] == found[1]["blocks"]


@pytest.mark.ci
def test_a_command_prints_tables_and_writes_numbers_and_a_page(command):
    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    name, folder, text = command
    assert {path.name for path in (folder / "out").iterdir()} == {"result.json", "report.html"}
    page = (folder / "out" / "report.html").read_text("utf-8")
    assert "data:image/png;base64," in page and page.count("<table") == 2 + (name == "threshold")
    result = json.loads((folder / "copy.json").read_text("utf-8"), parse_constant=refuse)
    assert json.loads((folder / "out" / "result.json").read_text("utf-8")) == result
    plan = result["plan"]
    assert plan["study"] == name and plan["seed"] == 7 and plan["widths"] == [3, 4]
    assert plan["networks"] == ["dense 3-3, relu", "dense 4-4, relu"]
    assert len(plan["hash"]) == 64 and result["environment"]["stream_version"] >= 1
    for word in ("out/report.html", "result.json", "95 % confidence", "theorem"):
        assert word in text.replace("\n", " ")


@pytest.mark.ci
def test_tables_say_what_the_result_says(command):
    name, folder, _ = command
    result = json.loads((folder / "copy.json").read_text("utf-8"))
    console = Console(file=io.StringIO(), width=150)
    report.render(result, console)
    if name == "frontier":
        rows = console.file.getvalue().splitlines()
        for point in result["points"]:
            row = next(row for row in rows if point["network"] + " " in row)
            low, high = (float(cell) for cell in row.replace(" %", "").split()[3:5])
            # Rounded outward, to three digits.
            assert 0 <= 100 * point["holds"] - low <= 0.011 * low
            assert 0 <= high - 100 * point["violated"] <= 0.011 * high
    else:
        text = console.file.getvalue()
        for t in result["thresholds"]:
            above, most = ("–" if end is None else str(end) for end in t["gap"].values())
            assert f"{above} to {most}" in text


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trials", "3"], "trials = 3: at least"),
        (["--trials", "many"], "trials"),
        (["--eps", "-1"], "eps"),
        (["--delta", "0"], "delta"),
        (["--confidence", "1"], "confidence"),
        (["--widths"], "widths"),
        (["--widths", "0", "3"], "width = 0"),
        (["--depth", "0"], "depth"),
        (["--depth", "2", "--layers", "middle"], "layers"),
        (["--layers", "dense9"], "dense9"),
        (["--pruning", "magnitud"], "did you mean 'magnitude'"),
        (["--law", "cauchy"], "law"),
        (["--activation", "gelu"], "activation"),
        (["--scaling", "none"], "scaling"),
        (["--gain", "0"], "gain"),
        (["--seed", "4294967296"], "seed"),
        (["--widths", "70000", "3"], "at most"),
        (["--out", "missing/folder"], "out"),
        (["--out", "same", "--json", "same"], "json"),
        (["--epz", "1"], "epz"),
    ],
)
def test_impossible_requests_get_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, name, arguments, named
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxprune.engine.tally_run", lambda *_: pytest.fail("sampled"))
    try:
        status = cli.main([name, *SHARED, *COMMANDS[name], *arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and named in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_writes_nothing(tmp_path, monkeypatch, capsys, name):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    module = getattr(cli, name)
    monkeypatch.setattr(module, name, interrupted)
    assert cli.main([name, "--out", "out"]) == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_every_default(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("--eps", "--widths", "--trials", "--pruning", "--confidence", "--out", "--json"):
        assert option in text

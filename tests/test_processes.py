"""Real processes: several at once, killed, stopped, gone on with, and the numbers stay the same."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

import jaxprune as jp
from jaxprune import cli, engine, files
from jaxprune.engine import Store
from jaxprune.engine.packing import pack

PLAN = """
seed = 3
trials = 60000
delta = 0.2

[[experiment]]
title = "tiny"
network = "dense"
widths = [4, 4, 3]
layers = "all"
law = "uniform"
pruning = "random"
sparsity = 0.5
eps = [0.5]
samples = 4
starts = 2
steps = 2
"""
BLOCKS = 30
"""Of 2048 trials: some two seconds, after more for JAX to start."""


class Folder:
    """A plan, and commands run in its folder, each a process of its own."""

    def __init__(self, path, trials=60000):
        self.path, self.begun = path, []
        (path / "p.toml").write_text(PLAN.replace("60000", str(trials)))

    def start(self, *arguments):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxprune", *arguments], cwd=self.path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.begun.append(process)
        return process

    def verify(self, out, *arguments):
        return self.start("verify", "--plan", "p.toml", "--out", out, *arguments)

    def distributed(self, out, of, *arguments):
        """One process each, all of one run."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        joined = [("--distributed", address, str(of), str(i)) for i in range(of)]
        return [self.verify(out, *arguments, *join) for join in joined]

    def hash(self, out):
        """Of the counts and sums of a finished run."""
        blocks = json.loads((self.path / out / "result.json").read_text("utf-8"))["blocks"]
        assert blocks["complete"] and not blocks["damaged"]
        return blocks["tallies"]

    def rows(self, store):
        """The tallies that a store has, by block; it may be at work, or not there yet."""
        path = self.path / store
        if not files.exists(path):
            return {}
        with Store.open(path) as there:
            assert not there.damaged
            return {b: pack(t) for b, t, *_ in there.rows(0)} if there.cases else {}

    def wait_for(self, process, store, count):
        """Until the store has so many blocks, or the process has ended."""
        while process.poll() is None and len(self.rows(store)) < count:
            time.sleep(0.02)

    def end(self):
        for process in self.begun:
            process.kill()
            process.communicate()


def finished(process):
    """What it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path)
    yield folder
    folder.end()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The hash of a run of one process that nothing interrupts."""
    folder = Folder(tmp_path_factory.mktemp("whole"))
    finished(folder.verify("run"))
    assert sorted(folder.rows("run/run.db")) == list(range(BLOCKS))
    return folder.hash("run")


# --- several at once


@pytest.mark.parametrize(
    "of", [pytest.param(2, marks=pytest.mark.ci), pytest.param(3, marks=pytest.mark.slow)]
)
def test_processes_that_find_each_other_count_as_one(folder, expected, of):
    printed = [finished(process) for process in folder.distributed("run", of)]
    assert folder.hash("run") == expected
    assert all(f"part {i} of {of}: complete" in text for i, text in enumerate(printed, 1))
    assert all(("result.json" in text) == (i == 0) for i, text in enumerate(printed))


@pytest.mark.ci
def test_parts_are_merged_even_while_one_is_at_work(folder, expected, monkeypatch, capsys):
    parts = [folder.verify("run", "--part", f"{i}/3") for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        folder.wait_for(part, f"run/run-{i}-of-3.db", 1)
    parts[2].send_signal(signal.SIGSTOP)  # at work, its lock held, and not done too soon
    assert parts[2].poll() is None
    monkeypatch.chdir(folder.path)
    assert cli.main(["merge", "run", "--out", "early"]) == 0
    assert "Blocks are missing" in capsys.readouterr().out
    early = json.loads((folder.path / "early" / "result.json").read_text("utf-8"))
    assert not early["blocks"]["complete"]
    parts[2].send_signal(signal.SIGCONT)
    assert "part 3 of 3: complete" in [finished(part) for part in parts][2]
    assert cli.main(["merge", "run", "--out", "all"]) == 0
    assert "Blocks are missing" not in capsys.readouterr().out
    assert folder.hash("all") == expected
    whole = folder.rows("all/run.db")
    assert sorted(whole) == list(range(BLOCKS))
    assert folder.rows("early/run.db").items() < whole.items()


@pytest.mark.slow
def test_a_million_trials_in_two_processes_count_as_in_one(tmp_path):
    folder = Folder(tmp_path, trials=10**6)
    try:
        for out, begin in {
            "one": lambda: [folder.verify("one")],
            "two": lambda: folder.distributed("two", 2),
        }.items():
            started = time.perf_counter()
            for process in begin():
                finished(process)
            print(f"{out}: {time.perf_counter() - started:.1f} s")
        assert folder.hash("one") == folder.hash("two")
    finally:
        folder.end()


# --- killed


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_of_two_loses_no_block_that_was_kept(folder, expected, victim):
    stores = ["run/run-1-of-2.db", "run/run-2-of-2.db"]
    pair = folder.distributed("run", 2)
    for process, store in zip(pair, stores, strict=True):
        folder.wait_for(process, store, 4)
    pair[victim].kill()
    pair[victim].wait()
    pair[1 - victim].kill()  # JAX would end it, but after minutes
    pair[1 - victim].wait()
    kept = [folder.rows(store) for store in stores]
    assert all(len(rows) >= 4 for rows in kept) and sum(map(len, kept)) < BLOCKS
    for process in folder.distributed("run", 2, "--resume"):
        finished(process)
    assert folder.hash("run") == expected
    for rows, store in zip(kept, stores, strict=True):
        assert rows.items() <= folder.rows(store).items()


def kill_and_go_on(path, seed, expected, kills):
    """Whether killed at random moments, then resumed, it is as if it had not been; how often."""
    folder, rng = Folder(path), random.Random(seed)
    struck = 0
    try:
        before = {}
        for _ in range(kills):
            process = folder.verify("run", "--resume")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.5, 8.0))
            struck += process.poll() is None
            process.kill()
            process.wait()
            assert process.returncode in (0, -signal.SIGKILL), process.stderr.read()
            rows = folder.rows("run/run.db")
            assert before.items() <= rows.items()
            before = rows
        finished(folder.verify("run", "--resume"))
        assert before.items() <= folder.rows("run/run.db").items()
        assert folder.hash("run") == expected
    finally:
        folder.end()
    return struck


@pytest.mark.ci
def test_a_run_killed_at_random_ends_as_if_it_had_not_been(folder, expected):
    rng = random.Random(time.time_ns())
    process = folder.verify("run")
    folder.wait_for(process, "run/run.db", rng.randint(1, 12))
    process.kill()
    process.wait()
    kept = folder.rows("run/run.db")
    assert 0 < len(kept) < BLOCKS
    finished(folder.verify("run", "--resume"))
    assert kept.items() <= folder.rows("run/run.db").items()
    assert folder.hash("run") == expected


@pytest.mark.slow
def test_runs_killed_again_and_again_end_as_if_they_had_not_been(tmp_path, expected):
    runs = int(os.environ.get("JAXPRUNE_TEST_KILLS", "50"))

    def one(i):
        path = tmp_path / str(i)
        path.mkdir()
        return kill_and_go_on(path, i, expected, kills=1 + i % 4)

    with ThreadPoolExecutor(2) as pool:
        struck = sum(pool.map(one, range(runs)))
    print(f"{runs} runs, {struck} times killed")
    assert struck >= runs


# --- stopped


def stop(folder, process, out, number, least, rng):
    """Seconds from a signal at a random moment, after the store has the least, to the end."""
    folder.wait_for(process, f"{out}/run.db", least)
    time.sleep(rng.uniform(0.0, 0.1))
    process.send_signal(number)
    started = time.perf_counter()
    _, err = process.communicate(timeout=30)
    spent = time.perf_counter() - started
    assert process.returncode == 128 + number, err
    assert spent < 5.0
    (line,) = err.splitlines()
    assert re.fullmatch(rf"jaxprune: stopped; .* jaxprune resume {out} goes on", line)
    assert 0 < len(folder.rows(f"{out}/run.db")) < BLOCKS
    assert not (folder.path / out / "result.json").exists()
    return spent


def stop_twice_and_go_on(folder, out, expected, rng):
    """Seconds that a run, and its resumption, took to end; then it is gone on with to the end."""
    first, second = rng.sample([signal.SIGTERM, signal.SIGINT], 2)
    spent = [stop(folder, folder.verify(out), out, first, rng.randint(1, 8), rng)]
    kept = folder.rows(f"{out}/run.db")
    least = len(kept) + rng.randint(1, 4)
    spent.append(stop(folder, folder.start("resume", out), out, second, least, rng))
    more = folder.rows(f"{out}/run.db")
    finished(folder.start("resume", out))
    assert kept.items() <= more.items() <= folder.rows(f"{out}/run.db").items()
    assert folder.hash(out) == expected
    return spent


@pytest.mark.ci
def test_signals_stop_within_seconds_and_resume_goes_on(folder, expected):
    stop_twice_and_go_on(folder, "run", expected, random.Random(time.time_ns()))


@pytest.mark.slow
def test_twenty_signals_stop_within_seconds(folder, expected):
    spent = []
    for i in range(10):
        spent += stop_twice_and_go_on(folder, f"run-{i}", expected, random.Random(i))
    print(f"{len(spent)} signals, ended after {min(spent):.2f} to {max(spent):.2f} s")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_one_of_two_processes_too(folder, number):
    pair = folder.distributed("run", 2)
    for i, process in enumerate(pair, 1):
        folder.wait_for(process, f"run/run-{i}-of-2.db", 1)
    pair[1].send_signal(number)
    _, err = pair[1].communicate(timeout=5)
    assert pair[1].returncode == 128 + number, err
    assert "jaxprune resume run/run-2-of-2.db goes on" in err


# --- within Python

SEARCH = jp.UnitBall(samples=4, starts=2, steps=2)


def simulated(seed):
    """Totals of a simulation, packed."""
    tally = jp.simulate(
        jp.dense((4, 4, 3)), jp.uniform(), jp.random, jp.Fraction(0.5), eps=[0.5], trials=500,
        layers="all", domain=SEARCH, seed=seed, block=64,
    )  # fmt: skip
    return pack(tally)


def every_other(first):
    """Every other block of that simulation under seed 0, as a tally."""
    run = engine.prepare(
        jp.dense((4, 4, 3)), jp.uniform(), jp.random, jp.Fraction(0.5), trials=500,
        layers="all", domain=SEARCH, seed=0, block=64,
    )  # fmt: skip
    empty = engine.empty_tally(run, [0.5])
    blocks = engine.tally_blocks(run, empty, run.blocks[first::2])
    return sum((done.tally for done in blocks), empty)


@pytest.mark.ci
def test_threads_at_once_count_as_one_after_the_other():
    alone = [simulated(seed) for seed in (0, 1)]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(simulated, [0, 1, 0, 0])) == [alone[i] for i in (0, 1, 0, 0)]


@pytest.mark.ci
def test_spawned_workers_count_as_one_process():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        halves = list(pool.map(every_other, [0, 1]))
        wholes = list(pool.map(simulated, [0, 1]))
    assert pack(halves[0] + halves[1]) == simulated(0) == wholes[0]
    assert wholes[1] == simulated(1)

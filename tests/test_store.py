"""The store: killed, torn, damaged, shared, merged; what is said of a run stays true or is refused.

Trials are made of random numbers here: nothing is sampled.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stores import Shape, drop, made_up

from jaxprune import engine, files
from jaxprune.engine import Store, Tally, database
from jaxprune.engine import rows as rows_module
from jaxprune.engine.packing import pack, unpack
from jaxprune.engine.store import state_hash
from jaxprune.statistics import ESTIMATED, HOLDS, UNDECIDED, sequence_limits
from jaxprune.statistics.binomial import limits
from jaxprune.studies import cases, kept, runs, sampling
from jaxprune.studies import plan as plans
from jaxprune.studies.verify import judged
from jaxprune.types import BrokenInvariant

EPS = (0.5, 1.0)
BLOCK = 8
EMPTY = Tally(EPS, cap=1.3, labelled=5)


def often(few, many):
    """A test's argument: few rounds by default, some in the tier `ci`, many in `slow`."""
    some = pytest.param(max(few, many // 5), marks=pytest.mark.ci)
    return pytest.mark.parametrize(
        "rounds", [few, some, pytest.param(many, marks=pytest.mark.slow)]
    )


def shape(blocks):
    return Shape(trials=blocks * BLOCK - 3, block=BLOCK, chunk=BLOCK)


def tally(block, blocks=10**6, empty=EMPTY):
    """Of a block, the last one with 5 trials; always the same."""
    return _tally(block, blocks, empty.eps, empty.labelled, empty.cap)


@functools.cache
def _tally(block, blocks, eps, labelled, cap):
    ids = range(block * BLOCK, block * BLOCK + BLOCK - 3 * (block == blocks - 1))
    return made_up(np.random.default_rng(block), ids, eps, labelled, cap)


@pytest.fixture
def small_rows(monkeypatch):
    """Rows of some four blocks."""
    monkeypatch.setattr(rows_module, "ROW_BYTES", 2**14)


def filled(path, blocks, ids=None):
    store = Store.create(path, {"a": 1})
    store.begin(0, shape(blocks), EMPTY)
    for block in range(blocks) if ids is None else ids:
        store.add(0, block, tally(block, blocks), "here", 0.5)
    return store


def whole(store):
    return [t for _, t, _, _ in store.rows(0)]


# --- killed


def write_on(path, blocks):
    """What a process does, again and again until it is through."""
    store = Store.open(path, write=True) if files.exists(path) else Store.create(path, {"a": 1})
    store.begin(0, shape(blocks), EMPTY)
    there = set(store.blocks(0))
    for block in range(blocks):
        if block not in there:
            time.sleep(0.002)
            store.add(0, block, tally(block, blocks), "here", 0.5)
    store.close()


def write_naively(path, blocks):
    """Totals over the same file after each block, nothing else."""
    done, total = 0, 0.0
    if path.exists():
        with np.load(path) as file:
            done, total = int(file["done"]), float(file["total"])
    for block in range(done, blocks):
        time.sleep(0.002)
        total += tally(block, blocks).squared.total.over(1)
        with path.open("wb") as file:
            np.savez(file, done=block + 1, total=total, ballast=np.zeros(2**19))


def until_done(write, path, blocks, kills, rng):
    """Runs a writer in processes of its own, of which the first ones are killed; its exit code."""
    fork = multiprocessing.get_context("fork")
    for life in range(kills + 1):
        process = fork.Process(target=write, args=(path, blocks))
        process.start()
        if life < kills:
            time.sleep(rng.uniform(0.0, 0.08))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def open_and_close(path):
    while True:
        Store.open(path, write=True).close()


def write_and_tell(path, blocks, told):
    """Adds blocks, and sends the id of each once it is kept."""
    with Store.open(path, write=True) as store:
        for block in range(blocks):
            store.add(0, block, tally(block, blocks), "here", 0.5)
            told.send(block)


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@often(3, 30)
def test_a_kill_costs_no_block_that_was_added(tmp_path, rounds, small_rows):
    """Whether it has a row of its own by then, or shares one."""
    fork, blocks, last = multiprocessing.get_context("fork"), 1000, -1
    for i in range(rounds):
        path = tmp_path / f"{i}.db"
        filled(path, blocks, []).close()
        heard, told = fork.Pipe(duplex=False)
        process = fork.Process(target=write_and_tell, args=(path, blocks, told))
        process.start()
        told.close()
        with contextlib.suppress(EOFError):
            while (last := heard.recv()) < 20 + 3 * i:
                pass
            os.kill(process.pid, signal.SIGKILL)
            while True:
                last = heard.recv()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with Store.open(path) as store:
            there = store.blocks(0)
            assert there == list(range(len(there))) and last + 1 <= len(there) < blocks
            assert store._db.execute("SELECT count(*) FROM blocks").fetchone()[0] < len(there)
            assert not store.damaged
            assert all(pack(t) == pack(tally(b, blocks)) for b, t, *_ in store.rows(0))


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:.*fork:Warning")
def test_a_process_killed_while_it_opens_or_closes_costs_nothing(tmp_path):
    rng, path = random.Random(0), tmp_path / "run.db"
    filled(path, 12).close()
    fork = multiprocessing.get_context("fork")
    for life in range(40):
        process = fork.Process(target=open_and_close, args=(path,))
        process.start()
        time.sleep(rng.uniform(0.01, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with Store.open(path, write=life % 2 == 1) as store:
            assert store.blocks(0) == list(range(12)) and not store.damaged


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@often(2, 50)
def test_runs_killed_up_to_four_times_lose_and_repeat_nothing(tmp_path, rounds, small_rows):
    rng, blocks = random.Random(0), 30
    expected = state_hash([tally(block, blocks) for block in range(blocks)])
    for i in range(rounds):
        path = tmp_path / f"{i}.db"
        assert until_done(write_on, path, blocks, rng.randint(1, 4), rng) == 0
        with Store.open(path) as store:
            assert not store.damaged and store.blocks(0) == list(range(blocks))
            assert state_hash(whole(store)) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:Warning")
def test_a_naive_writer_does_not_survive_that(tmp_path):
    rng, wrong = random.Random(0), 0
    for i in range(50):
        path = tmp_path / f"{i}.npz"
        wrong += until_done(write_naively, path, 30, rng.randint(1, 4), rng) != 0
    assert wrong > 0


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@often(1, 20)
def test_of_eight_processes_at_once_one_writes(tmp_path, rounds):
    path = tmp_path / "run.db"
    filled(path, 3).close()
    fork = multiprocessing.get_context("fork")

    def one(start, end, won):
        start.wait()
        try:
            store = Store.open(path, write=True)
        except ValueError as error:
            assert "another process is at work" in str(error)
        else:
            with won.get_lock():
                won.value += 1
            end.wait()
            store.close()

    for _ in range(rounds):
        start, end, won = fork.Event(), fork.Event(), fork.Value("i", 0)
        processes = [fork.Process(target=one, args=(start, end, won)) for _ in range(8)]
        for process in processes:
            process.start()
        start.set()
        losers = time.monotonic() + 10
        wait = lambda processes=processes, won=won: (
            sum(p.is_alive() for p in processes) > 1 or not won.value
        )
        while wait() and time.monotonic() < losers:
            time.sleep(0.005)
        assert won.value == 1
        end.set()
        for process in processes:
            process.join()
            assert process.exitcode == 0


@often(4, 20)
def test_after_a_power_failure_an_earlier_state_is_there(tmp_path, rounds, small_rows):
    rng, blocks, path = random.Random(0), 40, tmp_path / "run.db"
    store = filled(path, blocks)
    log = (tmp_path / "run.db-wal").read_bytes()
    for i in range(rounds):
        folder = tmp_path / str(i)
        folder.mkdir()
        shutil.copy(path, folder)
        torn = log[: rng.randrange(len(log) // 3, len(log))]
        (folder / "run.db-wal").write_bytes(torn)
        with Store.open(folder / "run.db", write=True) as again:
            there = again.blocks(0)
            assert there == list(range(len(there))) and not again.damaged
            again.begin(0, shape(blocks), EMPTY)
            for block in range(len(there), blocks):
                again.add(0, block, tally(block, blocks), "here", 0.5)
            assert state_hash(whole(again)) == state_hash(whole(store))
    store.close()


def test_a_full_disk_costs_no_block_that_was_kept(tmp_path, small_rows):
    path = tmp_path / "run.db"
    store = filled(path, 30, range(10))
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"):
        for block in range(10, 30):
            store.add(0, block, tally(block, 30), "here", 0.5)
    kept_blocks = store.blocks(0)
    assert len(kept_blocks) >= 10 and state_hash(whole(store)) == state_hash(
        [tally(b, 30) for b in kept_blocks]
    )
    store.close()
    with Store.open(path) as again:
        assert again.blocks(0) == kept_blocks and not again.damaged
        assert state_hash(whole(again)) == state_hash([tally(b, 30) for b in kept_blocks])


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_file_systems_that_tell_no_holes_keep_runs(tmp_path, monkeypatch, code, whence):
    filled(tmp_path / "run.db", 3, range(2)).close()
    lseek = os.lseek

    def without_holes(file, position, how):
        if how == whence:
            raise OSError(code, os.strerror(code))
        return lseek(file, position, how)

    monkeypatch.setattr(os, "lseek", without_holes)
    with Store.open(tmp_path / "run.db", write=True) as store:
        store.add(0, 2, tally(2, 3), "here", 0.5)
    with Store.open(tmp_path / "run.db") as store:
        assert store.blocks(0) == [0, 1, 2] and not store.damaged


def test_a_copy_has_what_follows_a_small_hole(tmp_path):
    """Also where a read of what is before the hole reads on into what follows it."""
    rng = random.Random(0)
    with (tmp_path / "a").open("wb") as file:
        file.write(rng.randbytes(4096))
        file.seek(8192)
        file.write(rng.randbytes(200_000))
        file.truncate(300_000)
    with (tmp_path / "a").open("rb", 2**16) as source, (tmp_path / "b").open("wb") as copy:
        database._copy_data(source, copy)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("write", [False, True])
def test_a_fault_of_the_machine_is_not_said_to_be_the_run_s(tmp_path, monkeypatch, write):
    path = tmp_path / "run.db"
    filled(path, 3).close()
    before, lseek = path.read_bytes(), os.lseek
    for code in (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT):

        def faulty(*_, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "lseek", faulty)
        with pytest.raises(OSError, match=os.strerror(code)):
            Store.open(path, write=write)
    monkeypatch.setattr(os, "lseek", lseek)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="No such file"):
        Store.open(path, write=write)
    monkeypatch.undo()
    with pytest.raises(sqlite3.OperationalError, match="full"), database.refused(path):
        db = database.in_memory()
        db.execute("PRAGMA max_page_count = 1")
        db.execute("CREATE TABLE a (b)")
    assert path.read_bytes() == before
    Store.open(path, write=write).close()


def killed(function, *arguments):
    """Runs a function in a process of its own, in which it is killed."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_this(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@pytest.mark.parametrize("before", ["link", "fsync", "unlink"])
def test_a_process_killed_as_it_makes_a_store_leaves_a_whole_one_or_none(
    tmp_path, monkeypatch, before
):
    path = tmp_path / "run" / "run.db"
    path.parent.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, before, kill_this)
        killed(Store.create, path, {"a": 1})
    assert files.exists(path) == (before == "unlink")
    if not files.exists(path):
        assert files.is_unused(path.parent) and any(path.parent.iterdir())
        filled(path, 2).close()
    with pytest.raises(ValueError, match="exists"):
        Store.create(path, {})
    with Store.open(path, write=True) as store:
        assert store.about == {"a": 1}


# --- damaged


@often(150, 1000)
def test_no_flipped_bit_changes_a_count(tmp_path, rounds, small_rows):
    """A flip is named, refused, or where nothing is written."""
    rng, blocks, path = random.Random(0), 12, tmp_path / "run.db"
    filled(path, blocks).close()
    intact = path.read_bytes()
    broken, outcomes = tmp_path / "broken.db", {"refused": 0, "dropped": 0, "harmless": 0}
    for _ in range(rounds):
        data = bytearray(intact)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        broken.write_bytes(data)
        try:
            with Store.open(broken) as store:
                dropped = {block for _, block in store.damaged}
                assert store.about == {"a": 1}
                rows = {block: t for block, t, _, _ in store.rows(0)}
        except ValueError:
            outcomes["refused"] += 1
            continue
        assert all(pack(t) == pack(tally(block, blocks)) for block, t in rows.items())
        assert len(rows) == blocks or dropped
        outcomes["dropped" if dropped else "harmless"] += 1
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("write", [False, True])
def test_a_damaged_row_costs_its_blocks_alone(tmp_path, write, small_rows):
    blocks, path = 12, tmp_path / "run.db"
    filled(path, blocks).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rows = {id: json.loads(ids) for id, ids in db.execute("SELECT id, ids FROM blocks")}
        bad, worse = list(rows)[1:3]
        assert len(rows) >= 3 and sorted(b for ids in rows.values() for b in ids) == [
            *range(blocks)
        ]
        db.execute("UPDATE blocks SET data = x'03' WHERE id = ?", (bad,))
        # What is no text either still has its numbers.
        text = "UPDATE blocks SET ids = CAST(ids || x'ff7d' AS TEXT) WHERE id = ?"
        db.execute(text, (worse,))
    lost = [*rows[bad], *rows[worse]]
    with Store.open(path, write=write) as store:
        assert store.damaged == [(0, block) for block in lost]
        assert store.blocks(0) == [b for b in range(blocks) if b not in lost]
        if write:
            for block in lost:
                store.add(0, block, tally(block, blocks), "here", 0.5)
    with Store.open(path) as store:
        assert bool(store.damaged) is not write
        assert len(store.blocks(0)) == blocks - (0 if write else len(lost))


# --- small


@pytest.fixture
def empty_size(tmp_path):
    """Bytes of a run of no blocks."""
    filled(tmp_path / "empty.db", 1, []).close()
    return (tmp_path / "empty.db").stat().st_size


def test_small_blocks_are_kept_many_to_a_row(tmp_path, empty_size):
    """Blocks of one trial, most of a plan's: 12,000 of them stay below 4 MB; 3 kB each in JSON."""
    rng, blocks, path = np.random.default_rng(0), 400, tmp_path / "run.db"
    with Store.create(path, {"a": 1}) as store:
        store.begin(0, Shape(trials=blocks, block=1, chunk=1), EMPTY)
        for block in range(blocks):
            one = made_up(rng, range(block, block + 1), EPS, 5, EMPTY.cap)
            store.add(0, block, one, "a host cpu:0", rng.random())
        assert len(pack(one)) > 2500
    assert (path.stat().st_size - empty_size) / blocks < 250
    with Store.open(path) as store:
        assert store.blocks(0) == list(range(blocks))
        assert store._db.execute("SELECT count(*) FROM blocks").fetchone()[0] <= 6


def test_a_million_trials_of_a_small_network_stay_below_ten_megabytes(tmp_path, empty_size):
    """In blocks of 2,048, as they come out for a few dozen weights."""
    rng, blocks, size, path = np.random.default_rng(0), 12, 2048, tmp_path / "run.db"
    with Store.create(path, {"a": 1}) as store:
        store.begin(0, Shape(trials=blocks * size, block=size, chunk=size), EMPTY)
        for block in range(blocks):
            ids = range(block * size, (block + 1) * size)
            store.add(0, block, made_up(rng, ids, EPS, 5, EMPTY.cap), "a host cpu:0", rng.random())
    assert (path.stat().st_size - empty_size) / (blocks * size) * 1e6 < 8e6


def test_rows_are_full_whatever_the_order_and_however_often_a_run_is_resumed(tmp_path, small_rows):
    path, blocks = tmp_path / "run.db", 60
    order = random.Random(0).sample(range(blocks), blocks)
    filled(path, blocks, []).close()
    for turn in range(0, blocks, 7):
        with Store.open(path, write=True) as store:
            for block in order[turn : turn + 7]:
                store.add(0, block, tally(block, blocks), "here", 0.5)
            assert store.seconds(0) == 0.5 * len(store.blocks(0))
    with Store.open(path, write=True) as store:
        assert state_hash(whole(store)) == state_hash([tally(b, blocks) for b in range(blocks)])
        rows = "SELECT count(*), max(length(ids)) FROM blocks"
        assert store._db.execute(rows).fetchone()[0] <= 2 * blocks / 4
        drop(store, 0, set(range(1, blocks, 2)))
        assert store.blocks(0) == list(range(0, blocks, 2))
        assert store.void("here", "bad") == blocks / 2 and store.blocks(0) == []
        assert store._db.execute(rows).fetchone()[0] == 0


# --- counted once


@often(5, 100)
def test_a_block_that_arrives_again_counts_once(rounds):
    rng, blocks = random.Random(0), 20
    expected = state_hash([tally(b, blocks) for b in range(blocks)])
    for _ in range(rounds):
        order = [*range(blocks), *rng.sample(range(blocks), 6)]
        rng.shuffle(order)
        with filled(None, blocks, order) as store:
            assert state_hash(whole(store)) == expected
    with filled(None, blocks) as store:
        with pytest.raises(BrokenInvariant, match="block 3"):
            store.add(0, 3, tally(4, blocks), "there", 0.5)
        assert pack(store.get(0, 3)) == pack(tally(3, blocks))


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.ci)])
def test_a_prefix_ends_at_the_first_missing_block(step):
    blocks = 50
    sums = [EMPTY]
    for block in range(blocks):
        sums.append(sums[-1] + tally(block, blocks))
    for lost in sorted({*range(0, blocks, step), 1, blocks - 1}):
        with filled(None, blocks, [b for b in range(blocks) if b != lost]) as store:
            found = list(store.prefix(0))
            assert [pack(t) for t in found] == [pack(t) for t in sums[1 : lost + 1]]


@often(5, 1000)
def test_any_tree_of_sums_is_one_sum(rounds):
    rng, found = random.Random(0), set()
    for _ in range(rounds):
        parts = [tally(b) for b in range(64)]
        while len(parts) > 1:
            i, j = sorted(rng.sample(range(len(parts)), 2))
            right, left = parts.pop(j), parts.pop(i)
            parts.append(left + right)
        found.add(state_hash(parts))
    assert len(found) == 1


def test_bytes_of_a_tally_are_the_tally():
    for block in range(50):
        packed = pack(tally(block))
        assert pack(unpack(packed, EMPTY)) == packed
    assert pack(unpack(pack(EMPTY), EMPTY)) == pack(EMPTY)
    many = 2**31 - 1
    big = Tally(EPS, trials=many, nonfinite=many)
    total = sum([big] * 4, big)
    assert total.trials == 5 * many == unpack(pack(total), Tally(EPS)).trials


def test_verdicts_are_remembered_in_their_order():
    with Store.create(None, {}) as store:
        for n in range(3):
            store.note([{"eps": 0.5, "trials": n}])
        assert [said for _, said in store.history()] == [
            [{"eps": 0.5, "trials": n}] for n in range(3)
        ]


# --- judged


def a_plan(**changed):
    experiment = {
        "title": "a", "network": "dense", "widths": [4, 3], "law": "uniform", "layers": "all",
        "pruning": "random", "count": 3, "eps": [0.2, 3.0], "samples": 4, "starts": 1,
    }  # fmt: skip
    source = {"title": "t", "trials": 40 * BLOCK - 3, "delta": 0.2, "experiment": [experiment]}
    return plans.parse(source | changed)


def sampled(path, plan, ids, part=sampling.WHOLE, about=()):
    """A store of the plan with made-up blocks."""
    store = Store.create(path, sampling.about(plan, part) | dict(about))
    empty = cases.empty_tally(plan.cases[0])
    store.begin(0, shape(40), empty)
    for block in ids:
        store.add(0, block, tally(block, 40, empty), "here", 0.5)
    return store


def judged_here(plan, store):
    return judged(plan, store, runs.begin(plan, None))


def test_what_lacks_a_block_has_no_verdict_but_limits():
    plan = a_plan()
    with sampled(None, plan, range(40)) as store:
        result = judged_here(plan, store)
        assert result["blocks"]["complete"] and result["cells"][1]["verdict"] == HOLDS
    with sampled(None, plan, [b for b in range(40) if b != 30]) as store:
        result = judged_here(plan, store)
        assert not result["blocks"]["complete"] and not sampling.is_complete(plan, store)
        for cell in result["cells"]:
            assert cell["verdict"] == UNDECIDED and cell["trials"] == 30 * BLOCK
            not_close = cell["trials"] - cell["close"]
            _, most = sequence_limits([not_close], [cell["trials"]], 0.01)
            least, _ = sequence_limits([cell["far"]], [cell["trials"]], 0.01)
            assert (cell["p_low"], cell["p_high"]) == (1 - most[0], 1 - least[0])
            assert cell["survival"] is cell["smallest_eps"] is None
        (_, said) = store.history()[-1]
        assert [cell["verdict"] for cell in said] == [UNDECIDED, UNDECIDED]


def test_a_case_that_was_not_begun_says_nothing():
    plan = a_plan()
    with Store.create(None, sampling.about(plan)) as store:
        for cell in judged_here(plan, store)["cells"]:
            assert (cell["trials"], cell["p_low"], cell["p_high"]) == (0, 0.0, 1.0)
            assert cell["verdict"] == UNDECIDED


def test_what_comes_after_the_decision_is_not_counted():
    plan = a_plan(
        until_decided=True, experiment=[dict(a_plan().source["experiment"][0], eps=[3.0])]
    )
    with sampled(None, plan, range(40)) as store:
        every = judged_here(plan, store)
    (cell,) = every["cells"]
    blocks = cell["trials"] // BLOCK
    assert cell["verdict"] == HOLDS and blocks < 40
    with sampled(None, plan, range(blocks)) as store:
        assert sampling.is_complete(plan, store)
        before = judged_here(plan, store)
        assert before["blocks"] == every["blocks"]
        for straggler in (39, blocks + 1, blocks):
            empty = cases.empty_tally(plan.cases[0])
            store.add(0, straggler, tally(straggler, 40, empty), "there", 9.0)
            after = judged_here(plan, store)
            same = lambda r: [c | {"seconds": 0} for c in r["cells"]]
            assert same(after) == same(before) and after["blocks"] == before["blocks"]


@pytest.mark.ci
def test_a_deadline_does_not_choose_the_trials():
    """Failing trials take twice as long; their share is .10.

    Limits at 99 % of the trials up to the first unfinished one miss in more than 12 of 200 runs
    with probability 1e-6 at most.
    """
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        fails, workers = rng.random(4000) < 0.1, np.zeros(400)
        ends = np.zeros(len(fails))
        for trial, cost in enumerate((1 + fails) * rng.uniform(0.5, 1.5, len(fails))):
            worker = int(workers.argmin())
            ends[trial] = workers[worker] = workers[worker] + cost
        finished = ends <= 3.0
        for counted, of in ((fails[: finished.argmin()], "prefix"), (fails[finished], "all")):
            low, high = limits(int(counted.sum()), len(counted), 0.01)
            covered += of == "prefix" and low <= 0.1 <= high
            naive += of == "all" and low <= 0.1 <= high
    assert covered >= 188 > naive


# --- merged


@often(3, 100)
def test_splits_of_a_run_join_to_the_run(tmp_path, rounds):
    rng, plan = random.Random(0), a_plan()
    with sampled(None, plan, range(40)) as store:
        expected = judged_here(plan, store)["blocks"]["tallies"]
    for i in range(rounds):
        ids = rng.sample(range(40), 40)
        cut = rng.randrange(1, 40)
        paths = [tmp_path / f"{i}-{side}.db" for side in "ab"]
        sampled(paths[0], plan, ids[:cut]).close()
        sampled(paths[1], plan, ids[cut:]).close()
        joined = kept.merge(paths, tmp_path / f"out{i}")
        with joined.store as store:
            assert judged_here(plan, store)["blocks"]["tallies"] == expected


@often(3, 100)
def test_what_two_runs_have_in_common_is_refused_by_name(tmp_path, rounds):
    rng, plan = random.Random(0), a_plan()
    for i in range(rounds):
        mine = rng.sample(range(40), 20)
        twice = sorted(rng.sample(mine, rng.randint(1, 3)))
        theirs = [b for b in range(40) if b not in mine or b in twice]
        paths = [tmp_path / f"{i}-{side}.db" for side in "ab"]
        sampled(paths[0], plan, mine).close()
        sampled(paths[1], plan, theirs).close()
        with pytest.raises(ValueError) as refused:
            kept.merge(paths, tmp_path / f"out{i}")
        assert f"case 0: blocks {kept.ranges(twice)}" in str(refused.value)
        assert not (tmp_path / f"out{i}").exists()


def test_ranges_are_short():
    assert kept.ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert kept.ranges(range(0, 40, 2)).endswith("18 and 10 ranges more")


def test_another_identity_is_refused_by_its_name(tmp_path):
    plan = a_plan()
    identity = sampling.about(plan)["identity"]
    sampled(tmp_path / "mine.db", plan, [0]).close()
    for field in identity:
        path = tmp_path / f"{field}.db"
        changed = {"identity": identity | {field: "another"}}
        sampled(path, plan, [1], about=changed).close()
        with pytest.raises(ValueError, match=f"{field} = 'another'"):
            kept.reopen(path)
        with pytest.raises(ValueError, match=f"{field} = 'another'"):
            kept.merge([tmp_path / "mine.db", path], tmp_path / "out")
        with pytest.raises(ValueError, match=f"{field} = 'another'"):
            kept.begin(plan, *placed(path, tmp_path / field), resume=True)
    sampled(tmp_path / "hash.db", plan, [1], about={"plan_hash": "0" * 64}).close()
    with pytest.raises(ValueError, match="not the one that it was begun with"):
        kept.reopen(tmp_path / "hash.db")


def placed(path, folder):
    """A folder with this store as its run."""
    folder.mkdir()
    shutil.copy(path, kept.store_path(folder))
    return (folder,)


def test_another_plan_part_or_shape_is_refused_by_its_name(tmp_path):
    plan, other = a_plan(), a_plan(seed=5)
    sampled(tmp_path / "mine.db", plan, [0]).close()
    sampled(tmp_path / "other.db", other, [1]).close()
    with pytest.raises(ValueError, match=f"plan = '{other.hash}'"):
        kept.merge([tmp_path / "mine.db", tmp_path / "other.db"], tmp_path / "out")
    (folder,) = placed(tmp_path / "mine.db", tmp_path / "run")
    with pytest.raises(ValueError, match="plan = "):
        kept.begin(other, folder, resume=True)
    for name in ("block", "chunk"):
        path = tmp_path / f"{name}.db"
        store = Store.create(path, sampling.about(plan))
        empty = cases.empty_tally(plan.cases[0])
        store.begin(0, shape(40)._replace(**{name: 4}), empty)
        store.close()
        with pytest.raises(ValueError, match=f"{name} = 4"):
            kept.merge([tmp_path / "mine.db", path], tmp_path / "out")
    part = sampling.Part(2, 3)
    (tmp_path / "parts").mkdir()
    sampled(kept.store_path(tmp_path / "parts", part), plan, [1], part=part).close()
    again = kept.begin(plan, tmp_path / "parts", part, resume=True)
    with again.store as store:
        assert again.part == part and store.blocks(0) == [1]
    with pytest.raises(ValueError, match="no such file"):
        kept.reopen(tmp_path / "nothing")


def test_blocks_of_a_whole_run_beside_its_parts_are_kept(tmp_path):
    """Also those that a killed process left in SQLite's log."""
    plan, folder = a_plan(), tmp_path / "run"
    folder.mkdir()
    for number in (1, 2):
        part = sampling.Part(number, 2)
        ids = [b for b in range(40) if b % 2 == number - 1 and b not in (6, 7)]
        sampled(kept.store_path(folder, part), plan, ids, part=part).close()
    whole = kept.store_path(folder)
    with kept.merge([folder], folder).store as store:
        assert store.blocks(0) == [b for b in range(40) if b not in (6, 7)]
        empty = store.empty(0)
        for block in (6, 7):
            store.add(0, block, tally(block, 40, empty), "here", 0.5)
        with pytest.raises(ValueError, match="another process"):
            kept.merge([folder], folder)
        killed = tmp_path / "killed"
        killed.mkdir()
        for path in folder.iterdir():
            shutil.copy(path, killed)
    assert (killed / "run.db-wal").stat().st_size > 0
    for where in (folder, killed):
        for _ in range(2):
            with kept.merge([where], where).store as store:
                assert store.blocks(0) == list(range(40))
    with kept.merge([killed], tmp_path / "elsewhere").store as store:
        assert store.blocks(0) == list(range(40))
    with Store.open(whole, write=True) as store:
        drop(store, 0, {5})
        store.add(0, 5, dataclasses.replace(tally(5, 40, empty), close=(0, 0)), "here", 0.5)
    with pytest.raises(BrokenInvariant, match="case 0, block 5"):
        kept.merge([folder], folder)


def test_a_part_at_work_is_merged_as_it_was_when_it_was_opened(tmp_path):
    plan, path = a_plan(), tmp_path / "run-1-of-1.db"
    with sampled(path, plan, [0]) as writing, Store.open(path) as reading:
        empty = writing.empty(0)
        writing.begin(1, shape(40), empty)
        writing.add(0, 1, tally(1, 40, empty), "here", 0.5)
        writing.add(1, 0, tally(0, 40, empty), "here", 0.5)
        assert reading.blocks(0) == [0] and list(reading.cases) == [0]
        with Store.create(None, reading.about) as merged:
            merged.take(reading)
            assert merged.blocks(0) == [0] and list(merged.cases) == [0]


def test_a_store_is_read_as_it_was_at_one_moment(tmp_path, monkeypatch):
    """Though its process ends, and takes its log along, just after the file was copied."""
    writing, copy = filled(tmp_path / "run.db", 3), database._copy_data

    def copied(source, file):
        copy(source, file)
        writing.close()

    monkeypatch.setattr(database, "_copy_data", copied)
    with Store.open(tmp_path / "run.db") as reading:
        assert reading.blocks(0) == [0, 1, 2]
    assert not (tmp_path / "run.db-wal").exists()


def test_parts_in_other_blocks_are_refused_whichever_begun_first(tmp_path):
    plan = a_plan(experiment=[a_plan().source["experiment"][0]] * 2)
    for number, block in ((1, None), (2, BLOCK), (3, 4)):
        part = sampling.Part(number, 3)
        with Store.create(kept.store_path(tmp_path, part), sampling.about(plan, part)) as store:
            if block:
                empty = cases.empty_tally(plan.cases[1])
                store.begin(1, shape(40)._replace(block=block, chunk=block), empty)
    with pytest.raises(ValueError, match=r"case 1.*block = 4"):
        kept.merge([tmp_path], tmp_path / "out")
    with Store.create(None, {}) as a, Store.create(None, {}) as b:
        a.begin(0, shape(40), EMPTY)
        b.begin(0, shape(40)._replace(block=4, chunk=4), EMPTY)
        with pytest.raises(ValueError, match="case 0 in other blocks"):
            a.take(b)


def test_what_was_dropped_as_a_bad_device_s_does_not_come_back(tmp_path):
    plan, part = a_plan(), sampling.Part(1, 2)
    sampled(kept.store_path(tmp_path, part), plan, range(0, 40, 2), part=part).close()
    with kept.merge([tmp_path], tmp_path).store as store:
        assert store.void("here", "bad") == 20
    with kept.merge([tmp_path], tmp_path).store as store:
        assert store.blocks(0) == [] and store.failed_audit == "bad"
        assert {c["verdict"] for c in judged_here(plan, store)["cells"]} == {ESTIMATED}
        store.add(0, 0, tally(0, 40, store.empty(0)), "there", 0.5)
    with kept.merge([tmp_path], tmp_path / "copy").store as store:
        assert store.blocks(0) == [0] and store.failed_audit == "bad"
    # A part that has dropped its own blocks takes them from the whole run as well.
    with Store.open(kept.store_path(tmp_path, part), write=True) as store:
        store.void("here", "worse")
        store.add(0, 2, tally(2, 40, store.empty(0)), "there", 0.25)
    with kept.merge([tmp_path], tmp_path).store as store:
        assert store.blocks(0) == [0, 2]


# --- begun, and gone on with


def ledger(folder):
    path = folder / runs.LEDGER
    return path.read_text().splitlines() if path.exists() else []


def test_a_refused_run_is_not_noted(tmp_path):
    plan, folder = a_plan(), tmp_path / "run"
    kept.begin(plan, folder).store.close()
    assert len(ledger(tmp_path)) == 1
    for part, reason in ((sampling.WHOLE, "exists"), (sampling.Part(1, 2), "run.db")):
        with pytest.raises(ValueError, match=reason):
            kept.begin(a_plan(seed=5), folder, part)
    with pytest.raises(ValueError, match="plan = "):
        kept.begin(a_plan(seed=5), folder, resume=True)
    assert {json.loads(line)["seed"] for line in ledger(tmp_path)} == {plan.seed}
    (tmp_path / "parts").mkdir()
    kept.begin(plan, tmp_path / "parts", sampling.Part(2, 3)).store.close()
    for part in (sampling.Part(1, 2), sampling.WHOLE):
        with pytest.raises(ValueError, match=r"run-2-of-3\.db"):
            kept.begin(plan, tmp_path / "parts", part, resume=True)
    kept.begin(plan, tmp_path / "parts", sampling.Part(1, 3)).store.close()


def test_a_run_that_cannot_be_noted_is_not_begun(tmp_path):
    (tmp_path / runs.LEDGER).mkdir()
    with pytest.raises(ValueError, match="log of runs"):
        kept.begin(a_plan(), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [runs.LEDGER]


def test_an_exploratory_run_stays_one_wherever_it_is_taken(tmp_path, monkeypatch):
    kept.begin(a_plan(seed=5), tmp_path / "first").store.close()
    plan, folder = a_plan(), tmp_path / "second"
    part = sampling.Part(1, 2)
    for run in (folder, tmp_path / "parts"):
        begun = kept.begin(plan, run, sampling.WHOLE if run == folder else part)
        begun.store.close()
        assert begun.made.exploratory
    monkeypatch.chdir(folder)
    again = kept.reopen(Path("."))
    again.store.close()
    assert again.made.exploratory
    (tmp_path / "far").mkdir()
    shutil.copytree(folder, tmp_path / "far" / "moved")
    moved = kept.reopen(tmp_path / "far" / "moved")
    moved.store.close()
    assert moved.made.exploratory
    for sources in ([folder], [tmp_path / "parts"]):
        merged = kept.merge(sources, tmp_path / "far" / f"merged-{sources[0].name}")
        merged.store.close()
        assert merged.made.exploratory


def test_an_exploratory_run_stays_one_in_a_whole_run_that_was_there(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    kept.begin(a_plan(seed=5), tmp_path / "x" / "first").store.close()
    kept.begin(a_plan(), tmp_path / "x" / "run", sampling.Part(1, 2)).store.close()
    whole = kept.begin(a_plan(), tmp_path / "y" / "run")
    whole.store.close()
    assert not whole.made.exploratory
    merged = kept.merge([tmp_path / "x" / "run"], tmp_path / "y" / "run")
    merged.store.close()
    again = kept.reopen(tmp_path / "y" / "run")
    again.store.close()
    assert merged.made.exploratory and again.made.exploratory


def test_of_seeds_begun_at_once_as_many_are_confirmatory_as_were_planned(tmp_path):
    def begin(seed):
        begun = kept.begin(a_plan(seed=seed), tmp_path / f"run{seed}")
        begun.store.close()
        return begun.made.exploratory

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(begin, range(8))) == [False] + [True] * 7


def test_the_first_part_knows_nothing_of_the_blocks_between_its_own():
    experiment = dict(a_plan().source["experiment"][0], eps=[1e6])
    plan = a_plan(until_decided=True, delta=0.9, experiment=[experiment])
    part = sampling.Part(1, 2)
    with sampled(None, plan, range(0, 38, 2), part=part) as store:
        assert not sampling.is_complete(plan, store, part)


# --- time


def stopped_clock(monkeypatch):
    """The time that sampling reads, in a list."""
    clock = [0.0]
    watch = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(sampling, "time", watch)
    return clock


def test_no_block_is_begun_after_the_deadline_and_those_in_work_are_kept(monkeypatch):
    plan, asked, clock = a_plan(), [], stopped_clock(monkeypatch)
    run_blocks = engine.tally_blocks

    def counted(run, empty, blocks):
        for block in run_blocks(run, empty, (asked.append(b) or b for b in blocks)):
            clock[0] += 1.0
            yield block

    monkeypatch.setattr(engine, "tally_blocks", counted)
    with sampled(None, plan, []) as store:
        sampling.sample(plan, store, seconds=2.5)
        blocks = store.blocks(0)
        assert blocks == asked and 3 <= len(blocks) < 40
        clock[0] = 0.0
        sampling.sample(plan, store, seconds=0.0)
        assert store.blocks(0) == blocks
        sampling.sample(plan, store)
        assert sampling.is_complete(plan, store)


def test_training_ends_at_the_deadline(monkeypatch):
    network = {
        "network": "dense",
        "widths": [64, 4, 10],
        "data": "digits",
        "domain": "test images",
        "layers": "all",
    }
    experiment = {"title": "a", "pruning": "random", "count": 3, "eps": [0.2], **network}
    plan, clock, chunks = a_plan(trials=64, experiment=[experiment]), stopped_clock(monkeypatch), []

    def train(network, recipe, count, seed, progress):
        for done in range(count):
            clock[0] += 1.0
            chunks.append(done)
            progress(done + 1)
        pytest.fail("trained on")

    monkeypatch.setattr(sampling.trained, "train", train)
    with Store.create(None, sampling.about(plan)) as store:
        sampling.sample(plan, store, seconds=2.5)
        assert len(chunks) == 3 and not store.cases

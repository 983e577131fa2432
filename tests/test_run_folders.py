"""Folders of runs: damaged, crafted, moved while a run works, left by a merge that was killed.

Whole commands, with made-up blocks in place of sampled ones: nothing is sampled.
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile

import numpy as np
import pytest
from safetensors.numpy import load
from stores import Shape, made_up

from jaxprune import cli, files, report
from jaxprune.cli import replay as replay_command
from jaxprune.cli import running
from jaxprune.engine import Store
from jaxprune.engine import rows as rows_module
from jaxprune.engine.packing import pack
from jaxprune.report import verify as verify_report
from jaxprune.studies import cases, kept, runs, sampling
from jaxprune.studies import plan as plans
from jaxprune.studies.replay import Replay
from jaxprune.studies.verify import judged

BLOCK, BLOCKS = 8, 6
PLAN = plans.parse(
    {
        "title": "t", "trials": BLOCK * BLOCKS - 3, "delta": 0.2,
        "experiment": [{
            "title": "a", "network": "dense", "widths": [4, 3], "law": "uniform", "layers": "all",
            "pruning": "random", "count": 3, "eps": [0.2, 3.0], "samples": 4, "starts": 1,
        }],
    }
)  # fmt: skip
TRIALS = PLAN.cases[0].trials
EMPTY = cases.empty_tally(PLAN.cases[0])


def often(name, default, ci, slow):
    """A test's argument in each of the tiers."""
    marked = pytest.param(ci, marks=pytest.mark.ci), pytest.param(slow, marks=pytest.mark.slow)
    return pytest.mark.parametrize(name, [default, *marked])


@functools.cache
def tally(block):
    ids = range(block * BLOCK, min(block * BLOCK + BLOCK, TRIALS))
    return made_up(np.random.default_rng(block), ids, EMPTY.eps, EMPTY.labelled, EMPTY.cap)


def fill(plan, store, *_, part=sampling.WHOLE, blocks=range(BLOCKS), **__):
    """The blocks that a store lacks, in place of sampling them."""
    store.begin(0, Shape(trials=TRIALS, block=BLOCK, chunk=BLOCK), EMPTY)
    for block in set(blocks[part.number - 1 :: part.of]) - set(store.blocks(0)):
        store.add(0, block, tally(block), "here", 0.5)


@functools.cache
def expected():
    """The hash of the whole run."""
    with Store.create(None, sampling.about(PLAN)) as store:
        fill(PLAN, store)
        return judged(PLAN, store, runs.begin(PLAN, None))["blocks"]["tallies"]


class Sandbox:
    """A folder in which a run lies beside what is the user's own.

    Attributes:
      root: all of it; `private` in it is where temporary copies go.
      run: the run's folder.
      mine: the user's, of several kinds.
    """

    def __init__(self, root):
        self.root, self.work, self.mine = root, root / "work", root / "mine"
        self.run, self.private = self.work / "run", root / "private"
        for folder in (self.work, self.mine, self.private):
            folder.mkdir(parents=True)
        (self.mine / "text").write_text("dear diary\n" * 1000)
        (self.mine / "zeros").write_bytes(bytes(5000))
        (self.mine / "empty").touch()
        self.before = self.outside()

    def outside(self):
        """All that no command may touch."""
        return {
            str(path.relative_to(self.root)): path.is_file() and path.read_bytes()
            for path in self.root.rglob("*")
            if self.work not in path.parents
        }

    def check(self):
        assert self.outside() == self.before

    def new_run(self, original):
        """In place of the one that is there."""
        shutil.rmtree(self.work)
        shutil.copytree(original, self.run)


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    sandbox = Sandbox(tmp_path / "sandbox")
    monkeypatch.setattr(tempfile, "tempdir", str(sandbox.private))
    monkeypatch.setattr(sampling, "sample", fill)
    monkeypatch.setattr(verify_report, "sections", lambda *_: [])  # no plots
    monkeypatch.setattr(rows_module, "ROW_BYTES", 2**13)
    return sandbox


@pytest.fixture
def originals(tmp_path, sandbox):
    """A run that is whole, and one whose process was killed."""
    with kept.begin(PLAN, tmp_path / "whole").store as store:
        fill(PLAN, store)
    store = kept.begin(PLAN, tmp_path / "at-work").store
    fill(PLAN, store)
    shutil.copytree(tmp_path / "at-work", tmp_path / "killed")
    store.close()
    assert (tmp_path / "killed" / "run.db-wal").stat().st_size > 0
    return tmp_path / "whole", tmp_path / "killed"


def command(capsys, *arguments):
    """The exit status of a command, which must say what is wrong in a line."""
    status = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if status:
        assert said.splitlines()[-1].startswith("jaxprune: ") and said.count("\n") <= 2, said
    return status


def check_whole(folder):
    """Each block is there once, as it was made."""
    result = json.loads((folder / "result.json").read_text())
    assert result["blocks"]["complete"] and result["blocks"]["tallies"] == expected()
    with Store.open(folder / "run.db") as store:
        assert not store.damaged
        assert [pack(t) for _, t, *_ in store.rows(0)] == [pack(tally(b)) for b in range(BLOCKS)]


# --- damaged


@often("flips", 12, 300, 3000)
def test_a_flipped_bit_is_refused_or_costs_blocks_that_are_made_anew(
    sandbox, originals, capsys, flips
):
    """No block counts twice, none is lost but those of the damaged row, nothing else is touched."""
    rng, outcomes = random.Random(0), {"refused": 0, "dropped": 0, "harmless": 0}
    for flip in range(flips):
        sandbox.new_run(originals[flip % 2])
        path = rng.choice([p for p in sandbox.run.iterdir() if not p.name.endswith(".lock")])
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        before = {p.name: p.read_bytes() for p in sandbox.run.iterdir()}
        if status := command(capsys, "resume", sandbox.run):
            assert status == 2
            assert {p.name: p.read_bytes() for p in sandbox.run.iterdir()} == before
            outcomes["refused"] += 1
        else:
            check_whole(sandbox.run)
            result = json.loads((sandbox.run / "result.json").read_text())
            outcomes["dropped" if result["blocks"]["damaged"] else "harmless"] += 1
        sandbox.check()
    assert outcomes["refused"] + outcomes["dropped"] > 0, outcomes
    assert flips < 300 or min(outcomes.values()) > 0, outcomes


def changed(value):
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    return value[:-1] + chr(ord(value[-1]) ^ 1)


def test_every_value_of_every_row_is_under_a_checksum(sandbox, originals):
    """Keys, and what was noted of audits and dropped blocks, included."""
    with Store.open(originals[0] / "run.db", write=True) as store:
        assert len(store._db.execute("SELECT id FROM blocks").fetchall()) > 2
        store.note_audit(3, answers=True)
        store.note([{"verdict": "holds"}])
        assert store.void("nowhere", "bad") == 0
    path, count = sandbox.root / "edited.db", 0
    with contextlib.closing(sqlite3.connect(originals[0] / "run.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE sql != ''")]
        places = [
            (table, number, row, i)
            for table in tables
            for number, row in enumerate(db.execute(f"SELECT * FROM {table}").fetchall())
            for i in range(len(row))
        ]
        names = {t: [d[0] for d in db.execute(f"SELECT * FROM {t}").description] for t in tables}
    for table, number, row, i in places:
        shutil.copy(originals[0] / "run.db", path)
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            with contextlib.suppress(sqlite3.IntegrityError):  # a key that another row has
                where = " AND ".join(f"{name} = ?" for name in names[table])
                update = f"UPDATE {table} SET {names[table][i]} = ? WHERE {where}"
                count += db.execute(update, (changed(row[i]), *row)).rowcount
        expected = not db_is_same(path, originals[0] / "run.db")
        try:
            with Store.open(path) as store:
                assert store.failed_audit == "bad"
                lost = (table == "verdicts" and not store.history()) or bool(store.damaged)
                assert lost == expected, (table, number, i)
        except ValueError:
            assert expected and table != "verdicts"
    assert count > len(places) / 2


def db_is_same(a, b):
    def content(path):
        with contextlib.closing(sqlite3.connect(path)) as db:
            return list(db.iterdump())

    return content(a) == content(b)


KEYS = {
    "row": ["UPDATE blocks SET id = 99 WHERE id = {0}"],
    "rows": [
        "UPDATE blocks SET id = 99 WHERE id = {0}",
        "UPDATE blocks SET id = {0} WHERE id = {1}",
        "UPDATE blocks SET id = {1} WHERE id = 99",
    ],
    "block": ["UPDATE blocks SET ids = replace(ids, '1', '0') WHERE id = {0}"],
    "blocks": ["UPDATE blocks SET ids = (SELECT ids FROM blocks WHERE id = {1}) WHERE id = {0}"],
    "case": ["UPDATE blocks SET case_id = 1 WHERE id = {0}"],
    "all": ["DELETE FROM blocks WHERE id != {0}", "UPDATE blocks SET id = -5"],
}


@pytest.mark.parametrize("key", KEYS)
def test_a_row_under_another_key_is_dropped_and_no_sound_one_with_it(
    sandbox, originals, capsys, key
):
    sandbox.new_run(originals[0])
    path = sandbox.run / "run.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rows = {id: json.loads(ids) for id, ids in db.execute("SELECT id, ids FROM blocks")}
        first, second = next(id for id in rows if 1 in rows[id]), max(rows)
        for statement in KEYS[key]:
            db.execute(statement.format(first, second))
    lost = {"rows": {*rows[first], *rows[second]}, "all": {*range(BLOCKS)}}.get(key, {*rows[first]})
    with Store.open(path) as store:
        assert store.damaged and {*store.blocks(0)} == {*range(BLOCKS)} - lost
    assert command(capsys, "resume", sandbox.run) == 0
    check_whole(sandbox.run)
    assert command(capsys, "resume", sandbox.run) == 0
    assert json.loads((sandbox.run / "result.json").read_text())["blocks"]["damaged"] == []


# --- crafted


def journal(database, victim=None):
    """A rollback journal that SQLite plays back, and whose super-journal it deletes after that."""
    page = 4096
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 0, 4, 512, page)
    data = header.ljust(512, b"\0")
    if victim:
        name = os.fsencode(victim)
        lock_page = 2**30 // page + 1
        data += struct.pack(">I", lock_page) + name
        data += struct.pack(">2I", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    return data


def test_no_journal_s_super_journal_is_deleted(sandbox, originals, capsys):
    """As SQLite by itself does; so the journal is one that it obeys."""
    victim = sandbox.mine / "text"
    sandbox.new_run(originals[0])
    (sandbox.run / "run.db-journal").write_bytes(journal(sandbox.run / "run.db", victim))
    (sandbox.run / "result.json").touch()
    for arguments in (
        ("resume", sandbox.run),
        ("merge", sandbox.run, "--out", sandbox.work / "out"),
        ("replay", sandbox.run, "--trial", 0),
    ):
        assert command(capsys, *arguments) == 2
        sandbox.check()
    with contextlib.closing(sqlite3.connect(sandbox.run / "run.db")) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("SELECT * FROM sqlite_master").fetchall()
    assert not victim.exists()


@pytest.mark.parametrize("name", ["run.db-wal", "run.db-journal", "run.db.lock"])
def test_no_run_is_begun_beside_what_would_be_taken_for_its_own(sandbox, originals, name):
    """A log that was left without its file, say."""
    sandbox.run.mkdir()
    shutil.copy(originals[1] / "run.db-wal", sandbox.run / name)
    with pytest.raises(ValueError, match=f"{name}' is not"):
        kept.begin(PLAN, sandbox.run, resume=True)
    assert [path.name for path in sandbox.run.iterdir()] == [name]


NAMES = [
    *("run.db-journal", "run.db-wal", "run.db-shm", "run.db.lock", "run.db", "run.db.part"),
    *("result.json", "report.html", "result.json.part", "report.html.part"),
    *("run-1-of-2.db", "run-1-of-2.db-wal", "../jaxprune-runs.jsonl", "../out", "../out/run.db"),
    *("../out/run.db-wal", "../out/run.db.lock", "../out/result.json.part", "../out.part"),
]


def crafted(rng, sandbox, other):
    """Puts something beside a run: a link, a folder, a pipe, another's file, noise."""
    path = sandbox.run / rng.choice(NAMES)
    victim = sandbox.mine / rng.choice(["text", "zeros", "empty", "nowhere", "folder/nowhere"])
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        return path
    kind = rng.choice(["link", "link", "folder", "pipe", "noise", "journal", "log", "run", "empty"])
    if kind != "noise" or rng.random() < 0.5:
        path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(rng.choice([victim, os.path.relpath(victim, path.parent)]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "noise":
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 5000])))
    elif kind == "journal":
        path.write_bytes(journal(sandbox.run / "run.db", rng.choice([victim, None])))
    elif kind == "log":
        shutil.copy(other / "run.db-wal", path)
    elif kind == "run":
        path.symlink_to(sandbox.mine / "run" / rng.choice(["run.db", "run.db-wal"]))
    else:
        path.touch()
    return path


@often("files", 10, 50, 200)
def test_what_lies_beside_a_run_makes_no_command_touch_what_is_outside(
    sandbox, originals, capsys, monkeypatch, files
):
    def read(*_):
        raise ValueError("read")

    monkeypatch.setattr(replay_command, "replay", read)
    shutil.copytree(originals[1], sandbox.mine / "run")
    (sandbox.mine / "folder").mkdir()
    sandbox.before = sandbox.outside()
    rng, statuses = random.Random(0), []
    for number in range(files):
        sandbox.new_run(originals[number % 2])
        for _ in range(rng.choice([1, 1, 2])):
            crafted(rng, sandbox, originals[1])
        first = rng.choice([
            ("resume", sandbox.run),
            ("merge", sandbox.run, "--out", sandbox.work / "out"),
            ("replay", sandbox.run, "--trial", 0),
            ("report", sandbox.run, "--out", sandbox.work / "out.html"),
        ])  # fmt: skip
        for arguments in (first, ("resume", sandbox.run)):
            statuses.append(command(capsys, *arguments))
            assert statuses[-1] in (0, 2, 3)
            sandbox.check()
        if statuses[-1] == 0:
            check_whole(sandbox.run)
    assert {0, 2} <= {*statuses}, statuses


@pytest.mark.parametrize("name", ["result.json.part", "report.html.part", "../jaxprune-runs.jsonl"])
def test_no_result_is_written_through_a_link(sandbox, originals, capsys, name):
    sandbox.new_run(originals[0])
    (sandbox.run / name).symlink_to(sandbox.mine / "empty")
    (sandbox.work / "out.html.part").symlink_to(sandbox.mine / "text")
    status = command(capsys, "resume", sandbox.run)
    assert status == (2 if "runs" in name else 0)
    sandbox.check()
    assert (sandbox.run / name).is_symlink()
    status = command(capsys, "report", sandbox.run, "--out", sandbox.work / "out.html")
    assert status == (2 if "runs" in name else 0)


def test_names_of_folders_need_not_be_utf8(sandbox, originals, capsys):
    run = sandbox.work / os.fsdecode(b"r\xffn")
    shutil.copytree(originals[1], run)
    assert command(capsys, "resume", run) == 0
    check_whole(run)
    assert command(capsys, "merge", run, "--out", run.with_name("out")) == 0
    pages = "--out", run / "page.html", "--parquet", run / "rows.parquet"
    assert command(capsys, "report", run, *pages) == 0
    facts, mask = {"run": str(run)}, np.ones((2, 3), bool)
    replay_command._save(Replay(facts, {"a": np.ones((2, 3))}, {"a": mask}), run / "pair")
    report.write_json(facts, run / "facts.json")
    assert json.loads((run / "facts.json").read_text()) == facts
    with (run / "pair").open("rb") as file:
        assert load(file.read())["a.mask"].tolist() == mask.tolist()
    sandbox.check()


# --- moved


def moved(sandbox):
    sandbox.run.rename(sandbox.work / "elsewhere")


def replaced(sandbox):
    moved(sandbox)
    shutil.copytree(sandbox.root.parent / "killed", sandbox.run)
    (sandbox.run / "result.json").write_text("theirs")


def removed(sandbox):
    shutil.rmtree(sandbox.run)


@pytest.mark.parametrize("by", [moved, replaced, removed])
@pytest.mark.parametrize("moment", ["sampling", "judging", "judged", "writing"])
def test_a_run_whose_folder_is_another_stops_and_writes_nothing(
    sandbox, originals, capsys, monkeypatch, by, moment
):
    done = []

    def strike():
        if not done:
            by(sandbox)
            done.append({p.name: p.read_bytes() for p in sandbox.work.glob("run/*")})

    def strike_after(function):
        def struck(*arguments, **named):
            result = function(*arguments, **named)
            strike()
            return result

        return struck

    if moment == "sampling":
        fill_some = lambda plan, store, *_, **__: (
            fill(plan, store, blocks=range(2)), strike(), fill(plan, store)
        )  # fmt: skip
        monkeypatch.setattr(sampling, "sample", fill_some)
    elif moment == "judging":
        monkeypatch.setattr(sampling, "is_complete", strike_after(sampling.is_complete))
    elif moment == "judged":
        monkeypatch.setattr(running, "judged", strike_after(judged))
    else:
        monkeypatch.setattr(verify_report, "sections", strike_after(lambda *_: []))
    sandbox.run.parent.mkdir(exist_ok=True)
    kept.begin(PLAN, sandbox.run).store.close()
    capsys.readouterr()
    assert cli.main(["resume", str(sandbox.run)]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "moved, replaced or removed" in said and "goes on" not in said
    assert {p.name: p.read_bytes() for p in sandbox.work.glob("run/*")} == done[0]
    assert sandbox.run.exists() == (by is replaced)
    if by is not removed:
        assert command(capsys, "resume", sandbox.work / "elsewhere") == 0
        check_whole(sandbox.work / "elsewhere")


def test_results_of_others_are_not_replaced(sandbox):
    """Of a study that ended in the meantime."""
    result = {"cells": [1]}
    sandbox.run.mkdir()
    (sandbox.run / "result.json").write_text("theirs")
    with pytest.raises(FileExistsError):
        report.write_folder(result, sandbox.run)
    assert (sandbox.run / "result.json").read_text() == "theirs"


# --- merged


STEPS = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "sqlite3.connect"}


def killed_at(step, function, *arguments):
    """Runs a function in a process of its own, killed before its n-th step that concerns a file;
    whether there were so many steps."""

    def run():
        steps = itertools.count()

        def kill(event, _):
            if event in STEPS and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def open_and_close(path):
    Store.open(path, write=True).close()


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@often("every", 11, 2, 1)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_process_killed_as_it_opens_a_killed_run_costs_nothing(
    sandbox, originals, capsys, damaged, every
):
    """Also between the steps in which the log, and what was damaged, are left out of the file."""
    killed = originals[1]
    if damaged:
        with Store.open(killed / "run.db", write=True) as store:
            rows = [id for (id,) in store._db.execute("SELECT id FROM blocks")]
            store._db.execute("UPDATE blocks SET id = 99 WHERE id = ?", rows[:1])
            store.note([])
            shutil.copytree(killed, sandbox.root.parent / "damaged")
        killed = sandbox.root.parent / "damaged"
    assert (killed / "run.db-wal").stat().st_size > 0
    for step in itertools.count(0, every):
        sandbox.new_run(killed)
        was_killed = killed_at(step, open_and_close, sandbox.run / "run.db")
        with Store.open(sandbox.run / "run.db") as store:
            blocks = {block for _, block in store.damaged} | set(store.blocks(0))
            assert blocks == set(range(BLOCKS)) or (damaged and not store.damaged)
        assert command(capsys, "resume", sandbox.run) == 0
        check_whole(sandbox.run)
        shutil.rmtree(sandbox.private)
        sandbox.private.mkdir()
        if not was_killed:
            break
    assert step > 15, step


def merge(parts, out):
    sys.stdout = open(os.devnull, "w")
    assert cli.main(["merge", *map(str, parts), "--out", str(out)]) == 0


@pytest.mark.filterwarnings("ignore:.*fork:Warning")
@often("every", 23, 5, 1)
def test_a_killed_merge_is_gone_on_with_by_merge_and_by_resume(sandbox, capsys, every):
    other = plans.parse({**PLAN.source, "seed": 5})
    kept.begin(other, sandbox.work / "other").store.close()  # what comes after is exploratory
    parts = [sandbox.root / "parts" / f"{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        part.mkdir(parents=True)
        shutil.copy(sandbox.work / runs.LEDGER, part.parent)
        begun = kept.begin(PLAN, part, sampling.Part(i, 2))
        with begun.store as store:
            fill(PLAN, store, part=begun.part)
    sandbox.before = sandbox.outside()
    for step in itertools.count(0, every):
        out = sandbox.root / f"far{step}" / "out"  # where no log knows of the other seed
        out.parent.mkdir()
        if not killed_at(step, merge, parts, out):
            break
        again = out.with_name("again")
        if out.exists():
            shutil.copytree(out, again)
        assert command(capsys, "merge", *parts, "--out", out) == 0
        check_whole(out)
        if files.exists(again / "run.db"):
            assert command(capsys, "resume", again) == 0
            check_whole(again)
        for folder in {out, *out.parent.glob("again")} if files.exists(again / "run.db") else {out}:
            result = json.loads((folder / "result.json").read_text())
            assert result["runs"]["exploratory"], (step, folder)
        shutil.rmtree(out.parent)
        shutil.rmtree(sandbox.private)
        sandbox.private.mkdir()
    assert step > 20, step

"""Hostile files and absurd requests: one line, exit status 2, nothing run, nothing written."""

import contextlib
import functools
import html.parser
import io
import os
import pickle
import random
import re
import resource
import sqlite3
import time
import zipfile
import zlib

import numpy as np
import pytest
from rich.console import Console
from stores import Shape, made_up, rewrite_fact, rewrite_first_block, write_row

from jaxprune import cli, report
from jaxprune.engine import Store, packing
from jaxprune.engine.packing import canonical
from jaxprune.engine.rows import row_sum
from jaxprune.report import replay as replay_words
from jaxprune.report import words
from jaxprune.report.document import SCRIPT
from jaxprune.studies import kept, runs, sampling
from jaxprune.studies import plan as plans
from jaxprune.studies.cases import empty_tally
from jaxprune.studies.verify import judged

GOOD = """
title = "t"
trials = 64
seed = 3

[[experiment]]
title = "a"
network = "dense"
widths = [4, 4, 3]
layers = "all"
law = "uniform"
gain = 1.5
pruning = ["random"]
sparsity = 0.5
eps = [0.5]
samples = 4
starts = 1
steps = 2
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that must be bad input, and leave the folder as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "sample", lambda *_, **__: pytest.fail("sampled"))

    def run(*arguments, named=""):
        before = sorted(os.listdir(tmp_path))
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        assert status == 2 and not said.out, (arguments, status, said)
        assert said.err.count("\n") == 1 and len(said.err) < 2000 and named in said.err, said.err
        assert "Traceback" not in said.err and "\x1b" not in said.err
        assert sorted(os.listdir(tmp_path)) == before

    return run


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- files


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickles(folder):
    (folder / "plain.pkl").write_bytes(pickle.dumps(Payload()))
    np.save(folder / "a.npy", np.array([Payload()], object), allow_pickle=True)
    np.savez(folder / "a.npz", a=np.array([Payload()], object))
    with zipfile.ZipFile(folder / "torch.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload()))
    return sorted(folder.iterdir())


def test_no_command_runs_a_pickle(tmp_path, refused):
    (tmp_path / "in").mkdir()
    for path in pickles(tmp_path / "in"):
        refused("verify", "--plan", path, named="plan")
        refused("resume", path, named="run")
        refused("merge", path, "--out", "out", named="run")
        refused("replay", path, "--trial", 0, named="run")
    assert not (tmp_path / "executed").exists()


def edited(path, *statements):
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def with_made_up_block(path, plan):
    """A store of a plan of one case of one block, of random numbers."""
    empty, trials = empty_tally(plan.cases[0]), plan.cases[0].trials
    tally = made_up(np.random.default_rng(0), range(trials), empty.eps, empty.labelled, empty.cap)
    store = Store.create(path, sampling.about(plan))
    store.begin(0, Shape(trials=trials, block=trials, chunk=trials), empty)
    store.add(0, 0, tally, "here", 0.5)
    return store


@pytest.fixture(scope="module")
def made_up_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("made-up") / "run.db"
    with_made_up_block(path, plans.parse(plans.reading.tomllib.loads(GOOD))).close()
    return path


@pytest.fixture
def store_file(tmp_path):
    """A function that makes a store of the good plan, without blocks."""
    path = tmp_path / "run.db"

    def make():
        path.unlink(missing_ok=True)
        plan = plans.parse(plans.reading.tomllib.loads(GOOD))
        Store.create(path, sampling.about(plan)).close()
        return path

    return make


FILES = {
    "another trigger": ["CREATE TRIGGER t AFTER INSERT ON blocks BEGIN DELETE FROM blocks; END"],
    "an older format": ["PRAGMA user_version = 3"],
    "a schema that is no text": [
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = CAST(sql AS BLOB) WHERE name = 'blocks'",
    ],
    "a wrong checksum": ["UPDATE facts SET sha256 = 1"],
}
MORE_FILES = [
    ["CREATE TABLE more (a)"],
    ["CREATE VIEW v AS SELECT * FROM facts"],
    ["DROP TABLE blocks"],
    ["ALTER TABLE blocks ADD COLUMN b TEXT"],
    ["PRAGMA application_id = 1"],
    ["PRAGMA user_version = 99"],
    ["DELETE FROM facts"],
    ["UPDATE facts SET text = '{}'"],
    ["INSERT INTO facts VALUES (7, 'case', '[]', 'none')"],
]


@pytest.mark.parametrize(
    "statements",
    [
        *(pytest.param(statements, id=name) for name, statements in FILES.items()),
        *(pytest.param(s, id=s[0], marks=pytest.mark.ci) for s in MORE_FILES),
    ],
)
def test_a_file_that_is_no_run_of_ours_is_refused(store_file, refused, statements):
    path = store_file()
    edited(path, *statements)
    refused("replay", path, "--trial", 0, named="run")
    refused("merge", path, "--out", "out", named="run")


def test_a_file_of_a_terabyte_of_nothing_is_copied_at_once(store_file):
    path = store_file()
    with path.open("r+b") as file:
        file.truncate(2**40)
    (path.parent / "run.db-wal").touch()
    os.truncate(path.parent / "run.db-wal", 2**40)
    with Store.open(path) as store:
        assert store.about
    path.unlink()


@pytest.mark.ci
def test_a_value_of_400_megabytes_is_refused_before_it_is_read(store_file, refused):
    path = store_file()
    edited(path, "INSERT INTO blocks VALUES (1, 0, '[0]', zeroblob(400000000), 'none')")
    before = peak()
    refused("replay", path, "--trial", 0, named="run")
    assert peak() - before < 50
    path.unlink()


def deflated(text, megabytes):
    """A text and as many zeros after it, compressed."""
    stream = zlib.compressobj(wbits=packing._RAW_DEFLATE)
    parts = [stream.compress(text), *(stream.compress(bytes(2**20)) for _ in range(megabytes))]
    return b"".join(parts) + stream.flush()


def bombs(megabytes):
    """Data that inflate to more than they may, or to no blocks."""
    facts = canonical([[0, 64, "here", 0.5]]) + b"\n"
    yield deflated(facts, megabytes)
    yield deflated(facts, 14) + b"more"
    yield deflated(b"[" * 10**6, 0)
    yield deflated(b"[" + b"[]," * 10**6 + b"[]]", 0)
    yield deflated(canonical([[0, 64, "here", 0.5]] * 2) + b"\n" * 10**6, 0)
    yield b""


@pytest.mark.parametrize("megabytes", [100, pytest.param(1000, marks=pytest.mark.ci)])
def test_a_row_that_would_inflate_to_more_than_a_run_has_is_dropped(
    made_up_file, tmp_path, megabytes
):
    path, before = tmp_path / "run.db", peak()
    for data in bombs(megabytes):
        path.write_bytes(made_up_file.read_bytes())
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            row = 0, 0, "[0]", data
            change = "UPDATE blocks SET id=?, case_id=?, ids=?, data=?, sha256=?"
            db.execute(change, (*row, row_sum(*row)))
        with Store.open(path) as store:
            assert store.damaged == [(0, 0)] and store.blocks(0) == []
    assert peak() - before < 150


def test_a_block_that_stands_twice_is_dropped(made_up_file, tmp_path):
    path = tmp_path / "run.db"
    with Store.open(made_up_file) as store:
        (block,) = store._rows.each(0)
    for rows, left in (([[block], [block]], [0]), ([[block, block]], [])):
        path.write_bytes(made_up_file.read_bytes())
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for id, row in enumerate(rows):
                write_row(db, id, 0, row)
        with Store.open(path) as store:
            assert store.blocks(0) == left and {*store.damaged} == {(0, 0)}


def test_what_is_no_database_is_refused(tmp_path, refused):
    (tmp_path / "empty.db").write_bytes(b"")
    (tmp_path / "text.db").write_text("SQLite format 3\0 of a kind")
    (tmp_path / "folder").mkdir()
    for name in ("empty.db", "text.db", "folder", "none", "/dev/null", "\x1b[31mred"):
        refused("replay", name, "--trial", 0, named="run")
        refused("merge", name, "--out", "out", named="run")


NASTY = [None, True, -1, 2**70, 1e308, "x", [], {}, [[]], {"a": 1}, "\x1b[31m", 0, 0.5, [1, 2], "0"]


def replaced(rng, value):
    """The same plain data with something nasty somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: replaced(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = rng.randrange(len(value))
        return [*value[:i], replaced(rng, value[i]), *value[i + 1 :]]
    return rng.choice(NASTY)


@pytest.mark.parametrize(
    "edits",
    [
        40,
        pytest.param(150, marks=pytest.mark.ci),
        pytest.param(600, marks=pytest.mark.slow),
    ],
)
def test_an_author_with_right_checksums_gets_no_further(made_up_file, tmp_path, edits):
    """Edits of what a run says: a refusal in one line, or a dropped block, or no harm."""
    rng, edit = random.Random(0), tmp_path / "edit" / "run.db"
    edit.parent.mkdir()
    outcomes = {"refused": 0, "read": 0}
    for _ in range(edits):
        edit.write_bytes(made_up_file.read_bytes())
        kind = rng.choice(["about", "case", "blocks"])
        change = lambda value: replaced(rng, value)
        if kind == "blocks":
            rewrite_first_block(edit, change)
        else:
            with contextlib.closing(sqlite3.connect(edit)) as db, db:
                rewrite_fact(db, kind, change)
        try:
            with Store.open(edit, write=True) as store:
                known, _ = sampling.reopened(store)
                judged(known, store, runs.begin(known, None))
            with kept.reopen(edit).store:
                outcomes["read"] += 1
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > edits // 30, outcomes


LARGE = hex(2**5000)


@pytest.mark.parametrize(
    "changed",
    [
        {"squared": lambda m: [m[0], LARGE, m[2]]},
        {"squared": lambda m: [m[0], m[1], "-0x1"]},
        {"squared": lambda m: [m[0] - 1, *m[1:]]},
        {"capped_lower": lambda m: [m[0] - 1, *m[1:]]},
        {"mean": lambda d: [d[0], d[1], d[2] + 1]},
        {"relative": lambda d: [[[5], [2**62]], *d[1:]]},
        {"lower": lambda h: [h[0], [2**63 - 1] * len(h[0])]},
        {"pruned_correct": lambda n: n + 1},
        {"changes": lambda h: [[1], [64]]},
        {"worst": lambda w: [[gap, trial + 64] for gap, trial in w]},
        {"worst": lambda w: [[gap * 0.5, trial] for gap, trial in w]},
        {"worst": lambda w: [w[0]] * len(w)},
        {"worst": lambda w: w[::-1]},
        {"worst": lambda w: [[1e308, w[0][1]], *w[1:]]},
        {"trials": lambda n: 2**62, "nonfinite": lambda n: 2**62},
    ],
)
def test_a_block_whose_numbers_cannot_be_is_dropped(made_up_file, tmp_path, changed):
    path = tmp_path / "run.db"
    path.write_bytes(made_up_file.read_bytes())
    with Store.open(path) as store:
        assert store.blocks(0) == [0] and not store.damaged
    rewrite_first_block(path, lambda t: t | {name: f(t[name]) for name, f in changed.items()})
    with Store.open(path) as store:
        assert store.damaged == [(0, 0)] and store.blocks(0) == []


@pytest.mark.parametrize(
    "number, changed",
    [(99, {}), (0, {"trials": 65}), (0, {"eps": [0.4]}), (0, {"cap": None}), (0, {"labelled": 3})],
)
def test_cases_that_the_plan_does_not_have_are_refused(
    made_up_file, tmp_path, refused, number, changed
):
    path = tmp_path / "run.db"
    path.write_bytes(made_up_file.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        rewrite_fact(db, "case", lambda noted: noted | {"case": number} | changed)
        db.execute("DELETE FROM blocks")
    refused("replay", path, "--trial", 0, named="case")
    refused("merge", path, "--out", "out", named="case")


def test_another_program_s_database_is_not_touched(tmp_path, refused):
    db = sqlite3.connect(tmp_path / "run.db")
    db.execute("CREATE TABLE mine (a)")
    db.commit()
    db.close()
    before = (tmp_path / "run.db").read_bytes()
    refused("resume", "run.db", named="no run of jaxprune")
    (tmp_path / "plan.toml").write_text(GOOD)
    where = "--plan", "plan.toml", "--out", "."
    refused("verify", *where, "--resume", named="no run of jaxprune")
    assert (tmp_path / "run.db").read_bytes() == before


@pytest.mark.parametrize("column", ["id", "case_id"])
def test_ids_are_integers(made_up_file, tmp_path, column):
    path = tmp_path / "run.db"
    path.write_bytes(made_up_file.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as db:
        for value in (0.5, b"blob", "text"):
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(f"UPDATE blocks SET {column} = ?", (value,))


# --- plans


def absurd():
    huge = 10**9
    good = 'title = "a"\nlaw = "uniform"\npruning = "random"\nsparsity = 0.5\neps = 1.0\n'
    dense, conv = 'network = "dense"\n', 'network = "convolutional"\n'
    for widths in (
        f"[{huge}, {huge}]",
        "[4, 50000000, 4]",
        "[40000, 40000, 40000, 40000]",
        str([4] * 3 + [2**31]),
        "[0, 1]",
        f"[{2**64}, 1]",
        "[[4, 4], [200000, 9000]]",
    ):
        yield f'{dense}widths = {widths}\nlayers = "all"\n{good}'
    for channels, size in (
        ("[3, 1000000]", 32),
        ("[3, 3]", huge),
        ("[1000, 1000, 1000]", 4096),
        ("[3, 3]", 0),
        (f"[{huge}, 3]", 8),
    ):
        yield f'{conv}channels = {channels}\nsize = {size}\nlayers = "all"\n{good}'
    for key in ("samples", "starts", "steps", "trials", "kernel", "outputs"):
        for value in (2**60, -1, 0.5, "true", '"many"', 10**400):
            yield f'{conv}channels = [2, 2]\nsize = 4\nlayers = "all"\n{good}{key} = {value}\n'


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.ci)])
def test_absurd_sizes_are_refused_at_once(tmp_path, refused, every):
    refused("verify", "--plan", "none", named="plan")  # imports are done
    before, count = peak(), 0
    for i, experiment in enumerate(list(absurd())[::every]):
        path = tmp_path / f"{i}.toml"
        path.write_text(f"[[experiment]]\n{experiment}")
        start = time.process_time(), time.perf_counter()
        refused("verify", "--plan", path.name)
        # Others may have the processor, but not for long.
        assert time.process_time() - start[0] < 2.0 and time.perf_counter() - start[1] < 20.0
        count += 1
    assert count >= 48 // every and peak() - before < 500


def fuzzed(rng):
    """The good plan with one thing wrong with it, or nearly so."""
    lines = GOOD.strip().splitlines()
    values = [
        "nan",
        "inf",
        "-inf",
        "true",
        "''",
        "[]",
        "{}",
        "[[[]]]",
        "-1",
        "9" * 5000,
        "1e400",
        "[1, 'a']",
        "2020-01-01",
        "0x10",
        "'\\u001b[31m'",
        "[" * 2000,
        "{a = {b = {}}}",
    ]
    i = rng.choice([n for n, line in enumerate(lines) if "=" in line])
    key = lines[i].split(" = ")[0]
    kind = rng.randrange(5)
    if kind == 0:
        lines[i] = f"{key} = {rng.choice(values)}"
    elif kind == 1:
        lines.insert(i, lines[i])
    elif kind == 2:
        lines[i] = lines[i].replace(key, key[:-1] + rng.choice("xyz"), 1)
    elif kind == 3:
        del lines[i]
    else:
        lines[i] = lines[i][: rng.randrange(len(lines[i]))] + rng.choice(["\x00", "\xff", '"', "="])
    return "\n".join(lines)


@pytest.mark.parametrize("rounds", [40, pytest.param(300, marks=pytest.mark.ci)])
def test_fuzzed_plans_are_refused_in_one_line_or_are_plans(tmp_path, refused, rounds):
    rng, wrong = random.Random(0), 0
    for _ in range(rounds):
        text = fuzzed(rng).encode("latin-1")
        path = tmp_path / "plan.toml"
        path.write_bytes(text)
        try:
            plans.load(path)
        except ValueError:
            refused("verify", "--plan", path.name)
            wrong += 1
    assert wrong >= rounds * 2 // 3


# --- paths and texts


def test_names_of_files_are_kept_to(tmp_path, refused):
    (tmp_path / "plan.toml").write_text(GOOD)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    names = [
        "a\0b",
        "x" * 300,
        "no/such/folder",
        "there",
        "link",
        "there/file",
        "/proc/x/y",
        "link/x",
        "dangling",
    ]
    for name in names:
        refused("verify", "--plan", "plan.toml", "--out", name)
        refused("verify", "--plan", "plan.toml", "--out", "new", "--json", name)
        refused("merge", "there", "--out", name)
        refused("report", "there", "--out", name, named="out")
    for part in ("0/2", "3/2", "1/0", "1", "a/b", "1/2/3", "-1/2", "1/9999999999", "\x1b", "1.5/2"):
        refused("verify", "--plan", "plan.toml", f"--part={part}", named="part")
    for option in (
        ["--seconds", "nan"],
        ["--seconds", "0"],
        ["--audit", "1.5"],
        ["--memory", "-1"],
        ["--distributed", "x"],
        ["--distributed", "h:1", "2", "2"],
        ["--resume"],
        ["--part", "1/2", "--distributed"],
    ):
        refused("verify", "--plan", "plan.toml", *option, named=option[0][2:])
    refused("verify", "--plan", "plan.toml", "--part", "1/2", "--json", "j", named="json")
    refused("replay", "there", "--trial", 0, "--save", "x", "--json", "x", named="json")
    assert (tmp_path / "there" / "file").read_text() == "mine"


class Nodes(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}


@functools.cache
def hostile_result():
    title = "<img src=x onerror=alert(1)></script><script>=cmd()\u001b[31m"
    source = plans.reading.tomllib.loads(GOOD)
    (experiment,) = source["experiment"]
    plan = plans.parse(source | {"title": title, "experiment": [experiment | {"title": title}]})
    with with_made_up_block(None, plan) as store:
        return judged(plan, store, runs.begin(plan, None))


def test_texts_of_a_plan_are_inert():
    result = hostile_result()
    source = report.page(result)
    page = Nodes(source)
    assert re.findall("<script.*?</script", source, re.S) == [f"<script>{SCRIPT}</script"]
    assert "img" in page.tags and "<img src=x" not in source
    assert not any(a.startswith("on") for a in page.attributes)
    terminal = io.StringIO()
    report.render(result, Console(file=terminal, width=100))
    assert "\x1b" not in terminal.getvalue() and "onerror" in terminal.getvalue()
    assert "\x1b" not in " ".join(words.caption(result))


def test_texts_of_a_replay_are_inert():
    facts = {
        "trial": 1, "case": 0, "network": "\x1b[31m", "targets": "\x1b", "pruning": "\x1b",
        "amount": "\x1b", "seed": 0, "layers": [{"layer": "a", "weights": 2, "removed": 1}],
        "finite": True, "lower": 0.1, "upper": 0.2, "sampled": 0.1, "same": False,
        "differs": ["\x1b[2J"],
    }  # fmt: skip
    terminal = io.StringIO()
    replay_words.render(facts, Console(file=terminal, width=100))
    assert "\x1b" not in terminal.getvalue()

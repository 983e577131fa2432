"""The store: one SQLite file a run, which may be killed at any moment.

A finished block is committed before the next one is waited for, in a row of its own. Once there
are enough small rows of a case, one row, compressed, takes their place in one transaction: each
block can still be read, compared and dropped by itself. A block counts once, however often it
arrives; what is said of a run is said of the blocks up to the first that is missing. Nothing in
the file is believed: its schema, checksums and every number are checked, the blocks of a damaged
row are named and count as missing.
"""

import contextlib
import functools
import hashlib
import math
import re
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import validation
from jaxprune.engine import database, keys
from jaxprune.engine.packing import (
    FinishedBlock,
    canonical,
    compress,
    decompress,
    pack,
    read_json,
    unpack,
)
from jaxprune.engine.run import Run
from jaxprune.engine.tally import Tally
from jaxprune.types import BrokenInvariant

FORMAT = 3
ROW_BYTES = 2**18
"""Of tallies in one row, before they are compressed: some 80 blocks of one trial, 10 kB. A larger
tally has a row of its own. A damaged row costs its blocks, a page is 4 kB, and DEFLATE looks back
32 kB: larger rows would hardly be smaller together."""

_ROWS_READ = 64  # that are kept in memory: those of merged parts alternate
_SCHEMA = """
CREATE TABLE about (id INTEGER PRIMARY KEY, text TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE cases (id INTEGER PRIMARY KEY, text TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE blocks (id INTEGER PRIMARY KEY, case_id INTEGER NOT NULL, ids TEXT NOT NULL,
 data BLOB NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE audits (id TEXT PRIMARY KEY, time TEXT NOT NULL, blocks INTEGER NOT NULL,
 failure TEXT NOT NULL, answered INTEGER NOT NULL) STRICT;
CREATE TABLE voided (sha256 TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, time TEXT NOT NULL, text TEXT NOT NULL) STRICT;
"""


_NOTE_AUDIT = (
    "INSERT INTO audits VALUES (?,?,?,?,?) "
    "ON CONFLICT DO UPDATE SET answered = max(answered, excluded.answered)"
)


class Store:
    """The blocks of a run, by case and block id.

    Attributes:
      about: what the run is: plain data, fixed when it was made.
      damaged: `(case, block)` of rows whose checksum or counts were wrong; the rows were dropped.
      path: of the file; None if the store is in memory.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, lock=None):
        self._db, self.path, self._lock = connection, path, lock
        self.about: Mapping[str, Any] = {}
        self.damaged: list[tuple[int, int]] = []
        self._cases: dict[int, Mapping[str, Any]] = {}
        # Of each case the row of each block, and the bytes of rows that have room for more.
        self._places: dict[int, dict[int, int]] = {}
        self._small: dict[int, dict[int, int]] = {}
        self._in_row = functools.lru_cache(_ROWS_READ)(self._read_row)

    @classmethod
    def create(cls, path: Path | None, about: Mapping[str, Any]) -> "Store":
        """A new store.

        Args:
          path: of a new file; None for memory.
          about: plain data.

        Raises:
          ValueError: the file exists, or another process is making it.
          OSError: it cannot be written.
        """
        lock = database.locked(path) if path else None
        if path and database.begun(path):
            lock.release()
            raise ValueError(f"run = {str(path)!r}: exists; a new path is needed")
        store = cls(database.connect(path), path, lock)
        # First, and in the file itself: `open` reads it there.
        store._db.execute(f"PRAGMA application_id = {database.APPLICATION}")
        store._keep_log()
        with store._writing():
            for statement in _statements():
                store._db.execute(statement)
            store._db.execute(f"PRAGMA user_version = {FORMAT}")
            store._insert("about", 0, about)
        store.about = read_json(canonical(about))
        return store

    begun = staticmethod(database.begun)

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> "Store":
        """A store that is there.

        Args:
          path: of the file.
          write: to go on with the run, as the only process; without, to read it, even while
            another process writes.

        Raises:
          ValueError: no store, one of another version or damaged, or a process is at work on it.
        """
        if not path.is_file():
            raise ValueError(f"run = {str(path)!r}: no such file")
        with database.refused(path):
            database.check_ours(path)  # before anything of another's file is changed
        lock = database.locked(path) if write else None
        store = None
        try:
            with database.refused(path):
                if not write:
                    database.recover(path)
                store = cls(database.connect(path, "rw" if write else "ro"), path, lock)
                if not write:
                    # One state of the file, whatever another process adds meanwhile.
                    store._db.execute("BEGIN")
                store._read()
                if write:
                    store._keep_log()
        except ValueError:
            if store:
                store._db.close()
            if lock:
                lock.release()
            raise
        return store

    def close(self) -> None:
        """Writes all to the one file, and lets other processes have it."""
        try:
            if self._lock:
                # Folding only saves space: a row that went bad meanwhile is named when it is read.
                with contextlib.suppress(sqlite3.Error, OSError, TypeError, ValueError):
                    with self._writing():
                        self._fold(self._small)
                # Without its log beside it, a file may be read from another host, or copied.
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("PRAGMA journal_mode = DELETE")
        finally:
            self._db.close()
            if self._lock:
                self._lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- cases

    def begin(self, case: int, run: Run, empty: Tally) -> Run:
        """Notes a case's blocks and questions, the first time; later on they are what they were.

        Returns:
          The run in blocks as they were noted.

        Raises:
          ValueError: the case was begun with other trials or questions.
        """
        asked = {
            "trials": run.trials,
            "block": run.block,
            "chunk": run.chunk,
            "eps": empty.eps,
            "cap": empty.cap if math.isfinite(empty.cap) else None,
            "labelled": empty.labelled,
        }
        noted = self._cases.get(case)
        if noted is None:
            with self._writing():
                self._insert("cases", case, asked)
            noted = self._cases[case] = read_json(canonical(asked))
        for name in ("trials", "eps", "cap", "labelled"):
            if canonical(noted[name]) != canonical(asked[name]):
                raise ValueError(f"case {case}: {name} = {asked[name]}, not {noted[name]} as begun")
        return run._replace(block=noted["block"], chunk=noted["chunk"])

    @property
    def cases(self) -> Mapping[int, Mapping[str, Any]]:
        """What `begin` noted, by case."""
        return self._cases

    # --- blocks

    def add(self, case: int, block: int, tally: Tally, device: str, seconds: float) -> None:
        """Keeps a block.

        Raises:
          BrokenInvariant: the block is there, with other results.
          OSError: it cannot be written; what was there before still is.
        """
        new = FinishedBlock(block, tally.trials, device, float(seconds), pack(tally))
        with self._writing():
            self._write(case, self._unknown(case, [new]))
            full = sum(self._small.get(case, {}).values()) >= ROW_BYTES
            self._fold(c for c in self._small if c != case or full)

    def blocks(self, case: int) -> list[int]:
        """Ids of the blocks that are there, rising."""
        return sorted(self._places.get(case, ()))

    def _finished(self, case: int, block: int) -> FinishedBlock:
        return self._in_row(self._places[case][block])[block]

    def _each(self, case: int) -> Iterator[FinishedBlock]:
        return (self._finished(case, block) for block in self.blocks(case))

    def _read_row(self, id: int) -> dict[int, FinishedBlock]:
        (data,) = self._db.execute("SELECT data FROM blocks WHERE id=?", (id,)).fetchone()
        return {block.block: block for block in decompress(data)}

    def _unknown(self, case: int, blocks: Iterable[FinishedBlock]) -> Iterator[FinishedBlock]:
        """Those that are not there yet; one that is must have the same tally."""
        for new in blocks:
            if new.block not in self._places.get(case, ()):
                yield new
            elif self._finished(case, new.block).tally != new.tally:
                raise BrokenInvariant(f"case {case}, block {new.block}: another result than before")

    # Within a transaction:

    def _write(self, case: int, blocks: Iterable[FinishedBlock]) -> None:
        """Adds blocks, as many to a row as it may have."""
        row, size = [], 0
        for block in blocks:
            if row and size + len(block.tally) > ROW_BYTES:
                self._write_row(case, row, size)
                row, size = [], 0
            row.append(block)
            size += len(block.tally)
        if row:
            self._write_row(case, row, size)

    def _write_row(self, case, row, size):
        try:
            values = case, _ids(row), compress(row)
        except ValueError as error:
            raise OSError(0, str(error), str(self.path)) from None
        insert = "INSERT INTO blocks (case_id, ids, data, sha256) VALUES (?,?,?,?)"
        id = self._db.execute(insert, (*values, _row_sum(*values))).lastrowid
        self._place(case, id, [block.block for block in row], size)

    def _place(self, case, id, blocks, size):
        self._places.setdefault(case, {}).update(dict.fromkeys(blocks, id))
        if size <= ROW_BYTES // 2:
            self._small.setdefault(case, {})[id] = size

    def _fold(self, cases: Iterable[int]) -> None:
        """One row of all small ones of a case."""
        for case in list(cases):
            if len(self._small[case]) > 1:
                self._rewrite(case, list(self._small[case]))

    def _remove(self, case: int, blocks: Collection[int]) -> None:
        for row in {self._places[case][block] for block in blocks}:
            self._rewrite(case, [row], without=blocks)

    def _rewrite(self, case, rows, without=()):
        """Writes the blocks of some rows anew."""
        found = {b: block for id in rows for b, block in self._in_row(id).items()}
        for id in rows:
            self._db.execute("DELETE FROM blocks WHERE id=?", (id,))
            self._small.get(case, {}).pop(id, None)
        for block in found:
            del self._places[case][block]
        self._in_row.cache_clear()  # a new row may have the id of an old one
        self._write(case, (found[block] for block in sorted(found) if block not in without))

    def amend(self, **changed: Any) -> None:
        """Says something else of the run."""
        about = {**self.about, **changed}
        with self._writing():
            self._db.execute("DELETE FROM about")
            self._insert("about", 0, about)
        self.about = read_json(canonical(about))

    def take(self, other: "Store") -> None:
        """Copies all cases and blocks of another store of the same run; what either has dropped
        as a bad device's does not come back from the other.

        Raises:
          ValueError: a case was begun in other blocks.
          BrokenInvariant: a block is there, with other results; nothing is copied.
        """
        for case in other.cases.keys() & self.cases.keys():
            if other.cases[case] != self.cases[case]:
                raise ValueError(f"run = {str(other.path)!r}: case {case} in other blocks")
        new = {case: other.cases[case] for case in other.cases.keys() - self.cases.keys()}
        with self._writing():
            for case, noted in new.items():
                self._insert("cases", case, noted)
            for row in other._db.execute("SELECT * FROM voided"):
                self._db.execute("INSERT OR IGNORE INTO voided VALUES (?)", row)
            voided = {sha256 for (sha256,) in self._db.execute("SELECT sha256 FROM voided")}
            is_void = lambda case, block: bool(voided) and _block_sum(case, block) in voided
            for case in list(self._places) if voided else ():
                self._remove(case, {b.block for b in self._each(case) if is_void(case, b)})
            for case in other.cases:
                theirs = (block for block in other._each(case) if not is_void(case, block))
                self._write(case, self._unknown(case, theirs))
            for row in other._db.execute("SELECT * FROM audits"):
                self._db.execute(_NOTE_AUDIT, row)
        self._cases |= new

    def get(self, case: int, block: int) -> Tally:
        """A block that is there."""
        return unpack(self._finished(case, block).tally, self.empty(case))

    def maker(self, case: int, block: int) -> str:
        """The device of a block that is there."""
        return self._finished(case, block).device

    def rows(self, case: int) -> Iterator[tuple[int, Tally, str, float]]:
        """Block, tally, device and seconds of each block that is there, in the order of ids."""
        empty = self.empty(case)
        for block in self._each(case):
            yield block.block, unpack(block.tally, empty), block.device, block.seconds

    def empty(self, case: int) -> Tally:
        """The tally of no block of a case that was begun."""
        noted = self._cases[case]
        cap = math.inf if noted["cap"] is None else noted["cap"]
        return Tally(tuple(noted["eps"]), cap=cap, labelled=noted["labelled"])

    def prefix(self, case: int) -> Iterator[Tally]:
        """Tallies of all blocks up to each, as far as none is missing."""
        tally = self.empty(case)
        for expected, (block, more, _, _) in enumerate(self.rows(case)):
            if block != expected:
                return
            tally += more
            yield tally

    def seconds(self, case: int) -> float:
        """Spent on a case's blocks."""
        return math.fsum(block.seconds for block in self._each(case))

    def void(self, device: str, failure: str) -> int:
        """Drops all blocks of a device, for what an audit found; returns how many."""
        dropped = 0
        with self._writing():
            self._note_audit(0, failure)
            for case in list(self._places):
                theirs = (block for block in self._each(case) if block.device == device)
                sums = {block.block: _block_sum(case, block) for block in theirs}
                insert = "INSERT OR IGNORE INTO voided VALUES (?)"
                self._db.executemany(insert, zip(sums.values()))
                self._remove(case, sums)
                dropped += len(sums)
        return dropped

    # --- audits

    def note_audit(self, blocks: int, *, answers: bool) -> None:
        """Keeps that blocks came out the same, and whether that answers failures before it."""
        with self._writing():
            if answers:
                self._db.execute("UPDATE audits SET answered=1")
            self._note_audit(blocks, "")

    def _note_audit(self, blocks, failure):
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._db.execute(_NOTE_AUDIT, (uuid.uuid4().hex, now, blocks, failure, not failure))

    @property
    def audits(self) -> int:
        """How many there were."""
        return self._db.execute("SELECT count(*) FROM audits").fetchone()[0]

    @property
    def audited(self) -> int:
        """Blocks that came out as before when they were run once more."""
        query = "SELECT coalesce(sum(blocks), 0) FROM audits WHERE failure=''"
        return self._db.execute(query).fetchone()[0]

    @property
    def failed_audit(self) -> str | None:
        """What an audit found that no later one has answered."""
        query = "SELECT min(failure) FROM audits WHERE NOT answered"
        return self._db.execute(query).fetchone()[0]

    # --- verdicts

    def note(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Adds to the history of verdicts."""
        with self._writing():
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            text = canonical(verdicts).decode()
            self._db.execute("INSERT INTO verdicts (time, text) VALUES (?,?)", (now, text))

    def history(self) -> list[tuple[str, Any]]:
        """Time and verdicts, the oldest first."""
        rows = self._db.execute("SELECT time, text FROM verdicts ORDER BY id")
        return [(time, read_json(text)) for time, text in rows]

    # --- the file

    @contextlib.contextmanager
    def _writing(self):
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._find_blocks()  # as they were before
            if isinstance(error, sqlite3.Error):
                raise OSError(0, str(error), str(self.path)) from None
            raise

    def _insert(self, table: str, id: int, value: Any) -> None:
        row = id, canonical(value).decode()
        self._db.execute(f"INSERT INTO {table} VALUES (?,?,?)", (*row, _sum([table, *row])))

    def _keep_log(self):
        # A killed process loses no commit; after a power failure the last ones may be missing.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _read(self) -> None:
        """Everything, checked; damaged blocks are dropped."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != FORMAT:
            raise ValueError(f"format {version}: {FORMAT} is needed")
        schema = self._db.execute("SELECT sql FROM sqlite_master WHERE sql != ''")
        if {sql for (sql,) in schema} != set(_statements()):
            raise ValueError("its tables are not a run's")
        for (line,) in self._db.execute("PRAGMA quick_check(1)"):
            if line != "ok":
                raise ValueError(f"damaged: {line}")
        self.about = self._records("about").get(0)
        if not isinstance(self.about, Mapping):
            raise ValueError("damaged: it does not say what it is about")
        for *texts, blocks, failure, answered in self._db.execute("SELECT * FROM audits"):
            sound = _all(str, *texts, failure) and _all(int, blocks, answered)
            if not sound or not 0 <= blocks < 2**32 or answered not in (0, 1):
                raise ValueError("damaged: audits")
        self._cases = {id: _checked_case(id, noted) for id, noted in self._records("cases").items()}
        damaged = []
        for id, *row, checksum in self._db.execute("SELECT * FROM blocks"):
            case, ids = row[:2]
            named = re.findall(r"\d{1,15}", ids[:ROW_BYTES]) if _all(str, ids) else ()
            if not _all(int, case) or not named:
                raise ValueError("damaged: blocks")
            try:
                sound = checksum == _row_sum(*row) and self._read_blocks(id, *row)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                damaged.append((id,))
                self.damaged += [(case, int(block)) for block in named]
        if damaged and self._lock:
            with self._writing():
                self._db.executemany("DELETE FROM blocks WHERE id=?", damaged)

    def _read_blocks(self, id, case, ids, data):
        """Finds the blocks of a row, all of them or, if one is not sound, none."""
        blocks = decompress(data)
        if ids != _ids(blocks) or not all(self._is_block(case, *block) for block in blocks):
            return False
        found, there = {block.block for block in blocks}, self._places.get(case, {})
        if len(found) < len(blocks) or found & there.keys():
            return False
        self._place(case, id, [b.block for b in blocks], sum(len(b.tally) for b in blocks))
        return True

    def _find_blocks(self):
        """Of rows that are sound; which are small, the next process finds out."""
        self._places, self._small = {}, {}
        self._in_row.cache_clear()
        for id, case, ids in self._db.execute("SELECT id, case_id, ids FROM blocks"):
            self._places.setdefault(case, {}).update(dict.fromkeys(read_json(ids), id))

    def _is_block(self, case, block, trials, device, seconds, packed):
        if not (_all(int, block, trials) and _all(str, device) and _all(float, seconds)):
            return False
        noted = self._cases[case]
        first = block * noted["block"]
        if not (0 <= first < noted["trials"] and 0 <= seconds < math.inf):
            return False
        ids = range(first, min(first + noted["block"], noted["trials"]))
        tally = unpack(packed, self.empty(case))
        return tally.trials == trials == len(ids) and all(id in ids for _, id in tally.worst)

    def _records(self, table: str) -> dict[int, Any]:
        found = {}
        for id, text, checksum in self._db.execute(f"SELECT id, text, sha256 FROM {table}"):
            if not isinstance(text, str) or checksum != _sum([table, id, text]):
                raise ValueError(f"damaged: {table} {id}")
            found[id] = read_json(text)
        return found


def state_hash(tallies: Sequence[Tally]) -> str:
    """SHA-256 of tallies: equal if and only if every count and sum is."""
    return hashlib.sha256(b"\n".join(pack(tally) for tally in tallies)).hexdigest()


def _checked_case(id, noted):
    try:
        trials = validation.integer("trials", noted["trials"], 1, keys.MAX_TRIALS)
        block = validation.integer("block", noted["block"], 1, 2**24)
        chunk = validation.integer("chunk", noted["chunk"], 1, 2**24)
        labelled = validation.integer("labelled", noted["labelled"], 0)
        eps = tuple(validation.real("eps", e, 0.0, math.inf) for e in noted["eps"])
        cap = noted["cap"]
        if cap is not None:
            cap = validation.real("cap", cap, 0.0, math.inf, open=False)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"damaged: case {id}: {error}") from None
    return {
        "trials": trials,
        "block": block,
        "chunk": chunk,
        "eps": eps,
        "cap": cap,
        "labelled": labelled,
    }


def _statements():
    return [statement.strip() for statement in _SCHEMA.split(";") if statement.strip()]


def _sum(row: Sequence[Any]) -> str:
    return hashlib.sha256(canonical(row)).hexdigest()


def _ids(row: Sequence[FinishedBlock]) -> str:
    return canonical([block.block for block in row]).decode()


def _row_sum(case: int, ids: str, data: bytes) -> str:
    return hashlib.sha256(canonical([case, ids]) + data).hexdigest()


def _block_sum(case: int, block: FinishedBlock) -> str:
    return hashlib.sha256(canonical([case, *block[:-1]]) + block.tally).hexdigest()


def _all(kind, *values):
    return all(type(value) is kind for value in values)

"""The store: one SQLite file a run, which may be killed at any moment.

A finished block is one row with a checksum, committed before the next one is waited for. A block
counts once, however often it arrives; what is said of a run is said of the blocks up to the
first that is missing. Nothing in the file is believed: its schema, checksums and every number
are checked, a damaged block is named and counts as missing.
"""

import contextlib
import hashlib
import math
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import validation
from jaxprune.engine import keys
from jaxprune.engine.packing import canonical, pack, read_json, unpack
from jaxprune.engine.run import Run
from jaxprune.engine.tally import Tally
from jaxprune.types import BrokenInvariant

FORMAT = 2
_APPLICATION = 0x6A707275
_MAX_VALUE = 2**24
_SCHEMA = """
CREATE TABLE about (id INTEGER PRIMARY KEY, text TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE cases (id INTEGER PRIMARY KEY, text TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE blocks (case_id INTEGER NOT NULL, block INTEGER NOT NULL, trials INTEGER NOT NULL,
 tally TEXT NOT NULL, device TEXT NOT NULL, seconds REAL NOT NULL, sha256 TEXT NOT NULL,
 PRIMARY KEY (case_id, block)) STRICT, WITHOUT ROWID;
CREATE TABLE errors (case_id INTEGER NOT NULL, device TEXT NOT NULL, error REAL NOT NULL,
 PRIMARY KEY (case_id, device)) STRICT, WITHOUT ROWID;
CREATE TABLE audits (id TEXT PRIMARY KEY, time TEXT NOT NULL, blocks INTEGER NOT NULL,
 failure TEXT NOT NULL, answered INTEGER NOT NULL) STRICT;
CREATE TABLE voided (sha256 TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, time TEXT NOT NULL, text TEXT NOT NULL) STRICT;
"""


_NOTE_ERROR = (
    "INSERT INTO errors VALUES (?,?,?) ON CONFLICT DO UPDATE SET error = max(error, excluded.error)"
)
_NOTE_AUDIT = (
    "INSERT INTO audits VALUES (?,?,?,?,?) "
    "ON CONFLICT DO UPDATE SET answered = max(answered, excluded.answered)"
)


class Store:
    """The blocks of a run, by case and block id.

    Attributes:
      about: what the run is: plain data, fixed when it was made.
      damaged: `(case, block)` of rows whose checksum or counts were wrong; they were dropped.
      path: of the file; None if the store is in memory.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, lock=None):
        self._db, self.path, self._lock = connection, path, lock
        self.about: Mapping[str, Any] = {}
        self.damaged: list[tuple[int, int]] = []
        self._cases: dict[int, Mapping[str, Any]] = {}

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
        lock = _locked(path) if path else None
        if path and cls.begun(path):
            lock.release()
            raise ValueError(f"run = {str(path)!r}: exists; a new path is needed")
        store = cls(_connect(path), path, lock)
        # First, and in the file itself: `open` reads it there.
        store._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        store._keep_log()
        with store._writing():
            for statement in _statements():
                store._db.execute(statement)
            store._db.execute(f"PRAGMA user_version = {FORMAT}")
            store._insert("about", 0, about)
        store.about = read_json(canonical(about))
        return store

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether there is a file, other than of a process killed before it wrote anything."""
        if not path.exists():
            return False
        with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(path, "rw")) as db:
            return db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,)
        return True

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
        with _refused(path):
            _check_ours(path)  # before anything of another's file is changed
        lock = _locked(path) if write else None
        store = None
        try:
            with _refused(path):
                if not write:
                    _recover(path)
                store = cls(_connect(path, "rw" if write else "ro"), path, lock)
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
        if self._lock:
            # Without its log beside it, a file may be read from another host, or copied.
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode = DELETE")
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
        row = case, block, tally.trials, pack(tally).decode(), device, float(seconds)
        with self._writing():
            self._insert_block((*row, _sum(row)))

    def blocks(self, case: int) -> list[int]:
        """Ids of the blocks that are there, rising."""
        rows = self._db.execute("SELECT block FROM blocks WHERE case_id=? ORDER BY block", (case,))
        return [block for (block,) in rows]

    def _insert_block(self, row):
        case, block, _, packed, *_ = row
        new = self._db.execute("INSERT OR IGNORE INTO blocks VALUES (?,?,?,?,?,?,?)", row)
        if not new.rowcount and self._packed(case, block) != packed:
            raise BrokenInvariant(f"case {case}, block {block}: another result than before")

    def _packed(self, case, block):
        where = "SELECT tally FROM blocks WHERE case_id=? AND block=?"
        return self._db.execute(where, (case, block)).fetchone()[0]

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
            self._db.execute("DELETE FROM blocks WHERE sha256 IN (SELECT sha256 FROM voided)")
            voided = {sha256 for (sha256,) in self._db.execute("SELECT sha256 FROM voided")}
            for row in other._db.execute("SELECT * FROM blocks"):
                if row[-1] not in voided:
                    self._insert_block(row)
            for row in other._db.execute("SELECT * FROM errors"):
                self._db.execute(_NOTE_ERROR, row)
            for row in other._db.execute("SELECT * FROM audits"):
                self._db.execute(_NOTE_AUDIT, row)
        self._cases |= new

    def get(self, case: int, block: int) -> Tally:
        """A block that is there."""
        return unpack(self._packed(case, block), self.empty(case))

    def rows(self, case: int) -> Iterator[tuple[int, Tally, str, float]]:
        """Block, tally, device and seconds of each block that is there, in the order of ids."""
        empty = self.empty(case)
        rows = self._db.execute(
            "SELECT block, tally, device, seconds FROM blocks WHERE case_id=? ORDER BY block",
            (case,),
        )
        for block, packed, device, seconds in rows:
            yield block, unpack(packed, empty), device, seconds

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
        query = "SELECT coalesce(sum(seconds), 0.0) FROM blocks WHERE case_id=?"
        return self._db.execute(query, (case,)).fetchone()[0]

    def void(self, device: str, failure: str) -> int:
        """Drops all blocks of a device, for what an audit found; returns how many."""
        with self._writing():
            self._note_audit(0, failure)
            dropped = "INSERT OR IGNORE INTO voided SELECT sha256 FROM blocks WHERE device=?"
            self._db.execute(dropped, (device,))
            return self._db.execute("DELETE FROM blocks WHERE device=?", (device,)).rowcount

    def note_error(self, case: int, device: str, error: float) -> None:
        """Keeps what float32 costs a case's distances on a device, see `engine.float32_error`."""
        with self._writing():
            self._db.execute(_NOTE_ERROR, (case, device, error))

    def errors(self, case: int) -> dict[str, float]:
        """The error noted of each device, at most 1."""
        query = "SELECT device, error FROM errors WHERE case_id=? ORDER BY device"
        return dict(self._db.execute(query, (case,)))

    def float32_error(self, case: int) -> float | None:
        """The largest error of a device that ran a block of the case; None if none is noted."""
        query = (
            "SELECT max(error) FROM errors WHERE case_id=?1 "
            "AND device IN (SELECT device FROM blocks WHERE case_id=?1)"
        )
        return self._db.execute(query, (case,)).fetchone()[0]

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
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(self.path)) from None

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
        for case, device, error in self._db.execute("SELECT * FROM errors"):
            sound = _all(int, case) and _all(str, device) and _all(float, error)
            if not sound or not 0 <= error <= 1:
                raise ValueError("damaged: errors")
        for *texts, blocks, failure, answered in self._db.execute("SELECT * FROM audits"):
            sound = _all(str, *texts, failure) and _all(int, blocks, answered)
            if not sound or not 0 <= blocks < 2**32 or answered not in (0, 1):
                raise ValueError("damaged: audits")
        self._cases = {id: _checked_case(id, noted) for id, noted in self._records("cases").items()}
        for *row, checksum in self._db.execute("SELECT * FROM blocks"):
            case, block = row[:2]
            if not _all(int, case, block):
                raise ValueError("damaged: blocks")
            try:
                sound = checksum == _sum(row) and self._is_block(*row)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                self.damaged.append((case, block))
        if self.damaged:
            self._drop(self.damaged)

    def _is_block(self, case, block, trials, packed, device, seconds):
        if not (_all(int, trials) and _all(str, packed, device) and _all(float, seconds)):
            return False
        noted = self._cases[case]
        first = block * noted["block"]
        if not (0 <= first < noted["trials"] and 0 <= seconds < math.inf):
            return False
        ids = range(first, min(first + noted["block"], noted["trials"]))
        tally = unpack(packed, self.empty(case))
        return tally.trials == trials == len(ids) and all(id in ids for _, id in tally.worst)

    def _drop(self, blocks):
        """From the file or, where it is only read, from a copy in memory."""
        if not self._lock:
            copy = _connect(None)
            self._db.backup(copy)
            self._db.close()
            self._db = copy
        delete = "DELETE FROM {} WHERE case_id=? AND block=?"
        with self._writing():
            if self._db.executemany(delete.format("blocks"), blocks).rowcount >= len(blocks):
                return
            # A damaged key is out of its order, where no search finds it.
            self._db.execute("CREATE TEMP TABLE sound AS SELECT * FROM blocks")
            self._db.executemany(delete.format("sound"), blocks)
            self._db.execute("DELETE FROM blocks")
            self._db.execute("INSERT INTO blocks SELECT * FROM sound")
            self._db.execute("DROP TABLE sound")

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


def _locked(path):
    """A lock that the system takes back when the process ends, however it ends."""
    import filelock  # not before a run is kept: importing the package stays light

    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(f"run = {str(path)!r}: another process is at work on it") from None
    return lock


def _connect(path, mode="rwc"):
    if path is None:
        return sqlite3.connect(":memory:", isolation_level=None)
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    # A damaged text is one of another checksum.
    db.text_factory = lambda text: text.decode("utf-8", "replace")
    return db


def _check_ours(path):
    """By the file's own header: SQLite might recover, and so change, what it opens."""
    with path.open("rb") as file:
        header = file.read(100)
    if header[:15] != b"SQLite format 3" or header[68:72] != _APPLICATION.to_bytes(4, "big"):
        raise ValueError("no run of jaxprune")


def _recover(path):
    """Undoes what a process was at when it was killed, which who only reads cannot."""
    if path.with_name(path.name + "-journal").exists():
        with contextlib.closing(_connect(path, "rw")) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _all(kind, *values):
    return all(type(value) is kind for value in values)


@contextlib.contextmanager
def _refused(path):
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ValueError(f"run = {str(path)!r}: no run, or damaged: {error}") from None

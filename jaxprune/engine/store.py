"""The store: one SQLite file a run, which may be killed at any moment.

A finished block is committed before the next one is waited for, in a row of its own. Once there
are enough small rows of a case, one row, compressed, takes their place in one transaction: each
block can still be read, compared and dropped by itself. A block counts once, however often it
arrives; what is said of a run is said of the blocks up to the first that is missing. Nothing in
the file is believed: its schema, checksums and every number are checked. A checksum covers all of a
row, its key included. The blocks of a damaged row are named and count as missing; who goes on with
the run writes the file anew without it, so that no row is ever deleted for the key of another.
"""

import contextlib
import hashlib
import math
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import files, validation
from jaxprune.engine import database, keys
from jaxprune.engine.packing import FinishedBlock, canonical, pack, unpack
from jaxprune.engine.records import Records
from jaxprune.engine.rows import SCHEMA, Rows
from jaxprune.engine.run import Run
from jaxprune.engine.tally import Tally
from jaxprune.types import BrokenInvariant

FORMAT = 4
_FACTS, _VERDICTS = "facts", "verdicts"
_TABLES = Records.schema(_FACTS), Records.schema(_VERDICTS), SCHEMA
_ABOUT, _CASE, _AUDIT, _VOID = "about", "case", "audit", "void"


class Store:
    """The blocks of a run, by case and block id.

    Attributes:
      about: what the run is: plain data, fixed when it was made.
      damaged: `(case, block)` of rows whose checksum or counts were wrong; they count as missing.
      path: of the file; None if the store is in memory.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None):
        self._db, self.path = connection, path
        self._lock: Any = None
        self._place: tuple[int, int] | None = None
        self.about: Mapping[str, Any] = {}
        self.damaged: list[tuple[int, int]] = []
        self._cases: dict[int, Mapping[str, Any]] = {}
        self._facts, self._history = Records(connection, _FACTS), Records(connection, _VERDICTS)
        self._rows = Rows(connection)

    @classmethod
    def create(cls, path: Path | None, about: Mapping[str, Any]) -> "Store":
        """A new store; its file appears whole.

        Args:
          path: of a new file; None for memory.
          about: plain data.

        Raises:
          ValueError: the file exists, or what SQLite would take for its log or journal; or another
            process has opened it at once.
          OSError: it cannot be written.
        """
        if path is None:
            store = cls(database.in_memory(), None)
            with store._writing():
                _begin(store._db, about)
            store._read()
            return store
        try:
            files.refuse_existing(path)
            database.check_alone(path)
            with database.new_database(path, new=True) as db:
                _begin(db, about)
        except FileExistsError:
            raise ValueError(f"run = {str(path)!r}: exists; a new path is needed") from None
        return cls.open(path, write=True)

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> "Store":
        """A store that is there.

        Args:
          path: of the file.
          write: to go on with the run, as the only process; without, to read it as it is now, even
            while another process writes.

        Raises:
          ValueError: no store, one of another version or damaged, or a process is at work on it;
            the file and what lies beside it are as they were.
          OSError: the disk is full, or the folder for temporary files cannot be written.
        """
        if not path.is_file():
            raise ValueError(f"run = {str(path)!r}: no such file")
        with database.refused(path):
            database.check_ours(path)
            if write and path.is_symlink():
                raise ValueError("a symbolic link; the file itself is needed")
        with contextlib.ExitStack() as undo:
            lock = database.locked(path) if write else None
            if lock:
                undo.callback(lock.release)
            with database.refused(path):
                store = cls(database.snapshot(path), path)
                undo.callback(lambda: store._db.close())
                store._read()
                if lock:
                    store._go_on(lock)
            undo.pop_all()
        return store

    def _go_on(self, lock):
        """Writes to the file in which everything was read, without what was damaged."""
        ready = database.apply_log(self.path)
        if self.damaged or self._history.damaged or not ready:
            with database.new_database(self.path, new=False) as db:
                _make_tables(db)
                for table in self._tables:
                    table.copy(db)
        self._db.close()
        self._place = database.file_identity(self.path)
        self._db, self._lock = database.in_place(self.path), lock
        for table in self._tables:
            table.use(self._db)

    @property
    def _tables(self):
        return self._facts, self._history, self._rows

    def close(self) -> None:
        """Writes all to the one file, and lets other processes have it."""
        try:
            if self._lock:
                # Folding only saves space: a row that went bad meanwhile is named when it is read.
                with contextlib.suppress(sqlite3.Error, OSError, TypeError, ValueError):
                    with self._writing():
                        self._rows.fold_all()
        finally:
            self._db.close()  # with which SQLite removes the log, unless the file was moved
            if self._lock:
                self._lock.release()

    def check_place(self) -> None:
        """Refuses to write on where the file is no longer at its path.

        Raises:
          Displaced: it was moved, replaced or removed while the run was at work.
        """
        if self._place and database.file_identity(self.path) != self._place:
            raise database.displaced_error(self.path)

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
                self._facts.add(_CASE, {"case": case, **asked})
            noted = self._cases[case] = _checked_case({"case": case, **asked})[1]
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
            self._rows.write(case, self._unknown(case, [new]))
            self._rows.fold_full(case)

    def blocks(self, case: int) -> list[int]:
        """Ids of the blocks that are there, rising."""
        return self._rows.blocks(case)

    def _unknown(self, case: int, blocks: Iterable[FinishedBlock]) -> Iterator[FinishedBlock]:
        """Those that are not there yet; one that is must have the same tally."""
        for new in blocks:
            if (case, new.block) not in self._rows:
                yield new
            elif self._rows.get(case, new.block).tally != new.tally:
                raise BrokenInvariant(f"case {case}, block {new.block}: another result than before")

    def amend(self, **changed: Any) -> None:
        """Says something else of the run."""
        about = {**self.about, **changed}
        with self._writing():
            self._facts.replace(_ABOUT, about)
        (self.about,) = self._facts.of(_ABOUT)

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
        with self._writing():
            for noted in other._facts.of(_CASE):
                if noted["case"] not in self._cases:
                    self._facts.add(_CASE, noted)
            for kind in (_AUDIT, _VOID):
                known = set(map(canonical, self._facts.of(kind)))
                for value in other._facts.of(kind):
                    if canonical(value) not in known:
                        self._facts.add(kind, value)
            void = set(self._facts.of(_VOID))
            is_void = lambda case, block: bool(void) and _block_sum(case, block) in void
            for case in self._rows.cases() if void else ():
                bad = {b.block for b in self._rows.each(case) if is_void(case, b)}
                self._rows.remove(case, bad)
            for case in other.cases:
                theirs = (block for block in other._rows.each(case) if not is_void(case, block))
                self._rows.write(case, self._unknown(case, theirs))
        self._cases |= other.cases

    def get(self, case: int, block: int) -> Tally:
        """A block that is there."""
        return unpack(self._rows.get(case, block).tally, self.empty(case))

    def maker(self, case: int, block: int) -> str:
        """The device of a block that is there."""
        return self._rows.get(case, block).device

    def rows(self, case: int) -> Iterator[tuple[int, Tally, str, float]]:
        """Block, tally, device and seconds of each block that is there, in the order of ids."""
        empty = self.empty(case)
        for block in self._rows.each(case):
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
        return math.fsum(block.seconds for block in self._rows.each(case))

    def void(self, device: str, failure: str) -> int:
        """Drops all blocks of a device, for what an audit found; returns how many."""
        dropped = 0
        with self._writing():
            self._note_audit(0, failure)
            for case in self._rows.cases():
                theirs = [block for block in self._rows.each(case) if block.device == device]
                for block in theirs:
                    self._facts.add(_VOID, _block_sum(case, block))
                self._rows.remove(case, {block.block for block in theirs})
                dropped += len(theirs)
        return dropped

    # --- audits

    def note_audit(self, blocks: int, *, answers: bool) -> None:
        """Keeps that blocks came out the same, and whether that answers failures before it."""
        with self._writing():
            self._note_audit(blocks, "", self._unanswered() if answers else ())

    def _note_audit(self, blocks, failure, answers=()):
        audit = {"id": uuid.uuid4().hex, "time": _now(), "blocks": blocks, "failure": failure}
        self._facts.add(_AUDIT, audit | {"answers": list(answers)})

    def _unanswered(self) -> dict[str, str]:
        """What audits found, by their ids, that none after them has answered."""
        audits = self._facts.of(_AUDIT)
        answered = {id for audit in audits for id in audit["answers"]}
        return {a["id"]: a["failure"] for a in audits if a["failure"] and a["id"] not in answered}

    @property
    def audits(self) -> int:
        """How many there were."""
        return len(self._facts.of(_AUDIT))

    @property
    def audited(self) -> int:
        """Blocks that came out as before when they were run once more."""
        return sum(audit["blocks"] for audit in self._facts.of(_AUDIT) if not audit["failure"])

    @property
    def failed_audit(self) -> str | None:
        """What an audit found that no later one has answered."""
        return min(self._unanswered().values(), default=None)

    # --- verdicts

    def note(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Adds to the history of verdicts."""
        with self._writing():
            self._history.add(_VERDICTS, [_now(), verdicts])

    def history(self) -> list[tuple[str, Any]]:
        """Time and verdicts, the oldest first. Nothing rests on them: damaged ones are dropped."""
        return [(time, cells) for time, cells in self._history.of(_VERDICTS)]

    # --- the file

    @contextlib.contextmanager
    def _writing(self):
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self.check_place()
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # as they were before
                self._facts.read()
                self._history.read()
                self._rows.find()
            if isinstance(error, sqlite3.Error):
                raise OSError(0, str(error), str(self.path)) from None
            raise

    def _read(self) -> None:
        """Everything, checked; damaged blocks count as missing."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != FORMAT:
            raise ValueError(f"format {version}: {FORMAT} is needed")
        query = "SELECT sql FROM sqlite_master WHERE sql != ''"
        schema = [sql for (sql,) in self._db.execute(query)]
        if len(schema) != len(_TABLES) or set(schema) != set(_TABLES):
            raise ValueError("its tables are not a run's")
        for (line,) in self._db.execute("PRAGMA integrity_check(1)"):
            if line != "ok":
                raise ValueError(f"damaged: {line}")
        self._facts.read()
        self._history.read()
        if self._facts.damaged:
            raise ValueError(f"damaged: what it says of itself, row {self._facts.damaged[0]}")
        self._check_facts()
        self._rows.read(self._is_block)
        self.damaged = list(self._rows.damaged)

    def _check_facts(self):
        about, cases = self._facts.of(_ABOUT), self._facts.of(_CASE)
        if len(about) != 1 or not isinstance(about[0], Mapping):
            raise ValueError("damaged: it does not say what it is about")
        self.about = about[0]
        self._cases = dict(map(_checked_case, cases))
        if len(self._cases) < len(cases):
            raise ValueError("damaged: a case that was begun twice")
        for audit in self._facts.of(_AUDIT):
            if not _is_audit(audit):
                raise ValueError("damaged: audits")
        if not all(isinstance(sha256, str) for sha256 in self._facts.of(_VOID)):
            raise ValueError("damaged: blocks that were dropped")
        if not all(_is(entry, str, list) for entry in self._history.of(_VERDICTS)):
            raise ValueError("damaged: verdicts")

    def _is_block(self, case: int, found: FinishedBlock) -> bool:
        """Whether a finished block, read from a file, can be one of the run."""
        if not _is(list(found), int, int, str, float, bytes) or case not in self._cases:
            return False
        noted = self._cases[case]
        first = found.block * noted["block"]
        if not (0 <= first < noted["trials"] and 0 <= found.seconds < math.inf):
            return False
        ids = range(first, min(first + noted["block"], noted["trials"]))
        tally = unpack(found.tally, self.empty(case))
        same = tally.trials == found.trials == len(ids)
        return same and all(id in ids for _, id in tally.worst)


def state_hash(tallies: Sequence[Tally]) -> str:
    """SHA-256 of tallies: equal if and only if every count and sum is."""
    return hashlib.sha256(b"\n".join(pack(tally) for tally in tallies)).hexdigest()


def _begin(db, about):
    """A run of which nothing is known but what it is."""
    _make_tables(db)
    Records(db, _FACTS).add(_ABOUT, about)


def _make_tables(db):
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {FORMAT}")


def _checked_case(noted):
    try:
        case = validation.integer("case", noted["case"], 0)
        trials = validation.integer("trials", noted["trials"], 1, keys.MAX_TRIALS)
        block = validation.integer("block", noted["block"], 1, 2**24)
        chunk = validation.integer("chunk", noted["chunk"], 1, 2**24)
        labelled = validation.integer("labelled", noted["labelled"], 0)
        eps = tuple(validation.real("eps", e, 0.0, math.inf) for e in noted["eps"])
        cap = noted["cap"]
        if cap is not None:
            cap = validation.real("cap", cap, 0.0, math.inf, open=False)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"damaged: a case: {error}") from None
    return case, {
        "trials": trials,
        "block": block,
        "chunk": chunk,
        "eps": eps,
        "cap": cap,
        "labelled": labelled,
    }


def _is_audit(audit):
    names = "id", "time", "failure", "blocks", "answers"
    return (
        isinstance(audit, Mapping)
        and audit.keys() == set(names)
        and _is([audit[name] for name in names], str, str, str, int, list)
        and 0 <= audit["blocks"] < 2**32
        and all(isinstance(id, str) for id in audit["answers"])
    )


def _is(values, *kinds):
    """Whether a list has values of just these types."""
    same = isinstance(values, list) and len(values) == len(kinds)
    return same and all(type(v) is kind for v, kind in zip(values, kinds, strict=True))


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _block_sum(case: int, block: FinishedBlock) -> str:
    return hashlib.sha256(canonical([case, *block[:-1]]) + block.tally).hexdigest()

"""The blocks of a run as rows of a table, small ones of a case many to a row, compressed."""

import errno
import functools
import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator

from jaxprune.engine import database
from jaxprune.engine.packing import FinishedBlock, canonical, compress, decompress, read_json
from jaxprune.engine.records import MAX_ID

ROW_BYTES = 2**18
"""Of tallies in one row, before they are compressed: some 80 blocks of one trial, 10 kB. A larger
tally has a row of its own. A damaged row costs its blocks, a page is 4 kB, and DEFLATE looks back
32 kB: larger rows would hardly be smaller together."""

SCHEMA = """CREATE TABLE blocks (id INTEGER PRIMARY KEY, case_id INTEGER NOT NULL,
 ids TEXT NOT NULL, data BLOB NOT NULL, sha256 TEXT NOT NULL) STRICT"""

_ROWS_READ = 64  # that are kept in memory: those of merged parts alternate
_INSERT = "INSERT INTO blocks VALUES (?,?,?,?,?)"


class Rows:
    """Blocks by case and id.

    Attributes:
      damaged: `(case, block)` of rows that are not sound, as far as they can be read; these rows
        are as if they were not there.
    """

    def __init__(self, db: sqlite3.Connection):
        self._db = db
        self.damaged: list[tuple[int, int]] = []
        # Of each case the row of each block, and the bytes of rows that have room for more.
        self._places: dict[int, dict[int, int]] = {}
        self._small: dict[int, dict[int, int]] = {}
        self._next = 0
        self._in_row = functools.lru_cache(_ROWS_READ)(self._read_row)

    def read(self, is_block: Callable[[int, FinishedBlock], bool]) -> None:
        """Reads the whole table.

        Args:
          is_block: whether a block of a case can be one of the run.

        Raises:
          ValueError: a damaged row does not say which blocks it had.
        """
        seen: set[int] = set()
        for id, row in database.rows(self._db, "blocks"):
            try:
                sound = id not in seen and 0 <= id < MAX_ID and self._take(id, row, is_block)
            except (ValueError, KeyError, TypeError):
                sound = False
            seen.add(id)
            if not sound:
                self.damaged += _named(row)
        self._next = max((id for id in seen if 0 <= id < MAX_ID), default=-1) + 1

    def _take(self, id, row, is_block):
        """Finds the blocks of a row, all of them or, if one is not sound, none."""
        case, blocks = row[0], _opened(id, row)
        found, there = {block.block for block in blocks}, self._places.get(case, {})
        if len(found) < len(blocks) or found & there.keys():
            return False
        if not all(is_block(case, block) for block in blocks):
            return False
        self._place(case, id, [b.block for b in blocks], sum(len(b.tally) for b in blocks))
        return True

    def find(self) -> None:
        """Which blocks there are, after a transaction that failed; the next process finds out which
        rows are small."""
        self._places, self._small = {}, {}
        self._in_row.cache_clear()
        for id, case, ids in self._db.execute("SELECT id, case_id, ids FROM blocks"):
            self._places.setdefault(case, {}).update(dict.fromkeys(read_json(ids), id))

    def cases(self) -> list[int]:
        """Cases of which there are blocks."""
        return list(self._places)

    def blocks(self, case: int) -> list[int]:
        """Ids of the blocks that are there, rising."""
        return sorted(self._places.get(case, ()))

    def __contains__(self, block: tuple[int, int]) -> bool:
        return block[1] in self._places.get(block[0], ())

    def get(self, case: int, block: int) -> FinishedBlock:
        """A block that is there.

        Raises:
          ValueError: its row was damaged since it was read.
        """
        return self._in_row(self._places[case][block])[block]

    def each(self, case: int) -> Iterator[FinishedBlock]:
        """All blocks of a case that are there, in the order of ids."""
        return (self.get(case, block) for block in self.blocks(case))

    def copy(self, db: sqlite3.Connection) -> None:
        """Writes all sound rows into the same table of another database."""
        for id in sorted({id for ids in self._places.values() for id in ids.values()}):
            row = self._db.execute("SELECT * FROM blocks WHERE id=?", (id,)).fetchone()
            db.execute(_INSERT, row)

    def use(self, db: sqlite3.Connection) -> None:
        """Goes on in another database that has the same rows."""
        self._db = db

    # Within a transaction:

    def write(self, case: int, blocks: Iterable[FinishedBlock]) -> None:
        """Adds blocks, as many to a row as it may have.

        Raises:
          OSError: a block is larger than any may be.
        """
        row, size = [], 0
        for block in blocks:
            if row and size + len(block.tally) > ROW_BYTES:
                self._write_row(case, row, size)
                row, size = [], 0
            row.append(block)
            size += len(block.tally)
        if row:
            self._write_row(case, row, size)

    def fold(self, case: int) -> None:
        """One row of all small ones of a case."""
        if len(small := self._small.get(case, {})) > 1:
            self._rewrite(case, list(small))

    def fold_full(self, case: int) -> None:
        """Folds the other cases, and this one once its small rows are enough for a large one."""
        full = sum(self._small.get(case, {}).values()) >= ROW_BYTES
        for other in list(self._small):
            if other != case or full:
                self.fold(other)

    def fold_all(self) -> None:
        """Folds every case."""
        for case in list(self._small):
            self.fold(case)

    def remove(self, case: int, blocks: Collection[int]) -> None:
        """Drops blocks that are there."""
        for row in {self._places[case][block] for block in blocks}:
            self._rewrite(case, [row], without=blocks)

    def _write_row(self, case, row, size):
        try:
            values = case, ids_of(row), compress(row)
        except ValueError as error:
            raise OSError(errno.EFBIG, str(error)) from None
        id, self._next = self._next, self._next + 1
        self._db.execute(_INSERT, (id, *values, row_sum(id, *values)))
        self._place(case, id, [block.block for block in row], size)

    def _place(self, case, id, blocks, size):
        self._places.setdefault(case, {}).update(dict.fromkeys(blocks, id))
        if size <= ROW_BYTES // 2:
            self._small.setdefault(case, {})[id] = size

    def _rewrite(self, case, rows, without=()):
        """Writes the blocks of some rows anew."""
        found = {b: block for id in rows for b, block in self._in_row(id).items()}
        for id in rows:
            self._db.execute("DELETE FROM blocks WHERE id=?", (id,))
            self._small.get(case, {}).pop(id, None)
        for block in found:
            del self._places[case][block]
        self.write(case, (found[block] for block in sorted(found) if block not in without))

    def _read_row(self, id):
        row = self._db.execute("SELECT * FROM blocks WHERE id=?", (id,)).fetchone()
        return {block.block: block for block in _opened(id, row[1:])}


def _opened(id, row):
    """The blocks of a row.

    Raises:
      ValueError: its checksum, which its key is part of, or its data are wrong.
      TypeError: there is no such row.
    """
    case, ids, data, sha256 = row
    if row_sum(id, case, ids, data) != sha256:
        raise ValueError("a row of blocks has another checksum")
    blocks = decompress(data)
    if ids_of(blocks) != ids:
        raise ValueError("a row has other blocks than it says")
    return blocks


def _named(row):
    """The blocks that a damaged row says it had."""
    case, ids = row[:2] if row else (None, None)
    named = re.findall(r"\d{1,15}", ids[:ROW_BYTES]) if isinstance(ids, str) else ()
    if type(case) is not int or not named:
        raise ValueError("damaged: blocks")
    return [(case, int(block)) for block in named]


def ids_of(row: list[FinishedBlock]) -> str:
    """The ids of the blocks of a row, as the row says them."""
    return canonical([block.block for block in row]).decode()


def row_sum(id: int, case: int, ids: str, data: bytes) -> str:
    """The checksum of a row: of its key, its case, and all of its blocks."""
    return database.checksum("blocks", id, case, ids, data=data)

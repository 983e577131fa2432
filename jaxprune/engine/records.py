"""What a run says of itself beside its blocks: plain data of some kind, each with a checksum."""

import sqlite3
from typing import Any

from jaxprune.engine.database import checksum, rows
from jaxprune.engine.packing import canonical, read_json

MAX_ID = 2**53


class Records:
    """A table of plain data, in the order in which it was noted.

    Attributes:
      damaged: keys of rows whose checksum was wrong, when the table was last read.
    """

    def __init__(self, db: sqlite3.Connection, table: str):
        self._db, self._table = db, table
        self.damaged: list[int] = []
        self._known: dict[int, tuple[str, Any]] = {}
        self._next = 0

    @staticmethod
    def schema(table: str) -> str:
        """The statement that makes such a table."""
        columns = "id INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, sha256 TEXT"
        return f"CREATE TABLE {table} ({columns} NOT NULL) STRICT"

    def read(self) -> None:
        """Reads the table anew."""
        self._known, self.damaged = {}, []
        for id, row in rows(self._db, self._table):
            try:
                kind, text, sha256 = row
                if id in self._known or not 0 <= id < MAX_ID:
                    raise ValueError("a key that stands twice, or none of ours")
                if checksum(self._table, id, kind, text) != sha256:
                    raise ValueError("another checksum")
                self._known[id] = kind, read_json(text)
            except (TypeError, ValueError):
                self.damaged.append(id)
        self._next = max(self._known, default=-1) + 1

    def of(self, kind: str) -> list[Any]:
        """What was noted of a kind, the oldest first."""
        return [value for known, value in self._known.values() if known == kind]

    # Within a transaction:

    def add(self, kind: str, value: Any) -> None:
        """Notes plain data."""
        id, self._next = self._next, self._next + 1
        self._insert(self._db, id, kind, value)
        self._known[id] = kind, read_json(canonical(value))

    def replace(self, kind: str, value: Any) -> None:
        """Notes plain data in place of all of its kind."""
        for id in [id for id, (known, _) in self._known.items() if known == kind]:
            self._db.execute(f"DELETE FROM {self._table} WHERE id=?", (id,))
            del self._known[id]
        self.add(kind, value)

    def copy(self, db: sqlite3.Connection) -> None:
        """Writes all that was read into the same table of another database."""
        for id, (kind, value) in self._known.items():
            self._insert(db, id, kind, value)

    def use(self, db: sqlite3.Connection) -> None:
        """Goes on in another database that has the same records."""
        self._db = db

    def _insert(self, db, id, kind, value):
        text = canonical(value).decode()
        row = id, kind, text, checksum(self._table, id, kind, text)
        db.execute(f"INSERT INTO {self._table} VALUES (?,?,?,?)", row)

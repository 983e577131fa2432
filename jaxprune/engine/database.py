"""The file of a run: one process writes it, others read it, and another program's is refused."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

APPLICATION = 0x6A707275
_MAX_VALUE = 2**24


def begun(path: Path) -> bool:
    """Whether there is a file, other than of a process killed before it wrote anything."""
    if not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(path, "rw")) as db:
        return db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,)
    return True


def connect(path: Path | None, mode: str = "rwc") -> sqlite3.Connection:
    """A connection, by SQLite's own name of a mode; to memory without a path."""
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


def locked(path: Path):
    """A lock that the system takes back when the process ends, however it ends.

    Raises:
      ValueError: another process has it.
    """
    import filelock  # not before a run is kept: importing the package stays light

    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(f"run = {str(path)!r}: another process is at work on it") from None
    return lock


def check_ours(path: Path) -> None:
    """By the file's own header: SQLite might recover, and so change, what it opens."""
    with path.open("rb") as file:
        header = file.read(100)
    if header[:15] != b"SQLite format 3" or header[68:72] != APPLICATION.to_bytes(4, "big"):
        raise ValueError("no run of jaxprune")


def recover(path: Path) -> None:
    """Rolls back the journal of a killed writer, which a read-only connection cannot."""
    if path.with_name(path.name + "-journal").exists():
        with contextlib.closing(connect(path, "rw")) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()


@contextlib.contextmanager
def refused(path: Path) -> Iterator[None]:
    """Whatever goes wrong within is a ValueError of one line."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ValueError(f"run = {str(path)!r}: no run, or damaged: {error}") from None

"""The file of a run: one process writes it, others read it, and what is not a run's is refused.

SQLite follows links, applies a journal or a log that lies beside a file, and deletes the files
that a journal names. So it never opens a run's file in place with anything beside it. Readers open
a private copy of the file and its log. A writer that finds a log, as after a kill, puts such a copy
in the file's place, once all of it was checked, and removes the log.
"""

import contextlib
import errno
import hashlib
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxprune import files
from jaxprune.engine.packing import canonical

APPLICATION = 0x6A707275
_MAX_VALUE = 2**24
_TRIES = 200
_WAL = b"\x02\x02"  # bytes 18 and 19 of a file whose changes go to a log
_TELLS_NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP}
_OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
}
"""Errors that say nothing of the file that was read or written."""


class Displaced(OSError):
    """A file that is no longer at its path: it was moved, replaced or removed."""


class NoTemporaryFolder(OSError):
    """No folder for temporary files can be written."""


def checksum(table: str, id: int, *values: Any, data: bytes = b"") -> str:
    """SHA-256 of a whole row, its table and its key included."""
    return hashlib.sha256(canonical([table, id, *values]) + data).hexdigest()


def rows(db: sqlite3.Connection, table: str) -> Iterator[tuple[Any, tuple | None]]:
    """Yields the key and the other columns of every row that a table lists, the columns as the key
    finds them; None where it finds no row."""
    for (id,) in db.execute(f"SELECT id FROM {table}").fetchall():
        found = db.execute(f"SELECT * FROM {table} WHERE id=?", (id,)).fetchone()
        yield id, found and found[1:]


def in_memory() -> sqlite3.Connection:
    """A connection to a database without a file."""
    return sqlite3.connect(":memory:", isolation_level=None)


def snapshot(path: Path) -> sqlite3.Connection:
    """A read-only connection to a private copy of the file and its log as they are now.

    Raises:
      ValueError: beside the file lies what no run leaves there.
      OSError: it cannot be copied.
      NoTemporaryFolder: there is no place for the copy.
    """
    with _copied(path) as copy:
        # Nothing but the connection needs the copy once it is open.
        return _connect(copy, "immutable=1&mode=ro")


def in_place(path: Path) -> sqlite3.Connection:
    """A connection that writes the file itself, after `apply_log`, for the process with the lock.

    A killed process loses no commit; after a power failure the last commits may be missing.
    """
    db = _connect(path, "mode=rw")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # so there is no shared memory beside the file
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
    return db


def apply_log(path: Path) -> bool:
    """Writes the log, if there is one, into the file, after both were read and checked.

    The file is replaced whole before the log is removed. A process that is killed in between leaves
    a log that changes nothing: it has the same pages as the file.

    Returns:
      Whether the header asks for a log. Only then may the file be written in place.
    """
    log = _log(path)
    if files.exists(log):
        with _copied(path) as copy:
            _move(copy, path)
        files.sync(path.parent)
        log.unlink()
    with path.open("rb") as file:
        return file.read(20)[18:] == _WAL


@contextlib.contextmanager
def new_database(path: Path, *, new: bool) -> Iterator[sqlite3.Connection]:
    """Yields a connection to an empty private database, which then becomes the file, whole.

    Raises:
      FileExistsError: the file is to be new, and exists.
    """
    with _folder() as folder:
        private = folder / "run.db"
        with contextlib.closing(_private(private)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            with db:
                db.execute("BEGIN")
                yield db
        _move(private, path, new=new)


def _move(private, path, *, new=False):
    with (files.whole_and_new if new else files.whole)(path) as file, private.open("rb") as source:
        _copy_data(source, file)


@contextlib.contextmanager
def _copied(path):
    """Yields the path of a private copy, with the log written into it."""
    _refuse(path, "-journal")
    with _folder() as folder:
        copy = folder / "run.db"
        _copy(path, copy)
        if _log(copy).exists():
            with contextlib.closing(_private(copy)) as db:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield copy


def check_alone(path: Path) -> None:
    """Refuses to make a file beside what would be taken for its own.

    Raises:
      ValueError: a journal, a log, or what is not a lock.
    """
    _refuse(path, "-journal")
    _refuse(path, "-wal")
    _check_lock(path)


def _refuse(path, suffix):
    beside = path.with_name(path.name + suffix)
    if files.exists(beside):
        raise ValueError(f"{str(beside)!r} is not of this run, and SQLite would apply it: move it")


def _copy(path, copy):
    """Copies the file and its log as they were at one moment, while another process may write them.

    Whatever was committed before is in one of the copies, unless the file was written to or the log
    was begun anew in the meantime; then both are copied again.
    """
    for _ in range(_TRIES):
        before = _state(path)
        with path.open("rb") as source, copy.open("wb") as file:
            _copy_data(source, file)
        _log(copy).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            _copy_log(path, copy)
        if _state(path) == before:
            return
        time.sleep(0.01)
    raise ValueError("it changes too often to be read")


def _copy_log(path, copy):
    with open(_log(path), "rb", opener=files.open_regular) as log, _log(copy).open("wb") as file:
        _copy_data(log, file)


def _copy_data(source, file):
    """Copies a file; its holes stay holes, so that a terabyte of nothing costs nothing."""
    for start, end in _extents(source.fileno()):
        file.seek(start)
        # A buffered read would not see that the search for holes moves the position in the file.
        while start < end and (data := os.pread(source.fileno(), min(end - start, 2**20), start)):
            start += file.write(data)
    file.truncate(os.fstat(source.fileno()).st_size)


def _extents(file):
    """Yields the start and the end of each part of a file that is no hole."""
    end, size = 0, os.fstat(file).st_size
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
            stop = os.lseek(file, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno not in _TELLS_NO_HOLES:
                raise
            begin, stop = end, size
        yield begin, stop
        end = stop


def _state(path):
    file, log = path.stat(), None
    with (
        contextlib.suppress(FileNotFoundError),
        open(_log(path), "rb", opener=files.open_regular) as stream,
    ):
        log = stream.read(32)  # with two salts, which change whenever the log is begun anew
    return file.st_ino, file.st_size, file.st_mtime_ns, log


def _log(path):
    return path.with_name(path.name + "-wal")


@contextlib.contextmanager
def _folder():
    try:
        temporary = tempfile.TemporaryDirectory(prefix="jaxprune-")
    except OSError as error:
        raise NoTemporaryFolder(error.errno, error.strerror, error.filename) from None
    with temporary as folder:
        yield Path(folder)


def _private(path):
    """A connection to a private file, which need not survive a power failure."""
    db = _connect(path, "mode=rwc")
    db.execute("PRAGMA synchronous = OFF")
    return db


def _connect(path, query):
    uri = f"{path.absolute().as_uri()}?{query}"
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
      ValueError: another process has it, or the lock's file is something else.
    """
    import filelock  # not before a run is kept: importing the package stays light

    _check_lock(path)
    lock = filelock.FileLock(_lock(path))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(f"run = {str(path)!r}: another process is at work on it") from None
    return lock


def _lock(path):
    return path.with_name(path.name + ".lock")


def _check_lock(path):
    with contextlib.suppress(FileNotFoundError):
        there = _lock(path).lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_size:  # a lock would empty it
            raise ValueError(f"run = {str(path)!r}: {str(_lock(path))!r} is not a lock: move it")


def file_identity(path: Path) -> tuple[int, int]:
    """The device and inode of the file at a path.

    Raises:
      Displaced: there is none.
    """
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise displaced_error(path) from None
    return there.st_dev, there.st_ino


def displaced_error(path: Path) -> Displaced:
    """The error for a file that is no longer at its path."""
    message = "was moved, replaced or removed while the run was at work; nothing more is written"
    return Displaced(errno.ESTALE, message, str(path))


def check_ours(path: Path) -> None:
    """Refuses another program's file by its header, before a lock is made beside it."""
    with path.open("rb") as file:
        header = file.read(100)
    if header[:15] != b"SQLite format 3" or header[68:72] != APPLICATION.to_bytes(4, "big"):
        raise ValueError("no run of jaxprune")


@contextlib.contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turns every error of the file within into a ValueError of one line, but not the machine's."""
    try:
        yield
    except NoTemporaryFolder:
        raise
    except (sqlite3.Error, OSError, ValueError) as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if full or getattr(error, "errno", None) in _OF_THE_MACHINE:
            raise
        raise ValueError(f"run = {str(path)!r}: no run, or damaged: {error}") from None

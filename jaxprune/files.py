"""Files that appear whole or not at all; links are replaced or refused, never followed."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"\.jaxprune-[0-9a-f]{16}\.part")


@contextlib.contextmanager
def whole(path: Path, put: Callable[[Path, Path], None] = os.replace) -> Iterator[BinaryIO]:
    """Yields a binary file to write to; once it is written, it takes the place of `path`.

    Until then it has a name of its own in the same folder. If writing fails, nothing is left of it,
    and what was there before stays. A link at `path` is replaced, not what it points to.

    Args:
      path: of the file.
      put: gives a file that is written its place.
    """
    part = path.with_name(f".jaxprune-{secrets.token_hex(8)}.part")
    file = part.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(part, path)
    finally:
        part.unlink(missing_ok=True)


def whole_and_new(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """`whole` for a file that is not there yet.

    Raises:
      FileExistsError: it is, or is by the time that it is written.
    """
    refuse_existing(path)
    return whole(path, _put_new)


def _put_new(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except OSError:  # it exists, or the file system has no hard links
        refuse_existing(path)
        os.replace(part, path)


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError if there is something at a path."""
    if exists(path):
        raise FileExistsError(errno.EEXIST, "exists", str(path))


def exists(path: Path) -> bool:
    """Whether there is something, if only a link to nowhere.

    Raises:
      OSError: there can be nothing of this name.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_unused(folder: Path) -> bool:
    """Whether there is nothing in a folder but what `whole` had not finished when it was killed."""
    return all(_PART.fullmatch(path.name) for path in folder.iterdir())


def sync(folder: Path) -> None:
    """Waits until the names in a folder would survive a power failure."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def utf8(text: str) -> bytes:
    """The bytes of a text for a file. File names need not be UTF-8; what is not is escaped, as in
    JSON."""
    return text.encode("utf-8", "backslashreplace")


def open_regular(path: str | Path, flags: int) -> int:
    """An opener for `open` that accepts only regular files, no links, pipes or devices.

    Raises:
      OSError: it is something else.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file

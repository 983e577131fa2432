"""Files that appear whole or not at all."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; what is there at the end takes its place.

    If writing fails, nothing is left beside `path`, and what was there before stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_and_new(path: Path) -> Iterator[Path]:
    """`whole` for a file that is not there yet.

    Raises:
      FileExistsError: it is.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, "exists", str(path))
    with whole(path) as part:
        yield part

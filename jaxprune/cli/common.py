"""What the commands share: exit statuses, one-line failures, new paths, progress, results."""

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from jaxprune import files, report
from jaxprune.report.words import plain
from jaxprune.studies.result import processor
from jaxprune.types import BrokenInvariant

BAD_INPUT = 2
ENVIRONMENT = 3
BROKEN_INVARIANT = 4
INTERRUPTED = 130

CACHE = "JAX_COMPILATION_CACHE_DIR"
CACHE_BYTES = 2**29
"""Of compiled programs that stay when a command starts; the full plan's take about 2^24."""

KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

Result = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """Argparse's, whose errors are one line."""

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        for arg in args:
            if arg.startswith("--") and arg.endswith("=--"):  # argparse makes an empty list of it
                self.error(f"argument {arg[:-3]}: '--' is no value")
        return super().parse_args(args, namespace)

    def _print_message(self, message, file=None):
        if file is sys.stdout:
            # Argparse's own forgets that a full disk took none of the help.
            print_safely(lambda _: file.write(message))
        else:
            super()._print_message(message, file)

    def error(self, message):
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def keep_programs() -> None:
    """Keeps all compiled programs in the user's cache folder, by kind of processor.

    JAX's own setting, `JAX_COMPILATION_CACHE_DIR`, goes before; empty, it turns this off.
    """
    # A file that a killed process left half written costs a compilation in each run until it is
    # removed for its age, and is nobody's concern.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if CACHE in os.environ or jax.config.jax_compilation_cache_dir:
        return
    with contextlib.suppress(OSError):  # no folder, no cache
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "jaxprune" / processor()
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Left alone, JAX keeps only what took a second to compile: most programs take less.
        for name, value in KEEP_ALL.items():
            if name.upper() not in os.environ:
                jax.config.update(name, value)
        _make_room(folder, CACHE_BYTES)


def _make_room(folder: Path, most: int) -> None:
    """Removes the files of a folder that were not used for longest, until `most` bytes are left.

    JAX's own limit, `jax_compilation_cache_max_size`, reads every file's age at every write, and
    from a folder in which one age is missing, as after a kill, it never writes again.
    """
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    size = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda f: max(f[1].st_atime, f[1].st_mtime)):
        if size <= most:
            return
        path.unlink(missing_ok=True)
        size -= stat.st_size


def settle_process() -> None:
    """Gives the process what libraries take for granted: a home, and an open stderr.

    A user without an entry in the list of users, as in a container, has the home that Docker gives.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.sep
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def add_outputs(command: argparse.ArgumentParser, name: str) -> None:
    """The options that say where a result goes."""
    command.add_argument(
        "--out", type=Path, metavar="DIR", help=f"new folder for the results ({name}-DATE-TIME)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="a further copy of the result")


def fail(message: object, status: int) -> int:
    """Says in one line on stderr what is wrong; returns the exit status."""
    print("jaxprune:", plain(" ".join(str(message).split())), file=sys.stderr)
    return status


def reason(error: Exception, path: Path) -> str:
    """What the machine refused, in a line; `path` is where no other is named."""
    if isinstance(error, OSError):
        return f"{error.filename or path}: {error.strerror or error}"
    return f"{path}: {str(error).partition(chr(10))[0]}"


def carry_out(args: argparse.Namespace, study: Callable[[Callable], Result]) -> int:
    """Runs a study, writes its files, prints its tables; returns the exit status.

    Args:
      args: with the command's name and the options of `add_outputs`.
      study: takes the progress callback, returns the result; a ValueError is bad input.
    """
    out = args.out or Path(time.strftime(f"{args.command}-%Y%m%d-%H%M%S"))
    started = time.perf_counter()
    try:
        check_outputs(out, args.json)
        with progress_bar() as bar:
            result = study(bar.advance)
    except ValueError as error:
        return fail(error, BAD_INPUT)
    except BrokenInvariant as error:
        return fail(f"broken invariant, nothing written: {error}", BROKEN_INVARIANT)
    spent = time.perf_counter() - started

    # Files first: a closed pipe must not cost a finished run.
    try:
        report.write_folder(result, out)
        if args.json:
            report.write_json(result, args.json)
    except OSError as error:
        return fail(reason(error, out), ENVIRONMENT)
    print_safely(lambda console: show(result, out, spent, console))
    return 0


def show(result: Result, folder: Path, spent: float, console: Console) -> None:
    """Prints a result, and where its files are."""
    report.summarize(result, console)
    print(f"\n{spent:.0f} s. Plots: {folder}/report.html; every number: result.json beside it.")


def print_safely(show: Callable[[Console], None]) -> None:
    """Prints to stdout, whatever its encoding, and survives what cannot be written.

    Nobody misses it where a pipe is closed; `flush_output` tells of a full disk.
    """
    try:
        sys.stdout.reconfigure(errors="replace")  # which writes what is there
        # In a pipe there is no width to keep to.
        show(Console(width=None if sys.stdout.isatty() else 120))
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits where a pipe is closed
        _drop_output()
    except OSError as error:
        _lost.append(error)
        _drop_output()


_lost: list[OSError] = []
"""Why stdout could not be written."""


def _drop_output():
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush_output(status: int) -> int:
    """The exit status of a command, once all that it printed is written.

    Args:
      status: of the command itself.
    """
    print_safely(lambda _: None)
    if not _lost:
        return status
    told = f"standard output: {_lost[0].strerror}"
    _lost.clear()
    return status or fail(told, ENVIRONMENT)


def check_outputs(out: Path, json: Path | None, *, shared: bool = False) -> None:
    """Refuses paths of results that exist or cannot be made, before anything is computed.

    A `shared` folder may be there, whatever is in it.
    """
    if not (shared and "\0" not in str(out) and out.is_dir()):
        check_new("out", out)
    if json:
        check_new("json", json)
        if json.resolve() == out.resolve():
            raise ValueError(f"json = {str(json)!r}: another path than out is needed")


def check_new(name: str, path: Path) -> None:
    """Refuses a path that exists or cannot be made, before anything is computed."""
    if "\0" in str(path):
        raise ValueError(f"{name} = {str(path)!r}: a name without NUL is needed")
    try:
        empty = name == "out" and path.is_dir() and files.is_unused(path)
        taken = files.exists(path) and not empty
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} = {str(path)!r}: {reason}") from None
    if taken:
        raise ValueError(f"{name} = {str(path)!r}: exists; a new path is needed")
    folder = path if empty else path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name} = {str(path)!r}: {str(folder)!r} is no folder one can write to")


class Bar(NamedTuple):
    """What a command shows while it is at work.

    Attributes:
      advance: a study's progress callback; None where there is no terminal, and nothing is drawn.
      print_lines: prints lines on stdout, above the bar where both are on a terminal.
    """

    advance: Callable | None
    print_lines: Callable[[Iterable[Text]], None]


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar]:
    """Yields what draws a bar on stderr, if that is a terminal."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        BarColumn(12),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", markup=False, table_column=rest),
    )
    console = Console(stderr=True)
    drawn = console.is_terminal
    # Without redirection: rich would send stdout to the bar's stderr, even if stdout is a file.
    with Progress(
        *columns,
        console=console,
        transient=True,
        expand=True,
        disable=not drawn,
        redirect_stdout=False,
    ) as bar:
        task = bar.add_task("starting", total=None)

        def advance(p):
            doing = plain(f"{p.doing}: {p.note}" if p.note else p.doing)
            bar.update(task, description=doing, completed=p.done, total=p.total)

        def print_lines(lines):
            if drawn and sys.stdout.isatty():
                for line in lines:
                    console.print(line, soft_wrap=True)
            else:
                print_safely(lambda own: [own.print(line, soft_wrap=True) for line in lines])

        yield Bar(advance if drawn else None, print_lines)

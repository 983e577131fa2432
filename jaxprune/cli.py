"""The `jaxprune` command: parse, call a study, print."""

import argparse
import contextlib
import os
import sys
import textwrap
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxprune import __version__, report
from jaxprune.engine.tally import BrokenBracket
from jaxprune.studies import plan as plans
from jaxprune.studies.verify import verify

BAD_INPUT = 2
ENVIRONMENT = 3
BROKEN_INVARIANT = 4
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = _Parser(
        prog="jaxprune",
        description="How far is a pruned network from the network it was pruned from, and with "
        "what probability?",
    )
    top.add_argument("--version", action="version", version=f"jaxprune {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "verify",
        help="sample the pairs of a plan and judge its claims P(gap <= eps) >= 1 - delta",
        description="Samples pairs of target and pruned network, brackets each pair's gap,\nand "
        "judges every claim P(gap <= eps) >= 1 - delta of the plan. Prints a table; writes\n"
        "a folder with result.json and report.html.",
        epilog=_plan_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--plan", type=Path, metavar="FILE.toml", help="a plan of your own (the default plan)"
    )
    command.add_argument(
        "--trials", type=int, metavar="N", help="pairs in every simulation (the plan's)"
    )
    command.add_argument(
        "--seed", type=int, metavar="S", help="of all random keys, below 2^32 (the plan's)"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for the results (verify-DATE-TIME)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="a further copy of the result")
    return top


def _plan_help() -> str:
    lines = [
        f"A plan has the keys {', '.join(plans.PLAN_KEYS[:-1])},",
        "and tables [[experiment]], one for every combination of the lists in it, with the keys",
        "",
    ]
    for key, meaning in plans.EXPERIMENT_KEYS.items():
        wrapped = textwrap.wrap(meaning, 76)
        lines += [f"  {key:<12}{wrapped[0]}", *(" " * 14 + more for more in wrapped[1:])]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status, as listed in the README."""
    args = parser().parse_args(argv)
    try:
        return _verify(args)
    except KeyboardInterrupt:
        return _fail("interrupted, nothing written", INTERRUPTED)


def _fail(message: object, status: int) -> int:
    print("jaxprune:", " ".join(str(message).split()), file=sys.stderr)
    return status


def _verify(args) -> int:
    out = args.out or Path(time.strftime("verify-%Y%m%d-%H%M%S"))
    started = time.perf_counter()
    try:
        _check_new("out", out)
        if args.json:
            _check_new("json", args.json)
            if args.json.resolve() == out.resolve():
                raise ValueError(f"json = {str(args.json)!r}: another path than out is needed")
        plan = plans.load(args.plan, trials=args.trials, seed=args.seed)
        with _progress_bar() as advance:
            result = verify(plan, advance)
    except ValueError as error:
        return _fail(error, BAD_INPUT)
    except BrokenBracket as error:
        return _fail(f"broken invariant, nothing written: {error}", BROKEN_INVARIANT)
    spent = time.perf_counter() - started

    # Files first: a closed pipe must not cost a finished run.
    try:
        report.write_folder(result, out)
        if args.json:
            report.write_json(result, args.json)
    except OSError as error:
        return _fail(f"{error.filename or out}: {error.strerror}", ENVIRONMENT)
    sys.stdout.reconfigure(errors="replace")
    try:
        # In a pipe there is no width to keep to.
        report.render(result, Console(width=None if sys.stdout.isatty() else 120))
        print(f"\n{spent:.0f} s. {out}/result.json: every number; {out}/report.html: the plots.")
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits where a pipe is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check_new(name: str, path: Path) -> None:
    """Refuses a path that exists or cannot be made, before anything is sampled."""
    try:
        empty = name == "out" and path.is_dir() and not any(path.iterdir())
        taken = path.exists() and not empty
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} = {str(path)!r}: {reason}") from None
    if taken:
        raise ValueError(f"{name} = {str(path)!r}: exists; a new path is needed")
    folder = path if empty else path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name} = {str(path)!r}: {str(folder)!r} is no folder one can write to")


@contextlib.contextmanager
def _progress_bar():
    """Yields the callback for `verify`; draws nothing where there is no terminal."""
    columns = (
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda p: bar.update(task, description=p.doing, completed=p.done, total=p.total)

"""The `jaxprune` command: parse, call a study, print."""

import argparse
import os
import sys
import time
from pathlib import Path

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
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="sample the pairs of a plan and judge its claims P(gap <= eps) >= 1 - delta",
        description="Samples pairs of target and pruned network, brackets each pair's gap, and "
        "judges every claim P(gap <= eps) >= 1 - delta of the plan. Prints a table; writes a "
        "folder with result.json and report.html.",
    )
    verify.add_argument("--plan", type=Path, metavar="FILE.toml", help="not the default plan")
    verify.add_argument("--trials", type=int, metavar="N", help="pairs in every simulation")
    verify.add_argument("--seed", type=int, metavar="S", help="of all random keys, below 2^32")
    verify.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for the results (verify-DATE-TIME)"
    )
    verify.add_argument("--json", type=Path, metavar="FILE", help="a further copy of the result")
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status, as listed in the README."""
    from jaxprune.engine.tally import BrokenBracket

    args = parser().parse_args(argv)
    try:
        return _verify(args)
    except ValueError as error:
        print(f"jaxprune: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except BrokenBracket as error:
        print(f"jaxprune: broken invariant, nothing written: {error}", file=sys.stderr)
        return BROKEN_INVARIANT
    except KeyboardInterrupt:
        print("jaxprune: interrupted, nothing written", file=sys.stderr)
        return INTERRUPTED


def _one_line(error):
    return " ".join(str(error).split())


def _verify(args) -> int:
    from rich.console import Console

    from jaxprune import report
    from jaxprune.studies import plan as plans
    from jaxprune.studies.verify import verify

    out = args.out or Path(time.strftime("verify-%Y%m%d-%H%M%S"))
    _check_new("out", out)
    if args.json:
        _check_new("json", args.json)
    plan = plans.load(args.plan, trials=args.trials, seed=args.seed)
    started = time.perf_counter()
    with _progress_bar() as advance:
        result = verify(plan, advance)
    spent = time.perf_counter() - started

    # In a pipe there is no width to keep to.
    report.render(result, Console(width=None if sys.stdout.isatty() else 120))
    try:
        report.write_folder(result, out)
        if args.json:
            report.write_json(result, args.json)
    except OSError as error:
        print(f"jaxprune: {error.filename}: {error.strerror}", file=sys.stderr)
        return ENVIRONMENT
    print(f"\n{spent:.0f} s. {out}/result.json holds every number, {out}/report.html the plots.")
    return 0


def _check_new(name: str, path: Path) -> None:
    """Refuses a path that exists or cannot be made, before anything is sampled."""
    if path.exists() and not (name == "out" and path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{name} = {str(path)!r}: exists; a new path is needed")
    parent = path.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{name} = {str(path)!r}: {str(parent)!r} is no folder one can write to")


def _progress_bar():
    """A context manager that yields the callback for `verify`; silent outside a terminal."""
    import contextlib

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    @contextlib.contextmanager
    def bar():
        columns = (
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        console = Console(stderr=True)
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as rich:
            task = rich.add_task("starting", total=None)
            yield lambda p: rich.update(task, description=p.doing, completed=p.done, total=p.total)

    return bar()

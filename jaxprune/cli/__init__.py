"""The `jaxprune` command: parse, call a study, print."""

import argparse
import sys

from jaxprune import __version__, session
from jaxprune.cli import (
    bound,
    common,
    completion,
    frontier,
    merge,
    rare,
    replay,
    report,
    resume,
    threshold,
    verify,
)
from jaxprune.cli.stopping import Stopped, stopped_by_signals

COMMANDS = (verify, resume, merge, replay, report, bound, frontier, threshold, rare, completion)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; every command adds its own."""
    top = common.Parser(
        prog="jaxprune",
        description="How far is a pruned network from the network it was pruned from, and with "
        "what probability?",
        epilog="jaxprune COMMAND --help lists the options of a command, with their defaults.",
    )
    top.add_argument(
        "--version", action="version", version=f"jaxprune {__version__}", help="print the version"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status, as listed in the README."""
    common.settle_process()
    if sys.stdout is None:
        return common.fail("standard output is closed", common.ENVIRONMENT)
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:  # help, version, or a wrong argument
        sys.exit(common.flush_output(end.code))
    try:
        with stopped_by_signals(), session.default_settings():
            common.keep_programs()
            return common.flush_output(args.run(args))
    except (Stopped, KeyboardInterrupt) as stop:
        status = getattr(stop, "status", common.INTERRUPTED)
        return common.flush_output(common.fail("interrupted", status))

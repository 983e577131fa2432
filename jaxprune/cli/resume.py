"""`jaxprune resume`."""

import argparse
from pathlib import Path

from jaxprune.cli import common, running
from jaxprune.studies import kept


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "resume",
        help="go on with a run that was stopped, as if it had not been",
        description="Samples the blocks that a run of `verify` lacks and judges it. Its plan is in "
        "the run. With another version, processor or kind of device it is refused.",
    )
    command.add_argument(
        "run_path", type=Path, metavar="RUN", help="its folder, or the file of a part"
    )
    running.add_sampling(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="a copy of the result")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    path: Path = args.run_path
    try:
        with running.processes(args) as process:
            if process:
                path = kept.store_path(path, process)
            folder = path if path.is_dir() else path.parent
            return running.run_kept(args, folder, lambda: kept.reopen(path))
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)

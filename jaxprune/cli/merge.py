"""`jaxprune merge`."""

import argparse
import os
import time
from pathlib import Path

from jaxprune.cli import common, running
from jaxprune.studies import kept


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "merge",
        help="join the parts of a run, finished or not, and judge it",
        description="Joins runs of one plan with disjoint blocks, finished or still at work, into "
        "a new run and judges it as far as no block is missing. A run of the plan that is in DIR "
        "takes the blocks it lacks.",
    )
    command.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a folder with parts of a run, or their files",
    )
    common.add_outputs(command, "merge")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    folder = args.out or Path(time.strftime("merge-%Y%m%d-%H%M%S"))

    def opened():
        # What was begun, as by a merge that was killed, is gone on with; of a name that no file can
        # have the check tells.
        begun = os.path.lexists(kept.store_path(folder))
        common.check_outputs(folder, args.json, shared=begun)
        return kept.merge(args.runs, folder)

    return running.run_kept(args, folder, opened, sample=False)

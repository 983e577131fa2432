"""`jaxprune frontier`."""

import argparse

from jaxprune.cli import common
from jaxprune.cli.setting import add_setting, read_setting
from jaxprune.studies.frontier import frontier


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "frontier",
        help="bracket the largest sparsity at which a claim holds, at each width",
        description="Brackets the largest sparsity with P(gap <= eps) >= 1 - delta at each width, "
        "by simulation, beside the theorem's and infinite width's. Prints a table; writes a "
        "folder with result.json and report.html.",
    )
    command.add_argument("--eps", type=float, default=0.5, help="the gap that is allowed (0.5)")
    command.add_argument("--delta", type=float, default=0.05, help="1 - probability (0.05)")
    command.add_argument(
        "--resolution", type=float, default=0.05, help="relative step between sparsities (0.05)"
    )
    add_setting(command, widths="16 32 64 128", trials=400)
    common.add_outputs(command, "frontier")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""

    def study(advance):
        return frontier(
            **read_setting(args),
            eps=args.eps,
            delta=args.delta,
            resolution=args.resolution,
            progress=advance,
        )

    return common.carry_out(args, study)

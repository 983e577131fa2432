"""`jaxprune threshold`."""

import argparse

from jaxprune.cli import common
from jaxprune.cli.setting import add_setting, read_setting
from jaxprune.pruning import Sublinear
from jaxprune.studies.threshold import DELTAS, WIDTHS, threshold


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "threshold",
        help="bracket the least width at which a claim holds, and its exponents",
        description="Brackets the least width with P(gap <= eps) >= 1 - delta by simulation, and "
        "fits its exponents in 1/eps and 1/delta, beside the paper's and the theorem's. Prints "
        "tables; writes a folder with result.json and report.html.",
    )
    add = command.add_argument
    add("--alpha", type=float, default=0.5, help="D^(1 - alpha) of D weights are removed (0.5)")
    add("--eps", type=float, nargs="+", help="gaps that are allowed (eight, from a pilot)")
    add("--delta", type=float, default=0.05, help="1 - probability, while eps varies (0.05)")
    add(
        "--deltas",
        type=float,
        nargs="+",
        default=DELTAS,
        help=f"the deltas at the middle eps ({' '.join(f'{d:g}' for d in DELTAS)})",
    )
    add_setting(command, widths=f"13 from {WIDTHS[0]} to {WIDTHS[-1]}", trials=600)
    common.add_outputs(command, "threshold")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""

    def study(advance):
        return threshold(
            **read_setting(args),
            amount=Sublinear(args.alpha),
            eps=args.eps,
            delta=args.delta,
            deltas=args.deltas,
            progress=advance,
        )

    return common.carry_out(args, study)

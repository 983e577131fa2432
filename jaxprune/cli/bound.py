"""`jaxprune bound`."""

import argparse
from pathlib import Path

from jaxprune import pruning, report
from jaxprune.cli import common, options
from jaxprune.studies.bound import bound


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "bound",
        help="certified gaps from theorems whose every constant is a number; no sampling",
        description="Prints the gap that a network is certified to keep with probability 1 - "
        "delta, the events of the proof, every norm bound of every layer, the typical gap at "
        "infinite width, and, with --eps, the least width and the largest amounts.",
    )
    options.add_network(command, (128,) * 4)
    options.add_law(command)
    add = command.add_argument
    add(
        "--pruning",
        nargs="+",
        default=["magnitude", "random"],
        help=f"{', '.join(pruning.METHODS)} (magnitude random)",
    )
    options.add_amount(command)
    options.add_layers(command)
    add("--delta", type=float, default=0.05, help="1 - probability (0.05)")
    add("--eps", type=float, help="a gap that is allowed: least width and largest amounts for it")
    add("--json", type=Path, metavar="FILE", help="every number, as strict JSON, in a new file")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        if args.json:
            common.check_new("json", args.json)
        result = bound(
            options.read_network(args),
            options.read_law(args),
            [options.read_pruning(name) for name in dict.fromkeys(args.pruning)],
            options.read_amount(args),
            layers=options.read_layers(args),
            delta=args.delta,
            eps=args.eps,
        )
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    if args.json:
        try:
            report.write_json(result, args.json)
        except OSError as error:
            return common.fail(f"{args.json}: {error.strerror}", common.ENVIRONMENT)
    common.print_safely(lambda console: report.render(result, console))
    return 0

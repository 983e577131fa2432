"""The options that `frontier` and `threshold` share."""

import argparse
from typing import Any

from jaxprune import networks, validation
from jaxprune.cli import options


def add_setting(command: argparse.ArgumentParser, *, widths: str, trials: int) -> None:
    """Adds them; the defaults of `widths` and `trials` are the command's own."""
    add = command.add_argument
    add("--widths", type=int, nargs="+", metavar="D", help=f"of the hidden layers ({widths})")
    add("--depth", type=int, default=3, metavar="L", help="linear layers (3)")
    add("--inputs", type=int, metavar="D", help="features of the input (the width)")
    add("--outputs", type=int, metavar="D", help="features of the output (the width)")
    options.add_activation(command)
    options.add_law(command)
    options.add_pruning(command)
    options.add_layers(command)
    add("--trials", type=int, default=trials, metavar="N", help=f"pairs a width ({trials})")
    add("--confidence", type=float, default=0.95, help="of all verdicts together (0.95)")
    options.add_seed(command)


def read_setting(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the study that they stand for.

    Raises:
      ValueError: a name or number out of range.
    """
    depth = validation.integer("depth", args.depth, 1, networks.MAX_LAYERS)
    activation = options.read_activation(args)

    def network_of_width(d):
        first = d if args.inputs is None else args.inputs
        last = d if args.outputs is None else args.outputs
        widths = (first, *[d] * (depth - 1), last)
        return networks.dense(widths, activation)

    given = {} if args.widths is None else {"widths": args.widths}
    return {
        "network_of_width": network_of_width,
        "law": options.read_law(args),
        "pruning": options.read_pruning(args.pruning),
        "layers": options.read_layers(args),
        "trials": args.trials,
        "confidence": args.confidence,
        "seed": args.seed,
        **given,
    }

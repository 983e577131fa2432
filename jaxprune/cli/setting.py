"""The options that `frontier` and `threshold` share."""

import argparse
from typing import Any

from jaxprune import activations, laws, networks, pruning, validation


def add_setting(command: argparse.ArgumentParser, *, widths: str, trials: int) -> None:
    """Adds them; the defaults of `widths` and `trials` are the command's own."""
    add = command.add_argument
    add("--widths", type=int, nargs="+", metavar="D", help=f"of the hidden layers ({widths})")
    add("--depth", type=int, default=3, metavar="L", help="linear layers (3)")
    add("--inputs", type=int, metavar="D", help="features of the input (the width)")
    add("--outputs", type=int, metavar="D", help="features of the output (the width)")
    add("--activation", default="relu", help=f"{', '.join(activations.ACTIVATIONS)} (relu)")
    add("--law", default="uniform", help="uniform or normal weights (uniform)")
    add("--scaling", default="max", help=f"{', '.join(laws.SCALINGS)} (max, the paper's)")
    add(
        "--gain",
        type=float,
        default=6**0.5,
        metavar="K",
        help="factor on the weights, the paper's K (2.449: ReLU keeps the size of its input)",
    )
    add("--pruning", default="magnitude", help=f"{', '.join(pruning.METHODS)} (magnitude)")
    add("--layers", nargs="+", default=["middle"], help="middle, all, or names (middle)")
    add("--trials", type=int, default=trials, metavar="N", help=f"pairs a width ({trials})")
    add("--confidence", type=float, default=0.95, help="of all verdicts together (0.95)")
    add("--seed", type=int, default=0, metavar="S", help="of all random keys, below 2^32 (0)")


def read_setting(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the study that they stand for.

    Raises:
      ValueError: a name or number out of range.
    """
    depth = validation.integer("depth", args.depth, 1, 1000)
    name = validation.choice("activation", args.activation, activations.ACTIVATIONS)
    law = laws.LAWS[validation.choice("law", args.law, laws.LAWS)]
    method = validation.choice("pruning", args.pruning, pruning.METHODS)

    def network_of_width(d):
        first = d if args.inputs is None else args.inputs
        last = d if args.outputs is None else args.outputs
        widths = (first, *[d] * (depth - 1), last)
        return networks.dense(widths, activations.ACTIVATIONS[name])

    layers = args.layers[0] if len(args.layers) == 1 else tuple(args.layers)
    given = {} if args.widths is None else {"widths": args.widths}
    return {
        "network_of_width": network_of_width,
        "law": law(args.gain, args.scaling),
        "pruning": pruning.METHODS[method],
        "layers": layers,
        "trials": args.trials,
        "confidence": args.confidence,
        "seed": args.seed,
        **given,
    }

"""`jaxprune bound`."""

import argparse
from pathlib import Path

from jaxprune import activations, laws, networks, pruning, validation
from jaxprune.cli import common
from jaxprune.report import bound as words
from jaxprune.report.page import write_json
from jaxprune.studies.bound import bound

_AMOUNTS = {"alpha": pruning.Sublinear, "sparsity": pruning.Fraction, "count": pruning.Count}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "bound",
        help="certified gaps from theorems whose every constant is a number; no sampling",
        description="Prints the gap that a network is certified to keep with probability 1 - "
        "delta, the events of the proof, every norm bound of every layer, the typical gap at "
        "infinite width, and, with --eps, the least width and the largest amounts.",
    )
    add = command.add_argument
    add("--widths", type=int, nargs="+", metavar="D", help="input to output (128 128 128 128)")
    add("--channels", type=int, nargs="+", metavar="C", help="a convolutional network instead")
    add("--size", type=int, metavar="N", help="convolutional: side of the input image")
    add("--kernel", type=int, metavar="K", help="convolutional: side of the kernels (3)")
    add("--strides", type=int, nargs="+", metavar="S", help="convolutional: one a layer (1)")
    add("--padding", help=f"convolutional: {', '.join(networks.PADDINGS)} (SAME)")
    add("--outputs", type=int, metavar="D", help="convolutional: width of a read-out (none)")
    add("--activation", default="relu", help=f"{', '.join(activations.ACTIVATIONS)} (relu)")
    add("--law", default="uniform", help="uniform or normal weights (uniform)")
    add("--scaling", default="max", help=f"{', '.join(laws.SCALINGS)} (max, the paper's)")
    add("--gain", type=float, default=6**0.5, metavar="K", help="the paper's K (2.449)")
    add(
        "--pruning",
        nargs="+",
        default=["magnitude", "random"],
        help=f"{', '.join(pruning.METHODS)} (magnitude random)",
    )
    add("--alpha", type=float, help="remove floor(D^(1 - alpha)) of a layer's D weights (0.25)")
    add("--sparsity", type=float, metavar="Q", help="or this fraction")
    add("--count", type=int, metavar="N", help="or this many")
    add("--layers", nargs="+", default=["middle"], help="middle, all, or names (middle)")
    add("--delta", type=float, default=0.05, help="1 - probability (0.05)")
    add("--eps", type=float, help="a gap that is allowed: least width and largest amounts for it")
    add("--json", type=Path, metavar="FILE", help="every number, as strict JSON, in a new file")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        if args.json:
            common.check_new("json", args.json)
        name = validation.choice("law", args.law, laws.LAWS)
        methods = [validation.choice("pruning", m, pruning.METHODS) for m in args.pruning]
        result = bound(
            _network(args),
            laws.LAWS[name](args.gain, args.scaling),
            [pruning.METHODS[m] for m in dict.fromkeys(methods)],
            _amount(args),
            layers=args.layers[0] if len(args.layers) == 1 else tuple(args.layers),
            delta=args.delta,
            eps=args.eps,
        )
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    if args.json:
        try:
            write_json(result, args.json)
        except OSError as error:
            return common.fail(f"{args.json}: {error.strerror}", common.ENVIRONMENT)
    common.print_safely(lambda console: words.render(result, console))
    return 0


def _network(args) -> networks.Network:
    name = validation.choice("activation", args.activation, activations.ACTIVATIONS)
    activation = activations.ACTIVATIONS[name]
    options = {
        key: getattr(args, key)
        for key in ("size", "kernel", "strides", "padding", "outputs")
        if getattr(args, key) is not None
    }
    if args.channels is None:
        for key, value in options.items():
            raise ValueError(f"{key} = {value!r}: needs channels")
        return networks.dense(args.widths or (128,) * 4, activation)
    if args.widths is not None:
        raise ValueError(f"widths = {args.widths!r}: does not go with channels")
    if "size" not in options:
        raise ValueError("size: missing; channels need the side of the input image")
    return networks.convolutional(args.channels, options.pop("size"), activation=activation,
                                  **options)  # fmt: skip


def _amount(args) -> pruning.Amount:
    given = [key for key in _AMOUNTS if getattr(args, key) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[1]} = {getattr(args, given[1])!r}: does not go with {given[0]}")
    return _AMOUNTS[given[0]](getattr(args, given[0])) if given else pruning.Sublinear(0.25)

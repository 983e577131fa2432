"""Options that several commands share: a network, the law of its weights, what is pruned."""

import argparse

from jaxprune import activations, laws, networks, pruning, validation
from jaxprune.laws import Law
from jaxprune.networks import Network

_AMOUNTS = {"alpha": pruning.Sublinear, "sparsity": pruning.Fraction, "count": pruning.Count}


def add_network(command: argparse.ArgumentParser, widths: tuple[int, ...]) -> None:
    """A network, dense or convolutional; `widths` are the default's."""
    words = " ".join(map(str, widths))
    command.set_defaults(default_widths=widths)
    add = command.add_argument
    add("--widths", type=int, nargs="+", metavar="D", help=f"features, input to output ({words})")
    add(
        "--channels",
        type=int,
        nargs="+",
        metavar="C",
        help="convolutional instead: channels, input to output",
    )
    add("--size", type=int, metavar="N", help="convolutional: side of the input image")
    add("--kernel", type=int, metavar="K", help="convolutional: side of the kernels (3)")
    add("--strides", type=int, nargs="+", metavar="S", help="convolutional: one a layer (1)")
    add("--padding", help=f"convolutional: {', '.join(networks.PADDINGS)} (SAME)")
    add("--outputs", type=int, metavar="D", help="convolutional: width of a read-out (none)")
    add_activation(command)


def read_network(args: argparse.Namespace) -> Network:
    """The network that the options of `add_network` describe; a ValueError is bad input."""
    activation = read_activation(args)
    options = {
        key: getattr(args, key)
        for key in ("size", "kernel", "strides", "padding", "outputs")
        if getattr(args, key) is not None
    }
    if args.channels is None:
        for key, value in options.items():
            raise ValueError(f"{key} = {value!r}: needs channels")
        return networks.dense(args.widths or args.default_widths, activation)
    if args.widths is not None:
        raise ValueError(f"widths = {args.widths!r}: does not go with channels")
    if "size" not in options:
        raise ValueError("size: missing; channels need the side of the input image")
    return networks.convolutional(args.channels, options.pop("size"), activation=activation,
                                  **options)  # fmt: skip


def add_activation(command: argparse.ArgumentParser) -> None:
    """Between the layers."""
    names = ", ".join(activations.ACTIVATIONS)
    command.add_argument("--activation", default="relu", help=f"{names} (relu)")


def read_activation(args: argparse.Namespace) -> activations.Activation:
    """The activation of that name."""
    name = validation.choice("activation", args.activation, activations.ACTIVATIONS)
    return activations.ACTIVATIONS[name]


def add_law(command: argparse.ArgumentParser) -> None:
    """The law of the weights."""
    add = command.add_argument
    add("--law", default="uniform", help="uniform or normal weights (uniform)")
    add("--scaling", default="max", help=f"{', '.join(laws.SCALINGS)} (max, the paper's)")
    add(
        "--gain",
        type=float,
        default=6**0.5,
        metavar="K",
        help="factor on the weights, the paper's K (2.449: ReLU keeps the size of its input)",
    )


def read_law(args: argparse.Namespace) -> Law:
    """The law that the options of `add_law` describe."""
    name = validation.choice("law", args.law, laws.LAWS)
    return laws.LAWS[name](args.gain, args.scaling)


def add_amount(command: argparse.ArgumentParser) -> None:
    """How much of a layer is removed, in one of three units."""
    add = command.add_argument
    add("--alpha", type=float, help="remove floor(D^(1 - alpha)) of a layer's D weights (0.25)")
    add("--sparsity", type=float, metavar="Q", help="or remove this fraction of them")
    add("--count", type=int, metavar="N", help="or remove this many")


def read_amount(args: argparse.Namespace) -> pruning.Amount:
    """The amount that the options of `add_amount` describe."""
    given = [key for key in _AMOUNTS if getattr(args, key) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[1]} = {getattr(args, given[1])!r}: does not go with {given[0]}")
    return _AMOUNTS[given[0]](getattr(args, given[0])) if given else pruning.Sublinear(0.25)


def add_pruning(command: argparse.ArgumentParser) -> None:
    """One method."""
    names = ", ".join(pruning.METHODS)
    command.add_argument("--pruning", default="magnitude", help=f"{names} (magnitude)")


def read_pruning(name: str) -> pruning.Pruning:
    """The method of that name."""
    return pruning.METHODS[validation.choice("pruning", name, pruning.METHODS)]


def add_seed(command: argparse.ArgumentParser) -> None:
    """The seed of a study's random keys."""
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of all random keys, below 2^32 (0)"
    )


def add_layers(command: argparse.ArgumentParser) -> None:
    """Which layers are pruned."""
    command.add_argument(
        "--layers", nargs="+", default=["middle"], help="middle, all, or names (middle)"
    )


def read_layers(args: argparse.Namespace) -> str | tuple[str, ...]:
    """As `networks.select_layers` takes them."""
    return args.layers[0] if len(args.layers) == 1 else tuple(args.layers)

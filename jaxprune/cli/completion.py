"""`jaxprune completion`."""

import argparse
from pathlib import Path

from jaxprune import activations, laws, networks, pruning
from jaxprune.cli import common

SHELLS = ("bash", "zsh", "fish")

_FILES = {"plan"}  # or a name
_NAMES = {
    "activation": tuple(activations.ACTIVATIONS),
    "law": tuple(laws.LAWS),
    "padding": networks.PADDINGS,
    "pruning": tuple(pruning.METHODS),
    "scaling": laws.SCALINGS,
}
"""Options that take a name, which the commands check by themselves."""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "completion",
        help="a script with which a shell completes commands, options, names and files",
        description="Prints a script with which a shell completes commands, options, names\n"
        "and files. Needs pip install 'jaxprune[completion]'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bash: jaxprune completion bash > ~/.local/share/bash-completion/completions/"
        "jaxprune\nzsh:  jaxprune completion zsh > FOLDER/_jaxprune, FOLDER being one of $fpath"
        "\nfish: jaxprune completion fish > ~/.config/fish/completions/jaxprune.fish",
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        import shtab
    except ImportError:
        told = "shtab: not installed; pip install 'jaxprune[completion]'"
        return common.fail(told, common.BAD_INPUT)
    from jaxprune import cli  # which imports this module

    top = cli.parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    for told in commands._choices_actions:
        commands.choices[told.dest].description = told.help  # zsh shows it: a line is enough
    for command in commands.choices.values():
        for action in command._actions:
            if action.type is Path or action.dest in _FILES:
                action.complete = shtab.FILE
            elif action.dest in _NAMES:
                action.choices = _NAMES[action.dest]
    common.print_safely(lambda _: print(shtab.complete(top, args.shell)))
    return 0

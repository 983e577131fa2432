"""`jaxprune rare`."""

import argparse

from jaxprune.cli import common, options
from jaxprune.statistics import Splitting
from jaxprune.studies.rare import rare

_PLAN = Splitting()


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "rare",
        help="estimate P(gap > eps) down to 1e-8 by multilevel splitting; certifies nothing",
        description="Estimates P(gap > eps) by multilevel splitting over weights and masks, from "
        "both ends of the gap's bracket, beside what theorems certify. Prints a table; writes a "
        "folder with result.json and report.html.",
    )
    options.add_network(command, (8,) * 4)
    options.add_law(command)
    options.add_pruning(command)
    options.add_amount(command)
    options.add_layers(command)
    add = command.add_argument
    add("--eps", type=float, required=True, help="the gap that is allowed")
    for name, text in (
        ("particles", "pairs of a population"),
        ("kill", "the lowest of them, replaced at each level"),
        ("steps", "moves of each copy at a level, and twice as many to check the mixing"),
        ("replicas", "independent runs of each kind, at least 10"),
    ):
        default = getattr(_PLAN, name)
        add(f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})")
    add("--confidence", type=float, default=0.99, help="of each estimate's limits (0.99)")
    options.add_seed(command)
    common.add_outputs(command, "rare")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""

    def study(advance):
        return rare(
            options.read_network(args),
            options.read_law(args),
            options.read_pruning(args.pruning),
            options.read_amount(args),
            eps=args.eps,
            layers=options.read_layers(args),
            splitting=Splitting(
                particles=args.particles,
                kill=args.kill,
                steps=args.steps,
                replicas=args.replicas,
            ),
            confidence=args.confidence,
            seed=args.seed,
            progress=advance,
        )

    return common.carry_out(args, study)

"""`jaxprune verify`."""

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxprune import report
from jaxprune.cli import common
from jaxprune.studies import plan as plans
from jaxprune.studies.verify import verify


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "verify",
        help="sample the pairs of a plan and judge its claims P(gap <= eps) >= 1 - delta",
        description="Samples pairs of target and pruned network, brackets each pair's gap,\nand "
        "judges every claim P(gap <= eps) >= 1 - delta of the plan. Prints a table; writes\n"
        "a folder with result.json and report.html.",
        epilog=_plan_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--plan", type=Path, metavar="FILE.toml", help="a plan of your own (the default plan)"
    )
    command.add_argument(
        "--trials", type=int, metavar="N", help="pairs in every simulation (the plan's)"
    )
    command.add_argument(
        "--seed", type=int, metavar="S", help="of all random keys, below 2^32 (the plan's)"
    )
    command.add_argument(
        "--until-decided",
        action="store_true",
        help="end a simulation once its claims are decided; N is then a budget",
    )
    common.add_outputs(command, "verify")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""

    def study(advance):
        plan = plans.load(
            args.plan, trials=args.trials, seed=args.seed, until_decided=args.until_decided
        )
        return verify(plan, advance, folder=args.out.parent if args.out else Path())

    return common.carry_out(args, study, report.write_folder, report.render, "report.html")


def _plan_help() -> str:
    lines = ["A plan has the keys", "", *_keys(plans.PLAN_KEYS)]
    lines += ["", "and a table [[experiment]]", "", *_keys(plans.EXPERIMENT_KEYS)]
    return "\n".join(lines)


def _keys(keys: Mapping[str, str]) -> Iterator[str]:
    for key, meaning in keys.items():
        wrapped = textwrap.wrap(meaning, 74)
        yield f"  {key:<14}{wrapped[0]}"
        yield from (" " * 16 + more for more in wrapped[1:])

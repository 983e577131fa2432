"""`jaxprune verify`."""

import argparse
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxprune import validation
from jaxprune.cli import common, running
from jaxprune.studies import cases, kept
from jaxprune.studies import plan as plans
from jaxprune.studies.sampling import WHOLE, Part


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "verify",
        help="sample the pairs of a plan and judge its claims",
        description="Samples pairs of target and pruned network, brackets each pair's gap,\nand "
        "judges every claim P(gap <= eps) >= 1 - delta of the plan. Prints each verdict as\n"
        "soon as it is certain; writes a folder with result.json and report.html.",
        epilog=_plan_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--plan",
        default=plans.FIRST,
        metavar="PLAN",
        help=f"a bundled plan, {' or '.join(plans.BUNDLED)}, or a TOML file "
        f"(default: {plans.FIRST})",
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
    command.add_argument(
        "--part",
        metavar="I/N",
        help="only every N-th block, from the I-th on; see merge",
    )
    command.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR, if it is there"
    )
    running.add_sampling(command)
    common.add_outputs(command, "verify")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        if args.resume and args.out is None:
            raise ValueError("resume: needs --out, the folder of the run")
        if args.part is not None and args.distributed is not None:
            raise ValueError(f"part = {args.part!r}: does not go with distributed, which says it")
        if _part(args.part).of > 1 and args.json:
            raise ValueError(f"json = {str(args.json)!r}: a part has no result, merge has")
        with running.processes(args) as process:
            part = process or _part(args.part)
            folder = args.out or Path(time.strftime("verify-%Y%m%d-%H%M%S"))
            return running.run_kept(args, folder, lambda: _opened(args, folder, part))
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)


def _opened(args, folder, part):
    plan = plans.load(
        args.plan, trials=args.trials, seed=args.seed, until_decided=args.until_decided
    )
    common.check_outputs(folder, args.json, shared=args.resume or part.of > 1)
    cases.check_memory(plan)
    return kept.begin(plan, folder, part, resume=args.resume)


def _part(text: str | None) -> Part:
    if text is None:
        return WHOLE
    try:
        number, of = (int(word) for word in text.split("/"))
        of = validation.integer("part", of, 1, 2**20)
        return Part(validation.integer("part", number, 1, of), of)
    except ValueError:
        raise ValueError(f"part = {text!r}: I/N with I from 1 to N is needed") from None


def _plan_help() -> str:
    lines = ["Bundled plans:", "", *_keys(plans.BUNDLED), ""]
    lines += ["A plan has the keys", "", *_keys(plans.PLAN_KEYS)]
    lines += ["", "and a table [[experiment]]", "", *_keys(plans.EXPERIMENT_KEYS)]
    return "\n".join(lines)


def _keys(keys: Mapping[str, str]) -> Iterator[str]:
    for key, meaning in keys.items():
        wrapped = textwrap.wrap(meaning, 74)
        yield f"  {key:<14}{wrapped[0]}"
        yield from (" " * 16 + more for more in wrapped[1:])

"""`jaxprune replay`."""

import argparse
import json
import sqlite3
from pathlib import Path

import jax

from jaxprune import report
from jaxprune.cli import common, running
from jaxprune.engine import Store
from jaxprune.files import whole
from jaxprune.report import replay as words
from jaxprune.studies import kept, sampling
from jaxprune.studies.replay import Replay, replay
from jaxprune.types import BrokenInvariant


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "replay",
        help="rebuild one trial of a run, its pair and its bounds",
        description="Rebuilds one pair of target and pruned network, brackets its gap in the block "
        "in which it was sampled, and compares the block with what is kept.",
    )
    add = command.add_argument
    add("run_path", type=Path, metavar="RUN", help="its folder, or the file of a part")
    add(
        "--trial",
        type=int,
        required=True,
        metavar="ID",
        help="of the trial, as in worst_trials of result.json",
    )
    add(
        "--case",
        type=int,
        metavar="N",
        help="its case, as in result.json; needed if there are several",
    )
    add("--save", type=Path, metavar="FILE", help="weights and masks as safetensors")
    add("--json", type=Path, metavar="FILE", help="a copy of what is printed")
    running.add_memory(command)
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        for name in ("save", "json"):
            if path := getattr(args, name):
                common.check_new(name, path)
        if args.save and args.json and args.save.resolve() == args.json.resolve():
            raise ValueError(f"json = {str(args.json)!r}: another path than save is needed")
        with running.limited(args), Store.open(kept.one_store(args.run_path)) as store:
            plan, _ = sampling.reopened(store)
            found = replay(plan, store, args.trial, args.case)
        if args.save:
            _save(found, args.save)
        if args.json:
            report.write_json(found.facts, args.json)
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    except BrokenInvariant as error:
        return common.fail(f"broken invariant: {error}", common.BROKEN_INVARIANT)
    except (OSError, sqlite3.Error, jax.errors.JaxRuntimeError) as error:
        return common.fail(common.reason(error, args.run_path), common.ENVIRONMENT)
    common.print_safely(lambda console: words.render(found.facts, console))
    return 0


def _save(found: Replay, path: Path) -> None:
    from safetensors.numpy import save

    tensors = {f"{name}.weight": w for name, w in found.weights.items()}
    tensors |= {f"{name}.mask": mask for name, mask in found.masks.items()}
    with whole(path) as part:
        part.write_bytes(save(tensors, {"jaxprune": json.dumps(found.facts)}))

"""What `verify`, `resume` and `merge` share: a run that is kept, sampled, judged and shown."""

import argparse
import contextlib
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from rich.text import Text

from jaxprune import report, validation
from jaxprune.cli import common
from jaxprune.cli.stopping import Stopped
from jaxprune.engine import Store, memory
from jaxprune.engine.database import Displaced
from jaxprune.report.words import plain
from jaxprune.studies import kept, sampling
from jaxprune.studies.kept import Kept
from jaxprune.studies.sampling import Part
from jaxprune.studies.verify import Early, judged
from jaxprune.types import BrokenInvariant

_PATIENCE = 30 * 24 * 3600
"""Seconds that a process which has done its part waits for the slowest."""


def add_sampling(command: argparse.ArgumentParser) -> None:
    """The options of a command that samples."""
    add = command.add_argument
    add("--seconds", type=float, metavar="S", help="begin no block after S seconds")
    add(
        "--audit", type=float, metavar="SHARE", help="run this share of the blocks, at least "
        f"{sampling.LEAST_AUDIT}, once more and compare every bit"
    )  # fmt: skip
    add_memory(command)
    add(
        "--distributed", nargs="*", metavar="X", help="be one process of several, each with a "
        "part: no X under SLURM or on a TPU pod, else ADDRESS:PORT PROCESSES PROCESS"
    )  # fmt: skip


def add_memory(command: argparse.ArgumentParser) -> None:
    """The option that `limited` reads."""
    command.add_argument(
        "--memory", type=float, metavar="GIB", help="of each device (80 %% of what it has)"
    )


def limited(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Within, runs use the memory that `--memory` allows."""
    limit = None
    if args.memory is not None:
        limit = int(validation.real("memory", args.memory, 0.0, 2**20) * 2**30)
    return memory.limited(limit)


@contextlib.contextmanager
def processes(args: argparse.Namespace) -> Iterator[Part | None]:
    """Joins the other processes if `--distributed` says so; yields this one's part."""
    with limited(args):
        if args.distributed is None:
            yield None
            return
        _join(args.distributed)
        yield Part(jax.process_index() + 1, jax.process_count())


def _join(given):
    if len(given) not in (0, 3):
        raise ValueError(f"distributed = {' '.join(given)!r}: ADDRESS:PORT PROCESSES PROCESS")
    try:
        if not given:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
            return
        count = validation.integer("processes", int(given[1]), 1, 2**20)
        process = validation.integer("process", int(given[2]), 0, count - 1)
        jax.distributed.initialize(given[0], count, process, shutdown_timeout_seconds=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"distributed = {' '.join(given)!r}: {told}") from None


def run_kept(
    args: argparse.Namespace, folder: Path, opened: Callable[[], Kept], *, sample: bool = True
) -> int:
    """Samples a run that is kept, judges it, writes its files, prints its table.

    Args:
      args: with `json` and, to sample, the options of `add_sampling`.
      folder: of the run.
      opened: opens the run, once everything else has been checked; a ValueError is bad input.
      sample: whether to run the blocks that are missing.

    Returns:
      The exit status.
    """
    started = time.perf_counter()
    try:
        if args.json:
            common.check_new("json", args.json)
        seconds = math.inf
        if sample and args.seconds is not None:
            seconds = validation.real("seconds", args.seconds, 0.0, math.inf)
        if sample and args.audit is not None:
            validation.real("audit", args.audit, 0.0, 1.0, open=False)
        store, plan, part, made = opened()
        if part.of > 1 and args.json and args.distributed is None:
            store.close()
            raise ValueError(f"json = {str(args.json)!r}: a part has no result, merge has")
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    except BrokenInvariant as error:
        return common.fail(f"broken invariant: {error}", common.BROKEN_INVARIANT)
    except (OSError, sqlite3.Error) as error:
        return common.fail(common.reason(error, folder), common.ENVIRONMENT)
    goes_on = f"jaxprune resume {store.path if part.of > 1 else folder} goes on"
    broken = None
    try:
        with store:
            _tell_damaged(store)
            if sample:
                # What an audit has found, the next one answers, asked for or not.
                share = 0.0 if args.audit is None and store.failed_audit else args.audit
                with common.progress_bar() as bar:
                    completed = _verdict_printer(plan, store, made, bar, audited=share is not None)
                    sampling.sample(
                        plan, store, bar.advance, part=part, seconds=seconds, completed=completed
                    )
                if share is not None:
                    try:
                        sampling.audit(plan, store, share, part)
                    except BrokenInvariant as error:
                        broken = error  # the files are written anew, without verdicts
            complete = sampling.is_complete(plan, store, part)
            result = judged(plan, store, made) if part.of == 1 else None
        if result:
            report.write_folder(result, folder, store.check_place)
            if args.json:
                report.write_json(result, args.json)
        if broken:
            raise broken
        if result is None:
            return _end_of_part(args, folder, store, part, complete)
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    except BrokenInvariant as error:
        return common.fail(f"broken invariant: {error}", common.BROKEN_INVARIANT)
    except Displaced as error:
        return common.fail(common.reason(error, folder), common.ENVIRONMENT)
    except (OSError, sqlite3.Error, jax.errors.JaxRuntimeError) as error:
        reason = common.reason(error, folder)
        return common.fail(f"{reason}; what was done is kept, {goes_on}", common.ENVIRONMENT)
    except (Stopped, KeyboardInterrupt) as stop:
        status = getattr(stop, "status", common.INTERRUPTED)
        return common.fail(f"stopped; what was done is kept, {goes_on}", status)
    spent = time.perf_counter() - started

    def show(console):
        common.show(result, folder, spent, console)
        if not result["blocks"]["complete"]:
            print(f"Blocks are missing: {goes_on}.")

    common.print_safely(show)
    return 0


def _verdict_printer(plan, store, made, bar, *, audited):
    """Prints the claims of each case once it has its trials, under its experiment's title."""
    early, last_title = Early(plan, store, made, audited=audited), None

    def completed(number):
        nonlocal last_title
        cells, title = early(number), plan.cases[number].title
        if last_title is None:
            claims = sum(len(case.eps) for case in plan.cases)
            bar.print_lines(
                report.header(
                    plan.title,
                    claims,
                    plan.delta,
                    plan.confidence_of_run,
                    until_decided=plan.until_decided,
                    audited=audited,
                )
            )
        if title != last_title:
            bar.print_lines([Text(plain(title), style="bold")])
        bar.print_lines(report.claim_lines(cells))
        last_title = title

    return completed


def _tell_damaged(store: Store) -> None:
    if store.damaged:
        told = ", ".join(f"case {case} block {block}" for case, block in store.damaged[:10])
        more = f" and {len(store.damaged) - 10} more" if len(store.damaged) > 10 else ""
        print(f"jaxprune: damaged and dropped: {told}{more}", file=sys.stderr)


def _end_of_part(args, folder, store, part, complete) -> int:
    """Says what there is of a part; the first of several processes waits for all and merges."""
    state = "complete" if complete else "blocks are missing"
    print(f"part {part}: {state}, in {store.path}; jaxprune merge {folder} judges all parts")
    if args.distributed is None:
        return 0
    try:
        jax.distributed.shutdown()  # waits for all
    except jax.errors.JaxRuntimeError as error:
        told = f"{common.reason(error, folder)}; this part is kept"
        return common.fail(told, common.ENVIRONMENT)
    if part.number > 1:
        return 0

    def opened():
        store.check_place()
        return kept.merge([folder], folder)

    return run_kept(args, folder, opened, sample=False)

"""`jaxprune report`."""

import argparse
import sqlite3
import time
from pathlib import Path

import jax

from jaxprune import report
from jaxprune.cli import common
from jaxprune.engine import Store
from jaxprune.engine.packing import read_json
from jaxprune.report import reading, rows
from jaxprune.report.page import write_new
from jaxprune.studies import sampling
from jaxprune.studies.accounts import accounts
from jaxprune.studies.kept import STORE
from jaxprune.studies.result import sha256

MAX_BYTES = 64 * 2**20


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "report",
        help="one HTML page of a run: claims, verdicts, plots, worst trials; CSV, Parquet",
        description="Writes one self-contained HTML page of a result: of verify, frontier, "
        "threshold, rare or bound. With --csv and --parquet its rows too.",
    )
    add = command.add_argument
    add("run_path", type=Path, metavar="RUN", help="a run's folder, or its result.json")
    add("--out", type=Path, metavar="FILE", help="new page (report-DATE-TIME.html)")
    add(
        "--account", type=int, default=0, metavar="N", help="split the gap by layer, on N pairs of "
        "each case that prunes two layers or more; needs the run's run.db (0: no account)"
    )  # fmt: skip
    add("--table", action="store_true", help="also print the result's tables, one row per claim")
    add("--csv", type=Path, metavar="FILE", help="a row a claim, in a new file")
    add("--parquet", type=Path, metavar="FILE", help="the same; needs jaxprune[tables]")
    return command


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    out = args.out or Path(time.strftime("report-%Y%m%d-%H%M%S.html"))
    try:
        for name, path in (("out", out), ("csv", args.csv), ("parquet", args.parquet)):
            if path:
                common.check_new(name, path)
        paths = [path.resolve() for path in (out, args.csv, args.parquet) if path]
        if len(set(paths)) < len(paths):
            raise ValueError("out, csv, parquet: different paths are needed")
        if args.parquet:
            rows.optional("pandas")
            rows.optional("pyarrow")
        path, result = read(args.run_path)
        kept = (path.parent / STORE).is_file()
        split = _accounts(path.parent, result, args.account) if args.account else []
        page = report.page(result, run=str(path.parent) if kept else None, accounts=split)
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    except (OSError, sqlite3.Error, jax.errors.JaxRuntimeError) as error:
        return common.fail(common.reason(error, args.run_path), common.ENVIRONMENT)
    try:
        if args.parquet:
            report.write_parquet(result, args.parquet)
        if args.csv:
            write_new(report.to_csv(result), args.csv)
        write_new(page, out)
    except ValueError as error:
        return common.fail(error, common.BAD_INPUT)
    except OSError as error:
        return common.fail(common.reason(error, out), common.ENVIRONMENT)
    written = [str(path) for path in (out, args.csv, args.parquet) if path]

    def show(console):
        if args.table:
            report.render(result, console)
        print(", ".join(written))

    common.print_safely(show)
    return 0


def _accounts(folder, result, trials):
    path = folder / STORE
    if not path.is_file():
        raise ValueError(f"account = {trials}: needs the run's {STORE}, there is none beside")
    with Store.open(path) as store:
        plan, _ = sampling.reopened(store)
    if plan.hash != result["plan"]["hash"]:
        raise ValueError(f"account = {trials}: {str(path)!r} is of another plan than the result")
    with common.progress_bar() as bar:
        return accounts(plan, trials, bar.advance)


def read(run: Path) -> tuple[Path, dict]:
    """A result, checked, and the path of its file.

    Raises:
      ValueError: none there, none of ours, or a key that is wrong; names file and key.
    """
    try:
        path = run / "result.json" if run.is_dir() else run
        if not run.exists():
            raise ValueError("there is no such file or folder")
        if not path.is_file():
            raise ValueError("no result.json here; jaxprune resume, or merge, makes one")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        result = read_json(path.read_text("utf-8"))
        reading.check(result)
        source = {key: value for key, value in result["plan"].items() if key != "hash"}
        if sha256(source) != result["plan"]["hash"]:
            raise ValueError(f"plan.hash = {result['plan']['hash']!r}: not the hash of its plan")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"run = {str(run)!r}: {reason}") from None
    return path, result

"""The ledger: which runs were made of a plan, so that none can be picked for what it showed.

A plan is written before its data. Its seed is part of it, but another seed is not another claim:
who may run one plan under seed after seed until a verdict pleases, errs as often as he likes. So
a run is noted before its first trial, in a file beside its results, and every report lists all runs
of its plan that this file knows, finished or not. A plan says beforehand how many seeds it is for
(`runs`, 1 unless it says more) and its error is shared among them; a seed beyond these is
exploratory, and its verdicts are `estimated`.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune import bits, files
from jaxprune.studies.plan import Plan
from jaxprune.studies.result import sha256

LEDGER = "jaxprune-runs.jsonl"


class Runs(NamedTuple):
    """All runs of a plan, the present one last.

    Attributes:
      claim: SHA-256 of the plan without its seed and its stream.
      planned: how many seeds the plan is for.
      seeds: of the runs, in the order in which each was first begun; of another than the standard
        stream "SEED of STREAM", as one seed has other trials in each.
      present: the present run's.
    """

    claim: str
    planned: int
    seeds: tuple[int | str, ...]
    present: int | str

    @property
    def exploratory(self) -> bool:
        """Whether the present seed is beyond those planned."""
        return self.seeds.index(self.present) >= self.planned


def claim_hash(source: Mapping[str, Any]) -> str:
    """SHA-256 of a plan's source without what chooses its trials: of its claims and decisions."""
    return sha256({key: value for key, value in source.items() if key not in ("seed", "stream")})


def begin(plan: Plan, folder: Path | None, *known: Sequence[int | str]) -> Runs:
    """Notes a run and finds those before it; the arguments are those of `find`.

    Raises:
      ValueError: a ledger that cannot be read or written; one line.
    """
    find(plan, folder, *known)  # refuses a damaged log before anything is added to it
    _note(plan, folder)
    # Of several begun at once each sees those that were noted before it.
    return find(plan, folder, *known)


def find(plan: Plan, folder: Path | None, *known: Sequence[int | str]) -> Runs:
    """The runs of a plan; run again under an earlier seed, it is that one.

    Args:
      plan: what is to be run.
      folder: of the ledger; None for none, e.g. of a library call.
      known: seeds in the order in which they were begun, as other records of the run have them. Of
        these and the ledger the one with most runs before the present one counts.

    Raises:
      ValueError: a ledger that cannot be read; one line.
    """
    claim, present = claim_hash(plan.source), _label(plan.seed, plan.stream)
    records = [*map(list, known)]
    if folder is not None:
        with _readable(folder / LEDGER) as path:
            records.append(list(dict.fromkeys(_seeds(path, claim))))
    before = lambda seeds: [*seeds, present].index(present)
    seeds = itertools.chain.from_iterable(sorted(records, key=before, reverse=True))
    return Runs(claim, plan.runs, tuple(dict.fromkeys([*seeds, present])), present)


def _note(plan, folder):
    if folder is None:
        return
    entry = {
        "claim": claim_hash(plan.source),
        "plan": plan.hash,
        "title": plan.title,
        "seed": plan.seed,
        "stream": plan.stream,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with _readable(folder / LEDGER) as path, open(path, "ab", opener=files.open_regular) as file:
        file.write(json.dumps(entry).encode() + b"\n")


@contextlib.contextmanager
def _readable(path):
    try:
        yield path
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"log of runs {str(path)!r}: {reason}") from None


def _label(seed, stream):
    return seed if stream == bits.STANDARD else f"{seed} of {stream}"


def _seeds(path, claim):
    try:
        with open(path, encoding="utf-8", opener=files.open_regular) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            label = _label(int(entry["seed"]), entry.get("stream", bits.STANDARD))
            entry = entry["claim"], label
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"log of runs {str(path)!r}, line {number}: not an entry") from None
        if entry[0] == claim:
            yield entry[1]

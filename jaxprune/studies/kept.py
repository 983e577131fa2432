"""Runs kept in folders: begun, gone on with, merged."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxprune.engine import Store
from jaxprune.studies import runs, sampling
from jaxprune.studies.plan import Plan
from jaxprune.studies.runs import Runs
from jaxprune.studies.sampling import WHOLE, Part

STORE = "run.db"
_PART = re.compile(r"run-\d+-of-\d+\.db")


class Kept(NamedTuple):
    """A run that is open, in no other process's hands.

    Attributes:
      store: its blocks.
      plan: what it samples.
      part: of which blocks.
      made: all runs of the plan that the log beside its folder knows, this one noted.
    """

    store: Store
    plan: Plan
    part: Part
    made: Runs


def store_path(folder: Path, part: Part = WHOLE) -> Path:
    """Where the blocks of a run, or of a part of one, are kept."""
    return folder / (STORE if part.of == 1 else f"run-{part.number}-of-{part.of}.db")


def stores(run: Path) -> list[Path]:
    """The file itself, or a folder's stores: its parts or, if there are none, the whole run.

    Raises:
      ValueError: there are none.
    """
    if not run.is_dir():
        return [run]
    found = sorted(path for path in run.iterdir() if _PART.fullmatch(path.name))
    if not found and store_path(run).exists():
        found = [store_path(run)]
    if not found:
        raise ValueError(f"run = {str(run)!r}: there is no {STORE} in this folder")
    return found


def one_store(run: Path) -> Path:
    """The file itself, or a folder's whole run or only part.

    Raises:
      ValueError: there is none, or there are several parts.
    """
    whole = store_path(run)
    found = [whole] if whole.is_file() else stores(run)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"run = {str(run)!r}: one of its parts is needed: {names}")
    return found[0]


def begin(plan: Plan, folder: Path, part: Part = WHOLE, *, resume: bool = False) -> Kept:
    """A new store for a plan; with `resume` the one that is there, if it is.

    Raises:
      ValueError: it is there, or it is another plan's, part's or identity's; nothing is changed.
    """
    path = store_path(folder, part)
    if resume and Store.begun(path):
        kept = reopen(path)
        with _closing_on_error(kept.store):
            theirs = {"plan": kept.plan.hash, "part": kept.part}
            sampling.check_same(f"run = {str(path)!r}", {"plan": plan.hash, "part": part}, theirs)
        return kept
    made = runs.begin(plan, folder.parent)
    folder.mkdir(exist_ok=True)
    return Kept(Store.create(path, sampling.about(plan, part)), plan, part, made)


def reopen(run: Path) -> Kept:
    """A run that is gone on with.

    Args:
      run: a store's file, or a folder with one.

    Raises:
      ValueError: as `Store.open`, several parts, or another identity than this program's.
    """
    store = Store.open(one_store(run), write=True)
    with _closing_on_error(store):
        plan, part = sampling.reopened(store)
        sampling.check_identity(store)
        return Kept(store, plan, part, runs.begin(plan, store.path.parent.parent))


def merge(parts: Sequence[Path], out: Path) -> Kept:
    """Runs of disjoint blocks of one plan as one, in a new store.

    Args:
      parts: files, or folders with stores; they may still be at work.
      out: folder of the new store; a store that is there is replaced.

    Raises:
      ValueError: a plan, identity or block shape differs, or a block is there twice; names it.
    """
    paths = list(itertools.chain.from_iterable(stores(part) for part in parts))
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(Store.open(path)) for path in paths]
        plan, _ = sampling.reopened(sources[0])
        for source in sources[1:]:
            _check_mergeable(sources[0], source)
        _check_disjoint(sources)
        made = runs.begin(plan, out.parent)
        out.mkdir(exist_ok=True)
        path = store_path(out)
        building = path.with_name(path.name + ".merging")
        _remove(building)
        with Store.create(building, sampling.about(plan)) as merged:
            for source in sources:
                merged.take(source)
        damaged = [block for source in sources for block in source.damaged]
    os.replace(building, path)
    _remove(building)
    store = Store.open(path, write=True)
    store.damaged = damaged
    return Kept(store, plan, WHOLE, made)


def _check_mergeable(first: Store, other: Store) -> None:
    name = f"run = {str(other.path)!r}"
    plan, _ = sampling.reopened(other)
    sampling.check_same(name, {"plan": first.about["plan_hash"]}, {"plan": plan.hash})
    sampling.check_same(name, first.about["identity"], other.about["identity"])
    for case in first.cases.keys() & other.cases.keys():
        sampling.check_same(f"{name}, case {case}", first.cases[case], other.cases[case])


def _check_disjoint(sources: Sequence[Store]) -> None:
    owner: dict[tuple[int, int], Store] = {}
    for source in sources:
        twice: dict[int, list[int]] = {}
        for case in source.cases:
            for block in source.blocks(case):
                if owner.setdefault((case, block), source) is not source:
                    twice.setdefault(case, []).append(block)
        if twice:
            told = "; ".join(f"case {case}: blocks {ranges(ids)}" for case, ids in twice.items())
            raise ValueError(f"run = {str(source.path)!r}: another run has the same {told}")


def ranges(ids: Sequence[int]) -> str:
    """Rising integers in words: `"0-3, 7"`; the first few where there are many."""
    found: list[list[int]] = []
    for i in ids:
        if found and found[-1][1] == i - 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in found[:10]]
    return ", ".join(told) + (f" and {len(found) - 10} ranges more" if len(found) > 10 else "")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _closing_on_error(store: Store) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise

"""Runs kept in folders: begun, gone on with, merged."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune import files
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
    """The file itself, or a folder's stores: its parts, and the whole run.

    Raises:
      ValueError: there are none.
    """
    if not run.is_dir():
        return [run]
    found = [path for path in (*_parts(run), store_path(run)) if files.exists(path)]
    if not found:
        raise ValueError(f"run = {str(run)!r}: there is no {STORE} in this folder")
    return found


def _parts(folder):
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


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

    The run is noted in the log beside the folder once there is a store, before its first trial.

    Raises:
      ValueError: it is there, it is another plan's, part's or identity's, or the folder has a run
        in another number of parts; no run is begun, or noted.
      OSError: the folder or the store cannot be made.
    """
    path = store_path(folder, part)
    if resume and files.exists(path):
        kept = reopen(path)
        with _closing_on_error(kept.store):
            theirs = {"plan": kept.plan.hash, "part": kept.part}
            sampling.check_same(f"run = {str(path)!r}", {"plan": plan.hash, "part": part}, theirs)
        return kept
    _check_parts(folder, part)
    folder.mkdir(exist_ok=True)
    store = Store.create(path, sampling.about(plan, part))
    with _undone_on_error(store):
        return Kept(store, plan, part, _noted(plan, store))


def _noted(plan: Plan, store: Store, *known: Sequence[int | str]) -> Runs:
    """Notes a run in the log beside its folder, and what the log said in the store."""
    made = runs.begin(plan, _log(store.path), store.about["seeds"], *known)
    store.amend(seeds=made.seeds)
    return made


def _log(path: Path) -> Path:
    """The folder of the log of runs, beside the folder of a store."""
    return path.resolve().parent.parent


def _check_parts(folder, part):
    """Refuses a folder in which the run is cut otherwise."""
    if not folder.is_dir():
        return
    parts, whole = _parts(folder), store_path(folder)
    ours = re.compile(rf"run-\d+-of-{part.of}\.db")
    others = [path for path in parts if not ours.fullmatch(path.name)]
    if part.of > 1 and not parts and whole.exists():
        others = [whole]
    if others:
        told = f"part = {part.number}/{part.of}" if part.of > 1 else "part"
        raise ValueError(f"{told}: {str(folder)!r} has {others[0].name}, the run cut otherwise")


def reopen(run: Path) -> Kept:
    """A run that is gone on with.

    Args:
      run: a folder with a store, or a part's file.

    Raises:
      ValueError: as `Store.open`, several parts, a whole run that is not its folder's, or another
        identity than this program's.
    """
    path = one_store(run)
    store = Store.open(path, write=True)
    with _closing_on_error(store):
        plan, part = sampling.reopened(store)
        sampling.check_identity(store)
        if path.name != (needed := store_path(Path(), part).name):
            raise ValueError(f"run = {str(path)!r}: in a folder of its own, as {needed}, is needed")
        return Kept(store, plan, part, _noted(plan, store))


def merge(parts: Sequence[Path], out: Path) -> Kept:
    """Runs of disjoint blocks of one plan as one.

    Args:
      parts: files, or folders with stores; they may still be at work.
      out: a folder for the merged run; the whole run that is there takes the blocks it lacks, and
        goes on with what a merge that was killed had begun.

    Raises:
      ValueError: a file that is no run, runs of different plans, identities or block shapes, or
        blocks that two of them have, named, unless one is the whole run in the folder of the
        other; nothing is merged.
      BrokenInvariant: a part and the whole run in `out` differ in a block.
      OSError: the store cannot be written.
    """
    path = store_path(out)
    paths = dict.fromkeys(p.resolve() for run in parts for p in stores(run))
    with contextlib.ExitStack() as stack:
        there = Store.open(path, write=True) if files.exists(path) else None
        if there:
            stack.enter_context(_closing_on_error(there))
        paths.pop(path.resolve(), None)
        sources = [stack.enter_context(Store.open(p)) for p in paths]
        every = [*sources, *([there] if there else [])]
        plan, _ = sampling.reopened(every[0])
        begun: dict[int, Mapping[str, Any]] = {}
        for source in every:
            _check_mergeable(every[0], begun, source)
        _check_disjoint(sources)
        known = [source.about["seeds"] for source in sources]
        # Whatever happens to this process, the store knows the seeds begun before its own.
        seeds = runs.find(plan, _log(path), *known).seeds
        out.mkdir(exist_ok=True)
        store = there or Store.create(path, sampling.about(plan) | {"seeds": seeds})
        with contextlib.nullcontext() if there else _undone_on_error(store):
            for source in sources:
                store.take(source)
                store.damaged += source.damaged
            made = _noted(plan, store, *known)
    return Kept(store, plan, WHOLE, made)


def _check_mergeable(first: Store, begun: dict[int, Mapping[str, Any]], other: Store) -> None:
    """By the first, and by each case as it was begun in the first that has it."""
    name = f"run = {str(other.path)!r}"
    plan, _ = sampling.reopened(other)
    sampling.check_same(name, {"plan": first.about["plan_hash"]}, {"plan": plan.hash})
    sampling.check_same(name, first.about["identity"], other.about["identity"])
    for case, noted in other.cases.items():
        sampling.check_same(f"{name}, case {case}", begun.setdefault(case, noted), noted)


def _check_disjoint(sources: Sequence[Store]) -> None:
    owners: dict[tuple[int, int], Store] = {}
    for source in sources:
        twice: dict[int, list[int]] = {}
        for case in source.cases:
            for block in source.blocks(case):
                owner = owners.setdefault((case, block), source)
                if owner is not source and not _lie_together(owner, source):
                    twice.setdefault(case, []).append(block)
        if twice:
            told = "; ".join(f"case {case}: blocks {ranges(ids)}" for case, ids in twice.items())
            raise ValueError(f"run = {str(source.path)!r}: another run has the same {told}")


def _lie_together(a: Store, b: Store) -> bool:
    """Whether one is the whole run in the folder of the other."""
    return a.path.resolve().parent == b.path.resolve().parent and STORE in (
        a.path.name,
        b.path.name,
    )


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


@contextlib.contextmanager
def _closing_on_error(store: Store) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise


@contextlib.contextmanager
def _undone_on_error(store: Store) -> Iterator[None]:
    """A store that was made, for nothing, is removed again."""
    try:
        with _closing_on_error(store):
            yield
    except BaseException:
        with contextlib.suppress(OSError):  # what else is there stays
            store.check_place()
            store.path.unlink()
            store.path.with_name(store.path.name + ".lock").unlink(missing_ok=True)
            store.path.parent.rmdir()
        raise

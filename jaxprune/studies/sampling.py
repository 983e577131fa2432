"""Sampling of a plan into a store: what is missing, block by block, until it is all there.

A run may be cut into parts, each the work of one process: part i of n has every n-th block, so that
the blocks up to the first missing one grow while all parts are at work. Processes meet in files
alone: one that dies takes nothing with it.
"""

import contextlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import engine, validation
from jaxprune.engine import Store, Tally
from jaxprune.engine.packing import pack
from jaxprune.laws import Law
from jaxprune.statistics import Evidence
from jaxprune.studies import cases, trained
from jaxprune.studies import plan as plans
from jaxprune.studies.ahead import Background
from jaxprune.studies.plan import Case, Plan
from jaxprune.studies.result import Progress, environment, identity
from jaxprune.studies.standing import Standing
from jaxprune.types import BrokenInvariant, Params

LEAST_AUDIT = 30
"""Blocks: a device that spoils one block in ten is found with probability 1 - .9^30 = .958."""

Report = Callable[[Progress], None]


class Part(NamedTuple):
    """Every `of`-th block of each case, from block `number - 1` on."""

    number: int
    of: int

    def __str__(self):
        return f"{self.number} of {self.of}"


WHOLE = Part(1, 1)


def about(plan: Plan, part: Part = WHOLE) -> dict[str, Any]:
    """What a store says of its run; `seeds` will be those of `Runs`."""
    return {
        "plan": plan.source,
        "plan_hash": plan.hash,
        "identity": identity(),
        "environment": environment(plan.seed),
        "part": part,
        "seeds": [],
    }


def reopened(store: Store) -> tuple[Plan, Part]:
    """The plan and the part of a store that was read.

    Raises:
      ValueError: it does not hold them, or the plan is not what its hash says.
    """
    known = store.about
    try:
        plan, part = plans.parse(known["plan"]), Part(*known["part"])
        validation.integer("part", part.of, 1, 2**20)
        validation.integer("part", part.number, 1, part.of)
        if plan.hash != known["plan_hash"] or not isinstance(known["identity"], Mapping):
            raise ValueError("its plan is not the one that it was begun with")
        if not all(type(seed) in (int, str) for seed in list(known["seeds"])):
            raise ValueError("its earlier runs are no list of seeds")
        for number, noted in store.cases.items():
            _check_case(plan, number, noted)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run = {str(store.path)!r}: {error}") from None
    return plan, part


def _check_case(plan, number, noted):
    validation.integer("case", number, 0, len(plan.cases) - 1)
    case = plan.cases[number]
    tally = cases.empty_tally(case)
    asked = {"trials": case.trials, "eps": tally.eps, "labelled": tally.labelled}
    asked["cap"] = tally.cap if math.isfinite(tally.cap) else None
    check_same(f"case {number}", asked, {name: noted[name] for name in asked})


def check_same(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuses, with a ValueError that names the fields, what differs from `mine`."""
    if fields := differing(mine, theirs):
        told = ", ".join(f"{f} = {theirs.get(f)!r} (needed: {mine.get(f)!r})" for f in fields)
        raise ValueError(f"{name}: another run by {told}")


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two records differ."""
    return [f for f in sorted({*mine, *theirs}) if mine.get(f) != theirs.get(f)]


def check_identity(store: Store) -> None:
    """Refuses, with a ValueError, a run that this program and machine would go on differently."""
    check_same(f"run = {str(store.path)!r}", identity(), store.about["identity"])


class Watch:
    """Looks at a case's claims after each block; true once all of them are decided."""

    def __init__(self, case: Case, plan: Plan):
        claims = sum(len(case.eps) for case in plan.cases)
        # Bonferroni decides when to stop: what it decides Holm and e-BH do.
        self.level = (1.0 - plan.confidence_of_run) / claims
        self.evidence = {eps: Evidence() for eps, _ in case.eps}
        self.delta, self.correction = plan.delta, plan.correction

    def __call__(self, tally: Tally) -> bool:
        self.evidence = {
            eps: evidence.look(tally.counts(eps), self.delta)
            for eps, evidence in self.evidence.items()
        }
        return all(e.decides(self.level, self.correction) for e in self.evidence.values())


class _Prefix:
    """A case's tally up to the first missing block, looked at after each block."""

    def __init__(self, store: Store, number: int, watch: Watch):
        self.store, self.number, self.watch = store, number, watch
        self.tally, self.next, self.decided = store.empty(number), 0, False
        self.ahead = set(store.blocks(number))

    def advance(self, block: int | None = None) -> bool:
        """After one more block; whether all claims are decided."""
        self.ahead |= set() if block is None else {block}
        while self.next in self.ahead and not self.decided:
            self.ahead.remove(self.next)
            self.tally += self.store.get(self.number, self.next)
            self.next += 1
            self.decided = self.watch(self.tally)
        return self.decided


def sample(
    plan: Plan,
    store: Store,
    progress: Report | None = None,
    *,
    part: Part = WHOLE,
    seconds: float = math.inf,
    completed: Callable[[int], None] = lambda number: None,
) -> None:
    """Runs the blocks of a part of a plan that the store lacks.

    Cases with sampled targets come first, while the networks of the others are trained.

    Args:
      plan: what is sampled.
      store: where blocks are kept, each once it is done.
      progress: called after every block.
      part: whose blocks.
      seconds: after which no block is begun, and no chunk of networks trained; those in work, and
        a program that is being compiled, are finished.
      completed: called with the number of each case that has all its trials, once it has them;
        never for one of several parts.

    Raises:
      ValueError: a block does not fit in memory.
      BrokenInvariant: a pair's lower bound exceeds its upper bound.
    """
    with contextlib.suppress(_OutOfTime):
        _sample(plan, store, progress, part, time.monotonic() + seconds, completed)


class _OutOfTime(Exception):
    pass


class _Work:
    """How much of all work is done, in rough seconds.

    Attributes:
      seconds: of each case, by its number, and of each training.
      share: of each that is done.
    """

    def __init__(self, seconds: Mapping[Any, float], progress: Report | None, deadline: float):
        self.seconds, self.share = dict(seconds), dict.fromkeys(seconds, 0.0)
        self.progress, self.deadline = progress, deadline

    def advance(self, item: Any, share: float) -> None:
        """Notes what is done; any thread may call it.

        Raises:
          _OutOfTime: the time is up.
        """
        self.share[item] = share
        if time.monotonic() >= self.deadline:
            raise _OutOfTime

    def report(self, doing: str, note: str = "") -> None:
        """Calls the progress callback; the thread that samples does."""
        if self.progress:
            done = sum(self.seconds[item] * share for item, share in self.share.items())
            self.progress(Progress(doing, done, sum(self.seconds.values()), note))


def _sample(plan, store, progress, part, deadline, completed):
    whole = part.of == 1
    complete = [i for i in range(len(plan.cases)) if _case_complete(plan, store, i, part)]
    for number in complete if whole else ():
        completed(number)
    missing = sorted({*range(len(plan.cases))} - {*complete})
    jobs = cases.trainings(plan, missing)
    seconds = {job: 4.0 + 0.05 * count for job, count in jobs.items()}
    seconds |= {number: cases.seconds(plan.cases[number]) for number in missing}
    work = _Work(seconds, progress, deadline)

    def train(job, count):
        def advance(n):
            background.go_on()
            work.advance(job, n / count)

        advance(0)
        return trained.train(*job, count, plan.seed, progress=advance)

    def prepare(number, targets):
        return _as_begun(store, number, cases.prepare(plan.cases[number], plan, targets))

    def sample_case(number, run):
        complete = _sample_case(plan, store, number, run, part, deadline, work)
        work.share[number] = 1.0
        if whole and complete:
            completed(number)

    def sample_cases(numbers, targets):
        runs = [prepare(number, targets) for number in numbers]
        background.compile(runs)
        for number, run in zip(numbers, runs, strict=True):
            sample_case(number, run)

    with Background() as background:
        training = {job: background.train(train, job, count) for job, count in jobs.items()}
        sample_cases([i for i in missing if isinstance(plan.cases[i].targets, Law)], {})
        for (network, recipe), networks in training.items():
            job = network, recipe
            doing = f"training {jobs[job]} networks: {network}"
            _wait(networks, lambda d=doing: work.report(d))
            of_job = [i for i in missing if (plan.cases[i].network, plan.cases[i].targets) == job]
            sample_cases(of_job, {job: networks.result()})


def _wait(future: Future, report: Callable[[], None]) -> None:
    """Until a future is done; reports at once, and about once a second."""
    report()
    while futures.wait([future], 1.0).not_done:
        report()


def _sample_case(plan, store, number, run, part, deadline, work):
    """Returns whether all blocks, or all that are needed to decide, are there."""
    case = plan.cases[number]
    start = time.perf_counter()

    def advance(trials, note=""):
        work.advance(number, trials / case.trials)
        work.report(str(case), note)

    advance(0)
    standing = lambda tally: ""
    # A part does not see the trials of the others.
    if work.progress and part.of == 1:
        there = store.blocks(number) if number in store.cases else ()
        kept = (store.get(number, block) for block in there)
        standing = Standing(case, plan, Watch(case, plan), kept)
    run = engine.fitted(run, begun=number in store.cases)
    empty = cases.empty_tally(case)
    run = store.begin(number, run, empty)
    trials = len(store.blocks(number)) * run.block
    advance(min(trials * part.of, case.trials))
    # A part knows nothing of the blocks between its own.
    watched = plan.until_decided and part.of == 1
    prefix = _Prefix(store, number, Watch(case, plan)) if watched else None
    decided = bool(prefix and prefix.advance())

    def wanted():
        for block in _missing(run, part, store.blocks(number)):
            if decided or time.monotonic() >= deadline:
                return
            yield block

    with contextlib.closing(engine.tally_blocks(run, empty, wanted())) as blocks:
        for done, tally in blocks:
            now = time.perf_counter()
            store.add(number, done.block, tally, device_name(done.device), now - start)
            start, trials = now, trials + tally.trials
            decided = bool(prefix and prefix.advance(done.block))
            with contextlib.suppress(_OutOfTime):  # what is in work is kept
                advance(min(trials * part.of, case.trials), standing(tally))
    return decided or len(store.blocks(number)) == len(run.blocks)


def _missing(run: engine.Run, part: Part, kept: Sequence[int]) -> Iterator[int]:
    there = set(kept)
    return (b for b in run.blocks[part.number - 1 :: part.of] if b not in there)


def is_complete(plan: Plan, store: Store, part: Part = WHOLE) -> bool:
    """Whether no block of a part is missing, or needed any more."""
    return all(_case_complete(plan, store, i, part) for i in range(len(plan.cases)))


def _case_complete(plan, store, number, part):
    noted = store.cases.get(number)
    if noted is None:
        return False
    wanted = range(-(-noted["trials"] // noted["block"]))[part.number - 1 :: part.of]
    if len(store.blocks(number)) == len(wanted):
        return True
    watched = plan.until_decided and part.of == 1
    return watched and any(map(Watch(plan.cases[number], plan), store.prefix(number)))


def device_name(device: jax.Device) -> str:
    """Host and number of a device, as blocks are signed with."""
    return f"{platform.node()} {device.platform}:{device.id}"


def audit(plan: Plan, store: Store, share: float, part: Part = WHOLE) -> int:
    """Runs some blocks once more, on another device if there is one, and compares every bit.

    Args:
      plan: the store's.
      store: a run's.
      share: of all blocks, drawn anew in each audit; at least `LEAST_AUDIT` blocks.
      part: of the plan that the store has.

    Returns:
      How many blocks were run again.

    Raises:
      ValueError: a share outside [0, 1].
      BrokenInvariant: a block came out otherwise. All blocks of the device that made it are
        dropped; `sample` makes them anew. As the other device may be the one that errs, no verdict
        is given before an audit passes.
    """
    share = validation.real("audit", share, 0.0, 1.0, open=False)
    there = [(i, block) for i in store.cases for block in store.blocks(i)]
    count = min(len(there), max(math.ceil(share * len(there)), LEAST_AUDIT))
    rng = np.random.default_rng((plan.seed, store.audits, len(there)))
    drawn = rng.choice(len(there), count, replace=False)
    chosen = {there[k] for k in drawn}
    targets = cases.trained_targets(plan, {i for i, _ in chosen})
    for number in sorted({i for i, _ in chosen}):
        makers: dict[str, list[int]] = {}
        for block in sorted(block for i, block in chosen if i == number):
            makers.setdefault(store.maker(number, block), []).append(block)
        run, empty = ready(plan, store, number, targets), store.empty(number)
        for maker, blocks in makers.items():
            others = [d for d in jax.local_devices() if device_name(d) != maker]
            with contextlib.closing(engine.run_blocks(run, blocks, others or None)) as again:
                for done in again:
                    if not is_as_kept(store, number, done, empty):
                        _fail_audit(store, number, done, maker)
    # What was dropped must be there again to be looked at.
    store.note_audit(count, answers=is_complete(plan, store, part))
    return count


def is_as_kept(store: Store, number: int, done: engine.Done, empty: Tally) -> bool:
    """Whether a block that is there came out the same, to the last bit."""
    try:
        tally = Tally.of(empty.eps, done.ids, done.trials, empty.labelled, empty.cap)
    except BrokenInvariant:
        return False
    return pack(tally) == pack(store.get(number, done.block))


def _fail_audit(store, number, done, maker):
    auditor = device_name(done.device)
    failure = f"case {number}, block {done.block} of {maker} came out otherwise on {auditor}"
    dropped = store.void(maker, failure)
    raise BrokenInvariant(f"audit: {failure}; its {dropped} blocks are dropped, resume makes anew")


def ready(plan: Plan, store: Store, number: int, targets: Mapping[tuple, Params]) -> engine.Run:
    """A case made ready, in the blocks in which it was begun, as many at once as fit in memory.

    Raises:
      ValueError: not even one fits.
    """
    run = _as_begun(store, number, cases.prepare(plan.cases[number], plan, targets))
    return engine.fitted(run, begun=number in store.cases)


def _as_begun(store, number, run):
    noted = store.cases.get(number)
    return run._replace(block=noted["block"], chunk=noted["chunk"]) if noted else run

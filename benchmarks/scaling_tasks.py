"""What the processes of `scaling.py` do, and how one is started; it answers in a line of JSON."""

import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune import engine
from jaxprune.engine.packing import pack
from jaxprune.pruning import METHODS
from jaxprune.statistics import Evidence, judge_stopped

WIDTH, DEPTH = 64, 3
LAW, AMOUNT = jp.uniform(6**0.5), jp.Fraction(1 / 8)

Row = dict[str, Any]

CACHE = "JAX_COMPILATION_CACHE_DIR"
CHILD = """import json, os, sys
cores, path, options = json.loads(sys.argv[1])
if cores:
    os.sched_setaffinity(0, cores)
sys.path.insert(0, path)
{source}
print(json.dumps(result, allow_nan=False))
"""


def fresh(source: str, *, cores: Sequence[int] = (), cache: str = "", **options) -> Any:
    """Runs Python in a process of its own and returns what it calls `result`.

    Args:
      source: sees `options`, and the benchmarks as modules.
      cores: to which the process is pinned; all that this one may use by default.
      cache: folder of the persistent compilation cache; none by default.

    Raises:
      ValueError: the last line of a process that failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != CACHE}
    if cache:
        environment |= {CACHE: cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    call = json.dumps([list(cores), str(Path(__file__).parent), options])
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(source=source), call],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["a child process failed"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


# --- tasks ---------------------------------------------------------------------------------------


def prepared(domain: str, width: int, depth: int, trials: int = 2**40) -> engine.Run:
    """A run; with the default number of trials its block is the device's own."""
    x = np.random.default_rng(0).standard_normal((64, width))
    rows = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return engine.prepare(
        jp.dense((width,) * (depth + 1)),
        LAW,
        jp.bernoulli,
        AMOUNT,
        layers="all",
        domain=rows if domain == "rows" else jp.UnitBall(),
        trials=trials,
    )


def compiled(domain: str, width: int, depth: int) -> Row:
    """Seconds of compilation, those of them in XLA or in reading its cache, programs read there."""
    backend, events = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: backend.append(seconds) if "backend_compile" in name else None
    )
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    run = prepared(domain, width, depth)
    backend.clear()
    events.clear()
    seconds = timed(lambda: engine.compiled_block(run))
    cached = events.count("/jax/compilation_cache/cache_hits")
    return {"seconds": seconds, "backend": sum(backend), "programs": len(backend), "read": cached}


def programs() -> Row:
    """How many programs the cases of one shape need."""
    several = (
        (jp.uniform(1.0), jp.uniform(2.0), jp.normal(1.0)),
        METHODS.values(),
        (jp.Fraction(0.1), jp.Sublinear(0.25), jp.Count(7)),
    )
    made, cases = [], list(itertools.product(*several))

    def compile_all():
        network = jp.dense((WIDTH,) * (DEPTH + 1))
        for case in cases:
            made.append(engine.compiled_block(engine.prepare(network, *case)))

    seconds = timed(compile_all)
    draw, measure = (len({id(program) for program in kind}) for kind in zip(*made, strict=True))
    return {"cases": len(cases), "draw": draw, "measure": measure, "seconds": seconds}


def speed(domain: str, width: int, depth: int, seconds: float, rounds: int) -> Row:
    """Trials per second, round by round, in whole blocks on every thread of the engine."""
    run = prepared(domain, width, depth)
    compiling = timed(lambda: engine.compiled_block(run))
    least = run.block * run.in_flight
    spent = lambda n: timed(lambda: engine.tally_run(prepared(domain, width, depth, n), [1.0]))
    trials = least
    while (wall := spent(trials)) < seconds / 4:
        trials *= 2
    trials = least * math.ceil(trials * seconds / wall / least)
    rates = [trials / spent(trials) for _ in range(rounds)]
    return {"compile": compiling, "block": run.block, "trials": trials, "rates": rates}


def sampled(trials: int) -> Row:
    """One run over rows: its time, and resident memory before it and at most."""
    run = prepared("rows", WIDTH, DEPTH, trials)
    compiling = timed(lambda: engine.compiled_block(run))
    reset_peak()
    before = memory()
    seconds = timed(lambda: engine.tally_run(run, [1.0]))
    return {
        "block": run.block,
        "compile": compiling,
        "seconds": seconds,
        "compiled_mib": before["resident"] / 2**20,
        "peak_mib": memory()["peak"] / 2**20,
    }


def decision(started: float) -> Row:
    """README's first example, its claims looked at until decided; seconds since `started`."""
    at = lambda: time.time() - started
    imported = at()
    network = jp.dense((128, 128, 128, 128))
    case = network, LAW, jp.magnitude, jp.Sublinear(alpha=0.25)
    certified = jp.certify(*case, delta=0.05)
    run = engine.prepare(*case, trials=2000)
    prepared_at = at()
    engine.compiled_block(run)
    compiled_at = at()
    eps = 0.1, certified.eps
    evidence = dict.fromkeys(eps, Evidence())

    def decided(tally):
        for e in eps:
            evidence[e] = evidence[e].look(tally.counts(e), 0.05)
        return all(found.decides(0.01 / len(eps)) for found in evidence.values())

    tally = engine.tally_run(run, eps, until=decided)
    claims = [jp.Claim(tally.counts(e), delta=0.05) for e in eps]
    verdicts = [found.verdict for found in judge_stopped(claims, list(evidence.values()))]
    stages = {"imported": imported, "prepared": prepared_at, "compiled": compiled_at}
    return {**stages, "decided": at(), "trials": tally.trials, "verdicts": verdicts}


def kept(domain: str, width: int, blocks: int) -> Row:
    """Seconds of each block to sample, with all threads at once, to keep and to read."""
    run = engine.fitted(prepared(domain, width, DEPTH))
    empty = engine.empty_tally(run, [1.0])
    found = []
    engine.compiled_block(run)
    sampling = timed(lambda: found.extend(engine.tally_blocks(run, empty, range(blocks))))
    with tempfile.TemporaryDirectory() as folder:
        with engine.Store.create(Path(folder) / "run.db", {}) as store:
            store.begin(0, run, empty)
            add = lambda done, tally: store.add(0, done.block, tally, "device", 0.0)
            keeping = [timed(lambda pair=pair: add(*pair)) for pair in found]
            reading = timed(lambda: sum(1 for _ in store.prefix(0))) / blocks
    size = len(pack(found[0].tally))
    return {
        "block": run.block,
        "bytes": size,
        "sample": [sampling / blocks],
        "keep": keeping,
        "read": [reading],
    }


def timed(call: Callable[[], Any]) -> float:
    """Seconds by the clock."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def memory() -> dict[str, int]:
    """Bytes resident now and at most; without /proc both are the most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        most = scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"resident": most, "peak": most}
    found = dict(line.split(":", 1) for line in lines)
    kib = lambda name: 1024 * int(found[name].split()[0])
    return {"resident": kib("VmRSS"), "peak": kib("VmHWM")}


def reset_peak() -> None:
    """Makes the memory resident now the largest so far, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass

"""Trials per second of the engine, by width and pruning, against a NumPy loop in the same run.

    python benchmarks/trials_per_second.py [--widths 16 64 256] [--seconds 2] [--rounds 5]
                                           [--json FILE]

Claim measured: how many times as many trials a second `jaxprune.engine` runs, on the first JAX
device, as a loop of NumPy calls on the host. A trial samples a 3-layer ReLU network of width d
with `laws.uniform(sqrt(6))` weights, removes floor(D^0.75) of the D = d^2 weights of the middle
layer (those of least magnitude, or as many at random) and measures the gap of the pair:

  sampled  the largest distance over 64 fixed points of the sphere;
  bracket  the whole trial of `UnitBall()`: 64 fresh points of the sphere, 10 steps of ascent from
           the best 8, and an upper bound.

The loop is written to be hard to beat: it carries the difference through the layers as the engine
does (4 products for 64 points, not 6), uses one forward pass for a step of the ascent, writes the
gradient out by hand, and draws from PCG64 (SFC64 is equal within 5 %). It
runs in one process with one BLAS thread or all of them, whichever proves faster before timing (the
JSON file says which). Its upper bound comes from the singular values of `numpy.linalg.svd` in
float32, which prove nothing where the engine's bound is a theorem; eigenvalues of `W^T W` would
cost it 0.8 times (width 64) to 0.55 times (width 256) as much.

"ratio" compares by the clock, as a user meets it: the engine uses every core, the loop one, or
what its BLAS makes of more. "per core" compares trials per second of processor time: what remains
against one loop a core, and what other users of the machine disturb least.

Method: compilation is timed apart (`engine.compiled_block`). Then both run until their medians of
every measured quantity can be compared; the benchmark ends with exit status 1 if two differ by
more than 5 %. That also warms both up. Then engine and loop alternate, `--rounds` rounds of about
`--seconds` each, new seeds in every round. `engine.run_blocks` yields NumPy arrays, so the time
includes the wait for the device; it also includes `engine.prepare`. Printed: medians over rounds
(IQR as % of the median) and the median of each round's ratio. Everything is float32 with
full-precision products. On an accelerator the engine runs there and the loop on the host: the
ratio then compares machines too, and "per core" is left out.

Typical printout, `--seconds 1`, on 2 shared virtual cores (AMD EPYC, Zen 5). Other processes were
busy at first: where "ratio" is hardly above "per core", the engine had about one core. Between
three measurements "per core" moved by up to a fifth, at width 256 "sampled" by a third:

  engine on cpu (cpu); host AMD EPYC, 2 cores, load 4.01 at the start
  python 3.11.7, jaxprune 0.1.0, jax 0.10.2, numpy 2.4.6
  sampled: trials per second, median (IQR)
  pruning    width          engine         NumPy  ratio  per core  compile
  ─────────────────────────────────────────────────────────────────────────
  magnitude     16  110,753 (15 %)  41,301 (6 %)   2.65      2.48    2.2 s
  magnitude     64     8,757 (4 %)  13,160 (4 %)   0.66      0.64    1.7 s
  magnitude    256       614 (4 %)   1,093 (5 %)   0.58      0.52    1.2 s
  random        16   109,539 (8 %)  38,020 (1 %)   2.86      2.62    2.1 s
  random        64     8,535 (3 %)  12,501 (4 %)   0.66      0.63    1.7 s
  random       256       577 (1 %)   1,282 (5 %)   0.44      0.46    1.3 s

  bracket: trials per second, median (IQR)
  pruning    width         engine        NumPy  ratio  per core  compile
  ───────────────────────────────────────────────────────────────────────
  magnitude     16   17,799 (2 %)  2,658 (6 %)   6.58      6.27    4.0 s
  magnitude     64   2,883 (15 %)  1,023 (6 %)   2.73      2.67    3.0 s
  magnitude    256      222 (2 %)     62 (2 %)   3.59      1.84    2.4 s
  random        16  33,592 (10 %)  2,787 (3 %)  12.10      6.34    2.1 s
  random        64    5,890 (4 %)  1,070 (1 %)   5.46      2.80    1.5 s
  random       256      217 (2 %)     67 (1 %)   3.25      1.69    1.3 s

  Medians of the gaps, engine and loop: at most 0.8 % apart.
  5 rounds of about 1 s each, engine and loop in turn.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import command
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import ThreadpoolController

from jaxprune import engine, laws, networks, validation
from jaxprune.gaps import UnitBall
from jaxprune.pruning import METHODS, Sublinear

AMOUNT = Sublinear(0.25)
BALL = UnitBall()
GAIN = math.sqrt(6.0)
PRUNINGS = ("magnitude", "random")
WORKLOADS = ("sampled", "bracket")
TOLERANCE = 0.05
"""Relative difference of two medians above which nothing is timed."""

Measured = dict[str, np.ndarray]
"""One array `(trials,)` a measured quantity."""


class Disagreement(Exception):
    """Engine and loop do not measure the same thing."""


class Row(NamedTuple):
    """One line of the table; rates are trials a second, one a round.

    The `cpu` rates are trials per second of processor time on the host, all threads together; the
    loop's is its best over numbers of BLAS threads, once, before the rounds.
    """

    width: int
    pruning: str
    workload: str
    removed: int
    block: int
    compile_seconds: float
    blas_threads: int
    checked_trials: int
    largest_difference: float
    engine_rates: list[float]
    numpy_rates: list[float]
    engine_cpu_rates: list[float]
    numpy_cpu_rate: float

    @property
    def ratios(self) -> list[float]:
        """Engine over loop by the clock, round by round."""
        return [a / b for a, b in zip(self.engine_rates, self.numpy_rates, strict=True)]

    @property
    def cpu_ratio(self) -> float:
        """The same per second of processor time."""
        return float(np.median(self.engine_cpu_rates)) / self.numpy_cpu_rate


# --- the loop ------------------------------------------------------------------------------------


def numpy_trials(width: int, pruning: str, rows: np.ndarray | None, trials: int, seed) -> Measured:
    """Runs trials one after another in NumPy.

    Args:
      width: of every layer.
      pruning: "magnitude" or "random".
      rows: inputs of the sampled gap; None for the bracket over the unit ball.
      trials: how many.
      seed: of PCG64.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    count = AMOUNT.count(width * width)
    names = ("sampled",) if rows is not None else ("sampled", "lower", "upper")
    out = np.empty((trials, len(names)), np.float32)
    for i in range(trials):
        w = rng.random((3, width, width), dtype=np.float32)
        w -= np.float32(0.5)
        w *= np.float32(2 * GAIN / math.sqrt(width))
        middle = w[1].reshape(-1)
        if pruning == "magnitude":
            gone = np.argpartition(np.abs(middle), count - 1)[:count]
        else:
            gone = rng.choice(len(middle), count, replace=False, shuffle=False)
        p = np.zeros_like(middle)
        p[gone] = middle[gone]
        p = p.reshape(width, width)
        out[i] = _sampled(w, p, rows) if rows is not None else _bracket(w, p, rng)
    return dict(zip(names, out.T, strict=True))


def _forward(w, p, x):
    """Differences `(n, d)` at the rows of x, with what their gradient needs."""
    h = np.maximum(x @ w[0].T, 0)
    a = h @ w[1].T
    b = a - h @ p.T
    d = (np.maximum(a, 0) - np.maximum(b, 0)) @ w[2].T
    return d, h, a, b


def _lengths(d):
    return np.sqrt(np.einsum("ij,ij->i", d, d))


def _sampled(w, p, rows):
    return _lengths(_forward(w, p, rows)[0]).max()


def _bracket(w, p, rng):
    x = rng.standard_normal((BALL.samples, len(p)), dtype=np.float32)
    x /= _lengths(x)[:, None]
    state = _forward(w, p, x)
    values = _lengths(state[0])
    starts = np.argpartition(values, -BALL.starts)[-BALL.starts :]
    x, best = x[starts], values[starts]
    state = tuple(part[starts] for part in state)
    for _ in range(BALL.steps):
        d, h, a, b = state
        back = d @ w[2]
        kept = back * (b > 0)
        g = (back * (a > 0) - kept) @ w[1] + kept @ p
        g = (g * (h > 0)) @ w[0]
        size = _lengths(g)[:, None]
        x = np.where(size > 0, g / np.where(size > 0, size, 1), x)
        state = _forward(w, p, x)
        best = np.maximum(best, _lengths(state[0]))
    norms = np.linalg.svd(np.stack([w[0], p, w[2]]), compute_uv=False)[:, 0]
    return values.max(), best.max(), norms.prod()


# --- the engine ----------------------------------------------------------------------------------


def engine_trials(run: engine.Run) -> Measured:
    """Runs all blocks; the arrays are on the host when this returns."""
    blocks = [trials for _, trials in engine.run_blocks(run)]
    names = ("sampled",) if run.design.ball is None else ("sampled", "lower", "upper")
    return {name: np.concatenate([getattr(b, name) for b in blocks]) for name in names}


def sphere(width: int) -> np.ndarray:
    """The fixed inputs of the sampled gap."""
    x = np.random.default_rng(0).standard_normal((BALL.samples, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# --- timing --------------------------------------------------------------------------------------


def measure(width: int, pruning: str, workload: str, seconds: float, rounds: int) -> Row:
    """Compiles, checks that engine and loop agree, and times them in turn.

    Raises:
      Disagreement: a median of the engine and of the loop differ by more than 5 %.
      ValueError: a network that does not fit on the device.
    """
    rows = sphere(width) if workload == "sampled" else None

    def prepared(trials, seed):
        return engine.prepare(
            networks.dense([width] * 4),
            laws.uniform(GAIN),
            METHODS[pruning],
            AMOUNT,
            domain=BALL if rows is None else rows,
            trials=trials,
            seed=seed,
        )

    # With many trials asked for, the block is the device's own.
    run = prepared(2**40, 0)
    started = time.perf_counter()
    engine.compiled_block(run)
    compiling = time.perf_counter() - started
    block = run.block

    ours = lambda trials, seed: engine_trials(prepared(trials, seed))
    loop = functools.partial(numpy_trials, width, pruning, rows)
    # The wider the network, the less its gap varies.
    checked = min(max(2**16 // width, 64), 4096)
    largest = _difference(
        f"width {width}, {pruning}, {workload}",
        ours(_whole(checked, block), 0),
        loop(checked, 0),
    )

    blas = ThreadpoolController()

    def limited(threads):
        def call(trials, seed):
            with blas.limit(limits=threads, user_api="blas"):
                return loop(trials, seed)

        return call

    found = {k: _calibrate(limited(k), 8, seconds) for k in sorted({1, cores()})}
    threads = max(found, key=lambda k: found[k][0])
    theirs = limited(threads)
    rate, _ = _calibrate(ours, 4 * block, seconds)
    ours_count = _whole(math.ceil(rate * seconds), block)
    theirs_count = math.ceil(found[threads][0] * seconds)
    ours_rates, theirs_rates, ours_cpu_rates = [], [], []
    for seed in range(2, rounds + 2):
        wall, cpu = _timed(ours, ours_count, seed)
        ours_rates.append(ours_count / wall)
        ours_cpu_rates.append(ours_count / cpu)
        wall, _ = _timed(theirs, theirs_count, seed)
        theirs_rates.append(theirs_count / wall)
    return Row(
        width,
        pruning,
        workload,
        AMOUNT.count(width * width),
        block,
        compiling,
        threads,
        checked,
        largest,
        ours_rates,
        theirs_rates,
        ours_cpu_rates,
        max(cpu_rate for _, cpu_rate in found.values()),
    )


def _whole(trials, block):
    """The least number of whole blocks, so that no padding is timed."""
    return -(-trials // block) * block


def _timed(call: Callable[[int, int], Measured], trials: int, seed: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(trials, seed)
    return time.perf_counter() - wall, max(time.process_time() - cpu, 1e-9)


def _calibrate(
    call: Callable[[int, int], Measured], trials: int, seconds: float
) -> tuple[float, float]:
    """Trials a second by the clock and of processor time, from at least a quarter of a round."""
    while True:
        wall, cpu = _timed(call, trials, 1)
        if wall >= seconds / 4:
            return trials / wall, trials / cpu
        trials *= 2


def _difference(what: str, ours: Measured, theirs: Measured) -> float:
    """The largest relative difference of two medians."""
    largest = 0.0
    for name in theirs:
        a, b = float(np.median(ours[name])), float(np.median(theirs[name]))
        off = abs(a - b) / b if b > 0 else math.inf
        if not off <= TOLERANCE:
            raise Disagreement(
                f"{what}: median {name} gap {a:.5g} (engine) and {b:.5g} (NumPy) "
                f"differ by more than {100 * TOLERANCE:g} %"
            )
        largest = max(largest, off)
    return largest


# --- printing ------------------------------------------------------------------------------------


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict:
    """Device, host and versions."""
    device = jax.devices()[0]
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {name: importlib.metadata.version(name) for name in ("jaxprune", "jax", "jaxlib")}
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cpu": cpu,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **versions,
        "numpy": np.__version__,
    }


def headline(facts: dict) -> str:
    """The machine in two lines."""
    load = "" if facts["load"] is None else f", load {facts['load']:g} at the start"
    versions = ", ".join(f"{k} {facts[k]}" for k in ("python", "jaxprune", "jax", "numpy"))
    return (
        f"engine on {facts['platform']} ({facts['device']}); "
        f"host {facts['cpu']}, {facts['cores']} cores{load}\n{versions}"
    )


def tables(rows: list[Row], on_cpu: bool) -> list[Table]:
    """The results, one rich table a workload; processor time only says something on a CPU."""
    made = {}
    for row in rows:
        if row.workload not in made:
            made[row.workload] = _empty(f"{row.workload}: trials per second, median (IQR)")
        made[row.workload].add_row(
            row.pruning,
            str(row.width),
            _rate(row.engine_rates),
            _rate(row.numpy_rates),
            f"{np.median(row.ratios):.2f}",
            f"{row.cpu_ratio:.2f}" if on_cpu else "-",
            f"{row.compile_seconds:.1f} s",
        )
    return list(made.values())


def _empty(title):
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    made.add_column("pruning", no_wrap=True)
    for name in ("width", "engine", "NumPy", "ratio", "per core", "compile"):
        made.add_column(name, justify="right", no_wrap=True)
    return made


def _rate(rates):
    return f"{np.median(rates):,.0f} ({_spread(rates):.0f} %)"


def _spread(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return 100 * (high - low) / middle


def as_json(facts: dict, args: argparse.Namespace, rows: list[Row]) -> str:
    """Every number of the printout and every round, as strict JSON."""
    found = []
    for row in rows:
        medians = {
            "engine_median": float(np.median(row.engine_rates)),
            "numpy_median": float(np.median(row.numpy_rates)),
            "ratio_median": float(np.median(row.ratios)),
            "cpu_ratio": row.cpu_ratio,
            "engine_iqr_percent": float(_spread(row.engine_rates)),
            "numpy_iqr_percent": float(_spread(row.numpy_rates)),
            "ratio_iqr_percent": float(_spread(row.ratios)),
        }
        found.append(row._asdict() | medians)
    plan = {"widths": args.widths, "seconds": args.seconds, "rounds": args.rounds}
    plan |= {"amount": str(AMOUNT), "samples": BALL.samples, "bit_generator": "PCG64"}
    plan |= {"starts": BALL.starts, "steps": BALL.steps}
    return json.dumps({"machine": facts, "plan": plan, "rows": found}, indent=2, allow_nan=False)


# --- the command ---------------------------------------------------------------------------------


def _number(read, name, low, high):
    """An argparse type that reports one clear line."""

    def parse(text):
        try:
            value = read(text)
        except ValueError:
            value = text
        check = validation.integer if read is int else validation.real
        try:
            return check(name, value, low, high)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _new_file(text):
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{text!r} exists; a new path is needed")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{str(path.parent)!r} is no folder one can write to")
    return path


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = command.Parser(
        prog="trials_per_second",
        description="Trials per second of the engine against a NumPy loop in the same run.",
    )
    made.add_argument(
        "--widths",
        type=_number(int, "width", 8, 2048),
        nargs="+",
        default=[16, 64, 256],
        metavar="D",
        help="of the networks (16 64 256)",
    )
    made.add_argument(
        "--seconds",
        type=_number(float, "seconds", 0.0, 3600.0),
        default=2.0,
        metavar="S",
        help="that one round of the engine, and one of the loop, take about (2)",
    )
    made.add_argument(
        "--rounds",
        type=_number(int, "rounds", 1, 1000),
        default=5,
        metavar="N",
        help="of engine and loop in turn (5)",
    )
    made.add_argument("--json", type=_new_file, metavar="FILE", help="new file for every number")
    return made


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if engine and loop disagree, 2 for bad input."""
    args = parser().parse_args(argv)
    facts = machine()
    console, progress = Console(), Console(stderr=True)
    console.print(headline(facts), highlight=False)
    rows = []
    try:
        for workload in WORKLOADS:
            for pruning in PRUNINGS:
                for width in args.widths:
                    with progress.status(f"{workload}, {pruning}, width {width}"):
                        rows.append(measure(width, pruning, workload, args.seconds, args.rounds))
    except Disagreement as error:
        print(f"trials_per_second: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"trials_per_second: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trials_per_second: interrupted, nothing written", file=sys.stderr)
        return 130
    for table in tables(rows, facts["platform"] == "cpu"):
        console.print(table, "")
    worst = max(row.largest_difference for row in rows)
    console.print(
        f"Medians of the gaps, engine and loop: at most {100 * worst:.1f} % apart.\n"
        f"{args.rounds} rounds of about {args.seconds:g} s each, engine and loop in turn.",
        highlight=False,
    )
    if args.json:
        args.json.write_text(as_json(facts, args, rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

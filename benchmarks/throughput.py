"""Trials per second of the engine against the best programs a user would write instead.

    python benchmarks/throughput.py [--workloads sampled conv trial] [--widths 16 64 256 1024]
                                    [--inputs 64 256] [--pruning random magnitude]
                                    [--peers numpy torch jax] [--cores 1] [--seconds 1]
                                    [--rounds 5] [--json FILE]

Workloads, all of three equal layers, ReLU, weights uniform on +-sqrt(6 / fan):

  sampled  dense, width d; all layers pruned by q = d^-1/2, at random (each weight by itself) or by
           magnitude (the floor(q D) smallest of D); the largest distance of target and pruned
           network over 64 or 256 fixed points of the sphere;
  conv     the same for 3x3 convolutions, 16 or 64 channels on 16x16 images, zeros around them, 16
           inputs, q = 1/16;
  trial    dense, the middle layer pruned by q = d^-1/2, the gap over the unit ball bracketed: 64
           sampled inputs, 20 steps of ascent from 8 starts, and the certified upper bound.

Peers (`benchmarks/peers/`, one file each):

  numpy    one trial after another, without allocations;
  torch    batches; for `trial` the engine's own algorithm, multipliers included, in batched torch;
           left out, and said so, where torch is missing (`pip install -e '.[benchmarks]'`);
  jax      jit, vmap, lax.map, `jax.random`, `jnp.sort`; no `trial`.

Each makes its choices (generator, selection, batch) in a short sweep before timing. NumPy's upper
bound in `trial` is a product of singular values in float32: larger, and no certificate.

Method: every candidate runs in its own process, pinned to the first `--cores` cores before it
imports anything, with as many BLAS threads; a process that is not asked for anything sleeps. With
several numbers of cores all of them are timed side by side. Before timing, the medians of every
measured quantity must agree within 5 % (NumPy's upper bound excepted), else the exit status is 1;
that also warms up. Then the candidates take turns, `--rounds` rounds of about `--seconds` each, new
seeds in every round, in whole batches; results lie in NumPy arrays before a clock is stopped.
Printed: medians over rounds (IQR as % of the median); as "ratio" the engine over the best peer, the
median of the ratios round by round; and seconds until the engine is ready (in `trial` the second
pruning shares most of its programs with the first). The JSON file has every round, rates by
processor time, and what every candidate chose. All is float32 with full-precision products, but for
the upper bound's float64.

"floor" is the engine's rate as a share of the rate that the machine's limits allow, measured in the
same run on the same cores (`limits.py`): the 6 products of F and f at the best rate of any shape
tried, and one word of our generator a weight, one after the other; for `trial` the upper bound's
matrix calls too, one by one. Selection by magnitude and the ascent are not counted.

Seen on one core of an AMD EPYC (Zen 4; other work on the second core), where JAX multiplies at 105
GFLOP/s, NumPy at 103, and our words come at .99 G/s; trials a second, ratio to the best peer, % of
the floor; `--rounds 3 --seconds 0.5` (width 1,024 with 64 inputs again, after blocks had grown: .87
and 1.52):

  width, inputs   random                      magnitude
  16, 64          119k   1.66 jax    32 %     68.3k  2.15 torch  18 %
  16, 256         36.6k  1.55 jax    30 %     34.7k  1.44 numpy  29 %
  64, 64          12.1k  1.28 numpy  51 %     9.3k   1.76 numpy  40 %
  64, 256         4.7k   1.14 numpy  60 %     3.5k   1.24 numpy  45 %
  256, 64         816    1.33 numpy  54 %     736    1.98 numpy  49 %
  256, 256        322    1.12 numpy  64 %     246    1.21 numpy  52 %
  1,024, 64       32.4   .78 numpy   33 %     25.4   1.12 numpy  26 %
  1,024, 256      17.7   .81 numpy   57 %     11.8   .97 numpy   40 %
  conv 16, 16     334    .52 torch   36 %     329    .50 torch   36 %
  conv 64, 16     25.4   .47 torch   44 %     22     .43 torch   38 %
  trial 16        3.7k   .89 torch            3.9k   .82 torch
  trial 64        610    1.10 numpy  35 %     612    1.01 numpy  35 %
  trial 256       51.1   1.26 numpy  58 %     53.1   1.19 numpy  60 %

NumPy's `trial` has no certificate; over torch, which has one, the engine's ratios at 64 and 256 are
1.3 and 1.9.

Since then convolutions of 8 channels or more run as such and gradients take their products in
another order. Seen on one core of an Intel Xeon (160 GFLOP/s, 1.20 G words/s; `--rounds 2`):

  conv 16, 16     427    .61 torch   30 %     338    .40 torch   24 %
  conv 64, 16     65.8   .85 torch   75 %     46.5   .72 torch   53 %
  trial 16        4.4k   .95 torch   12 %     4.3k   .95 torch   11 %
  trial 64        696    1.03 torch  29 %     704    1.13 torch  29 %
  trial 256       52.1   1.25 torch  83 %     50.5   1.20 numpy  81 %

On an accelerator engine, jax and torch run there and NumPy on the host: that ratio then compares
machines too.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import command
import throughput_report as report
from peers import KINDS, PRUNINGS, SAMPLES, Workload
from rich.console import Console
from worker import Failure, Worker

from jaxprune import validation

PEERS = ("numpy", "torch", "jax")
WIDTHS = {"sampled": (16, 64, 256, 1024), "conv": (16, 64), "trial": (16, 64, 256)}
CONV_INPUTS = 16
TOLERANCE = 0.05
"""Relative difference of two medians above which nothing is timed."""


class Disagreement(Exception):
    """Two candidates do not measure the same thing."""


@dataclass
class Row:
    """One workload on one number of cores; lists hold one number a round.

    Attributes:
      prepared: by candidate: seconds, batch and choices.
      medians: by candidate, those of the check.
      rates: by candidate, trials a second by the clock.
      cpu_rates: the same by processor time.
      limits: measured at the workload's shapes, see `limits.of`.
      floor: trials a second that the limits allow.
    """

    workload: Workload
    cores: int
    prepared: dict[str, dict[str, Any]]
    medians: dict[str, dict[str, float]]
    rates: dict[str, list[float]]
    cpu_rates: dict[str, list[float]]
    limits: dict[str, float]
    floor: float


# --- timing --------------------------------------------------------------------------------------


def measure(
    workload: Workload, workers: dict[tuple[str, int], Worker], seconds: float, rounds: int
) -> list[Row]:
    """Prepares, compares and times all candidates, and measures the limits: one row a number of
    cores.

    Args:
      workload: what to run.
      workers: by candidate or "limits", and number of cores.
      seconds: of a round, about.
      rounds: how many.

    Raises:
      Disagreement: a median differs from the engine's by more than 5 %.
      Failure: a worker failed.
    """
    runners = {key: worker for key, worker in workers.items() if key[0] != "limits"}
    prepared = {key: worker.ask("prepare", workload) for key, worker in runners.items()}
    # The wider the network, and the larger the image, the less its gap varies.
    checked = min(max(2**22 // (workload.size * workload.taps), 16), 4096)
    first = {key: worker.ask("run", checked, 0) for key, worker in runners.items()}
    check(str(workload), {key: answer["medians"] for key, answer in first.items()})
    counts = {key: _calibrate(worker, checked, seconds) for key, worker in runners.items()}
    answers = {key: [] for key in runners}
    for seed in range(2, rounds + 2):
        for key, worker in runners.items():
            answers[key].append(worker.ask("run", counts[key], seed))
    rows = []
    for cores in sorted({cores for _, cores in runners}):
        names = [name for name, k in runners if k == cores]
        found, floor = workers["limits", cores].ask("of", workload)
        rows.append(
            Row(
                workload,
                cores,
                prepared={name: prepared[name, cores] for name in names},
                medians={name: first[name, cores]["medians"] for name in names},
                rates={name: _rates(answers[name, cores], "wall") for name in names},
                cpu_rates={name: _rates(answers[name, cores], "cpu") for name in names},
                limits=found,
                floor=floor,
            )
        )
    return rows


def _rates(answers, clock):
    return [answer["trials"] / max(answer[clock], 1e-9) for answer in answers]


def _calibrate(worker: Worker, trials: int, seconds: float) -> int:
    """Trials of a round, from a run of at least a quarter of one."""
    while True:
        answer = worker.ask("run", trials, 1)
        if answer["wall"] >= seconds / 4:
            return math.ceil(answer["trials"] / answer["wall"] * seconds)
        trials = 2 * answer["trials"]


def check(what: str, medians: dict[tuple[str, int], dict[str, float]]) -> None:
    """Compares every candidate's medians with the engine's; keys are candidate and cores."""
    ours = next(found for (name, _), found in medians.items() if name == "engine")
    for (peer, _), found in medians.items():
        for quantity, value in found.items():
            if (peer, quantity) == ("numpy", "upper"):
                continue
            if not abs(value - ours[quantity]) <= TOLERANCE * ours[quantity]:
                raise Disagreement(
                    f"{what}: median {quantity} gap {ours[quantity]:.5g} (engine) and "
                    f"{value:.5g} ({peer}) differ by more than {100 * TOLERANCE:g} %"
                )


@contextlib.contextmanager
def working(names: list[str], cores: list[int]) -> Iterator[dict[tuple[str, int], Worker]]:
    """Processes of the candidates and of the limits, ended on the way out."""
    workers = {}
    try:
        for k in cores:
            for name in (*names, "limits"):
                workers[name, k] = Worker(name, k)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


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
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: a folder that exists is needed")
    return path


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = command.Parser(prog="throughput", description=__doc__.partition("\n")[0])
    listed = lambda name, allowed, text: made.add_argument(
        name, choices=allowed, nargs="+", default=list(allowed), help=text
    )
    listed("--workloads", KINDS, "which (all)")
    listed("--pruning", PRUNINGS, "which (both)")
    listed("--peers", PEERS, "which, beside the engine (all)")
    several = lambda name, low, high, **more: made.add_argument(
        f"--{name}", type=_number(int, name, low, high), nargs="+", metavar="N", **more
    )
    several("widths", 8, 2048, help="of all workloads; channels of conv (each workload's own)")
    several("inputs", 1, 2**16, default=[64, 256], help="of sampled (64 256)")
    several("cores", 1, report.cores(), default=[1], help="on which every candidate runs (1)")
    made.add_argument(
        "--seconds",
        type=_number(float, "seconds", 0.0, 3600.0),
        default=1.0,
        metavar="S",
        help="that a candidate takes in one round, about (1)",
    )
    made.add_argument(
        "--rounds", type=_number(int, "rounds", 1, 1000), default=5, metavar="N", help="(5)"
    )
    made.add_argument("--json", type=_new_file, metavar="FILE", help="new file for every number")
    return made


def workloads(args: argparse.Namespace) -> list[Workload]:
    """The grid."""
    inputs = {"sampled": args.inputs, "conv": [CONV_INPUTS], "trial": [SAMPLES]}
    return [
        Workload(kind, pruning, width, n)
        for kind in args.workloads
        for pruning in args.pruning
        for width in args.widths or WIDTHS[kind]
        for n in inputs[kind]
    ]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if candidates disagree or one fails, 2 for bad input."""
    args = parser().parse_args(argv)
    console, progress = report.console(), Console(stderr=True)
    names = ["engine", *args.peers]
    if "torch" in names and importlib.util.find_spec("torch") is None:
        names.remove("torch")
        console.print("torch is not installed: that peer is skipped", highlight=False)
    rows, cores, status = [], sorted(set(args.cores)), 0
    try:
        with working(names, cores) as workers:
            about = {name: workers[name, cores[0]].ask("about") for name in names}
            limits = {k: workers["limits", k].ask("general") for k in cores}
            facts = report.machine({name: found["device"] for name, found in about.items()})
            console.print(report.headline(facts, limits), highlight=False, soft_wrap=True)
            for workload in workloads(args):
                chosen = {
                    (name, k): worker
                    for (name, k), worker in workers.items()
                    if name == "limits" or workload.kind in about[name]["workloads"]
                }
                with progress.status(str(workload)):
                    rows += measure(workload, chosen, args.seconds, args.rounds)
    except (Disagreement, Failure) as error:
        print(f"throughput: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("throughput: interrupted; what follows was measured before", file=sys.stderr)
        status = 130
    if not rows:
        return status
    for table in report.tables(rows):
        console.print(table, "")
    console.print("\n".join(report.summary(rows)), highlight=False)
    console.print(f"{args.rounds} rounds of about {args.seconds:g} s each, in turn.")
    if args.json:
        plan = {key: value for key, value in vars(args).items() if key != "json"}
        found = {
            "machine": facts,
            "plan": plan,
            "limits": limits,
            "rows": [asdict(row) | report.figures(row) for row in rows],
        }
        args.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())

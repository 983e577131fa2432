"""How the engine's time and memory grow: with trials, width, depth, cores; compilation; start.

    python benchmarks/scaling.py [--what trials memory width depth devices compile import decision
                                         store]
                                 [--domains rows ball] [--trials 1000 10000 100000 1000000]
                                 [--widths 16 32 64 128 256 512 1024] [--depths 2 3 6 12 24 30]
                                 [--compile-depths 3 10 30] [--core-widths 64 256]
                                 [--seconds 1] [--rounds 3] [--json FILE]

A trial samples a ReLU network of equal widths (64 and 3 layers unless that is what varies) with
`laws.uniform(sqrt(6))` weights, removes each weight of all layers with probability 1/8 and measures
the gap over 64 fixed points of the sphere ("rows") or brackets it over `UnitBall()` ("ball").

  trials    time of `engine.tally_run` for a number of trials over rows
  memory    peak resident memory of those runs, and what it adds to the memory after compilation;
            aim: from 10^4 to 10^6 trials it changes by at most 5 %
  width     trials per second by width
  depth     trials per second by number of layers
  devices   trials per second on one core and on all cores that this process may use; aim: 0.85
            times the number of cores. A CPU cut into virtual devices would say nothing: children
            are pinned to cores before they start
  compile   `engine.compiled_block`, tracing included, by number of layers: cold, and with JAX's
            persistent cache filled by another process; aim: 30 layers take 10 times as long as 3 at
            most. Also how many programs laws, methods and amounts of one shape need
  import    `import jaxprune` over `import jax`, the former with the latter in it; 5 rounds at least
  decision  the two claims of README's first example, looked at after each block until both are
            decided: seconds from the start of the process, by stage
  store     milliseconds of a block: to sample, to keep it in a file, to read it when claims are
            judged; aim: to keep takes 1 % of sampling at most

Method: everything runs in fresh processes, one at a time, without a persistent cache unless that is
measured. Compilation is timed apart and results are on the host when a clock stops. Rates are those
of `--rounds` rounds of about `--seconds` in one process, after one that is not counted; other
quantities take one process a round, runs of more than 10^5 trials one in all. Rounds of "devices"
and "import" alternate between what is compared. Printed: medians (IQR as % of the median); the
JSON file has every round. Peaks are the kernel's (VmHWM, set back after compilation where
/proc/self/clear_refs allows it). An aim that is missed does not change the exit status.
"""

import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import command
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scaling_tasks import DEPTH, WIDTH, Row, fresh
from throughput_report import headline, machine

from jaxprune import validation

DOMAINS = ("rows", "ball")
MANY = 10**5
"""Runs of more trials are not repeated."""

progress, console = Console(stderr=True), Console(width=100)


# --- measurements: rows of the JSON file, printed as they come -----------------------------------


def ran(task: str, **options) -> Row:
    """`fresh` for a function of `scaling_tasks`."""
    with progress.status(f"{task} {options}"):
        return fresh(f"import scaling_tasks\nresult = scaling_tasks.{task}(**options)", **options)


@functools.lru_cache
def _sampled(trials, rounds):
    return [ran("sampled", trials=trials) for _ in range(1 if trials > MANY else rounds)]


def measure_trials(args) -> list[Row]:
    rows = []
    for trials in args.trials:
        runs = _sampled(trials, args.rounds)
        rows.append({"trials": trials, "block": runs[0]["block"]})
        rows[-1] |= summary("compile", [r["compile"] for r in runs])
        rows[-1] |= summary("seconds", [r["seconds"] for r in runs])
        rows[-1] |= summary("rate", [trials / r["seconds"] for r in runs])
    show("Trials, over rows", rows, "trials block", "seconds rate compile")
    return rows


def measure_memory(args) -> list[Row]:
    rows = []
    for trials in args.trials:
        runs = _sampled(trials, args.rounds)
        rows.append({"trials": trials})
        for name in ("compiled_mib", "peak_mib"):
            rows[-1] |= summary(name, [r[name] for r in runs])
        rows[-1] |= summary("growth_mib", [r["peak_mib"] - r["compiled_mib"] for r in runs])
    show("Resident memory", rows, "trials", "compiled_mib peak_mib growth_mib")
    by = {row["trials"]: row for row in rows}
    low, high = by.get(10**4, rows[0]), rows[-1]
    for name in ("growth_mib", "peak_mib"):
        if low is not high and low[name] > 0:
            text = f"{name}, {high['trials']:,} over {low['trials']:,} trials"
            rows.append(aim(text, high[name] / low[name], 0.95, 1.05))
    return rows


def _speeds(args, title, cases):
    rows = []
    for domain, (width, depth) in itertools.product(args.domains, cases):
        options = {"domain": domain, "width": width, "depth": depth}
        found = ran("speed", **options, seconds=args.seconds, rounds=args.rounds)
        rows.append(options | {"block": found["block"], "timed_trials": found["trials"]})
        rows[-1] |= summary("rate", found["rates"]) | summary("compile", [found["compile"]])
    show(title, rows, "domain width depth block", "rate compile")
    return rows


def measure_width(args) -> list[Row]:
    return _speeds(args, "Width", [(width, DEPTH) for width in args.widths])


def measure_depth(args) -> list[Row]:
    return _speeds(args, "Depth", [(WIDTH, depth) for depth in args.depths])


def measure_devices(args) -> list[Row]:
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    counts, rows, aims = sorted({1, len(allowed)}), [], []
    for domain, width in itertools.product(args.domains, args.core_widths):
        options = {"domain": domain, "width": width, "depth": DEPTH}
        rates = {n: [] for n in counts}
        for _, n in itertools.product(range(args.rounds), counts):
            cores = allowed[:n]
            found = ran("speed", **options, seconds=args.seconds, rounds=1, cores=cores)
            rates[n] += found["rates"]
        rows += [options | {"cores": n} | summary("rate", rates[n]) for n in counts]
        if len(counts) > 1:
            one, n = rates[1], counts[-1]
            ratio = statistics.median(b / a for a, b in zip(one, rates[n], strict=True))
            aims.append((f"{n} cores over one, {domain}, width {width}", ratio, 0.85 * n))
    show("Cores", rows, "domain width cores", "rate")
    return rows + [aim(*found) for found in aims]


def measure_compile(args) -> list[Row]:
    rows, aims = [], []
    for domain, depth in itertools.product(args.domains, args.compile_depths):
        options = {"domain": domain, "width": WIDTH, "depth": depth}
        cold = [ran("compiled", **options) for _ in range(args.rounds)]
        with tempfile.TemporaryDirectory() as cache:
            ran("compiled", **options, cache=cache)
            warm = [ran("compiled", **options, cache=cache) for _ in range(args.rounds)]
        counts = {"programs": cold[0]["programs"], "read": min(r["read"] for r in warm)}
        rows.append(options | counts | summary("cold", [r["seconds"] for r in cold]))
        rows[-1] |= summary("cold_xla", [r["backend"] for r in cold])
        rows[-1] |= summary("warm", [r["seconds"] for r in warm])
    show("Compilation, seconds", rows, "domain depth programs read", "cold cold_xla warm")
    for domain, kind in itertools.product(args.domains, ("cold", "warm")):
        times = {row["depth"]: row[kind] for row in rows if row["domain"] == domain}
        if {3, 30} <= set(times):
            text, most = f"{kind}, {domain}, 30 layers over 3", 10.0 if kind == "cold" else None
            aims.append(aim(text, times[30] / times[3], most=most))
    rows += [*aims, ran("programs")]
    show("Programs of one shape", rows[-1:], "cases draw measure", "seconds")
    return rows


def measure_import(args) -> list[Row]:
    source = "import time\nstarted = time.perf_counter()\nimport {}\n"
    source += "result = time.perf_counter() - started"
    seconds = {"jax": [], "jaxprune": []}
    # The first round fills the disk's cache.
    for i, name in itertools.product(range(max(5, args.rounds) + 1), seconds):
        found = fresh(source.format(name))
        seconds[name] += [found] if i else []
    rows = [{"module": name} | summary("seconds", values) for name, values in seconds.items()]
    show("Import", rows, "module", "seconds")
    pairs = zip(*seconds.values(), strict=True)
    return [*rows, aim("jaxprune over jax", statistics.median(b / a for a, b in pairs))]


def measure_decision(args) -> list[Row]:
    runs = [ran("decision", started=time.time()) for _ in range(args.rounds)]
    row = {"trials": runs[0]["trials"], "verdicts": ", ".join(runs[0]["verdicts"])}
    stages = "imported prepared compiled decided"
    for name in stages.split():
        row |= summary(name, [r[name] for r in runs])
    show("Decision, seconds since the start of the process", [row], "verdicts trials", stages)
    return [row]


def measure_store(args) -> list[Row]:
    rows, aims = [], []
    for domain, width in itertools.product(args.domains, (16, 64)):
        options = {"domain": domain, "width": width}
        runs = [ran("kept", **options, blocks=16) for _ in range(args.rounds)]
        rows.append(options | {"block": runs[0]["block"], "bytes": runs[0]["bytes"]})
        for name in ("sample", "keep", "read"):
            rows[-1] |= summary(name, [1e3 * s for r in runs for s in r[name]])
        share = 100 * rows[-1]["keep"] / rows[-1]["sample"]
        aims.append((f"% of sampling to keep a block, {domain}, width {width}", share))
    show(
        "A block and the store, milliseconds", rows, "domain width block bytes", "sample keep read"
    )
    return rows + [aim(*found, most=1.0) for found in aims]


def summary(name: str, values: Sequence[float]) -> Row:
    """Median, IQR in percent of it and every round."""
    low, middle, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    spread = 100 * (high - low) / middle if middle else 0.0
    return {name: middle, f"{name}_iqr_percent": spread, f"{name}_rounds": list(values)}


def aim(text: str, value: float, least: float | None = None, most: float | None = None) -> Row:
    """A ratio beside what it should be, printed."""
    met = (least is None or value >= least) and (most is None or value <= most)
    parts = [f"{word} {x:g}" for word, x in (("at least", least), ("at most", most)) if x]
    said = f" (aim: {', '.join(parts)}; {'met' if met else 'missed'})" if parts else ""
    console.print(f"{text}: {value:.3g}{said}", highlight=False)
    found = {"ratio": text, "value": value, "at_least": least, "at_most": most}
    return found | {"met": met if parts else None}


def show(title: str, rows: list[Row], facts: str, measured: str) -> None:
    """A table of names given in words; the measured ones with their spread."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in (*facts.split(), *measured.split()):
        made.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row[k]:,}" if isinstance(row[k], int) else row[k] for k in facts.split()]
        for name in measured.split():
            spread = row.get(f"{name}_iqr_percent")
            text = f"{row[name]:,.0f}" if row[name] >= 1000 else f"{row[name]:.3g}"
            cells.append(text if spread is None else f"{text} ({spread:.0f} %)")
        made.add_row(*cells)
    console.print(made, "")


# --- the command ---------------------------------------------------------------------------------

MEASUREMENTS = {
    "trials": measure_trials,
    "memory": measure_memory,
    "width": measure_width,
    "depth": measure_depth,
    "devices": measure_devices,
    "compile": measure_compile,
    "import": measure_import,
    "decision": measure_decision,
    "store": measure_store,
}
LISTS = {  # option: defaults and the range of its integers
    "trials": ([10**3, 10**4, 10**5, 10**6], 1, 10**9),
    "widths": ([16, 32, 64, 128, 256, 512, 1024], 2, 4096),
    "depths": ([2, 3, 6, 12, 24, 30], 1, 100),
    "compile-depths": ([3, 10, 30], 1, 100),
    "core-widths": ([64, 256], 2, 4096),
}


def parser() -> command.Parser:
    """The command line's grammar."""
    made = command.Parser(prog="scaling", description=__doc__.partition("\n")[0])
    made.add_argument("--what", choices=MEASUREMENTS, nargs="+", default=list(MEASUREMENTS))
    made.add_argument("--domains", choices=DOMAINS, nargs="+", default=list(DOMAINS))
    for name, (default, _, _) in LISTS.items():
        made.add_argument(f"--{name}", type=int, nargs="+", default=default, metavar="N")
    made.add_argument("--seconds", type=float, default=1.0, help="of a round, about (1)")
    made.add_argument("--rounds", type=int, default=3, metavar="N")
    return made


def check(args) -> None:
    """Raises ValueError with one line."""
    for name, (_, low, high) in LISTS.items():
        for value in getattr(args, name.replace("-", "_")):
            validation.integer(name, value, low, high)
    validation.real("seconds", args.seconds, 0.0, 3600.0)
    validation.integer("rounds", args.rounds, 1, 1000)


def run(args) -> list[Row]:
    """Every row, printed; in the order of `MEASUREMENTS`."""
    facts = machine({"engine": jax.devices()[0].platform})
    console.print(headline(facts, {}), highlight=False)
    rows = [{"what": "machine"} | facts]
    for what, measure in MEASUREMENTS.items():
        if what in args.what:
            rows += [{"what": what} | row for row in measure(args)]
    return rows


if __name__ == "__main__":
    sys.exit(command.carry_out(parser(), check, run))

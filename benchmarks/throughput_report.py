"""What `throughput.py` prints: machine, tables, ratios."""

import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

PACKAGES = ("jaxprune", "jax", "jaxlib", "numpy", "torch")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def console() -> Console:
    """The terminal; 100 columns where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=100)


def machine(devices: dict[str, str]) -> dict:
    """Host, versions, and the device of each candidate."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "devices": devices,
        "cpu": cpu,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **versions,
    }


def headline(facts: dict, limits: dict[int, dict[str, float]]) -> str:
    """The machine, what runs where on it, and its limits."""
    load = "" if facts["load"] is None else f", load {facts['load']:g} at the start"
    lines = [f"{facts['cpu']}, {facts['cores']} cores{load}"]
    lines.append(", ".join(f"{k} {facts[k]}" for k in ("python", *PACKAGES) if facts[k]))
    if set(facts["devices"].values()) == {"cpu"}:
        lines.append("no accelerator at hand: everything runs on the CPU")
    else:
        lines.append(", ".join(f"{name} on {place}" for name, place in facts["devices"].items()))
    for k, found in limits.items():
        lines.append(
            f"limits, {_cores(k)}: float32 products {found['square_product_flops'] / 1e9:.0f} "
            f"GFLOP/s, copy {found['copy_bytes'] / 1e9:.1f} GB/s, random words "
            f"{found['random_bits_words'] / 1e9:.2f} G/s "
            f"(jax.random {found['jax_random_bits_words'] / 1e9:.2f})"
        )
    return "\n".join(lines)


def _cores(k):
    return "1 core" if k == 1 else f"{k} cores"


def best_peer(row) -> str | None:
    """The peer with the largest median rate; None without peers."""
    peers = {name: np.median(rates) for name, rates in row.rates.items() if name != "engine"}
    return max(peers, key=peers.get) if peers else None


def ratio(row) -> float | None:
    """Engine over best peer: the median of the rounds' ratios."""
    peer = best_peer(row)
    return peer and _paired(row.rates["engine"], row.rates[peer])


def _paired(ours, theirs):
    return float(np.median(np.divide(ours, theirs)))


def of_floor(row) -> float:
    """The engine's share of the rate that the limits allow."""
    return float(np.median(row.rates["engine"])) / row.floor


def figures(row) -> dict:
    """What is printed of a row, for the JSON file."""
    return {
        "median_rates": {name: float(np.median(rates)) for name, rates in row.rates.items()},
        "iqr_percent": {name: _spread(rates) for name, rates in row.rates.items()},
        "best_peer": best_peer(row),
        "ratio": ratio(row),
        "of_floor": of_floor(row),
    }


def tables(rows: list) -> list[Table]:
    """One a kind of workload and number of cores."""
    made = {}
    for row in rows:
        work, peers = row.workload, [name for name in row.rates if name != "engine"]
        title = f"{work.kind}, {_cores(row.cores)}: trials per second, median (IQR)"
        if title not in made:
            made[title] = _empty(title, ["engine", *peers])
        made[title].add_row(
            work.pruning,
            str(work.width),
            str(work.inputs),
            *(_rate(row.rates[name]) for name in ("engine", *peers)),
            f"{ratio(row):.2f} {best_peer(row)}" if peers else "-",
            f"{100 * of_floor(row):.0f} %",
            f"{row.prepared['engine']['seconds']:.1f} s",
        )
    return list(made.values())


def _empty(title, names):
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    made.add_column("pruning", no_wrap=True)
    for name in ("width", "inputs", *names, "ratio", "floor", "compile"):
        made.add_column(name, justify="right", no_wrap=True)
    return made


def _rate(rates):
    middle = float(np.median(rates))
    if middle < 999.5:
        return f"{middle:.3g} ({_spread(rates):.0f}%)"
    thousands = middle / 1000
    return f"{thousands:.{0 if thousands >= 99.95 else 1}f}k ({_spread(rates):.0f}%)"


def _spread(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(100 * (high - low) / middle)


def summary(rows: list) -> list[str]:
    """Geometric mean and least ratio of each table, and of more cores over the fewest."""
    groups = {}
    for row in rows:
        if best_peer(row):
            name = f"{row.workload.kind}, {_cores(row.cores)}: engine over the best peer"
            groups.setdefault(name, []).append(ratio(row))
    alone = min(row.cores for row in rows)
    single = {row.workload: row.rates["engine"] for row in rows if row.cores == alone}
    for row in rows:
        if row.cores != alone:
            name = f"{row.workload.kind}, engine: {_cores(row.cores)} over {_cores(alone)}"
            found = _paired(row.rates["engine"], single[row.workload])
            groups.setdefault(name, []).append(found)
    return [
        f"{name}: geometric mean {np.exp(np.mean(np.log(found))):.2f}, least {min(found):.2f}"
        for name, found in groups.items()
    ]

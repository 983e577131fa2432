"""Seeds the faults of `faults.toml`, one at a time, and checks that the default tests notice each.

    python tests/mutations/run.py [NAME ...] [--jobs JOBS]

First the tests that the faults name run once in an unmodified copy of the package, all in one
session. They must pass, and they fill the compilation cache that the later runs read. Then each
fault is seeded in a copy of its own, and the tests that it names run there. Only tests of the
default tier count: a fault whose tests are all marked `ci` or `slow` is an error. A fault is red if
its tests fail, GREEN if they pass, and an error if pytest could not run them. The exit status is 0
only if every fault is red.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("jaxprune", "tests", "pyproject.toml")
PASSED, FAILED = 0, 1  # pytest's exit status; 5 if it found no test of the default tier
TIMED_OUT = -1
WORDS = {PASSED: "GREEN", FAILED: "red"}
MOST_SECONDS = 900
"""After which the tests of one fault are stopped."""


def faults():
    return tomllib.loads(Path(__file__).with_name("faults.toml").read_text("utf-8"))["fault"]


def mutated(text: str, fault) -> str:
    """The file's text with the fault in it."""
    if text.count(fault["old"]) != 1:
        raise ValueError(f"{fault['name']}: its text occurs {text.count(fault['old'])} times")
    return text.replace(fault["old"], fault["new"])


def copy_tracked(folder: Path) -> None:
    """Copies the tracked files that the tests need."""
    command = ["git", "ls-files", "-z", *COPIED]
    names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path)


def seed(folder: Path, fault) -> None:
    """Writes the fault into a copy, and deletes what Python compiled of the unmodified file.

    Python tells a changed file from a compiled one by size and whole seconds only.
    """
    path = folder / fault["file"]
    path.write_text(mutated(path.read_text("utf-8"), fault), "utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def pytest(folder: Path, cache: str, arguments: list[str], limit: float | None = None):
    """Exit status, seconds and the last lines of pytest in a copy."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OPENBLAS_NUM_THREADS": "1",  # several runs share the cores
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *"-m pytest -q -p no:cacheprovider".split(), *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT, time.perf_counter() - start, f"stopped after {limit} s"
    return done.returncode, time.perf_counter() - start, done.stdout[-4000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; by default all")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--jobs", type=int, default=cores, help="how many runs at once (cores)")
    asked = parser.parse_args()
    chosen = [f for f in faults() if not asked.names or f["name"] in asked.names]
    if unknown := set(asked.names) - {f["name"] for f in chosen}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="jaxprune-mutations-") as folder:
        original, cache = Path(folder, "unmodified"), str(Path(folder, "cache"))
        copy_tracked(original)
        nodes = dict.fromkeys(node for fault in chosen for node in shlex.split(fault["tests"]))
        arguments = ["-n", str(asked.jobs), *nodes]
        status, seconds, output = pytest(original, cache, arguments)
        print(
            f"{'unmodified':12} {seconds:6.1f} s  status {status}  {len(nodes)} tests", flush=True
        )
        if status != PASSED:
            sys.exit(f"{output}\nwithout any fault these tests do not pass")

        def run(number, fault):
            copy = Path(folder, str(number))
            shutil.copytree(original, copy)  # with what Python compiled of it
            seed(copy, fault)
            arguments = ["-x", "-n0", *shlex.split(fault["tests"])]
            found = pytest(copy, cache, arguments, MOST_SECONDS)
            shutil.rmtree(copy, ignore_errors=True)
            return found

        missed = []
        with ThreadPoolExecutor(asked.jobs) as pool:
            results = pool.map(run, range(len(chosen)), chosen)
            for fault, (status, seconds, output) in zip(chosen, results, strict=True):
                word = WORDS.get(status, "error")
                print(f"{fault['kind']:12} {seconds:6.1f} s  {word:6}  {fault['name']}", flush=True)
                if status != FAILED:
                    missed.append(fault["name"])
                    print(output, flush=True)
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(chosen) - len(missed)} of {len(chosen)} red in {minutes:.1f} minutes")
    for name in missed:
        print(f"NOT RED: {name}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

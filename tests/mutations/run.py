"""Seeds the faults of `faults.toml`, one at a time, and counts how many the tests notice.

    python tests/mutations/run.py [NAME ...] [--jobs 1]

Works on copies of the tracked files. A fault is red if its tests fail, GREEN if they pass, an error
if pytest could not run them; all tests must pass before any fault is seeded. The exit status is 0
if at least 95 % of them are red, every statistical one among them.
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
SHARE = 0.95
PASSED, FAILED = 0, 1  # pytest's exit status; 2 and more: it could not do what was asked
WORDS = {PASSED: "GREEN", FAILED: "red"}


def faults():
    return tomllib.loads(Path(__file__).with_name("faults.toml").read_text("utf-8"))["fault"]


def mutated(text: str, fault) -> str:
    """The file's text with the fault in it."""
    if text.count(fault["old"]) != 1:
        raise ValueError(f"{fault['name']}: its text occurs {text.count(fault['old'])} times")
    return text.replace(fault["old"], fault["new"])


def run(tests: str, cache: str, fault=None):
    """Exit status, seconds and last lines of pytest in a fresh copy.

    A copy of its own for each run, since Python tells a changed file from the one that it compiled
    by size and whole seconds only: a file put back could still run as the fault.
    """
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    with tempfile.TemporaryDirectory(prefix="jaxprune-mutation-") as folder:
        for name in filter(None, names):
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, path)
        if fault:
            path = Path(folder, fault["file"])
            path.write_text(mutated(path.read_text("utf-8"), fault), "utf-8")
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *"-m pytest -x -q -n0 -p no:cacheprovider".split(), *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "JAX_COMPILATION_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, time.perf_counter() - start, done.stdout[-4000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; by default all")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    asked = parser.parse_args()
    chosen = [f for f in faults() if not asked.names or f["name"] in asked.names]
    if unknown := set(asked.names) - {f["name"] for f in chosen}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(asked.jobs) as pool:
        selections = list(dict.fromkeys(f["tests"] for f in chosen))
        ran = pool.map(lambda tests: run(shlex.split(tests), cache), selections)
        for tests, (status, seconds, output) in zip(selections, ran, strict=True):
            print(f"{'unmodified':12} {seconds:6.1f} s  status {status}  {tests}", flush=True)
            if status != PASSED:
                sys.exit(f"{output}\nwithout any fault these tests do not pass: {tests}")
        results = pool.map(lambda f: run(shlex.split(f["tests"]), cache, f), chosen)
        red, missed = 0, []
        for fault, (status, seconds, output) in zip(chosen, results, strict=True):
            word = WORDS.get(status, "error")
            print(f"{fault['kind']:12} {seconds:6.1f} s  {word:6}  {fault['name']}", flush=True)
            red += status == FAILED
            missed += [fault] if status != FAILED else []
            if word == "error":
                print(output)
    statistical = [f["name"] for f in missed if f["kind"] == "statistics"]
    minutes = (time.perf_counter() - start) / 60
    print(f"{red} of {len(chosen)} red in {minutes:.1f} minutes; statistical missed: {statistical}")
    sys.exit(red < SHARE * len(chosen) or bool(statistical))


if __name__ == "__main__":
    main()

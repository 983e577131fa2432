"""Draws the golden bits under the oldest and the newest supported JAX, in fresh environments.

    python tests/versions/run.py [--jax 0.10.0 newest] [--python 3.11 3.12]

Each environment gets this package, the tests' requirements and that JAX; `tests/test_bits.py`, the
golden bits and the keys of `tests/test_engine.py` and `tests/test_keys.py` run there. One line a
version; an interpreter that is not installed is skipped, and said to be. The exit status is 1 if
any of them fails, or all are skipped.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEWEST = "newest"
TESTS = ("tests/test_bits.py", "tests/test_keys.py", "tests/test_engine.py")
CHOSEN = "bits or keys or seeds or trial_ids"
PRINT = "import jax, jaxlib, sys; print(jax.__version__, jaxlib.__version__, *sys.version_info[:3])"


def oldest() -> str:
    """The least JAX that `pyproject.toml` allows."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    (least,) = (w.removeprefix("jax>=") for w in wanted if w.startswith("jax>="))
    return least if least.count(".") == 2 else f"{least}.0"


def interpreter(version: str) -> str | None:
    """A Python of this version that starts, or None."""
    for name in (sys.executable, f"python{version}"):
        path = shutil.which(name)
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        if path and _said([path, "-c", code]).stdout.strip() == version:
            return path
    return None


def _said(command, **options):
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def check(python: str, jax: str) -> tuple[bool, str]:
    """Whether the tests pass there, and what to say of it."""
    with tempfile.TemporaryDirectory(prefix="jaxprune-versions-") as folder:
        home = Path(folder, "venv")
        mine = home / "bin" / "python"
        pins = ["jax", "jaxlib"] if jax == NEWEST else [f"jax=={jax}", f"jaxlib=={jax}"]
        source = Path(folder, "source")  # a build writes beside its source
        names = _said(["git", "ls-files"], cwd=ROOT).stdout.splitlines()
        for name in filter(lambda name: (ROOT / name).is_file(), names):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
        steps = [
            [python, "-m", "venv", home],
            [mine, "-m", "pip", "install", "-q", source, "pytest", *pins],
        ]
        for step in steps:
            done = _said(step)
            if done.returncode:
                return False, f"not installed: {done.stdout.strip()[-500:]}"
        versions = _said([mine, "-c", PRINT]).stdout.split()
        environment = {**os.environ, "PYTHONPATH": "", "JAX_COMPILATION_CACHE_DIR": ""}
        options = ["-q", "-k", CHOSEN, "-o", "addopts=-m 'not slow'", "-p", "no:cacheprovider"]
        tests = [source / test for test in TESTS if (source / test).is_file()]
        command = [mine, "-I", "-m", "pytest", *options, *tests]
        done = _said(command, cwd=folder, env=environment)
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "nothing printed"
        passed = done.returncode == 0 and bool(re.search(r"\d+ passed", last))
        told = last.strip("= ") if passed else done.stdout[-4000:]
        return passed, "jax {}, jaxlib {}, Python {}.{}.{}: ".format(*versions) + told


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jax", nargs="+", default=[oldest(), NEWEST], metavar="VERSION")
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12"], metavar="VERSION")
    asked = parser.parse_args()
    results = []
    for version in asked.python:
        python = interpreter(version)
        for jax in asked.jax:
            if python is None:
                print(f"SKIPPED: JAX {jax}: Python {version} is not installed", flush=True)
                continue
            start = time.perf_counter()
            passed, told = check(python, jax)
            results.append(passed)
            word = "passed" if passed else "FAILED"
            print(f"{word} {time.perf_counter() - start:4.0f} s  {told}", flush=True)
    sys.exit(not results or not all(results))


if __name__ == "__main__":
    main()

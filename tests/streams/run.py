"""Tests the random streams of many trials, interleaved, with dieharder (Debian's package).

    python tests/streams/run.py [--all] [--tests "TEST" ...] [--streams threefry-13 ...]
                                [--orders trials words seeds] [--seed 0]

Pipes words of the trials' own keys into dieharder's tests. A trial has 12 streams, those of three
purposes and four layers, of 1024 words each. Orders of the words, of a block of 256 trials:

  trials  word 0 of every trial, layer and purpose (the purpose runs fastest), then word 1, ...;
  words   one stream after another: the 1024 words of a purpose, layer and trial, then the next;
  seeds   as `trials`, but of one trial of each of 256 consecutive seeds.

Every test has trials of its own: the k-th begins at trial k 2^32. `threefry-20` and `threefry-13`
are the engine's. Any other number of rounds R is a control: R rounds for the words and for the tree
of keys too. By default both streams must pass 17 quick tests in the orders trials and words, and
controls must fail: about 3 minutes on one idle core, the same p-values every time. Too few rounds
are noticed up to 4 in the order trials, 7 in words, 5 in seeds; the controls have 4, 6, 4.

`--all` runs the whole battery (`dieharder -a`, 114 p-values) instead. One of its tests, the lagged
sums, reads 224 GB: at the measured 200 MB/s, with the rest, about 240 GB and half an hour for each
stream and order, so two hours by default (an estimate from single tests).

Decision: a p-value fails if it is below 1e-6 / 2n or above 1 - 1e-6 / 2n, n the number of p-values
of all streams under test: Bonferroni, so that perfect bits fail a run with probability 1e-6 or less
as far as dieharder's p-values are right. It prints eight decimals: for n > 100 a p-value fails if
it is printed as 0 or 1, and the rate is n 1e-8. Tests that dieharder itself calls suspect or not to
be used (OPSO, OQSO, DNA, sums) are printed but decide nothing. There is no test of all p-values
against uniform: those of one test share their words, and dieharder's are uniform in the limit only.

The exit status is 0 if all streams pass and all controls fail, 1 if not, 2 for bad input, or if
dieharder is missing or stops without a p-value.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import bits
from jaxprune.engine import keys

LAYERS, TOGETHER, WORDS = 4, 256, 1024
"""Layers of a trial; trials, or seeds, of a block; words of each of their streams."""

TRIALS, STREAM_BY_STREAM, SEEDS = "trials", "words", "seeds"
ORDERS = (TRIALS, STREAM_BY_STREAM, SEEDS)
CONTROLS = {TRIALS: "threefry-4", STREAM_BY_STREAM: "threefry-6", SEEDS: "threefry-4"}

QUICK = ("0", "1", "3", "4", "8", "9", "15", "16", "100", "200 -n 4", "202 -n 3", "203 -n 0")
QUICK += ("205", "206", "207", "208", "209")
WHOLE = "all"

ALARM = 1e-6
PRINTED = 5e-9
"""A p-value below it is printed as 0, one as near to 1 as 1."""

UNRELIABLE = {"diehard_opso", "diehard_oqso", "diehard_dna", "diehard_sums"}

_LINE = re.compile(r" *(\w+)\| *(\d+)\| *\d+\| *\d+\| *(\d\.\d+|-?nan)\| *([A-Z]+) *")
_STREAM = re.compile(r"threefry-([1-9]|1\d|20)")
_TEST = re.compile(rf"{WHOLE}|\d+( -[a-zA-Z] \d+)*")


@dataclass(frozen=True)
class Line:
    """One p-value."""

    name: str
    size: int
    p: float
    word: str

    @property
    def decides(self) -> bool:
        return self.name not in UNRELIABLE


def parse(output: str) -> list[Line]:
    """The p-values of what dieharder printed.

    Raises:
      ValueError: there are none, or one is no number.
    """
    found = [m.groups() for m in map(_LINE.fullmatch, output.splitlines()) if m]
    if not found or any("nan" in p for _, _, p, _ in found):
        raise ValueError(f"dieharder gave no p-value:\n{output}")
    return [Line(name, int(size), float(p), word) for name, size, p, word in found]


def limit(count: int) -> float:
    """Below it, or as near to 1, one of so many p-values fails."""
    return max(ALARM / 2 / count, PRINTED)


def failures(lines: list[Line], bound: float) -> list[Line]:
    return [line for line in lines if line.decides and not bound <= line.p <= 1 - bound]


def fold_in(rounds: int, key: jax.Array, data: jax.Array) -> jax.Array:
    """`jax.random.fold_in` of the two words of a key, of a number of rounds."""
    return jnp.stack(bits._threefry(rounds, key[0], key[1], jnp.zeros_like(data), data))


def controlled(rounds: int, root: jax.Array, trial: keys.TrialId) -> jax.Array:
    """The words `(layers, purposes, words)` of a trial, all by a number of rounds."""

    def words(purpose, layer):
        key = root
        for data in (purpose, layer, *trial):
            key = fold_in(rounds, key, data)
        high, low = jax.vmap(partial(fold_in, rounds, key))(jnp.arange(WORDS, dtype=jnp.uint32)).T
        return high ^ low

    purposes, layers = (jnp.arange(n, dtype=jnp.uint32) for n in (keys.TRIAL_PURPOSES, LAYERS))
    return jax.vmap(jax.vmap(words, (0, None)), (None, 0))(purposes, layers)


def drawn(stream: str, root: jax.Array, trial: keys.TrialId) -> jax.Array:
    """The words `(layers, purposes, words)` of a trial, as the engine draws them."""
    own = keys.trial_keys(root, keys.TRIAL_PURPOSES, LAYERS, trial).T
    return jax.vmap(jax.vmap(lambda key: bits.random_bits(key, (WORDS,), stream)))(own)


@partial(jax.jit, static_argnums=(0, 1))
def block(stream: str, order: str, roots: jax.Array, trials: keys.TrialId) -> jax.Array:
    """The words of roots times trials in their order."""
    words = partial(drawn, stream)
    if stream not in bits.STREAMS:
        words = partial(controlled, int(stream.split("-")[1]))
    x = jax.vmap(jax.vmap(words, (None, 0)), (0, None))(roots, trials)
    return (x if order == STREAM_BY_STREAM else jnp.moveaxis(x, -1, 0)).reshape(-1)


def roots(stream: str, order: str, seed: int) -> jax.Array:
    """The roots of the keys of a block."""
    seeds = range(seed, seed + (TOGETHER if order == SEEDS else 1))
    if stream in bits.STREAMS:
        return jnp.stack([keys.root_key(s) for s in seeds])
    rounds = int(stream.split("-")[1])
    first = jnp.stack([jnp.zeros(len(seeds), jnp.uint32), jnp.array(seeds, jnp.uint32)], -1)
    version = lambda key: fold_in(rounds, key, jnp.uint32(keys.STREAM_VERSION))
    return jax.jit(jax.vmap(version))(first)


def blocks(stream: str, order: str, seed: int, high: int) -> Iterator[np.ndarray]:
    """Words without end, those of the trials from high 2^32 on."""
    own = roots(stream, order, seed)
    step = 1 if order == SEEDS else TOGETHER
    for low in range(0, 2**32, step):
        ids = jnp.arange(step, dtype=jnp.uint32) + jnp.uint32(low)
        yield np.asarray(block(stream, order, own, (jnp.full(step, high, jnp.uint32), ids)))


def ask(test: str, words: Iterator[np.ndarray]) -> tuple[list[Line], int]:
    """The p-values of one test of dieharder, and the bytes that it took, rounded up to blocks."""
    which = ["-a"] if test == WHOLE else ["-d", *test.split()]
    command = ["dieharder", "-g", "200", *which]
    size = 0
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        try:
            with suppress(BrokenPipeError):
                for some in words:
                    size += some.nbytes
                    process.stdin.write(some)
            with suppress(BrokenPipeError):
                process.stdin.close()
            output = process.stdout.read().decode()
        except BaseException:
            process.kill()
            raise
    return parse(output), size


def battery(stream, order, tests, seed, bound=None, quiet=False):
    """The p-values of a stream in an order; with a bound only up to the first failure."""
    found = []
    for k, test in enumerate(tests):
        start = time.perf_counter()
        lines, size = ask(test, blocks(stream, order, seed, k))
        seconds = time.perf_counter() - start
        found += lines
        for line in lines if not quiet else ():
            name = f"{line.name} {line.size}"
            end = f"{seconds:7.1f} s {size / 1e6:10,.0f} MB" if line is lines[-1] else ""
            row = f"{stream:11} {order:6} {test:9} {name:24} {line.p:.8f} {line.word:6} {end}"
            print(row.rstrip(), flush=True)
        if bound is not None and failures(lines, bound):
            break
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="the whole battery")
    parser.add_argument(
        "--tests", nargs="+", default=QUICK, metavar="TEST", help='as "203 -n 7" (dieharder -l)'
    )
    parser.add_argument("--streams", nargs="+", default=list(bits.STREAMS), metavar="threefry-R")
    parser.add_argument("--orders", nargs="+", default=ORDERS[:2], choices=ORDERS)
    parser.add_argument("--seed", type=int, default=0, help="or the first of the 256")
    asked = parser.parse_args()
    if bad := [name for name in asked.streams if not _STREAM.fullmatch(name)]:
        parser.error(f"no such stream: {', '.join(bad)}")
    if bad := [test for test in asked.tests if not _TEST.fullmatch(test)]:
        parser.error(f"no such test: {', '.join(bad)}")
    if not 0 <= asked.seed <= keys.MAX_SEED + 1 - TOGETHER:
        parser.error(f"--seed: 0 to {keys.MAX_SEED + 1 - TOGETHER}")
    if not shutil.which("dieharder"):
        sys.stderr.write("dieharder is missing: apt-get install dieharder\n")
        sys.exit(2)
    tests = (WHOLE,) if asked.all else asked.tests
    start = time.perf_counter()
    try:
        found = [
            (f"{stream}, {order}", battery(stream, order, tests, asked.seed))
            for stream in asked.streams
            for order in asked.orders
        ]
        bound = limit(sum(line.decides for _, lines in found for line in lines))
        red = [(where, line) for where, lines in found for line in failures(lines, bound)]
        passed = []
        for order in asked.orders:
            control = CONTROLS[order]
            lines = battery(control, order, QUICK, asked.seed, bound, quiet=True)
            bad = failures(lines, bound)
            last = f"fails at {bad[0].name}, p = {bad[0].p:.8f}" if bad else "PASSES"
            print(f"{control:11} {order:6} the control {last}", flush=True)
            passed += [] if bad else [f"{control}, {order}"]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    for where, line in red:
        print(f"FAILED: {where}: {line.name} {line.size}, p = {line.p:.8f}")
    values = [line for _, lines in found for line in lines if line.decides]
    print(
        f"{len(red)} of {len(values)} p-values beyond {bound:.2g} (at either end; false alarms "
        f"{max(ALARM, 2 * PRINTED * len(values)):.2g} a run), least {min(x.p for x in values):.2g},"
        f" greatest {max(x.p for x in values):.8f}; controls that pass: {passed or 'none'}; "
        f"{(time.perf_counter() - start) / 60:.1f} minutes"
    )
    sys.exit(bool(red or passed))


if __name__ == "__main__":
    main()

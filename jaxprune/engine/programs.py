"""The compiled programs of blocks: the only place where trials are batched."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Hashable
from concurrent.futures import Future
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.engine import memory
from jaxprune.engine.precision import FULL, check_products
from jaxprune.engine.run import Run
from jaxprune.engine.trial import (
    Numbers,
    Trial,
    count_correct,
    draw_masked,
    draw_pair,
    measure_pair,
)


@functools.partial(jax.jit, static_argnums=0)
def _draw_block(design, numbers, high, low):
    return jax.vmap(lambda h, l: draw_pair(design, numbers, (h, l)))(high, low)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure_block(network, ball, pairs):
    return jax.vmap(lambda pair: measure_pair(network, ball, pair, None))(pairs)


@functools.partial(jax.jit, static_argnums=0)
def _count_block(network, pairs, labelled):
    return jax.vmap(lambda pair: count_correct(network, pair, labelled))(pairs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _block_over_rows(design, chunk, numbers, high, low):
    def one(trial):
        pair = draw_pair(design, numbers, trial)
        found = measure_pair(design.network, None, pair, numbers.rows)
        if numbers.labelled is None:
            return found
        return _with_counts(found, count_correct(design.network, pair, numbers.labelled))

    return jax.lax.map(one, (high, low), batch_size=chunk)


def _with_counts(trial: Trial, counts: tuple[jax.Array, jax.Array]) -> Trial:
    target, pruned = counts
    return trial._replace(target_correct=target, pruned_correct=pruned)


def _compiler_options():
    # A CPU's time goes into library calls: LLVM's second level adds half to compilation and brings
    # nothing measurable. Random bits gain a third from the widest vectors. Neither option is for a
    # GPU, whose compiler takes the first for its kernels.
    cpu = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}
    return cpu if jax.default_backend() == "cpu" else {}


_PROGRAMS_KEPT = 128
_programs: collections.OrderedDict[Hashable, Future] = collections.OrderedDict()
_programs_lock = threading.Lock()


class Block(NamedTuple):
    """The compiled programs of a run's blocks.

    Over a ball the bracket takes most of the time to compile: laws, pruning methods, drawn and
    given targets of one network share its program, and accuracy has one of its own. Over given rows
    one program does all: a trial is so short that its weights are not to leave the caches, and many
    share the time that a call takes.

    Attributes:
      draw: samples and prunes: `(numbers, high, low) -> Pair`; None over rows.
      measure: brackets the gaps: `Pair -> Trial`; over rows the whole block,
        `(numbers, high, low) -> Trial`.
      count: `(Pair, labelled) -> (target_correct, pruned_correct)`; None over rows, or if no inputs
        are labelled.
    """

    draw: jax.stages.Compiled | None
    measure: jax.stages.Compiled
    count: jax.stages.Compiled | None = None

    @property
    def bytes(self) -> int:
        """Most memory that a call takes, arguments and results included."""
        stats = [program.memory_analysis() for program in self if program is not None]
        sizes = [
            s.temp_size_in_bytes + s.argument_size_in_bytes + s.output_size_in_bytes for s in stats
        ]
        return max(sizes)

    def __call__(self, numbers: Numbers, high: np.ndarray, low: np.ndarray) -> Trial:
        if self.draw is None:
            return self.measure(numbers, high, low)
        pairs = self.draw(_to_draw(numbers), high, low)
        trials = self.measure(pairs)
        if self.count is None:
            return trials
        return _with_counts(trials, self.count(pairs, numbers.labelled))


_draw_masked = jax.jit(draw_masked, static_argnums=0)


def draw(run: Run, trial: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of a trial's target and, of the same shapes, whether each is kept."""
    words = np.uint32(trial >> 32), np.uint32(trial & 0xFFFFFFFF)
    _, params, masks = _draw_masked(run.design, _to_draw(run.numbers), words)
    kept = [
        np.ones(w.shape, bool) if m is None else np.asarray(m)
        for w, m in zip(params, masks, strict=True)
    ]
    return [np.asarray(w) for w in params], kept


def _to_draw(numbers):
    return numbers._replace(rows=None, labelled=None)


def compiled_block(run: Run, device: jax.Device | None = None) -> Block:
    """The compiled programs of a run's blocks; equal designs and shapes share them.

    Threads may ask for the same program at once: it is compiled once, the others wait.

    Args:
      run: from `prepare`.
      device: on which they run; None for the first. The programs of all devices are the same, so
        that a trial's numbers do not depend on how many there are: those of `shard_map` on two
        or more devices differ from the one on a single device in the last digit.
    """
    place = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
    shaped = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    word = jax.ShapeDtypeStruct((run.block,), jnp.uint32, sharding=place)
    numbers = jax.tree.map(shaped, run.numbers)
    if run.design.ball is None:
        whole = run.design, run.chunk, numbers, word, word
        return Block(None, _compiled(_block_over_rows, 2, *whole))
    design, drawing = dataclasses.replace(run.design, ball=None), _to_draw(numbers)
    drawn = design, drawing, word, word
    pairs = jax.tree.map(shaped, _draw_block.eval_shape(*drawn))
    draw = _compiled(_draw_block, 1, *drawn)
    measure = _compiled(_measure_block, 2, design.network, run.design.ball, pairs)
    if numbers.labelled is None:
        return Block(draw, measure)
    count = _compiled(_count_block, 1, design.network, pairs, numbers.labelled)
    return Block(draw, measure, count)


def fitted(run: Run, *, begun: bool = False) -> Run:
    """The run in blocks that fit in the device's memory, as the compiler counts it.

    Args:
      run: from `prepare`.
      begun: its blocks must stay what they are, since some were run: only fewer run at once.

    Raises:
      ValueError: not even one trial, or block, fits.
    """
    device = jax.local_devices()[0]
    while (needed := compiled_block(run).bytes * run.in_flight) > memory.device_bytes(device):
        if run.in_flight > 1:
            run = run._replace(in_flight=1)
        elif run.chunk > 1 and not begun:
            chunk = run.chunk // 2
            run = run._replace(chunk=chunk, block=chunk if run.design.ball else run.block)
        else:
            one = f"a block of {run.block} trials as begun" if begun else "a trial"
            raise ValueError(
                f"{run.design.network}: {one} needs {needed / 2**30:.1f} GiB, "
                f"at most {memory.device_bytes(device) / 2**30:.1f} GiB is allowed here"
            )
    return run


def _compiled(function, statics, *args):
    """The program of a jitted function; its first arguments are static, the others shapes."""
    leaves, treedef = jax.tree.flatten(args[statics:])
    key = function, args[:statics], treedef, tuple(leaves)
    with _programs_lock:
        program = _programs.get(key)
        if mine := program is None:
            program = _programs[key] = Future()
            while len(_programs) > _PROGRAMS_KEPT:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
    if mine:
        try:
            with jax.default_matmul_precision(FULL):
                lowered = function.lower(*args)
            check_products(lowered.as_text())
            program.set_result(lowered.compile(_compiler_options()))
        except BaseException as error:
            with _programs_lock:
                if _programs.get(key) is program:
                    del _programs[key]
            program.set_exception(error)
    return program.result()

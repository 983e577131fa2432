"""Blocks of trials on all devices of this process."""

import collections
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from jaxprune import session
from jaxprune.engine.programs import compiled_block
from jaxprune.engine.run import Run
from jaxprune.engine.trial import Trial

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit = None


@contextlib.contextmanager
def _one_blas_thread():
    """LAPACK's own threads, beside those of several blocks, halve the speed.

    The limit is the process's: the first of several runs sets it, the last one lifts it.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        if not _blas_users:
            _blas_limit = threadpool_limits(1, "blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if not _blas_users:
                _blas_limit.restore_original_limits()


def words(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Trial ids from `start` on, as the high and the low words of each."""
    ids = np.arange(start, start + count, dtype=np.uint64)
    return (ids >> 32).astype(np.uint32), (ids & 0xFFFFFFFF).astype(np.uint32)


class Done(NamedTuple):
    """A block that was run.

    Attributes:
      block: its id.
      ids: of its trials.
      trials: their results, arrays `(len(ids),)`.
      device: that ran it.
    """

    block: int
    ids: range
    trials: Trial
    device: jax.Device


def run_blocks(
    run: Run,
    blocks: Iterable[int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[Done]:
    """Runs blocks, each on one device, and yields them in the order asked for.

    Args:
      run: from `prepare`.
      blocks: ids of blocks; None for all. They are asked for as they are needed: who wants no
        more ends them, and gets the blocks that are in work.
      devices: take blocks by turns; None for all local ones.
    """
    blocks = run.blocks if blocks is None else blocks
    devices = (devices or jax.local_devices())[: len(run.blocks)]
    compiled = session.thread_settings()(compiled_block)
    with ThreadPoolExecutor(len(devices)) as pool:
        programs = list(pool.map(lambda device: compiled(run, device), devices))
    numbers = [jax.device_put(run.numbers, device) for device in devices]
    wanted = _at_once(run, len(devices))

    @session.thread_settings()
    def one(place, start):
        return jax.tree.map(np.asarray, programs[place](numbers[place], *words(start, run.block)))

    def cut(block, place, future):
        """Without the padding past the last trial."""
        ids = run.ids(block)
        trials = Trial(*(field[: len(ids)] for field in future.result()))
        return Done(block, ids, trials, devices[place])

    pool = ThreadPoolExecutor(wanted)
    try:
        with _one_blas_thread():
            running = collections.deque()
            for turn, block in enumerate(blocks):
                place = turn % len(devices)
                running.append((block, place, pool.submit(one, place, block * run.block)))
                if len(running) == wanted:
                    yield cut(*running.popleft())
            while running:
                yield cut(*running.popleft())
    finally:
        # Who is interrupted does not wait for blocks that are in work.
        pool.shutdown(wait=False, cancel_futures=True)


def _at_once(run, devices):
    """How many blocks: a CPU's devices share its cores."""
    if jax.default_backend() == "cpu":
        return max(run.in_flight, devices)
    return run.in_flight * devices

"""Work that goes on in the background while other runs are sampled: compilation and training."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from jaxprune import engine
from jaxprune.types import Params

Job = TypeVar("Job")


@contextlib.contextmanager
def compiling_ahead(runs: Sequence[engine.Run]) -> Iterator[Callable[[engine.Run], None]]:
    """Compiles the runs' programs in their order; those not begun are dropped at the end.

    Yields a function that takes one more run.
    """
    with ThreadPoolExecutor(1) as compiler:

        def compile_too(run):
            compiler.submit(engine.compiled_block, run)

        try:
            for run in runs:
                compile_too(run)
            yield compile_too
        finally:
            compiler.shutdown(cancel_futures=True)


class _Ended(Exception):
    pass


@contextlib.contextmanager
def training_ahead(
    jobs: Mapping[Job, int], train: Callable[[Job, int, Callable[[int], None]], Params]
) -> Iterator[Mapping[Job, Future]]:
    """Trains networks, one job after the other; at the end the chunk in work is the last one.

    Args:
      jobs: what is trained, and how many networks of each.
      train: `(job, count, progress)` returns the networks; it calls progress after each chunk.

    Yields:
      The networks of each job, as a future.
    """
    ended = threading.Event()

    def progress(_):
        if ended.is_set():
            raise _Ended

    with ThreadPoolExecutor(1) as trainer:
        try:
            yield {job: trainer.submit(train, job, count, progress) for job, count in jobs.items()}
        finally:
            ended.set()
            trainer.shutdown(cancel_futures=True)

"""Work that goes on in the background while other runs are sampled: compilation and training."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from jaxprune import engine, session

Result = TypeVar("Result")


class Ended(Exception):
    """What the background was for is over."""


class Background:
    """One thread that compiles, and one that trains, within a `with`.

    At the end what was not begun is dropped; the program that is being compiled, and the step
    between two calls of `go_on`, are waited for.
    """

    def __init__(self):
        self._compiler, self._trainer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._ended = threading.Event()

    def compile(self, runs: Iterable[engine.Run]) -> None:
        """Compiles the programs of runs, in their order."""
        compiled = session.thread_settings()(engine.compiled_block)
        for run in runs:
            self._compiler.submit(compiled, run)

    def train(self, train: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Calls a function that trains, after those given before."""
        return self._trainer.submit(session.thread_settings()(train), *arguments)

    def go_on(self) -> None:
        """Called between two steps of training.

        Raises:
          Ended: nobody waits for its result.
        """
        if self._ended.is_set():
            raise Ended

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        # Both are told before either is waited for.
        for pool in (self._compiler, self._trainer):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._compiler, self._trainer):
            pool.shutdown()

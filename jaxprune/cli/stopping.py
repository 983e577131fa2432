"""Signals end a command in seconds, and what is kept of its run is whole."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax

GRACE = 3.0
"""Seconds for the command to end by itself. A block in work, or a compilation, may take longer and
is dropped: every block that was done is in the store."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal arrived.

    Attributes:
      status: of the exit, 128 and the signal's number.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises `Stopped` in the main thread when a signal arrives; ends the process after `GRACE`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        for other in SIGNALS:
            signal.signal(other, lambda number, _: os._exit(128 + number))
        raise Stopped(number)

    # JAX's own service takes SIGTERM for itself once several processes have joined.
    service = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)
    # The main thread may be inside a compilation, where no handler of Python's runs: the signal's
    # number comes through a pipe to a thread as well.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        jax.config.update("jax_enable_preemption_service", service)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(reading: int) -> None:
    number = os.read(reading, 1)
    os.close(reading)
    if number and number[0] in SIGNALS:
        time.sleep(GRACE)
        os._exit(128 + number[0])

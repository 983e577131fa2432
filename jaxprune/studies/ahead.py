"""Programs compiled on one thread while the runs before them use the other cores."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from jaxprune import engine


@contextlib.contextmanager
def compiling_ahead(runs: Sequence[engine.Run]) -> Iterator[None]:
    """Compiles the runs' programs in their order; those not begun are dropped at the end."""
    with ThreadPoolExecutor(1) as compiler:
        try:
            for run in runs:
                compiler.submit(engine.compiled_block, run)
            yield
        finally:
            compiler.shutdown(cancel_futures=True)

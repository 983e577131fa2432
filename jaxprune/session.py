"""JAX's settings that change what a program of ours does, or stop it half-way.

They are for finding faults in a program: an infinite bound, a transfer, a promotion of types are
none here. Of commands they are the process's own; a library leaves them to its caller.
"""

import contextlib
import threading
from collections.abc import Iterator

import jax

_NEEDED = {
    "debug_infs": False,
    "debug_nans": False,
    "disable_jit": False,
    "numpy_dtype_promotion": "standard",
    "transfer_guard": "allow",
}

_thread = threading.local()


def check() -> None:
    """Refuses settings under which a run would end in the middle.

    Raises:
      ValueError: the first of them, what is needed, and how to set it.
    """
    for name, needed in _NEEDED.items():
        value = getattr(jax.config, f"jax_{name}")
        usable = (needed, "log") if name == "transfer_guard" else (needed,)
        if value is not None and value not in usable:
            raise ValueError(
                f"jax_{name} = {getattr(value, 'value', value)!r}: {needed!r} is needed, "
                f"as with jax.{name}({needed!r})"
            )


def enter_thread() -> None:
    """Gives a new thread, which does not inherit what its caller is within, the settings needed."""
    _thread.within = contextlib.ExitStack()  # until the thread ends
    for name, needed in _NEEDED.items():
        _thread.within.enter_context(getattr(jax, name)(needed))


@contextlib.contextmanager
def commands_own() -> Iterator[None]:
    """Within, all threads have the settings needed, whatever the environment says."""
    before = {name: getattr(jax.config, f"jax_{name}") for name in _NEEDED}
    try:
        for name, needed in _NEEDED.items():
            jax.config.update(f"jax_{name}", needed)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(f"jax_{name}", value)

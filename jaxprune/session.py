"""JAX's settings that change what a program of ours does, or stop it half-way.

They are for finding faults in a program: an infinite bound, a transfer, a promotion of types are
none here. Of commands they are the process's own; a library leaves them to its caller.
"""

import contextlib
from collections.abc import Iterator

import jax

# The first sets the others, which may then be set by themselves.
_GUARDS = (
    "transfer_guard",
    "transfer_guard_host_to_device",
    "transfer_guard_device_to_host",
    "transfer_guard_device_to_device",
)
_NEEDED = {
    "debug_infs": False,
    "debug_nans": False,
    "disable_jit": False,
    "numpy_dtype_promotion": "standard",
    **dict.fromkeys(_GUARDS, "allow"),
}


def check() -> None:
    """Refuses settings under which a run would end in the middle.

    Raises:
      ValueError: the first of them, what is needed, and how to set it.
    """
    for name, needed in _NEEDED.items():
        value = getattr(jax.config, f"jax_{name}")
        usable = (needed, "log") if name in _GUARDS else (needed,)
        if value is not None and value not in usable:
            raise ValueError(
                f"jax_{name} = {getattr(value, 'value', value)!r}: {needed!r} is needed, "
                f"as with jax.{name}({needed!r})"
            )


@contextlib.contextmanager
def thread_settings() -> Iterator[None]:
    """Within, or in a function that it decorates, this thread has the settings needed.

    A thread does not inherit what its caller is within.
    """
    with contextlib.ExitStack() as within:
        for name, needed in _NEEDED.items():
            within.enter_context(getattr(jax, name)(needed))
        yield


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Within, all threads have the settings needed, whatever the environment says."""
    before = {name: getattr(jax.config, f"jax_{name}") for name in _NEEDED}
    try:
        for name, needed in _NEEDED.items():
            jax.config.update(f"jax_{name}", needed)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(f"jax_{name}", value)

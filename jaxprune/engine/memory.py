"""How many trials one block holds, from a budget of bytes."""

import bisect
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from jaxprune.engine.trial import Design
from jaxprune.gaps import UnitBall, frequencies, shared_torus
from jaxprune.networks import Conv, Network

CPU_CHUNK_BYTES = {"rows": 4 * 2**20, "ball": 16 * 2**20}
"""Past the caches, more trials at once only cost page faults on a CPU; a bracket over a ball is a
long sequence of small products, and gains by more trials at once."""

BLOCK_BYTES, BLOCK_CHUNKS = 2**32, 16
"""A block over rows is at least so much written in turn, some tenths of a second, and so many
chunks: to tally and keep a block takes less than a hundredth of that, memory is new with each
call, and at width 1,024 its first use cost a third of the time."""

MAX_CHUNK, MAX_BLOCK = 2**12, 2**16
_FLOAT = 4


_limit: int | None = None


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[None]:
    """Within, this process's runs may use so many bytes of each device; None changes nothing."""
    global _limit
    before, _limit = _limit, _limit if limit is None else limit
    try:
        yield
    finally:
        _limit = before


def device_bytes(device: jax.Device) -> int:
    """Memory that a run may use: `limited`, or 80 % of what the device, or a CPU's host, has."""
    if _limit is not None:
        return _limit
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with contextlib.suppress(OSError, ValueError):  # a container's, where there is one
            limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(0.8 * limit)


def trial_bytes(design: Design, inputs: int) -> int:
    """Rough size of one trial's arrays, in Python integers (nothing here can wrap).

    Args:
      design: the trial.
      inputs: how many inputs pass through the network at once.
    """
    network = design.network
    weights = sum(network.weight_counts)
    features = math.prod(network.in_shape)
    for layer in network.layers:
        # a, d, h and e of a layer, and the patches that a convolution gathers of h and e.
        copies = 2 * layer.kernel**2 if isinstance(layer, Conv) else 2
        features += (2 + copies) * math.prod(layer.out_shape)
    # Over rows all is float64.
    total = 6 * weights + (1 if design.ball else 2) * inputs * features
    if design.ball:
        total += _multiplier_floats(network)
    if not isinstance(design.ball, UnitBall):
        # W, P, their difference and absolute values, in float64.
        total += 2 * 6 * weights
    return _FLOAT * total


def _multiplier_floats(network: Network) -> int:
    """Of the upper bound: float64 forms and factors of one layer at a time, states of h and e
    together, and what the search for multipliers keeps of all layers."""
    torus, _ = shared_torus(network)
    most, kept = 0, 0
    for layer in network.layers:
        rows, columns = layer.weight_shape[:2]
        floats = 4 * max(rows, min(columns, 4 * rows)) ** 2
        if isinstance(layer, Conv):
            floats *= 2 * len(frequencies(torus or layer.torus))
        most = max(most, 12 * floats)
        kept += 8 * floats if layer is not network.layers[-1] else 0
    return most + kept


def check(design: Design, inputs: int, device: jax.Device, targets: int = 0) -> None:
    """Refuses, before anything is allocated, a network of which one trial does not fit.

    Args:
      design: the trial.
      inputs: how many inputs pass through the network at once.
      device: where it runs.
      targets: given networks that lie there beside it.

    Raises:
      ValueError: it does not fit; the message names the largest that does.
    """
    limit = device_bytes(device)
    needed = _needed(design, inputs, targets)
    if needed <= limit:
        return
    most = f"at most {limit / 2**30:.1f} GiB is allowed here"
    one = f"{design.network}: a trial needs about {needed / 2**30:.1f} GiB"
    if targets and _needed(design, inputs, 1) <= limit:
        fitting = largest(lambda n: _needed(design, inputs, n) <= limit, targets)
        raise ValueError(f"{one} beside {targets} targets, {most}: {fitting} targets fit")
    scales = range(1, 1025)
    fits = lambda scale: _needed(_scaled(design, scale / 1024), inputs, targets) <= limit
    fitting = largest(fits, len(scales))
    hint = f": {_scaled(design, fitting / 1024).network} fits" if fitting else ""
    raise ValueError(f"{one}, {most}{hint}")


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, if smaller ones do; 0 for none."""
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


def _needed(design, inputs, targets):
    return trial_bytes(design, inputs) + _FLOAT * targets * sum(design.network.weight_counts)


def _scaled(design: Design, share: float) -> Design:
    """The same design with every width times a share."""
    less = lambda d: max(1, int(d * share))

    def layer(one):
        if isinstance(one, Conv):
            return dataclasses.replace(one, c_in=less(one.c_in), c_out=less(one.c_out))
        image = (less(one.image[0]), *one.image[1:]) if one.image else ()
        d_in = math.prod(image) if image else less(one.d_in)
        return dataclasses.replace(one, d_in=d_in, d_out=less(one.d_out), image=image)

    network = design.network
    in_shape = (less(network.in_shape[0]), *network.in_shape[1:])
    layers = tuple(layer(one) for one in network.layers)
    return dataclasses.replace(design, network=Network(layers, network.activation, in_shape))


def in_flight(design: Design, inputs: int, chunk: int, device: jax.Device) -> int:
    """How many blocks run at once: one a core, two on an accelerator, as far as memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = max(2, cores) if device.platform == "cpu" else 2
    return max(1, min(wanted, device_bytes(device) // (chunk * trial_bytes(design, inputs))))


def chunk_size(design: Design, inputs: int, device: jax.Device) -> int:
    """Trials in memory at once: the most within the device's budget; a power of two, at least 1."""
    if device.platform == "cpu":
        budget = CPU_CHUNK_BYTES["ball" if design.ball else "rows"]
    else:
        budget = device_bytes(device) // 4
    return _fitting(design, inputs, budget, MAX_CHUNK)


def block_size(design: Design, inputs: int, chunk: int) -> int:
    """Trials over rows in one call, chunk by chunk; a power of two, at least 16 chunks."""
    return max(BLOCK_CHUNKS * chunk, _fitting(design, inputs, BLOCK_BYTES, MAX_BLOCK))


def _fitting(design, inputs, budget, most):
    fitting = max(1, min(most, budget // trial_bytes(design, inputs)))
    return 2 ** int(math.log2(fitting))

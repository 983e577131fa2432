"""What the machine allows: products, copies and random bits a second, best of several calls."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from peers import LAYERS, Workload

from jaxprune.bits import random_bits

SECONDS = 0.3


def _rate(call: Callable[[], object], amount: float) -> float:
    """Amount a second in the best call."""
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return amount / best


def _product(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Float32 operations a second of `(..., m, k) @ (..., k, n)`."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.random(shape, np.float32)) for shape in (left, right))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return _rate(lambda: product(a, b).block_until_ready(), 2.0 * a.size * right[-1])


@functools.cache
def general() -> dict[str, float]:
    """Limits that no workload changes: float32 operations, bytes and 32-bit words a second."""
    on_host = jax.default_backend() == "cpu"
    side, words = (1024, 2**18) if on_host else (8192, 2**27)
    options = {"xla_cpu_prefer_vector_width": 512} if on_host else None
    key = jax.random.key(0)
    ours = jax.jit(lambda key: random_bits(key, (words,)), compiler_options=options)
    jaxs = jax.jit(lambda key: jax.random.bits(key, (words,)))
    source = np.ones(2**25, np.float32)
    target = np.zeros_like(source)
    return {
        "square_product_flops": _product((side, side), (side, side)),
        "copy_bytes": _rate(lambda: np.copyto(target, source), 2.0 * source.nbytes),
        "random_bits_words": _rate(lambda: ours(key).block_until_ready(), words),
        "jax_random_bits_words": _rate(lambda: jaxs(key).block_until_ready(), words),
    }


def products(workload: Workload) -> dict[str, float]:
    """Float32 operations a second at the workload's own shapes, by trials in one product."""
    d, fan_in = workload.width, workload.width * workload.taps
    columns = workload.inputs * workload.pixels
    found = {}
    for batch in (1, 4, 16, 64):
        floats = batch * (d * fan_in + (d + fan_in) * columns)
        if batch > 1 and floats > 2**23:
            break
        found[f"{batch} side by side"] = _product((batch, d, fan_in), (batch, fan_in, columns))
        found[f"{batch} with shared inputs"] = _product((batch * d, fan_in), (fan_in, columns))
    return found


def of(workload: Workload) -> tuple[dict[str, float], float | None]:
    """The products of a workload, and trials a second that no program with these exceeds.

    Products at the best rate measured, then one word a weight; no selection is counted. The whole
    trial has no floor here.
    """
    if workload.kind == "trial":
        return {}, None
    limits, found = general(), products(workload)
    flops = max(limits["square_product_flops"], *found.values())
    words = max(limits["random_bits_words"], limits["jax_random_bits_words"])
    return found, 1.0 / (workload.flops / flops + LAYERS * workload.size / words)

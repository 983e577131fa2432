"""What the machine allows: products, copies and random bits a second, best of several calls."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from peers import LAYERS, Workload
from threadpoolctl import threadpool_limits

from jaxprune.bits import random_bits
from jaxprune.gaps import norms

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


@functools.cache
def factorisations(width: int) -> dict[str, float]:
    """Seconds of the upper bound's calls on one square matrix, by call and precision."""
    found, count = {}, max(1, 2**18 // width**2)  # many at once, lest the call itself be timed
    with jax.enable_x64(True), threadpool_limits(1, "blas"):
        for dtype in (jnp.float32, jnp.float64):
            a = jnp.asarray(np.random.default_rng(0).standard_normal((count, width, width)), dtype)
            form = jax.jit(lambda a: norms.gram(a)[0])
            positive = form(a) + width * norms.identity(a)
            calls = {"gram": (form, a), "cholesky": (jax.jit(norms.cholesky), positive)}
            lower = jax.block_until_ready(calls["cholesky"][0](positive))
            calls["solve"] = jax.jit(norms.solve_lower), lower, a
            calls["product"] = jax.jit(jnp.matmul), lower, a
            for name, (call, *args) in calls.items():
                once = lambda call=call, args=args: call(*args).block_until_ready()
                found[f"{name} {jnp.dtype(dtype).name}"] = 1.0 / _rate(once, count)
    return found


def of(workload: Workload) -> tuple[dict[str, float], float]:
    """What was measured for a workload, and trials a second of these parts one after another.

    Fixed inputs: products at the best rate measured, then one word a weight; no selection. The
    whole trial: the same, and the upper bound's matrix calls one by one, each as fast as alone:
    one form of the output; for both activations a proof in float64 and two searches in float32;
    one proof of an eigenvalue. The ascent is not counted, as its number of steps varies.
    """
    limits, found = general(), products(workload)
    flops = max(limits["square_product_flops"], *found.values())
    words = max(limits["random_bits_words"], limits["jax_random_bits_words"])
    seconds = workload.flops / flops + LAYERS * workload.size / words
    if workload.kind == "trial":
        calls = factorisations(workload.width)
        search = sum(calls[f"{name} float32"] for name in ("cholesky", "solve", "gram"))
        proof = sum(calls[f"{name} float64"] for name in ("cholesky", "solve", "product", "gram"))
        seconds += calls["gram float64"] + 2 * proof + 4 * search + calls["cholesky float64"]
        found = found | {f"seconds of {name}": value for name, value in calls.items()}
    return found, 1.0 / seconds

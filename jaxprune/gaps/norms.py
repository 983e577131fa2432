"""Eigenvalues and operator norms from above, proven in floating point.

A power iteration approaches a norm from below and so certifies nothing. Here it only makes a
guess c, and a Cholesky factorisation of `c I - Q` proves it: where the factorisation of an n x n
matrix A runs to completion in floating point, A + Δ is positive definite for some Δ of norm at
most `g(n) tr A` (Higham 2002, Theorem 10.3; Rump 2006). The sums are in double precision, where
these errors are a billionth of the bound; every one of them is added to it.

Assumed is IEEE float64 arithmetic, as CPUs and GPUs have it; a TPU emulates it, and there the
bounds are estimates.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import Conv, Layer

UNIT = 2.0**-53
GUESSES = (1.002, 1.01, 1.05, 1.3)
_TINY = 1e-290  # covers underflow


def growth(length: int) -> float:
    """`g(n)`, above the relative rounding error of a real or complex inner product of length n."""
    return 8.0 * (length + 2) * UNIT


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two nearest to each positive number, so that scaling by it is exact; else 1."""
    return jnp.where(x > 0, jax.lax.reduce_precision(x, exponent_bits=11, mantissa_bits=0), 1.0)


def exponent(x: jax.Array) -> jax.Array:
    """The k of `power_of_two(x) = 2^k`, int32: products of many such powers leave float64."""
    bits = jax.lax.bitcast_convert_type(power_of_two(x).astype(jnp.float64), jnp.int64)
    return (bits >> 52).astype(jnp.int32) - 1023


def shifted(x: jax.Array, k: jax.Array) -> jax.Array:
    """`x 2^k` in float64: exact where that is a normal number, below 2^-1021 where it is less."""
    half = jnp.clip(k, -2000, 2000) // 2
    power = lambda j: jax.lax.bitcast_convert_type((j.astype(jnp.int64) + 1023) << 52, jnp.float64)
    return x * power(half) * power(jnp.clip(k, -2000, 2000) - half)


def power(x: float, n: int) -> tuple[float, int]:
    """`x^n` as `m, k` with `x^n = m 2^k`, to n roundings: for large n it leaves float64."""
    m, k = 1.0, 0
    for _ in range(n):
        m, more = math.frexp(m * x)
        k += more
    return m, k


def as_float64(a: jax.Array) -> jax.Array:
    """Float32 or float64 numbers as float64, exactly: a CPU may read subnormal float32 as 0."""
    if a.dtype != jnp.float32:
        return a
    bits = jax.lax.bitcast_convert_type(a, jnp.int32)
    fraction = (bits & 0x007FFFFF).astype(jnp.float64) * 2.0**-149
    subnormal = jnp.where(bits < 0, -fraction, fraction)
    return jnp.where(bits & 0x7F800000 == 0, subnormal, a.astype(jnp.float64))


def is_zero(a: jax.Array) -> jax.Array:
    """Whether all float32 entries are 0; none that is subnormal is.

    In float64: of a comparison of bits LLVM makes one of floats, and a CPU may read subnormal ones
    as 0.
    """
    return jnp.all(as_float64(a) == 0.0)


def frobenius(a: jax.Array) -> jax.Array:
    """At least the Frobenius norm of the last two axes."""
    squares = jnp.sum(jnp.square(jnp.abs(a)), axis=(-2, -1))
    return jnp.sqrt(squares * (1.0 + growth(a.shape[-1] * a.shape[-2])))


def adjoint(a: jax.Array) -> jax.Array:
    """The conjugate transpose of the last two axes."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def identity(a: jax.Array) -> jax.Array:
    """The identity of the size of the square matrices `(..., n, n)`, to be broadcast to them."""
    n = a.shape[-1]
    return jnp.eye(n, dtype=a.dtype).reshape((1,) * (a.ndim - 2) + (n, n))


def _one_by_one(fn: Callable) -> Callable:
    """A function of matrices `(..., n, m)` that a CPU applies to one after another.

    jaxlib 0.10's batched LAPACK calls never return if two of them run at once, be they independent
    parts of one program or programs in two threads; calls with one matrix each do return, and take
    no longer.
    """
    single = jax.custom_batching.sequential_vmap(fn)

    def on_cpu(*args):
        flat = [a.reshape(-1, *a.shape[-2:]) for a in args]
        out = jax.lax.map(lambda one: single(*one), tuple(flat))
        return out.reshape(*args[0].shape[:-2], *out.shape[1:])

    return lambda *args: jax.lax.platform_dependent(*args, cpu=on_cpu, default=fn)


cholesky = _one_by_one(lambda a: jnp.linalg.cholesky(a))
"""The lower factor of each of the Hermitian matrices `(..., n, n)`; NaN where there is none."""

solve_lower = _one_by_one(
    lambda lower, b: jax.lax.linalg.triangular_solve(lower, b, left_side=True, lower=True)
)
"""`lower^-1 b` for lower triangular matrices `(..., n, n)` and right sides `(..., n, m)`."""

solve_adjoint = _one_by_one(
    lambda lower, b: jax.lax.linalg.triangular_solve(
        lower, b, left_side=True, lower=True, transpose_a=True, conjugate_a=True
    )
)
"""`lower^-* b`, likewise."""

_eigenvalues = _one_by_one(lambda a: jnp.linalg.eigvalsh(a))


def gram(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`A^* A`, and a bound of the norm of its rounding error."""
    return adjoint(a) @ a, growth(a.shape[-2]) * jnp.square(frobenius(a))


def eigenvalue_estimate(q: jax.Array, steps: int) -> jax.Array:
    """About the largest eigenvalue of a Hermitian `(..., n, n)`, by Lanczos; never above it."""
    start = np.cos(np.arange(1.0, q.shape[-1] + 1) ** 2)
    start = (start / np.linalg.norm(start)).reshape((1,) * (q.ndim - 2) + (-1,))
    start = jnp.broadcast_to(jnp.asarray(start, q.dtype), q.shape[:-1])

    def step(carry, _):
        before, v, beta = carry
        w = jnp.einsum("...ij,...j->...i", q, v) - beta[..., None] * before
        alpha = jnp.sum(jnp.real(jnp.conj(v) * w), axis=-1)
        w = w - alpha[..., None] * v
        size = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(w)), axis=-1))
        # An invariant subspace is found: what follows is zero.
        done = size <= 1e-13 * jnp.abs(alpha)
        v, w = jnp.where(done[..., None], 0.0, w / jnp.where(done, 1.0, size)[..., None]), v
        beta = jnp.where(done, 0.0, size)
        return (w, v, beta), (alpha, beta)

    steps = min(steps, q.shape[-1])
    zero = jnp.zeros(q.shape[:-2], jnp.finfo(q.dtype).dtype)
    _, (alpha, beta) = jax.lax.scan(step, (jnp.zeros_like(start), start, zero), length=steps)
    alpha, beta = jnp.moveaxis(alpha, 0, -1), jnp.moveaxis(beta, 0, -1)
    row, column = np.indices((1,) * (q.ndim - 2) + (steps, steps))[-2:]
    tridiagonal = (
        jnp.where(row == column, alpha[..., None], 0.0)
        + jnp.where(row == column + 1, beta[..., None, :], 0.0)
        + jnp.where(row + 1 == column, beta[..., None], 0.0)
    )
    return _eigenvalues(tridiagonal)[..., -1]


def eigenvalue_bound(q: jax.Array) -> jax.Array:
    """At least the largest eigenvalue of each of the Hermitian matrices `(f, n, n)`; `()` float64.

    NaN or infinite if an entry is.
    """
    n = q.shape[-1]
    guesses = jnp.max(eigenvalue_estimate(q, 24)) * np.array(GUESSES)

    def prove(state):
        i, _ = state
        factors = cholesky(guesses[i] * identity(q) - q)
        proved = jnp.all(jnp.isfinite(factors)) & (guesses[i] > 0)
        return i + 1, jnp.where(proved, guesses[i], jnp.inf)

    unproved = lambda state: (state[0] < len(GUESSES)) & jnp.isinf(state[1])
    _, least = jax.lax.while_loop(unproved, prove, (jnp.int32(0), jnp.float64(jnp.inf)))
    size = frobenius(q)
    size = jnp.where(jnp.all(jnp.isfinite(size)), jnp.max(size), jnp.nan)
    least = least * (1.0 + n * growth(n)) + _TINY
    size = size + jnp.where(jnp.any(q != 0), _TINY, 0.0)
    return jnp.where(jnp.isfinite(least), jnp.minimum(least, size), size)


class Transfer(NamedTuple):
    """A layer as matrices that act side by side.

    Attributes:
      matrices: `(f, out, in)` float64, one matrix (dense), or complex128, one a frequency.
      error: `()` bound of the Frobenius norm of each matrix's rounding error.
    """

    matrices: jax.Array
    error: jax.Array


@functools.cache
def frequencies(torus: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """One of each pair of conjugate frequencies of a torus."""
    rows, columns = torus
    return tuple(
        (p, q)
        for p in range(rows)
        for q in range(columns)
        if (p, q) <= ((rows - p) % rows, (columns - q) % columns)
    )


@functools.cache
def _fourier_table(kernel: int, torus: tuple[int, int], dilation: int) -> np.ndarray:
    """`e^(i w t)`, `(k^2, frequencies)`."""
    rows, columns = torus
    taps = [(dilation * i, dilation * j) for i in range(kernel) for j in range(kernel)]
    points = rows * columns  # whole numbers as far as may be: the angle is rounded four times
    turns = [
        [(p * i * columns + q * j * rows) % points / points for p, q in frequencies(torus)]
        for i, j in taps
    ]
    return np.exp(2j * np.pi * np.array(turns))


def transfer(
    layer: Layer, w: jax.Array, torus: tuple[int, int] | None = None, dilation: int = 1
) -> Transfer:
    """A layer as matrices: a dense one as itself, a convolution by Fourier's transform.

    The singular values of a circular convolution are those of the `(c_out, c_in)` transfer
    matrices `K(w)` over the torus' frequencies (Sedghi, Gupta & Long 2019); any other convolution
    is part of a circular one (`Conv.torus`), and its norm at most that one's.

    Args:
      layer: the layer.
      w: its weights, float64.
      torus: sides of the torus; None for the layer's own.
      dilation: distance of the kernel's taps on it.
    """
    if not isinstance(layer, Conv):
        return Transfer(w[None], jnp.zeros(()))
    taps = w.reshape(layer.c_out, layer.c_in, -1)
    table = _fourier_table(layer.kernel, torus or layer.torus, dilation)
    matrices = jnp.einsum("oit,tf->foi", taps, table)
    error = growth(layer.kernel**2) * layer.kernel * frobenius(w.reshape(1, -1))
    return Transfer(matrices, error)


def norm_bound(layer: Layer, w: jax.Array) -> jax.Array:
    """At least the operator norm of a layer with weights `w`, as a map of its inputs.

    Exact to 1 %, for circular padding and stride 1 too; for other convolutions the norm of the
    circular convolution that they are part of.

    Args:
      layer: the layer.
      w: `layer.weight_shape`, float32 or float64.

    Returns:
      `()` float64; NaN or infinite if a weight is.
    """
    with jax.enable_x64(True):
        w = as_float64(w)
        scale = power_of_two(jnp.max(jnp.abs(w)))
        a, error = transfer(layer, w / scale)
        if a.shape[-2] < a.shape[-1]:
            a = adjoint(a)
        q, rounding = gram(a)
        return (
            (jnp.sqrt(eigenvalue_bound(q) + jnp.max(rounding)) + error) * scale * (1.0 + 8 * UNIT)
        )

"""One trial after another in NumPy, written to be hard to beat.

Target and pruned network lie side by side in one array, so that one call multiplies both; their
products are six, as in every peer. Sixteen random bits decide on a removal, four decisions a word
of the generator; every array is allocated once. PCG64 or SFC64, and for magnitudes a partition of
values or of indices, whichever proves faster before timing.

Its upper bound of the gap is the product of the layers' largest singular values, with the removed
part in place of the middle layer: `numpy.linalg.svd` in float32, no multipliers, no certificate.
"""

import functools
import itertools
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from peers import KERNEL, LAYERS, SAMPLES, SIDE, STARTS, STEPS, Candidate, Workload, fastest

WORKLOADS = ("sampled", "conv", "trial")
WARM, WARM_STEPS, PATIENCE, GROWTH = 8, 3, 4, 1e-5


def device() -> str:
    """What it runs on."""
    return "cpu"


def prepare(workload: Workload) -> Candidate:
    """Chooses the generator and the selection."""
    make = {"sampled": _sampled, "conv": _conv, "trial": _trial}[workload.kind]
    selections = (_by_index, _by_value) if workload.pruning == "magnitude" else (_by_coin,)
    names = ("sampled", "lower", "upper") if workload.kind == "trial" else ("sampled",)

    def candidate(bits, select):
        one = make(workload, functools.partial(_draw, workload, select))

        def run(trials, seed):
            rng = np.random.Generator(bits(seed))
            found = np.array([one(rng) for _ in range(trials)], np.float32)
            return dict(zip(names, found.T, strict=True))

        return Candidate(run, 1)

    made = {
        f"{bits.__name__}, {select.__doc__}": candidate(bits, select)
        for bits, select in itertools.product((np.random.PCG64, np.random.SFC64), selections)
    }
    words, chosen = fastest(made)
    return chosen._replace(choices=words)


# --- sampling and pruning ------------------------------------------------------------------------


def _draw(workload, select, rng, target, pruned, scratch):
    """Fills the target `(3, ...)`, and the pruned layers alone `(m, ...)`."""
    rng.random(out=target, dtype=np.float32)
    target -= np.float32(0.5)
    target *= np.float32(2 * workload.half_width)
    select(workload, rng, target[workload.pruned], pruned, scratch)


def _by_coin(workload, rng, w, pruned, scratch):
    """coins of 16 bits"""
    words = rng.bit_generator.random_raw(-(-w.size // 4))
    kept = words.view(np.uint16)[: w.size] >= round(workload.fraction * 2**16)
    np.multiply(w, kept.reshape(w.shape), out=pruned)


def _by_index(workload, rng, w, pruned, scratch):
    """argpartition"""
    np.abs(w, out=scratch)
    k = workload.removed
    gone = np.argpartition(scratch.reshape(len(w), -1), k - 1, axis=1)[:, :k]
    np.copyto(pruned, w)
    for layer, indices in zip(pruned, gone, strict=True):
        layer.reshape(-1)[indices] = 0


def _by_value(workload, rng, w, pruned, scratch):
    """partition"""
    np.abs(w, out=scratch)
    k = workload.removed
    least = np.partition(scratch.reshape(len(w), -1), k, axis=1)[:, k]
    kept = scratch >= least.reshape(-1, *[1] * (w.ndim - 1))
    np.multiply(w, kept, out=pruned)


# --- fixed inputs --------------------------------------------------------------------------------


def _pairs(workload, shape):
    pair = np.empty((2, LAYERS, *shape), np.float32)
    return pair, np.empty((LAYERS, *shape), np.float32)


def _longest(h):
    """Largest distance; h is `(2, features, inputs)`."""
    d = h[0] - h[1]
    return math.sqrt(np.einsum("ij,ij->j", d, d).max())


def _sampled(workload, draw):
    d, n = workload.width, workload.inputs
    pair, scratch = _pairs(workload, (d, d))
    x = np.ascontiguousarray(workload.points().T)
    a, b = np.empty((2, 2, d, n), np.float32)

    def trial(rng):
        draw(rng, pair[0], pair[1], scratch)
        np.matmul(pair[:, 0], x, out=a)
        np.maximum(a, 0, out=a)
        np.matmul(pair[:, 1], a, out=b)
        np.maximum(b, 0, out=b)
        np.matmul(pair[:, 2], b, out=a)
        return (_longest(a),)

    return trial


def _conv(workload, draw):
    """One product over gathered patches a layer."""
    c, n = workload.width, workload.inputs
    pair, scratch = _pairs(workload, workload.weight_shape)
    kernels = pair.reshape(2, LAYERS, c, c * KERNEL**2)
    padded = np.zeros((2, c, n, SIDE + 2, SIDE + 2), np.float32)
    inside = padded[..., 1:-1, 1:-1]
    windows = sliding_window_view(padded, (KERNEL, KERNEL), axis=(3, 4))
    windows = windows.transpose(0, 1, 5, 6, 2, 3, 4)
    patches = np.empty((2, c * KERNEL**2, n * SIDE**2), np.float32)
    gathered = patches.reshape(windows.shape)
    y = np.empty((2, c, n * SIDE**2), np.float32)
    image = y.reshape(2, c, n, SIDE, SIDE)

    inside[:] = workload.points().transpose(1, 0, 2, 3)
    gathered[:] = windows
    first = patches[0].copy()

    def trial(rng):
        draw(rng, pair[0], pair[1], scratch)
        np.matmul(kernels[:, 0], first, out=y)
        for layer in range(1, LAYERS):
            np.maximum(image, 0, out=inside)
            np.copyto(gathered, windows)
            np.matmul(kernels[:, layer], patches, out=y)
        d = image[0] - image[1]
        return (math.sqrt(np.einsum("cnij,cnij->n", d, d).max()),)

    return trial


# --- the whole trial -----------------------------------------------------------------------------


def _trial(workload, draw):
    d = workload.width
    w = np.empty((LAYERS, d, d), np.float32)
    kept, scratch = np.empty((2, 1, d, d), np.float32)
    falling = 0.15 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)).astype(np.float32)

    def trial(rng):
        draw(rng, w, kept, scratch)
        p = w[1] - kept[0]
        x = rng.standard_normal((SAMPLES, d), dtype=np.float32)
        x /= _lengths(x)
        values = _lengths(_forward(w, p, x)[0])[:, 0]
        lower = max(_ascent(w, p, x, values, falling), values.max())
        norms = np.linalg.svd(np.stack([w[0], p, w[2]]), compute_uv=False)[:, 0]
        return values.max(), lower, norms.prod()

    return trial


def _lengths(d):
    return np.sqrt(np.einsum("ij,ij->i", d, d))[:, None]


def _unit(g):
    size = _lengths(g)
    return g / np.where(size > 0, size, 1)


def _forward(w, p, x):
    """Differences `(n, d)` at the rows of x, with what their gradient needs."""
    h = np.maximum(x @ w[0].T, 0)
    a = h @ w[1].T
    b = a - h @ p.T
    return (np.maximum(a, 0) - np.maximum(b, 0)) @ w[2].T, h, a, b


def _gradient(w, p, d, h, a, b):
    back = d @ w[2]
    kept = back * (b > 0)
    g = (back * (a > 0) - kept) @ w[1] + kept @ p
    return (g * (h > 0)) @ w[0]


def _best(x, values, n):
    return x[np.argpartition(values, -n)[-n:]]


def _ascent(w, p, x, values, falling):
    """The engine's: a warm start among eight, momentum, every fourth start by power iteration."""
    few = STARTS // 8
    warm = _best(x, values, WARM)
    for _ in range(WARM_STEPS):
        warm = _unit(warm @ w[0].T @ p.T @ w[2].T @ w[2] @ p @ w[0])
    warm = np.concatenate([warm, -warm])
    warm = _best(warm, _lengths(_forward(w, p, warm)[0])[:, 0], few)
    x = np.concatenate([_best(x, values, STARTS - few), warm])
    trace, best, mark, since = 0.0, 0.0, 0.0, 0
    for rate in falling:
        d, *state = _forward(w, p, x)
        top = float(_lengths(d).max())
        best = max(best, top)
        mark, since = (best, 0) if best > mark * (1 + GROWTH) else (mark, since + 1)
        if since == PATIENCE:
            return best
        uphill = _unit(_gradient(w, p, d, *state))
        trace = uphill + 0.5 * trace
        x = x + rate * trace
        x /= np.maximum(_lengths(x), 1)
        x[::4] = uphill[::4]
    return max(best, float(_lengths(_forward(w, p, x)[0]).max()))

"""Random layers, their removed parts and their norms, by NumPy alone, for the tests of bounds."""

import numpy as np
from scipy import stats
from scipy.sparse.linalg import svds

from jaxprune import bounds, laws, networks, pruning

FALSE_ALARM = 1e-7
LAWS = (laws.uniform(6**0.5), laws.normal(2**0.5))
CONV = networks.Conv(3, 4, 3, (6, 6))


def sample(rng, layer, law, trials=1):
    shape = (trials, *layer.weight_shape)
    x = rng.uniform(-1, 1, shape) if law.family is laws.UNIFORM else rng.standard_normal(shape)
    return law.scale(*layer.fans) * x


def removed_part(rng, w, method, k):
    """The removed part of each of the matrices `w`."""
    flat = w.reshape(len(w), -1)
    if method == "bernoulli":
        return w * (rng.random(w.shape) < k / flat.shape[1])
    if k == flat.shape[1]:
        return w
    key = np.abs(flat) if method == "magnitude" else rng.random(flat.shape)
    gone = key < np.partition(key, k, axis=1)[:, k : k + 1]
    return np.where(gone, flat, 0.0).reshape(w.shape)


def norms(w):
    """Largest singular values; of large matrices by Lanczos, to 1e-6."""
    if min(w.shape[1:]) <= 128:
        return np.linalg.svd(w, compute_uv=False)[:, 0]
    start = np.ones(min(w.shape[1:]), w.dtype)
    largest = [svds(x, k=1, v0=start, tol=1e-6, return_singular_vectors=False)[0] for x in w]
    return np.array(largest)


def convolution_norms(layer, w):
    """Of circular convolutions on the torus, from all frequencies; `w` holds kernels."""
    transfer = np.moveaxis(np.fft.rfft2(w, s=layer.torus), (1, 2), (-2, -1))
    if layer.c_out > layer.c_in:
        transfer = np.swapaxes(transfer, -2, -1)
    gram = transfer @ np.swapaxes(transfer, -2, -1).conj()
    return np.sqrt(np.linalg.eigvalsh(gram)[..., -1].max((1, 2)))


def layer_norms(layer, w):
    return convolution_norms(layer, w) if isinstance(layer, networks.Conv) else norms(w)


def removed_bound(layer, law, method, k, delta):
    count = pruning.Count(k)
    return bounds.removed_norm_bound(layer, law, pruning.METHODS[method], count, delta=delta)


def most_failures(trials, delta):
    """More failures than this have probability below FALSE_ALARM if each has `delta`."""
    return stats.binom.isf(FALSE_ALARM, trials, delta)

"""Random layers, their removed parts and their norms, by NumPy alone, for the tests of bounds."""

import numpy as np
from scipy import stats

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
    key = np.abs(flat) if method == "magnitude" else rng.random(flat.shape)
    gone = np.argsort(np.argsort(key, axis=1), axis=1) < k
    return np.where(gone, flat, 0.0).reshape(w.shape)


def norms(w):
    return np.linalg.svd(w, compute_uv=False)[:, 0]


def convolution_norms(layer, w):
    """Of circular convolutions on the torus, from all frequencies; `w` holds kernels."""
    transfer = np.moveaxis(np.fft.rfft2(w, s=layer.torus), (1, 2), (-2, -1))
    if layer.c_out > layer.c_in:
        transfer = np.swapaxes(transfer, -2, -1)
    gram = transfer @ np.swapaxes(transfer, -2, -1).conj()
    return np.sqrt(np.linalg.eigvalsh(gram)[..., -1].max((1, 2)))


def removed_bound(layer, law, method, k, delta):
    count = pruning.Count(k)
    return bounds.removed_norm_bound(layer, law, pruning.METHODS[method], count, delta=delta)


def most_failures(trials, delta):
    """More failures than this have probability below FALSE_ALARM if each has `delta`."""
    return stats.binom.isf(FALSE_ALARM, trials, delta)

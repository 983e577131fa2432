"""The oracles themselves: convolutions as matrices against the layers, masks by their counts."""

import jax
import numpy as np
import pytest
from oracles import explicit, forward64, matrix, pair, removed_part

from jaxprune import networks, pruning
from jaxprune.networks import Conv

LAYERS = [
    Conv(2, 3, kernel, (7, 6), stride, padding)
    for padding in networks.PADDINGS
    for stride in (1, 2, 3)
    for kernel in (1, 2, 3, 4, 5)
]


def test_convolutions_as_matrices_are_the_layers():
    """All paddings, strides and kernels, in one program."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(2, *layer.weight_shape)).astype(np.float32) for layer in LAYERS]
    x = rng.normal(size=(2, 7, 6)).astype(np.float32)
    both = lambda ws: [[layer(w, x) for w in own] for layer, own in zip(LAYERS, ws, strict=True)]
    for layer, own, ys in zip(LAYERS, weights, jax.jit(both)(weights), strict=True):
        for m, w, y in zip(matrix(layer, own), own, ys, strict=True):
            np.testing.assert_allclose(m @ x.ravel(), np.ravel(y), rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(m, matrix(layer, w))


def test_a_network_of_matrices_is_the_network():
    network = networks.convolutional((2, 3, 4), 7, padding="VALID", strides=(2, 1), outputs=5)
    params, masks = pair(network, 0)
    x = np.random.default_rng(0).normal(size=(4, *network.in_shape)).astype(np.float32)
    full, _ = explicit(network, params, removed_part(params, masks))
    got = jax.jit(network)(params, np.moveaxis(x, 0, -1))
    np.testing.assert_allclose(forward64(network, full, x).T, got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", pruning.METHODS.values(), ids=str)
def test_masks_remove_what_the_method_removes(method):
    network = networks.dense((40, 30, 20))
    (w, other), (mask, none) = pair(network, 1, q=0.3, method=method, which="dense1")
    assert w.shape == mask.shape and w.dtype == other.dtype == np.float32 and none is None
    gone = ~mask
    # Six standard deviations of the sum of 1200 coins; exact for the other methods.
    assert abs(gone.sum() - 360) <= (6 * (1200 * 0.21) ** 0.5 if method is pruning.bernoulli else 0)
    if method is pruning.magnitude:
        assert np.abs(w[gone]).max() <= np.abs(w[mask]).min()
    _, (same, all_kept) = pair(network, 1, q=0.3, method=method, which="dense1", everywhere=True)
    assert (same == mask).all() and all_kept.all()

"""What tests compare with: networks, masks and distances in NumPy's float64, and random pairs.

Nothing here compiles a program: all arrays are NumPy's. Where a function takes `removed`, its
entries are the removed parts of the layers, None for a layer that is left alone.
"""

import numpy as np
from scipy import special

from jaxprune import activations, laws, networks, pruning
from jaxprune.networks import select_layers

ACTIVATIONS = {
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu": lambda a, slope: np.where(a > 0, a, slope * a),
    "tanh": np.tanh,
    "erf": special.erf,
    "identity": lambda a: a,
}


NOT_FINITE = (np.nan, np.inf, -np.inf)


def with_activation(network, activation):
    """The same layers with another activation between them."""
    return networks.Network(network.layers, activation, network.in_shape)


def activate(activation, a):
    """The activation's values at `a`, by its own definition."""
    name = activation.name.partition("(")[0]
    arguments = [activation.least_slope] if name == "leaky_relu" else []
    return ACTIVATIONS[name](a, *arguments)


def sample(rng, law, shape, fans):
    """float32 weights of one layer."""
    standard = rng.uniform(-1, 1, shape) if law.family is laws.UNIFORM else rng.normal(size=shape)
    return (law.scale(*fans) * standard).astype(np.float32)


def keep(rng, method, q, w):
    """A mask of one layer: True where a weight is kept."""
    if method is pruning.bernoulli:
        return rng.random(w.shape) >= q
    order = np.abs(w) if method is pruning.magnitude else rng.random(w.shape)
    mask = np.ones(w.size, bool)
    mask[order.ravel().argsort(kind="stable")[: round(q * w.size)]] = False
    return mask.reshape(w.shape)


def pair(network, seed, *, q=0.3, method=pruning.random, which="all", law=None, everywhere=False):
    """Weights and masks of one pair.

    Args:
      network: the network.
      seed: an integer, or a list of them.
      q: the fraction of each pruned layer that is removed.
      method: of pruning.
      which: the pruned layers, as in `networks.select_layers`.
      law: of the weights; by default uniform with He's scaling.
      everywhere: whether the other layers have masks, too, of True alone; else None. With masks
        everywhere all pairs of a network run the same program.
    """
    rng = np.random.default_rng(seed)
    law = law or laws.uniform(scaling="he")
    params, masks = [], []
    for layer, pruned in zip(network.layers, select_layers(network, which), strict=True):
        w = sample(rng, law, layer.weight_shape, layer.fans)
        mask = keep(rng, method, q, w)
        params.append(w)
        masks.append(mask if pruned else np.ones_like(mask) if everywhere else None)
    return tuple(params), tuple(masks)


def removed_part(params, masks):
    """The part of each layer that its mask removes."""
    return tuple(
        None if mask is None else np.where(mask, np.float32(0), w)
        for w, mask in zip(params, masks, strict=True)
    )


def removal(network, seed, **options):
    """Weights and removed parts of one `pair`."""
    params, masks = pair(network, seed, **options)
    return params, removed_part(params, masks)


def stack(trees):
    """Tuples of arrays, each with the same entries None, as one tuple of stacked arrays."""
    return tuple(
        None if arrays[0] is None else np.stack(arrays) for arrays in zip(*trees, strict=True)
    )


def batch(pairs):
    """Pairs `(params, removed)` as one, stacked: `(params, removed)`."""
    return tuple(stack(trees) for trees in zip(*pairs, strict=True))


def matrix(layer, w):
    """The layer as a float64 matrix on flattened inputs; `w` may have axes before the layer's."""
    w = np.asarray(w, np.float64)
    if layer.kind == "dense":
        return w
    before = 0 if layer.padding == "VALID" else (layer.kernel - 1) // 2
    both = 0 if layer.padding == "VALID" else layer.kernel - 1
    out = [(side + both - layer.kernel) // layer.stride + 1 for side in layer.size]
    a = np.zeros((*w.shape[:-4], layer.c_out, *out, layer.c_in, *layer.size))
    for row, column, i, j in np.ndindex(*out, layer.kernel, layer.kernel):
        y, x = layer.stride * row + i - before, layer.stride * column + j - before
        if layer.padding == "CIRCULAR":
            y, x = y % layer.size[0], x % layer.size[1]
        if 0 <= y < layer.size[0] and 0 <= x < layer.size[1]:
            a[..., :, row, column, :, y, x] += w[..., i, j]
    return a.reshape(*w.shape[:-4], layer.c_out * out[0] * out[1], -1)


def explicit(network, params, removed):
    """The layers of the target and of the pruned network as float64 matrices."""
    kept = [w if p is None else w - p for w, p in zip(params, removed, strict=True)]
    return tuple(
        [matrix(layer, w) for layer, w in zip(network.layers, ws, strict=True)]
        for ws in (params, kept)
    )


def forward64(network, matrices, x):
    """The network's outputs at the rows `x`, layer by layer, from explicit matrices."""
    h = np.asarray(x, np.float64).reshape(len(x), -1).T
    for m in matrices[:-1]:
        h = activate(network.activation, m @ h)
    return (matrices[-1] @ h).T


def difference64(network, params, removed, x):
    """`F(x) - f(x)` of the rows `x`."""
    full, kept = explicit(network, params, removed)
    return forward64(network, full, x) - forward64(network, kept, x)


def on_sphere(rng, n, shape):
    """n random inputs of norm 1, in rows."""
    x = rng.normal(size=(n, *shape))
    return x / np.sqrt((x**2).sum(axis=tuple(range(1, x.ndim)), keepdims=True))


PAIRS = {
    "dense": networks.dense((6, 7, 6, 5)),
    "dense, leaky": networks.dense((5, 8, 3, 8, 4), activations.leaky_relu(0.3)),
    "valid, strides": networks.convolutional(
        (1, 2, 2), 7, padding="VALID", strides=(2, 1), activation=activations.leaky_relu(0.5)
    ),
    "same": networks.convolutional((1, 2, 1), 4, activation=activations.identity),
    "circular, read-out": networks.convolutional((1, 2), 3, padding="CIRCULAR", outputs=3),
}
"""Small networks of many random pairs, of which no distance may exceed its bound."""


def worst_of_pairs(network, bounds, trials, seed):
    """Upper bounds of random pairs, and the largest float64 distance that ascent finds in each.

    Pairs are pruned at random or by magnitude in turn, each layer by 2 %, 10 % or 50 %. Slopes of
    the activation are c and 1; the iteration is the generalised power iteration.

    Args:
      network: of an activation with slopes c and 1.
      bounds: upper bounds of 500 pairs, `(params, removed) -> (500,)`.
      trials: how many pairs, a multiple of 500.
      seed: of the pairs.
    """
    rng = np.random.default_rng(seed)
    params, removed = [], []
    for layer in network.layers:
        w = rng.uniform(-1, 1, (trials, *layer.weight_shape)).astype(np.float32)
        flat = w.reshape(trials, -1)
        by_size = np.arange(trials)[:, None] % 2 == 1
        order = np.where(by_size, np.abs(flat), rng.random(flat.shape))
        rank = order.argsort(axis=1).argsort(axis=1)
        count = np.ceil(rng.choice([0.02, 0.1, 0.5], (trials, 1)) * flat.shape[1])
        params.append(w)
        removed.append(np.where(rank < count, flat, np.float32(0)).reshape(w.shape))
    upper = np.concatenate([
        bounds(tuple(w[i : i + 500] for w in params), tuple(p[i : i + 500] for p in removed))
        for i in range(0, trials, 500)
    ]).astype(np.float64)  # fmt: skip
    full, kept = explicit(network, params, removed)
    c = network.activation.least_slope

    def run(ws, x):
        slopes = []
        for w in ws[:-1]:
            y = w @ x
            slopes.append(np.where(y > 0, 1.0, c))
            x = slopes[-1] * y
        return ws[-1] @ x, slopes

    def pull(ws, slopes, d):
        g = ws[-1].swapaxes(1, 2) @ d
        for w, slope in zip(ws[-2::-1], slopes[::-1], strict=True):
            g = w.swapaxes(1, 2) @ (slope * g)
        return g

    x = rng.normal(size=(trials, full[0].shape[2], 8))
    largest = np.zeros(trials)
    for _ in range(15):
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
        (a, slopes), (b, others) = run(full, x), run(kept, x)
        largest = np.maximum(largest, np.linalg.norm(a - b, axis=1).max(axis=1))
        x = pull(full, slopes, a - b) - pull(kept, others, a - b)
    return upper, largest

"""Certificates of networks, against simulated gaps.

A random test fails falsely with probability below FALSE_ALARM, by its binomial tail.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_layers import LAWS, most_failures, removed_bound, removed_part, sample
from tiers import grid

from jaxprune import activations, bounds, networks, pruning
from jaxprune.bounds import random_matrices
from jaxprune.bounds.certificate import certify_counts
from jaxprune.bounds.telescoped import _plans, certify_by_norms, switching_order, telescoping_sum
from jaxprune.bounds.wishart import log_trace_moment


@pytest.mark.parametrize("law, method", grid(LAWS, pruning.METHODS, every=5), ids=str)
def test_convolutions_of_one_pixel_are_dense_layers(law, method):
    amount = pruning.Fraction(0.3)
    conv, plain = (
        bounds.certify(network, law, pruning.METHODS[method], amount, layers="all")
        for network in (
            networks.convolutional((4, 9, 6, 5), 1, kernel=1),
            networks.dense((4, 9, 6, 5)),
        )
    )
    assert conv.eps == plain.eps
    assert conv[2:5] == plain[2:5]


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
def ascended_gaps(network, dense, pruned, x):
    """A lower bound of each pair's gap: its norm along a generalised power iteration."""

    def half_square(x):
        return 0.5 * jnp.sum((network(dense, x) - network(pruned, x)) ** 2)

    def step(x, _):
        x = x / jnp.sqrt(jnp.sum(x**2) + 1e-30)
        value, slope = jax.value_and_grad(half_square)(x)
        return slope, value

    _, values = jax.lax.scan(step, x, length=20)
    return jnp.sqrt(2 * jnp.max(values))


CONVOLUTIONS = {
    "valid": (
        networks.convolutional((2, 4, 4), 6, strides=(2, 1), padding="VALID", kernel=2, outputs=5),
        LAWS[0],
        "all",
    ),
    "same": (networks.convolutional((2, 8, 8, 2), 5, padding="SAME"), LAWS[1], "middle"),
}


@pytest.mark.parametrize("case, method", grid(CONVOLUTIONS, pruning.METHODS, every=5))
def test_certificate_of_convolutions_against_simulated_gaps(case, method):
    network, law, layers = CONVOLUTIONS[case]
    rng = np.random.default_rng(len(network.layers))
    trials, delta = 60, 0.5
    chosen = pruning.METHODS[method], pruning.Fraction(0.2)
    certificate = bounds.certify(network, law, *chosen, layers=layers, delta=delta)
    dense, pruned = [], []
    for name, layer in zip(network.names, network.layers, strict=True):
        w = sample(rng, layer, law, trials)
        k = round(0.2 * w[0].size) if name in certificate.order else 0
        dense.append(w)
        pruned.append(w - removed_part(rng, w, method, k))
    starts = rng.standard_normal((trials, *network.in_shape))
    gaps = np.asarray(ascended_gaps(network, dense, pruned, starts))
    # Half the trials may fail; multiplying norms leaves so much room that none does.
    assert np.all(gaps < certificate.eps)
    assert certificate.eps <= 100 * np.median(gaps)


def test_certify_is_quick():
    random_matrices._standard_tail.cache_clear()
    random_matrices._magnitude_tails.cache_clear()
    log_trace_moment.cache_clear()
    start = time.process_time()
    network = networks.convolutional((3, 16, 16, 3), 8)
    bounds.certify(network, LAWS[0], pruning.magnitude, pruning.Sublinear(0.25))
    assert time.process_time() - start < 1.0


def test_switching_order_is_the_best_permutation():
    rng = np.random.default_rng(2)
    for _ in range(200):
        a, kept, b = rng.uniform(0.1, 3.0, (3, 5))
        b[rng.random(5) < 0.3] = 0.0
        pruned = np.flatnonzero(b)
        best = min(telescoping_sum(o, a, kept, b) for o in itertools.permutations(pruned))
        assert telescoping_sum(switching_order(a, kept, b), a, kept, b) <= best * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
def test_one_linear_layer_is_the_norm_of_its_removed_part(law, method):
    network = networks.dense((40, 30))
    certificate = certify_counts(network, law, method, [100], 0.1)
    norm = removed_bound(networks.Dense(40, 30), law, method, 100, 0.1)
    assert certificate.eps == pytest.approx(norm.value, rel=1e-12)
    assert certificate.weights == certificate.kept == (None,)


@pytest.mark.parametrize("method", pruning.METHODS)
def test_nothing_removed_leaves_no_gap(method):
    network = networks.dense((5, 6, 7, 8))
    method = pruning.METHODS[method]
    certificate = bounds.certify(network, LAWS[0], method, pruning.Fraction(0.0))
    assert certificate.eps == 0.0
    assert certificate.events == ()


def forward(params, x, slope=0.0):
    for w in params[:-1]:
        x = x @ w.T
        x = np.where(x > 0, x, slope * x)
    return x @ params[-1].T


def ascended_gap(rng, dense, pruned, starts=4, steps=15):
    """A lower bound on the gap of one ReLU pair: the norm along generalised power iteration."""
    x = rng.standard_normal((starts, dense[0].shape[1]))
    best = 0.0
    for _ in range(steps):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        gap = forward(dense, x) - forward(pruned, x)
        best = max(best, np.linalg.norm(gap, axis=1).max())
        pull = 0.0
        for params, sign in ((dense, 1.0), (pruned, -1.0)):
            masks, h = [], x
            for w in params[:-1]:
                h = h @ w.T
                masks.append(h > 0)
                h = np.maximum(h, 0.0)
            g = sign * gap @ params[-1]
            for w, mask in zip(params[-2::-1], masks[::-1], strict=True):
                g = (g * mask) @ w
            pull = pull + g
        x = pull
    return best


WIDTHS_AND_RATES = [
    ((48, 48, 48, 48), (0, 0.1, 0)),
    ((20, 60, 30, 10), (0.5, 0.02, 0.9)),
    ((9, 30), (0.3,)),
]


@pytest.mark.parametrize(
    "case, method, law", grid(WIDTHS_AND_RATES, pruning.METHODS, LAWS, every=5), ids=str
)
def test_certificate_against_simulated_gaps(case, method, law):
    widths, rates = case
    rng = np.random.default_rng(len(widths))
    network = networks.dense(widths)
    removed = [round(r * d) for r, d in zip(rates, network.weight_counts, strict=True)]
    trials, delta = 40, 0.5
    certificate = certify_counts(network, law, method, removed, delta)
    gaps = []
    for _ in range(trials):
        dense = [sample(rng, layer, law)[0] for layer in network.layers]
        pruned = [
            w - removed_part(rng, w[None], method, k)[0]
            for w, k in zip(dense, removed, strict=True)
        ]
        gaps.append(ascended_gap(rng, dense, pruned))
    assert np.sum(np.array(gaps) > certificate.eps) <= most_failures(trials, delta)
    assert certificate.eps <= 25 * np.median(gaps)


COUNTS = [(0, 50, 0), (30, 200, 70), (900, 900, 0)]


@pytest.mark.parametrize("counts, method", grid(COUNTS, pruning.METHODS, every=4), ids=str)
def test_delta_is_spent_once_and_the_split_is_no_worse_than_equal(method, counts):
    network = networks.dense((30, 30, 30, 30), activations.tanh)
    for delta in (0.3, 0.01):
        certificate = certify_counts(network, LAWS[1], method, counts, delta)
        assert sum(event.delta for event in certificate.events) <= delta * (1 + 1e-12)
        plans = _plans(network, LAWS[1], method, counts, delta)
        equal = [p.eps(np.full((1, len(p.events)), 1 / len(p.events)))[0] for p in plans]
        assert certificate.eps <= min(equal) * (1 + 1e-12)


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize("counts", COUNTS)
def test_what_each_event_proves_at_its_share_of_delta_makes_up_eps(method, counts):
    """From the certificate alone: the norms stated, switched in the order stated."""
    network, law = networks.dense((30, 30, 30, 30)), LAWS[1]
    certificate = certify_by_norms(network, law, method, counts, 0.1)
    for event in certificate.events:
        i = network.names.index(event.layer)
        assert getattr(certificate, event.matrix)[i] <= event.bound.value
        if event.matrix == "weights":
            alone = bounds.norm_bound(network.layers[i], law, delta=event.delta)
            assert event.bound == alone
    norms = list(certificate.weights)
    total = 0.0
    for i in (network.names.index(name) for name in certificate.order):
        others = [norm for j, norm in enumerate(norms) if j != i]
        total += certificate.removed[i] * np.prod(others)
        norms[i] = certificate.kept[i]
    assert certificate.eps == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("law, method", grid(LAWS, pruning.METHODS, every=4), ids=str)
def test_certificate_falls_with_delta_and_rises_with_the_count(law, method):
    network = networks.dense((24, 24, 24, 24))
    by_delta = [
        certify_counts(network, law, method, (0, 60, 60), d).eps for d in (1e-6, 0.01, 0.1, 0.5)
    ]
    assert by_delta == sorted(by_delta, reverse=True)
    by_count = [
        certify_counts(network, law, method, (0, k, 0), 0.05).eps for k in (0, 1, 6, 60, 300, 576)
    ]
    assert by_count == sorted(by_count)


@pytest.mark.parametrize(
    "method, kind", grid([pruning.random, pruning.magnitude], ["dense", "conv"], every=3), ids=str
)
def test_certificate_falls_with_the_width(method, kind):
    # The paper's claim: sublinear counts, middle layers.
    eps = []
    for d in (16, 64, 256):
        network = (
            networks.dense((d,) * 4) if kind == "dense" else networks.convolutional((d,) * 4, 8)
        )
        eps.append(bounds.certify(network, LAWS[0], method, pruning.Sublinear(0.25)).eps)
    assert eps == sorted(eps, reverse=True)


def test_lipschitz_constants_multiply():
    twice = activations.Activation(
        "twice",
        None,
        None,
        0.0,
        2.0,
        positively_homogeneous=True,
        fn_error=0.0,
        difference_error=0.0,
    )
    plain, steep = (
        bounds.certify(
            networks.dense((6, 6, 6, 6), s), LAWS[0], pruning.random, pruning.Count(5)
        ).eps
        for s in (activations.relu, twice)
    )
    assert steep == pytest.approx(4 * plain, rel=1e-12)


@pytest.mark.parametrize(
    "method", ["random", "bernoulli", pytest.param("magnitude", marks=pytest.mark.ci)]
)
def test_certify_counts_what_the_pruning_removes(method):
    network = networks.convolutional((2, 3, 4), 5, outputs=6)
    amount, delta = pruning.Sublinear(0.3), 0.1
    cases = {"all": (0, 1, 2), "middle": (1,), "dense3": (2,), ("conv1", "dense3"): (0, 2)}
    for layers, pruned in cases.items():
        chosen = pruning.METHODS[method]
        removed = [
            chosen.removed(amount, d) if i in pruned else 0
            for i, d in enumerate(network.weight_counts)
        ]
        certificate = bounds.certify(network, LAWS[0], chosen, amount, layers=layers, delta=delta)
        assert certificate == certify_counts(network, LAWS[0], method, removed, delta)
        assert sorted(certificate.order) == [network.names[i] for i in pruned]


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(amount=pruning.Count(10**9)), "count"),
        (dict(delta=1.5), "delta"),
        (dict(layers="dense9"), "layers"),
        (dict(pruning="magnitude"), "pruning"),
    ],
)
def test_certify_refuses(change, named):
    arguments = dict(pruning=pruning.random, amount=pruning.Count(1), layers="all", delta=0.1)
    with pytest.raises(ValueError, match=f"^{named} = "):
        bounds.certify(networks.dense((3, 4, 5)), LAWS[0], **arguments | change)

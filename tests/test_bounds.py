"""Norm bounds and certificates, against exact sums, quadrature and simulation.

A random test fails falsely with probability below FALSE_ALARM, by its binomial tail.
"""

import functools
import itertools
import math
import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxprune import activations, bounds, laws, networks, pruning
from jaxprune.bounds import random_matrices
from jaxprune.bounds.certificate import (
    _plans,
    certify_counts,
    switching_order,
    telescoping_sum,
)
from jaxprune.bounds.wishart import log_trace_moment, log_trace_moment_estimate

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


# Trace moments of a Gaussian matrix


def pairings(items):
    if not items:
        yield []
        return
    first, *rest = items
    for i, partner in enumerate(rest):
        for others in pairings(rest[:i] + rest[i + 1 :]):
            yield [(first, partner), *others]


def classes(size, pairs):
    label = list(range(size))
    for a, b in pairs:
        old, new = label[a], label[b]
        label = [new if x == old else x for x in label]
    return len(set(label))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_trace_moment_is_wicks_sum(p):
    # Factor t of tr (G Gᵀ)^p has row (t+1)//2 and column t//2 of the walk; Wick's theorem.
    sums = {(n, m): 0 for n, m in ((1, 1), (3, 3), (4, 7), (12, 2))}
    for pairing in pairings(list(range(2 * p))):
        rows = classes(p, [((a + 1) // 2 % p, (b + 1) // 2 % p) for a, b in pairing])
        columns = classes(p, [(a // 2, b // 2) for a, b in pairing])
        for n, m in sums:
            sums[n, m] += n**rows * m**columns
    for (n, m), total in sums.items():
        assert log_trace_moment(n, m, p) == pytest.approx(math.log(total), rel=1e-12)


@pytest.mark.parametrize("p", [1, 7, 40, 128])
def test_trace_moment_of_one_row_is_chi_square(p):
    for m in (1, 5, 300):
        exact = sum(math.log(m + 2 * i) for i in range(p))
        assert log_trace_moment(1, m, p) == pytest.approx(exact, rel=1e-12)
        assert log_trace_moment(m, 1, p) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("n, m, p", [(8, 8, 5), (8, 64, 20), (256, 256, 64), (1000, 30, 128)])
def test_trace_moment_lies_between_its_neighbours(n, m, p):
    # Davidson-Szarek's tail integrated: (n∧m) (√n + √m + √2 (p!)^(1/2p))^(2p).
    b = math.sqrt(n) + math.sqrt(m) + math.sqrt(2) * math.exp(math.lgamma(p + 1) / (2 * p))
    above = math.log(min(n, m)) + 2 * p * math.log(b)
    assert log_trace_moment_estimate(n, m, p) <= log_trace_moment(n, m, p) <= above


# The comparison theorem


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, p", [(1, 1, 3), (2, 2, 2), (2, 3, 3), (3, 2, 4), (5, 5, 2)])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_comparison_bounds_the_exact_sum_over_walks(law, n, m, p, density):
    log_moment = np.array([law.family.log_moment(k) for k in range(1, p + 1)])
    exact = 0.0
    for rows in itertools.product(range(n), repeat=p):
        for columns in itertools.product(range(m), repeat=p):
            cells = [(rows[(t + 1) // 2 % p], columns[t // 2]) for t in range(2 * p)]
            uses = [cells.count(cell) for cell in set(cells)]
            if not any(u % 2 for u in uses):
                exact += math.prod(density * math.exp(log_moment[u // 2 - 1]) for u in uses)
    bound = random_matrices.comparison(log_moment, density, n, m, p)
    assert math.log(exact) <= bound + 1e-12
    if density == 1.0 and law.family is laws.NORMAL:
        assert math.log(exact) == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
@pytest.mark.parametrize("level", [1e-4, 0.1, 0.5, 0.9, 0.999])
def test_truncated_moments_against_quadrature(family, level):
    below, above = random_matrices.truncated_log_moments(family, level, 20)
    tau = family.magnitude_quantile(level)
    density = (lambda x: 1.0) if family is laws.UNIFORM else (lambda x: 2 * stats.norm.pdf(x))
    for k in (1, 2, 5, 20):
        power = lambda x, k=k: (x / tau) ** (2 * k) * density(x)
        inside = integrate.quad(power, 0, tau, epsabs=0)[0] / level
        outside = integrate.quad(power, tau, min(family.bound, 30.0), epsabs=0)[0] / (1 - level)
        shift = 2 * k * math.log(tau)
        # At least the integral, and not much more.
        assert -1e-9 <= below[k - 1] - shift - math.log(inside) <= 1e-3
        assert -1e-9 <= above[k - 1] - shift - math.log(outside) <= 1e-3


def test_convex_order_of_the_uniform_law():
    # E (|U| - t)⁺ <= E (|N| - t)⁺ for N of the deviation that the uniform mean bound uses.
    deviation = random_matrices._MEAN["uniform"]
    t = np.linspace(0, 1, 201)
    uniform = (1 - t) ** 2 / 2
    z = t / deviation
    normal = 2 * deviation * (stats.norm.pdf(z) - z * stats.norm.sf(z))
    assert uniform[0] == pytest.approx(normal[0], rel=1e-12)
    assert np.all(uniform <= normal + 1e-12)


# Norm bounds


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(
    "n, m, trials",
    [(8, 8, 400), (8, 64, 200), (64, 8, 200), (32, 32, 200), (64, 64, 100), (128, 16, 60),
     (256, 256, 24)],
)  # fmt: skip
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.02])
def test_norm_bound_against_simulation(law, n, m, trials, density):
    rng = np.random.default_rng(n * 1000 + m)
    layer = networks.Dense(m, n)
    k = round(density * n * m)
    w = sample(rng, layer, law, trials)
    for method in ("random", "bernoulli") if density < 1 and n < 256 else ("random",):
        simulated = norms(removed_part(rng, w, method, k))
        for delta in (0.1, 0.5):
            bound = removed_bound(layer, law, method, k, delta)
            assert np.sum(simulated > bound.value) <= most_failures(trials, delta)
            if k >= 32:  # of use, not only true
                assert bound.value <= 2.2 * np.quantile(simulated, 1 - delta)
            masked = bounds.norm_bound(layer, law, delta=delta, density=k / (n * m))
            assert bound.value <= masked.value * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, trials", [(8, 8, 300), (16, 64, 200), (64, 64, 60)])
@pytest.mark.parametrize("q", [1.0, 0.9, 0.5, 0.1, 0.02])
def test_magnitude_parts_against_simulation(law, n, m, trials, q):
    rng = np.random.default_rng(n * 1000 + m + 7)
    layer = networks.Dense(m, n)
    k = round(q * n * m)
    w = sample(rng, layer, law, trials)
    gone = removed_part(rng, w, "magnitude", k)
    for delta in (0.1, 0.5):
        bound = removed_bound(layer, law, "magnitude", k, delta)
        assert np.sum(norms(gone) > bound.value) <= most_failures(trials, delta)
        if k >= 32:
            assert bound.value <= 2.2 * np.quantile(norms(gone), 1 - delta)
        tails = random_matrices.pruned_tails(layer, law, "magnitude", k, 0.1 * delta)
        kept = tails.kept.at(delta - tails.spent).value
        assert np.sum(norms(w - gone) > kept) <= most_failures(trials, delta)


def test_threshold_level_is_the_quantile_of_an_order_statistic():
    rng = np.random.default_rng(1)
    count, k, trials, delta = 50, 5, 20_000, 0.1
    tau = np.partition(rng.random((trials, count)), k, axis=1)[:, k]
    exceeded = np.sum(tau > random_matrices.threshold_level(count, k, delta))
    low, high = stats.binom.interval(1 - FALSE_ALARM, trials, delta)
    assert low <= exceeded <= high


def test_gaussian_at_tiny_delta_is_davidson_szarek():
    law, n, m, delta = laws.normal(), 64, 64, 1e-100
    bound = bounds.norm_bound(networks.Dense(m, n), law, delta=delta)
    deviation = law.scale(m, n)
    classic = deviation * (2 * math.sqrt(n) + math.sqrt(2 * math.log(1 / delta)))
    assert bound.value <= classic
    assert bound.name == "concentration"
    # E ||G|| is bounded by √n + √m or by a trace moment, whichever is less.
    assert bound.value >= 0.95 * classic


@pytest.mark.parametrize("layer", [networks.Dense(7, 9), CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("method", pruning.METHODS)
def test_removing_nothing_and_everything(method, layer):
    law, count = LAWS[0], math.prod(layer.weight_shape)
    assert removed_bound(layer, law, method, 0, 0.1).value == 0.0
    whole = removed_bound(layer, law, method, count, 0.1)
    assert whole == bounds.norm_bound(layer, law, delta=0.1)


def test_few_entries_are_bounded_by_their_number():
    law = LAWS[0]
    bound = removed_bound(networks.Dense(50, 50), law, "random", 2, 1e-6)
    assert bound.value <= math.sqrt(2) * law.scale(50, 50)
    # In a convolution they may share an entry of the transfer matrices.
    for k in (1, 5, 9, 20):
        worst = np.zeros((1, *CONV.weight_shape))
        worst.reshape(1, -1)[0, :k] = law.scale(*CONV.fans)
        tails = random_matrices.pruned_tails(CONV, law, "random", k, 0.1)
        ceiling = tails.removed.scale * tails.removed.ceiling
        assert convolution_norms(CONV, worst)[0] <= ceiling * (1 + 1e-12)
        assert removed_bound(CONV, law, "random", k, 1e-30).value <= ceiling


def test_norm_bound_refuses():
    layer, law = networks.Dense(4, 4), LAWS[0]
    foreign = pruning.Pruning("magnitude", *[None] * 4)
    for arguments, named in (
        ((layer, law, pruning.random, pruning.Count(17)), "count"),
        ((layer, law, foreign, pruning.Count(1)), "pruning"),
        ((layer, law, "magnitude", pruning.Count(1)), "pruning"),
    ):
        with pytest.raises(ValueError, match=f"^{named} = "):
            bounds.removed_norm_bound(*arguments, delta=0.1)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^delta = "):
            bounds.removed_norm_bound(layer, law, pruning.random, pruning.Count(1), delta=delta)
    with pytest.raises(ValueError, match=r"^density = "):
        bounds.norm_bound(layer, law, density=1.1)


# Convolutions


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("q", [Fraction(1), Fraction(3, 10), Fraction(1, 100)])
@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
def test_moments_of_a_sum_against_the_multinomial_theorem(family, q, taps):
    def moment(k):  # of one masked entry
        if k == 0:
            return Fraction(1)
        uniform = family is laws.UNIFORM
        return q * (Fraction(1, 2 * k + 1) if uniform else math.prod(range(1, 2 * k, 2)))

    order = 6
    log_moment = np.array([family.log_moment(k) for k in range(1, order + 1)])
    found, present = random_matrices.sum_log_moments(log_moment, float(q), taps)
    assert present == pytest.approx(float(1 - (1 - q) ** taps), rel=1e-13)
    for k in range(1, order + 1):
        exact = sum(
            math.factorial(2 * k) * math.prod(moment(u) / math.factorial(2 * u) for u in uses)
            for uses in itertools.product(range(k + 1), repeat=taps)
            if sum(uses) == k
        )
        assert math.exp(found[k - 1]) * present == pytest.approx(float(exact), rel=1e-12)


def test_a_sum_of_normal_variables_is_normal():
    k = np.arange(1, 129)
    log_moment = np.array([laws.NORMAL.log_moment(j) for j in k])
    for taps in (2, 9, 25, 49):
        found, _ = random_matrices.sum_log_moments(log_moment, 1.0, taps)
        assert found == pytest.approx(log_moment + k * math.log(taps), rel=1e-13)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, kernel, p", [(1, 1, 2, 3), (2, 2, 2, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_every_frequency_against_the_exact_sum_over_walks_and_taps(law, n, m, kernel, p, density):
    log_moment = np.array([law.family.log_moment(k) for k in range(1, 129)])
    layer = networks.Conv(m, n, kernel, (4, 3), padding="CIRCULAR")
    size = random_matrices.size_of(layer)
    grids = [2 * np.pi * np.arange(side) / side for side in layer.torus]
    taps = list(itertools.product(range(kernel), repeat=2))
    phases = np.array([a * grids[0][:, None] + b * grids[1] for a, b in taps])
    turns = list(itertools.product(range(len(taps)), repeat=2 * p))
    rotation = {}  # of equal sums of phases
    exact = np.zeros(layer.torus, complex)
    for rows in itertools.product(range(n), repeat=p):
        for columns in itertools.product(range(m), repeat=p):
            cells = [(rows[(t + 1) // 2 % p], columns[t // 2]) for t in range(2 * p)]
            for choice in turns:
                used = list(zip(cells, choice, strict=True))
                uses = [used.count(weight) for weight in set(used)]
                if any(u % 2 for u in uses):
                    continue
                key = tuple(np.bincount(choice[::2], minlength=len(taps)))
                key += tuple(np.bincount(choice[1::2], minlength=len(taps)))
                if key not in rotation:
                    counts = np.array(key[: len(taps)]) - key[len(taps) :]
                    rotation[key] = np.exp(1j * np.tensordot(counts, phases, 1))
                mean = math.prod(density * math.exp(log_moment[u // 2 - 1]) for u in uses)
                exact += mean * rotation[key]
    assert np.abs(exact.imag).max() <= 1e-12 * exact.real.max()
    assert np.all(exact.real > 0)
    assert exact.real.max() == exact.real[0, 0]  # ω = 0 is the worst
    bounded = random_matrices.trace_log_moments(log_moment, density, size)
    bound = bounded[random_matrices.ORDERS.index(p)] - math.log(size.frequencies)
    assert math.log(exact.real[0, 0]) <= bound + 1e-12
    if density == 1.0 and law.family is laws.NORMAL:
        assert math.log(exact.real[0, 0]) == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("padding", networks.PADDINGS)
@pytest.mark.parametrize("sides", [(4, 4), (5, 5), (6, 5), (4, 7)])
def test_frequencies_are_counted_up_to_conjugation(sides, padding):
    layer = networks.Conv(2, 2, 3, sides, 1, padding)
    rows, columns = layer.torus
    pairs = {
        frozenset({(a, b), (-a % rows, -b % columns)}) for a in range(rows) for b in range(columns)
    }
    assert random_matrices.size_of(layer).frequencies == len(pairs)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(
    "layer, trials",
    [
        (networks.Conv(1, 1, 3, (5, 5)), 300),
        (networks.Conv(3, 8, 3, (4, 4), 2, "CIRCULAR"), 200),
        (networks.Conv(8, 2, 2, (6, 7), 1, "VALID"), 200),
        (networks.Conv(16, 16, 3, (8, 8)), 40),
    ],
    ids=lambda v: f"{v.c_in}-{v.c_out}" if isinstance(v, networks.Conv) else "",
)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_convolution_norm_bound_against_simulation(law, method, layer, trials, density):
    rng = np.random.default_rng(layer.c_in)
    count = math.prod(layer.weight_shape)
    k = round(density * count)
    w = sample(rng, layer, law, trials)
    gone = removed_part(rng, w, method, k)
    removed, kept = convolution_norms(layer, gone), convolution_norms(layer, w - gone)
    for delta in (0.1, 0.5):
        bound = removed_bound(layer, law, method, k, delta).value
        assert np.sum(removed > bound) <= most_failures(trials, delta)
        if k >= 32:
            assert bound <= 2.5 * np.quantile(removed, 1 - delta)
        tails = random_matrices.pruned_tails(layer, law, method, k, 0.1 * delta)
        bound = tails.kept.at(delta - tails.spent).value
        assert np.sum(kept > bound) <= most_failures(trials, delta)


def test_concentration_of_a_convolution_at_tiny_delta():
    # One channel: the sum of all weights is normal, and no bound may fall below its quantile.
    layer, law = networks.Conv(1, 1, 3, (6, 6)), laws.normal()
    for delta in (1e-1, 1e-3, 1e-30, 1e-300):
        bound = bounds.norm_bound(layer, law, delta=delta)
        exact = 3 * law.scale(*layer.fans) * stats.norm.isf(delta / 2)
        assert exact <= bound.value <= 2.5 * exact
    assert bound.name == "concentration"


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
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


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(
    "network, law, layers",
    [
        (
            networks.convolutional(
                (2, 4, 4), 6, strides=(2, 1), padding="VALID", kernel=2, outputs=5
            ),
            LAWS[0],
            "all",
        ),
        (networks.convolutional((2, 8, 8, 2), 5, padding="SAME"), LAWS[1], "middle"),
    ],
    ids=["valid", "same"],
)
def test_certificate_of_convolutions_against_simulated_gaps(network, law, layers, method):
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


# Network certificates


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


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(
    "widths, rates",
    [((48, 48, 48, 48), (0, 0.1, 0)), ((20, 60, 30, 10), (0.5, 0.02, 0.9)), ((9, 30), (0.3,))],
)
def test_certificate_against_simulated_gaps(law, method, widths, rates):
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


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize("counts", [(0, 50, 0), (30, 200, 70), (900, 900, 0)])
def test_delta_is_spent_once_and_the_split_is_no_worse_than_equal(method, counts):
    network = networks.dense((30, 30, 30, 30), activations.tanh)
    for delta in (0.3, 0.01):
        certificate = certify_counts(network, LAWS[1], method, counts, delta)
        assert sum(event.delta for event in certificate.events) <= delta * (1 + 1e-12)
        plans = _plans(network, LAWS[1], method, counts, delta)
        equal = [p.eps(np.full(len(p.events), 1 / len(p.events))) for p in plans]
        assert certificate.eps <= min(equal) * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", pruning.METHODS)
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


@pytest.mark.parametrize("method", [pruning.random, pruning.magnitude], ids=str)
@pytest.mark.parametrize("kind", ["dense", "conv"])
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
    twice = activations.Activation("twice", None, None, 2.0, False, True)
    plain, steep = (
        bounds.certify(
            networks.dense((6, 6, 6, 6), s), LAWS[0], pruning.random, pruning.Count(5)
        ).eps
        for s in (activations.relu, twice)
    )
    assert steep == pytest.approx(4 * plain, rel=1e-12)


@pytest.mark.parametrize("method", pruning.METHODS)
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


@pytest.mark.parametrize("delta", [0.05, 0.005, 1e-5])
@pytest.mark.parametrize(
    ("count", "removed"), [(45005**2, 999), (45005**2, 998), (256**2, 4096), (100, 1), (100, 99)]
)
def test_threshold_level_spends_no_more_than_its_budget(count, removed, delta):
    """SciPy's inverse of the beta tail does at k = 999; the tail itself is right."""
    level = random_matrices.threshold_level(count, removed, delta)
    assert special.betaincc(removed + 1, count - removed, level) <= delta * (1 + 1e-9)
    assert special.betaincc(removed + 1, count - removed, level * (1 - 1e-9)) > delta * (1 - 1e-6)

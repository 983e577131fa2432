"""Norm bounds and certificates, against exact sums, quadrature and simulation.

A random test fails falsely with probability below FALSE_ALARM, by its binomial tail.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from jaxprune import activations, bounds, laws, networks
from jaxprune.bounds import random_matrices
from jaxprune.bounds.certificate import _plans, switching_order, telescoping_sum
from jaxprune.bounds.wishart import log_trace_moment, log_trace_moment_estimate

FALSE_ALARM = 1e-7
LAWS = (laws.uniform(6**0.5), laws.normal(2**0.5))


def sample(rng, law, n, m, trials=1):
    shape = (trials, n, m)
    x = rng.uniform(-1, 1, shape) if law.family is laws.UNIFORM else rng.standard_normal(shape)
    return law.scale(m, n) * x


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
    k = round(density * n * m)
    w = sample(rng, law, n, m, trials)
    for method in ("random", "bernoulli") if density < 1 and n < 256 else ("random",):
        simulated = norms(removed_part(rng, w, method, k))
        for delta in (0.1, 0.5):
            bound = bounds.removed_norm_bound(law, n, m, delta, method=method, removed=k)
            assert np.sum(simulated > bound.value) <= most_failures(trials, delta)
            if k >= 32:  # of use, not only true
                assert bound.value <= 2.2 * np.quantile(simulated, 1 - delta)
            masked = bounds.norm_bound(law, n, m, delta, density=k / (n * m))
            assert bound.value <= masked.value


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, trials", [(8, 8, 300), (16, 64, 200), (64, 64, 60)])
@pytest.mark.parametrize("q", [1.0, 0.9, 0.5, 0.1, 0.02])
def test_magnitude_parts_against_simulation(law, n, m, trials, q):
    rng = np.random.default_rng(n * 1000 + m + 7)
    k = round(q * n * m)
    w = sample(rng, law, n, m, trials)
    gone = removed_part(rng, w, "magnitude", k)
    for delta in (0.1, 0.5):
        bound = bounds.removed_norm_bound(law, n, m, delta, method="magnitude", removed=k)
        assert np.sum(norms(gone) > bound.value) <= most_failures(trials, delta)
        if k >= 32:
            assert bound.value <= 2.2 * np.quantile(norms(gone), 1 - delta)
        tails = random_matrices.pruned_tails(law, n, m, "magnitude", k, 0.1 * delta)
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
    bound = bounds.norm_bound(law, n, m, delta)
    deviation = law.scale(m, n)
    classic = deviation * (2 * math.sqrt(n) + math.sqrt(2 * math.log(1 / delta)))
    assert bound.value <= classic
    assert bound.name == "concentration"
    # E ||G|| is bounded by √n + √m or by a trace moment, whichever is less.
    assert bound.value >= 0.95 * classic


@pytest.mark.parametrize("method", random_matrices.METHODS)
def test_removing_nothing_and_everything(method):
    law = LAWS[0]
    assert bounds.removed_norm_bound(law, 9, 7, 0.1, method=method, removed=0).value == 0.0
    whole = bounds.removed_norm_bound(law, 9, 7, 0.1, method=method, removed=63)
    assert whole == bounds.norm_bound(law, 9, 7, 0.1)


def test_few_entries_are_bounded_by_their_number():
    law = LAWS[0]
    bound = bounds.removed_norm_bound(law, 50, 50, 1e-6, method="random", removed=2)
    assert bound.value <= math.sqrt(2) * law.scale(50, 50)


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(delta=0.0), "delta"),
        (dict(delta=1.0), "delta"),
        (dict(method="smallest"), "method"),
        (dict(removed=17), "removed"),
        (dict(removed=1.5), "removed"),
        (dict(d_in=0), "d_in"),
    ],
)
def test_norm_bound_refuses(change, named):
    arguments = dict(d_out=4, d_in=4, delta=0.1, method="random", removed=3) | change
    with pytest.raises(ValueError, match=f"^{named} = "):
        bounds.removed_norm_bound(LAWS[0], **arguments)


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
@pytest.mark.parametrize("method", random_matrices.METHODS)
def test_one_linear_layer_is_the_norm_of_its_removed_part(law, method):
    network = networks.dense((40, 30))
    certificate = bounds.certify(network, law, method, [100], 0.1)
    norm = bounds.removed_norm_bound(law, 30, 40, 0.1, method=method, removed=100)
    assert certificate.eps == pytest.approx(norm.value, rel=1e-12)
    assert certificate.weights == certificate.kept == (None,)


@pytest.mark.parametrize("method", random_matrices.METHODS)
def test_nothing_removed_leaves_no_gap(method):
    certificate = bounds.certify(networks.dense((5, 6, 7)), LAWS[0], method, [0, 0], 0.1)
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
@pytest.mark.parametrize("method", random_matrices.METHODS)
@pytest.mark.parametrize(
    "widths, rates",
    [((48, 48, 48, 48), (0, 0.1, 0)), ((20, 60, 30, 10), (0.5, 0.02, 0.9)), ((9, 30), (0.3,))],
)
def test_certificate_against_simulated_gaps(law, method, widths, rates):
    rng = np.random.default_rng(len(widths))
    network = networks.dense(widths)
    removed = [round(r * d) for r, d in zip(rates, network.weight_counts, strict=True)]
    trials, delta = 40, 0.5
    certificate = bounds.certify(network, law, method, removed, delta)
    gaps = []
    for _ in range(trials):
        dense = [sample(rng, law, *shape)[0] for shape in network.weight_shapes]
        pruned = [
            w - removed_part(rng, w[None], method, k)[0]
            for w, k in zip(dense, removed, strict=True)
        ]
        gaps.append(ascended_gap(rng, dense, pruned))
    assert np.sum(np.array(gaps) > certificate.eps) <= most_failures(trials, delta)
    assert certificate.eps <= 25 * np.median(gaps)


@pytest.mark.parametrize("method", random_matrices.METHODS)
@pytest.mark.parametrize("counts", [(0, 50, 0), (30, 200, 70), (900, 900, 0)])
def test_delta_is_spent_once_and_the_split_is_no_worse_than_equal(method, counts):
    network = networks.dense((30, 30, 30, 30), activations.tanh)
    for delta in (0.3, 0.01):
        certificate = bounds.certify(network, LAWS[1], method, counts, delta)
        assert sum(event.delta for event in certificate.events) <= delta * (1 + 1e-12)
        plans = _plans(network, LAWS[1], method, counts, delta)
        equal = [p.eps(np.full(len(p.events), 1 / len(p.events))) for p in plans]
        assert certificate.eps <= min(equal) * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("method", random_matrices.METHODS)
def test_certificate_falls_with_delta_and_rises_with_the_count(law, method):
    network = networks.dense((24, 24, 24, 24))
    by_delta = [
        bounds.certify(network, law, method, (0, 60, 60), d).eps for d in (1e-6, 0.01, 0.1, 0.5)
    ]
    assert by_delta == sorted(by_delta, reverse=True)
    by_count = [
        bounds.certify(network, law, method, (0, k, 0), 0.05).eps for k in (0, 1, 6, 60, 300, 576)
    ]
    assert by_count == sorted(by_count)


@pytest.mark.parametrize("method", ["random", "magnitude"])
def test_certificate_falls_with_the_width(method):
    # The paper's claim: sublinear counts, middle layers.
    eps = []
    for d in (16, 64, 256):
        network = networks.dense((d,) * 4)
        eps.append(bounds.certify(network, LAWS[0], method, (0, int(d**1.5), 0), 0.05).eps)
    assert eps == sorted(eps, reverse=True)


def test_lipschitz_constants_multiply():
    twice = activations.Activation("twice", None, None, 2.0, False, True)
    plain, steep = (
        bounds.certify(networks.dense((6, 6, 6, 6), s), LAWS[0], "random", (0, 5, 0), 0.1).eps
        for s in (activations.relu, twice)
    )
    assert steep == pytest.approx(4 * plain, rel=1e-12)


def test_convolutions_are_refused():
    network = networks.convolutional((1, 2, 2), 5, outputs=3)
    assert not bounds.covers(network)
    assert bounds.covers(networks.dense((3, 4)))
    with pytest.raises(ValueError, match="dense layers are needed"):
        bounds.certify(network, LAWS[0], "random", (0, 1, 0), 0.1)


@pytest.mark.parametrize(
    "removed, delta, named",
    [((1,), 0.1, "removed"), ((1, 10**9), 0.1, "removed"), ((0, 1), 1.5, "delta")],
)
def test_certify_refuses(removed, delta, named):
    with pytest.raises(ValueError, match=f"^{named} = "):
        bounds.certify(networks.dense((3, 4, 5)), LAWS[0], "random", removed, delta)

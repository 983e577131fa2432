"""Theorem 8 of the bounds' README, lemma by lemma, and its certificates against ascent in NumPy.

A random test fails falsely with probability below FALSE_ALARM.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats
from tiers import grid

from jaxprune import activations, bounds, laws, networks, pruning
from jaxprune.bounds.ball_images import REMOVED
from jaxprune.bounds.images import ball_images, certify_by_images
from jaxprune.bounds.norm_family import ORDERS
from jaxprune.bounds.row_sums import row_sum_tail
from jaxprune.bounds.telescoped import certify_by_norms
from jaxprune.bounds.trace_moments import Size

FALSE_ALARM = 1e-7
NORMAL, UNIFORM = laws.normal(), laws.uniform(3**0.5)


def sample(rng, law, rows, columns):
    x = rng.uniform(-1, 1, (rows, columns))
    if law.family is laws.NORMAL:
        x = rng.standard_normal((rows, columns))
    return law.scale(columns, rows) * x


def mask_of(rng, w, method, k):
    """True where a weight is kept."""
    order = np.abs(w) if method == "magnitude" else rng.random(w.shape)
    keep = np.ones(w.size, bool)
    keep[np.argsort(order, axis=None)[:k]] = False
    return keep.reshape(w.shape)


SLOPES = {"relu": (0.0, 1.0), "leaky_relu(0.3)": (0.3, 1.0), "identity": (1.0, 1.0)}
SMOOTH = {"tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2)}


def activate(name, z):
    """s(z) and s'(z)."""
    if name in SMOOTH:
        s, slope = SMOOTH[name]
        return s(z), slope(z)
    slope = np.where(z > 0, SLOPES[name][1], SLOPES[name][0])
    return slope * z, slope


def largest_norms(rng, ws, name, steps=15, starts=3):
    """A lower bound of the largest norm of each hidden state over the ball, by ascent."""
    found = []
    for depth in range(1, len(ws) + 1):
        x = rng.standard_normal((starts, ws[0].shape[1]))
        best = 0.0
        for _ in range(steps):
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            h, slopes = x, []
            for w in ws[:depth]:
                h, slope = activate(name, h @ w.T)
                slopes.append(slope)
            best = max(best, np.linalg.norm(h, axis=1).max())
            g = h
            for w, slope in zip(ws[:depth][::-1], slopes[::-1], strict=True):
                g = (g * slope) @ w
            x = g
        found.append(best)
    return np.array(found)


def gap(rng, ws, ks, name, steps=25, starts=4):
    """A lower bound of the gap by ascent in float64."""
    best = 0.0
    x = rng.standard_normal((starts, ws[0].shape[1]))
    for _ in range(steps):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        outputs, tapes = [], []
        for layers in (ws, ks):
            h, slopes = x, []
            for w in layers[:-1]:
                h, slope = activate(name, h @ w.T)
                slopes.append(slope)
            outputs.append(h @ layers[-1].T)
            tapes.append(slopes)
        d = outputs[0] - outputs[1]
        best = max(best, np.linalg.norm(d, axis=1).max())
        pulled = []
        for layers, slopes in zip((ws, ks), tapes, strict=True):
            g = d @ layers[-1]
            for w, slope in zip(layers[-2::-1], slopes[::-1], strict=True):
                g = (g * slope) @ w
            pulled.append(g)
        x = pulled[0] - pulled[1]
    return best


# The lemmas


def test_half_normal_is_below_normal_in_convex_order():
    # E (|g| - E|g| - t)⁺ <= E (g - t)⁺ for all t, and both have mean 0.
    mean = math.sqrt(2 / math.pi)
    for t in np.linspace(-4, 5, 91):
        low = max(0.0, t + mean)
        tail = lambda x, low=low: 2 * (x - low) * stats.norm.pdf(x)
        half = integrate.quad(tail, low, 12)[0] + max(0.0, -mean - t)
        normal = stats.norm.pdf(t) - t * stats.norm.sf(t)
        assert half <= normal + 1e-9


def test_chevets_terms_bound_every_pair_of_a_unit_vector_and_a_state():
    """The increments' inequality of the proof, by brute force over random pairs."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        u, v = rng.standard_normal((2, 3))
        u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
        s, t = rng.standard_normal((2, 2)) * rng.random(2)[:, None] ** 2
        r = max(np.linalg.norm(s), np.linalg.norm(t))
        left = np.linalg.norm(np.outer(u, s) - np.outer(v, t)) ** 2
        right = r**2 * np.linalg.norm(u - v) ** 2 + np.linalg.norm(s - t) ** 2
        assert left <= right + 1e-12


@pytest.mark.parametrize("least", [0.0, 0.3, 1.0])
def test_width_of_slopes_times_a_set(least):
    """`w({D d}) <= L w(d) + (L - c) √(n/2π) sup |d|` for a ball and a segment, by simulation."""
    rng = np.random.default_rng(1)
    n, draws = 40, 4000
    g = rng.standard_normal((draws, n))
    spare = (1 - least) * math.sqrt(n / (2 * math.pi))
    # The ball: D d fills it.
    assert np.linalg.norm(g, axis=1).mean() <= math.sqrt(n) + spare
    # The segment between 0 and d: the best slopes are 1 where g d > 0, else c.
    d = rng.standard_normal(n)
    d /= np.linalg.norm(d)
    products = g * d
    ends = np.where(products > 0, products, least * products).sum(axis=1)
    widths = np.maximum(ends, 0.0)
    width = np.maximum(products.sum(axis=1), 0.0).mean()
    error = stats.norm.isf(FALSE_ALARM) * widths.std() / math.sqrt(draws)
    assert widths.mean() - error <= width + spare


@pytest.mark.parametrize(
    "law, method", grid([NORMAL, UNIFORM], ["random", "magnitude"], every=3), ids=str
)
def test_mean_width_of_the_removed_part_s_image(law, method):
    """With the identity it is E ||W₁ᵀ Pᵀ g|| <= std(W₁) √d₀ E ||P||_F, here computed."""
    rng = np.random.default_rng(2)
    n, k, draws = 40, 200, 400
    values = []
    for _ in range(draws):
        w, v = sample(rng, law, n, n), sample(rng, law, n, n)
        p = np.where(mask_of(rng, w, method, k), 0.0, w)
        values.append(np.linalg.norm(v.T @ (p.T @ rng.standard_normal(n))))
    network = networks.dense((n, n, n, n), activations.identity)
    removed = [0, k, 0]
    certificate = certify_by_images(network, law, method, removed, 1e-3)
    assert {event.matrix for event in certificate.events} >= {REMOVED, "width of removed h"}
    tau = math.sqrt(law.variance(n, n) * k)
    if method == "magnitude":
        q = k / n**2
        lost = 1 - law.family.kept_energy(q)
        tau = math.sqrt(law.variance(n, n) * n**2 * lost) * 1.2  # far above τ's fluctuation
    bound = math.sqrt(law.variance(n, n) * n) * tau
    error = stats.norm.isf(FALSE_ALARM) * np.std(values) / math.sqrt(draws)
    assert np.mean(values) - error <= bound <= 1.3 * np.mean(values)


@pytest.mark.parametrize("density", [1.0, 0.2, 0.03])
@pytest.mark.parametrize("family", [laws.NORMAL, laws.UNIFORM], ids=lambda f: f.name)
def test_moments_of_row_sums_against_enumeration(family, density):
    """`E (Σ_i S_i²)^p`, all products of entries written out."""
    n, m = 2, 3
    moments = np.array([family.log_moment(k) for k in range(1, ORDERS[-1] + 1)])
    tail = row_sum_tail(moments, density, Size(n, m, 1, 1))
    for p in (1, 2, 3):
        exact = 0.0
        for rows in itertools.product(range(n), repeat=p):
            for columns in itertools.product(range(m), repeat=2 * p):
                cells = [(rows[t // 2], columns[t]) for t in range(2 * p)]
                uses = [cells.count(cell) for cell in set(cells)]
                if not any(u % 2 for u in uses):
                    exact += math.prod(density * math.exp(moments[u // 2 - 1]) for u in uses)
        found = tail.members[0].log_moments[ORDERS.index(p)]
        assert found == pytest.approx(math.log(exact), abs=1e-10)


@pytest.mark.parametrize(
    "law, method", grid([NORMAL, UNIFORM], ["random", "magnitude"], every=3), ids=str
)
def test_the_removed_part_against_one_sign(law, method):
    """`E ||P |g|||` of simulated removed parts exceeds its bound no more often than delta."""
    rng = np.random.default_rng(3)
    n, m, k, delta, trials = 30, 20, 60, 0.2, 200
    network = networks.dense((9, m, n), activations.relu)
    problem = ball_images(network, law, method, [0, k], 0.1)
    bound = problem.layers[1].row_sums.at(delta).value
    found = []
    for _ in range(trials):
        w = sample(rng, law, n, m)
        p = np.where(mask_of(rng, w, method, k), 0.0, w)
        found.append(np.linalg.norm(np.abs(rng.standard_normal((400, m))) @ p.T, axis=1).mean())
    exceeded = np.sum(np.array(found) > bound)
    assert exceeded <= stats.binom.isf(FALSE_ALARM, trials, delta + 0.01)
    assert bound <= 2 * np.quantile(found, 1 - delta)


@pytest.mark.parametrize("name", ["relu", "leaky_relu(0.3)", "identity"])
def test_gordons_comparison_of_a_removed_part_s_image(name):
    """For fixed P: the mean over a Gaussian W of `sup ||P s(W x)||` is at most
    `σ (E ||P |g||| + ||P|| √d)`; ascent from below."""
    rng = np.random.default_rng(4)
    n, draws = 40, 40
    p = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.1)
    found = []
    for _ in range(draws):
        w = rng.standard_normal((n, n)) / math.sqrt(n)
        x, best = rng.standard_normal((8, n)), 0.0
        for _ in range(40):
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            h, slope = activate(name, x @ w.T)
            y = h @ p.T
            best = max(best, np.linalg.norm(y, axis=1).max())
            x = ((y @ p) * slope) @ w
        found.append(best)
    one_sign = np.linalg.norm(np.abs(rng.standard_normal((4000, n))) @ p.T, axis=1).mean()
    bound = (one_sign + np.linalg.norm(p, 2) * math.sqrt(n)) / math.sqrt(n)
    error = stats.norm.isf(FALSE_ALARM) * np.std(found) / math.sqrt(draws)
    assert np.mean(found) - error <= bound <= 2 * np.mean(found)


# The theorem


NAMES = ["relu", "leaky_relu(0.3)", "tanh"]


@pytest.mark.parametrize(
    "law, name, size",
    grid([NORMAL, UNIFORM], NAMES, [(16, 6, 20), (64, 6, 8), (256, 3, 3)], every=5),
    ids=str,
)
def test_radii_against_ascent(law, name, size):
    check_radii(law, name, *size)


@pytest.mark.slow
@pytest.mark.parametrize("law", [NORMAL, UNIFORM], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(16, 30, 20), (256, 30, 4), (2048, 8, 2)], ids=str)
def test_radii_against_ascent_at_large_sizes(law, name, size):
    check_radii(law, name, *size)


def check_radii(law, name, width, depth, trials):
    activation = activations.leaky_relu(0.3) if "leaky" in name else getattr(activations, name)
    network = networks.dense((width,) * (depth + 2), activation)
    removed = [0] * depth + [width]  # the last layer, so that all radii are needed
    delta = 0.05
    radii = certify_by_images(network, law, "magnitude", removed, delta).radii[1:]
    rng = np.random.default_rng(width + depth)
    exceeded, ratios = 0, []
    for _ in range(trials):
        ws = [sample(rng, law, width, width) for _ in range(depth)]
        found = largest_norms(rng, ws, name)
        exceeded += np.any(found > radii)
        ratios.append(found / radii)
    assert exceeded <= stats.binom.isf(FALSE_ALARM, trials, delta)
    assert np.median(ratios, axis=0)[0] > 0.4  # of use, not only true


PRUNED = [((32, 32, 32, 32), (1,)), ((24, 40, 16, 8), (0, 1, 2)), ((20, 20, 20, 20, 20), (1, 2))]


@pytest.mark.parametrize(
    "law, method, name, case",
    grid([NORMAL, UNIFORM], ["random", "magnitude"], ["relu", "tanh", "identity"], PRUNED, every=7),
    ids=str,
)
def test_certificates_against_ascent(law, method, name, case):
    widths, pruned = case
    delta, trials = 0.2, 15
    network = networks.dense(widths, getattr(activations, name))
    removed = [c // 8 if i in pruned else 0 for i, c in enumerate(network.weight_counts)]
    eps = certify_by_images(network, law, method, removed, delta).eps
    rng = np.random.default_rng(sum(widths))
    found = []
    for _ in range(trials):
        ws = [sample(rng, law, n, m) for m, n in itertools.pairwise(widths)]
        ks = [w * mask_of(rng, w, method, k) for w, k in zip(ws, removed, strict=True)]
        found.append(gap(rng, ws, ks, name))
    assert np.sum(np.array(found) > eps) <= stats.binom.isf(FALSE_ALARM, trials, delta)
    assert np.median(found) > 0.01 * eps


@pytest.mark.ci
def test_deep_networks_are_bounded_by_their_images():
    """At depth 30 the product of norms has 2^30; the images' radii grow like the depth."""
    network = networks.dense((512,) * 31)
    removed = [0, *[512] * 28, 0]
    images = certify_by_images(network, NORMAL, "random", [512**2 // 2] * 30, 0.01)
    norms = certify_by_norms(network, NORMAL, "random", [512**2 // 2] * 30, 0.01)
    assert images.eps < 100 < 1e9 < norms.eps
    few = certify_by_images(network, NORMAL, "random", removed, 0.01)
    assert few.eps <= images.eps
    assert bounds.certify(network, NORMAL, pruning.random, pruning.Fraction(0.5), layers="all",
                          delta=0.01) == images  # fmt: skip


@pytest.mark.parametrize(
    "pruned, method",
    grid([(0,), (1,), (2,), (0, 2), (0, 1, 2)], pruning.METHODS, every=4),
    ids=str,
)
def test_shares_add_up_and_each_event_is_stated(pruned, method):
    network = networks.dense((16, 24, 20, 10))
    removed = [40 if i in pruned else 0 for i in range(3)]
    certificate = certify_by_images(network, UNIFORM, method, removed, 0.1)
    assert sum(event.delta for event in certificate.events) == pytest.approx(0.1, rel=1e-12)
    assert len({(event.layer, event.matrix) for event in certificate.events}) == len(
        certificate.events
    )
    assert certificate.order == tuple(network.names[i] for i in pruned)
    assert certificate.eps > 0 and certificate.route == "images"


def test_no_answer_where_the_theorem_has_none():
    conv = networks.convolutional((2, 3, 3), 5)
    assert certify_by_images(conv, NORMAL, "random", [5, 5], 0.1) is None


@pytest.mark.parametrize("law", [NORMAL, UNIFORM], ids=str)
def test_a_certificate_is_the_better_of_both_routes(law):
    routes = set()
    for width in (32, 512):
        network = networks.dense((width,) * 6)
        removed = [0, *[width] * 3, 0]
        best = bounds.certify(network, law, pruning.magnitude, pruning.Count(width), delta=0.05)
        both = [f(network, law, "magnitude", removed, 0.05) for f in
                (certify_by_norms, certify_by_images)]  # fmt: skip
        assert best == min(both, key=lambda c: c.eps)
        routes.add(best.route)
    assert "images" in routes

"""Trace moments of Gaussian and of sparse matrices, against exact sums and quadrature."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from random_layers import LAWS
from scipy import integrate, special, stats
from tiers import grid

from jaxprune import laws, networks
from jaxprune.bounds import trace_moments
from jaxprune.bounds.closed_walks import HIGHEST_ORDER, _log_tree_walks, all_shapes
from jaxprune.bounds.norm_family import ORDERS
from jaxprune.bounds.wishart import (
    log_shape_counts,
    log_trace_moment,
    log_trace_moment_estimate,
)

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


def closed_walks(n, m, p):
    """Cells of each closed walk of length 2p, with how often they are used; even uses alone."""
    for rows in itertools.product(range(n), repeat=p):
        for columns in itertools.product(range(m), repeat=p):
            cells = [(rows[(t + 1) // 2 % p], columns[t // 2]) for t in range(2 * p)]
            uses = Counter(cells)
            if not any(u % 2 for u in uses.values()):
                yield uses


def on_a_tree(uses):
    rows, columns = {i for i, _ in uses}, {j for _, j in uses}
    return len(uses) == len(rows) + len(columns) - 1


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_shape_counts_by_enumeration(p):
    # A shape with u rows and v columns is met (u)_u (v)_v times in a u x v matrix.
    for u, v in itertools.product(range(1, p + 1), repeat=2):
        total = sum(
            math.prod(math.prod(range(1, k, 2)) for k in uses.values())
            for uses in closed_walks(u, v, p)
            if len({i for i, _ in uses}) == u and len({j for _, j in uses}) == v
        )
        count = total / (math.factorial(u) * math.factorial(v))
        assert math.exp(log_shape_counts(p)[u, v]) == pytest.approx(count, rel=1e-12)


@pytest.mark.parametrize("n, m, p", [(1, 1, 5), (4, 7, 6), (30, 11, 24), (512, 512, 64)])
def test_shape_counts_make_up_the_trace_moment(n, m, p):
    def falling(size):
        factors = np.maximum(size - np.arange(p), 0)
        return np.concatenate(
            [[0.0], np.cumsum([math.log(f) if f else -math.inf for f in factors])]
        )

    total = special.logsumexp(log_shape_counts(p) + falling(n)[:, None] + falling(m))
    assert total == pytest.approx(log_trace_moment(n, m, p), rel=1e-12)
    # Trees on p + 1 vertices: Narayana's numbers.
    u = np.arange(1, p + 1)
    narayana = special.binom(p, u) * special.binom(p, u - 1) / p
    assert np.exp(log_shape_counts(p)[u, p + 1 - u]) == pytest.approx(narayana, rel=1e-10)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_tree_walks_by_enumeration(p):
    weight = np.array([1.0, 0.3, 2.5, 0.7])
    for n, m in ((3.0, 3.0), (0.2, 40.0), (7.0, 1.0)):
        total = 0.0
        for u, v in itertools.product(range(1, p + 1), repeat=2):
            if u + v > p + 1:
                continue
            shapes = sum(
                math.prod(weight[k // 2 - 1] for k in uses.values())
                for uses in closed_walks(u, v, p)
                if on_a_tree(uses)
                and len({i for i, _ in uses}) == u
                and len({j for _, j in uses}) == v
            ) / (math.factorial(u) * math.factorial(v))
            total += n**u * m**v * shapes
        found = _log_tree_walks(np.log(weight), n, m, 4)[p]
        assert found == pytest.approx(math.log(total), rel=1e-12)


def test_tree_walks_give_up_before_they_overflow():
    log_moment = np.array([laws.NORMAL.log_moment(k) for k in range(1, 65)])
    for density, n, m in ((1e-12, 2, 2), (1e-3, 8, 8), (0.5, 1, 100_000), (1.0, 4096, 4096)):
        walks = _log_tree_walks(log_moment + math.log(density), n, m, 64)[1:]
        assert not np.any(np.isnan(walks)) and not np.any(np.isneginf(walks))
        finite = walks[np.isfinite(walks)]
        # The star with p edges, each used twice, is one of them.
        star = np.arange(1, 65) * (math.log(density) + math.log(m)) + math.log(n)
        assert np.all(finite >= star[: len(finite)])


# The comparison theorem


WALKS = [(1, 1, 3), (2, 2, 2), (2, 3, 3), (3, 2, 4), (5, 5, 2)]


@pytest.mark.parametrize(
    "law, walks, density", grid(LAWS, WALKS, [1.0, 0.5, 0.1, 0.01], every=3), ids=str
)
def test_comparison_bounds_the_exact_sum_over_walks(law, walks, density):
    n, m, p = walks
    log_moment = np.array([law.family.log_moment(k) for k in range(1, p + 1)])
    exact = math.log(
        sum(
            math.prod(density * math.exp(log_moment[k // 2 - 1]) for k in uses.values())
            for uses in closed_walks(n, m, p)
        )
    )
    for compare in (trace_moments.comparison, trace_moments.tree_walks):
        bound = compare(log_moment, density, n, m, [p])[0]
        assert exact <= bound + 1e-12
    gaussian = trace_moments.same_variance(log_moment, density, n, m, [p])[0]
    other = trace_moments._other_size(log_moment, density, n, m, p)
    best = trace_moments.comparison(log_moment, density, n, m, [p])[0]
    assert exact <= best + 1e-12 <= min(other, gaussian) + 2e-12
    if density == 1.0 and law.family is laws.NORMAL:
        assert (best, gaussian, other) == pytest.approx((exact,) * 3, rel=1e-12)


@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
@pytest.mark.parametrize("n, m, density", [(64, 64, 0.05), (512, 64, 0.01), (16, 300, 0.7)])
def test_counted_shapes_are_no_worse_than_another_size(family, n, m, density):
    orders = (1, 5, 16, 40, HIGHEST_ORDER)
    log_moment = np.array([family.log_moment(k) for k in range(1, HIGHEST_ORDER + 1)])
    counted = all_shapes(log_moment, density, n, m, orders)
    other = [trace_moments._other_size(log_moment, density, n, m, p) for p in orders]
    assert np.all(counted <= np.array(other) + 1e-9)


@pytest.mark.parametrize("family", [laws.UNIFORM, laws.NORMAL], ids=lambda f: f.name)
@pytest.mark.parametrize("level", [1e-4, 0.1, 0.5, 0.9, 0.999])
def test_truncated_moments_against_quadrature(family, level):
    below, above = trace_moments.truncated_log_moments(family, level, 20)
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
    found, present = trace_moments.sum_log_moments(log_moment, float(q), taps)
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
        found, _ = trace_moments.sum_log_moments(log_moment, 1.0, taps)
        assert found == pytest.approx(log_moment + k * math.log(taps), rel=1e-13)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("n, m, kernel, p", [(1, 1, 2, 3), (2, 2, 2, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_every_frequency_against_the_exact_sum_over_walks_and_taps(law, n, m, kernel, p, density):
    log_moment = np.array([law.family.log_moment(k) for k in range(1, 129)])
    layer = networks.Conv(m, n, kernel, (4, 3), padding="CIRCULAR")
    size = trace_moments.size_of(layer)
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
    bounded = trace_moments.trace_log_moments(log_moment, density, size)
    bound = bounded[ORDERS.index(p)] - math.log(size.frequencies)
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
    assert trace_moments.size_of(layer).frequencies == len(pairs)

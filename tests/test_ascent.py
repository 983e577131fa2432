"""The gap's lower bound: against the exact supremum of small networks, and what it must not do."""

import functools
import itertools

import jax
import numpy as np
import pytest
from oracles import batch, difference64, on_sphere, pair, removal, removed_part

from jaxprune import activations, networks, pruning
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.difference import difference
from jaxprune.gaps.lengths import lengths


def climbed(network, starts, steps, params, removed, x):
    """Largest values, the inputs they were met at, and the lengths there once more."""
    values = lengths(difference(network, params, removed, x))
    values, at = ascend(network, params, removed, x, values, starts, steps)
    return values, at, lengths(difference(network, params, removed, at))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def climbed_pairs(network, starts, steps, params, removed, x):
    one = functools.partial(climbed, network, starts, steps)
    return jax.vmap(one)(params, removed, x)


climbed_pair = jax.jit(climbed, static_argnums=(0, 1, 2))


def samples(network, pairs, n):
    """Inputs on the sphere, n columns a pair."""
    x = on_sphere(np.random.default_rng(0), pairs * n, network.in_shape).reshape(pairs, n, -1)
    return x.swapaxes(1, 2).astype(np.float32)


PAIRS = 12


def breakpoints(matrices):
    """Angles of the unit circle at which a neuron of a ReLU network with 2 inputs turns."""
    edges = np.array([0.0, 2 * np.pi])
    linear = [np.eye(2)]  # the network's map on each arc, up to the layer
    for m in matrices[:-1]:
        new, pieces = [0.0], []
        for left, right, a in zip(edges[:-1], edges[1:], linear, strict=True):
            rows = m @ a
            roots = np.arctan2(-rows[:, 0], rows[:, 1])  # row . (cos, sin) = 0
            roots = np.concatenate([roots + k * np.pi for k in range(-2, 4)])
            inside = np.unique(roots[(roots > left + 1e-13) & (roots < right - 1e-13)])
            for start, end in itertools.pairwise([left, *inside, right]):
                middle = 0.5 * (start + end)
                on = rows @ [np.cos(middle), np.sin(middle)] > 0
                pieces.append(rows * on[:, None])
                new.append(end)
        edges, linear = np.array(new), pieces
    return edges, [matrices[-1] @ a for a in linear]


def exact_supremum(full, kept):
    """`sup ||F(x) - f(x)||` over the unit circle: on each arc F - f is linear."""
    (cuts, a), (other, b) = breakpoints(full), breakpoints(kept)
    edges = np.unique(np.concatenate([cuts, other]))
    best = 0.0
    for left, right in itertools.pairwise(edges):
        middle = 0.5 * (left + right)
        i, j = (np.searchsorted(e, middle) - 1 for e in (cuts, other))
        d = a[i] - b[j]
        _, _, v = np.linalg.svd(d)
        angle = np.arctan2(v[0, 1], v[0, 0])
        angles = [left, right, *(angle + k * np.pi for k in range(-2, 4))]
        angles = [t for t in angles if left - 1e-12 <= t <= right + 1e-12]
        best = max(best, *(np.linalg.norm(d @ [np.cos(t), np.sin(t)]) for t in angles))
    return best


def test_the_oracle_agrees_with_a_fine_grid():
    rng = np.random.default_rng(0)
    for _ in range(5):
        full = [rng.normal(size=(n, m)) for m, n in itertools.pairwise((2, 4, 3, 2))]
        kept = [w * (rng.random(w.shape) < 0.6) for w in full]
        t = np.linspace(0, 2 * np.pi, 100_001)
        x = np.stack([np.cos(t), np.sin(t)])

        def run(matrices, x=x):
            h = x
            for m in matrices[:-1]:
                h = np.maximum(m @ h, 0)
            return matrices[-1] @ h

        grid = np.linalg.norm(run(full) - run(kept), axis=0).max()
        assert grid <= exact_supremum(full, kept) * (1 + 1e-12)
        assert exact_supremum(full, kept) <= grid * (1 + 1e-6)


METHODS = (pruning.random, pruning.magnitude)
SHAPES = [(2, 4, 6, 3), pytest.param((2, 6, 2), marks=pytest.mark.ci)]


@functools.cache
def small_networks(widths, activation=activations.relu):
    """`PAIRS` pairs of each method: weights, removed parts, and what `climbed` finds of each."""
    network = networks.dense(widths, activation)
    pairs = [removal(network, i, q=0.4, method=m) for m in METHODS for i in range(PAIRS)]
    found = climbed_pairs(network, 8, 40, *batch(pairs), samples(network, len(pairs), 64))
    return network, pairs, [np.asarray(a) for a in found]


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_ascent_finds_the_supremum_of_small_networks(widths, method):
    """Brute force over activation patterns: widths up to 6, 2 inputs. Printed with `-s`.

    Of 40 pairs 65 to 88 % were found to 0.1 %, the least to 95 %. The seeds are fixed; with others
    fewer than 3 of 12 would be found with probability 0.3 %, at 60 % of all pairs.
    """
    network, pairs, (values, _, _) = small_networks(widths)
    ratios = []
    first = PAIRS * METHODS.index(method)
    for (params, removed), found in list(zip(pairs, values, strict=True))[first : first + PAIRS]:
        full = [w.astype(np.float64) for w in params]
        kept = [w - p.astype(np.float64) for w, p in zip(full, removed, strict=True)]
        exact = exact_supremum(full, kept)
        assert found.max() <= exact * (1 + 1e-5)
        ratios.append(found.max() / exact)
    found = np.mean(np.array(ratios) > 0.999)
    print(f"{network}, {method}: found in {found:.0%} of pairs, least {min(ratios):.4f}")
    assert found >= 0.25 and min(ratios) > 0.85


@pytest.mark.ci
@pytest.mark.parametrize("activation", [activations.relu, activations.tanh], ids=str)
def test_an_input_stands_behind_every_value(activation):
    """The value is the float64 distance at the point, and the point is in the ball."""
    network, pairs, (values, at, again) = small_networks((2, 4, 6, 3), activation)
    assert np.linalg.norm(at.astype(np.float64), axis=1).max() <= 1 + 1e-6
    assert again == pytest.approx(values, rel=1e-5)
    for (params, removed), x, found in zip(pairs, at, values, strict=True):
        exact = np.linalg.norm(difference64(network, params, removed, x.T), axis=1)
        assert found == pytest.approx(exact, rel=1e-5)


def test_activations_that_are_not_homogeneous_are_searched_inside_the_ball():
    """One neuron: |tanh(9 x) - tanh(3 x)| is largest at x = 0.146, and small on the sphere."""
    network = networks.dense((1, 1, 1), activations.tanh)
    params = (np.float32([[9.0]]), np.float32([[1.0]]))
    kept = np.float32([[3.0]])
    removed = (params[0] - kept, None)
    values, at, _ = climbed_pair(network, 4, 60, params, removed, samples(network, 1, 4)[0])
    values, at = np.asarray(values), np.asarray(at)
    grid = np.linspace(0, 1, 10_001)
    gap = np.tanh(9 * grid) - np.tanh(3 * grid)
    assert values.max() == pytest.approx(gap.max(), rel=1e-3)
    assert abs(at[0, values.argmax()]) == pytest.approx(grid[gap.argmax()], abs=0.03)
    assert gap[-1] < 0.1 * gap.max()


WIDE = networks.dense((16, 16, 16, 16))
ORDINARY = 6


@functools.cache
def wide_pairs():
    """Pairs of one batch, six ordinary ones, then one of gap 0 and one with a weight NaN."""
    pairs = [removal(WIDE, i) for i in range(ORDINARY)]
    nothing = removal(WIDE, 6, q=0.0)
    params, masks = pair(WIDE, 7)
    params[0][1, 2] = np.nan
    masks[0][1, 2] = True
    pairs += [nothing, (params, removed_part(params, masks))]
    x = samples(WIDE, len(pairs), 64)
    return pairs, x, np.asarray(climbed_pairs(WIDE, 8, 30, *batch(pairs), x)[0])


@pytest.mark.ci
def test_steps_find_no_less_than_the_starts():
    pairs, x, together = wide_pairs()
    none = np.asarray(climbed_pair(WIDE, 8, 0, *pairs[0], x[0])[0]).max()
    assert together[0].max() > 1.2 * none > 0


@pytest.mark.ci
def test_a_pair_s_value_does_not_depend_on_the_pairs_beside_it():
    """The climb's end is each pair's own, also where others go on, or are not numbers."""
    pairs, x, together = wide_pairs()
    for i in range(ORDINARY):
        alone = np.asarray(climbed_pair(WIDE, 8, 30, *pairs[i], x[i])[0])
        assert together[i].max() == pytest.approx(alone.max(), rel=1e-5)


def test_nothing_and_what_is_not_a_number():
    *_, nothing, broken = wide_pairs()[2]
    assert not nothing.any()
    assert not np.isfinite(broken).all()


@pytest.mark.parametrize("size", [1e-9, 1e-20])
def test_tiny_gaps_are_climbed_all_the_same(size):
    network = networks.dense((6, 5))
    w = (size * np.random.default_rng(0).normal(size=(5, 6))).astype(np.float32)
    values = climbed_pair(network, 8, 60, (w,), (w,), samples(network, 1, 16)[0])[0]
    exact = np.linalg.norm(w.astype(np.float64), 2)
    assert np.max(values) == pytest.approx(exact, rel=1e-3) and np.isfinite(exact)

"""The gap's lower bound: against the exact supremum of small networks, and what it must not do."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gaps import pair

from jaxprune import activations, gaps, inputs, networks, pruning
from jaxprune.gaps import UnitBall
from jaxprune.gaps.ascent import ascend
from jaxprune.gaps.difference import difference
from jaxprune.gaps.lengths import lengths


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def climbed(network, params, removed, x, starts, steps):
    values = lengths(difference(network, params, removed, x))
    return ascend(network, params, removed, x, values, starts, steps)


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


SHAPES = [(2, 6, 2), (2, 4, 6, 3)]


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("method", [pruning.random, pruning.magnitude], ids=str)
def test_ascent_finds_the_supremum_of_small_networks(widths, method, key):
    """Brute force over activation patterns: widths up to 6, 2 inputs. Printed with `-s`.

    Of 40 pairs 65 to 88 % were found to 0.1 %, the least to 95 %. The key is fixed; with another
    one fewer than 3 of 12 would be found with probability 0.3 %, at 60 % of all pairs.
    """
    network, ball = networks.dense(widths), UnitBall()
    ratios = []
    for i in range(PAIRS):
        own = jax.random.fold_in(key, i)
        params, masks = pair(network, own, q=0.4, method=method)
        removed = gaps.removed_part(params, masks)
        x = inputs.sphere(own, ball.samples, network.in_shape)
        found = float(climbed(network, params, removed, x, ball.starts, ball.steps)[0].max())
        full = [np.asarray(w, np.float64) for w in params]
        kept = [w - np.asarray(p, np.float64) for w, p in zip(full, removed, strict=True)]
        exact = exact_supremum(full, kept)
        assert found <= exact * (1 + 1e-5)
        ratios.append(found / exact)
    found = np.mean(np.array(ratios) > 0.999)
    print(f"{network}, {method}: found in {found:.0%} of pairs, least {min(ratios):.4f}")
    assert found >= 0.25 and min(ratios) > 0.85


def test_an_input_stands_behind_every_value(key):
    """The value is the float64 distance at the point, and the point is in the ball."""
    for activation in (activations.relu, activations.tanh):
        network = networks.dense((5, 6, 4, 3), activation)
        params, masks = pair(network, key)
        removed = gaps.removed_part(params, masks)
        x = inputs.sphere(key, 16, (5,))
        values, at = climbed(network, params, removed, x, 8, 20)
        assert np.linalg.norm(np.asarray(at, np.float64), axis=0).max() <= 1 + 1e-6
        again = difference(network, params, removed, at)
        assert np.linalg.norm(again, axis=0) == pytest.approx(np.asarray(values), rel=1e-5)


def test_activations_that_are_not_homogeneous_are_searched_inside_the_ball(key):
    """One neuron: |tanh(9 x) - tanh(3 x)| is largest at x = 0.146, and small on the sphere."""
    network = networks.dense((1, 1, 1), activations.tanh)
    params = (jnp.array([[9.0]]), jnp.array([[1.0]]))
    kept = jnp.array([[3.0]])
    removed = (params[0] - kept, None)
    values, at = climbed(network, params, removed, inputs.sphere(key, 4, (1,)), 4, 60)
    grid = np.linspace(0, 1, 10_001)
    gap = np.tanh(9 * grid) - np.tanh(3 * grid)
    assert float(values.max()) == pytest.approx(gap.max(), rel=1e-3)
    best = float(np.abs(at[0, int(jnp.argmax(values))]))
    assert best == pytest.approx(grid[gap.argmax()], abs=0.03)
    assert gap[-1] < 0.1 * gap.max()


def test_steps_find_no_less_than_the_starts(key):
    network = networks.dense((16, 16, 16, 16))
    params, masks = pair(network, key)
    removed = gaps.removed_part(params, masks)
    x = inputs.sphere(key, 64, (16,))
    none, some = (float(climbed(network, params, removed, x, 8, n)[0].max()) for n in (0, 30))
    assert some > 1.2 * none > 0


def test_a_pair_s_value_does_not_depend_on_the_pairs_beside_it(key):
    """The climb's end is each pair's own, also where others go on."""
    network = networks.dense((8, 8, 8))
    keys = jax.random.split(key, 6)

    def one(key):
        params, masks = pair(network, key)
        removed = gaps.removed_part(params, masks)
        x = inputs.sphere(key, 16, (8,))
        values = lengths(difference(network, params, removed, x))
        return ascend(network, params, removed, x, values, 4, 50)[0].max()

    together = np.asarray(jax.jit(jax.vmap(one))(keys))
    alone = np.array([float(jax.jit(one)(k)) for k in keys])
    assert together == pytest.approx(alone, rel=1e-5)


def test_nothing_and_what_is_not_a_number(key):
    network = networks.dense((4, 4, 4))
    params, masks = pair(network, key, q=0.0)
    removed = gaps.removed_part(params, masks)
    x = inputs.sphere(key, 8, (4,))
    assert not climbed(network, params, removed, x, 4, 10)[0].any()
    broken = (params[0].at[1, 2].set(jnp.nan), params[1])
    masks = (jnp.ones((4, 4), bool).at[0].set(False), None)
    values, _ = climbed(network, broken, gaps.removed_part(broken, masks), x, 4, 10)
    assert not np.isfinite(values).all()


@pytest.mark.parametrize("size", [1e-9, 1e-20])
def test_tiny_gaps_are_climbed_all_the_same(size, key):
    network = networks.dense((6, 5))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32) * size
    removed = (w,)
    values, _ = climbed(network, (w,), removed, inputs.sphere(key, 16, (6,)), 8, 60)
    exact = np.linalg.norm(np.asarray(w, np.float64), 2)
    assert float(values.max()) == pytest.approx(exact, rel=1e-3) and math.isfinite(exact)

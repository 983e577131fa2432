"""The account by layer against NumPy's float64, singular values, and every order of switching.

Nothing here is left to chance: seeds are fixed, and every assertion is a theorem for each of them.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import difference64, explicit, forward64, on_sphere, removal

import jaxprune as jp
from jaxprune import activations, engine, gaps, inputs, laws, networks, pruning
from jaxprune.engine.trial import draw_pair
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.pruning import Fraction

LAW = laws.uniform(math.sqrt(6))
SMALL = UnitBall(samples=16, starts=4, steps=4)
account = jax.jit(gaps.layer_account, static_argnums=(0, 4))
telescoping_terms = jax.jit(gaps.telescoping_terms, static_argnums=0)


FOUR = networks.dense((6, 9, 7, 8, 5), activations.erf)
SWITCHED = (0, 2, 3)
ORDER = (3, 0, 2)


@functools.cache
def unequal_pairs(network):
    """Ten pairs with layers pruned by different amounts, an input each, and their accounts."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        params, removed = [], []
        for i, shape in enumerate(network.weight_shapes):
            w = rng.normal(size=shape).astype(np.float32)
            gone = np.where(rng.random(shape) < rng.uniform(0.05, 0.9), w, np.float32(0))
            params.append(w)
            removed.append(gone if i in SWITCHED else None)
        x = rng.normal(size=network.in_shape).astype(np.float32)
        arguments = tuple(params), tuple(removed), x
        found.append((arguments, jax.tree.map(np.asarray, account(network, *arguments, ORDER))))
    return found


def assert_switches(network, params, removed, x, order, result):
    """Distance, terms and shares are those of switching the layers in that order, in float64."""
    result = jax.tree.map(np.asarray, result)
    full, kept = explicit(network, params, removed)
    at = lambda ms: forward64(network, ms, x[None])[0]
    total = at(full) - at(kept)
    now, terms = list(full), {}
    for k in order:
        before = at(now)
        now[k] = kept[k]
        terms[k] = before - at(now)
    assert float(result.distance) == pytest.approx(np.linalg.norm(total), rel=1e-5)
    for i, k in enumerate(sorted(terms)):
        t = terms[k]
        assert float(result.terms[i]) == pytest.approx(np.linalg.norm(t), rel=1e-5)
        share = t @ total / (total @ total)
        assert float(result.shares[i]) == pytest.approx(share, rel=1e-4, abs=1e-6)
    assert float(np.sum(result.shares)) == pytest.approx(1, abs=1e-6)


def test_the_terms_are_the_switches_in_float64():
    for arguments, result in unequal_pairs(FOUR):
        assert_switches(FOUR, *arguments, ORDER, result)


@pytest.mark.parametrize(
    ("network", "order"),
    [
        pytest.param(
            networks.dense((6, 9, 7, 5), activations.tanh), (0, 1, 2), marks=pytest.mark.slow
        ),
        pytest.param(
            networks.convolutional((2, 3, 2), 5, strides=(2, 1), outputs=3),
            (2, 0, 1),
            marks=pytest.mark.ci,
        ),
    ],
    ids=["dense", "convolutional"],
)
def test_the_terms_are_the_switches_in_float64_where_all_layers_are_pruned(network, order):
    params, removed = removal(network, 0, q=0.4)
    x = np.random.default_rng(9).normal(size=network.in_shape).astype(np.float32)
    result = account(network, params, removed, x, order)
    assert_switches(network, params, removed, x, order, result)

    backward = account(network, params, removed, x, order[::-1])
    assert_switches(network, params, removed, x, order[::-1], backward)


@pytest.mark.parametrize(
    "network",
    [
        FOUR,
        pytest.param(networks.dense((6, 9, 7, 8, 5)), marks=pytest.mark.ci),
    ],
    ids=str,
)
def test_the_bounds_are_the_least_telescoping_sum(network):
    """Norms are certified to 1 %, so each product of four to 4.1 %; the sum is above every gap."""
    orders = set()
    for (params, removed, _), result in unequal_pairs(network):
        bounds = result.bounds.astype(np.float64)
        full, kept = explicit(network, params, removed)
        a, p = ([np.linalg.norm(m, 2) for m in ms] for ms in (full, kept))
        b = [np.linalg.norm(m - n, 2) for m, n in zip(full, kept, strict=True)]

        def terms(order, a=a, p=p, b=b):
            before = {k: order[: order.index(k)] for k in order}
            return network.activation.lipschitz**3 * np.array(
                [
                    b[k] * math.prod(p[j] if j in before[k] else a[j] for j in range(4) if j != k)
                    for k in SWITCHED
                ]
            )

        best = min(itertools.permutations(SWITCHED), key=lambda order: terms(order).sum())
        orders.add(best)
        assert (terms(best) <= bounds).all() and (bounds <= 1.042 * terms(best)).all()
        x = on_sphere(np.random.default_rng(0), 500, (6,))
        d = difference64(network, params, removed, x)
        assert np.linalg.norm(d, axis=1).max() <= bounds.sum()
    assert len(orders) > 1


def test_a_weight_that_is_hardly_there_and_kept_counts():
    """Layers are switched in their order; at (0, 1) the second then changes 2^-133 2^127."""
    params = tuple(
        np.diag(entries).astype(np.float32) for entries in ([1.0, 2.0**-133], [2.0**100, 2.0**127])
    )
    removed = tuple(
        np.where(np.arange(4).reshape(2, 2) == 3 * i, w, np.float32(0))
        for i, w in enumerate(params)
    )
    terms = np.asarray(telescoping_terms(networks.dense((2, 2, 2)), params, removed))
    assert 2.0**-6 <= float(terms[1]) <= 1.02 * 2.0**-6


def test_a_layer_that_loses_nothing_has_no_part():
    (params, removed, x), _ = unequal_pairs(FOUR)[0]
    removed = (removed[0], None, np.zeros_like(removed[2]), removed[3])
    result = jax.tree.map(np.asarray, account(FOUR, params, removed, x, ORDER))
    assert result.terms[1] == 0 and result.bounds[1] == 0 and result.shares[1] == 0
    assert (result.terms[[0, 2]] > 0).all() and (result.bounds[[0, 2]] > 0).all()
    assert float(result.shares[[0, 2]].sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.ci
def test_one_pruned_layer_makes_the_whole_gap_of_the_simulated_trials():
    """Same seed: the pairs of `simulate`, and there the input is the worst row."""
    network = networks.dense((6, 9, 7, 5))
    rows = np.random.default_rng(0).normal(size=(20, 6))
    arguments = network, LAW, pruning.magnitude, Fraction(0.3)
    result = jp.layer_account(*arguments, trials=11, domain=rows, seed=3, block=4)
    assert result.layers == result.order == ("dense2",)
    np.testing.assert_allclose(result.trials.shares, 1, atol=1e-6)
    run = engine.prepare(*arguments, trials=11, domain=rows, seed=3, block=4)
    lower = np.concatenate([done.trials.lower for done in engine.run_blocks(run)])
    np.testing.assert_allclose(result.trials.distance, lower, rtol=1e-5)
    np.testing.assert_allclose(result.trials.terms[:, 0], lower, rtol=1e-5)


@pytest.mark.ci
def test_accounts_of_many_pairs():
    network = networks.dense((6, 9, 7, 5))
    arguments = network, LAW, pruning.random, Fraction(0.3)
    result = jp.layer_account(
        *arguments, trials=11, layers="all", order="backward", domain=SMALL, block=4
    )
    assert result.layers == ("dense1", "dense2", "dense3")
    assert result.order == result.layers[::-1]
    distance, terms, shares, bounds = result.trials
    assert terms.shape == shares.shape == bounds.shape == (11, 3) and result.counted.all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (distance <= terms.sum(axis=1) * (1 + 1e-5)).all()
    assert (distance <= bounds.sum(axis=1)).all()
    # The input found is at least as bad as every sampled one.
    run = engine.prepare(*arguments, trials=11, layers="all", domain=SMALL)

    @jax.jit
    @jax.vmap
    def pairs(low):
        key, params, removed = draw_pair(run.design, run.numbers, (jnp.uint32(0), low))
        return params, removed, inputs.sphere(key, 16, (6,))

    params, removed, x = jax.tree.map(np.asarray, pairs(np.arange(11, dtype=np.uint32)))
    for i in range(11):
        one = [[w[i] for w in ws] for ws in (params, removed)]
        d = difference64(network, *one, x[i].T)
        assert distance[i] >= np.linalg.norm(d, axis=1).max() * (1 - 1e-5)
    median = result.quantile(0.5)
    for i, layer in enumerate(result.layers):
        assert median[layer]["share"] == pytest.approx(np.sort(shares[:, i])[5])
        assert median[layer]["bound"] == pytest.approx(np.sort(bounds[:, i])[5])
        assert median[layer]["term"] == pytest.approx(np.sort(terms[:, i])[5])


@pytest.mark.ci
def test_pairs_without_a_finite_difference_do_not_count():
    network = networks.dense((4, 3))
    w = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    w[0], w[1, 2, 1] = 0, np.nan
    arguments = network, (w,), pruning.random, Fraction(0.5)
    result = jp.layer_account(*arguments, trials=3, layers="all", domain=SMALL, block=2)
    assert result.counted.tolist() == [False, False, True]
    assert result.quantile(0.0) == result.quantile(1.0)
    with pytest.raises(ValueError, match="2 trials"):
        jp.layer_account(*arguments, trials=2, layers="all", domain=SMALL, block=2).quantile(0.5)
    with pytest.raises(ValueError, match="p = 2"):
        result.quantile(2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"order": "best"}, "order"),
        ({"domain": LinfBall()}, "domain"),
        ({"trials": 0}, "trials"),
        ({"trials": 10**8}, "trials"),
        ({"layers": "dense9"}, "layers"),
    ],
)
def test_bad_arguments(change, named):
    with pytest.raises(ValueError, match=named):
        jp.layer_account(networks.dense((4,) * 4), LAW, pruning.random, Fraction(0.5), **change)

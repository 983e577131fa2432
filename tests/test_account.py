"""The account by layer against NumPy's float64, singular values, and every order of switching.

Nothing here is left to chance: seeds are fixed, and every assertion is a theorem for each of them.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gaps import forward64, matrix, pair
from test_intervals import difference64

import jaxprune as jp
from jaxprune import activations, engine, gaps, inputs, laws, networks, pruning
from jaxprune.engine.trial import draw_pair
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.pruning import Fraction

LAW = laws.uniform(math.sqrt(6))
SMALL = UnitBall(samples=16, starts=4, steps=4)
account = jax.jit(gaps.layer_account, static_argnums=(0, 4))
telescoping_terms = jax.jit(gaps.telescoping_terms, static_argnums=0)


def explicit(network, params, removed):
    """Target's and pruned network's layers as float64 matrices."""
    kept = [w if p is None else w - p for w, p in zip(params, removed, strict=True)]
    return tuple(
        [matrix(layer, w) for layer, w in zip(network.layers, ws, strict=True)]
        for ws in (params, kept)
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize(
    "network",
    [
        networks.dense((6, 9, 7, 5), activations.tanh),
        networks.convolutional((2, 3, 2), 5, strides=(2, 1), outputs=3),
    ],
    ids=["dense", "convolutional"],
)
def test_the_terms_are_the_switches_in_float64(network, order, key):
    params, masks = pair(network, key, q=0.4)
    removed = gaps.removed_part(params, masks)
    x = jax.random.normal(jax.random.fold_in(key, 9), network.in_shape)
    result = account(network, params, removed, x, order)
    full, kept = explicit(network, params, removed)
    at = lambda ms: forward64(network, ms, np.asarray(x)[None])[0]
    total = at(full) - at(kept)
    now, terms = list(full), {}
    for k in order:
        before = at(now)
        now[k] = kept[k]
        terms[k] = before - at(now)
    assert float(result.distance) == pytest.approx(np.linalg.norm(total), rel=1e-5)
    for k, t in terms.items():
        assert float(result.terms[k]) == pytest.approx(np.linalg.norm(t), rel=1e-5)
        share = t @ total / (total @ total)
        assert float(result.shares[k]) == pytest.approx(share, rel=1e-4, abs=1e-6)
    assert float(np.sum(result.shares)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("activation", [activations.relu, activations.erf], ids=str)
def test_the_bounds_are_the_least_telescoping_sum(activation):
    """Norms are certified to 1 %, so each product of four to 4.1 %; the sum is above every gap."""
    network = networks.dense((6, 9, 7, 8, 5), activation)
    switched, orders = (0, 2, 3), set()
    for seed in range(10):
        # Layers pruned by different amounts: the best order varies.
        rng = np.random.default_rng(seed)
        params, removed = [], []
        for i, shape in enumerate(network.weight_shapes):
            w = rng.normal(size=shape).astype(np.float32)
            gone = np.where(rng.random(shape) < rng.uniform(0.05, 0.9), w, 0)
            params.append(jnp.asarray(w))
            removed.append(jnp.asarray(gone) if i in switched else None)
        bounds = np.asarray(telescoping_terms(network, tuple(params), tuple(removed)), np.float64)
        full, kept = explicit(network, params, removed)
        a, p = ([np.linalg.norm(m, 2) for m in ms] for ms in (full, kept))
        b = [np.linalg.norm(m - n, 2) for m, n in zip(full, kept, strict=True)]

        def terms(order, a=a, p=p, b=b):
            before = {k: order[: order.index(k)] for k in order}
            return activation.lipschitz**3 * np.array(
                [
                    b[k] * math.prod(p[j] if j in before[k] else a[j] for j in range(4) if j != k)
                    for k in switched
                ]
            )

        best = min(itertools.permutations(switched), key=lambda order: terms(order).sum())
        orders.add(best)
        assert (terms(best) <= bounds).all() and (bounds <= 1.042 * terms(best)).all()
        x = rng.normal(size=(500, 6))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        d = difference64(network, params, removed, x)
        assert np.linalg.norm(d, axis=1).max() <= bounds.sum()
    assert len(orders) > 1


def test_a_weight_that_is_hardly_there_and_kept_counts():
    """Layers are switched in their order; at (0, 1) the second then changes 2^-133 2^127."""
    network = networks.dense((2, 2, 2))
    params = tuple(
        jnp.asarray(np.diag(entries).astype(np.float32))
        for entries in ([1.0, 2.0**-133], [2.0**100, 2.0**127])
    )
    masks = tuple(jnp.ones((2, 2), bool).at[i, i].set(False) for i in (0, 1))
    terms = telescoping_terms(network, params, gaps.removed_part(params, masks))
    assert 2.0**-6 <= float(terms[1]) <= 1.02 * 2.0**-6


def test_a_layer_that_loses_nothing_has_no_part(key):
    network = networks.dense((6, 9, 5))
    params, masks = pair(network, key)
    removed = gaps.removed_part(params, (masks[0], jnp.ones_like(masks[1])))
    result = account(network, params, removed, jnp.ones(6), (0, 1))
    assert result.terms[1] == 0 and result.bounds[1] == 0 and result.shares[1] == 0
    assert float(result.shares[0]) == pytest.approx(1, abs=1e-6)


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

    params, removed, x = pairs(np.arange(11, dtype=np.uint32))
    for i in range(11):
        one = [[np.asarray(w[i]) for w in ws] for ws in (params, removed)]
        d = difference64(network, *one, x[i].T)
        assert distance[i] >= np.linalg.norm(d, axis=1).max() * (1 - 1e-5)
    median = result.quantile(0.5)
    for i, layer in enumerate(result.layers):
        assert median[layer]["share"] == pytest.approx(np.sort(shares[:, i])[5])
        assert median[layer]["bound"] == pytest.approx(np.sort(bounds[:, i])[5])
        assert median[layer]["term"] == pytest.approx(np.sort(terms[:, i])[5])


def test_pairs_without_a_finite_difference_do_not_count():
    network = networks.dense((4, 3))
    w = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    w[0], w[1, 2, 1] = 0, np.nan
    arguments = network, (w,), pruning.random, Fraction(0.5)
    result = jp.layer_account(*arguments, trials=3, layers="all", domain=SMALL)
    assert result.counted.tolist() == [False, False, True]
    assert result.quantile(0.0) == result.quantile(1.0)
    with pytest.raises(ValueError, match="2 trials"):
        jp.layer_account(*arguments, trials=2, layers="all", domain=SMALL).quantile(0.5)
    with pytest.raises(ValueError, match="p = 2"):
        result.quantile(2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"order": "best"}, "order"),
        ({"domain": LinfBall()}, "domain"),
        ({"trials": 0}, "trials"),
        ({"layers": "dense9"}, "layers"),
    ],
)
def test_bad_arguments(change, named):
    with pytest.raises(ValueError, match=named):
        jp.layer_account(networks.dense((4,) * 4), LAW, pruning.random, Fraction(0.5), **change)

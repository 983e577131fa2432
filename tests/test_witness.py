"""Distances with proven ends, against exact fractions and 40 digits: no chance, no false alarm."""

import itertools
from fractions import Fraction

import jax
import mpmath
import numpy as np
import pytest
from oracles import removed_part

import jaxprune as jp
from jaxprune import activations, networks
from jaxprune.engine import Pair, Tally
from jaxprune.engine.trial import measure_pair
from jaxprune.gaps.witness import distances, inside, lower_end, rounded

ci, slow = pytest.mark.ci, pytest.mark.slow
QUICK = jp.UnitBall(samples=4, starts=2, steps=2)
CUBE = jp.LinfBall(samples=4, starts=2)


def exact_output(network, weights, x):
    """Of a dense network with a piecewise linear activation, in fractions."""
    slope = Fraction(network.activation.least_slope)
    for i, w in enumerate(weights):
        if i:
            x = [h if h > 0 else slope * h for h in x]
        x = [sum((Fraction(float(v)) * h for v, h in zip(row, x, strict=True)), Fraction(0))
             for row in w]  # fmt: skip
    return x


def exact_gap(network, params, kept, inputs, by):
    """The largest distance at some inputs, squared: the sum or the largest of squared outputs."""
    both = lambda x: zip(
        exact_output(network, params, x), exact_output(network, kept, x), strict=True
    )
    return max(by((a - b) ** 2 for a, b in both([Fraction(float(v)) for v in x])) for x in inputs)


def hostile_pair(rng, widths):
    """Weights of all scales whose outputs cancel, or nearly, at x = 1; and what stays of them."""
    wide = rng.uniform() < 0.5
    params = []
    for d_in, d_out in itertools.pairwise(widths):
        size = rng.uniform(-126, 126, (d_out, d_in) if wide else (1, 1)) * rng.choice([0, 0.1, 1])
        w = rng.uniform(0.5, 1.0, (d_out, d_in)) * rng.choice([-1, 1], (d_out, d_in))
        params.append((w * 2.0**size).astype(np.float32))
    with np.errstate(all="ignore"):
        h = np.ones(widths[0])
        for w in params[:-1]:
            h = np.maximum(w.astype(np.float64) @ h, 0)
        last = params[-1]
        to = -(last[:, :-1].astype(np.float64) @ h[:-1]) / h[-1]
        if np.isfinite(to).all() and (abs(to) < 3e38).all():
            last[:, -1] = to
    if rng.uniform() < 0.1:  # beyond float64: 1 + t - 1
        t = rng.uniform(1.0, 2.0) * 2.0**-53
        params = [np.ones_like(w) for w in params[:-1]] + [np.zeros_like(last)]
        places = rng.permutation(last.shape[1])
        params[-1][:, places[: min(3, len(places))]] = np.array([1.0, -1.0, t])[: len(places)]
    q = rng.choice([0.2, 0.5, 1.0])
    masks = [rng.random(w.shape) >= q for w in params]
    if rng.uniform() < 0.3:
        masks = [np.ones_like(m) for m in masks[:-1]] + [np.zeros_like(masks[-1])]
    return tuple(params), tuple(masks)


def measured(network, ball, pairs, rows):
    """The engine's trials of given pairs, in one program."""
    params, removed = (tuple(map(np.stack, zip(*each, strict=True))) for each in zip(*pairs))  # noqa: B905
    keys = jax.random.split(jax.random.key(0), len(pairs))
    measure = jax.vmap(lambda pair: measure_pair(network, ball, pair, rows))
    return jax.tree.map(np.asarray, jax.jit(measure)(Pair(keys, params, removed)))


@pytest.mark.parametrize(
    "activation, widths, ball, count",
    [
        (activations.relu, (1, 3, 1), None, 200),
        pytest.param(activations.relu, (1, 3, 1), QUICK, 2000, marks=ci),
        pytest.param(activations.relu, (1, 3, 3, 2), None, 2000, marks=ci),
        pytest.param(activations.leaky_relu(0.3), (1, 3, 3, 2), QUICK, 2000, marks=ci),
        pytest.param(activations.identity, (1, 2, 1), QUICK, 2000, marks=slow),
        pytest.param(activations.identity, (1, 4, 4, 1), None, 2000, marks=slow),
        pytest.param(activations.relu, (1, 3, 2), CUBE, 2000, marks=ci),
    ],
    ids=str,
)
def test_hostile_given_weights_get_no_wrong_end_and_no_wrong_verdict(
    activation, widths, ball, count
):
    """Pairs of scales from 1e-38 to 1e38 with cancelling outputs.

    With one input and a positively homogeneous activation the gap over a ball is that at 1 or -1.
    """
    network = networks.dense(widths, activation)
    rng = np.random.default_rng(len(widths))
    given = [hostile_pair(rng, widths) for _ in range(count)]
    rows = np.array([[1.0], [-1.0], [0.3]], np.float32)
    pairs = [(params, removed_part(params, masks)) for params, masks in given]
    trials = measured(network, ball, pairs, None if ball else rows)
    by = max if ball is CUBE else sum
    inputs = rows[:2] if ball else rows
    told = decided = 0
    for i, (params, masks) in enumerate(given):
        kept = [np.where(m, w, np.float32(0)) for w, m in zip(params, masks, strict=True)]
        if not trials.finite[i]:
            continue
        told += 1
        gap = exact_gap(network, params, kept, inputs, by)
        lower, upper = (Fraction(float(end[i])) for end in (trials.lower, trials.upper))
        assert lower**2 <= gap <= upper**2
        at = float(mpmath.sqrt(mpmath.mpf(gap.numerator) / gap.denominator))
        for eps in (at * 0.5, at * (1 - 1e-6), at, at * (1 + 1e-6), 2 * at):
            if not 0 < eps < np.inf:
                continue
            tally = Tally.of([eps], [0], type(trials)(*(field[i : i + 1] for field in trials)))
            counts = tally.counts(eps)
            assert not counts.close or gap <= Fraction(eps) ** 2
            assert not counts.far or gap > Fraction(eps) ** 2
            decided += counts.close + counts.far
    assert told > count / 5 and decided > told / 2


FIRST = (
    np.array([[0.9928264], [0.91342103]], np.float32),
    np.array([[0.9292952, -1.0100806]], np.float32),
)


@pytest.mark.parametrize(
    "params, masks, activation, gap",
    [
        # A float32 distance of 0 where the gap is 5.3e-8.
        (
            FIRST,
            (np.ones((2, 1), bool), np.zeros((1, 2), bool)),
            activations.identity,
            5.258073798586338e-8,
        ),
        # Weights below float32's normal numbers are no zeros.
        (
            (np.full((2, 1), 1e-39, np.float32), np.array([[3e38, 2e38]], np.float32)),
            (np.ones((2, 1), bool), np.zeros((1, 2), bool)),
            activations.relu,
            0.5,
        ),
    ],
    ids=["outputs cancel", "subnormal weights"],
)
def test_a_distance_that_float32_does_not_have(params, masks, activation, gap):
    network = networks.dense((1, 2, 1), activation)
    pair = params, removed_part(params, masks)
    x, seen = np.array([[1.0, 0.5]], np.float32), np.array([1.0, 0.5], np.float32)

    @jax.jit
    def ends(pair, x):
        gaps = rounded(distances(network, *pair, x)[2])
        return *gaps, lower_end(network, *pair, inside(x * np.float32(1.0 + 1e-7)), seen)

    lower, upper, of_ball = ends(pair, x)
    exact = exact_gap(
        network,
        params,
        [np.where(m, w, 0) for w, m in zip(params, masks, strict=True)],
        x.T[:1],
        sum,
    )
    assert Fraction(float(lower[0])) ** 2 <= exact <= Fraction(float(upper[0])) ** 2
    assert Fraction(float(of_ball)) ** 2 <= exact
    for end in (lower[0], upper[0], of_ball):
        assert end == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("activation", list(jp.activations.ACTIVATIONS.values()), ids=str)
def test_an_activation_errs_by_what_it_says(activation):
    """In float64 against 40 digits, from tiny to saturated arguments."""
    rng = np.random.default_rng(0)
    a = rng.choice([-1, 1], 400) * 10.0 ** rng.uniform(-12, 2, 400)
    d = np.where(rng.uniform(size=400) < 0.3, a, 1.0) * 10.0 ** rng.uniform(-12, 1, 400)
    slope = mpmath.mpf(activation.least_slope)
    s = {
        "tanh": mpmath.tanh,
        "erf": mpmath.erf,
    }.get(activation.name, lambda x: x if x > 0 else slope * x)
    with jax.enable_x64(True):
        both = jax.jit(lambda a, d: (activation.fn(a), activation.difference(a, d)))(a, d)
    with mpmath.workdps(40):
        for x, step, fn, difference in zip(a, d, *map(np.asarray, both), strict=True):
            x, step = mpmath.mpf(float(x)), mpmath.mpf(float(step))
            assert abs(s(x) - mpmath.mpf(float(fn))) <= activation.fn_error * abs(x)
            exact = s(x) - s(x - step)
            assert abs(exact - mpmath.mpf(float(difference))) <= activation.difference_error * abs(
                step
            )

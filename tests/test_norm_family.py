"""Every member of the family of norm bounds, against simulation and against what all promise.

A random check fails falsely with probability below FALSE_ALARM, by its binomial or t tail.
"""

import itertools
import math

import numpy as np
import pytest
from random_layers import (
    CONV,
    FALSE_ALARM,
    LAWS,
    layer_norms,
    most_failures,
    removed_part,
    sample,
)
from scipy import stats
from tiers import grid

from jaxprune import bounds, laws, networks, pruning
from jaxprune.bounds import random_matrices
from jaxprune.bounds.norm_family import Tail

DELTAS = (0.5, 0.1, 0.01)
SPENT = 0.01
MEMBERS = {
    "comparison",
    "tree walks",
    "same variance",
    "matrix Bernstein",
    "Gaussian",
    "convex order",
    "concentration",
    "Frobenius norm",
}
SMALL = [
    (networks.Dense(8, 8), 400),
    (networks.Dense(8, 128), 150),
    (networks.Dense(64, 16), 200),
    (networks.Dense(128, 128), 60),
    (networks.Conv(1, 1, 3, (5, 5)), 300),
    (networks.Conv(3, 8, 3, (4, 4), 2, "CIRCULAR"), 200),
    (networks.Conv(8, 2, 2, (6, 7), 1, "VALID"), 200),
    (networks.Conv(16, 16, 3, (8, 8)), 40),
]
LARGE = [
    (networks.Dense(width, width // ratio), max(12, 25_000 // width))
    for width, ratio in itertools.product((256, 512, 1024, 2048), (1, 4, 16))
] + [(networks.Conv(32, 32, 3, (16, 16)), 20)]
FRACTIONS = (1.0, 0.5, 0.1, 0.01)


def shape(value):
    return "x".join(map(str, value.weight_shape)) if hasattr(value, "weight_shape") else ""


def check_members(tail, norms, outside, spent):
    """No member is exceeded more often than it says, and none lies below the mean.

    `outside` marks the trials outside the event of probability `spent` that the bounds exclude.
    """
    for member in tail.members:
        for delta in DELTAS:
            value = tail.scale * float(member.tail(np.log(delta)))
            failures = np.sum(norms > value * (1 + 1e-6))
            assert failures <= most_failures(len(norms), delta + spent), (member.name, delta)
        inside = np.where(outside, norms, 0.0)
        error = stats.t.isf(FALSE_ALARM, len(norms) - 1) * stats.sem(inside)
        assert inside.mean() - error <= tail.scale * member.mean, member.name


def check_layer(law, layer, trials, method, fraction, looseness):
    count = math.prod(layer.weight_shape)
    rng = np.random.default_rng([count, layer.weight_shape[0], round(1000 * fraction)])
    k = max(1, round(fraction * count))
    w = sample(rng, layer, law, trials).astype(np.float32)
    gone = removed_part(rng, w, method, k)
    tails = random_matrices.pruned_tails(layer, law, method, k, SPENT)
    outside = np.ones(trials, bool)
    if tails.spent > 0:
        tau = np.partition(np.abs(w).reshape(trials, -1), k, axis=1)[:, k] / law.scale(*layer.fans)
        outside = tau <= law.family.magnitude_quantile(tails.level)
        assert np.sum(~outside) <= most_failures(trials, tails.spent)
    for tail, part in ((tails.removed, gone), (tails.kept, w - gone)):
        if tail.is_zero:
            assert not np.any(part)
            continue
        norms = layer_norms(layer, part)
        check_members(tail, norms, outside, tails.spent)
        present = k if part is gone else count - k
        if present >= 32:  # of use, not only true
            assert tail.at(0.1).value <= looseness * np.quantile(norms, 0.9)


@pytest.mark.parametrize(
    "case, method, fraction, law",
    grid(SMALL, pruning.METHODS, FRACTIONS, LAWS, every=11),
    ids=lambda value: shape(value[0]) if isinstance(value, tuple) else str(value),
)
def test_no_member_is_exceeded_too_often(case, method, fraction, law):
    check_layer(law, *case, method, fraction, looseness=1.75)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("layer, trials", LARGE, ids=shape)
@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_no_member_is_exceeded_too_often_at_large_sizes(law, layer, trials, method, fraction):
    # A convolution pays for the union over its frequencies as well.
    looseness = 1.75 if isinstance(layer, networks.Conv) else 1.5
    check_layer(law, layer, trials, method, fraction, looseness)


def tails(law):
    """Tails of all kinds of layers, methods and fractions, of standard scale."""
    for layer in (networks.Dense(8, 8), networks.Dense(200, 30), CONV):
        count = math.prod(layer.weight_shape)
        yield random_matrices.weight_tail(layer, law)
        for method, fraction in itertools.product(pruning.METHODS, (0.5, 0.03)):
            parts = random_matrices.pruned_tails(
                layer, law, method, max(1, round(fraction * count)), 0.01
            )
            yield parts.kept
            yield parts.removed


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_members_fall_with_delta_and_say_who_they_are(law):
    log_delta = -np.concatenate([np.linspace(1e-6, 5.0, 30), np.geomspace(6.0, 600.0, 20)])
    for tail in tails(law):
        names = [member.name for member in tail.members]
        assert len(set(names)) == len(names)
        for member in tail.members:
            values = member.tail(log_delta)
            assert values.shape == log_delta.shape
            assert np.all(np.isfinite(values)) and np.all(values > 0)
            assert np.all(np.diff(values) >= 0)
            assert 0 < member.mean < math.inf
            assert member.reference
            assert member.describe(-3.0).startswith(member.name)
            # One delta at a time gives the same.
            assert [float(member.tail(v)) for v in log_delta[:3]] == values[:3].tolist()


def test_every_member_takes_part():
    met = {member.name for law in LAWS for tail in tails(law) for member in tail.members}
    assert met == MEMBERS


@pytest.mark.parametrize(
    "layer, method, law",
    grid([networks.Dense(20, 30), CONV], pruning.METHODS, LAWS, every=5),
    ids=lambda value: shape(value) or str(value),
)
def test_the_least_is_chosen_and_scale_passes_through(layer, method, law):
    thrice = laws.Law(law.family, law.scaling, 3 * law.gain)
    arguments = pruning.METHODS[method], pruning.Fraction(0.2)
    for delta in (0.3, 1e-9):
        ways = [
            (bounds.norm_bound, random_matrices.norm_bounds, ()),
            (bounds.removed_norm_bound, random_matrices.removed_norm_bounds, arguments),
        ]
        for one, every, more in ways:
            answers = every(layer, law, *more, delta=delta)
            assert one(layer, law, *more, delta=delta) == answers[0]
            assert answers[0].value == min(answer.value for answer in answers)
            larger = every(layer, thrice, *more, delta=delta)
            for small, large in zip(answers, larger, strict=True):
                assert large.name == small.name
                assert large.value == pytest.approx(3 * small.value, rel=1e-12)
                assert large.mean == pytest.approx(3 * small.mean, rel=1e-12)


def test_values_are_the_least_of_the_members_at_each_delta():
    tail = random_matrices.pruned_tails(networks.Dense(40, 40), LAWS[0], "random", 30, 0.1).removed
    log_delta = np.log([[0.9, 0.1], [1e-3, 1e-200]])
    alone = [Tail(tail.scale, (member,)).values(log_delta) for member in tail.members]
    assert np.array_equal(tail.values(log_delta), np.min(alone, axis=0))
    assert len({tail.at(d).name.split(",")[0] for d in (0.9, 1e-200)}) == 2


EXTREMES = [
    networks.Dense(1, 1),
    networks.Dense(3, 2),
    networks.Dense(1, 5000),
    networks.Dense(4096, 4096),
    networks.Conv(1, 1, 2, (3, 3)),
    networks.Conv(64, 64, 5, (9, 9)),
]


@pytest.mark.parametrize(
    "layer, law", grid(EXTREMES, LAWS, every=5), ids=lambda value: shape(value) or str(value)
)
def test_extremes_have_finite_bounds(layer, law):
    count = math.prod(layer.weight_shape)
    for k, method in itertools.product({1, count // 3, count - 1} - {0}, pruning.METHODS):
        parts = random_matrices.pruned_tails(layer, law, method, k, 1e-3)
        for tail in (parts.kept, parts.removed):
            values = tail.values(np.log([0.5, 1e-3, 1e-40]))
            assert np.all(np.isfinite(values)) and (tail.is_zero or np.all(values > 0))

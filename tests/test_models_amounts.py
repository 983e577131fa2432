"""Counts of each layer against a search by bisection, and dictionaries of amounts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.models import Count, ErdosRenyi, Fraction, Global, Sublinear, prune
from jaxprune.models.amounts import groups

SHAPES = {
    "conv1": (8, 3, 3, 3),
    "conv2": (16, 8, 3, 3),
    "fc1": (100, 256),
    "fc2": (10, 100),
    "thin": (1, 40),
}
SIZES = {path: math.prod(shape) for path, shape in SHAPES.items()}


def counts(amount):
    plan = groups(amount, SHAPES, SIZES)
    return {group.paths[0]: group.removed for group in plan}


def densities(q, kernel):
    """ER's definition: min(1, c * share), c by bisection so that the total is right."""
    sizes = np.array(list(SIZES.values()))
    wanted = sizes.sum() - round(q * sizes.sum())
    share = np.array(
        [sum(s) / np.prod(s) if kernel else sum(s[:2]) / np.prod(s[:2]) for s in SHAPES.values()]
    )
    low, high = 0.0, 1e9
    for _ in range(200):
        c = (low + high) / 2
        low, high = (low, c) if (np.minimum(1, c * share) * sizes).sum() > wanted else (c, high)
    return np.minimum(1, high * share) * sizes, wanted


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0])
def test_erdos_renyi(q, kernel):
    exact, wanted = densities(q, kernel)
    removed = counts(ErdosRenyi(q, kernel))
    kept = np.array([SIZES[path] - removed[path] for path in SHAPES])
    assert kept.sum() == wanted
    assert (kept >= np.floor(exact - 1e-6)).all() and (kept <= np.ceil(exact + 1e-6)).all()
    rest = exact - np.floor(exact + 1e-6)
    up = kept > np.floor(exact + 1e-6)
    if up.any() and not up.all():  # the largest remainders are rounded up
        assert rest[up].min() >= rest[~up].max() - 1e-6


def test_erdos_renyi_leaves_small_layers_whole():
    removed = counts(ErdosRenyi(0.7))
    assert removed["thin"] == removed["fc2"] == removed["conv1"] == 0
    assert removed["fc1"] > 0.7 * SIZES["fc1"]
    assert counts(ErdosRenyi(0.7, kernel=False)) != removed


def test_erdos_renyi_by_hand():
    """Densities c/5 (10 and 10) and c/10 (20 and 20), 500 weights, 100 kept: c = 5/3."""
    shapes = {"a": (10, 10), "b": (20, 20)}
    plan = groups(ErdosRenyi(0.8), shapes, {"a": 100, "b": 400})
    # Kept: 33.3 and 66.7, the larger remainder rounded up.
    assert [group.removed for group in plan] == [67, 333]


def test_channels_of_flax_kernels():
    shapes = {"a": (3, 3, 8, 16), "b": (64, 64)}
    other = {"a": (16, 8, 3, 3), "b": (64, 64)}
    units = {"a": 1152, "b": 4096}
    flax = groups(ErdosRenyi(0.5, kernel=False, axes=(-2, -1)), shapes, units)
    assert flax == groups(ErdosRenyi(0.5, kernel=False), other, units)


def test_amounts_of_every_layer():
    assert counts(0.5) == counts(Fraction(0.5)) == {p: round(s / 2) for p, s in SIZES.items()}
    assert set(counts(Count(7)).values()) == {7}
    assert counts(Sublinear(0.5))["fc2"] == 31
    (group,) = groups(Global(0.25), SHAPES, SIZES)
    total = sum(SIZES.values())
    assert group == (tuple(SHAPES), round(total / 4), total)


def test_dictionaries():
    removed = counts({"conv*": 0.1, "fc1": Count(5), "fc2": Sublinear(0.5), "thin": 0})
    assert removed == {"conv1": 22, "conv2": 115, "fc1": 5, "fc2": 31, "thin": 0}


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ({"conv*": 0.1, "fc*": 0.5}, "layer 'thin' has no amount"),
        ({"*": 0.1, "fc1": 0.5}, r"layer 'fc1' has amounts of '\*', 'fc1'"),
        ({"*": 0.1, "fc3": 0.5}, "did you mean 'fc2'"),
        ({"*": "half"}, "a sparsity or an amount"),
        ({"*": Global(0.5)}, "a sparsity or an amount"),
        (None, "amount = None"),
        ("0.5", "amount = '0.5'"),
        (1.5, "amount = 1.5"),
        (float("nan"), "amount = nan"),
        (Count(50), "count = 50"),
    ],
)
def test_bad_amounts(amount, said):
    with pytest.raises(ValueError, match=said):
        counts(amount)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, jnp.float32])
def test_a_narrow_number_counts_exactly(kind):
    """A quarter is exact in every type; products of it with sizes are not."""
    size = 100_000_003
    assert Fraction(kind(0.25)).count(size) == 25_000_001
    assert Fraction(kind(1)).count(2**24 + 1) == 2**24 + 1
    for amount in (Global(kind(0.25)), ErdosRenyi(kind(0.25)), kind(0.25)):
        (group,) = groups(amount, {"w": (size, 1)}, {"w": size})
        assert group.removed == 25_000_001
    assert Sublinear(kind(0.5)).count(10_001**2) == 10_001
    assert Count(np.int8(100)).count(1000) == 100 and type(Count(np.int8(3)).k) is int
    assert type(Sublinear(kind(0.5)).alpha) is type(Global(kind(0.5)).q) is float


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((0, 5), r"axes = \(0, 5\): are not two axes of an array of shape \(8, 3, 3, 3\)"),
        ((0, -4), "are not two axes"),
        ((0, 0), "are not two axes"),
        ((0,), "two axes are needed"),
        ((0, 1, 2), "two axes are needed"),
        (3, "axes = 3"),
        ((0, "a"), "axis = 'a'"),
        ((0, 0.5), "axis = 0.5"),
    ],
)
def test_bad_axes(axes, said):
    with pytest.raises(ValueError, match=said) as error:
        counts(ErdosRenyi(0.5, kernel=False, axes=axes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [Global, ErdosRenyi])
def test_bad_sparsities(make):
    for q in (-0.1, 1.1, float("nan"), "all"):
        with pytest.raises(ValueError, match="sparsity"):
            make(q)


def test_amounts_from_a_theorem():
    """`bounds.largest_amounts` gives a dictionary by layer, which `prune` takes as it is."""
    from jaxprune.bounds.layer_amounts import largest_amounts

    network = jp.dense((64, 64, 64, 64))
    found = largest_amounts(network, jp.uniform(gain=1.0), jp.magnitude, eps=0.5)
    rng = np.random.default_rng(0)
    shapes = zip(network.names, network.weight_shapes, strict=True)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes}
    masks = prune(params, amount=found.amounts, layers=list(found.amounts))
    removed = {name: masks[name].size - int(np.asarray(masks[name]).sum()) for name in masks}
    assert removed == {name: count.k for name, count in found.amounts.items()}

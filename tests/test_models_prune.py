"""One conformance suite for every method, structure and amount, against loops over weights."""

import fractions
import itertools
import math
import os
import subprocess
import sys
from dataclasses import astuple
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import Compilations
from small_models import apply_to_column

import jaxprune as jp
from jaxprune.models import (
    NM,
    Block,
    Count,
    ErdosRenyi,
    Fraction,
    Global,
    Masks,
    Neurons,
    Weights,
    arrays,
    grasp,
    magnitude,
    prune,
    random,
    snip,
    synflow,
)

KEY = jax.random.key(5, impl="threefry2x32")


def model(dtype=np.float32, seed=0):
    """Outputs first; whole numbers over 8, so that there are ties and sums are exact."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (rng.integers(-40, 41, shape) / 8).astype(dtype)
    return {
        "layers": [
            {"w": draw(6, 4), "b": draw(6)},
            {"w": draw(5, 6), "b": draw(5)},
            {"w": draw(3, 5), "b": draw(3)},
        ],
        "steps": np.array(3, np.int32),
    }


LAYERS = [f"layers.{i}.w" for i in range(3)]


def loss(params):
    ones = jnp.ones(4, params["layers"][0]["w"].dtype)
    return jnp.sum(apply_to_column(params, ones) ** 2) / 1024


METHODS = {
    "magnitude": magnitude,
    "random": jax.jit(partial(random, KEY)),
    "snip": jax.jit(partial(snip, loss)),
    "grasp": jax.jit(partial(grasp, loss)),
    "synflow": jax.jit(lambda params: synflow(apply_to_column, params, (4,))),
}


@cache
def scores_of(method):
    """Of `model()`, in NumPy."""
    return {path: np.asarray(s) for path, s in METHODS[method](model()).items()}


def scoring(method):
    """What `prune` takes for a method."""
    return "random" if method == "random" else METHODS[method]


def on_host(masks):
    return {path: np.asarray(mask) for path, mask in masks.items()}


STRUCTURES = {
    "weights": Weights(),
    "neurons": Neurons(0, by="sum"),
    "inputs": Neurons(-1, by="sum"),
    "blocks": Block((2, 3), by="sum"),
}
AMOUNTS = {
    "fraction": Fraction(0.4),
    "count": Count(2),
    "global": Global(0.45),
    "erdos-renyi": ErdosRenyi(0.5),
    "each": {"*.0.w": 0.2, "*.[12].w": Fraction(0.6)},
    "nothing": 0.0,
    "everything": 1.0,
    "all of all": Global(1.0),
}
NMS = {"2:4": NM(2, 4, -1), "1:3": NM(1, 3, 0), "0:2": NM(0, 2, 0), "4:4": NM(4, 4, 1)}


def unit_of(structure, shape):
    """Which unit each weight belongs to, by definition."""
    units = np.zeros(shape, int)
    for place in np.ndindex(*shape):
        if isinstance(structure, Neurons):
            units[place] = place[structure.axis]
        elif isinstance(structure, Block):
            rows, columns = structure.shape
            units[place] = place[0] // rows * -(-shape[1] // columns) + place[1] // columns
        else:
            units[place] = np.ravel_multi_index(place, shape)
    return units


def erdos_renyi(q, units, shapes):
    """Densities c (sum of sides) / (product of sides), but of 1 for some, found among all subsets.

    The largest remainders are rounded up, of equal ones the first.
    """
    share = {p: fractions.Fraction(sum(s), math.prod(s)) for p, s in shapes.items()}
    wanted = sum(units.values()) - round(q * sum(units.values()))
    for bits in itertools.product([False, True], repeat=len(units)):
        whole = dict(zip(units, bits, strict=True))
        rest = {p: share[p] * n for p, n in units.items() if not whole[p]}
        left = wanted - sum(n for p, n in units.items() if whole[p])
        if not rest or left < 0:
            continue
        c = left / sum(rest.values())
        if all((c * share[p] > 1) == whole[p] for p in units):
            exact = {p: units[p] if whole[p] else c * share[p] * units[p] for p in units}
            break
    kept = {p: math.floor(x) for p, x in exact.items()}
    order = sorted(exact, key=lambda p: kept[p] - exact[p])
    up = order[: wanted - sum(kept.values())]
    return {p: n - kept[p] - (p in up) for p, n in units.items()}


def removed_units(amount, units, shapes):
    """Groups of layers with a common threshold, and how many units of them go."""
    if isinstance(amount, Global):
        return [(list(units), round(amount.q * sum(units.values())))]
    if isinstance(amount, ErdosRenyi):
        return [([p], k) for p, k in erdos_renyi(amount.q, units, shapes).items()]
    if isinstance(amount, dict):
        of = {path: amount["*.0.w" if ".0." in path else "*.[12].w"] for path in units}
    else:
        of = dict.fromkeys(units, amount)
    count = lambda amount, n: round(amount * n) if isinstance(amount, float) else amount.count(n)
    return [([path], count(of[path], n)) for path, n in units.items()]


def by_definition(scores, structure, amount):
    """Masks by a loop over units and a stable sort."""
    shapes = {path: scores[path].shape for path in LAYERS}
    belongs = {path: unit_of(structure, shape) for path, shape in shapes.items()}
    total = {}
    for path in LAYERS:
        s, of = np.asarray(scores[path], np.float64), belongs[path]
        total[path] = [s[of == unit].sum() for unit in range(of.max() + 1)]
    masks = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    units = {path: len(t) for path, t in total.items()}
    for paths, k in removed_units(amount, units, shapes):
        names = [(path, unit) for path in paths for unit in range(units[path])]
        order = np.argsort([total[path][unit] for path, unit in names], kind="stable")
        for i in order[:k]:
            path, unit = names[i]
            masks[path][belongs[path] == unit] = False
    return masks


def same(masks, expected):
    assert sorted(masks) == sorted(expected)
    for path, mask in masks.items():
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected[path], path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_amount_is_exact_and_its_ties_are_defined(method, structure):
    params, scores = model(), scores_of(method)
    if method == "random" and structure != "weights":
        scores = {path: np.floor(s * 64) for path, s in scores.items()}
    for amount in AMOUNTS.values():
        masks = prune(params, scores, amount, structure=STRUCTURES[structure])
        same(masks, by_definition(scores, STRUCTURES[structure], amount))
        assert masks == prune(params, scores, amount, structure=STRUCTURES[structure])


def conforms(method, structures, tmp_path):
    """The same under jit and vmap, untouched leaves the same objects, and kept in a file."""

    def every(params):
        return {
            name: prune(
                params,
                scoring(method),
                None if name in NMS else Global(0.45),
                structure=(STRUCTURES | NMS)[name],
                key=KEY,
            )
            for name in structures
        }

    models = [model(seed=seed) for seed in range(2)]
    masks = [every(params) for params in models]
    assert masks == [jax.jit(every)(params) for params in models]
    stacked = jax.tree.map(lambda *x: np.stack(x), *models)
    many = jax.tree.map(np.asarray, jax.jit(jax.vmap(every))(stacked))
    assert masks == [jax.tree.map(lambda m, i=i: m[i], many) for i in range(2)]

    for structure in structures:
        one = masks[0][structure]
        one.save(tmp_path / "masks")
        assert Masks.load(tmp_path / "masks", models[0]) == one
        before, after = arrays(models[0]), arrays(one.apply(models[0]))
        for path, x in before.items():
            assert after[path].dtype == x.dtype
            assert path in one or after[path] is x


@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("magnitude", "blocks"),
        ("random", "weights"),
        ("synflow", "2:4"),
    ],
)
def test_conformance(method, structure, tmp_path):
    conforms(method, [structure], tmp_path)


@pytest.mark.ci
@pytest.mark.parametrize("method", METHODS)
def test_conformance_of_every_structure(method, tmp_path):
    conforms(method, [*STRUCTURES, *NMS], tmp_path)


def keeps_types(method, params, dtype):
    for structure in (*STRUCTURES.values(), NM(2, 4, -1)):
        amount = None if isinstance(structure, NM) else 0.5
        masks = prune(params, scoring(method), amount, structure=structure, key=KEY)
        assert all(x.dtype == dtype for x in arrays(masks.apply(params)).values() if x.ndim)
        if amount is not None:
            units = {path: math.prod(structure.units(masks[path].shape)) for path in masks}
            for path, mask in on_host(masks).items():
                kept = len(set(unit_of(structure, mask.shape)[mask]))
                assert kept == units[path] - round(units[path] / 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types_are_kept(dtype):
    keeps_types("magnitude", model(dtype), dtype)


@pytest.mark.ci
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_types_of_jax_arrays_are_kept(method, dtype):
    keeps_types(method, jax.device_put(model(dtype)), dtype)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((5, 7), id="5x7"),
        pytest.param((4, 6), id="4x6", marks=pytest.mark.ci),
        pytest.param((3, 2, 5), id="3x2x5", marks=pytest.mark.ci),
    ],
)
def test_nm_by_definition(shape):
    scores = np.random.default_rng(1).integers(-2, 3, shape).astype(np.float32)
    sizes = [(2, 4), (1, 3), (0, 2), (3, 3), (1, 16)]
    structures = [NM(n, m, axis) for n, m in sizes for axis in (0, -1)]
    every = jax.jit(lambda w: [prune({"w": w}, {"w": w}, structure=nm)["w"] for nm in structures])
    for (n, m, axis), mask in zip(map(astuple, structures), every(scores), strict=True):
        got = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, shape[axis])
        lines = np.moveaxis(scores, axis, -1).reshape(-1, shape[axis])
        for line, row in zip(got, lines, strict=True):
            for start in range(0, len(row), m):
                group, kept = row[start : start + m], line[start : start + m]
                assert kept.sum() == min(n, len(group))
                removed = np.argsort(group, kind="stable")[: len(group) - kept.sum()]
                assert not kept[removed].any()


def test_norms_are_those_of_slices_and_tiles():
    rng = np.random.default_rng(3)
    w = (rng.normal(size=(5, 4, 3)) * 10.0 ** rng.integers(-30, 30, (5, 1, 1))).astype(np.float32)
    norms = np.linalg.norm(w.reshape(5, -1).astype(np.float64), axis=1)
    masks = prune({"w": w}, amount=Count(2), structure=Neurons(0))
    kept = np.asarray(masks["w"])[:, 0, 0]
    assert set(np.flatnonzero(~kept)) == set(np.argsort(norms)[:2])
    w = rng.normal(size=(2, 5, 4)).astype(np.float32)
    tiles = {
        (i, j, k): np.linalg.norm(w[i, 2 * j : 2 * j + 2, 3 * k : 3 * k + 3])
        for i, j, k in itertools.product(range(2), range(3), range(2))
    }
    mask = np.asarray(prune({"w": w}, amount=Count(4), structure=Block((2, 3)))["w"])
    gone = {(i, j // 2, k // 3) for i, j, k in zip(*np.nonzero(~mask), strict=True)}
    assert gone == set(sorted(tiles, key=tiles.get)[:4])


@pytest.mark.parametrize(
    ("dtype", "structure"),
    [
        (np.float32, Block((1, 3))),
        (np.float64, Neurons(0)),
        pytest.param(np.float32, Neurons(0), marks=pytest.mark.ci),
        pytest.param(np.float64, Block((1, 3)), marks=pytest.mark.ci),
    ],
)
def test_norms_of_any_size_are_told_apart(dtype, structure):
    """Down to the least subnormal, and up to norms above the largest float; exact in fractions."""
    kind, rng = np.finfo(dtype), np.random.default_rng(0)
    least, most = kind.minexp - kind.nmant, kind.maxexp
    powers = rng.integers(least + 1, most + 1, (60, 1)) - rng.integers(0, 3, (60, 3))
    w = np.ldexp(rng.uniform(0.5, 1, (60, 3)), powers).astype(dtype)
    w[:2], w[2:4], w[4] = kind.smallest_subnormal, kind.max, 0.0
    w[1, 0], w[3, 2] = 2 * w[0, 0], w[3, 2] * dtype(0.9)
    squares = [sum(fractions.Fraction(float(x)) ** 2 for x in row) for row in w]
    order = sorted(range(60), key=squares.__getitem__)
    for k in (1, 2, 3, 20, 40, 57, 58, 59):
        mask = np.asarray(prune({"w": w}, amount=Count(k), structure=structure)["w"])
        assert set(np.flatnonzero(~mask[:, 0])) == set(order[:k])


def test_small_rows_beside_a_large_one():
    w = np.array([[2e-24, 2e-24], [1e-24, 1e-24], [1.0, 1.0]], np.float32)
    mask = np.asarray(prune({"w": w}, amount=Count(1), structure=Neurons(0))["w"])
    assert mask[:, 0].tolist() == [True, False, True]


def test_nm_tells_subnormal_numbers_apart():
    tiny = np.finfo(np.float32).smallest_subnormal
    scores = np.array([[2, 1, -1, -2], [0, -0.0, 1, 3]], np.float32) * tiny
    assert scores[0, 0] > 0
    mask = prune({"w": scores}, {"w": scores}, structure=NM(2, 4, 1))["w"]
    assert mask.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_global_magnitude_is_a_stable_sort_over_all_layers():
    params = model(seed=7)
    masks = prune(params, amount=Global(0.37))
    flat = np.concatenate([np.abs(layer["w"]).ravel() for layer in params["layers"]])
    expected = np.ones(flat.size, bool)
    expected[np.argsort(flat, kind="stable")[: round(0.37 * flat.size)]] = False
    got = np.concatenate([np.asarray(masks[path]).ravel() for path in LAYERS])
    np.testing.assert_array_equal(got, expected)


def test_float64_weights_of_numpy_keep_their_order():
    w = 1.0 + np.arange(30).reshape(5, 6)[::-1] * 2.0**-50
    mask = np.asarray(prune({"w": w}, amount=Count(6))["w"])
    assert not mask[-1].any() and mask[:-1].all()


def test_biases_go_with_their_neurons_if_asked():
    params = model()
    alone = on_host(prune(params, amount=0.5, structure=Neurons(0)))
    assert sorted(alone) == LAYERS
    both = on_host(prune(params, amount=0.5, structure=Neurons(0, bias="b")))
    for i, path in enumerate(LAYERS):
        np.testing.assert_array_equal(alone[path], both[path])
        np.testing.assert_array_equal(both[f"layers.{i}.b"], both[path][:, 0])


def test_a_bias_stays_while_a_weight_has_its_neuron():
    """Two weights feed one bias, as in a GRU: a neuron is gone if it is from both."""
    params = {
        "ih": np.array([[1.0], [2.0], [3.0], [4.0]], np.float32),
        "hh": np.array([[2.0], [1.0], [4.0], [3.0]], np.float32),
        "b": np.ones(4, np.float32),
        "other": np.ones((3, 3), np.float32),
    }
    how = {"structure": Neurons(0, bias="b"), "layers": ["ih", "hh"]}
    assert prune(params, amount=Count(1), **how)["b"].tolist() == [True, True, True, True]
    assert prune(params, amount=Count(2), **how)["b"].tolist() == [False, False, True, True]
    ih = {"ih": Count(1), "hh": Count(3)}
    assert prune(params, amount=ih, **how)["b"].tolist() == [False, True, True, True]
    # A weight that is not chosen still has all of its neurons.
    one = prune(params, amount=Count(2), structure=how["structure"], layers="ih")
    assert np.asarray(one["b"]).all() and not np.asarray(one["ih"])[:2].any()
    both = prune(params, amount=Count(2), structure=how["structure"], layers="hh", masks=one)
    assert both["b"].tolist() == [False, False, True, True]


def test_biases_of_neurons_gone_before_go_as_well():
    """Whether or not the new pruning counts them among its own."""
    params = {"w": np.array([[1], [2], [3], [4]], np.float32), "b": np.ones(4, np.float32)}
    first = Masks({"w": np.array([[True], [False], [True], [False]])})
    for k, gone in ((0, [1, 3]), (1, [1, 3]), (2, [1, 3]), (3, [0, 1, 3])):
        masks = prune(params, amount=Count(k), structure=Neurons(0, bias="b"), masks=first)
        masks = on_host(masks)
        assert np.flatnonzero(~masks["b"]).tolist() == gone
        assert np.flatnonzero(~masks["w"][:, 0]).tolist() == gone
    # What is left of a neuron by two masks together is nothing.
    params = {"w": np.array([[1, 1], [2, 2]], np.float32), "b": np.ones(2, np.float32)}
    first = Masks({"w": np.array([[False, True], [True, True]])})
    masks = prune(params, amount=Count(1), structure=Neurons(0, bias="b"), masks=first)
    assert masks["b"].tolist() == [False, True]


@pytest.mark.parametrize("out", [5, pytest.param(1, marks=pytest.mark.ci)])
def test_biases_of_convolutions_as_equinox_has_them(out):
    """They have axes of length 1 behind the first, or nothing but such axes."""
    rng = np.random.default_rng(0)
    params = {
        "weight": rng.normal(size=(out, 2, 3, 3)).astype(np.float32),
        "bias": np.ones((out, 1, 1), np.float32),
    }
    gone = Count(2) if out == 5 else 1.0
    masks = on_host(prune(params, amount=gone, structure=Neurons(0, bias="bias")))
    assert masks["bias"].shape == (out, 1, 1)
    np.testing.assert_array_equal(masks["bias"][:, 0, 0], masks["weight"].any((1, 2, 3)))
    assert int(masks["bias"].sum()) == (3 if out == 5 else 0)


def test_neurons_in_front_of_a_norm_are_warned_of():
    """Behind ReLU they put out 2 while the norm's mean is -2, and 0 once its masks are set, too."""
    rng = np.random.default_rng(0)
    params = {
        "linear": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)},
        "bn": {"scale": np.ones(4), "bias": np.zeros(4), "mean": np.full(4, -2.0)},
        "head": {"kernel": rng.normal(size=(4, 3))},
    }

    def behind(p, x):
        z = x @ p["linear"]["kernel"] + p["linear"]["bias"]
        return np.maximum((z - p["bn"]["mean"]) * p["bn"]["scale"] + p["bn"]["bias"], 0)

    cut = partial(
        prune, params, amount=0.5, layers="linear.kernel", structure=Neurons(-1, bias="bias")
    )
    with pytest.warns(UserWarning, match="if bn is behind linear.kernel, mask its scale and bias"):
        masks = cut()
    gone = ~masks["linear.bias"]
    x = rng.normal(size=(5, 6))
    assert (behind(masks.apply(params), x)[:, gone] == 2.0).all()
    more = masks & Masks({"bn.scale": ~gone, "bn.bias": ~gone})
    assert (behind(more.apply(params), x)[:, gone] == 0.0).all()

    # Nothing is said where nothing goes, or has a mask, or no norm has that number.
    cut(amount=0.0)
    cut(masks=more)
    prune(params, amount=0.5, layers="head.kernel", structure=Neurons(-1))


def test_methods_of_the_package_stand_for_their_names():
    params = model()
    assert prune(params, jp.magnitude, 0.5) == prune(params, "magnitude", 0.5)
    assert prune(params, jp.random, 0.5, key=KEY) == prune(params, "random", 0.5, key=KEY)


def test_earlier_masks_stay_and_count():
    params = model()
    first = prune(params, "random", 0.3, key=KEY)
    before = on_host(first)
    second = on_host(prune(params, amount=0.6, masks=first))
    for path in LAYERS:
        size = first[path].size
        assert not (second[path] & ~before[path]).any()
        assert int((~second[path]).sum()) == round(0.6 * size)
    assert prune(params, amount=0.1, masks=first) == first
    one = prune(params, amount=0.5, layers=LAYERS[0], masks=first)
    assert sorted(one) == LAYERS and one[LAYERS[1]] is first[LAYERS[1]]
    nm = on_host(prune(params, structure=NM(2, 4, -1), masks=first))
    assert all(not (nm[path] & ~before[path]).any() for path in LAYERS)
    assert int(nm[LAYERS[0]].sum(1).max()) <= 2


@pytest.mark.parametrize("method", METHODS)
def test_earlier_masks_count_whatever_the_scores(method):
    """Coins and scores below 0 as well: what is gone is lower than all of them."""
    params = model()
    first = prune(params, amount=0.3)
    before = on_host(first)
    second = on_host(prune(params, scoring(method), 0.6, key=KEY, masks=first))
    for path in LAYERS:
        assert not (second[path] & ~before[path]).any()
        assert int((~second[path]).sum()) == round(0.6 * first[path].size)


def test_earlier_masks_of_units():
    params, kept = model(), np.ones((6, 4), bool)
    kept[2], kept[3, :2] = False, False
    first = Masks({LAYERS[0]: kept})
    second = prune(params, amount=Count(2), structure=Neurons(0), layers=LAYERS[0], masks=first)
    kept = np.asarray(second[LAYERS[0]])
    assert not kept[2].any() and (~kept.any(1)).sum() == 2
    # Of the others the one of least norm, neuron 3 by its rest.
    w = np.asarray(first.apply(params)["layers"][0]["w"], np.float64)
    others = [i for i in range(6) if i != 2]
    gone = min(others, key=lambda i: np.linalg.norm(w[i]))
    assert not kept[gone].any()


def test_scores_of_pruned_weights_do_not_matter():
    scores = {"w": np.array([[np.nan, 1.0], [3.0, 2.0]], np.float32)}
    masks = Masks({"w": np.array([[False, True], [True, True]])})
    mask = prune({"w": np.ones((2, 2), np.float32)}, scores, 0.5, masks=masks)["w"]
    assert mask.tolist() == [[False, False], [True, True]]


def test_nan_goes_last_where_it_cannot_be_refused():
    w = np.array([[np.nan, 1.0, 3.0], [2.0, -np.nan, np.inf]], np.float32)
    mask = jax.jit(lambda w: prune({"w": w}, amount=0.5))(w)["w"]
    assert mask.tolist() == [[True, False, False], [False, True, True]]
    mask = jax.jit(lambda w: prune({"w": w}, structure=NM(1, 3, 1)))(w)["w"]
    assert mask.tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.asarray, jax.device_put])
def test_weights_that_are_not_finite_are_refused(value, place):
    params = {
        "good": place(np.ones((2, 2), np.float32)),
        "bad": place(np.array([[1.0, value]], np.float32)),
    }
    for structure in (Weights(), Neurons(0), NM(1, 2, -1)):
        amount = None if isinstance(structure, NM) else 0.5
        with pytest.raises(ValueError, match="scores of bad: not all are finite"):
            prune(params, amount=amount, structure=structure)


def test_what_is_not_finite_may_be_left_out_or_pruned_at_random():
    params = {
        "good": np.ones((1, 2), np.float32),
        "bad": np.array([[1.0, np.nan]], np.float32),
    }
    assert list(prune(params, amount=0.5, layers="good")) == ["good"]
    assert sorted(prune(params, "random", 0.5, key=KEY)) == ["bad", "good"]


W = np.ones((2, 3), np.float32)
KEYS = jax.random.wrap_key_data(np.zeros((2, 2), np.uint32), impl="threefry2x32")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: prune({"w": W}), "amount = None"),
        (lambda: prune({"w": W}, amount=0.5, structure=NM(2, 4, 0)), "N:M says itself"),
        (lambda: prune({"w": W}, "magnitud", 0.5), "did you mean 'magnitude'"),
        (lambda: prune({"w": W}, "random", 0.5), "needs a key"),
        (lambda: prune({"w": W}, "random", 0.5, key=3), "key = 3: one key of jax.random"),
        (lambda: prune({"w": W}, "random", 0.5, key="a"), "key = 'a': one key of jax.random"),
        (lambda: prune({"w": W}, "random", 0.5, key=W), r"key: float32 of shape \(2, 3\)"),
        (lambda: random(KEYS, {"w": W}), r"key: threefry2x32 of shape \(2,\)"),
        (
            lambda: prune({"w": W}, "snip", 0.5),
            r"'snip': a function .* models\.snip\(loss, p, x, y\)",
        ),
        (lambda: prune({"w": W}, "synflow", 0.5), r"models\.synflow\(apply, p, in_shape\)"),
        (lambda: prune({"w": W}, "magnitude", 1.5), "amount = 1.5: a finite number in"),
        (lambda: prune({"w": W}, "random", -1), "amount = -1"),
        (lambda: Masks() & 3, "other masks = 3: the Masks that prune gives"),
        (lambda: prune({"w": W}, jp.bernoulli, 0.5), "method = 'bernoulli': one of magnitude"),
        (lambda: prune({"w": W}, 3, 0.5), "method = 3"),
        (lambda: prune({"w": W}, {"v": W}, 0.5), "scores = 'w'"),
        (lambda: prune({"w": W}, {"w": W.T}, 0.5), r"floats of shape \(2, 3\)"),
        (lambda: prune({"w": W}, {"w": W > 0}, 0.5), r"floats of shape \(2, 3\)"),
        (lambda: prune({"w": W}, {"w": -W}, 0.5, structure=Neurons(0)), "by='sum'"),
        (lambda: prune({"w": W}, amount=0.5, structure=Neurons(2)), "axis = 2"),
        (lambda: prune({"w": W}, amount=0.5, structure=Neurons), "Weights, Neurons, Block or NM"),
        (lambda: prune({"w": W}, amount=0.5, structure=Block((1, 1, 1))), "fewer axes"),
        (lambda: prune({"w": W}, amount=0.5, structure=Neurons(0, bias="b")), "no chosen layer"),
        (lambda: prune({"w": W, "b": W[0]}, amount=0.5, structure=Neurons(0, bias="b")), "b has"),
        (lambda: prune({"w": W, "b": W}, amount=0.5, structure=Neurons(0, bias="b")), "b has"),
        (lambda: prune({"w": W}, amount=0.5, masks=Masks({"v": W > 0})), "mask = 'v'"),
        (lambda: prune({"w": W}, amount=0.5, masks=Masks({"w": W.T > 0})), "does not fit"),
        (lambda: prune({"b": W[0]}, amount=0.5), "no floating array is chosen"),
        (lambda: NM(3, 2, 0), "n = 3"),
        (lambda: NM(1, 0, 0), "m = 0"),
        (lambda: Block(()), "at least one side"),
        (lambda: Block((0,)), "side of a block = 0"),
        (lambda: Block(3), "a tuple of sides"),
        (lambda: Neurons(0, by="l1"), "by = 'l1'"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_layers_of_many_shapes_share_programs(pytestconfig):
    """Under a common length only the first is compiled, for magnitudes and for coins."""
    (plugin,) = (p for p in pytestconfig.pluginmanager.get_plugins() if isinstance(p, Compilations))
    rng = np.random.default_rng(0)
    params = {f"w{i}": rng.normal(size=(i + 2, 3 * i + 1)).astype(np.float32) for i in range(20)}
    key = jax.random.key(0)
    methods = ("magnitude", "random")
    for method in methods:
        prune({"w": params["w9"]}, method, 0.5, key=key)
    before = plugin.total
    masks = {method: prune(params, method, 0.5, key=key) for method in methods}
    assert plugin.total == before
    for name, w in params.items():
        kept = np.ones(w.size, bool)
        kept[np.argsort(abs(w), axis=None)[: round(0.5 * w.size)]] = False
        np.testing.assert_array_equal(np.ravel(masks["magnitude"][name]), kept)
        assert np.count_nonzero(masks["random"][name]) == w.size - round(0.5 * w.size)


def test_amounts_may_be_traced():
    """Those of the same number outside; beyond [0, 1] the nearest there, and 0 for NaN."""
    params = {"a": np.arange(21.0, dtype=np.float32).reshape(3, 7), "b": np.ones((5, 5))}
    amounts = (Global, lambda q: {"a": q, "b": 0.2})
    compiled = jax.jit(lambda q: [prune(params, "magnitude", of(q)) for of in amounts])
    for q, same in ((0.5, 0.5), (0.3, 0.3), (1.7, 1.0), (-1.0, 0.0), (np.nan, 0.0)):
        for found, of in zip(compiled(np.float32(q)), amounts, strict=True):
            assert found == prune(params, "magnitude", of(float(np.float32(same))))
    with pytest.raises(ValueError, match=r"sparsity = .*: a finite number in"):
        jax.jit(lambda q: prune(params, "magnitude", ErdosRenyi(q)))(0.5)
    with pytest.raises(ValueError, match=r"amount = .*: one sparsity is needed, a float"):
        jax.jit(lambda q: prune(params, "magnitude", q))(1)


def test_what_is_known_is_pruned_while_other_things_are_traced():
    params, key = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4)}, jax.random.key(0)
    masks = prune(params, "random", 0.5, key=key)
    inside = jax.jit(lambda x: prune(params, "random", 0.5, key=key).apply({"w": x}))
    np.testing.assert_array_equal(inside(params["w"])["w"], masks.apply(params)["w"])


def test_keys_are_those_of_threefry():
    params = {"w": np.zeros((4, 5), np.float32)}
    masks = prune(params, "random", 0.5, key=jax.random.key(3))
    assert prune(params, "random", 0.5, key=np.array([0, 3], np.uint32)) == masks
    with jax.default_prng_impl("rbg"):
        assert prune(params, "random", 0.5, key=np.array([0, 3], np.uint32)) == masks
    for impl, said in (("rbg", "key: rbg of shape"), ("unsafe_rbg", "key: unsafe_rbg of shape")):
        with pytest.raises(ValueError, match=said):
            prune(params, "random", 0.5, key=jax.random.key(3, impl=impl))
    with pytest.raises(ValueError, match=r"key: uint32 of shape \(4,\); one key of jax.random.key"):
        prune(params, "random", 0.5, key=jax.random.key_data(jax.random.key(3, impl="rbg")))


def test_settings_under_which_a_program_would_stop_are_refused_at_once():
    with jax.transfer_guard("disallow"):
        with pytest.raises(ValueError, match=r"^jax_transfer_guard = 'disallow': .*$"):
            prune({"w": np.ones((2, 2), np.float32)}, amount=0.5)


SPREAD = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxprune.models import NM, Global, Neurons, prune

rng = np.random.default_rng(0)
host = {"a": rng.normal(size=(8, 6)).astype(np.float32), "b": rng.normal(size=(4, 8))}
host["b"] = host["b"].astype(np.float32)
first, second = jax.devices()[:2]
apart = {"a": jax.device_put(host["a"], first), "b": jax.device_put(host["b"], second)}
mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
sharded = {
    name: jax.device_put(w, NamedSharding(mesh, PartitionSpec("x", None)))
    for name, w in host.items()
}
cases = [(0.5, None), (Global(0.5), None), (None, NM(2, 4, 0)), (0.5, Neurons(0))]
for params in (apart, sharded):
    for amount, structure in cases:
        for method in ("magnitude", "random"):
            find = lambda p: prune(p, method, amount, structure=structure, key=jax.random.key(0))
            masks = find(params)
            assert masks == find(host)
            pruned = masks.apply(params)
            for name, w in masks.apply(host).items():
                assert pruned[name].sharding == params[name].sharding
                np.testing.assert_array_equal(pruned[name], w)
            assert not masks.violations(pruned)
"""


@pytest.mark.ci
def test_layers_on_several_devices():
    """One on each, and each on all."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SPREAD], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr

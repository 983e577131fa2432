"""Distances on data against NumPy in float64; what they say of further data by definition."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small_models import (
    applied,
    apply,
    dense_stack,
    outputs64,
    randomly_removed,
    smallest_removed,
)

from jaxprune import models
from jaxprune.models import Masks, Moves, moves, simulate_masks
from jaxprune.statistics import Claim, Counts, judge

ci = pytest.mark.ci


def mlp(widths=(6, 16, 4)):
    return dense_stack(widths)


def data(n=256, d=6):
    """One batch, unless n is larger."""
    return np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)


def test_distances_classes_and_labels_are_numpy_s():
    params, x = mlp(), data(700)
    masks = smallest_removed(params, 0.5)
    y, after = outputs64(params, x), outputs64(applied(params, masks), x)
    labels = np.random.default_rng(2).integers(4, size=len(x))
    moved = moves((params, apply), masks, x, labels)
    expected = np.linalg.norm(y - after, axis=1)
    assert (moved.n, moved.width) == (700, 4)
    np.testing.assert_allclose(moved.distances, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved.sizes, np.linalg.norm(y, axis=1), rtol=1e-5)
    low, high = moved.ends
    assert (low <= expected).all() and (expected <= high).all()
    assert 0 < moved.error < 1e-6 and (high - low).max() < 1e-3
    assert moved.changed == (y.argmax(1) != after.argmax(1)).sum() > 0
    assert moved.correct == (y.argmax(1) == labels).sum()
    assert moved.pruned_correct == (after.argmax(1) == labels).sum()
    assert "change class" in str(moved) and f"{moved.correct} were correct" in str(moved)


@pytest.mark.parametrize("batch", [*(pytest.param(n, marks=ci) for n in (1, 7, 64)), 100, 10_000])
def test_batches_do_not_matter(batch):
    params, x = mlp(), data()
    masks = smallest_removed(params, 0.5)
    whole, parts = moves((params, apply), masks, x), moves((params, apply), masks, x, batch=batch)
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-4, atol=1e-6)


def test_nothing_pruned_moves_nothing():
    moved = moves((mlp(), apply), smallest_removed(mlp(), 0.0), data())
    assert moved.largest == 0.0 and moved.changed == 0
    assert moved.counts(1e-3) == Counts(256, 0, 0, 0)


def record(distances, sizes=None, error=0.0, **fields):
    distances = np.asarray(distances, np.float64)
    sizes = np.zeros_like(distances) if sizes is None else np.asarray(sizes, np.float64)
    return Moves(distances, sizes, 2, error, **fields)


def test_counts_by_definition():
    assert record([1.0, 2.0, 3.0]).counts(2.0) == Counts(2, 0, 1, 0)
    # The band is 20 errors of size and distance together: 2 -+ 0.02 (8 + 2).
    assert record([2.0], [8.0], error=1e-3).counts(2.21) == Counts(1, 0, 0, 0)
    assert record([2.0], [8.0], error=1e-3).counts(2.19) == Counts(0, 1, 0, 0)
    assert record([2.0], [8.0], error=1e-3).counts(1.81) == Counts(0, 1, 0, 0)
    assert record([2.0], [8.0], error=1e-3).counts(1.79) == Counts(0, 0, 1, 0)
    strange = record([0.0, np.nan, np.inf, 0.0], [1.0, 1.0, 1.0, np.inf])
    assert strange.counts(5.0) == Counts(1, 0, 0, 3)
    assert math.isnan(strange.largest)


def test_a_verdict_is_that_of_its_counts():
    moved = record(np.arange(1000) / 1000)
    assert moved.within(0.97, 0.05, 0.9) == judge([Claim(moved.counts(0.97), 0.05)], 0.9)[0]
    assert moved.within(0.995, 0.05).verdict == "holds"
    assert moved.within(0.9, 0.05).verdict == "violated"
    assert moved.within(0.95, 0.05).verdict == "undecided"
    # The limit is Clopper-Pearson's: with no failure 1 - alpha^(1/n).
    assert record(np.zeros(500)).within(1.0).p_low == pytest.approx(0.01 ** (1 / 500), rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_helps(value):
    moved = record([*np.zeros(998), value, value], changed=0)
    assert moved.counts(1.0) == Counts(998, 0, 0, 2)
    assert moved.within(1.0).p_low < record(np.zeros(1000)).within(1.0).p_low
    assert moved.changed_share()[1] > record(np.zeros(1000), changed=0).changed_share()[1]
    assert record([value] * 1000).within(1.0).verdict == "undecided"
    assert record([value] * 1000).quantile(0.05) == (0.0, np.inf)


@pytest.mark.parametrize(("n", "tail"), [(1000, 0.05), (300, 0.5), (2000, 0.01)])
def test_quantile_limits_are_order_statistics_that_cover(n, tail):
    """The share below the r-th of n is beta: the limits miss the quantile at most 1 % together."""
    moved = record(np.random.default_rng(3).permutation(np.arange(1, n + 1)))
    low, high = moved.quantile(tail)
    assert low == int(low) and high == int(high)
    miss = stats.beta.sf(1 - tail, low, n + 1 - low) + stats.beta.cdf(1 - tail, high, n + 1 - high)
    assert miss <= 0.01
    tighter = stats.beta.cdf(1 - tail, high - 1, n + 2 - high)
    assert tighter > 0.005  # a lower rank would not do


def test_few_inputs_say_little_of_quantiles():
    assert record(np.ones(20)).quantile(0.05) == (1.0, np.inf)
    assert record(np.ones(2)).quantile(0.5) == (0.0, np.inf)


def test_quantiles_use_the_ends():
    moved = record(np.full(1000, 2.0), np.full(1000, 8.0), error=1e-3)
    assert moved.quantile(0.05) == pytest.approx((1.8, 2.2))


def test_changed_share_is_clopper_pearson():
    low, high = record(np.zeros(400), changed=0).changed_share()
    assert low == 0.0 and high == pytest.approx(1 - 0.005 ** (1 / 400), rel=1e-9)
    low, high = record(np.zeros(400), changed=37).changed_share(0.95)
    assert low == pytest.approx(stats.beta.ppf(0.025, 37, 364), rel=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.975, 38, 363), rel=1e-9)
    with pytest.raises(ValueError, match="no classes"):
        record([1.0]).changed_share()


@pytest.mark.parametrize(
    "kind", [np.int64, pytest.param(np.uint64, marks=ci), pytest.param(np.int8, marks=ci)]
)
def test_whole_numbers_are_inputs(kind):
    """Tokens of an embedding, in the type that NumPy gives them."""
    table = {"w": np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)}
    masks = Masks({"w": np.arange(8).reshape(4, 2) != 5})
    x = np.array([0, 2, 3], kind)
    moved = moves((table, lambda p, x: jnp.asarray(p["w"])[x]), masks, x)
    assert moved.distances.tolist() == [0.0, 6.0, 0.0]


def test_half_precision_widens_the_band():
    x = data(200).astype(jnp.bfloat16)
    half = {name: p.astype(jnp.bfloat16) for name, p in mlp().items()}
    masks = smallest_removed(half, 0.5)
    moved = moves((half, apply), masks, x)
    assert 1e-4 < moved.error < 0.1
    kept, x = applied(half, masks), x.astype(np.float64)
    expected = np.linalg.norm(outputs64(half, x) - outputs64(kept, x), axis=1)
    low, high = moved.ends
    assert (low <= expected).all() and (expected <= high).all()


def test_a_model_of_its_own_type_decides_nothing_until_told():
    pinned = lambda params, x: apply(params, x).astype(jnp.float32)
    params = mlp()
    moved = moves((params, pinned), smallest_removed(params, 0.5), data())
    assert math.isnan(moved.error)
    assert moved.counts(100.0) == Counts(0, 256, 0, 0)
    assert moved.within(100.0).verdict == "undecided"
    assert moved.quantile(0.5) == (0.0, np.inf)
    assert replace(moved, error=0.0).within(100.0).verdict == "holds"


SHORT = [("layer", jnp.bfloat16), ("scan", jnp.float16), ("branch", jnp.float32)]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        pytest.param(how, kind, marks=() if (how, kind) in SHORT else ci)
        for how in ("layer", "scan", "branch")
        for kind in (jnp.bfloat16, jnp.float16, jnp.float32)
    ],
)
def test_a_hidden_layer_of_its_own_type_decides_nothing(kind, how):
    """The last layer, in the parameters' type, widens the output again."""

    def short(params, x):
        (first, b), (last, c) = (
            (params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]) for i in range(2)
        )
        narrow = lambda h: jax.nn.relu((h @ first.T + b[None]).astype(kind))
        if how == "scan":
            h = jax.lax.scan(lambda c, _: (c, narrow(x).astype(x.dtype)), 0, None, 1)[1][0]
        elif how == "branch":
            h = jax.lax.cond(x[0, 0] > 9, lambda x: 0 * narrow(x), narrow, x)
        else:
            h = narrow(x)
        return h.astype(x.dtype) @ last.T + c[None]

    params = mlp()
    masks = smallest_removed(params, 0.5)
    moved = moves((params, short), masks, data())
    assert math.isnan(moved.error) and moved.within(100.0).verdict == "undecided"
    assert replace(moved, error=0.0).within(100.0).verdict == "holds"
    tally = simulate_masks((params, short), lambda key: masks, data(), eps=[100.0], trials=2)
    assert tally.counts(100.0) == Counts(0, 0, 0, 2)


def test_constants_of_other_types_do_not_matter():
    """Nor do truth values as floats, which are exact."""
    shift, params = jax.device_put(np.linspace(0.0, 1.0, 6, dtype=np.float32)), mlp()
    scaled = lambda p, x: apply(p, (x - shift[None]) * (x > 0).astype(jnp.float32))
    moved = moves((params, scaled), smallest_removed(params, 0.5), data())
    assert 0 < moved.error < 1e-6


def test_nan_weights_and_inputs_are_counted():
    params, x = mlp(), data()
    masks = smallest_removed(params, 0.5)
    x[3, 0], x[5, 1] = np.nan, np.inf
    # NumPy finds NaN largest, and so class 0 where all outputs are.
    moved = moves((params, apply), masks, x, np.zeros(256, int))
    finite = np.isfinite(x).all(1)
    assert moved.counts(1e6) == Counts(254, 0, 0, 2)
    assert moved.correct == (outputs64(params, x[finite]).argmax(1) == 0).sum()
    kept = applied(params, masks)
    assert moved.pruned_correct == (outputs64(kept, x[finite]).argmax(1) == 0).sum()
    params["layers.1.bias"][0] = np.nan
    moved = moves((params, apply), masks, x)
    assert moved.counts(1e6) == Counts(0, 0, 0, 256) and moved.changed == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, k: moves(m, k, np.zeros((0, 6))), "at least one input"),
        (lambda m, k: moves(m, k, np.float32(3)), "at least one input"),
        (lambda m, k: moves(m, k, data(5), np.zeros(4, int)), "labels: int64 of shape"),
        (lambda m, k: moves(m, k, data(5), np.zeros(5)), "labels: float64"),
        (
            lambda m, k: moves(m, k, data(5), np.arange(-1, 4)),
            "labels: -1 to 3; classes from 0 to 3",
        ),
        (lambda m, k: moves(m, k, data(5), np.arange(5)), "labels: 0 to 4; classes from 0 to 3"),
        (lambda m, k: moves(m, k, np.full((2, 6), 2**31)), "x: int64 with numbers that int32"),
        (
            lambda m, k: moves(m, k, np.full((2, 6), 2**40, np.uint64)),
            "x: uint64 with numbers that uint32",
        ),
        (lambda m, k: moves(m, k, data(5), batch=0), "batch = 0"),
        (lambda m, k: moves(m, dict(k), data(5)), "the Masks that prune gives, a model, or"),
        (lambda m, k: moves(m, mlp((6, 4)), data(5)), "parameters like the model's own are needed"),
        (lambda m, k: moves(m, mlp((6, 15, 4)), data(5)), "like the model's own"),
        (
            lambda m, k: moves(m, {p: w.astype(np.float16) for p, w in mlp().items()}, data(5)),
            "like the model's own",
        ),
        (
            lambda m, k: moves(m, (mlp((6, 16, 3)), apply), data(5)),
            r"pruned: outputs of shape \(3,\); \(4,\) is needed",
        ),
        (
            lambda m, k: moves(m, (mlp((7, 16, 4)), apply), data(5)),
            r"x: float32 of shape \(5, 6\); .* pruned said TypeError: dot_general",
        ),
        (
            lambda m, k: moves(m, k, data(300, 7)),
            r"x: float32 of shape \(300, 7\); .* model said TypeError: dot_general",
        ),
        (lambda m, k: moves(m, k, data(5, 4)[0]), r"x: float32 of shape \(4,\); .* model said"),
        (lambda m, k: moves(m, k, data(6)[:, 0]), r"x: float32 of shape \(6,\)"),
        (lambda m, k: moves(m, k, np.array(["a", "b"])), r"x: <U1 of shape \(2,\); numbers"),
        (lambda m, k: moves(m, k, [[1.0], [1.0, 2.0]]), "x: an array"),
        (lambda m, k: moves(m, Masks({"9.w": np.ones((1, 1), bool)}), data(5)), "9.w"),
        (lambda m, k: moves(m[0], k, data(5)), "model of type dict"),
        (lambda m, k: moves((m[0], lambda p, x: (x, x)), k, data(5)), "gives tuple for 5 inputs"),
        (lambda m, k: moves((m[0], lambda p, x: x[0]), k, data(5)), "one array of floats"),
        (lambda m, k: moves((m[0], lambda p, x: x > 0), k, data(5)), "gives bool of shape"),
        (
            lambda m, k: moves((m[0], lambda p, x: x[:, 0]), k, data(5), np.zeros(5, int)),
            "no classes",
        ),
        (lambda m, k: moves(m, k, data(5)).counts(0.0), "eps = 0.0"),
        (lambda m, k: moves(m, k, data(5)).counts(np.nan), "eps = nan"),
        (lambda m, k: moves(m, k, data(5)).quantile(0.0), "tail = 0.0"),
        (lambda m, k: moves(m, k, data(5)).quantile(0.1, 1.0), "confidence = 1.0"),
        (lambda m, k: simulate_masks(m, lambda key: k, data(5), eps=[]), "at least one number"),
        (lambda m, k: simulate_masks(m, lambda key: k, data(5), eps=[np.nan]), "eps = nan"),
        (lambda m, k: simulate_masks(m, lambda key: k, data(5), eps=[1.0], trials=0), "trials = 0"),
        (lambda m, k: simulate_masks(m, lambda key: k, data(5), eps=[1.0], seed=-1), "seed = -1"),
        (lambda m, k: simulate_masks(m, lambda key: None, data(5), eps=[1.0]), "pruned = None"),
    ],
)
def test_bad_arguments(call, said):
    model = mlp(), apply
    with pytest.raises(ValueError, match=said) as error:
        call(model, smallest_removed(model[0], 0.5))
    assert "\n" not in str(error.value)


def finetuned_is_another(model, trained, masks, x):
    moved = moves(model, trained, x)
    np.testing.assert_array_equal(moved.distances, moves(model, (trained, apply), x).distances)
    assert (moved.distances != moves(model, masks, x).distances).any()


@ci
def test_what_iterative_gives_is_compared_as_it_is():
    params = mlp()
    again = {name: p * np.float32(0.9) for name, p in params.items()}
    trained = models.iterative(params, "magnitude", 0.5, 2, after=lambda p, m: again)
    finetuned_is_another((params, apply), trained.params, trained.masks, data())


def test_another_model_is_compared_as_it_is():
    """One trained further has other weights, and biases, than masks give."""
    params, x = mlp(), data()
    again = {name: p * np.float32(0.9) for name, p in params.items()}
    expected = np.linalg.norm(outputs64(params, x) - outputs64(again, x), axis=1)
    model = params, apply
    # Rows are doubled and halved: another model with the same outputs.
    for other in (again, (again, apply), models.Model(lambda p, x: apply(p, 2 * x / 2), again)):
        moved = moves(model, other, x, np.zeros(len(x), int))
        np.testing.assert_allclose(moved.distances, expected, rtol=1e-4, atol=1e-5)
        low, high = moved.ends
        assert (low <= expected).all() and (expected <= high).all() and 0 < moved.error < 1e-6
        assert moved.pruned_correct == (outputs64(again, x).argmax(1) == 0).sum()
    masks = smallest_removed(params, 0.5)
    finetuned_is_another(model, applied(again, masks), masks, x)
    short = lambda p, x: apply(p, x.astype(jnp.bfloat16).astype(x.dtype))
    assert math.isnan(moves(model, (again, short), x).error)


def test_what_is_printed_is_rounded_outward():
    few = record(np.zeros(10**6), changed=0)
    high = float(few.changed_share()[1])
    (said,) = (line for line in str(few).splitlines() if "change class" in line)
    assert "0 change class: 0 % to 0.0005299 %" in said and 0.0005298 < 100 * high <= 0.0005299
    edges = record(np.full(1000, 1.23456))
    assert "1.235 at most" in str(edges) and "q in [1.234, 1.235]" in str(edges)
    assert "q in [1, 1]" in str(record(np.ones(1000)))
    assert "q in [0, inf]" in str(record(np.full(3, np.nan)))


def test_inputs_without_a_finite_distance_are_named():
    assert "finite" not in str(record(np.ones(3)))
    assert "2 of 4 inputs give no finite distance" in str(record([1.0, np.nan, np.inf, 1.0]))


WEIGHTS = np.arange(1.0, 9.0, dtype=np.float32).reshape(1, 8)
LINEAR = {"w": WEIGHTS}, lambda params, x: x @ params["w"].T


def draw(key):
    return models.prune(LINEAR[0], "random", 0.25, key=key)


def test_random_masks_against_the_exact_probability():
    """At unit inputs the gap of `w . x` is the largest removed weight: 2 of 8, all at most eps."""
    eps = [2.5, 5.5, 7.5]
    tally = simulate_masks(LINEAR, draw, np.eye(8, dtype=np.float32), eps=eps, trials=400)
    assert tally.trials == 400
    for e in eps:
        counts = tally.counts(e)
        p = math.comb(int(e), 2) / math.comb(8, 2)
        assert counts.between == counts.nonfinite == 0
        # Two-sided, wrong once in a million.
        low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 400, p)
        assert low <= counts.close <= high
    assert tally.worst[0][0] == pytest.approx(8.0, rel=1e-4)
    assert tally.mean_distance()[0] == pytest.approx(2 * 4.5 / 8, rel=0.1)


def test_a_trial_depends_on_seed_and_number_alone():
    x = np.eye(8, dtype=np.float32)
    drawn = []
    seen = lambda key: drawn.append(jax.random.key_data(key).tolist()) or draw(key)
    long = simulate_masks(LINEAR, seen, x, eps=[5.5], trials=12, seed=7)
    short = simulate_masks(LINEAR, draw, x, eps=[5.5], trials=5, seed=7)
    assert len({tuple(key) for key in drawn}) == 12
    assert {(v, i) for v, i in long.worst if i < 5} == set(short.worst)
    assert simulate_masks(LINEAR, draw, x, eps=[5.5], trials=12, seed=8).worst != long.worst


def test_a_simulated_trial_is_what_moves_says():
    params, x = mlp(), data()
    masks = randomly_removed(params, 0.3, seed=3)
    labels = np.arange(256) % 4
    done = []
    tally = simulate_masks(
        (params, apply), lambda key: masks, x, labels, eps=[1.0], trials=2, progress=done.append
    )
    moved = moves((params, apply), masks, x, labels)
    assert done == [1, 2]
    low, high = tally.gap_quantile(0.5)
    assert low <= moved.largest <= high and high < 1.03 * moved.largest
    assert tally.mean_distance()[0] == pytest.approx(moved.distances.mean(), rel=1e-6)
    squared = (moved.distances**2).mean() / 4
    assert tally.mean_squared_gap()[0] == pytest.approx(squared, rel=1e-5)
    ratio = (moved.distances / moved.sizes).max()
    assert tally.relative_distance()[0] == pytest.approx(ratio, rel=1e-5)
    assert (tally.labelled, tally.target_correct) == (256, 2 * moved.correct)
    assert tally.pruned_correct == 2 * moved.pruned_correct


def test_simulated_trials_that_are_not_finite():
    params, x = mlp(), data()
    x[9, 2] = np.nan
    fixed = smallest_removed(params, 0.5)
    tally = simulate_masks((params, apply), lambda key: fixed, x, eps=[1.0, 1e6], trials=3)
    assert tally.counts(1e6) == Counts(0, 0, 0, 3)

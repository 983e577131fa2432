"""Distances on data against NumPy in float64; what they say of further data by definition."""

import math
from fractions import Fraction

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
    assert moved.floats == "float32" and moved.float64_note == ""
    worst = abs(moved.distances - expected).max()
    assert 0 < moved.float64_error <= worst * (1 + 1e-9) < 1e-5
    assert moved.changed == (y.argmax(1) != after.argmax(1)).sum() > 0
    assert moved.correct == (y.argmax(1) == labels).sum()
    assert moved.pruned_correct == (after.argmax(1) == labels).sum()
    assert "change class" in str(moved) and f"{moved.correct} were correct" in str(moved)


@pytest.mark.parametrize("batch", [*(pytest.param(n, marks=ci) for n in (1, 7, 64)), 100, 10_000])
def test_batches_do_not_matter(batch):
    params, x = mlp(), data()
    masks = smallest_removed(params, 0.5)
    model, done = (params, apply), []
    whole, parts = moves(model, masks, x), moves(model, masks, x, batch=batch, progress=done.append)
    assert done == [*range(batch, len(x), batch), len(x)]
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-4, atol=1e-6)


def test_settings_under_which_a_program_would_stop_are_refused_at_once():
    with jax.transfer_guard("disallow"):
        with pytest.raises(ValueError, match=r"^jax_transfer_guard = 'disallow': .*$"):
            moves((mlp(), apply), Masks(), data(2))


def test_nothing_pruned_moves_nothing():
    moved = moves((mlp(), apply), smallest_removed(mlp(), 0.0), data())
    assert moved.largest == 0.0 and moved.changed is None
    assert moved.counts(1e-3) == Counts(256, 0, 0, 0)


def record(distances, sizes=None, **fields):
    distances = np.asarray(distances, np.float64)
    sizes = np.zeros_like(distances) if sizes is None else np.asarray(sizes, np.float64)
    return Moves(distances, sizes, 2, "float32", **fields)


def test_counts_by_definition():
    assert record([1.0, 2.0, 3.0]).counts(2.5) == Counts(2, 0, 1, 0)
    # Float64 knows a distance of 2 outputs to 9 in 2^53, here 4.5 of its last places.
    moved, place = record([2.0]), 2.0**-51
    assert moved.counts(2.0) == moved.counts(2.0 + 3 * place) == Counts(0, 1, 0, 0)
    assert moved.counts(2.0 - 3 * place) == Counts(0, 1, 0, 0)
    assert moved.counts(2.0 + 7 * place) == Counts(1, 0, 0, 0)
    assert moved.counts(2.0 - 7 * place) == Counts(0, 0, 1, 0)
    assert record([0.0]).counts(5e-324) == Counts(1, 0, 0, 0)
    strange = record([0.0, np.nan, np.inf, 0.0], [1.0, 1.0, 1.0, np.inf])
    assert strange.counts(5.0) == Counts(1, 0, 0, 3)
    assert math.isnan(strange.largest)


def exactly(a, b):
    """The squared distance of two vectors of floats."""
    fractions = lambda y: (Fraction(float(v)) for v in np.ravel(y))
    return sum((p - q) ** 2 for p, q in zip(fractions(a), fractions(b), strict=True))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=ci) for kind in (np.float32, jnp.bfloat16)] + [np.float64]
)
def test_ends_hold_the_exact_distance_of_the_outputs(kind):
    """Also of those whose squares, or those of their differences, float64 does not have."""
    rng = np.random.default_rng(0)
    top = 1000 if kind == np.float64 else 120
    powers = 2.0 ** rng.integers(-top, top, size=(40, 1))
    y = (rng.normal(size=(40, 3)) * powers).astype(kind)
    near = (y.astype(np.float64) * (1 + rng.normal(size=(40, 3)) * 2.0**-20)).astype(kind)
    other = np.where(rng.integers(2, size=(40, 1)), near, y[rng.permutation(40)])
    other[0] = y[0]
    if kind == np.float64:
        y[1], other[1] = [5e-324, 0, 0], 0
    lookup = lambda p, x: jnp.asarray(p["y"])[x]
    with jax.enable_x64(kind == np.float64):
        moved = moves(({"y": y}, lookup), {"y": other}, np.arange(40))
    ends = np.transpose(moved.ends)
    for a, b, (low, high) in zip(y, other, ends, strict=True):
        assert Fraction(low) ** 2 <= exactly(a, b) <= Fraction(high) ** 2
    assert (ends[0] == 0).all() and np.count_nonzero(ends) > 40 and np.isfinite(ends).all()


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
    low, high = (round(end) for end in moved.quantile(tail))
    assert moved.quantile(tail) == pytest.approx((low, high), rel=1e-14)
    miss = stats.beta.sf(1 - tail, low, n + 1 - low) + stats.beta.cdf(1 - tail, high, n + 1 - high)
    assert miss <= 0.01
    tighter = stats.beta.cdf(1 - tail, high - 1, n + 2 - high)
    assert tighter > 0.005  # a lower rank would not do


def test_few_inputs_say_little_of_quantiles():
    assert record(np.zeros(20)).quantile(0.05) == (0.0, np.inf)
    assert record(np.ones(20)).quantile(0.05) == pytest.approx((1.0, np.inf))
    assert record(np.ones(2)).quantile(0.5) == (0.0, np.inf)


def test_quantiles_use_the_ends():
    moved = record(np.full(1000, 2.0))
    low, high = moved.quantile(0.05)
    assert (low, high) == tuple(end[0] for end in moved.ends) and low < 2.0 < high


def test_changed_share_is_clopper_pearson():
    low, high = record(np.zeros(400), changed=0).changed_share()
    assert low == 0.0 and high == pytest.approx(1 - 0.005 ** (1 / 400), rel=1e-9)
    low, high = record(np.zeros(400), changed=37).changed_share(0.95)
    assert low == pytest.approx(stats.beta.ppf(0.025, 37, 364), rel=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.975, 38, 363), rel=1e-9)
    with pytest.raises(ValueError, match=r"moves\(\.\.\., classes=True\) or labels"):
        record([1.0]).changed_share()


@pytest.mark.parametrize(
    "kind",
    [np.int64, ">i4", pytest.param(np.uint64, marks=ci), pytest.param(np.int8, marks=ci)],
)
def test_whole_numbers_are_inputs(kind):
    """Tokens of an embedding, in the type and byte order that NumPy gives them."""
    table = {"w": np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2)}
    masks = Masks({"w": np.arange(8).reshape(4, 2) != 5})
    x = np.array([0, 2, 3], kind)
    moved = moves((table, lambda p, x: jnp.asarray(p["w"])[x]), masks, x)
    assert moved.distances.tolist() == [0.0, 6.0, 0.0]


def test_half_precision_is_as_computed():
    """Verdicts are about its outputs; how far they are from float64's is said beside."""
    x = data(200).astype(jnp.bfloat16)
    half = {name: p.astype(jnp.bfloat16) for name, p in mlp().items()}
    masks = smallest_removed(half, 0.5)
    moved = moves((half, apply), masks, x)
    kept, wide = applied(half, masks), x.astype(np.float64)
    expected = np.linalg.norm(outputs64(half, wide) - outputs64(kept, wide), axis=1)
    errors = abs(moved.distances - expected)
    assert moved.floats == "bfloat16" and errors.max() > 1e-3
    few = np.unique(np.linspace(0, 199, 64).astype(int))
    assert moved.float64_error == pytest.approx(errors[few].max(), rel=1e-9)
    y, after = (np.asarray(jax.jit(apply)(p, x)).astype(float) for p in (half, kept))
    assert moved.distances == pytest.approx(np.linalg.norm(y - after, axis=1), rel=1e-12)
    said = str(moved).splitlines()
    assert said[0].startswith("200 inputs, outputs as computed in bfloat16: distance")
    assert said[2].startswith("in float64 the distances of 64 inputs differ by at most 0.0")


def decides(model, floats, noted):
    """A verdict on either side, and why there is no float64 beside it."""
    masks = smallest_removed(model[0], 0.5)
    moved = moves(model, masks, data())
    assert moved.floats == floats and math.isnan(moved.float64_error)
    assert noted in moved.float64_note and f"not compared with float64: {noted}" in str(moved)
    assert moved.within(100.0).verdict == "holds" and moved.within(1e-6).verdict == "violated"
    low, high = moved.quantile(0.5)
    assert 0 < low < high < math.inf
    tally = simulate_masks(model, lambda key: masks, data(), eps=[100.0, 1e-6], trials=2)
    assert tally.counts(100.0) == Counts(2, 0, 0, 0) and tally.counts(1e-6) == Counts(0, 0, 2, 0)


ITSELF = "the model computes in {} whatever its parameters are in"


def test_a_model_of_its_own_type_is_as_computed():
    pinned = lambda params, x: apply(params, x).astype(jnp.float32)
    decides((mlp(), pinned), "float32", ITSELF.format("float32"))


SHORT = [("layer", jnp.bfloat16), ("scan", jnp.float16), ("branch", jnp.float32)]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        pytest.param(how, kind, marks=() if (how, kind) in SHORT else ci)
        for how in ("layer", "scan", "branch")
        for kind in (jnp.bfloat16, jnp.float16, jnp.float32)
    ],
)
def test_a_hidden_layer_of_its_own_type_is_as_computed(kind, how):
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

    name = np.dtype(kind).name
    decides((mlp(), short), name, ITSELF.format(name))


def hidden(params, x):
    return x @ params["layers.0.weight"].T, params["layers.1.weight"].T


def carried(params, x):
    """The state of a recurrence is float32, the step's result what the parameters are."""
    h, last = hidden(params, x)
    zero = jnp.zeros(h.shape, jnp.float32)
    return jax.lax.scan(lambda c, _: (jnp.tanh(h + c), None), zero, None, 2)[0] @ last


def looped(params, x):
    h, last = hidden(params, x)
    step = lambda _, c: jnp.tanh(h + c)
    return jax.lax.fori_loop(0, 2, step, jnp.zeros(h.shape, jnp.float32)) @ last


def branched(params, x):
    h, last = hidden(params, x)
    h = jax.lax.cond(x[0, 0] > 9, lambda h: jnp.zeros(h.shape, jnp.float32), jnp.tanh, h)
    return h @ last


def updated(params, x):
    h, last = hidden(params, x)
    whole = jnp.zeros((len(x), h.shape[1]), jnp.float32)
    return jax.lax.dynamic_update_slice(whole, jnp.tanh(h), (0, 0)) @ last


def convolved(params, x):
    w = params["layers.0.weight"][:, None]
    x = x.astype(jnp.float32)[:, None]
    return jax.lax.conv_general_dilated(x, w, (1,), "VALID")[..., 0]


@pytest.mark.parametrize(
    "apply",
    [
        carried,
        *(pytest.param(fn, marks=ci) for fn in (looped, branched, updated, convolved)),
    ],
)
def test_models_that_float64_breaks(apply):
    """What they raise there is noted, and nothing else."""
    decides((mlp(), apply), "float32", "there the model says TypeError: ")


def test_float64_with_other_outputs_is_noted():
    other = lambda p, x: apply(p, x) * (1 if x.dtype == np.float32 else np.inf)
    decides((mlp(), other), "float32", "there, or here, its outputs are not finite")
    narrow = lambda p, x: apply(p, x) if x.dtype == np.float32 else apply(p, x)[:, :1]
    decides((mlp(), narrow), "float32", "there its outputs have another shape")


def test_constants_of_other_types_do_not_matter():
    """Nor do truth values as floats, which are exact."""
    shift, params = jax.device_put(np.linspace(0.0, 1.0, 6, dtype=np.float32)), mlp()
    scaled = lambda p, x: apply(p, (x - shift[None]) * (x > 0).astype(jnp.float32))
    moved = moves((params, scaled), smallest_removed(params, 0.5), data())
    assert moved.float64_note == "" and 0 < moved.float64_error < 1e-5


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
    moved = moves((params, apply), masks, x, classes=True)
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
        (lambda m, k: moves(m, k, [[1.0], [1.0, 2.0]]), "x = .*: an array of numbers"),
        (
            lambda m, k: moves(
                ({"w": np.ones((6, 4), ">f4")}, lambda p, x: x @ p["w"]), k, data(5)
            ),
            "w is >f4: the machine's own byte order is needed, ",
        ),
        (lambda m, k: moves(m, k, np.ma.ones((5, 6))), "x: a masked array, whose mask would be"),
        (lambda m, k: moves(m, k, data(5), np.ma.ones(5, int)), "labels: a masked array"),
        (lambda m, k: moves(m, Masks({"9.w": np.ones((1, 1), bool)}), data(5)), "9.w"),
        (lambda m, k: moves(m[0], k, data(5)), "model of type dict"),
        (lambda m, k: moves((m[0], lambda p, x: (x, x)), k, data(5)), "gives tuple for 5 inputs"),
        (lambda m, k: moves((m[0], lambda p, x: x[0]), k, data(5)), "one array of floats"),
        (lambda m, k: moves((m[0], lambda p, x: x > 0), k, data(5)), "gives bool of shape"),
        (
            lambda m, k: moves((m[0], lambda p, x: x[:, None]), k, data(5), np.zeros(5, int)),
            r"labels: outputs of shape \(1, 6\) are no classes",
        ),
        (
            lambda m, k: moves((m[0], lambda p, x: x[:, None]), k, data(5), classes=True),
            r"classes: outputs of shape \(1, 6\) are no classes",
        ),
        (
            lambda m, k: moves((m[0], lambda p, x: x[:, 0]), k, data(5), np.full(5, 2)),
            "labels: 2 to 2; classes from 0 to 1",
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


def test_outputs_are_no_classes_until_asked():
    """Those of a regression are none."""
    moved = moves((mlp(), apply), smallest_removed(mlp(), 0.5), data())
    assert moved.changed is None and "class" not in str(moved)


@pytest.mark.parametrize("shape", [pytest.param((-1,), marks=ci), (-1, 1)])
def test_one_output_is_a_logit(shape):
    params, x = mlp(), data()
    one = lambda y: y[:, 1] - 1.8
    logit = lambda p, x: one(apply(p, x)).reshape(shape)
    masks = smallest_removed(params, 0.5)
    labels = np.random.default_rng(2).integers(2, size=len(x))
    moved = moves((params, logit), masks, x, labels)
    before, after = (one(outputs64(p, x)) > 0 for p in (params, applied(params, masks)))
    assert moved.changed == (before != after).sum() > 0
    assert (moved.correct, moved.pruned_correct) == (
        (before == labels).sum(),
        (after == labels).sum(),
    )


def test_leaves_that_are_no_arrays_are_the_model_s_own():
    """Functions, texts and numbers among the parameters are what they are, not traced."""
    params, x = {**mlp(), "act": jax.nn.relu, "name": "mlp", "deep": True, "times": 2}, data()
    model = params, lambda p, x: apply(p if p["deep"] else None, x, p["act"]) * p["times"]
    masks = smallest_removed(mlp(), 0.5)
    expected = 2 * np.linalg.norm(outputs64(mlp(), x) - outputs64(applied(mlp(), masks), x), axis=1)
    for pruned in (masks, masks.apply(params)):
        moved = moves(model, pruned, x)
        np.testing.assert_allclose(moved.distances, expected, rtol=1e-4, atol=1e-5)
        assert moved.float64_note == ""
    # Other parameters may have others of them.
    moved = moves(model, masks.apply(params) | {"times": 0}, x)
    np.testing.assert_allclose(moved.distances, moved.sizes)


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
        assert moved.floats == "float32" and 0 < moved.float64_error < 1e-5
        assert moved.pruned_correct == (outputs64(again, x).argmax(1) == 0).sum()
    masks = smallest_removed(params, 0.5)
    finetuned_is_another(model, applied(again, masks), masks, x)
    short = lambda p, x: apply(p, x.astype(jnp.bfloat16).astype(x.dtype))
    moved = moves(model, (again, short), x)
    assert moved.floats == "bfloat16" and ITSELF.format("bfloat16") in moved.float64_note


def test_what_is_printed_is_rounded_outward():
    few = record(np.zeros(10**6), changed=0)
    high = float(few.changed_share()[1])
    (said,) = (line for line in str(few).splitlines() if "change class" in line)
    assert "0 change class: 0 % to 0.0005299 %" in said and 0.0005298 < 100 * high <= 0.0005299
    edges = record(np.full(1000, 1.23456))
    assert "1.235 at most" in str(edges) and "q in [1.234, 1.235]" in str(edges)
    assert "q in [0, 0]" in str(record(np.zeros(1000)))


def test_an_open_limit_is_printed_with_its_reason():
    few = "95 % of all inputs move at most q, q in [0, inf] (99 % confidence): "
    assert few + "3 inputs are too few" in str(record(np.full(3, np.nan)))
    assert few + "too many are not finite" in str(record(np.full(1000, np.nan)))
    assert "inputs are too few" not in str(record(np.ones(1000)))


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

"""Scores against finite differences, a whole Hessian, and sums over paths; in float64."""

import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import apply_to_column

from jaxprune import pruning
from jaxprune.models import grasp, magnitude, prune, random, snip, synflow
from jaxprune.pruning import Count, Fraction

WIDTHS = (3, 4, 4, 2)


def tiny(dtype=np.float64, widths=WIDTHS):
    rng = np.random.default_rng(1)
    layers = [{"w": rng.normal(size=(b, a)).astype(dtype)} for a, b in itertools.pairwise(widths)]
    return {"layers": layers, "steps": 3}


def smooth_loss(params, x, y, temperature=1.0):
    logits = apply_to_column(params, x, jnp.tanh) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, 0) - jnp.sum(logits * y, 0))


def batch():
    rng = np.random.default_rng(2)
    return rng.normal(size=(3, 5)), np.eye(2)[rng.integers(2, size=5)].T


def flat(scores):
    return np.concatenate([np.asarray(s).ravel() for s in scores.values()])


@cache
def loss_of_vector(temperature=1.0):
    """The loss of `tiny()` as a function of all weights in one vector, and that vector."""
    weights = [layer["w"] for layer in tiny()["layers"]]
    ends = np.cumsum([w.size for w in weights])
    x, y = batch()

    @jax.jit
    def loss(v):
        parts = zip(jnp.split(v, ends[:-1]), weights, strict=True)
        return smooth_loss(
            {"layers": [{"w": v.reshape(w.shape)} for v, w in parts]}, x, y, temperature
        )

    return loss, np.concatenate([w.ravel() for w in weights])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_magnitude():
    params = tiny()
    for path, s in magnitude(params).items():
        i = int(path.split(".")[1])
        np.testing.assert_array_equal(s, abs(params["layers"][i]["w"]))
    for of in (np.asarray, jax.device_put):
        half = of(np.ones((2, 2), jnp.bfloat16))
        assert magnitude({"w": half})["w"].dtype == jnp.float32


def test_snip_against_finite_differences(x64):
    params = tiny()
    loss, w = loss_of_vector()
    h = 1e-6
    slope = [(float(loss(w + h * e)) - float(loss(w - h * e))) / (2 * h) for e in np.eye(w.size)]
    scores = jax.jit(partial(snip, smooth_loss))(params, *batch())
    assert list(scores) == ["layers.0.w", "layers.1.w", "layers.2.w"]
    np.testing.assert_allclose(flat(scores), np.abs(w * slope), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("temperature", [pytest.param(None, marks=pytest.mark.ci), 200.0])
def test_grasp_against_the_whole_hessian(x64, temperature):
    params = tiny()
    loss, w = loss_of_vector(temperature or 1.0)
    expected = w * np.asarray(jax.jit(lambda w: jax.hessian(loss)(w) @ jax.grad(loss)(w))(w))
    of = jax.jit(partial(grasp, smooth_loss, temperature=temperature))
    scores = of(params, *batch())
    np.testing.assert_allclose(flat(scores), expected, rtol=1e-9, atol=1e-16)


def test_grasp_removes_what_lets_the_gradient_grow_most(x64):
    """Removal, in a small step: the squared gradient changes by -2 w H g. The largest goes."""
    params = tiny()
    loss, w = loss_of_vector()
    size = jax.jit(lambda v: jnp.sum(jax.grad(loss)(v) ** 2))
    h = 1e-6
    here = float(size(w))
    towards_zero = [(float(size(w - h * w * e)) - here) / h for e in np.eye(w.size)]
    scores = jax.device_get(jax.jit(partial(grasp, smooth_loss))(params, *batch()))
    np.testing.assert_allclose(-2 * flat(scores), towards_zero, rtol=1e-4, atol=1e-6)
    masks = prune(params, scores, {"layers.0.w": Count(1)}, layers="layers.0.w")
    first = np.asarray(towards_zero)[: masks["layers.0.w"].size]
    assert int(np.argmin(np.asarray(masks["layers.0.w"]).ravel())) == int(np.argmax(first))


def by_paths(params, image):
    """Sum over all paths of the products of |w|, and for each weight over those through it."""
    weights = [np.abs(layer["w"]) for layer in params["layers"]]
    total, through = 0.0, [np.zeros_like(w) for w in weights]
    for path in itertools.product(*(range(d) for d in WIDTHS)):
        steps = list(itertools.pairwise(path))
        product = math.prod(w[b, a] for w, (a, b) in zip(weights, steps, strict=True))
        product *= image[path[0]]
        total += product
        for t, (a, b) in zip(through, steps, strict=True):
            t[b, a] += product
    return total, through


# SynFlow takes its derivatives one by one outside `jit`: here as few programs.
compiled = jax.jit(apply_to_column)
flow_of = jax.jit(lambda p: synflow(apply_to_column, p, (3,)))


def is_a_sum_over_paths(scores):
    total, through = by_paths(tiny(), np.ones(3))
    for s, expected in zip(scores.values(), through, strict=True):
        assert s.dtype == np.float64
        np.testing.assert_allclose(s, expected, rtol=1e-12)
        # Conserved: the same in every layer.
        assert np.asarray(s).sum() == pytest.approx(total, rel=1e-12)


def test_synflow_is_a_sum_over_paths(x64):
    is_a_sum_over_paths(flow_of(tiny()))


@pytest.mark.ci
def test_synflow_outside_of_jit_is_a_sum_over_paths():
    scores = synflow(compiled, tiny(), (3,), double=True)
    assert all(isinstance(s, np.ndarray) for s in scores.values())
    is_a_sum_over_paths(scores)
    single = synflow(compiled, tiny(np.float32), (3, 1))
    np.testing.assert_allclose(flat(single), flat(scores), rtol=1e-5)


def test_synflow_conserves_at_every_neuron(x64):
    """What flows into a hidden neuron flows out of it (their Theorem 1)."""
    scores = list(map(np.asarray, flow_of(tiny()).values()))
    for before, behind in itertools.pairwise(scores):
        np.testing.assert_allclose(before.sum(1), behind.sum(0), rtol=1e-12)


@pytest.mark.ci
def test_deep_synflow_needs_double():
    """59 layers in one array: a program for as many arrays takes half a minute to compile."""
    layers = [layer["w"] for layer in tiny(np.float32, widths=(64,) * 60)["layers"]]
    deep = {"w": np.stack(layers)}

    @jax.jit
    def apply(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(w @ x), None), x, params["w"])
        return x

    with pytest.raises(ValueError, match="R = inf: a positive finite sum of outputs is needed"):
        prune(deep, lambda p: synflow(apply, p, (64,)), 0.5)
    # Under `jit` the flow is not seen, but its scores are.
    with pytest.raises(ValueError, match="scores of w: not all are finite"):
        prune(deep, jax.jit(lambda p: synflow(apply, p, (64,))), 0.5)
    scores = synflow(apply, deep, (64,), double=True)
    assert scores["w"].dtype == np.float64 and isinstance(scores["w"], np.ndarray)
    # All that flows into a layer flows out of it, to the digits that R of 59 layers has.
    np.testing.assert_allclose(scores["w"].sum((1, 2)), scores["w"][0].sum(), rtol=1e-9)
    masks = prune(deep, scores, 0.5)
    assert np.asarray(masks["w"]).sum() == 59 * 2048


MEAN, VAR = np.array([-3.0, -1.0, 0.25, 0.0]), np.array([1.0, 4.0, 9.0, 0.25])


def flow(w1, w2, mean, var):
    """R and what comes into the last layer, in NumPy: a norm centres by its mean as it is."""
    hidden = np.maximum((np.abs(w1).sum(0) - mean) / np.sqrt(var + 1e-5), 0)
    return hidden @ np.abs(w2).sum(1), hidden


def test_synflow_leaves_running_statistics_as_they_are(x64):
    """Those of Flax's Linen, whose collection has a name."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    total, hidden = flow(w1, w2, MEAN, VAR)
    plain = {"w1": w1, "w2": w2, "batch_stats": {"mean": MEAN, "var": VAR}}

    def apply(p, x):
        stats = p["batch_stats"]
        return jax.nn.relu((x @ p["w1"] - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)) @ p["w2"]

    scores = np.asarray(jax.jit(lambda p: synflow(apply, p, (3,)))(plain)["w2"])
    np.testing.assert_allclose(scores, hidden[:, None] * np.abs(w2), rtol=1e-12)
    assert scores.sum() == pytest.approx(total, rel=1e-12)


class Normed(nnx.Module):
    def __init__(self, mean):
        self.first = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.norm.mean[...] = jnp.asarray(mean, jnp.float32)
        self.norm.var[...] = jnp.asarray(VAR, jnp.float32)
        self.eval()

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


@pytest.mark.ci
def test_synflow_leaves_running_statistics_of_flax_as_they_are():
    model = Normed(MEAN)
    w1, w2 = (np.asarray(m.kernel[...], np.float64) for m in (model.first, model.last))
    total, hidden = flow(w1, w2, MEAN, VAR)
    scores = synflow(lambda m, x: m(x), model, (1, 3))
    np.testing.assert_allclose(scores["last.kernel"], hidden[:, None] * np.abs(w2), rtol=1e-5)
    assert scores["last.kernel"].sum() == pytest.approx(total, rel=1e-5)


def refuses_a_flow(apply, params, shape):
    with pytest.raises(ValueError, match="R = ") as error:
        synflow(apply, params, shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "apply",
    [
        lambda m, x: -m["w"] * x,
        pytest.param(lambda m, x: m["w"] * x / 0.0, marks=pytest.mark.ci),
        pytest.param(lambda m, x: 0.0 * m["w"] / 0.0, marks=pytest.mark.ci),
        pytest.param(lambda m, x: x, marks=pytest.mark.ci),
    ],
)
def test_synflow_without_a_flow_is_refused(apply):
    refuses_a_flow(jax.jit(apply), {"w": np.ones(3, np.float32)}, (3,))


@pytest.mark.ci
def test_synflow_of_a_dead_norm_is_refused():
    refuses_a_flow(lambda m, x: m(x), Normed([100.0] * 4), (1, 3))


@pytest.mark.ci
def test_random_is_that_of_the_package(key):
    params = {
        "a": np.ones((20, 30), np.float32),
        "b": np.ones(30, np.float32),
        "c": np.ones((7, 5), np.float32),
    }
    masks = prune(params, "random", 0.3, key=key)
    coins = jax.device_get(jax.jit(lambda p: random(key, p))(params))
    assert masks == prune(params, coins, 0.3)

    @jax.jit
    def expected(key, params):
        of = {}
        for i, path in ((0, "a"), (2, "c")):
            w = params[path]
            bits = jax.random.bits(jax.random.fold_in(key, i), w.shape)
            of[path] = pruning.random.mask(bits, w, pruning.random.level(Fraction(0.3), w.size))
        return of

    for path, mask in expected(key, params).items():
        np.testing.assert_array_equal(masks[path], mask)
    # Other layers chosen, the same coins.
    assert prune(params, "random", 0.3, key=key, layers="c")["c"].tolist() == masks["c"].tolist()


def test_half_precision_scores_are_products_in_float32():
    params = {"w": np.full((2, 2), 300.0, np.float16)}
    loss = lambda p: jnp.sum(p["w"] * 300).astype(jnp.float32)
    scores = jax.jit(partial(snip, loss))(params)
    assert scores["w"].dtype == jnp.float32
    np.testing.assert_array_equal(scores["w"], 90000)

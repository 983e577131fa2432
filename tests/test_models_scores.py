"""Scores against finite differences, a whole Hessian, and sums over paths; in float64."""

import itertools
import math
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import pruning
from jaxprune.models import grasp, magnitude, prune, random, snip, synflow
from jaxprune.pruning import Count, Fraction

WIDTHS = (3, 4, 4, 2)


def tiny(dtype=np.float64, widths=WIDTHS):
    rng = np.random.default_rng(1)
    layers = [{"w": rng.normal(size=(b, a)).astype(dtype)} for a, b in itertools.pairwise(widths)]
    return {"layers": layers, "steps": 3}


def apply(params, x, activation=jax.nn.relu):
    *hidden, last = params["layers"]
    for layer in hidden:
        x = activation(layer["w"] @ x)
    return last["w"] @ x


def smooth_loss(params, x, y, temperature=1.0):
    logits = apply(params, x, jnp.tanh) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, 0) - jnp.sum(logits * y, 0))


def batch():
    rng = np.random.default_rng(2)
    return rng.normal(size=(3, 5)), np.eye(2)[rng.integers(2, size=5)].T


def flat(scores):
    return np.concatenate([np.asarray(s).ravel() for s in scores.values()])


def loss_of_vector(params, temperature=1.0):
    """The loss as a function of all weights in one vector, and that vector."""
    weights, unravel = jax.flatten_util.ravel_pytree(params["layers"])
    x, y = batch()
    loss = lambda v: smooth_loss({"layers": unravel(v)}, x, y, temperature)
    return jax.jit(loss), np.asarray(weights)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_magnitude():
    params = tiny()
    for path, s in magnitude(params).items():
        i = int(path.split(".")[1])
        np.testing.assert_array_equal(s, abs(params["layers"][i]["w"]))
    assert magnitude({"w": jnp.ones((2, 2), jnp.bfloat16)})["w"].dtype == jnp.float32


def test_snip_against_finite_differences(x64):
    params = tiny()
    loss, w = loss_of_vector(params)
    h = 1e-6
    slope = [float(loss(w + h * e) - loss(w - h * e)) / (2 * h) for e in np.eye(w.size)]
    scores = jax.jit(partial(snip, smooth_loss))(params, *batch())
    assert list(scores) == ["layers.0.w", "layers.1.w", "layers.2.w"]
    np.testing.assert_allclose(flat(scores), np.abs(w * slope), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("temperature", [None, 200.0])
def test_grasp_against_the_whole_hessian(x64, temperature):
    params = tiny()
    loss, w = loss_of_vector(params, temperature or 1.0)
    expected = w * jax.jit(lambda w: jax.hessian(loss)(w) @ jax.grad(loss)(w))(w)
    of = jax.jit(partial(grasp, smooth_loss, temperature=temperature))
    scores = of(params, *batch())
    np.testing.assert_allclose(flat(scores), expected, rtol=1e-9, atol=1e-16)


def test_grasp_removes_what_lets_the_gradient_grow_most(x64):
    """Removal, in a small step: the squared gradient changes by -2 w H g. The largest goes."""
    params = tiny()
    loss, w = loss_of_vector(params)
    size = jax.jit(lambda v: jnp.sum(jax.grad(loss)(v) ** 2))
    h = 1e-6
    towards_zero = [float(size(w - h * w * e) - size(w)) / h for e in np.eye(w.size)]
    scores = jax.jit(partial(grasp, smooth_loss))(params, *batch())
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


def test_synflow_is_a_sum_over_paths():
    params = tiny()
    total, through = by_paths(params, np.ones(3))
    scores = synflow(apply, params, (3,), double=True)
    for s, expected in zip(scores.values(), through, strict=True):
        assert s.dtype == np.float64 and isinstance(s, np.ndarray)
        np.testing.assert_allclose(s, expected, rtol=1e-12)
        assert s.sum() == pytest.approx(total, rel=1e-12)  # conserved: the same in every layer
    single = synflow(apply, tiny(np.float32), (3, 1))
    np.testing.assert_allclose(flat(single), flat(scores), rtol=1e-5)


def test_synflow_conserves_at_every_neuron():
    """What flows into a hidden neuron flows out of it (their Theorem 1)."""
    scores = list(synflow(apply, tiny(), (3,), double=True).values())
    for before, behind in itertools.pairwise(scores):
        np.testing.assert_allclose(before.sum(1), behind.sum(0), rtol=1e-12)


def test_deep_synflow_needs_double():
    deep = tiny(np.float32, widths=(64,) * 60)
    with pytest.raises(ValueError, match="R = inf: a positive finite sum of outputs is needed"):
        prune(deep, lambda p: synflow(apply, p, (64,)), 0.5)
    with pytest.raises(ValueError, match=r"layers\.0\.w: not all are finite"):
        prune(deep, jax.jit(lambda p: synflow(apply, p, (64,))), 0.5)
    masks = prune(deep, lambda p: synflow(apply, p, (64,), double=True), 0.5)
    assert all(int(m.sum()) == 2048 for m in masks.values())


class Normed(nnx.Module):
    def __init__(self, mean):
        self.first = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.norm.mean[...] = jnp.asarray(mean, jnp.float32)
        self.norm.var[...] = jnp.asarray([1.0, 4.0, 9.0, 0.25])
        self.eval()

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def flow(w1, w2, mean, var):
    """R and what comes into the last layer, in NumPy: a norm centres by its mean as it is."""
    hidden = np.maximum((np.abs(w1).sum(0) - mean) / np.sqrt(var + 1e-5), 0)
    return hidden @ np.abs(w2).sum(1), hidden


def test_synflow_leaves_running_statistics_as_they_are():
    mean, var = np.array([-3.0, -1.0, 0.25, 0.0]), np.array([1.0, 4.0, 9.0, 0.25])
    model = Normed(mean)
    w1, w2 = (np.asarray(m.kernel[...], np.float64) for m in (model.first, model.last))
    total, hidden = flow(w1, w2, mean, var)
    expected = hidden[:, None] * np.abs(w2)
    scores = synflow(lambda m, x: m(x), model, (1, 3))
    np.testing.assert_allclose(scores["last.kernel"], expected, rtol=1e-5)
    assert scores["last.kernel"].sum() == pytest.approx(total, rel=1e-5)
    # The same of Flax's Linen, whose collection has a name.
    plain = {"w1": w1, "w2": w2, "batch_stats": {"mean": mean, "var": var}}

    def apply(p, x):
        stats = p["batch_stats"]
        return jax.nn.relu((x @ p["w1"] - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)) @ p["w2"]

    scores = synflow(apply, plain, (3,), double=True)
    np.testing.assert_allclose(scores["w2"], expected, rtol=1e-12)


def test_synflow_without_a_flow_is_refused():
    dead = Normed([100.0] * 4)
    for score in (
        lambda: synflow(lambda m, x: m(x), dead, (1, 3)),
        lambda: synflow(lambda m, x: -m["w"] * x, {"w": jnp.ones(3)}, (3,)),
        lambda: synflow(lambda m, x: m["w"] * x / 0.0, {"w": jnp.ones(3)}, (3,)),
        lambda: synflow(lambda m, x: 0.0 * m["w"] / 0.0, {"w": jnp.ones(3)}, (3,)),
        lambda: synflow(lambda m, x: x, {"w": jnp.ones(3)}, (3,)),
    ):
        with pytest.raises(ValueError, match="R = ") as error:
            score()
        assert "\n" not in str(error.value)


def test_random_is_that_of_the_package(key):
    params = {"a": jnp.ones((20, 30)), "b": jnp.ones(30), "c": jnp.ones((7, 5))}
    masks = prune(params, "random", 0.3, key=key)
    assert masks == prune(params, random(key, params), 0.3)
    for i, path in ((0, "a"), (2, "c")):
        w = params[path]
        bits = jax.random.bits(jax.random.fold_in(key, i), w.shape)
        level = pruning.random.level(Fraction(0.3), w.size)
        np.testing.assert_array_equal(masks[path], pruning.random.mask(bits, w, level))
    # Other layers chosen, the same coins.
    assert prune(params, "random", 0.3, key=key, layers="c")["c"].tolist() == masks["c"].tolist()


def test_half_precision_scores_are_products_in_float32():
    params = {"w": jnp.full((2, 2), 300.0, jnp.float16)}
    scores = snip(lambda p: jnp.sum(p["w"] * 300).astype(jnp.float32), params)
    assert scores["w"].dtype == jnp.float32 and (scores["w"] == 90000).all()

"""Flax NNX and Equinox models, written as in their tutorials, go through without an adapter."""

import subprocess
import sys
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from sklearn.datasets import load_digits

import jaxprune as jp
from jaxprune import models
from jaxprune.models import Masks, Model, ball_gap, moves, prune

STEPS = 150
ci = pytest.mark.ci


class FlaxMLP(nnx.Module):
    def __init__(self, din: int, dmid: int, dout: int, *, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(din, dmid, rngs=rngs)
        self.dropout = nnx.Dropout(rate=0.1, rngs=rngs)
        self.bn = nnx.BatchNorm(dmid, rngs=rngs)
        self.linear2 = nnx.Linear(dmid, dout, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.dropout(self.bn(self.linear1(x))))
        return self.linear2(x)


class FlaxCNN(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 8, kernel_size=(3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, kernel_size=(3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(64, 32, rngs=rngs)
        self.linear2 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), window_shape=(2, 2), strides=(2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        return self.linear2(nnx.relu(self.linear1(x)))


class EquinoxMLP(eqx.Module):
    layers: list

    def __init__(self, key):
        key1, key2, key3 = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Linear(64, 32, key=key1),
            eqx.nn.Linear(32, 32, key=key2),
            eqx.nn.Linear(32, 10, key=key3),
        ]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class EquinoxCNN(eqx.Module):
    layers: list

    def __init__(self, key):
        key1, key2, key3 = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, 3, kernel_size=3, key=key1),
            eqx.nn.MaxPool2d(kernel_size=2),
            jax.nn.relu,
            jnp.ravel,
            eqx.nn.Linear(75, 32, key=key2),
            jax.nn.sigmoid,
            eqx.nn.Linear(32, 10, key=key3),
            jax.nn.log_softmax,
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(scope="module", autouse=True)
def as_others_have_it():
    """Other people's models promote ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def digits(shape):
    """Training images and classes, and one batch of test images, which are drawn at random."""
    x, y = load_digits(return_X_y=True)
    place = np.random.default_rng(0).permutation(len(x))
    x, y = (x[place] / 16).astype(np.float32).reshape(-1, *shape), y[place].astype(np.int32)
    return x[:1000], y[:1000], x[1000:1256], y[1000:1256]


def train_flax(model, x, y):
    model.train()
    optimizer = nnx.jit(lambda m: nnx.Optimizer(m, optax.adam(5e-3), wrt=nnx.Param))(model)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for i in range(STEPS):
        part = slice(i % 10 * 100, i % 10 * 100 + 100)
        step(model, optimizer, x[part], y[part])
    model.eval()
    return model


def train_equinox(model, x, y):
    optimizer = optax.adam(5e-3)
    state = jax.jit(optimizer.init)(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        def loss(model):
            logits = jax.vmap(model)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = optimizer.update(eqx.filter_grad(loss)(model), state)
        return eqx.apply_updates(model, updates), state

    for i in range(STEPS):
        part = slice(i % 10 * 100, i % 10 * 100 + 100)
        model, state = step(model, state, x[part], y[part])
    return model


# Made under `jit`: one program a model, not one for each operation.
MODELS = {
    "flax mlp": ((64,), train_flax, nnx.jit(lambda: FlaxMLP(64, 32, 10, rngs=nnx.Rngs(0)))),
    "flax cnn": ((8, 8, 1), train_flax, nnx.jit(lambda: FlaxCNN(rngs=nnx.Rngs(0)))),
    "equinox mlp": ((64,), train_equinox, eqx.filter_jit(lambda: EquinoxMLP(jax.random.key(0)))),
    "equinox cnn": (
        (1, 8, 8),
        train_equinox,
        eqx.filter_jit(lambda: EquinoxCNN(jax.random.key(0))),
    ),
}
ALL = [
    pytest.param(name, marks=() if name == "flax mlp" or name == "equinox mlp" else ci)
    for name in MODELS
]
"""One of each library without `-m ci`."""


@cache
def trained(name):
    """A model and its test data."""
    shape, train, make = MODELS[name]
    x, y, test_x, test_y = digits(shape)
    return train(make(), x, y), test_x, test_y


@nnx.jit
def of_flax(model, x):
    return model(x)


@eqx.filter_jit
def of_equinox(model, x):
    return jax.vmap(model)(x)


def outputs(model, x):
    of = of_flax if isinstance(model, nnx.Module) else of_equinox
    return np.asarray(of(model, x))


FIVE_LINES = """
import jaxprune as jp
masks = jp.models.prune(model, "magnitude", 0.8)
moved = jp.models.moves(model, masks, x, classes=True)
print(masks.summary(model), moved, sep="\\n")
print(moved.within(eps=EPS, delta=0.05).verdict)
"""


@pytest.mark.parametrize("name", ALL)
def test_five_lines_for_a_model_never_seen(name, capsys):
    model, x, labels = trained(name)
    given = {"model": model, "x": x}
    assert len(FIVE_LINES.strip().splitlines()) == 5
    exec(FIVE_LINES.replace("EPS", "1000.0"), given)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "holds"
    assert (
        "256 inputs, outputs as computed in float32: distance" in printed
        and "95 % of all inputs move at most" in printed
    )
    assert given["moved"].within(eps=1e-3, delta=0.05).verdict == "violated"

    masks, moved = given["masks"], given["moved"]
    # The libraries' own calls of the model and its pruned copy see the same.
    before, after = outputs(model, x), outputs(masks.apply(model), x)
    np.testing.assert_allclose(
        moved.distances, np.linalg.norm(before - after, axis=1), rtol=1e-3, atol=1e-4
    )
    assert moved.changed == pytest.approx((before.argmax(1) != after.argmax(1)).sum(), abs=1)
    assert (before.argmax(1) == labels).sum() > 0.85 * len(x)
    assert 0 < moved.float64_error < 1e-4 and moved.float64_note == ""

    summary = masks.summary(model)
    for row in summary.pruned:
        assert row.kept == row.weights - round(0.8 * row.weights)
    left = {row.path: row for row in summary.untouched}
    biases = [path for path in models.arrays(model) if path.endswith("bias")]
    assert biases and all(left[bias].kept == left[bias].weights for bias in biases)


@ci
@pytest.mark.parametrize("name", MODELS)
def test_named_layers_are_left_alone(name, tmp_path):
    model, x, labels = trained(name)
    weights = list(models.select(model))
    masks = prune(model, "magnitude", 0.8, layers=weights[:-1])
    summary = masks.summary(model)
    assert [row.path for row in summary.pruned] == weights[:-1]
    left = {row.path: row for row in summary.untouched}
    assert left[weights[-1]].sparsity == 0.0
    assert f"{weights[-1]}" in str(summary).splitlines()[-1]
    masks.save(tmp_path / "masks")
    loaded = Masks.load(tmp_path / "masks", model)
    moved = moves(model, masks, x, labels)
    assert moved.correct > 0.85 * len(x)
    np.testing.assert_array_equal(moves(model, loaded, x).distances, moved.distances)
    both = loaded & prune(model, "magnitude", 0.5, layers=weights[-1])
    assert {row.path for row in both.summary(model).pruned} == set(weights)


@ci
@pytest.mark.parametrize("name", ["flax mlp", "flax cnn", "equinox cnn"])
def test_other_models_are_no_stacks(name):
    model, _, _ = trained(name)
    with pytest.raises(ValueError):
        ball_gap(model, prune(model, amount=0.8))


@ci
def test_a_trained_stack_over_the_whole_ball():
    model, x, _ = trained("equinox mlp")
    masks = prune(model, "magnitude", 0.5)
    gap = ball_gap(model, masks)
    assert 0 < gap.lower <= gap.upper < 20 * gap.lower
    # The data are in the ball, once scaled into it.
    moved = moves(model, masks, jp.into_ball(x))
    assert moved.largest <= gap.upper and moved.within(gap.upper * 1.001).verdict == "holds"


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10)(linen.relu(linen.Dense(32)(x)))


@ci
def test_linen_is_a_pair():
    module, x = LinenMLP(), digits((64,))[2]
    variables = module.init(jax.random.key(0), x)
    masks = prune(variables, "magnitude", 0.8)
    assert list(masks) == ["params.Dense_0.kernel", "params.Dense_1.kernel"]
    with pytest.raises(ValueError, match=r"\(variables, LinenMLP\.apply\) is needed"):
        moves((variables, module), masks, x)
    model = variables, module.apply
    moved = moves(model, masks, x)
    expected = module.apply(variables, x) - module.apply(masks.apply(variables), x)
    expected = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(moved.distances, expected, rtol=1e-4, atol=1e-5)
    # Linen counts layers as they are made, the outer one first.
    gap = ball_gap(model, masks, order=["params.Dense_1.kernel", "params.Dense_0.kernel"])
    assert moves(model, masks, jp.into_ball(x)).largest <= gap.lower <= gap.upper


class FlaxStack(nnx.Module):
    def __init__(self, biased, *, rngs):
        # Flax's own biases start at 0.
        more = dict(use_bias=biased, bias_init=nnx.initializers.normal(0.1), rngs=rngs)
        self.conv1 = nnx.Conv(1, 4, (3, 3), **more)
        self.conv2 = nnx.Conv(4, 6, (3, 3), **more)
        self.linear = nnx.Linear(6 * 64, 10, **more)

    def __call__(self, x):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.linear(x.reshape(x.shape[0], -1))


class EquinoxStack(eqx.Module):
    layers: list

    def __init__(self, biased, key):
        keys = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, 4, 3, padding=1, use_bias=biased, key=keys[0]),
            jax.nn.relu,
            eqx.nn.Conv2d(4, 6, 3, padding=1, use_bias=biased, key=keys[1]),
            jax.nn.relu,
            jnp.ravel,
            eqx.nn.Linear(6 * 64, 10, use_bias=biased, key=keys[2]),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "biased",
    [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=ci)],
)
@pytest.mark.parametrize("kind", ["flax", "equinox"])
def test_convolutions_over_the_whole_ball(kind, biased):
    network = jp.convolutional((1, 4, 6), 8, 3, outputs=10)
    flax = kind == "flax"
    key = jax.random.key(0)
    if flax:
        model = nnx.jit(lambda: FlaxStack(biased, rngs=nnx.Rngs(0)))()
    else:
        model = eqx.filter_jit(lambda: EquinoxStack(biased, key))()
    masks = prune(model, "magnitude", 0.5)
    if biased:
        masks = masks & prune(model, "magnitude", 0.5, layers="*.bias")
    gap = ball_gap(model, masks, network)
    x = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    x = jp.into_ball(x).reshape(-1, *((8, 8, 1) if flax else (1, 8, 8)))
    moved = moves(model, masks, x)
    assert 0 < moved.largest <= gap.lower < gap.upper < 30 * gap.lower
    with pytest.raises(ValueError, match="with relu between"):
        ball_gap(model, masks, jp.convolutional((1, 4, 6), 8, 3, outputs=10, padding="CIRCULAR"))


def test_models_in_training_are_refused():
    model = MODELS["flax mlp"][-1]()
    model.train()
    with pytest.raises(ValueError, match=r"has deterministic = False|has use_running_average"):
        Model.of(model)
    model.eval()
    assert set(models.arrays(Model.of(model).params)) == set(models.arrays(model))


class Noisy(eqx.Module):
    linear: eqx.nn.Linear
    parts: list

    def __init__(self, p):
        self.linear = eqx.nn.Linear(6, 4, key=jax.random.key(0))
        self.parts = [eqx.nn.Dropout(0.0), eqx.nn.Dropout(p)]

    def __call__(self, x):
        return self.parts[1](self.linear(x), key=jax.random.key(1))


@ci
def test_equinox_modules_in_training_are_refused():
    model, x = Noisy(0.5), np.ones((3, 6), np.float32)
    masks = prune(model, amount=0.5)
    with pytest.raises(ValueError, match=r"parts\.1 has inference = False; equinox") as error:
        moves(model, masks, x)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Dropout has inference = False"):
        Model.of(eqx.nn.Dropout(0.5))
    still = eqx.nn.inference_mode(model)
    expected = jax.vmap(model.linear)(x) - jax.vmap(masks.apply(model).linear)(x)
    np.testing.assert_allclose(
        moves(still, masks, x).distances, np.linalg.norm(expected, axis=1), rtol=1e-4
    )
    assert moves(Noisy(0.0), masks, x).n == 3  # which drops nothing


class Tied(nnx.Module):
    """`W2` is `W1`: one variable in two places."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.second = nnx.Linear(6, 6, rngs=rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


@ci
def test_a_variable_in_two_places_is_one_array():
    model = Tied(nnx.Rngs(0))
    names = ["first.bias", "first.kernel", "second.bias"]
    assert sorted(models.arrays(model)) == sorted(models.arrays(Model.of(model).params)) == names
    masks = prune(model, amount=0.5)
    assert list(masks) == ["first.kernel"] and masks.summary(model).masked.weights == 36
    pruned = masks.apply(model)
    assert pruned.second.kernel is pruned.first.kernel is not model.first.kernel
    assert int((pruned.second.kernel[...] == 0).sum()) == 18
    assert not (model.first.kernel[...] == 0).any()
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    expected = np.linalg.norm(np.asarray(model(x) - pruned(x)), axis=1)
    np.testing.assert_allclose(moves(model, masks, x).distances, expected, rtol=1e-4, atol=1e-5)
    for parts in ([model.first, model.second], {"a": model}):
        with pytest.raises(ValueError, match=r"kernel are one variable; the Flax module") as error:
            models.arrays(parts)
        assert "\n" not in str(error.value)


class SharedEquinox(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, key):
        layers = [eqx.nn.Linear(6, 6, key=key), eqx.nn.Linear(6, 6, key=key)]
        self.shared = eqx.nn.Shared(layers, lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, x):
        first, second = self.shared()
        return second(jax.nn.relu(first(x)))


@ci
def test_arrays_that_equinox_shares():
    model = SharedEquinox(jax.random.key(0))
    masks = prune(model, amount=0.5)
    assert list(masks) == ["shared.pytree.0.weight"]
    pruned = masks.apply(model)
    first, second = pruned.shared()
    assert second.weight is first.weight and int((first.weight == 0).sum()) == 18
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    expected = np.linalg.norm(outputs(model, x) - outputs(pruned, x), axis=1)
    np.testing.assert_allclose(moves(model, masks, x).distances, expected, rtol=1e-4, atol=1e-5)
    # One array in two places of a tree is two, as it is for JAX.
    layer = eqx.nn.Linear(6, 6, key=jax.random.key(0))
    assert list(prune([layer, layer], amount=0.5)) == ["0.weight", "1.weight"]


@ci
def test_a_tuple_of_two_modules_is_no_pair():
    key = jax.random.key(0)
    layers = eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)
    assert models.known(layers).paths == ("0.weight", "1.weight")
    assert list(prune(layers, amount=0.5)) == ["0.weight", "1.weight"]
    two = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    assert list(prune(two, amount=0.5)) == ["0.kernel", "1.kernel"]
    # But a function that Equinox has compiled is one, though it is a module as well.
    apply = eqx.filter_jit(lambda layer, x: jax.vmap(layer)(x))
    assert list(prune((layers[0], apply), amount=0.5)) == ["weight"]
    moved = moves((layers[0], apply), prune(layers[0], amount=0.0), np.ones((2, 3), np.float32))
    assert moved.largest == 0.0


def test_statistics_are_part_of_the_model():
    """A norm's running averages are arrays of the model: compared, kept, in float64 as well."""
    model, _, _ = trained("flax mlp")
    assert {"bn.mean", "bn.var"} <= set(models.arrays(Model.of(model).params))
    assert "bn.mean" not in prune(model, amount=0.8)


@ci
@pytest.mark.parametrize("name", ["flax mlp", "equinox cnn"])
def test_random_masks_of_a_trained_model(name):
    model, x, labels = trained(name)
    draw = lambda key: prune(model, "random", 0.1, key=key)
    tally = models.simulate_masks(model, draw, x[:100], labels[:100], eps=[1e-3, 1e3], trials=100)
    assert tally.counts(1e3).close == 100 and tally.counts(1e-3).far == 100
    low, high = tally.gap_quantile(0.5)
    assert 0 < low <= high < 1.02 * low


@ci
def test_a_package_that_was_never_imported_is_not_asked():
    code = (
        "import sys, numpy as np, jaxprune as jp\n"
        "p = {'w': np.ones((3, 2), np.float32)}\n"
        "jp.models.moves((p, lambda p, x: x @ p['w'].T), jp.models.prune(p, amount=0.5),"
        " np.ones((4, 2)))\n"
        "assert not {'flax', 'equinox'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import activations, laws, networks
from jaxprune.engine import keys
from jaxprune.studies import trained
from jaxprune.studies.trained import Recipe

DENSE = networks.dense((64, 64, 64, 10))
CONV = networks.convolutional((1, 8, 16), 8, 3, strides=(2, 1), outputs=10)
# Random bits compile slowly, layer by layer: where the depth is idle, two layers do.
SHALLOW = networks.dense((64, 16, 10))
SHORT = Recipe(steps=150, learning_rate=0.02)
CHUNK = 4


def _train(network, count, seed=0, **options):
    return trained.train(network, SHORT, count, seed, chunk=CHUNK, **options)


def test_digits_are_in_the_ball_and_the_longest_on_its_sphere():
    data = trained.digits()
    x = np.concatenate([data.train_x, data.test_x]).astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    assert data.train_x.dtype == data.test_x.dtype == np.float32
    assert data.train_y.dtype == data.test_y.dtype == np.int32
    assert norms.max() <= 1.0
    assert norms.max() == pytest.approx(1.0, abs=1e-5)


def test_the_split_is_complete_disjoint_and_stratified():
    from sklearn.datasets import load_digits

    data = trained.digits()
    assert (len(data.train_y), len(data.test_y)) == (1347, 450)
    raw, labels = load_digits(return_X_y=True)
    scale = raw.max() / max(data.train_x.max(), data.test_x.max())

    def rows(x, y):
        pixels = np.rint(x * scale).astype(int)
        return {(*image, label) for image, label in zip(pixels.tolist(), y.tolist(), strict=True)}

    # The bundled images are all different, so sets tell them apart.
    whole = rows(raw / scale, labels)
    train, test = rows(data.train_x, data.train_y), rows(data.test_x, data.test_y)
    assert len(whole) == 1797
    assert train | test == whole
    assert not train & test
    shares = np.bincount(data.test_y) / np.bincount(labels)
    assert np.abs(shares - 0.25).max() < 1 / np.bincount(labels).min()


def test_digits_are_shared_and_cannot_be_changed():
    assert trained.digits() is trained.digits()
    with pytest.raises(ValueError, match="read-only"):
        trained.digits().train_x[0, 0] = 1.0


def test_as_inputs_keeps_the_pixels_in_place():
    from sklearn.datasets import load_digits

    data = trained.digits()
    assert trained.as_inputs(DENSE, data.test_x).shape == (450, 64)
    images = trained.as_inputs(CONV, data.test_x)
    assert images.shape == (450, 1, 8, 8)
    # Zeros come first in the split, and the first bundled image is a zero.
    first = load_digits().images[0]
    np.testing.assert_allclose(images[0, 0] / images[0].max(), first / first.max(), rtol=1e-6)
    with pytest.raises(ValueError, match="64 pixels"):
        trained.as_inputs(networks.dense((3, 10)), data.test_x)


@pytest.mark.parametrize(
    "network",
    [pytest.param(DENSE, id="dense"), pytest.param(CONV, id="conv", marks=pytest.mark.ci)],
)
def test_few_steps_train_well(network):
    data = trained.digits()
    params = _train(network, 4)
    assert tuple(w.shape for w in params) == tuple((4, *s) for s in network.weight_shapes)
    assert all(w.dtype == jnp.float32 for w in params)
    x = trained.as_inputs(network, data.test_x)
    every = jax.vmap(jax.vmap(network, in_axes=(None, 0)), in_axes=(0, None))
    outputs = jax.jit(every)(params, x)
    accuracy = (np.asarray(outputs).argmax(axis=2) == data.test_y).mean(axis=1)
    assert accuracy.shape == (4,)
    assert accuracy.min() > 0.9


def test_a_network_does_not_depend_on_how_many_are_trained():
    done = []
    few, many = _train(DENSE, 3), _train(DENSE, 7, progress=done.append)
    assert done == [4, 7]
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[:3])


@pytest.mark.ci
def test_a_network_depends_on_the_chunk_by_rounding_only():
    # Longer training amplifies the rounding: see `train`.
    recipe = Recipe(steps=5)
    one, two = (trained.train(SHALLOW, recipe, 4, chunk=chunk) for chunk in (4, 2))
    for a, b in zip(one, two, strict=True):
        # Adam turns the rounding of a tiny gradient into a step of any size: leave out a few.
        assert np.quantile(np.abs(np.asarray(a) - np.asarray(b)), 0.99) < 1e-4


def test_initial_weights_are_the_same_bits_in_every_batch():
    root = keys.root_key(5)

    def some(count):
        ids = np.arange(count, dtype=np.uint32)
        one = lambda i: trained.initial(SHALLOW, SHORT, root, (jnp.uint32(0), i))
        return jax.jit(jax.vmap(one))(ids)

    for a, b, layer in zip(some(3), some(8), SHALLOW.layers, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_array_equal(a, b[:3])
        deviation = np.sqrt(SHORT.law.variance(*layer.fans))
        assert b.std() == pytest.approx(deviation, rel=0.2)


def test_networks_and_seeds_differ():
    a, b = _train(DENSE, 2, seed=0), _train(DENSE, 2, seed=1)
    for v, w in zip(map(np.asarray, a), map(np.asarray, b), strict=True):
        assert np.abs(v - w).max() > 0.1
        assert np.abs(v[0] - v[1]).max() > 0.1


def test_batches_are_the_networks_own():
    # A linear network that starts at almost 0 moves only along its batches' images.
    linear = networks.dense((64, 10), activations.identity)
    recipe = Recipe(steps=1, batch=1, law=laws.normal(1e-6))
    (w,) = trained.train(linear, recipe, 8, chunk=8)
    moved = np.abs(np.asarray(w)) > 1e-3
    assert len({m.tobytes() for m in moved}) > 1


@pytest.mark.ci
def test_divergence_is_returned_and_not_raised():
    recipe = Recipe(steps=3, law=laws.uniform(1e30))
    params = trained.train(SHALLOW, recipe, 2, chunk=2)
    assert not all(np.isfinite(np.asarray(w)).all() for w in params)


def test_a_recipe_is_hashable_and_says_what_it_does():
    assert hash(Recipe()) == hash(Recipe())
    assert Recipe() == Recipe() != SHORT
    assert str(Recipe(weight_decay=0.1)) == (
        "400 steps of Adam on 32 digits, learning rate 0.01, weight decay 0.1, "
        "from normal, scale he"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
    ],
)
def test_a_recipe_checks_its_numbers(name, value):
    with pytest.raises(ValueError, match=f"^{name} = [^\n]*$"):
        Recipe(**{name: value})


def test_train_checks_its_arguments():
    with pytest.raises(ValueError, match=r"^count = 0"):
        trained.train(DENSE, SHORT, 0)
    with pytest.raises(ValueError, match=r"^seed = -1"):
        trained.train(DENSE, SHORT, 1, -1)
    with pytest.raises(ValueError, match=r"^chunk = 0"):
        trained.train(DENSE, SHORT, 1, chunk=0)
    with pytest.raises(ValueError, match="outputs"):
        trained.train(networks.dense((64, 9)), SHORT, 1)
    with pytest.raises(ValueError, match="64 pixels"):
        trained.train(networks.dense((63, 10)), SHORT, 1)

"""Names of arrays in the pytrees people have, and choices among them."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import models
from jaxprune.models import Masks, Model, arrays, iterative, prune, replace, select


def ones(*shape):
    return np.ones(*shape, dtype=np.float32)


def zeros(*shape):
    return np.zeros(*shape, dtype=np.float32)


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    weight: jax.Array
    bias: jax.Array


class FlaxMLP(nnx.Module):
    """Of Flax's tutorial "NNX basics"."""

    def __init__(self, d_in, d_hidden, d_out, *, rngs):
        self.linear1 = nnx.Linear(d_in, d_hidden, rngs=rngs)
        self.dropout = nnx.Dropout(rate=0.1, rngs=rngs)
        self.bn = nnx.BatchNorm(d_hidden, rngs=rngs)
        self.linear2 = nnx.Linear(d_hidden, d_out, rngs=rngs)

    def __call__(self, x):
        return self.linear2(nnx.relu(self.dropout(self.bn(self.linear1(x)))))


def nested():
    array = lambda *shape: jax.device_put(np.ones(shape, np.float32))
    return {
        "layers": [Layer(array(3, 2), array(3)), Layer(array(3, 1), array(3))],
        "steps": jax.device_put(np.int32(7)),
        "scale": (np.ones(2),),
        "act": jnp.tanh,
        "count": 3,
    }


def test_names_in_nested_trees():
    assert sorted(arrays(nested())) == [
        "layers.0.bias",
        "layers.0.weight",
        "layers.1.bias",
        "layers.1.weight",
        "scale.0",
        "steps",
    ]
    assert list(select(nested())) == ["layers.0.weight", "layers.1.weight"]


def test_a_bare_array_and_a_tuple():
    assert list(arrays(ones((2, 2)))) == [""]
    assert list(arrays((ones(2), [ones(3)]))) == ["0", "1.0"]


@nnx.jit
def flax_mlp():
    return FlaxMLP(4, 5, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("of", [nnx.state, lambda m: m, lambda m: nnx.split(m)[1]])
def test_flax_variables_go_by_their_own_names(of):
    model = flax_mlp()
    assert list(select(of(model))) == ["linear1.kernel", "linear2.kernel"]
    assert {"bn.scale", "bn.mean", "dropout.rngs.key"} < set(arrays(of(model)))


def test_flax_there_and_back():
    graph, state = nnx.split(flax_mlp())
    model = nnx.merge(graph, replace(state, {"linear1.kernel": jax.device_put(zeros((4, 5)))}))
    assert not np.asarray(model.linear1.kernel[...]).any()
    assert np.asarray(model.linear2.kernel[...]).any()


def test_equinox_modules():
    model = eqx.filter_jit(lambda: eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0)))()
    assert list(select(model)) == [f"layers.{i}.weight" for i in range(3)]
    new = replace(model, {"layers.1.weight": zeros((8, 8))})
    assert new.activation is model.activation
    assert new.layers[0].weight is model.layers[0].weight
    assert not new.layers[1].weight.any()
    assert eqx.filter_jit(new)(ones(4)).shape == (3,)


def test_biases_of_equinox_convolutions_are_left_alone():
    """They have axes of length 1 behind the first."""
    model = eqx.filter_jit(lambda: eqx.nn.Conv2d(1, 4, 3, key=jax.random.key(0)))()
    assert model.bias.shape == (4, 1, 1)
    assert list(select(model)) == ["weight"]
    assert list(select(model, "bias")) == ["bias"]
    assert list(select({"b": ones((1, 3)), "c": ones((3, 1))})) == ["b", "c"]


class Images(eqx.Module):
    """Norms of images have scales of several axes; lists tell no name."""

    layers: list
    scaled: eqx.nn.WeightNorm

    def __init__(self, key):
        self.layers = [
            eqx.nn.Conv2d(1, 4, 3, key=key),
            eqx.nn.LayerNorm((4, 3, 3)),
            eqx.nn.GroupNorm(2, 4),
            eqx.nn.RMSNorm((4, 3, 3)),
            eqx.nn.Linear(36, 2, key=key),
        ]
        self.scaled = eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=key))


def test_norms_are_left_alone_by_their_class():
    model = eqx.filter_jit(lambda: Images(jax.random.key(0)))()
    assert model.layers[1].weight.shape == (4, 3, 3) and model.layers[2].weight.shape == (4,)
    assert arrays(model)["scaled.g"].ndim == 2
    weights = ["layers.0.weight", "layers.4.weight", "scaled.layer.weight"]
    assert list(select(model)) == weights
    assert list(select(eqx.filter(model, eqx.is_array))) == weights
    assert "layers.1.weight" in select(model, "layers.*.weight")
    with pytest.raises(ValueError, match="no floating array is chosen"):
        select(eqx.nn.LayerNorm((4, 3)))


def test_norms_of_flax_are_left_alone():
    class Gain(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(ones((2, 2)))

    class OwnNorm(Gain):
        pass

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = Gain(), OwnNorm()
            self.c = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
            self.c.scale = nnx.Param(ones((4, 1)))

    assert list(select(Net(nnx.Rngs(0)))) == ["a.gain"]


@pytest.mark.parametrize(
    "name",
    [
        "norm.weight",
        "block.0.layer_norm_2.weight",
        "encoder.LayerNorm.gamma",
        "params.BatchNorm_0.w",
        "resnet/~/batch_norm.offset",
        "bn1.weight",
        "h.3.ln_f.weight",
        "attn_ln.weight",
        "embed.scale",
        "embed.bias",
    ],
)
def test_norms_are_left_alone_by_their_names(name):
    w = ones((3, 2))
    assert list(select({name: w, "head.w": w})) == ["head.w"]


@pytest.mark.parametrize(
    "name", ["kernel", "vulnerable.w", "ebnf.w", "norm.proj.w", "layer_norm_block/linear.w", "b"]
)
def test_what_is_no_norm_is_pruned(name):
    assert list(select({name: ones((3, 2))})) == [name]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embed.embedding", (9, 4)),
        ("params.Embed_0.embedding", (9, 4)),
        ("embed/embeddings", (9, 4)),
        ("model.embed_tokens.weight", (9, 4)),
        ("transformer.wte.weight", (9, 4)),
        ("wpe", (9, 4)),
        ("pos_embedding", (1, 9, 4)),
        ("encoder.pos", (9, 4)),
        ("positional_encoding", (9, 4)),
        ("cls", (1, 4)),
        ("cls_token", (1, 1, 4)),
        ("prelu1.weight", (4, 1)),
        ("act.negative_slope", (4, 1, 1)),
        ("prelu.alpha", (1, 1, 28)),
        ("stage.alpha", (1, 1, 28)),
        ("stage.table", (1, 9, 4)),
        ("conv2_d.b", (4, 1, 1)),
    ],
)
def test_what_is_looked_up_or_added_is_left_alone(name, shape):
    params = {name: ones(shape), "head.w": ones((3, 2))}
    assert list(select(params)) == ["head.w"]
    assert list(select(params, name)) == [name]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embedding.kernel", (16, 16, 3, 8)),
        ("embedding.kernel", (6, 8)),
        ("patch_embedding.weight", (8, 3, 16, 16)),
        ("embed.proj.weight", (6, 8)),
        ("token_mixing.weight", (6, 8)),
        ("conv.kernel", (1, 1, 28)),
        ("conv1_d.w", (1, 1, 28)),
        ("conv.weight", (28, 1, 1)),
        ("head.weight", (1, 28)),
        ("out", (28, 1)),
        ("attention.query", (8, 2, 4)),
        ("possible.w", (6, 8)),
        ("closing", (6, 8)),
    ],
)
def test_matrices_and_kernels_are_pruned(name, shape):
    assert list(select({name: ones(shape)})) == [name]


class Text(eqx.Module):
    """Equinox calls the array of an embedding `weight`, as that of a matrix."""

    words: eqx.nn.Embedding
    embed: eqx.nn.Linear
    prelu: eqx.nn.PReLU

    def __init__(self, key):
        self.words = eqx.nn.Embedding(9, 4, key=key)
        self.embed = eqx.nn.Linear(4, 3, key=key)
        self.prelu = eqx.nn.PReLU(0.1)


def test_embeddings_are_left_alone_by_their_class():
    assert list(select(eqx.filter_jit(lambda: Text(jax.random.key(0)))())) == ["embed.weight"]


def test_choices():
    params = nested()
    assert list(select(params, "layers.0.bias")) == ["layers.0.bias"]
    assert list(select(params, "layers.1.*")) == ["layers.1.weight", "layers.1.bias"]
    both = ["*.1.weight", "scale.0"]
    assert set(select(params, both)) == {"layers.1.weight", "scale.0"}
    assert list(select(params, lambda path, x: x.shape == (3, 1))) == ["layers.1.weight"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("layers.0.wieght", "did you mean 'layers.0.weight'"),
        (["layers.0.weight", "nothing*"], "nothing"),
        ("steps", "steps"),
        (lambda path, x: False, "no floating array is chosen"),
        ([], "no floating array is chosen"),
        (3, "names, patterns or a predicate"),
        ([3], "layers = 3"),
    ],
)
def test_bad_choices(layers, said):
    with pytest.raises(ValueError, match=said) as error:
        select(nested(), layers)
    assert "\n" not in str(error.value)


def test_the_parameters_of_a_pair_and_of_a_model():
    tree, apply = {"w": ones((3, 2)), "b": np.zeros(3)}, lambda params, x: x
    for model in ((tree, apply), Model(apply, tree)):
        assert list(arrays(model)) == ["b", "w"]
        masks = prune(model, amount=0.5)
        assert list(masks) == ["w"] and masks.summary(model).masked.kept == 3
        pruned = masks.apply(model)
        assert type(pruned) is type(model) and arrays(pruned)["w"].sum() == 3
        assert Model.of(pruned).apply is apply and arrays(pruned)["b"] is tree["b"]
        assert iterative(model, "magnitude", 0.5, 2).params.keys() == tree.keys()
    seen = []
    score = lambda params: seen.append(params) or {"w": ones((3, 2))}
    prune((tree, apply), score, 0.5)
    assert seen[0] is tree  # a function of the parameters gets them alone


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ([1.0, 2.0], "scale.0: an array is needed, not a list"),
        (3.0, "scale.0: an array is needed, not a float"),
        (np.ones(2, np.float32), r"scale.0 is float64 of shape \(2,\): float32 of shape"),
        (np.ones(2, int), "int64 of shape"),
    ],
)
def test_what_replaces_an_array_is_like_it(new, said):
    with pytest.raises(ValueError, match=said) as error:
        replace(nested(), {"scale.0": new})
    assert "\n" not in str(error.value)


def test_long_doubles_are_refused():
    params = {"w": np.ones((2, 2), np.longdouble)}
    if params["w"].dtype == np.float64:
        pytest.skip("long doubles are doubles here")
    apply = lambda p, x: x @ p["w"].T
    move = lambda p: models.moves((p, apply), Masks(), np.ones((3, 2)))
    for use in (select, lambda p: prune(p, amount=0.5), models.magnitude, models.known, move):
        with pytest.raises(ValueError, match="w is float128: float64 or narrower") as error:
            use(params)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="x is float128: float64 or narrower"):
        models.moves(({"w": np.ones((2, 2))}, apply), Masks(), np.ones((3, 2), np.longdouble))


def test_bad_replacements():
    with pytest.raises(ValueError, match=r"did you mean 'layers\.0\.weight'"):
        replace(nested(), {"layers.0.weigth": zeros((3, 2))})
    with pytest.raises(ValueError, match="does not fit"):
        replace(nested(), {"layers.0.weight": zeros((2, 3))})


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two leaves"):
        arrays({"a.b": ones(1), "a": {"b": ones(1)}})

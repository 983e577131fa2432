"""Masks: what they zero, what they leave alone, and the files they are kept in."""

import json
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from safetensors.numpy import save_file

from jaxprune.models import Masks, arrays, prune


class FlaxMLP(nnx.Module):
    def __init__(self, rngs):
        self.linear1 = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.linear2 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear2(nnx.relu(self.norm(self.linear1(x))))


def model():
    rng = np.random.default_rng(0)
    return {
        "a": jax.device_put(rng.normal(size=(4, 6)).astype(np.float32)),
        "b": {
            "w": jax.device_put(rng.normal(size=(5, 3)).astype(jnp.bfloat16)),
            "bias": jax.device_put(np.ones(5, np.float32)),
        },
        "host": rng.normal(size=(3, 3)),
        "key": jax.random.key(1),
        "steps": jax.device_put(np.int32(2)),
    }


def some_masks(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 6), "b.w": (5, 3), "host": (3, 3)}
    return Masks({path: jax.device_put(rng.random(shape) < 0.5) for path, shape in shapes.items()})


def test_apply_zeroes_in_place_and_keeps_the_rest():
    params, masks = model(), some_masks()
    pruned = masks.apply(params)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    for path, x in arrays(params).items():
        after = arrays(pruned)[path]
        if path not in masks:
            assert after is x
        else:
            assert after.dtype == x.dtype
            expected = np.where(np.asarray(masks[path]), np.asarray(x), 0)
            np.testing.assert_array_equal(np.asarray(after), expected)
    assert isinstance(pruned["host"], np.ndarray) and pruned["host"].dtype == np.float64


def test_removed_nan_is_zero():
    masks = Masks({"w": np.array([[True, False]])})
    w = np.array([[1.0, np.nan]], np.float32)
    for of in (np.asarray, jax.device_put):
        assert masks.apply({"w": of(w)})["w"].tolist() == [[1.0, 0.0]]


def test_apply_under_jit_and_vmap():
    params, masks = model(), some_masks()
    params.pop("key")
    np.testing.assert_array_equal(
        jax.jit(Masks.apply)(masks, params)["a"], masks.apply(params)["a"]
    )
    many = jax.tree.map(lambda m: np.stack([m, ~np.asarray(m)]), masks)
    assert isinstance(many, Masks)

    @jax.jit
    @jax.vmap
    def each(masks):
        return masks.apply({"a": params["a"], "b": params["b"]})["a"]

    both = np.asarray(each(Masks({path: many[path] for path in ("a", "b.w")})))
    np.testing.assert_array_equal(both.sum(0), params["a"])


def test_types_stay_or_are_refused_where_masks_are_traced():
    params, masks = {"host": np.arange(9.0).reshape(3, 3)}, Masks({"host": np.eye(3, dtype=bool)})
    apply = jax.jit(lambda masks: masks.apply(params))
    with pytest.raises(ValueError, match=r"host is float64: jax\.enable_x64 is needed"):
        apply(masks)
    with jax.enable_x64(True):
        pruned = apply(masks)["host"]
    assert pruned.dtype == np.float64
    np.testing.assert_array_equal(pruned, np.diag([0.0, 4.0, 8.0]))


@pytest.mark.ci
def test_equinox_model():
    net = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    masks = prune(net, amount=0.5)
    pruned = masks.apply(net)
    assert list(masks) == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    assert pruned.layers[0].bias is net.layers[0].bias
    assert int((pruned.layers[1].weight == 0).sum()) == 32
    y = eqx.filter_jit(lambda net, x: jax.vmap(net)(x))(pruned, jnp.ones((2, 4)))
    assert y.shape == (2, 3)


@pytest.mark.ci
def test_flax_model():
    graph, params, rest = nnx.split(FlaxMLP(nnx.Rngs(0)), nnx.Param, ...)
    masks = prune(params, amount=0.25)
    assert list(masks) == ["linear1.kernel", "linear2.kernel"]
    net = nnx.merge(graph, masks.apply(params), rest)
    assert int((net.linear1.kernel[...] == 0).sum()) == 8
    assert net(jnp.ones((2, 4))).shape == (2, 3)
    assert masks.summary(params).masked.kept == 24 + 18


def test_intersection():
    one, two = some_masks(0), some_masks(1)
    both = one & two
    for path in both:
        np.testing.assert_array_equal(both[path], np.asarray(one[path]) & np.asarray(two[path]))
    only = Masks({"c": np.ones(2, bool)})
    assert set(one & only) == {*one, "c"} and (one & only)["a"] is one["a"]
    with pytest.raises(ValueError, match=r"masks of a: \(4, 6\) and \(2,\) differ"):
        one & Masks({"a": np.ones(2, bool)})


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"aa": np.ones((4, 6), bool)}, "did you mean 'a'"),
        ({"a": np.ones((6, 4), bool)}, r"\(6, 4\) does not fit \(4, 6\)"),
    ],
)
def test_masks_that_do_not_fit(masks, said):
    for use in (Masks.apply, Masks.check, Masks.summary):
        with pytest.raises(ValueError, match=said):
            use(Masks(masks), model())


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"a": np.ones(3)}, "mask of a: a Boolean array"),
        ({"a": [True, False]}, "mask of a: a Boolean array"),
        (5, "masks = 5: a dictionary"),
        ("a", "masks = 'a': a dictionary"),
        ({1: np.ones(3, bool), "a": np.ones(3, bool)}, "name of a mask = 1: a string"),
    ],
)
def test_masks_are_boolean_arrays_by_name(masks, said):
    with pytest.raises(ValueError, match=said) as error:
        Masks(masks)
    assert "\n" not in str(error.value)


def test_summary_counts():
    params, masks = model(), some_masks()
    summary = masks.summary(params)
    assert [row.path for row in summary.pruned] == ["a", "b.w", "host"]
    for row in summary.pruned:
        assert row.weights == masks[row.path].size and row.kept == int(
            np.asarray(masks[row.path]).sum()
        )
        assert row.sparsity == pytest.approx(1 - row.kept / row.weights)
    assert [row.path for row in summary.untouched] == ["b.bias", "key", "steps"]
    assert summary.total.weights == 24 + 15 + 9 + 5  # neither a key nor a counter
    assert (
        summary.total.weights - summary.total.kept == summary.masked.weights - summary.masked.kept
    )
    text = str(summary)
    assert "untouched: 3 arrays of 5 weights, 0 removed: b.bias, key, steps" in text
    assert "b.w" in text and "5x3" in text and "%" in text
    assert len({len(line) for line in text.splitlines()[:-1]}) == 1


def test_summary_finds_what_was_touched():
    params, masks = model(), some_masks()
    good = masks.apply(params)
    assert masks.summary(params, good) == masks.summary(params)
    biased = good | {"b": good["b"] | {"bias": -np.asarray(good["b"]["bias"])}}
    with pytest.raises(ValueError, match=r"b\.bias was changed without a mask"):
        masks.summary(params, biased)
    with pytest.raises(ValueError, match="a is not what its mask says"):
        masks.summary(params, good | {"a": params["a"]})
    with pytest.raises(ValueError, match="key is in only one"):
        masks.summary(params, {k: x for k, x in good.items() if k != "key"})


def test_summary_says_how_many_zeros_the_model_has():
    """Those of the model as it is given, whatever the masks say."""
    params, masks = model(), some_masks()
    tuned = params | {"host": np.array([[0.0, -0.0, np.nan], [1, 2, 3], [4, 5, 6]])}
    zeros = lambda p: {row.path: row.zeros for row in masks.summary(p).pruned}
    assert zeros(params) == {"a": 0, "b.w": 0, "host": 0}
    assert zeros(tuned) == {"a": 0, "b.w": 0, "host": 2}
    removed = {row.path: row.weights - row.kept for row in masks.summary(params).pruned}
    assert zeros(masks.apply(params)) == removed
    line = str(masks.summary(tuned)).splitlines()[3].split()
    assert line[0] == "host" and line[-1] == "22.22%"
    assert masks.summary(tuned).total.zeros == 2


def test_a_checkpoint_obeys_its_masks_or_not():
    params = {"w": np.arange(1.0, 7.0).reshape(2, 3), "v": np.ones(2), "bias": np.ones(3)}
    masks = Masks({"w": np.array([[1, 0, 1], [0, 0, 1]], bool), "v": np.ones(2, bool)})
    assert masks.violations(params) == {"w": 3}
    obeyed = masks.apply(params)
    assert masks.violations(obeyed) == {} == Masks().violations(params)
    obeyed["w"][0, 1], obeyed["w"][1, 0] = np.nan, -0.0
    assert masks.violations((obeyed, len)) == {"w": 1}
    with pytest.raises(ValueError, match="mask of w"):
        masks.violations({**params, "w": np.ones((3, 2))})


def test_the_tree_has_the_structure_of_the_model():
    params = model() | {"name": "mlp"}
    masks = some_masks()
    tree = masks.tree((params, len))
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    for name, kept in arrays(tree).items():
        expected = masks.get(name, np.ones(arrays(params)[name].shape, bool))
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(expected))
    assert tree["name"] == True  # noqa: E712
    zeroed = jax.tree.map(lambda w, kept: w * np.asarray(kept), params["host"], tree["host"])
    np.testing.assert_array_equal(zeroed, masks.apply(params)["host"])
    with pytest.raises(ValueError, match="did you mean"):
        masks.tree(params["b"])


@pytest.mark.ci
def test_the_tree_goes_into_other_libraries():
    params = {"a": np.ones((2, 3), np.float32), "b": {"bias": np.ones(3, np.float32)}}
    masks = Masks({"a": np.eye(2, 3, dtype=bool)})
    tree = masks.tree(params)
    read = serialization.from_bytes(tree, serialization.to_bytes(tree))
    assert jax.tree.all(jax.tree.map(np.array_equal, read, tree))

    # Only arrays of which something is removed are decayed, and what is removed stays zero.
    some = jax.tree.map(lambda kept: not kept.all(), tree)
    keep = lambda updates, _: jax.tree.map(lambda u, kept: u * kept, updates, tree)
    optimizer = optax.chain(
        optax.masked(optax.add_decayed_weights(0.5), some), optax.stateless(keep)
    )
    pruned = masks.apply(params)
    updates, _ = optimizer.update(pruned, optimizer.init(pruned), pruned)
    np.testing.assert_array_equal(updates["a"], 1.5 * np.eye(2, 3))
    np.testing.assert_array_equal(updates["b"]["bias"], np.ones(3))

    net = nnx.jit(lambda: FlaxMLP(nnx.Rngs(0)))()
    masks = prune(net, amount=0.5)
    state = nnx.state(net, nnx.Param)
    kept = masks.tree(state)
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    assert masks.violations(jax.tree.map(lambda w, k: w * k, state, kept)) == {}
    assert set(masks.violations(net)) == set(masks)
    of_module = masks.tree(net)
    assert isinstance(of_module, FlaxMLP)
    assert (np.asarray(of_module.linear1.kernel[...]) == np.asarray(masks["linear1.kernel"])).all()


def test_files(tmp_path):
    masks = some_masks() & Masks({"scalar": jax.device_put(True), "empty": np.ones((0, 3), bool)})
    masks.save(tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    again = Masks.load(tmp_path / "m.safetensors")
    assert again == masks and again != some_masks(1)
    assert jax.tree.structure(again) == jax.tree.structure(masks)
    assert Masks.load(_saved(tmp_path, some_masks()), model()) == some_masks()
    assert Masks.load(_saved(tmp_path, Masks())) == Masks()
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "none")


def test_files_are_bits_and_those_of_bytes_are_read(tmp_path):
    masks = Masks({"w": np.random.default_rng(0).random((100, 83)) < 0.5, "v": np.ones(3, bool)})
    path = _saved(tmp_path, masks)
    assert path.stat().st_size < 8300 / 8 + 300
    save_file(dict(masks), tmp_path / "old", {"jaxprune": "masks"})
    assert Masks.load(tmp_path / "old") == masks == Masks.load(path)


def test_a_name_that_no_file_can_have(tmp_path):
    masks = Masks({"__metadata__": np.ones(2, bool)})
    with pytest.raises(ValueError, match="mask = '__metadata__'"):
        masks.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(OSError, match="m"):
        some_masks().save(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _saved(tmp_path, masks):
    masks.save(tmp_path / "other")
    return tmp_path / "other"


def test_a_file_that_does_not_fit(tmp_path):
    path = _saved(tmp_path, some_masks())
    with pytest.raises(ValueError, match="does not fit"):
        Masks.load(path, model() | {"a": np.ones((6, 4))})
    with pytest.raises(ValueError, match="did you mean"):
        Masks.load(path, {"a": np.ones((4, 6)), "b.ww": np.ones((5, 3)), "host": np.ones((3, 3))})


def refused(path, said=None):
    with pytest.raises(ValueError, match=said) as error:
        Masks.load(path)
    assert "\n" not in str(error.value)


def test_foreign_files(tmp_path):
    path = tmp_path / "f"
    save_file({"w": np.ones((2, 2), bool)}, path)
    refused(path, "not of masks")
    save_file({"w": np.ones((2, 2), bool)}, path, {"jaxprune": "other"})
    refused(path, "not of masks")
    save_file({"w": np.ones((2, 2), np.float32)}, path, {"jaxprune": "masks"})
    refused(path, "w is no Boolean array")
    bits, notes = {"w": np.array([0b1010_0000], np.uint8)}, {"jaxprune": "masks"}
    save_file(bits, path, notes | {"shapes": '{"w": [2, 2]}'})
    assert Masks.load(path) == Masks({"w": np.array([[1, 0], [1, 0]], bool)})
    for shape in ("[2]", "[9]", "[]", "[0]"):
        save_file(bits, path, notes | {"shapes": f'{{"w": {shape}}}'})
        refused(path, "w is no Boolean array")
    none = {"w": np.zeros(0, np.uint8)}
    save_file(none, path, notes | {"shapes": f'{{"w": [0, {2**62}, 8, 8]}}'})
    refused(path, "w is no Boolean array")
    for shapes in (
        "",
        "[]",
        "{}",
        '{"v": [4]}',
        '{"w": 4}',
        '{"w": [-4]}',
        '{"w": [4.0]}',
        "[" * 9999,
    ):
        save_file(bits, path, notes | {"shapes": shapes})
        refused(path, "its shapes are not those of its arrays")
    for data in (b"", b"\0", b"hello world, this is no tensor", struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(data)
        refused(path)
    for kind in ("BF16", "F8_E4M3", "BOOLE"):
        entry = {"w": {"dtype": kind, "shape": [1], "data_offsets": [0, 2]}}
        header = json.dumps({"__metadata__": {"jaxprune": "masks"}} | entry).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\1\1")
        refused(path)


def test_damaged_files(tmp_path):
    """Cut anywhere, or a byte changed anywhere: one line, or masks of Boolean arrays."""
    path = _saved(tmp_path, some_masks())
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        refused(path)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x24
        path.write_bytes(changed)
        try:
            masks = Masks.load(path)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert all(np.asarray(mask).view(np.uint8).max() <= 1 for mask in masks.values())

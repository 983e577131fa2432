"""One table: libraries, kinds of network, floats; each member is pruned, told of, compared, kept.

Members of libraries are in the ci tier and skipped where a library is not installed; a few written
by hand stand for them in the default tier.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.models import Masks, Model, moves, prune, select

N, LENGTH, WIDTH, HIDDEN, OUT, WORDS = 100, 3, 4, 6, 2, 11
SIDE = 6


def inputs(kind, dtype):
    """Images with channels last, sequences, tokens."""
    rng = np.random.default_rng(0)
    if kind == "attention":
        return rng.integers(WORDS, size=(N, LENGTH)).astype(np.int32)
    shape = {"mlp": (WIDTH,), "cnn": (SIDE, SIDE, 1)}.get(kind, (LENGTH, WIDTH))
    return rng.normal(size=(N, *shape)).astype(dtype)


def cast(params, dtype):
    floats = lambda w: w.astype(dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w
    return jax.tree.map(floats, params)


def types(dtype):
    """As Flax's users say it: nothing for float32."""
    return {} if dtype == np.float32 else dict(dtype=dtype, param_dtype=dtype)


def plain(kind, dtype):
    """Functions written by hand; the state of a recurrence is float32."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    gates = {"lstm": 4, "gru": 3}[kind]
    params = {
        "inner": {"w": draw(WIDTH, gates * HIDDEN), "b": draw(gates * HIDDEN)},
        "state": {"w": draw(HIDDEN, gates * HIDDEN)},
        "last": {"w": draw(HIDDEN, OUT)},
    }

    def lstm(p, state, x):
        h, c = state
        i, f, o, g = jnp.split(x @ p["inner"]["w"] + p["inner"]["b"] + h @ p["state"]["w"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    def gru(p, state, x):
        (h,) = state
        into = jnp.split(x @ p["inner"]["w"] + p["inner"]["b"], 3)
        of_h = jnp.split(h @ p["state"]["w"], 3)
        r, z = (jax.nn.sigmoid(a + b) for a, b in zip(into[:2], of_h[:2], strict=True))
        return ((1 - z) * h + z * jnp.tanh(into[2] + r * of_h[2]),), None

    step, states = (lstm, 2) if kind == "lstm" else (gru, 1)

    def one(p, x):
        zero = (jnp.zeros(HIDDEN, jnp.float32),) * states
        state, _ = jax.lax.scan(lambda s, part: step(p, s, part), zero, x)
        return (state[0] @ p["last"]["w"]).astype(x.dtype)

    return params, lambda p, x: jax.vmap(lambda part: one(p, part))(x)


def of_nnx(kind, dtype):
    nnx = pytest.importorskip("flax.nnx")

    class MLP(nnx.Module):
        def __init__(self, more):
            self.first, self.last = (
                nnx.Linear(WIDTH, HIDDEN, **more),
                nnx.Linear(HIDDEN, OUT, **more),
            )

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    class CNN(nnx.Module):
        def __init__(self, more):
            self.conv = nnx.Conv(1, HIDDEN, (3, 3), **more)
            self.norm = nnx.BatchNorm(HIDDEN, use_running_average=True, **more)
            self.last = nnx.Linear(HIDDEN, OUT, **more)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    class Recurrent(nnx.Module):
        def __init__(self, more):
            cell = nnx.LSTMCell if kind == "lstm" else nnx.GRUCell
            start = nnx.initializers.lecun_normal()  # LAPACK has no orthogonal one in bfloat16
            self.rnn = nnx.RNN(cell(WIDTH, HIDDEN, recurrent_kernel_init=start, **more))
            self.last = nnx.Linear(HIDDEN, OUT, **more)

        def __call__(self, x):
            return self.last(self.rnn(x)[:, -1])

    class Attention(nnx.Module):
        def __init__(self, more):
            self.embed = nnx.Embed(WORDS, HIDDEN, **more)
            self.norm = nnx.LayerNorm(HIDDEN, **more)
            self.attention = nnx.MultiHeadAttention(2, HIDDEN, decode=False, **more)
            self.last = nnx.Linear(HIDDEN, OUT, **more)

        def __call__(self, x):
            h = self.embed(x)
            return self.last((h + self.attention(self.norm(h))).mean(1))

    make = {"mlp": MLP, "cnn": CNN, "attention": Attention}.get(kind, Recurrent)
    return nnx.jit(lambda: make({**types(dtype), "rngs": nnx.Rngs(0)}))()


def of_linen(kind, dtype):
    linen = pytest.importorskip("flax.linen")
    more = types(dtype)

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            if kind == "mlp":
                h = linen.relu(linen.Dense(HIDDEN, **more)(x))
            elif kind == "cnn":
                h = linen.Conv(HIDDEN, (3, 3), **more)(x)
                h = linen.BatchNorm(use_running_average=True, **more)(h)
                h = linen.relu(h).mean((1, 2))
            elif kind == "attention":
                h = linen.Embed(WORDS, HIDDEN, **more)(x)
                more_heads = dict(num_heads=2, deterministic=True, **more)
                normed = linen.LayerNorm(**more)(h)
                h = (h + linen.MultiHeadDotProductAttention(**more_heads)(normed)).mean(1)
            else:
                cell = linen.OptimizedLSTMCell if kind == "lstm" else linen.GRUCell
                start = linen.initializers.lecun_normal()
                h = linen.RNN(cell(HIDDEN, recurrent_kernel_init=start, **more))(x)[:, -1]
            return linen.Dense(OUT, **more)(h)

    module = Net()
    variables = jax.jit(module.init)(jax.random.key(0), inputs(kind, dtype)[:1])
    return variables, module.apply


def of_equinox(kind, dtype):
    eqx = pytest.importorskip("equinox")
    first, second, third = jax.random.split(jax.random.key(0), 3)

    class CNN(eqx.Module):
        conv: eqx.nn.Conv2d
        prelu: eqx.nn.PReLU
        last: eqx.nn.Linear

        def __call__(self, x):
            return self.last(self.prelu(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2)))

    class Recurrent(eqx.Module):
        cell: eqx.Module
        last: eqx.nn.Linear

        def __call__(self, x):
            zero = jnp.zeros(HIDDEN, jnp.float32)
            start = (zero, zero) if kind == "lstm" else zero
            state, _ = jax.lax.scan(lambda s, part: (self.cell(part, s), None), start, x)
            return self.last(jax.tree.leaves(state)[0].astype(x.dtype))

    class Attention(eqx.Module):
        embed: eqx.nn.Embedding
        attention: eqx.nn.MultiheadAttention
        last: eqx.nn.Linear

        def __call__(self, x):
            h = jax.vmap(self.embed)(x)
            return self.last((h + self.attention(h, h, h)).mean(0))

    last = lambda: eqx.nn.Linear(HIDDEN, OUT, key=third)
    make = {
        "mlp": lambda: eqx.nn.MLP(WIDTH, OUT, HIDDEN, 1, key=first),
        "cnn": lambda: CNN(eqx.nn.Conv2d(1, HIDDEN, 3, key=first), eqx.nn.PReLU(), last()),
        "lstm": lambda: Recurrent(eqx.nn.LSTMCell(WIDTH, HIDDEN, key=first), last()),
        "gru": lambda: Recurrent(eqx.nn.GRUCell(WIDTH, HIDDEN, key=first), last()),
        "attention": lambda: Attention(
            eqx.nn.Embedding(WORDS, HIDDEN, key=first),
            eqx.nn.MultiheadAttention(2, HIDDEN, key=second),
            last(),
        ),
    }
    arrays, rest = eqx.partition(eqx.filter_jit(make[kind])(), eqx.is_array)
    return eqx.combine(cast(arrays, dtype), rest)


def of_haiku(kind, dtype):
    hk = pytest.importorskip("haiku")

    def net(x):
        if kind == "mlp":
            return hk.nets.MLP([HIDDEN, OUT])(x)
        if kind == "cnn":
            h = jax.nn.relu(hk.Conv2D(HIDDEN, 3)(x)).mean((1, 2))
        elif kind == "attention":
            h = hk.Embed(WORDS, HIDDEN)(x)
            start = hk.initializers.VarianceScaling(1.0)
            attention = hk.MultiHeadAttention(2, 3, w_init=start, model_size=HIDDEN)
            h = (h + attention(h, h, h)).mean(1)
        else:
            core = (hk.LSTM if kind == "lstm" else hk.GRU)(HIDDEN)
            start = core.initial_state(len(x))
            out, _ = hk.dynamic_unroll(core, x, start, time_major=False)
            h = out[:, -1].astype(x.dtype)
        return hk.Linear(OUT)(h)

    net = hk.without_apply_rng(hk.transform(net))
    params = jax.jit(net.init)(jax.random.key(0), inputs(kind, dtype)[:1])
    return cast(params, dtype), net.apply


KINDS = ("mlp", "cnn", "lstm", "gru", "attention")
TYPES = (np.float32, jnp.bfloat16)
LIBRARIES = {"nnx": of_nnx, "linen": of_linen, "equinox": of_equinox, "haiku": of_haiku}
PLAIN = [("lstm", np.float32), ("gru", jnp.bfloat16)]
MEMBERS = [pytest.param(plain, *member, id=f"plain-{member[0]}") for member in PLAIN] + [
    pytest.param(make, kind, dtype, id=f"{name}-{kind}-{np.dtype(dtype)}", marks=pytest.mark.ci)
    for (name, make), kind, dtype in itertools.product(LIBRARIES.items(), KINDS, TYPES)
]


@pytest.fixture(autouse=True)
def as_others_have_it():
    """Other people's models promote ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(("make", "kind", "dtype"), MEMBERS)
def test_every_network_is_pruned_and_decided(make, kind, dtype, tmp_path):
    model, x = make(kind, dtype), inputs(kind, dtype)
    masks = prune(model, "magnitude", 0.5)
    weights = select(model)
    assert len(weights) >= 2 and not any("bias" in name or "embed" in name for name in weights)

    summary = masks.summary(model)
    assert {row.path for row in summary.pruned} == set(weights)
    for row in summary.pruned:
        assert row.kept == row.weights - round(0.5 * row.weights)
    pruned = masks.apply(model)
    assert set(masks.violations(model)) == set(weights) and not masks.violations(pruned)

    masks.save(tmp_path / "masks")
    assert Masks.load(tmp_path / "masks", model) == masks

    moved = moves(model, masks, x)
    before, after = (
        np.asarray(jax.jit(m.apply)(m.params, x)).astype(np.float64)
        for m in (Model.of(model), Model.of(pruned))
    )
    rounding = float(jnp.finfo(dtype).eps) * 20
    expected = np.linalg.norm(before - after, axis=1)
    np.testing.assert_allclose(moved.distances, expected, atol=rounding * moved.sizes.max())
    assert moved.floats == np.dtype(dtype).name and f"as computed in {moved.floats}" in str(moved)
    assert bool(moved.float64_note) == np.isnan(moved.float64_error)
    assert moved.within(2 * expected.max()).verdict == "holds"
    assert moved.within(0.01 * np.median(expected)).verdict == "violated"
    assert np.isfinite(moved.quantile(0.2)).all()

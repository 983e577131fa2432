"""Keys of trials: none twice, no number that wraps, none used for two purposes."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

import jaxprune as jp
from jaxprune import bits, engine, inputs
from jaxprune.engine import keys, trial
from jaxprune.engine.blocks import words
from jaxprune.studies import threshold, trained

PURPOSES = {
    name: value
    for name, value in vars(keys).items()
    if name.isupper()
    and name not in ("THREEFRY", "STREAM_VERSION", "TRIAL_PURPOSES", "MAX_SEED", "MAX_TRIALS")
}
TWO, HUGE = jp.Count(2), np.int64(2**40)
SMALL = jp.UnitBall(samples=2, starts=1, steps=1)


def some_run(amount=TWO, **arguments):
    return engine.prepare(
        jp.dense((3, 4, 2)), jp.uniform(), jp.random, amount, layers="all", domain=SMALL,
        **arguments,
    )  # fmt: skip


@jax.jit
@jax.vmap
def all_keys(high, low):
    drawn = keys.trial_keys(keys.root_key(5), keys.TRIAL_PURPOSES, 2, (high, low))
    return jax.random.key_data(drawn)


TOGETHER = 2**16


def packed(high, low):
    """Keys as uint64, `(trials, purposes * layers)`; one program, whatever the number of trials."""
    count = len(high)
    size = -(-count // TOGETHER) * TOGETHER
    high, low = np.resize(high, size), np.resize(low, size)
    parts = [
        np.asarray(all_keys(high[i : i + TOGETHER], low[i : i + TOGETHER]))
        for i in range(0, size, TOGETHER)
    ]
    drawn = np.concatenate(parts)[:count].astype(np.uint64)
    return ((drawn[..., 0] << np.uint64(32)) | drawn[..., 1]).reshape(count, -1)


@pytest.mark.parametrize("count", [2**17, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_no_key_of_many_trials_is_there_twice(count):
    """All layers and purposes, across 2^32. Keys of 64 bits collide with probability < 1e-6."""
    drawn = packed(*words(2**32 - count // 2, count))
    assert np.unique(drawn).size == drawn.size == 6 * count
    # Trial ids that lose their high word have keys twice, and are seen.
    high, low = words(2**32 - 500, 1000)
    again = np.concatenate([packed(0 * high, low), packed(*words(0, 500))])
    assert np.unique(again).size == again.size - 6 * 500


def test_trials_of_two_parts_are_uncorrelated():
    """Parts 1 and 2 of 2, blocks of 64, 131,072 trials each; 12 correlations, false alarm 2e-5."""
    count, block, most = 2**18, 64, stats.norm.isf(0.5e-6)
    ids = np.arange(count).reshape(-1, block)
    drawn = packed(*words(0, count))

    def deviations(one, other):
        values = lambda part: [(part & np.uint64(2**32 - 1)) / 2.0**32, part / 2.0**64]
        pairs = zip(np.hstack(values(one)).T, np.hstack(values(other)).T, strict=True)
        return [abs(stats.pearsonr(a, b).statistic) * np.sqrt(len(a)) for a, b in pairs]

    first, second = (drawn[ids[i::2].ravel()] for i in (0, 1))
    assert max(deviations(first, second)) < most
    # A part that shares one trial in fifty with the other is seen.
    shared = np.where(np.arange(len(first))[:, None] % 50 == 0, first, second)
    assert max(deviations(first, shared)) > most


def test_ids_beyond_32_bits_draw_other_weights_and_masks():
    run = some_run(trials=keys.MAX_TRIALS)
    for far in (*range(2**32 - 2, 2**32 + 3), 2**33, 2**40):
        weights, masks = engine.draw(run, far)
        if far < 2**32:
            continue
        near_weights, near_masks = engine.draw(run, far % 2**32)
        for a, b in zip(weights, near_weights, strict=True):
            assert (a != b).all()
        assert any((a != b).any() for a, b in zip(masks, near_masks, strict=True))
        weights_again, _ = engine.draw(run, far)
        np.testing.assert_array_equal(weights[0], weights_again[0])


@pytest.mark.parametrize("seed", [2**32, 2**64, -1, 1.0, True, HUGE])
def test_a_seed_that_would_wrap_is_refused_everywhere(seed):
    simulation = jp.dense((3, 2)), jp.uniform(), jp.random, jp.Count(1)
    for call in (
        lambda: jp.simulate(*simulation, eps=[1.0], layers="all", seed=seed),
        lambda: jp.layer_account(*simulation, layers="all", seed=seed),
        lambda: engine.rare_failure(*simulation, eps=1.0, layers="all", seed=seed),
        lambda: trained.train(jp.dense((64, 8, 10)), trained.Recipe(), 1, seed),
        lambda: threshold.threshold(lambda d: jp.dense((3, d, 2)), *simulation[1:], seed=seed),
    ):
        with pytest.raises(ValueError, match="seed"):
            call()


def test_allowed_seeds_have_roots_of_their_own():
    seeds = (0, 1, 2**31, 2**32 - 1)
    roots = {tuple(np.asarray(jax.random.key_data(keys.root_key(s))).tolist()) for s in seeds}
    assert len(roots) == len(seeds)
    same = jax.random.key_data(keys.root_key(np.uint32(2**32 - 1)))
    np.testing.assert_array_equal(same, jax.random.key_data(keys.root_key(2**32 - 1)))


def test_a_session_of_the_old_stream_is_refused():
    with jax.threefry_partitionable(False):
        with pytest.raises(ValueError, match=r"^jax_threefry_partitionable = False"):
            keys.root_key(0)


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
def test_another_default_generator_draws_the_same_weights_and_masks(name):
    weights, kept = engine.draw(some_run(), 5)
    with jax.default_prng_impl(name):
        run = some_run()
        # The generator is in no key of JAX's caches: a new function is traced anew.
        fresh = jax.jit(lambda numbers, words: trial.draw_masked(run.design, numbers, words))
        _, params, masks = fresh(run.numbers, (np.uint32(0), np.uint32(5)))
    for a, b in zip(params, weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(masks, kept, strict=True):
        assert b.all() if a is None else np.array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("width", lambda n: jp.dense((3, n))),
        ("channels", lambda n: jp.convolutional((3, n), 4)),
        ("size", lambda n: jp.convolutional((3, 3), n)),
        ("kernel", lambda n: jp.convolutional((3, 3), 4, n)),
        ("stride", lambda n: jp.convolutional((3, 3), 4, strides=n)),
        ("outputs", lambda n: jp.convolutional((3, 3), 4, outputs=n)),
        ("samples", lambda n: jp.UnitBall(samples=n)),
        ("starts", lambda n: jp.UnitBall(starts=n)),
        ("steps", lambda n: jp.UnitBall(steps=n)),
        ("samples", lambda n: jp.LinfBall(samples=n)),
        ("starts", lambda n: jp.LinfBall(starts=n)),
        ("steps", lambda n: jp.LinfBall(steps=n)),
        ("count", lambda n: some_run(amount=jp.Count(n))),
        ("block", lambda n: some_run(block=n)),
        ("trials", lambda n: some_run(trials=n * 2**20)),
        ("steps", lambda n: trained.Recipe(steps=n)),
        ("batch", lambda n: trained.Recipe(batch=n)),
    ],
)
def test_integers_that_would_wrap_are_refused(name, call):
    with pytest.raises(ValueError, match=name):
        call(HUGE)


def test_every_purpose_has_its_own_number():
    assert sorted(PURPOSES.values()) == list(range(5))
    assert {keys.WEIGHTS, keys.MASK, keys.INPUTS} == set(range(keys.TRIAL_PURPOSES))
    # No other module makes a root, or a purpose, of its own.
    for path in Path(inspect.getfile(jp)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("jax.random.key", "jax.random.PRNGKey") or "keys.py" == (
                    path.name
                )
                if called in ("keys.trial_key", "trial_key"):
                    purpose = ast.unparse(node.args[1])
                    assert purpose.removeprefix("keys.") in PURPOSES, (path, purpose)


def counted_bits(key, shape, stream=bits.STANDARD):
    """`random_bits` in JAX's own primitive, whose use of a key JAX counts; to the bit the same."""
    return jax.random.bits(key, shape)


@pytest.mark.parametrize(
    "method",
    [jp.bernoulli, *(pytest.param(m, marks=pytest.mark.ci) for m in (jp.magnitude, jp.random))],
    ids=str,
)
def test_one_trial_uses_no_key_twice(method, monkeypatch):
    for module in (trial, inputs):
        monkeypatch.setattr(module, "random_bits", counted_bits)
    run = engine.prepare(
        jp.dense((3, 4, 2)), jp.uniform(), method, jp.Fraction(0.5), layers="all", domain=SMALL
    )

    def drawn(numbers, words):
        pair = trial.draw_pair(run.design, numbers, words)
        return pair, run.design.ball.draw(pair.inputs, (3,))

    def whole(numbers, words):
        pair = trial.draw_pair(run.design, numbers, words)
        return trial.measure_pair(run.design.network, run.design.ball, pair, None)

    words = np.uint32(1), np.uint32(2)
    with jax.debug_key_reuse(True):
        jax.jit(whole if method is jp.random else drawn)(run.numbers, words)
        # JAX sees a key that is used for two purposes; magnitude masks use no bits.
        monkeypatch.setattr(keys, "MASK" if method is not jp.magnitude else "INPUTS", keys.WEIGHTS)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda *given: drawn(*given))(run.numbers, words)


ONE_RUN = """
import jaxprune as jp
tally = jp.simulate(jp.dense((3, 2)), jp.uniform(), jp.random, jp.Count(2), eps=[1.0], trials=9,
                    layers="all", domain=[[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], seed=7)
print(tally.worst)
"""


@pytest.mark.ci
def test_a_session_s_generator_changes_no_bit_or_the_run_is_refused():
    def told(**settings):
        return subprocess.run(
            [sys.executable, "-c", ONE_RUN], env=os.environ | settings, capture_output=True,
            text=True,
        )  # fmt: skip

    expected = told()
    assert expected.returncode == 0 and expected.stdout.count("(") == 10, expected.stderr
    for name in ("rbg", "unsafe_rbg"):
        assert told(JAX_DEFAULT_PRNG_IMPL=name).stdout == expected.stdout
    refused = told(JAX_THREEFRY_PARTITIONABLE="0")
    assert refused.returncode == 1 and not refused.stdout
    assert refused.stderr.splitlines()[-1].startswith("ValueError: jax_threefry_partitionable = F")

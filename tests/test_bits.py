"""Random bits are those of JAX, today and in every version of it."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.bits import FAST, STANDARD, STREAMS, random_bits
from jaxprune.engine import keys

SEEDS, SHAPES = (0, 7, 2**32 - 1), ((), (5,), (33, 65), (8, 3, 3, 3))
GOLDEN = {
    (STANDARD, 0): [
        "384875b1eae56e51647d14da54a2abe5542acb13e14911f3f0f270b4326aea78",
        "f6f8765973af64ef41a2d71abadb3c66b1e60498c749f24fbbfe982bd28077d0",
        "a56e7962459f3d5ad03d2511639f1df57b5a87fcff5324c27ba5eac51838e24e",
        "31dc8164ab975434dd782bf897857a13c402f7349a0388369107e55ebc873e38",
    ],
    (STANDARD, 7): [
        "6c7f037fcf0d0c0a3e20a1e72c941aa7ab0f167b5209ffd3462dfa4b25d3dd4e",
        "bf483c12b79ca6af3ccce3e2baf10e15aded043dd23e912b2c3db36515178f01",
        "8facdd16e0a8f7f6401049c90e585b3d3fabc985fdf217ff502f8ea436ffaabe",
        "bedc36341ea40015ee32375235e7d043c7656bb8ca56cc4001bca79b633b831f",
    ],
    (STANDARD, 2**32 - 1): [
        "2fdefeec258ce56667d71b42dc548540c3fbd5e4cf439e3b655ca453ad47d001",
        "4ec286d4f10500564359e7325da2b4ce5ccb4cedb6eccf7b3a4b997bf8337b02",
        "ca49cb871a68312201be83c4211dc9a74150a8fcbf70c2b512c53d45631c0f27",
        "a465e183969c326ee2381eb2ab226424ae5eb8b697c1c8113487323382bc407c",
    ],
    (FAST, 0): [
        "cdaa4a2a6ecdfd992f9e0916367a1b33bf9a08563196fefc00e6cdc96a3d4bfa",
        "d6f51162d0548ad5fdac93619a745248236616eff5fd51b914f8ff0815372819",
        "7aa7ec1b097d2e18bcbddec9e2b3569c6ec991a34effd963bb87a73004eb0a0a",
        "4de46ef82260b30d7b6c5e29bf6f27d847287b1bba7def21f22ba85297186e61",
    ],
    (FAST, 7): [
        "7ef10d2245977f48aca8ef204ca74e18ba6b6fe0431eb9aeb12213606d1c6376",
        "17521b38effd5f30647a14e08912c44c81a1a1f7015698f4e7419c50e1a62652",
        "c60fa761996d234125a1b846eb9154c1c66a59399e99a9172d6e06cbcac806c6",
        "81c4516022109807b48fb0180d6a7ed0f315cc67b3baab5e57c578a4cf8579e6",
    ],
    (FAST, 2**32 - 1): [
        "37d4fcb2c0bffec526e7e604e99a3e94a92877524f3a1345d852653b58a5f514",
        "947b52a49c333d699b185041d27ea1cc0a7df44bedde3650c401589d38e851cd",
        "4dcf37feef515c8162be37f2c6c79542fd2d0652acd577cdac6d5a7002658a73",
        "028a24036d9a8886d0a83e5d33721291e83a8b3223495637a386e45ec55e9911",
    ],
}


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 5), (64, 64), (2, 3, 3, 3)])
def test_they_are_those_of_jax(shape, key):
    @jax.jit
    def both(key):
        keys = jax.random.split(key, 4)
        expected = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint32))(keys)
        return expected, jax.vmap(lambda k: random_bits(k, shape))(keys)

    expected, got = both(key)
    assert got.dtype == jnp.uint32
    np.testing.assert_array_equal(got, expected)


def test_keys_of_another_generator_are_refused():
    with pytest.raises(ValueError, match=r"key of \(4,\) words"):
        random_bits(jax.random.key(0, impl="rbg"), (3,))


def draw_all(root, stream):
    trial = np.uint32(3), np.uint32(2**32 - 5)
    key = keys.trial_key(root, keys.MASK, 2, trial)
    return [random_bits(key, shape, stream) for shape in SHAPES]


draw_all_compiled = jax.jit(draw_all, static_argnames="stream")


def assert_golden(draw, stream, seed):
    drawn = [np.asarray(bits) for bits in draw(keys.root_key(seed), stream=stream)]
    hashes = [hashlib.sha256(bits.astype("<u4").tobytes()).hexdigest() for bits in drawn]
    assert hashes == GOLDEN[stream, seed]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", STREAMS)
def test_golden_bits_of_both_streams(stream, seed):
    """A change here needs a new STREAM_VERSION; `tests/versions/run.py` asks other JAX versions."""
    assert_golden(draw_all_compiled, stream, seed)


@pytest.mark.ci
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", STREAMS)
def test_golden_bits_operation_by_operation(stream, seed):
    assert_golden(draw_all, stream, seed)


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("stream", STREAMS)
def test_golden_bits_under_another_default_generator(stream, name):
    with jax.default_prng_impl(name):
        assert jax.random.key(0).dtype == jax.random.key(0, impl=name).dtype
        # The generator is in no key of JAX's caches: a new function is traced anew.
        fresh = jax.jit(lambda root, stream: draw_all(root, stream), static_argnames="stream")
        for seed in SEEDS:
            assert_golden(fresh, stream, seed)

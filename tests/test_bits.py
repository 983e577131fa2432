"""Random bits are those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.bits import random_bits


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 5), (64, 64), (2, 3, 3, 3)])
def test_they_are_those_of_jax(shape, key):
    keys = jax.random.split(key, 4)
    expected = [jax.random.bits(k, shape, jnp.uint32) for k in keys]
    got = jax.jit(jax.vmap(lambda k: random_bits(k, shape)))(keys)
    assert got.dtype == jnp.uint32
    np.testing.assert_array_equal(got, expected)


def test_keys_of_another_generator_are_refused():
    with pytest.raises(ValueError, match=r"key of \(4,\) words"):
        random_bits(jax.random.key(0, impl="rbg"), (3,))

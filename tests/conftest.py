"""Strict switches for the whole suite: no silent broadcasting of ranks, warnings are errors."""

import os

# One worker a core: NumPy's own threads would only get into each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What the engine asks of the compiler, for the tests' own programs too: half of the suite's time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def strict():
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(20210520, impl="threefry2x32")

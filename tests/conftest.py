"""Strict switches for the whole suite: no silent broadcasting of ranks, warnings are errors."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

# One worker per core: NumPy's own threads would only get into each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What the engine asks of the compiler, for the tests' own programs too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax
import pytest
import threadpoolctl
from compilations import Compilations, add_ceilings

from jaxprune.cli.common import KEEP_ALL
from jaxprune.engine import programs

CACHE = "JAX_COMPILATION_CACHE_DIR"
MAPPINGS = 20_000


def pytest_addoption(parser):
    add_ceilings(parser)


def pytest_configure(config):
    """Workers, commands and notebooks compile each program once between them, in every run anew."""
    config.pluginmanager.register(Compilations(config))
    # A plugin may have loaded NumPy before the variable was set.
    threadpoolctl.threadpool_limits(1, "blas")
    config.own_cache = None
    if CACHE not in os.environ:
        os.environ[CACHE] = config.own_cache = tempfile.mkdtemp(prefix="jaxprune-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    for name, value in KEEP_ALL.items():
        os.environ.setdefault(name.upper(), str(value))
        jax.config.update(name, value)


def pytest_unconfigure(config):
    if config.own_cache:
        shutil.rmtree(config.own_cache, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def strict():
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    """Compiled programs map memory; beyond Linux's 65,530 mappings a process crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MAPPINGS:
        jax.clear_caches()
        programs._programs.clear()
        gc.collect()


@pytest.fixture
def key():
    return jax.random.key(20210520, impl="threefry2x32")

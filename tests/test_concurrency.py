"""What the engine's threads may do at once."""

import subprocess
import sys

import pytest

CODE = """
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from jaxprune.gaps import norms

jax.config.update("jax_enable_x64", True)
a = np.random.default_rng(0).normal(size=(16, 200, 200))
q = a @ a.swapaxes(1, 2) + np.eye(200)
run = jax.jit(jax.vmap(lambda q, a: norms.solve_lower(norms.cholesky(q), a)[0, 0]))
compiled = run.lower(q, a).compile()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda _: np.asarray(compiled(q, a)), range(20)))
"""


@pytest.mark.ci
def test_factorisations_in_two_threads_return():
    """With jaxlib 0.10's batched LAPACK calls this program hangs."""
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)

"""Multipliers for the bound of a pair. Any positive ones prove a bound; these make it small.

At the input v that the bound holds worst, each neuron's inequality, `q_i(v) >= 0`, has a value, and
the bound falls with the multiplier t_i where that value is negative. So t_i is multiplied by a root
of the ratio of the two sides of `q_i`, averaged over the worst inputs: a density
`Q^8 / tr Q^8` for the form Q of the input. Nothing here is part of a proof: it runs in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.gaps import norms

# By how much T exceeds Q: at first, in each search, and at least in the proof. Near the input of
# the network wider margins cost less than they save behind, where Q is not yet tuned.
MARGINS = (0.6, 0.4)
MARGIN = 0.3
PROBES = 32
STEPS = 12


class Stage(NamedTuple):
    """One layer with the activation behind it: `y = M s_before`, s the activation of y.

    Attributes:
      matrix: `(f, out, in)` M, one matrix (dense) or one a frequency (convolution).
      error: `()` bound of the Frobenius norm of each matrix's error.
      blocks: how many states, h and e, the outputs are: the rows are as many equal blocks.
      slope: the activation's least slope c, its largest being 1.
    """

    matrix: jax.Array
    error: jax.Array
    blocks: int
    slope: float


def level(form: jax.Array) -> jax.Array:
    """The largest diagonal entry of forms `(f, n, n)`, 1 if that is 0: `()`."""
    size = jnp.max(jnp.real(jnp.diagonal(form, axis1=-2, axis2=-1)))
    return jnp.where(size > 0, size, 1.0)


def in_units(form: jax.Array, units: jax.Array) -> jax.Array:
    """`U^-1 Q U^-1` for forms `(f, n, n)` and a diagonal U `(n,)`."""
    return form / (units[None, :, None] * units[None, None, :])


def largest(form: jax.Array) -> jax.Array:
    """About the largest eigenvalue of forms `(f, n, n)`: `()`."""
    return jnp.max(norms.eigenvalue_estimate(form, STEPS))


def tune(form: jax.Array, stages: Sequence[Stage]) -> list[jax.Array]:
    """Multipliers of the neurons behind each stage.

    Args:
      form: `(f, n, n)`, Q of the state behind the first stage of the list.
      stages: from the output towards the input.

    Returns:
      One `(n,)` float64 a stage, for Q of level 1.
    """
    if not stages:
        return []
    dtype = jnp.complex64 if jnp.iscomplexobj(form) else jnp.float32
    form = (form / level(form)).astype(dtype)
    matrices = [stage.matrix.astype(dtype) for stage in stages]

    def search(multipliers, margin):
        q, factors = form, []
        for stage, m, t in zip(stages, matrices, multipliers, strict=True):
            q = q / level(q)
            start = jnp.all(t == 0)
            t = jnp.where(start, _start(q, m, stage.blocks), t)
            raised = (1.0 + margin) * largest(in_units(q, jnp.sqrt(t)))
            units = jnp.sqrt(t * jnp.where(start, raised, jnp.maximum(1.0, raised)))
            lower = norms.cholesky(norms.identity(q) - in_units(q, units))
            m = units[None, :, None] * m
            y = norms.solve_lower(lower, 0.5 * (1.0 + stage.slope) * m)
            q = norms.adjoint(y) @ y
            if stage.slope > 0:
                q = q - stage.slope * (norms.adjoint(m) @ m)
            factors.append((lower, y, m, units))
        x, better = _worst(q / level(q)), []
        for stage, (lower, y, m, units) in zip(reversed(stages), reversed(factors), strict=True):
            z, v = m @ x, norms.solve_adjoint(lower, y @ x)
            better.append(jnp.square(units) * jnp.sqrt(_ratio(v, z, stage.slope)))
            x = v / units[None, :, None]
            x = x / jnp.max(jnp.abs(x))
        return better[::-1], None

    none = [jnp.zeros(m.shape[-2], jnp.float32) for m in matrices]
    found, _ = jax.lax.scan(search, none, jnp.asarray(MARGINS, jnp.float32))
    return [jnp.where(jnp.isfinite(t) & (t > 0), t, 1.0).astype(jnp.float64) for t in found]


def _start(form, matrix, blocks):
    """`t_i` as `sqrt(Q_ii) / |m_i|`: right in its units, whatever those of neuron i are."""
    diagonal = jnp.mean(jnp.real(jnp.diagonal(form, axis1=-2, axis2=-1)), axis=0)
    rows = jnp.mean(jnp.sum(jnp.square(jnp.abs(matrix)), axis=-1), axis=0)
    parts = []
    for d, m in zip(jnp.split(diagonal, blocks), jnp.split(rows, blocks), strict=True):
        size, d, m = jnp.mean(d), *(jnp.maximum(a, 0.1 * jnp.mean(a)) for a in (d, m))
        parts.append(size * jnp.sqrt(d / jnp.mean(d) * jnp.mean(m) / m))
    t = jnp.concatenate(parts)
    return jnp.where(t > 0, t, 1.0)


def _worst(form):
    """Columns `(f, n, r)` whose mean square is about the density `Q^8`."""
    n = form.shape[-1]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (n, PROBES))
    x = jnp.asarray(np.eye(n) if n <= PROBES else signs, form.dtype)
    x = jnp.broadcast_to(x, (len(form), *x.shape))
    for _ in range(4):
        x = form @ x
        x = x / jnp.max(jnp.abs(x))
    return x


def _ratio(v, z, c):
    """`(v^2 + c z^2) / ((1 + c) v z)`, summed over columns and frequencies, one a neuron."""
    total = lambda a: jnp.sum(a, axis=(0, 2))
    square = total(jnp.square(jnp.abs(v)))
    less = square + c * total(jnp.square(jnp.abs(z)))
    more = (1.0 + c) * total(jnp.real(jnp.conj(v) * z))
    return jnp.clip(less / jnp.maximum(more, 1e-3 * less + 1e-30), 0.5, 2.0)

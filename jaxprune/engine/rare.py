"""Rare failures: P(gap > eps) over weights and masks, by splitting. Estimates, no certificates.

A particle is what makes one pair: standard normal latents of all weights and, for the random
methods, the mask's own state: the set removed, or a normal latent a coin. Moves are reversible for
that prior: latents take a preconditioned Crank-Nicolson step of size b, sets exchange up to b of
what an independent set would exchange. Magnitude masks follow from the weights.

The score is one end of the gap's bracket, met by ascent from ONE set of starting inputs, drawn from
the seed and common to all particles: so it is a function of the particle.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc, ndtri

from jaxprune import laws, validation
from jaxprune.bits import random_bits
from jaxprune.engine import keys, memory
from jaxprune.engine.run import Run, prepare
from jaxprune.engine.trial import Design, Numbers, Pair, measurement
from jaxprune.gaps import LinfBall, UnitBall, removed_part
from jaxprune.laws import Family, Law
from jaxprune.networks import Network
from jaxprune.pruning import METHODS, Amount, Pruning, bernoulli, random, smallest
from jaxprune.pruning.random import COIN_BITS, coins
from jaxprune.statistics import Estimate, Problem, Splitting, estimate
from jaxprune.types import Key, Params

ENDS = ("lower", "upper")


class State(NamedTuple):
    """One particle, or many with a leading axis.

    Attributes:
      latents: float32 of the weights' shapes, standard normal.
      chance: one a layer: Boolean of the weights' shape, True where a weight is removed (random
        pruning), float32 latents of the coins (bernoulli), or None where nothing is random.
    """

    latents: Params
    chance: tuple[jax.Array | None, ...]


def rare_failure(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amount,
    eps: float,
    *,
    end: str = "lower",
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    domain: UnitBall | LinfBall | np.ndarray | None = None,
    plan: Splitting | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Estimate:
    """Estimates P(one end of the gap's bracket > eps) over weights and masks, down to 1e-8.

    With `end="lower"` that is at most P(gap > eps), with "upper" at least, up to rounding; on
    given inputs the two differ by rounding. A lower end depends on where ascent starts: the
    probability is that for the seed's starting inputs. A pair that is not finite fails at the upper
    end only.

    Args:
      network: the architecture.
      law: of the weights.
      pruning: `magnitude`, `random` or `bernoulli`.
      amount: `Fraction`, `Sublinear` or `Count`, of every pruned layer.
      eps: positive.
      end: "lower" or "upper".
      layers: which layers are pruned, see `networks.select_layers`.
      domain: `UnitBall(...)`, `LinfBall(...)`, or `(n, *in_shape)` inputs.
      plan: how to split; by default `Splitting()`.
      confidence: of the limits, in (0, 1).
      seed: from 0 to 2^32 - 1.
      progress: called now and then with the share of the work that is done.

    Returns:
      The estimate, with its checks and with the trials that would certify.

    Raises:
      ValueError: an argument outside its range, or a network that does not fit in memory.
    """
    eps = validation.real("eps", eps, 0.0, float("inf"))
    validation.choice("end", end, ENDS)
    validation.instance("law", law, Law, "a law of the weights")
    validation.instance("pruning", pruning, Pruning, "jp.magnitude, jp.random or jp.bernoulli")
    if pruning not in METHODS.values():
        raise ValueError(f"pruning = {pruning!s}: one of {', '.join(METHODS)} is needed")
    plan = Splitting() if plan is None else plan
    validation.instance("plan", plan, Splitting, "a Splitting(...)")
    run = prepare(network, law, pruning, amount, layers=layers, domain=domain, seed=seed)
    # Latents of the population and of its copies, here and on the device.
    memory.check(run.design, _inputs(run), jax.local_devices()[0], targets=4 * plan.particles)
    what = f"P({end} end of the gap > {eps:g})"
    return estimate(
        problem(run, end, plan.kill),
        eps,
        plan,
        confidence=confidence,
        seed=seed,
        what=what,
        progress=progress,
    )


def problem(run: Run, end: str = "lower", multiple: int = 1) -> Problem:
    """The prior, the score and the moves of a prepared run's pairs.

    Args:
      run: from `prepare`, with a law.
      end: "lower" or "upper", the score.
      multiple: populations are padded to multiples of it, lest each size be compiled.
    """
    design, numbers = run.design, run.numbers
    block = run.chunk  # particles at once; the rest of a population follows in the same program
    tree = _structure(design)

    def words(rng):
        return tuple(rng.integers(0, 2**32, 2, np.uint32))

    def padded(count):
        return np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)

    def population(particles):
        index = padded(len(particles[0]))
        return tree.unflatten(x[index] for x in particles)

    def flat(state, count):
        return tuple(np.array(x[:count]) for x in map(np.asarray, jax.tree.leaves(state)))

    def sample(rng, n):
        return flat(_sample(design, block, numbers, words(rng), jnp.arange(n)), n)

    def score(particles):
        found = _scores(design, end, block, numbers, population(particles))
        return np.asarray(found)[: len(particles[0])]

    def move(rng, particles, scale):
        numeric = numbers, words(rng), np.float32(scale)
        moved = _moves(design, block, *numeric, population(particles))
        return flat(moved, len(particles[0]))

    def walk(rng, particles, scores, level, scale, steps):
        count, index = len(scores), padded(len(scores))
        now = (
            population(particles),
            scores[index].astype(np.float32),
            np.zeros_like(index, np.int32),
        )
        numeric = numbers, words(rng), np.float32(level), np.float32(scale)  # a level is a score
        for step in range(steps):
            now = _steps(design, end, block, *numeric, np.int32(step), *now)
        state, found, accepted = now
        rate = np.asarray(accepted)[:count].mean() / steps
        return flat(state, count), np.asarray(found)[:count], rate

    return Problem(sample, score, move, walk)


def _inputs(run: Run) -> int:
    return run.design.ball.samples if run.design.ball else len(run.numbers.rows)


def _structure(design: Design):
    has_chance = [pruned and design.pruning in (random, bernoulli) for pruned in design.pruned]
    return jax.tree.structure(
        State((0,) * len(design.pruned), tuple(0 if has else None for has in has_chance))
    )


# One particle.


def draw(design: Design, numbers: Numbers, key: Key) -> State:
    """One particle from the prior."""
    latents = tuple(
        _normal(_of(key, keys.WEIGHTS, i), shape)
        for i, shape in enumerate(design.network.weight_shapes)
    )

    def chance(i, pruned, shape):
        mine = _of(key, keys.MASK, i)
        if pruned and design.pruning is random:
            return ~random.mask(random_bits(mine, shape), latents[i], numbers.levels[i])
        return _normal(mine, shape) if pruned and design.pruning is bernoulli else None

    layers = enumerate(zip(design.pruned, design.network.weight_shapes, strict=True))
    return State(latents, tuple(chance(i, *layer) for i, layer in layers))


def move_one(design: Design, numbers: Numbers, key: Key, scale: jax.Array, state: State) -> State:
    """One proposal, reversible for `draw`'s law at every scale in (0, 1]."""

    def step(purpose, i, z):
        kept = jnp.sqrt((1.0 - scale) * (1.0 + scale))
        return kept * z + scale * _normal(_of(key, purpose, i), z.shape)

    def chance(i, c):
        if c is None:
            return None
        if design.pruning is bernoulli:
            return step(keys.MASK, i, c)
        size, removed = jnp.float32(c.size), numbers.levels[i].astype(jnp.float32)
        # An independent set of this size would exchange this many on average. Now and then none:
        # a mask that always changes could go round in circles.
        most = jnp.ceil(scale * removed * (size - removed) / size).astype(jnp.int32)
        # In integers: floats err beyond 2^24 weights, and a set would change its size.
        least = jnp.minimum(numbers.levels[i], c.size - numbers.levels[i])
        most = jnp.minimum(most, least)
        count, priorities = jax.random.split(_of(key, keys.MASK, i))
        count = jax.random.randint(count, (), 0, most + 1)
        return swap(c, coins(random_bits(priorities, c.shape)), count)

    return State(
        tuple(step(keys.WEIGHTS, i, z) for i, z in enumerate(state.latents)),
        tuple(chance(i, c) for i, c in enumerate(state.chance)),
    )


def swap(removed: jax.Array, priorities: jax.Array, count: jax.Array) -> jax.Array:
    """Exchanges `count` members of a set, those of least priority, with as many outside it.

    With i.i.d. priorities every such exchange is as likely as its reverse.

    Args:
      removed: Boolean.
      priorities: int32 in [0, 2^30), of the same shape.
      count: `()`, at most the members inside and those outside.
    """
    last = jnp.int32(2**31 - 1)
    leaving = smallest(jnp.where(removed, priorities, last), count)
    entering = smallest(jnp.where(removed, last, priorities), count)
    return (removed & ~leaving) | entering


def weights(family: Family, scale: jax.Array, z: jax.Array) -> jax.Array:
    """Weights of the law from standard normal latents: increasing in z, and continuous."""
    if family is laws.NORMAL:
        return scale * z
    with jax.ensure_compile_time_eval():
        rising = bool(family.magnitude(jnp.float32(0.25)) < family.magnitude(jnp.float32(0.75)))
    # P(|Z| <= |z|), or its complement, is uniform; either way |X| grows with |z|.
    u = (erf if rising else erfc)(jnp.abs(z) * np.float32(0.5**0.5))
    return scale * jnp.sign(z) * family.magnitude(u)


def pair(design: Design, numbers: Numbers, state: State) -> Pair:
    """The pair of one particle, with the starting inputs that all particles share."""
    params = tuple(
        weights(design.family, numbers.scales[i], z) for i, z in enumerate(state.latents)
    )

    def mask(i, w, c):
        if not design.pruned[i]:
            return None
        if design.pruning is random:
            return ~c
        if design.pruning is bernoulli:
            return c >= _threshold(numbers.levels[i])
        return design.pruning.mask(None, w, numbers.levels[i])

    layers = enumerate(zip(params, state.chance, strict=True))
    zero = jnp.uint32(0)
    inputs = keys.trial_key(numbers.root, keys.INPUTS, 0, (zero, zero))
    return Pair(inputs, params, removed_part(params, tuple(mask(i, w, c) for i, (w, c) in layers)))


def _score(design, end, numbers, state):
    """One end of the bracket; of a pair that is not finite, the end that counts against it."""
    both = pair(design, numbers, state)
    gap = measurement(design.network, design.ball, both, numbers.rows).gap
    value = getattr(gap, end)
    finite = jnp.isfinite(value)
    for w in both.params:
        finite &= jnp.all(jnp.isfinite(w))
    return jnp.where(finite, value, -jnp.inf if end == "lower" else jnp.inf)


def _of(key, purpose, layer):
    return jax.random.fold_in(jax.random.fold_in(key, purpose), layer)


def _normal(key, shape):
    return laws.sample(laws.NORMAL, 1.0, random_bits(key, shape))


def _threshold(level):
    """The latent below which a coin removes; from the nearer tail, where the digits are."""
    tail = lambda count: ndtri(count.astype(jnp.float32) * 2.0**-COIN_BITS)
    rest = 2**COIN_BITS - level
    return jnp.where(level <= rest, tail(level), -tail(rest))


# Populations: `block` particles at once.


def _population_key(numbers, words):
    return keys.trial_key(numbers.root, keys.SPLITTING, 0, words)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(design, block, numbers, words, index):
    key = _population_key(numbers, words)
    one = lambda i: draw(design, numbers, jax.random.fold_in(key, i))
    return jax.lax.map(one, index, batch_size=block)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(design, end, block, numbers, state):
    return jax.lax.map(lambda s: _score(design, end, numbers, s), state, batch_size=block)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moves(design, block, numbers, words, scale, state):
    key = _population_key(numbers, words)

    def one(particle):
        i, s = particle
        return move_one(design, numbers, jax.random.fold_in(key, i), scale, s)

    index = jnp.arange(len(state.latents[0]))
    return jax.lax.map(one, (index, state), batch_size=block)


# One kernel step a call: a bound's float64 arithmetic may not stand inside a compiled loop, whose
# body JAX traces again outside of its context.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _steps(design, end, block, numbers, words, level, scale, step, state, scores, accepted):
    key = jax.random.fold_in(_population_key(numbers, words), step)

    def one(particle):
        i, old, score, count = particle
        new = move_one(design, numbers, jax.random.fold_in(key, i), scale, old)
        found = _score(design, end, numbers, new)
        taken = found > level
        state = jax.tree.map(lambda x, y: jnp.where(taken, x, y), new, old)
        return state, jnp.where(taken, found, score), count + taken

    index = jnp.arange(len(scores))
    return jax.lax.map(one, (index, state, scores, accepted), batch_size=block)

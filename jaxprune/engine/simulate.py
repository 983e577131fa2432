"""Many trials: the only place where trials are batched."""

import collections
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import networks, validation
from jaxprune.engine import keys, memory
from jaxprune.engine.tally import Tally
from jaxprune.engine.trial import Design, Numbers, Trial, run_trial
from jaxprune.gaps import UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.types import Params


class Plan(NamedTuple):
    """A run made ready: what is compiled, its numbers, and the block that fits in memory."""

    design: Design
    numbers: Numbers
    block: int


@functools.partial(jax.jit, static_argnums=0)
def _run_block(design, numbers, high, low):
    return jax.vmap(lambda h, l: run_trial(design, numbers, (h, l)))(high, low)


@functools.lru_cache(maxsize=256)
def _compile(design, treedef, leaves, block):
    numbers = jax.tree.unflatten(treedef, leaves)
    word = jax.ShapeDtypeStruct((block,), jnp.uint32)
    return _run_block.lower(design, numbers, word, word).compile()


def compiled_block(design: Design, numbers: Numbers, block: int) -> Callable[..., Trial]:
    """The compiled program of one block; equal designs and shapes share it."""
    leaves, treedef = jax.tree.flatten(numbers)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compile(design, treedef, shapes, block)


def prepare(
    network: Network,
    targets: Law | Params,
    pruning: Pruning,
    amount: Amount,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    domain: UnitBall | np.ndarray | None = None,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    block: int | None = None,
) -> Plan:
    """Checks a run's arguments and sizes its blocks; `simulate` documents the arguments."""
    root = keys.root_key(seed)
    pruned = networks.select_layers(network, layers)
    levels = [
        pruning.level(amount, count) if chosen else 0
        for count, chosen in zip(network.weight_counts, pruned, strict=True)
    ]
    domain = UnitBall() if domain is None else domain
    ball = domain if isinstance(domain, UnitBall) else None
    family = targets.family if isinstance(targets, Law) else None
    design = Design(network, family, pruning, pruned, ball)
    rows = None if ball else _inputs("domain", domain, network)
    inputs = ball.samples if ball else len(rows)
    if labelled is not None:
        x, y = _inputs("labelled", labelled[0], network), np.asarray(labelled[1], np.int32)
        if y.shape != (len(x),):
            raise ValueError(f"labels of shape {y.shape}: one for each of {len(x)} is needed")
        labelled = jnp.asarray(x), jnp.asarray(y)
        inputs = max(inputs, len(x))
    device = jax.devices()[0]
    memory.check(design, inputs, device)
    numbers = Numbers(
        root,
        jnp.asarray(levels, jnp.int32),
        scales=_scales(targets, network) if family else None,
        targets=None if family else _stacked(targets, network),
        rows=None if rows is None else jnp.asarray(rows),
        labelled=labelled,
    )
    if block is None:
        block = memory.block_size(design, inputs, device)
    return Plan(design, numbers, validation.integer("block", block, 1, 2**24))


def simulate(
    network: Network,
    targets: Law | Params,
    pruning: Pruning,
    amount: Amount,
    *,
    eps: Sequence[float],
    trials: int = 1000,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    domain: UnitBall | np.ndarray | None = None,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    block: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Samples pairs of target and pruned network and sorts their gaps at each epsilon.

    Args:
      network: the architecture.
      targets: a law to sample targets from, or given ones: one array `(trials, *weight_shape)` a
        layer, so that trial i prunes network i.
      pruning: the method, `magnitude`, `random` or `bernoulli`.
      amount: `Fraction`, `Sublinear` or `Count`, of every pruned layer.
      eps: the epsilons, positive, fixed before sampling.
      trials: how many independent pairs.
      layers: which layers are pruned, see `networks.select_layers`.
      domain: `UnitBall(...)`, or `(n, *in_shape)` inputs over which the gap is taken.
      labelled: `((m, *in_shape), (m,))` inputs and classes on which accuracy is counted.
      seed: from 0 to 2^32 - 1.
      block: trials in one compiled program; by default from a memory budget. Gaps agree between
        blocks to the guard band, weights and masks to the bit.
      progress: called after each block with the number of trials done.

    Returns:
      The tally; `statistics.judge` turns its counts into a verdict.

    Raises:
      ValueError: an argument outside its range, or a network that does not fit in memory.
    """
    trials = validation.integer("trials", trials, 1, keys.MAX_TRIALS)
    eps = tuple(validation.real("eps", e, 0.0, float("inf")) for e in eps)
    plan = prepare(
        network,
        targets,
        pruning,
        amount,
        layers=layers,
        domain=domain,
        labelled=labelled,
        seed=seed,
        block=block,
    )
    given = plan.numbers.targets
    if given is not None and len(given[0]) < trials:
        raise ValueError(f"trials = {trials}: there are {len(given[0])} targets")
    tally = Tally(eps)
    for ids, block_trials in run_blocks(plan, trials):
        tally += Tally.of(eps, ids, block_trials)
        if progress:
            progress(tally.trials)
    return tally


def run_blocks(plan: Plan, trials: int):
    """Yields `(ids, Trial)` block by block, in order; the last one cut to the trials wanted."""
    block = min(plan.block, trials)
    run = compiled_block(plan.design, plan.numbers, block)

    def one(start):
        ids = np.arange(start, start + block, dtype=np.uint64)
        high, low = (ids >> 32).astype(np.uint32), (ids & 0xFFFFFFFF).astype(np.uint32)
        return jax.tree.map(np.asarray, run(plan.numbers, high, low))

    # Two blocks in flight keep the device busy while the host tallies.
    with ThreadPoolExecutor(2) as pool:
        running = collections.deque()
        for start in range(0, trials, block):
            running.append((start, pool.submit(one, start)))
            if len(running) == 2:
                yield _cut(*running.popleft(), trials)
        while running:
            yield _cut(*running.popleft(), trials)


def _cut(start, future, trials):
    """A block's ids and results without the padding past the last trial."""
    result = future.result()
    ids = range(start, min(start + len(result.lower), trials))
    return ids, Trial(*(field[: len(ids)] for field in result))


def _inputs(name, x, network):
    x = np.asarray(x, np.float32)
    if x.ndim != 1 + len(network.in_shape) or x.shape[1:] != network.in_shape or not len(x):
        raise ValueError(f"{name} of shape {x.shape}: (n, {network.in_shape}) is needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: finite numbers are needed")
    return x


def _scales(law, network):
    return jnp.asarray([law.scale(*layer.fans) for layer in network.layers], jnp.float32)


def _stacked(targets, network):
    targets = tuple(jnp.asarray(w, jnp.float32) for w in targets)
    shapes = tuple(w.shape[1:] for w in targets)
    if shapes != network.weight_shapes or len({len(w) for w in targets}) != 1:
        raise ValueError(
            f"targets of shapes {tuple(w.shape for w in targets)}: "
            f"(trials, ...) + {network.weight_shapes} is needed"
        )
    return targets

"""Simulations: all blocks of a run, tallied."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxprune import bits, validation
from jaxprune.engine.blocks import Done, run_blocks
from jaxprune.engine.run import Run, prepare
from jaxprune.engine.tally import Tally
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.types import Params


def simulate(
    network: Network,
    targets: Law | Params,
    pruning: Pruning,
    amount: Amount,
    *,
    eps: Sequence[float],
    trials: int = 1000,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    domain: UnitBall | LinfBall | np.ndarray | None = None,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    stream: str = bits.STANDARD,
    block: int | None = None,
    until: Callable[[Tally], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Samples pairs of target and pruned network and sorts their gaps at each epsilon.

    Args:
      network: the architecture.
      targets: a law to sample targets from, or given ones: one array `(trials, *weight_shape)` a
        layer, so that trial i prunes network i.
      pruning: the method, `magnitude`, `random` or `bernoulli`.
      amount: `Fraction`, `Sublinear` or `Count`, of every pruned layer.
      eps: up to 1000 epsilons, positive, fixed before sampling.
      trials: how many independent pairs, at most 10^10 without `until`.
      layers: which layers are pruned, see `networks.select_layers`.
      domain: `UnitBall(...)`, `LinfBall(...)`, or `(n, *in_shape)` inputs over which the gap is
        taken.
      labelled: `((m, *in_shape), (m,))` inputs and classes on which accuracy is counted.
      seed: from 0 to 2^32 - 1.
      stream: of random bits; "threefry-20" has those of `jax.random`, "threefry-13" is faster.
        Each is a stream of its own: the same seed gives other weights and masks.
      block: trials in one compiled program; by default from a memory budget. Gaps agree between
        blocks to the guard band, weights and masks to the bit.
      until: called after each block with the tally so far, which is of the first trials without a
        gap; sampling ends where it is true. A verdict then needs `statistics.judge_stopped`.
      progress: called after each block with the number of trials done.

    Returns:
      The tally; `statistics.judge` turns its counts into a verdict.

    Raises:
      ValueError: an argument outside its range, or a network that does not fit in memory.
      BrokenInvariant: a pair's lower bound exceeds its upper bound.
    """
    run = prepare(
        network,
        targets,
        pruning,
        amount,
        trials=trials,
        layers=layers,
        domain=domain,
        labelled=labelled,
        seed=seed,
        stream=stream,
        block=block,
    )
    return tally_run(run, eps, progress, until)


MAX_EPS = 1000
"""Of one simulation: every block, and every claim of a result, has counts of its own at each."""

MAX_TRIALS_AT_ONCE = 10**10
"""Of a run that keeps no block and stops for no verdict: some hours for the smallest networks."""


class Tallied(NamedTuple):
    """A block that was run and tallied."""

    done: Done
    tally: Tally


def empty_tally(run: Run, eps: Sequence[float], cap: float = math.inf) -> Tally:
    """Of no trial yet; see `Tally` for the cap."""
    if not isinstance(eps, Sequence | np.ndarray) or not len(eps):
        raise ValueError(f"eps = {eps!r}: a list of at least one number is needed")
    validation.integer("number of epsilons", len(eps), 1, MAX_EPS)
    eps = tuple(validation.real("eps", e, 0.0, math.inf) for e in eps)
    labelled = 0 if run.numbers.labelled is None else len(run.numbers.labelled[1])
    return Tally(eps, cap=cap, labelled=labelled)


def tally_blocks(
    run: Run,
    empty: Tally,
    blocks: Iterable[int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[Tallied]:
    """`run_blocks`, tallied block by block as `empty` asks."""
    for done in run_blocks(run, blocks, devices):
        tally = Tally.of(empty.eps, done.ids, done.trials, empty.labelled, empty.cap)
        yield Tallied(done, tally)


def tally_run(
    run: Run,
    eps: Sequence[float],
    progress: Callable[[int], None] | None = None,
    until: Callable[[Tally], bool] | None = None,
) -> Tally:
    """Runs all blocks and tallies them; see `simulate`."""
    if until is None:
        validation.integer("trials", run.trials, 1, MAX_TRIALS_AT_ONCE)
    tally, ended = empty_tally(run, eps), False

    def wanted():
        for block in run.blocks:
            if ended:
                return
            yield block

    for _, more in tally_blocks(run, tally, wanted()):
        if ended:  # a block that was in work
            continue
        tally += more
        if progress:
            progress(tally.trials)
        ended = bool(until and until(tally))
    return tally

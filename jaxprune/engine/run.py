"""Many trials: the only place where trials are batched."""

import collections
import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from jaxprune import bits, networks, validation
from jaxprune.engine import keys, memory
from jaxprune.engine.tally import Tally
from jaxprune.engine.trial import Design, Numbers, Trial, draw_pair, measure_pair
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.types import Params


class Run(NamedTuple):
    """A simulation made ready.

    Attributes:
      design: what is compiled.
      numbers: what is not.
      trials: how many.
      block: trials of one call.
      chunk: those of a block that lie in memory at once.
      in_flight: blocks that run at once.
    """

    design: Design
    numbers: Numbers
    trials: int
    block: int
    chunk: int
    in_flight: int


@functools.partial(jax.jit, static_argnums=0)
def _draw_block(design, numbers, high, low):
    return jax.vmap(lambda h, l: draw_pair(design, numbers, (h, l)))(high, low)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure_block(network, ball, pairs, rows, labelled):
    return jax.vmap(lambda pair: measure_pair(network, ball, pair, rows, labelled))(pairs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _block_over_rows(design, chunk, numbers, high, low):
    def one(trial):
        pair = draw_pair(design, numbers, trial)
        drawn = design.family is not None
        return measure_pair(design.network, None, pair, numbers.rows, numbers.labelled, drawn)

    return jax.lax.map(one, (high, low), batch_size=chunk)


def _compiler_options():
    # A CPU's time goes into library calls: LLVM's second level adds half to compilation and brings
    # nothing measurable. Random bits gain a third from the widest vectors. Neither option is for a
    # GPU, whose compiler takes the first for its kernels.
    cpu = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}
    return cpu if jax.default_backend() == "cpu" else {}


_PROGRAMS_KEPT = 128
_programs: collections.OrderedDict[Hashable, Future] = collections.OrderedDict()
_programs_lock = threading.Lock()


class Block(NamedTuple):
    """The compiled programs of a run's blocks.

    Over a ball the bracket takes most of the time to compile, and laws and pruning methods share
    its program. Over given rows one program does all: a trial is so short that its weights are not
    to leave the caches, and many share the time that a call takes.

    Attributes:
      draw: samples and prunes: `(numbers, high, low) -> Pair`; None over rows.
      measure: brackets the gaps: `(Pair, rows, labelled) -> Trial`; over rows the whole block,
        `(numbers, high, low) -> Trial`.
    """

    draw: jax.stages.Compiled | None
    measure: jax.stages.Compiled

    def __call__(self, numbers: Numbers, high: np.ndarray, low: np.ndarray) -> Trial:
        if self.draw is None:
            return self.measure(numbers, high, low)
        pairs = self.draw(_to_draw(numbers), high, low)
        return self.measure(pairs, numbers.rows, numbers.labelled)


def _to_draw(numbers):
    return numbers._replace(rows=None, labelled=None)


def compiled_block(run: Run) -> Block:
    """The compiled programs of a run's blocks; equal designs and shapes share them.

    Threads may ask for the same program at once: it is compiled once, the others wait.
    """
    word = jax.ShapeDtypeStruct((run.block,), jnp.uint32)
    if run.design.ball is None:
        whole = run.design, run.chunk, run.numbers, word, word
        return Block(None, _compiled(_block_over_rows, 2, *whole))
    design, numbers = dataclasses.replace(run.design, ball=None), _to_draw(run.numbers)
    drawn = design, numbers, word, word
    pairs = _draw_block.eval_shape(*drawn)
    measured = design.network, run.design.ball, pairs, run.numbers.rows, run.numbers.labelled
    return Block(_compiled(_draw_block, 1, *drawn), _compiled(_measure_block, 2, *measured))


def _compiled(function, statics, *args):
    """The program of a jitted function; its first arguments are static."""
    leaves, treedef = jax.tree.flatten(args[statics:])
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = function, args[:statics], treedef, shapes
    with _programs_lock:
        program = _programs.get(key)
        if mine := program is None:
            program = _programs[key] = Future()
            while len(_programs) > _PROGRAMS_KEPT:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
    if mine:
        try:
            program.set_result(function.lower(*args).compile(_compiler_options()))
        except BaseException as error:
            with _programs_lock:
                if _programs.get(key) is program:
                    del _programs[key]
            program.set_exception(error)
    return program.result()


def prepare(
    network: Network,
    targets: Law | Params,
    pruning: Pruning,
    amount: Amount,
    *,
    trials: int = 1000,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    domain: UnitBall | LinfBall | np.ndarray | None = None,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    stream: str = bits.STANDARD,
    block: int | None = None,
) -> Run:
    """Checks a simulation's arguments and sizes its blocks; `simulate` documents them."""
    trials = validation.integer("trials", trials, 1, keys.MAX_TRIALS)
    root = keys.root_key(seed)
    validation.instance("network", network, Network, "a network from dense or convolutional")
    validation.instance("pruning", pruning, Pruning, "magnitude, random or bernoulli")
    validation.instance("amount", amount, Amount, "Fraction, Sublinear or Count")
    validation.instance("targets", targets, Law | Sequence, "a law, or one array a layer,")
    if isinstance(targets, str) or isinstance(domain, str):
        raise ValueError(f"targets or domain = {targets!r}, {domain!r}: no text is allowed")
    pruned = networks.select_layers(network, layers)
    levels = [
        pruning.level(amount, count) if chosen else 0
        for count, chosen in zip(network.weight_counts, pruned, strict=True)
    ]
    domain = UnitBall() if domain is None else domain
    ball = domain if isinstance(domain, UnitBall | LinfBall) else None
    law = targets if isinstance(targets, Law) else None
    validation.choice("stream", stream, bits.STREAMS)
    design = Design(network, law.family if law else None, pruning, pruned, ball, stream)
    rows = None if ball else _inputs("domain", domain, network)
    inputs = ball.samples if ball else len(rows)
    if labelled is not None:
        labelled = _labelled(*labelled, network)
        inputs = max(inputs, len(labelled[0]))
    device = jax.devices()[0]
    memory.check(design, inputs, device, 0 if law else trials)
    numbers = Numbers(
        root,
        jnp.asarray(levels, jnp.int32),
        scales=_scales(law, network) if law else None,
        targets=None if law else _stacked(targets, network, trials),
        rows=None if rows is None else jnp.asarray(rows),
        labelled=labelled,
    )
    chunk = min(memory.chunk_size(design, inputs, device), trials)
    if block is not None:
        block = min(validation.integer("block", block, 1, 2**24), trials)
        chunk = block if ball else min(chunk, block)
    in_flight = memory.in_flight(design, inputs, chunk, device)
    if block is None:
        block = chunk if ball else _block_of_chunks(trials, chunk, in_flight, design, inputs)
    return Run(design, numbers, trials, block, chunk, in_flight)


def _block_of_chunks(trials, chunk, in_flight, design, inputs):
    """Whole chunks, as a rest would be a program of its own; at least a block for each core."""
    calls = max(in_flight, -(-trials // memory.block_size(design, inputs, chunk)))
    return -(-trials // (calls * chunk)) * chunk


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
      eps: the epsilons, positive, fixed before sampling.
      trials: how many independent pairs.
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


def tally_run(
    run: Run,
    eps: Sequence[float],
    progress: Callable[[int], None] | None = None,
    until: Callable[[Tally], bool] | None = None,
    *,
    cap: float = math.inf,
) -> Tally:
    """Runs all blocks and tallies them; see `simulate`, and `Tally` for the cap."""
    if not isinstance(eps, Sequence | np.ndarray) or not len(eps):
        raise ValueError(f"eps = {eps!r}: a list of at least one number is needed")
    eps = tuple(validation.real("eps", e, 0.0, math.inf) for e in eps)
    labelled = 0 if run.numbers.labelled is None else len(run.numbers.labelled[1])
    tally = Tally(eps, cap=cap, labelled=labelled)
    for ids, trials in run_blocks(run):
        tally += Tally.of(eps, ids, trials, labelled, cap)
        if progress:
            progress(tally.trials)
        if until and until(tally):
            break
    return tally


_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit = None


@contextlib.contextmanager
def _one_blas_thread():
    """LAPACK's own threads, beside those of several blocks, halve the speed.

    The limit is the process's: the first of several runs sets it, the last one lifts it.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        if not _blas_users:
            _blas_limit = threadpool_limits(1, "blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if not _blas_users:
                _blas_limit.restore_original_limits()


def words(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Trial ids from `start` on, as the high and the low words of each."""
    ids = np.arange(start, start + count, dtype=np.uint64)
    return (ids >> 32).astype(np.uint32), (ids & 0xFFFFFFFF).astype(np.uint32)


def run_blocks(run: Run) -> Iterator[tuple[range, Trial]]:
    """Yields trial ids and their results block by block, in order."""
    program = compiled_block(run)

    def one(start):
        return jax.tree.map(np.asarray, program(run.numbers, *words(start, run.block)))

    def cut(start, future):
        """Without the padding past the last trial."""
        ids = range(start, min(start + run.block, run.trials))
        return ids, Trial(*(field[: len(ids)] for field in future.result()))

    with _one_blas_thread(), ThreadPoolExecutor(run.in_flight) as pool:
        running = collections.deque()
        for start in range(0, run.trials, run.block):
            running.append((start, pool.submit(one, start)))
            if len(running) == run.in_flight:
                yield cut(*running.popleft())
        while running:
            yield cut(*running.popleft())


def _inputs(name, x, network):
    x = np.asarray(x, np.float32)
    if x.shape[1:] != network.in_shape or not len(x):
        raise ValueError(f"{name} of shape {x.shape}: (n, *{network.in_shape}) is needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: finite numbers are needed")
    return x


def _labelled(x, y, network):
    x, y = _inputs("labelled", x, network), np.asarray(y)
    if y.shape != (len(x),):
        raise ValueError(f"labels of shape {y.shape}: one for each of {len(x)} inputs is needed")
    if len(network.out_shape) != 1:
        raise ValueError(f"labels: outputs of shape {network.out_shape} are no classes")
    classes = network.out_shape[0]
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels: integers from 0 to {classes - 1} are needed")
    return jnp.asarray(x), jnp.asarray(y, jnp.int32)


def _scales(law, network):
    return jnp.asarray([law.scale(*layer.fans) for layer in network.layers], jnp.float32)


def _stacked(targets, network, trials):
    targets = tuple(jnp.asarray(w, jnp.float32) for w in targets)
    shapes = tuple(w.shape[1:] for w in targets)
    if shapes != network.weight_shapes or len({len(w) for w in targets}) != 1:
        raise ValueError(
            f"targets of shapes {tuple(w.shape for w in targets)}: one array a layer is needed, "
            f"{tuple(('trials', *shape) for shape in network.weight_shapes)}".replace("'", "")
        )
    if len(targets[0]) < trials:
        raise ValueError(f"trials = {trials}: there are {len(targets[0])} targets")
    return targets

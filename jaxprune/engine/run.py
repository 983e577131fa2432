"""A simulation made ready: arguments checked, blocks sized."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import bits, networks, validation
from jaxprune.engine import keys, memory
from jaxprune.engine.trial import Design, Numbers
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.types import Params

LEAST_BLOCKS = 16
"""Of a run over rows, as far as there are trials: so many devices have something to do."""


class Run(NamedTuple):
    """A simulation made ready.

    Attributes:
      design: what is compiled.
      numbers: what is not.
      trials: how many.
      block: trials of one call.
      chunk: those of a block that lie in memory at once.
      in_flight: blocks that run at once on one device.
    """

    design: Design
    numbers: Numbers
    trials: int
    block: int
    chunk: int
    in_flight: int

    @property
    def blocks(self) -> range:
        """Ids of all blocks: block b has the trials from `b * block` on."""
        return range(-(-self.trials // self.block))

    def ids(self, block: int) -> range:
        """Ids of a block's trials."""
        start = block * self.block
        return range(start, min(start + self.block, self.trials))


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
    validation.instance("pruning", pruning, Pruning, "jp.magnitude, jp.random or jp.bernoulli")
    validation.instance("amount", amount, Amount, "jp.Fraction, jp.Sublinear or jp.Count")
    validation.instance("targets", targets, Law | Sequence, "a law, or one array a layer,")
    if isinstance(targets, str):
        raise ValueError(f"targets = {targets!r}: jp.uniform(), jp.normal() or arrays are needed")
    if isinstance(domain, str):
        raise ValueError(f"domain = {domain!r}: UnitBall(), LinfBall() or an array is needed")
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
    device = jax.local_devices()[0]
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
        block = chunk if ball else _block_of_chunks(trials, chunk, design, inputs)
    return Run(design, numbers, trials, block, chunk, in_flight)


def _block_of_chunks(trials, chunk, design, inputs):
    """Whole chunks, as a rest would be a program of its own; the same on every machine."""
    calls = max(LEAST_BLOCKS, -(-trials // memory.block_size(design, inputs, chunk)))
    return -(-trials // (calls * chunk)) * chunk


def _inputs(name, x, network):
    x = validation.array(name, x, np.float32)
    if x.shape[1:] != network.in_shape or not len(x):
        raise ValueError(f"{name} of shape {x.shape}: (n, *{network.in_shape}) is needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: finite numbers are needed")
    return x


def _labelled(x, y, network):
    x, y = _inputs("labelled", x, network), validation.array("labels", y)
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
    targets = tuple(jnp.asarray(w, jnp.float32) for w in validation.unmasked("targets", targets))
    shapes = tuple(w.shape[1:] for w in targets)
    if shapes != network.weight_shapes or len({len(w) for w in targets}) != 1:
        raise ValueError(
            f"targets of shapes {tuple(w.shape for w in targets)}: one array a layer is needed, "
            f"{tuple(('trials', *shape) for shape in network.weight_shapes)}".replace("'", "")
        )
    if len(targets[0]) < trials:
        raise ValueError(f"trials = {trials}: there are {len(targets[0])} targets")
    return targets

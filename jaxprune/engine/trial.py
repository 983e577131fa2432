"""One trial: sample a target, prune it, bracket the gap of the pair. Pure, no batch axis."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import laws
from jaxprune.bits import STANDARD, random_bits
from jaxprune.engine import keys
from jaxprune.engine.keys import TrialId
from jaxprune.gaps import (
    LinfBall,
    Removed,
    UnitBall,
    measure_ball,
    measure_linf_ball,
    measure_rows,
    removed_part,
)
from jaxprune.gaps.rows import Measurement
from jaxprune.laws import Family
from jaxprune.networks import Network
from jaxprune.pruning import Pruning
from jaxprune.types import Key, Params

Ball = UnitBall | LinfBall


@dataclass(frozen=True)
class Design:
    """What is compiled: everything about a trial but its numbers.

    Attributes:
      network: the architecture.
      family: of the weights; None if the targets are given.
      pruning: the method.
      pruned: one Boolean a layer.
      ball: over which the gap is bracketed; None if it is taken over given rows.
      stream: of the random bits of weights and masks, see `bits.STREAMS`.
    """

    network: Network
    family: Family | None
    pruning: Pruning
    pruned: tuple[bool, ...]
    ball: Ball | None
    stream: str = STANDARD


class Numbers(NamedTuple):
    """What varies without compiling again.

    Attributes:
      root: the root key.
      levels: int32 `(l,)`, from `Pruning.level`; ignored where a layer is not pruned.
      scales: float32 `(l,)`, from `Law.scale`; None if the targets are given.
      targets: given targets, each array with a leading axis of trials; None if sampled.
      rows: `(n, *in_shape)` inputs over which the gap is taken; None for the unit ball.
      labelled: `((m, *in_shape), int32 (m,))` on which accuracy is counted, or None.
    """

    root: Key
    levels: jax.Array
    scales: jax.Array | None = None
    targets: Params | None = None
    rows: jax.Array | None = None
    labelled: tuple[jax.Array, jax.Array] | None = None


class Pair(NamedTuple):
    """A target and what pruning removes from it.

    Attributes:
      inputs: the key of the trial's inputs.
      params: the target's weights.
      removed: from `gaps.removed_part`.
    """

    inputs: Key
    params: Params
    removed: Removed

    @property
    def pruned(self) -> Params:
        """The pruned network's weights."""
        pairs = zip(self.params, self.removed, strict=True)
        return tuple(w if p is None else w - p for w, p in pairs)


class Trial(NamedTuple):
    """What one trial yields; `()` arrays, `(trials,)` after batching.

    Attributes:
      finite: every weight and all numbers below but `relative` are finite.
      lower: lower end of the gap's bracket.
      upper: upper end.
      sampled: largest distance over the sampled inputs alone.
      rms: root of the squared distance per output, averaged over those inputs.
      mean: distance averaged over those inputs.
      relative: largest distance over the target's length among those inputs; may be infinite.
      target_correct: int32, labelled inputs that the target classifies correctly (0 if none).
      pruned_correct: the same for the pruned network.
    """

    finite: jax.Array
    lower: jax.Array
    upper: jax.Array
    sampled: jax.Array
    rms: jax.Array
    mean: jax.Array
    relative: jax.Array
    target_correct: jax.Array
    pruned_correct: jax.Array


def target(design: Design, numbers: Numbers, trial: TrialId, layer_keys: Key) -> Params:
    """The target's weights in one trial; `layer_keys` is `(l,)`."""
    if design.family is None:
        return jax.tree.map(lambda w: w[trial[1]], numbers.targets)
    return tuple(
        laws.sample(
            design.family,
            numbers.scales[i],
            random_bits(layer_keys[i], shape, design.stream),
        )
        for i, shape in enumerate(design.network.weight_shapes)
    )


def masks(
    design: Design, numbers: Numbers, params: Params, layer_keys: Key
) -> tuple[jax.Array | None, ...]:
    """One mask a layer, True where a weight is kept; None for a layer that is left alone."""

    def mask(i, w):
        bits = random_bits(layer_keys[i], w.shape, design.stream)
        return design.pruning.mask(bits, w, numbers.levels[i])

    layers = enumerate(zip(params, design.pruned, strict=True))
    return tuple(mask(i, w) if pruned else None for i, (w, pruned) in layers)


def draw_masked(
    design: Design, numbers: Numbers, trial: TrialId
) -> tuple[Key, Params, tuple[jax.Array | None, ...]]:
    """Samples one trial's target and its masks; the first is the key of the trial's inputs."""
    import chex  # here, so that importing the package stays light

    layers = len(design.network.layers)
    drawn = keys.trial_keys(numbers.root, keys.TRIAL_PURPOSES, layers, trial)
    params = target(design, numbers, trial, drawn[keys.WEIGHTS])
    chex.assert_shape(params, design.network.weight_shapes)
    return drawn[keys.INPUTS, 0], params, masks(design, numbers, params, drawn[keys.MASK])


def draw_pair(design: Design, numbers: Numbers, trial: TrialId) -> Pair:
    """Samples and prunes the target of one trial."""
    key, params, kept = draw_masked(design, numbers, trial)
    return Pair(key, params, removed_part(params, kept))


def measurement(
    network: Network, ball: Ball | None, pair: Pair, rows: jax.Array | None
) -> Measurement:
    """The bracket of one pair's gap over a ball or, without one, over the rows."""
    key, params, removed = pair
    if ball is None:
        return measure_rows(rows, network, params, removed)
    measure = measure_ball if isinstance(ball, UnitBall) else measure_linf_ball
    return measure(ball, key, network, params, removed)


def measure_pair(network: Network, ball: Ball | None, pair: Pair, rows: jax.Array | None) -> Trial:
    """Brackets the gap of one pair over a ball or, without one, over the rows.

    `rows` are those of `Numbers`. No labelled input is looked at: the last two fields are 0.
    """
    gap, sampled, rms, mean, relative = measurement(network, ball, pair, rows)
    # A ReLU may hide an infinite weight from the outputs: look at the weights themselves.
    finite = jnp.all(jnp.isfinite(jnp.stack([*gap, sampled, rms, mean])))
    for w in pair.params:
        # By a sum of at most 2^31 numbers, which XLA vectorises; scaled, it cannot overflow.
        finite &= jnp.isfinite(jnp.sum(jnp.abs(w) * 2.0**-31))
    return Trial(finite, *gap, sampled, rms, mean, relative, jnp.int32(0), jnp.int32(0))


def count_correct(
    network: Network, pair: Pair, labelled: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """How many labelled inputs the target and the pruned network classify correctly, int32."""
    x, labels = jnp.moveaxis(labelled[0], 0, -1), labelled[1]

    def correct(params):
        return jnp.sum(jnp.argmax(network(params, x), axis=0) == labels, dtype=jnp.int32)

    return correct(pair.params), correct(pair.pruned)

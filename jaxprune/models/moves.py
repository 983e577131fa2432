"""Comparison of a given model with its pruned copies at given inputs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import validation
from jaxprune.engine import Tally, Trial, keys
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model
from jaxprune.models.paths import floating
from jaxprune.models.precision import is_floating, narrowest, widened
from jaxprune.statistics import (
    Claim,
    Counts,
    Decision,
    judge,
    lower_limit,
    quantile_ranks,
    upper_limit,
)
from jaxprune.types import Key

BATCH = 256
TWINS = 64
"""Inputs at which distances are computed in float64 as well."""

BAND = 20.0
"""A distance this many times its rounding error from epsilon, or less, counts neither way."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Distances `||F(x) - f(x)||` of a model and its pruned copy at n inputs.

    What is said of probabilities is about further inputs, if these n were drawn independently from
    the same source, and the masks were chosen without them.

    Attributes:
      distances: `(n,)` float64, Euclidean over all outputs of an input.
      sizes: `(n,)` float64, of `||F(x)||`.
      width: how many outputs an input has.
      error: the largest error of a distance against float64, over `||F|| + ||F - f||`, at up to 64
        inputs. NaN if the model computes anything in a type of its own whatever its parameters
        have, such as a layer in bfloat16; then nothing is decided.
        `dataclasses.replace(moves, error=0.0)` takes its outputs as they are.
      changed: how many finite inputs have another largest output (class) than before, as computed;
        None unless an output is a vector of at least two.
      correct, pruned_correct: how many labelled inputs were, and are, classified correctly; None
        without labels.
    """

    distances: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    width: int
    error: float
    changed: int | None = None
    correct: int | None = None
    pruned_correct: int | None = None

    @property
    def n(self) -> int:
        """How many inputs."""
        return len(self.distances)

    @property
    def largest(self) -> float:
        """The largest distance; NaN if one is not a number."""
        return float(np.max(self.distances))

    @property
    def finite(self) -> np.ndarray:
        """`(n,)` Boolean, where both outputs are finite."""
        return np.isfinite(self.distances) & np.isfinite(self.sizes)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """`(n,)` lower and upper ends: 20 times the rounding error on either side of a distance.

        0 and infinity where an output is not finite, or the error unknown.
        """
        with np.errstate(invalid="ignore"):
            band = BAND * self.error * (self.sizes + self.distances)
            low, high = np.maximum(self.distances - band, 0.0), self.distances + band
        told = self.finite & np.isfinite(band)
        return np.where(told, low, 0.0), np.where(told, high, np.inf)

    def counts(self, eps: float) -> Counts:
        """Inputs that move at most eps, too near to eps to tell, further, and not finite."""
        eps = validation.real("eps", eps, 0.0, np.inf)
        low, high = self.ends
        finite = int(self.finite.sum())
        close, far = int((high <= eps).sum()), int((low > eps).sum())
        return Counts(close, finite - close - far, far, self.n - finite)

    def within(self, eps: float, delta: float = 0.05, confidence: float = 0.99) -> Decision:
        """Whether `P(||F(x) - f(x)|| <= eps) >= 1 - delta` over inputs x.

        Args:
          eps: fixed before the distances were seen.
          delta: share of inputs that may move further, in (0, 1).
          confidence: of the verdict and of each limit by itself, see `statistics.judge`.
        """
        return judge([Claim(self.counts(eps), delta)], confidence)[0]

    def quantile(self, tail: float, confidence: float = 0.99) -> tuple[float, float]:
        """Limits of the distance that a share `tail` of all inputs exceeds, by order statistics.

        Both hold together with the confidence, whatever the distribution of distances. An input
        whose outputs are not finite counts as 0 in the lower limit, as infinite in the upper.

        Returns:
          0 and infinity where the inputs are too few.
        """
        confidence = validation.real("confidence", confidence, 0.0, 1.0)
        ranks = quantile_ranks(self.n, tail, 1.0 - confidence)
        low, high = map(np.sort, self.ends)
        return (
            0.0 if ranks.low is None else float(low[ranks.low - 1]),
            np.inf if ranks.high is None else float(high[ranks.high - 1]),
        )

    def changed_share(self, confidence: float = 0.99) -> tuple[float, float]:
        """Limits of the share of all inputs whose class changes (Clopper-Pearson, two-sided).

        An input whose outputs are not finite counts against either limit.

        Raises:
          ValueError: an output is no vector of at least two.
        """
        if self.changed is None:
            raise ValueError("changed = None: the model's outputs are no classes")
        half = 0.5 * (1.0 - validation.real("confidence", confidence, 0.0, 1.0))
        most = self.changed + self.n - int(self.finite.sum())
        low, high = lower_limit(self.changed, self.n, half), upper_limit(most, self.n, half)
        return float(low), float(high)

    def __str__(self):
        low, high = self.quantile(0.05)
        lines = [
            f"{self.n} inputs: distance {np.mean(self.distances):.4g} in the mean, "
            f"{self.largest:.4g} at most; outputs {np.mean(self.sizes):.4g} in the mean",
            f"95 % of all inputs move at most q, q in [{low:.4g}, {high:.4g}] (99 % confidence)",
        ]
        if self.changed is not None:
            low, high = self.changed_share()
            share = f"{100 * low:.2f} % to {100 * high:.2f} % of all inputs (99 % confidence)"
            lines.append(f"{self.changed} change class: {share}")
        if self.correct is not None:
            lines.append(f"{self.correct} were correct, {self.pruned_correct} are now")
        return "\n".join(lines)


def moves(
    model: Any, masks: Masks, x: np.ndarray, labels: np.ndarray | None = None, *, batch: int = BATCH
) -> Moves:
    """Compares a model with its pruned copy at given inputs.

    Args:
      model: what `Model.of` takes: a Flax NNX or Equinox module, or `(params, apply)`.
      masks: from `prune`.
      x: `(n, ...)` inputs, each as the model takes it.
      labels: `(n,)` whole numbers, the classes, from 0; None for none.
      batch: inputs at once.

    Raises:
      ValueError: no inputs, integers that JAX's type does not hold, labels that do not fit, masks
        of another model, or a model whose output is no array with one entry for each input.
    """
    return _against(_target(model, x, labels, batch), masks)


def simulate_masks(
    model: Any,
    draw: Callable[[Key], Masks],
    x: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    eps: Sequence[float],
    trials: int = 200,
    seed: int = 0,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """The gaps over given inputs of one model and many random masks.

    Args:
      model: as for `moves`.
      draw: masks from a key, such as
        `lambda key: models.prune(params, "random", 0.1, key=key)`. That of trial i depends on
        seed and i alone.
      x: `(n, ...)` inputs; a trial's gap is the largest distance among them.
      labels: as for `moves`.
      eps: the epsilons, positive, fixed before sampling.
      trials: how many independent masks.
      seed: from 0 to 2^32 - 1.
      batch: inputs at once.
      progress: called after each trial with the number done.

    Returns:
      As `simulate`: P is over masks, model and inputs being fixed. A gap's bracket is 20 times
      the rounding error of its distances on either side. A trial of which an input's outputs are
      not finite, or whose error is unknown (`Moves.error`), counts as not finite: a success
      for no eps.

    Raises:
      ValueError: as `moves`, or a number out of range.
    """
    if not isinstance(eps, Sequence | np.ndarray) or not len(eps):
        raise ValueError(f"eps = {eps!r}: a list of at least one number is needed")
    eps = tuple(validation.real("eps", e, 0.0, np.inf) for e in eps)
    trials = validation.integer("trials", trials, 1)
    root, target = keys.root_key(seed), _target(model, x, labels, batch)
    labelled = 0 if labels is None else len(target.x)
    tally = Tally(eps, labelled=labelled)
    for i in range(trials):
        masks = draw(keys.trial_key(root, keys.MASK, 0, (np.uint32(0), np.uint32(i))))
        tally += Tally.of(eps, [i], _trial(_against(target, masks)), labelled)
        if progress:
            progress(i + 1)
    return tally


class _Target(NamedTuple):
    """A model's own outputs, computed once for all masks.

    Attributes:
      run: `apply`, compiled.
      params: the model's.
      x: `(n, ...)`.
      labels: `(n,)` or None.
      batch: inputs at once.
      outputs: `(n, ...)`, in the model's own type.
      twins: which inputs are computed in float64 as well.
      exact: their outputs, None if the model computes anything in narrower floats.
    """

    run: Callable[[Any, jax.Array], jax.Array]
    params: Any
    x: np.ndarray
    labels: np.ndarray | None
    batch: int
    outputs: np.ndarray
    twins: np.ndarray
    exact: np.ndarray | None


def _target(model, x, labels, batch):
    model, x = Model.of(model), np.asarray(x)
    batch = validation.integer("batch", batch, 1)
    if x.ndim < 1 or not len(x):
        raise ValueError(f"x of shape {x.shape}: (n, ...) with at least one input is needed")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
            kind = f"{labels.dtype} of shape {labels.shape}"
            raise ValueError(f"labels: {kind}; a whole number for each of {len(x)} is needed")
    for tree in (model.params, {"x": x}):
        floating(tree)  # refuses long doubles in a line
    # What the model gets is what float64 is to get, too.
    given, x = x, x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    if np.issubdtype(given.dtype, np.integer) and (x != given).any():
        raise ValueError(f"x: {given.dtype} with numbers that {x.dtype}, JAX's, does not have")
    run = jax.jit(model.apply)
    twins = np.unique(np.linspace(0, len(x) - 1, TWINS).astype(int))
    outputs = _outputs(run, model.params, x, batch)
    if labels is not None and not _has_classes(outputs):
        raise ValueError(f"labels: outputs of shape {outputs.shape[1:]} are no classes")
    if labels is not None and not 0 <= labels.min() <= labels.max() < outputs.shape[1]:
        span = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"labels: {span}; classes from 0 to {outputs.shape[1] - 1} are needed")
    exact = None
    if not _narrows(model, x[twins]):
        exact = _in_float64(run, model.params, x[twins], batch)
    return _Target(run, model.params, x, labels, batch, outputs, twins, exact)


def _against(target, masks):
    validation.instance("masks", masks, Masks, "the Masks that prune gives")
    pruned = masks.apply(target.params)
    before, after = target.outputs, _outputs(target.run, pruned, target.x, target.batch)
    distances, sizes = _distances(before, after), _distances(before, 0.0)
    moved = Moves(
        distances, sizes, math.prod(before.shape[1:]), _error(target, pruned, distances, sizes)
    )
    if not _has_classes(before):
        return moved
    classes, classes_after = before.argmax(1), after.argmax(1)
    moved = replace(moved, changed=int((moved.finite & (classes != classes_after)).sum()))
    if target.labels is None:
        return moved
    right = lambda y, of: int((np.isfinite(y).all(1) & (of == target.labels)).sum())
    return replace(
        moved, correct=right(before, classes), pruned_correct=right(after, classes_after)
    )


def _trial(moved):
    """The gap over the inputs as the engine's trial."""
    low, high = moved.ends
    with np.errstate(all="ignore"):
        ratios = np.where(moved.distances > 0, moved.distances / moved.sizes, 0.0)
        rms = np.sqrt(np.mean(moved.distances**2) / moved.width)
        numbers = [low.max(), high.max(), moved.largest, rms, np.mean(moved.distances)]
        numbers = np.array([*numbers, ratios.max()], np.float32)[:, None]
    correct = np.array([moved.correct or 0, moved.pruned_correct or 0], np.int32)[:, None]
    return Trial(np.isfinite(numbers[:-1]).all(0), *numbers, *correct)


def _outputs(run, params, x, batch):
    """`(n, ...)`, with products in full precision on every device."""
    parts = []
    with jax.default_matmul_precision("highest"):
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            y = run(params, part)
            if not is_floating(y) or y.shape[:1] != part.shape[:1]:
                got = f"{y.dtype} of shape {y.shape}" if hasattr(y, "dtype") else type(y).__name__
                raise ValueError(
                    f"model: gives {got} for {len(part)} inputs; one array of floats with an entry "
                    "for each is needed"
                )
            parts.append(np.asarray(y))
    return np.concatenate(parts)


def _narrows(model, x):
    """Whether the model computes in floats of its own where it is given float64."""
    with jax.enable_x64(True):
        kind = narrowest(model.apply, *widened((model.params, x)))
    return kind is not None and kind.itemsize < 8


def _in_float64(run, params, x, batch):
    with jax.enable_x64(True):
        return _outputs(run, *widened((params, x)), batch)


def _error(target, pruned, distances, sizes):
    """See `Moves.error`; never below half a unit in the last place of the outputs' type."""
    if target.exact is None:
        return float("nan")
    twin = _in_float64(target.run, pruned, target.x[target.twins], target.batch)
    found, scale = distances[target.twins], (distances + sizes)[target.twins]
    known = np.isfinite(scale)
    wrong = np.abs(_distances(target.exact, twin) - found)[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(wrong == 0, 0.0, wrong / scale[known])
    unit = 0.5 * float(jnp.finfo(target.outputs.dtype).eps)
    return float(np.max(errors, initial=unit))


def _has_classes(outputs):
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _distances(y, other):
    """`(n,)` Euclidean, in float64."""
    with np.errstate(invalid="ignore"):
        d = np.asarray(y, np.float64) - np.asarray(other, np.float64)
        return np.linalg.norm(d.reshape(len(d), -1), axis=1)

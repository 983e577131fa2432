"""Comparison of a given model with its pruned copies at given inputs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import validation
from jaxprune.engine import Tally, Trial, keys
from jaxprune.models.known import Known
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model, is_model
from jaxprune.models.paths import arrays, floating
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
        low, high = _outward(*self.quantile(0.05))
        _, largest = _outward(0, self.largest)
        lines = [
            f"{self.n} inputs: distance {np.mean(self.distances):.4g} in the mean, "
            f"{largest} at most; outputs {np.mean(self.sizes):.4g} in the mean",
            f"95 % of all inputs move at most q, q in [{low}, {high}] (99 % confidence)",
        ]
        if not self.finite.all():
            lines.append(f"{self.n - self.finite.sum()} of {self.n} inputs give no finite distance")
        if self.changed is not None:
            low, high = _outward(*self.changed_share(), unit=100)
            share = f"{low} % to {high} % of all inputs (99 % confidence)"
            lines.append(f"{self.changed} change class: {share}")
        if self.correct is not None:
            lines.append(f"{self.correct} were correct, {self.pruned_correct} are now")
        return "\n".join(lines)


def _outward(low, high, unit=1):
    """Limits to four digits, the lower one rounded down, the upper one up."""

    def text(x, rounding):
        exact = Decimal(float(x)) * unit
        return f"{float(Context(4, rounding).plus(exact)):.4g}"

    return text(low, ROUND_FLOOR), text(high, ROUND_CEILING)


def moves(
    model: Any, pruned: Any, x: np.ndarray, labels: np.ndarray | None = None, *, batch: int = BATCH
) -> Moves:
    """Compares a model with its pruned copy at given inputs.

    Args:
      model: what `Model.of` takes: a Flax NNX or Equinox module, or `(params, apply)`; or what
        `known` has read from parameters alone, which takes images with channels first and has its
        arrays under their own names.
      pruned: Masks, from `prune`; or another model, such as one that was trained further; or other
        parameters of this one, of the same names, shapes and types, as `iterative` gives.
      x: `(n, ...)` inputs, each as the model takes it.
      labels: `(n,)` whole numbers, the classes, from 0; None for none.
      batch: inputs at once.

    Raises:
      ValueError: no inputs, inputs that the model does not take, integers that JAX's type does not
        hold, labels that do not fit, masks or parameters of another model, or a model whose output
        is no array with one entry for each input.
    """
    return _against(_target(model, x, labels, batch), pruned)


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
      model: the model.
      run: its `apply`, compiled.
      x: `(n, ...)`.
      labels: `(n,)` or None.
      batch: inputs at once.
      outputs: `(n, ...)`, in the model's own type.
      twins: which inputs are computed in float64 as well.
      exact: their outputs, None if the model computes anything in narrower floats.
    """

    model: Model
    run: Callable[[Any, jax.Array], jax.Array]
    x: np.ndarray
    labels: np.ndarray | None
    batch: int
    outputs: np.ndarray
    twins: np.ndarray
    exact: np.ndarray | None


def _target(model, x, labels, batch):
    model, x = _model(model), _numbers(x)
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
    _check_runs("model", model, x, batch)
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
    return _Target(model, run, x, labels, batch, outputs, twins, exact)


def _model(model):
    """What `Model.of` takes, or what `known` read."""
    return model.model if isinstance(model, Known) else Model.of(model)


def _numbers(x):
    try:
        x = np.asarray(x)
    except ValueError:
        raise ValueError("x: an array (n, ...) of numbers is needed") from None
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool):
        raise ValueError(f"x: {x.dtype} of shape {x.shape}; numbers are needed")
    return x


def _check_runs(name, model, x, batch):
    """Says in one line that the model does not take such inputs, where that is seen at once."""
    try:
        jax.eval_shape(model.apply, model.params, x[:batch])
    except Exception as error:  # whatever the model's library raises
        said = " ".join(str(error).split())
        said = said if len(said) <= 160 else said[:157] + "..."
        needed = "(n, ...) as the model takes them is needed"
        raise ValueError(
            f"x: {x.dtype} of shape {x.shape}; {needed}, {name} said {type(error).__name__}: {said}"
        ) from error


def _other(target, pruned):
    """The pruned model."""
    model = target.model
    if isinstance(pruned, Masks):
        return Model(model.apply, pruned.apply(model.params))
    if isinstance(pruned, Known) or is_model(pruned):
        other = _model(pruned)
        _check_runs("pruned", other, target.x, target.batch)
        return other
    described = lambda tree: {name: (x.shape, x.dtype) for name, x in arrays(tree).items()}
    alike = jax.tree.structure(pruned) == jax.tree.structure(model.params)
    if not alike or described(pruned) != described(model.params):
        needed = "the Masks that prune gives, a model, or parameters like the model's own"
        raise ValueError(f"pruned = {validation.shown(pruned)}: {needed} are needed")
    return Model(model.apply, pruned)


def _against(target, pruned):
    other = _other(target, pruned)
    run = target.run if other.apply is target.model.apply else jax.jit(other.apply)
    before, after = target.outputs, _outputs(run, other.params, target.x, target.batch)
    if after.shape != before.shape:
        raise ValueError(
            f"pruned: outputs of shape {after.shape[1:]}; {before.shape[1:]} is needed"
        )
    distances, sizes = _distances(before, after), _distances(before, 0.0)
    known = target.exact is not None
    if known and run is not target.run:
        known = not _narrows(other, target.x[target.twins])
    error = math.nan
    if known:
        twin = _in_float64(run, other.params, target.x[target.twins], target.batch)
        unit = max(float(jnp.finfo(y.dtype).eps) for y in (before, after))
        error = _error(target, twin, distances, sizes, 0.5 * unit)
    moved = Moves(distances, sizes, math.prod(before.shape[1:]), error)
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
                given = f"{len(part)} inputs (x of shape {part.shape})"
                needed = "one array of floats with an entry for each is needed"
                raise ValueError(f"model: gives {got} for {given}; {needed}")
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


def _error(target, twin, distances, sizes, least):
    """See `Moves.error`; at least half a unit in the last place of the outputs' type."""
    found, scale = distances[target.twins], (distances + sizes)[target.twins]
    known = np.isfinite(scale)
    wrong = np.abs(_distances(target.exact, twin) - found)[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(wrong == 0, 0.0, wrong / scale[known])
    return float(np.max(errors, initial=least))


def _has_classes(outputs):
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _distances(y, other):
    """`(n,)` Euclidean, in float64."""
    with np.errstate(invalid="ignore"):
        d = np.asarray(y, np.float64) - np.asarray(other, np.float64)
        return np.linalg.norm(d.reshape(len(d), -1), axis=1)

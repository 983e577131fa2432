"""Comparison of a given model with its pruned copies at given inputs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import session, validation
from jaxprune.engine import Tally, Trial, keys
from jaxprune.models.known import Known
from jaxprune.models.masks import Masks
from jaxprune.models.model import Model, alike, arrays_alone, is_model
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


@dataclass(frozen=True, eq=False)
class Moves:
    """Distances `||F(x) - f(x)||` of a model and its pruned copy at n inputs.

    F(x) and f(x) are the outputs as the compiled models compute them, in their own floats. All that
    is counted and decided is about these. How far they are from those of exact arithmetic is
    another question, to which `float64_error` is a hint.

    What is said of probabilities is about further inputs, if these n were drawn independently from
    the same source, and the masks were chosen without them.

    Attributes:
      distances: `(n,)` float64, Euclidean over all outputs of an input.
      sizes: `(n,)` float64, of `||F(x)||`.
      width: how many outputs an input has.
      floats: the narrowest floats that either model computes in, such as "float32".
      float64_error: the largest difference of a distance from that of the same models computed in
        float64, at up to 64 inputs; NaN if they cannot be.
      float64_note: why they cannot; empty if they can.
      changed: how many finite inputs have another class than before; None unless classes were
        asked for.
      correct, pruned_correct: how many labelled inputs were, and are, classified correctly; None
        without labels.
    """

    distances: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    width: int
    floats: str
    float64_error: float = math.nan
    float64_note: str = "not asked for"
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
        """`(n,)` lower and upper ends of the distances, which float64 rounds.

        Apart by `(width + 16) 2^-53` of a distance, equal where outputs are; 0 and infinity where
        an output is not finite.
        """
        # Relative to the sum of `width` squares: an error of 1 in 2^53 of each difference, square
        # and addition; half of that for the root. The rest is room for what comes after.
        slack = (0.5 * self.width + 8.0) * 2.0**-53
        with np.errstate(invalid="ignore", over="ignore"):
            low = np.nextafter(self.distances * (1.0 - slack), 0.0)
            high = np.nextafter(self.distances * (1.0 + slack), np.inf)
        high = np.where(self.distances == 0.0, 0.0, high)
        return np.where(self.finite, low, 0.0), np.where(self.finite, high, np.inf)

    def counts(self, eps: float) -> Counts:
        """Inputs that move at most eps, so near to eps that float64 does not tell, further, and not
        finite.
        """
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
          ValueError: classes were not asked for.
        """
        if self.changed is None:
            raise ValueError("changed = None: moves(..., classes=True) or labels are needed")
        half = 0.5 * (1.0 - validation.real("confidence", confidence, 0.0, 1.0))
        most = self.changed + self.n - int(self.finite.sum())
        low, high = lower_limit(self.changed, self.n, half), upper_limit(most, self.n, half)
        return float(low), float(high)

    def __str__(self):
        low, high = _outward(*self.quantile(0.05))
        _, largest = _outward(0, self.largest)
        lines = [
            f"{self.n} inputs, outputs as computed in {self.floats}: distance "
            f"{np.mean(self.distances):.4g} in the mean, {largest} at most; outputs "
            f"{np.mean(self.sizes):.4g} in the mean",
            f"95 % of all inputs move at most q, q in [{low}, {high}] (99 % confidence)"
            + (f": {self._open()}" if high == "inf" else ""),
        ]
        if not self.finite.all():
            lines.append(f"{self.n - self.finite.sum()} of {self.n} inputs give no finite distance")
        if self.float64_note:
            lines.append(f"not compared with float64: {self.float64_note}")
        else:
            most = _outward(0, self.float64_error, digits=1)[1]
            few = min(self.n, TWINS)
            lines.append(f"in float64 the distances of {few} inputs differ by at most {most}")
        if self.changed is not None:
            low, high = _outward(*self.changed_share(), unit=100)
            share = f"{low} % to {high} % of all inputs (99 % confidence)"
            lines.append(f"{self.changed} change class: {share}")
        if self.correct is not None:
            lines.append(f"{self.correct} were correct, {self.pruned_correct} are now")
        return "\n".join(lines)

    def _open(self):
        """Why the upper limit of the 95 % quantile is infinite."""
        alone = replace(self, distances=np.zeros(self.n), sizes=np.zeros(self.n))
        if math.isinf(alone.quantile(0.05)[1]):
            return f"{self.n} inputs are too few"
        return "too many are not finite"


def _outward(low, high, unit=1, digits=4):
    """Limits to some digits, the lower one rounded down, the upper one up."""

    def text(x, rounding):
        exact = Decimal(float(x)) * unit
        return f"{float(Context(digits, rounding).plus(exact)):.{digits}g}"

    return text(low, ROUND_FLOOR), text(high, ROUND_CEILING)


def moves(
    model: Any,
    pruned: Any,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    classes: bool = False,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Moves:
    """Compares a model with its pruned copy at given inputs.

    Both are compiled as they are, with products in full precision, and their outputs subtracted in
    float64. Where the models can be computed in float64, up to 64 distances are, and
    `Moves.float64_error` says how far they differ; whatever goes wrong there is noted in
    `Moves.float64_note` and changes nothing else.

    Args:
      model: what `Model.of` takes: a Flax NNX or Equinox module, or `(params, apply)`; or what
        `known` has read from parameters alone, which takes images with channels first and has its
        arrays under their own names.
      pruned: Masks, from `prune`; or another model, such as one that was trained further; or other
        parameters of this one, of the same names, shapes and types, as `iterative` gives.
      x: `(n, ...)` inputs, each as the model takes it.
      labels: `(n,)` whole numbers, the classes, from 0; None for none.
      classes: whether outputs are classes, as they are with labels: of several outputs the index of
        the largest; of one, a logit, 1 if it is above 0 and 0 if not.
      batch: inputs at once.
      progress: called after each batch with the number of inputs whose distances are known.

    Raises:
      ValueError: no inputs, inputs that the model does not take, integers that JAX's type does not
        hold, labels that do not fit, masks or parameters of another model, a model whose output is
        no array with one entry for each input, or settings of JAX that `session.check` refuses.
    """
    session.check()
    target = _target(model, x, labels, classes, batch)
    moved, other = _against(target, pruned, progress)
    return _beside_float64(moved, target, other)


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
      As `simulate`: P is over masks, model and inputs being fixed. Gaps are those of outputs as
      computed, see `Moves`; a bracket is as wide as float32 rounds them. A trial of which an
      input's outputs are not finite counts as not finite: a success for no eps.

    Raises:
      ValueError: as `moves`, or a number out of range.
    """
    if not isinstance(eps, Sequence | np.ndarray) or not len(eps):
        raise ValueError(f"eps = {eps!r}: a list of at least one number is needed")
    eps = tuple(validation.real("eps", e, 0.0, np.inf) for e in eps)
    trials = validation.integer("trials", trials, 1)
    root, target = keys.root_key(seed), _target(model, x, labels, False, batch)
    labelled = 0 if labels is None else len(target.x)
    tally = Tally(eps, labelled=labelled)
    for i in range(trials):
        masks = draw(keys.trial_key(root, keys.MASK, 0, (np.uint32(0), np.uint32(i))))
        moved, _ = _against(target, masks)
        tally += Tally.of(eps, [i], _trial(moved), labelled)
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
      floats: the narrowest that it computes in.
      classes: `(n,)`, of the outputs; None if they were not asked for.
    """

    model: Model
    run: Callable[[Any, jax.Array], jax.Array]
    x: np.ndarray
    labels: np.ndarray | None
    batch: int
    outputs: np.ndarray
    floats: np.dtype
    classes: np.ndarray | None


def _target(model, x, labels, classes, batch):
    model, x = _model(model), _numbers(x)
    batch = validation.integer("batch", batch, 1)
    if x.ndim < 1 or not len(x):
        raise ValueError(f"x of shape {x.shape}: (n, ...) with at least one input is needed")
    if labels is not None:
        labels = validation.array("labels", labels)
        whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
        if labels.shape != (len(x),) or not whole:
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
    outputs = _outputs(run, model.params, x, batch)
    found = None
    if classes or labels is not None:
        found, most = _classes("classes" if labels is None else "labels", outputs)
    if labels is not None and not 0 <= labels.min() <= labels.max() <= most:
        span = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"labels: {span}; classes from 0 to {most} are needed")
    floats = _floats(model, x[:batch], outputs)
    return _Target(model, run, x, labels, batch, outputs, floats, found)


def _model(model):
    """What `Model.of` takes, or what `known` read."""
    return model.model if isinstance(model, Known) else Model.of(model)


def _numbers(x):
    x = validation.array("x", x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool):
        raise ValueError(f"x: {x.dtype} of shape {x.shape}; numbers are needed")
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def _check_runs(name, model, x, batch):
    """Says in one line that the model does not take such inputs, where that is seen at once."""
    try:
        jax.eval_shape(model.apply, model.params, x[:batch])
    except Exception as error:  # whatever the model's library raises
        needed = "(n, ...) as the model takes them is needed"
        raise ValueError(
            f"x: {x.dtype} of shape {x.shape}; {needed}, {name} said {validation.said(error)}"
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
    params = arrays_alone(pruned)
    if not alike(params, model.params) or described(params) != described(model.params):
        needed = "the Masks that prune gives, a model, or parameters like the model's own"
        raise ValueError(f"pruned = {validation.shown(pruned)}: {needed} are needed")
    return Model(model.apply, params)


def _against(target, pruned, progress=None):
    """The distances, and the pruned model."""
    other = _other(target, pruned)
    run = target.run if other.apply is target.model.apply else jax.jit(other.apply)
    before, after = target.outputs, _outputs(run, other.params, target.x, target.batch, progress)
    if after.shape != before.shape:
        raise ValueError(
            f"pruned: outputs of shape {after.shape[1:]}; {before.shape[1:]} is needed"
        )
    floats = target.floats
    if run is not target.run:
        floats = min(floats, _floats(other, target.x[: target.batch], after), key=_bytes)
    width = math.prod(before.shape[1:])
    moved = Moves(_distances(before, after), _distances(before, 0.0), width, floats.name)
    if target.classes is None:
        return moved, other
    classes, classes_after = target.classes, _classes("pruned", after)[0]
    moved = replace(moved, changed=int((moved.finite & (classes != classes_after)).sum()))
    if target.labels is None:
        return moved, other
    right = lambda y, of: int((_all_finite(y) & (of == target.labels)).sum())
    moved = replace(
        moved, correct=right(before, classes), pruned_correct=right(after, classes_after)
    )
    return moved, other


def _beside_float64(moved, target, other):
    """What `Moves` says of float64."""
    few = np.unique(np.linspace(0, moved.n - 1, TWINS).astype(int))
    found = moved.distances[few]
    try:
        x, batch = target.x[few], target.batch
        before, after = (_in_float64(m, x, batch) for m in (target.model, other))
        if {before.shape[1:], after.shape[1:]} != {target.outputs.shape[1:]}:
            raise _NoTwin("there its outputs have another shape")
        errors = abs(_distances(before, after) - found)[moved.finite[few]]
        if not (errors.size and np.isfinite(errors).all()):
            raise _NoTwin("there, or here, its outputs are not finite")
    except _NoTwin as reason:
        return replace(moved, float64_note=str(reason))
    except Exception as error:  # other people's code, in floats that it was not written for
        return replace(moved, float64_note=f"there the model says {validation.said(error)}")
    return replace(moved, float64_error=float(errors.max()), float64_note="")


class _NoTwin(Exception):
    """Why a model cannot be compared with itself in float64."""


def _in_float64(model, x, batch):
    with jax.enable_x64(True):
        wide = widened((model.params, x))
        kind = narrowest(model.apply, *wide)
        if kind is not None and kind.itemsize < 8:
            raise _NoTwin(f"the model computes in {kind} whatever its parameters are in")
        return _outputs(jax.jit(model.apply), *wide, batch)


def _trial(moved):
    """The gap over the inputs as the engine's trial, whose ends are float32, rounded outward."""
    low, high = (end.max() for end in moved.ends)
    with np.errstate(all="ignore"):
        ratios = np.where(moved.distances > 0, moved.distances / moved.sizes, 0.0)
        rms = np.sqrt(np.mean(moved.distances**2) / moved.width)
        numbers = [low, high, moved.largest, rms, np.mean(moved.distances)]
        numbers = np.array([*numbers, ratios.max()], np.float32)[:, None]
        if numbers[0] > low:
            numbers[0] = np.nextafter(numbers[0], np.float32(0))
        if numbers[1] < high:
            numbers[1] = np.nextafter(numbers[1], np.float32(np.inf))
    correct = np.array([moved.correct or 0, moved.pruned_correct or 0], np.int32)[:, None]
    return Trial(np.isfinite(numbers[:-1]).all(0), *numbers, *correct)


def _outputs(run, params, x, batch, progress=None):
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
            if progress:
                progress(start + len(part))
    return np.concatenate(parts)


def _floats(model, x, outputs):
    """The narrowest floats that the model computes in."""
    kind = narrowest(model.apply, model.params, x)
    return outputs.dtype if kind is None else min(outputs.dtype, kind, key=_bytes)


def _bytes(kind):
    return kind.itemsize


def _classes(name, outputs):
    """`(n,)` classes, and the last one there is."""
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(1), outputs.shape[1] - 1
    if outputs.shape[1:] in ((), (1,)):
        return (outputs.reshape(-1) > 0).astype(int), 1
    raise ValueError(f"{name}: outputs of shape {outputs.shape[1:]} are no classes")


def _all_finite(outputs):
    return np.isfinite(outputs.reshape(len(outputs), -1)).all(1)


def _distances(y, other):
    """`(n,)` Euclidean, in float64; see `Moves.ends` for its rounding."""
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.asarray(y, np.float64) - np.asarray(other, np.float64)
        d = d.reshape(len(d), -1)
        # Powers of two are exact, and no square that matters over- or underflows.
        _, power = np.frexp(np.max(abs(d), axis=1, initial=0.0))
        return np.ldexp(np.linalg.norm(np.ldexp(d, -power[:, None]), axis=1), power)

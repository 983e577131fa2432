"""Probabilities down to 1e-8 by adaptive multilevel splitting: estimates, which certify nothing.

Particles drawn from the prior climb a score. At each level the lowest are killed and replaced by
copies of survivors, moved by a kernel that is reversible for the prior and refused at or below the
level; `P(score > target)` is the product of the surviving fractions. Au & Beck 2001; Cerou &
Guyader 2007. Killing the k lowest AND all that tie with them, with a strict `>` everywhere, keeps
the mean exact for independent copies, atoms or not (Walter 2015); copies of few moves bias it.

If the kernel mixes badly, or a part of the event hides behind a score that leads elsewhere, the
estimate is too small and its limits are wrong; no test excludes that. What would certify is a run
without failures, as long as `trials_without_failure` says.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxprune import validation
from jaxprune.statistics import binomial
from jaxprune.statistics.binomial import MAX_TRIALS
from jaxprune.statistics.planning import trials_without_failure
from jaxprune.statistics.verdict import ESTIMATED

UNRELIABLE = "unreliable"
"""Of an estimate: a check of the mixing failed, or a replica died out."""

MIXING = "mixing"
"""Doubt: twice the kernel steps moved the mean of log p-hat by more than 2 joint errors."""

SPREAD = "spread"
"""Doubt: replicas scatter more than ideal ones would, at the level `SPREAD_LEVEL`."""

EXTINCT = "extinct"
"""Doubt: a replica ended without a particle above the target."""

SPREAD_LEVEL = 1e-3

MAX_MOVES = 10**10
"""Of a level and a splitting, where each moves a pair and brackets its gap."""

LEAST_SCALE = 1e-3
"""Of the moves: shorter ones go nowhere."""

Particles = tuple[np.ndarray, ...]
"""A population: arrays with a common leading axis of particles."""


class Problem(NamedTuple):
    """A prior and a score.

    Attributes:
      sample: `(rng, n) -> Particles`, independent draws from the prior.
      score: `Particles -> (n,)`, deterministic; infinite values are allowed.
      move: `(rng, particles, scale) -> Particles`, one proposal each, reversible for the prior at
        every scale in (0, 1].
      walk: `(rng, particles, scores, level, scale, steps) -> particles, scores, accepted
        fraction`, in place of a host loop over `move` and `score`; for compiled kernels.
    """

    sample: Callable
    score: Callable
    move: Callable
    walk: Callable | None = None


@dataclass(frozen=True)
class Splitting:
    """How to split.

    Attributes:
      particles: N of one replica.
      kill: k; the k lowest go at each level, and all that tie with them.
      steps: T, kernel steps of each copy at a level.
      replicas: M, independent runs, at least 10.
      scale: first scale of the moves.
      adapt: whether the scale follows the accepted fraction, from one level to the next.
      floor: a replica whose product falls below it ends as extinct.
    """

    particles: int = 200
    kill: int = 20
    steps: int = 25
    replicas: int = 10
    scale: float = 0.5
    adapt: bool = True
    floor: float = 1e-15

    def __post_init__(self):
        validation.integer("particles", self.particles, 2, 2**20)
        validation.integer("kill", self.kill, 1, self.particles - 1)
        validation.integer("steps", self.steps, 1, 10_000)
        validation.integer("replicas", self.replicas, 10, 10_000)
        moves = self.particles * self.steps * self.replicas
        validation.integer("particles * steps * replicas", moves, 1, MAX_MOVES)
        validation.real("scale", self.scale, LEAST_SCALE, 1.0, open=False)
        validation.real("floor", self.floor, 0.0, 1.0)


class Path(NamedTuple):
    """One replica.

    Attributes:
      p: its estimate; 0 if it died out.
      reached: product of the surviving fractions up to the last level.
      killed: particles killed at each level, ties included.
      particles: N.
      variance: of log p (of log reached, if extinct) if every copy were independent: the sum of
        `killed / (N (N - killed))`, and the last stage's.
      scale: of the moves at the end.
    """

    p: float
    reached: float
    killed: tuple[int, ...]
    particles: int
    variance: float
    scale: float

    @property
    def extinct(self) -> bool:
        return self.p == 0.0

    def limits(self, confidence: float) -> tuple[float, float]:
        """Limits that hold for ideal mixing, by the normal law of log p; open below if extinct."""
        z = special.ndtri(0.5 + 0.5 * validation.real("confidence", confidence, 0.0, 1.0))
        factor = math.exp(z * math.sqrt(self.variance))
        return self.p / factor, min(1.0, (self.p or self.reached) * factor)


@dataclass(frozen=True)
class Estimate:
    """An estimated probability. It never certifies: `verdict` has one value.

    Attributes:
      what: what it is the probability of.
      p: mean over the replicas with 2T kernel steps, dead ones at 0.
      low, high: two-sided limits. Where no replica had a level, particles are plain trials, and
        the limits Clopper-Pearson's; where one died out, Student's of the mean and low 0; else
        Student's of the mean of log p-hat, plus half its variance for ideal mixing.
      confidence: of the limits, about, if the mixing is good.
      ideal: limits that hold for ideal mixing; a check, no more.
      shift: mean of log p-hat with 2T steps less that with T; NaN once a replica died out.
      shift_error: its standard error.
      doubts: of `MIXING`, `SPREAD`, `EXTINCT`, those that apply.
      replicas: estimates of the replicas with 2T steps.
      short_replicas: of those with T.
      certifying_trials: trials without a failure that would certify `P <= high`; None beyond
        10^12.
    """

    what: str
    p: float
    low: float
    high: float
    confidence: float
    ideal: tuple[float, float]
    shift: float
    shift_error: float
    doubts: tuple[str, ...]
    replicas: tuple[float, ...]
    short_replicas: tuple[float, ...]
    certifying_trials: int | None

    @property
    def verdict(self) -> str:
        return ESTIMATED

    @property
    def reliable(self) -> bool:
        """No check failed, which proves nothing."""
        return not self.doubts

    def __str__(self):
        doubts = f"; {UNRELIABLE.upper()} ({', '.join(self.doubts)})" if self.doubts else ""
        return (
            f"{self.what}: {ESTIMATED}, {self.p:.3g} in [{self.low:.3g}, {self.high:.3g}] at "
            f"{100 * self.confidence:g} % if the moves mix{doubts}"
        )


def estimate(
    problem: Problem,
    target: float,
    plan: Splitting | None = None,
    *,
    confidence: float = 0.99,
    seed: int = 0,
    what: str = "P(score > target)",
    progress: Callable[[float], None] | None = None,
) -> Estimate:
    """Estimates `P(score > target)` by M replicas with T kernel steps a level, and M with 2T.

    Args:
      problem: prior and score.
      target: failure is a score strictly above it.
      plan: how to split; by default `Splitting()`.
      confidence: of the limits, in (0, 1).
      seed: from 0 to 2^32 - 1.
      what: words for the report.
      progress: called after each replica with the share of the work that is done.

    Raises:
      ValueError: an argument out of range, or a score that is no number.
    """
    if not isinstance(target, numbers.Real) or isinstance(target, bool) or math.isnan(target):
        raise ValueError(f"target = {target!r}: a number is needed")
    plan = Splitting() if plan is None else plan
    validation.instance("plan", plan, Splitting, "a Splitting(...)")
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    seed = validation.integer("seed", seed, 0, 2**32 - 1)

    def replicas(factor):
        paths = []
        for i in range(plan.replicas):
            rng = np.random.default_rng([seed, factor, i])
            paths.append(split(problem, target, plan, rng, factor * plan.steps))
            if progress:
                progress((factor * (i + 1) / plan.replicas + factor - 1) / 3)
        return paths

    return summarize(replicas(1), replicas(2), confidence, what)


def summarize(
    short: Sequence[Path], long: Sequence[Path], confidence: float, what: str = "P(score > target)"
) -> Estimate:
    """The estimate of `long` replicas, checked against `short` ones of half the kernel steps."""
    p, low, high = limits(long, confidence)
    doubts, shift, error = [], math.nan, math.nan
    if any(path.extinct for path in (*short, *long)):
        doubts.append(EXTINCT)
        low = 0.0
    else:
        logs = [np.log([path.p for path in paths]) for paths in (short, long)]
        shift = float(logs[1].mean() - logs[0].mean())
        error = math.sqrt(sum(x.var(ddof=1) / len(x) for x in logs))
        if abs(shift) > 2 * error:
            doubts.append(MIXING)
        # Log p-hat is close to normal. Replicas that scatter more than ideal ones have copies that
        # stayed near their parents: their mean is skewed, and limits are too low too often.
        for paths, x in zip((short, long), logs, strict=True):
            ideal = np.mean([path.variance for path in paths])
            squares = float(((x - x.mean()) ** 2).sum())
            if squares > ideal * 2 * special.gammainccinv((len(x) - 1) / 2, SPREAD_LEVEL / 2):
                doubts.append(SPREAD)
                break
    return Estimate(
        what=what,
        p=p,
        low=low,
        high=high,
        confidence=confidence,
        ideal=_ideal(long, p, confidence),
        shift=shift,
        shift_error=error,
        doubts=tuple(doubts),
        replicas=tuple(path.p for path in long),
        short_replicas=tuple(path.p for path in short),
        certifying_trials=certifying_trials(high, confidence),
    )


def split(
    problem: Problem, target: float, plan: Splitting, rng: np.random.Generator, steps: int
) -> Path:
    """One replica with `steps` kernel steps a level; see `estimate`."""
    n = plan.particles
    walk = problem.walk or _host_walk(problem)
    particles = problem.sample(rng, n)
    scores = _numbers(problem.score(particles))
    scale, killed, reached, variance = plan.scale, [], 1.0, 0.0
    while (level := np.partition(scores, plan.kill - 1)[plan.kill - 1]) < target:
        dead = np.flatnonzero(scores <= level)
        alive = np.flatnonzero(scores > level)
        killed.append(len(dead))
        if not len(alive) or reached < plan.floor:
            return Path(0.0, reached, tuple(killed), n, variance, scale)
        reached *= len(alive) / n
        variance += len(dead) / (n * len(alive))
        parents = rng.choice(alive, len(dead))
        copies, found, rate = walk(
            rng, tuple(x[parents] for x in particles), scores[parents], level, scale, steps
        )
        for x, copy in zip(particles, copies, strict=True):
            x[dead] = copy
        scores[dead] = _numbers(found)
        if plan.adapt:
            # Towards an accepted fraction of 0.3, at levels' ends only: within a level the
            # kernel has to be one and the same to be reversible.
            scale = min(1.0, max(LEAST_SCALE, scale * math.exp(rate - 0.3)))
    above = int((scores > target).sum())
    variance += (n - above) / (n * above) if above else 0.0
    return Path(reached * (above / n), reached, tuple(killed), n, variance, scale)


def _host_walk(problem):
    def walk(rng, particles, scores, level, scale, steps):
        accepted = 0
        for _ in range(steps):
            proposals = problem.move(rng, particles, scale)
            found = _numbers(problem.score(proposals))
            taken = found > level
            accepted += taken.sum()
            particles = tuple(
                np.where(taken.reshape(-1, *[1] * (x.ndim - 1)), new, x)
                for x, new in zip(particles, proposals, strict=True)
            )
            scores = np.where(taken, found, scores)
        return particles, scores, accepted / (steps * len(scores))

    return walk


def _numbers(scores):
    scores = validation.array("score", scores, np.float64).copy()
    if np.isnan(scores).any():
        raise ValueError("score = nan: a number for every particle is needed")
    return scores


def gaussian_step(rng: np.random.Generator, z: np.ndarray, scale: float) -> np.ndarray:
    """`sqrt(1 - b^2) z + b xi`, reversible for independent standard normal z at every b in (0, 1].

    Preconditioned Crank-Nicolson; the accepted fraction does not fall with the dimension.
    """
    return math.sqrt(1.0 - scale**2) * z + scale * rng.standard_normal(z.shape)


def limits(paths: Sequence[Path], confidence: float) -> tuple[float, float, float]:
    """Mean of the replicas, and its two-sided limits; see `Estimate`."""
    p, low, high = t_limits([path.p for path in paths], confidence)
    if all(not path.killed for path in paths):
        trials = sum(path.particles for path in paths)
        below = round((1.0 - p) * trials)
        least, most = binomial.limits(below, trials, 1.0 - confidence)
        return p, float(1.0 - most), float(1.0 - least)
    if extinct := [path for path in paths if path.extinct]:
        return p, 0.0, max(high, *(path.limits(confidence)[1] for path in extinct))
    # The mean of few replicas is skewed where each is uncertain, its logarithm is not:
    # log E p-hat = E log p-hat + variance / 2 where p-hat is log-normal.
    _, low, high = _student(np.log([path.p for path in paths]), confidence)
    half = 0.5 * float(np.mean([path.variance for path in paths]))
    return p, math.exp(low + half), min(1.0, math.exp(high + half))


def t_limits(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean of independent estimates of a probability, and its t limits, cut to [0, 1]."""
    confidence = validation.real("confidence", confidence, 0.0, 1.0)
    x = validation.array("values", values, np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"values of shape {x.shape}: at least two numbers are needed")
    mean, low, high = _student(x, confidence)
    return mean, max(0.0, low), min(1.0, high)


def _student(x, confidence):
    t = special.stdtrit(len(x) - 1, 0.5 + 0.5 * confidence)
    mean, margin = float(x.mean()), float(t * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - margin, mean + margin


def _ideal(paths, p, confidence):
    """Limits of the mean of ideal replicas, by the normal law of its logarithm."""
    variance = float(np.mean([path.variance for path in paths])) / len(paths)
    extinct = any(path.extinct for path in paths)
    middle = max(path.reached for path in paths) if extinct else p
    low, high = Path(middle, middle, (), 1, variance, 1.0).limits(confidence)
    return (0.0 if extinct else low), high


def certifying_trials(p: float, confidence: float) -> int | None:
    """Trials without a failure that certify a probability of at most p; None beyond 10^12."""
    if p >= 1.0:
        return 0
    alpha = 1.0 - confidence
    return trials_without_failure(p, alpha) if -math.log(alpha) <= p * MAX_TRIALS else None


def ideal_interval(iterations: int, particles: int, alpha: float) -> tuple[float, float]:
    """Exact limits of p from the ideal last particle: one killed at a time, copies independent.

    Its number of iterations K is Poisson with mean `-N log p` (Guyader, Hengartner &
    Matzner-Lober 2011), so p = exp(-mean / N) with Garwood's limits of the mean.

    Args:
      iterations: K.
      particles: N.
      alpha: error of the two-sided interval, in (0, 1).
    """
    k = validation.integer("iterations", iterations, 0, MAX_TRIALS)
    n = validation.integer("particles", particles, 1, MAX_TRIALS)
    alpha = validation.real("alpha", alpha, 0.0, 1.0)
    low = special.gammaincinv(k, alpha / 2) if k else 0.0
    high = special.gammainccinv(k + 1, alpha / 2)
    return math.exp(-high / n), math.exp(-low / n)

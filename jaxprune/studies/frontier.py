"""The pruning frontier: the largest sparsity with `P(gap <= eps) >= 1 - delta`, by width.

At every width sparsities stand on a grid that is fixed before sampling. Two bisections look for
the largest sparsity at which the claim holds and the least at which it is violated; between the
two the trials leave it open. All probes of a width share their trials, so a bisection's choice
of the next probe depends on the trials that judge it. That is allowed for: the level is split over
every cell of all grids, probed or not (see `statistics.ends`), so that with the stated confidence
every verdict is right. The bisections alone assume that the gap grows with sparsity: where it does
not, each verdict stands, but a sparsity outside the bracket that was not probed may differ.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune import engine, validation
from jaxprune.bounds import inverse
from jaxprune.gaps import UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Fraction, Pruning
from jaxprune.statistics import BRACKET, HOLDS, TRIALS, VIOLATED, Counts, Ends, judge_ends
from jaxprune.studies.ahead import Background
from jaxprune.studies.result import Progress, environment, plain, sha256
from jaxprune.studies.setting import Layers, Setting, Steps, setting

RESOLUTION = "resolution"
"""The next sparsity of the grid has the opposite verdict: only a finer grid would tell more."""


class Probe(NamedTuple):
    """One sparsity of the grid: counts of its trials and what they say."""

    counts: Counts
    ends: Ends


class Bracket(NamedTuple):
    """Where the frontier lies on a grid of cells 0, ..., size - 1.

    Attributes:
      holds: the largest cell found to hold; -1 if none does.
      violated: the least cell found to be violated; the grid's size if none is.
      probes: every cell looked at.
    """

    holds: int
    violated: int
    probes: dict[int, Probe]

    @property
    def open_because(self) -> str | None:
        """What keeps the ends apart; None where they are the grid's own.

        `statistics.ends.BRACKET` if some cell between them cannot be decided by any number of
        trials, `TRIALS` if none is known not to be, `RESOLUTION` if there is no cell between them.
        """
        if self.violated - self.holds == 1:
            return RESOLUTION if self.violated in self.probes else None
        inner = range(self.holds + 1, self.violated)
        reasons = {probe.ends.reason for i, probe in self.probes.items() if i in inner}
        return BRACKET if BRACKET in reasons else TRIALS


def bisect(probe: Callable[[int], Probe], size: int) -> Bracket:
    """Both boundaries of a grid on which verdicts go from holds over undecided to violated.

    Args:
      probe: of a cell; called once for each that is looked at, at most `most_probes(size)` times.
      size: cells of the grid.
    """
    probes: dict[int, Probe] = {}

    def verdict(i):
        if i not in probes:
            probes[i] = probe(i)
        return probes[i].ends.verdict

    def boundary(low, high, passed):
        """Neighbours low, high: all looked at to low passed, none from high on did."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if passed(verdict(middle)) else (low, middle)
        return low, high

    holds, _ = boundary(-1, size, lambda v: v == HOLDS)
    # What the first bisection saw narrows the second.
    least = min((i for i, p in probes.items() if p.ends.verdict == VIOLATED), default=size)
    inside = [i for i, p in probes.items() if i < least and p.ends.verdict != VIOLATED]
    _, violated = boundary(max(inside, default=-1), least, lambda v: v != VIOLATED)
    inner = range(holds + 1, violated)
    if inner and not any(i in inner and p.ends.reason == BRACKET for i, p in probes.items()):
        # The bisections probe close to the ends, where trials are too few for any reason.
        middle = (holds + violated) // 2
        said = verdict(middle)
        holds = middle if said == HOLDS else holds
        violated = middle if said == VIOLATED else violated
    return Bracket(holds, violated, probes)


def most_probes(size: int) -> int:
    """The largest number of cells that `bisect` looks at."""
    return min(size, 2 * size.bit_length() + 1)


def removal_grid(weights: int, resolution: float) -> tuple[int, ...]:
    """From 1 weight to all of them; each count exceeds the last by `resolution`, or by 1."""
    counts = [1]
    while counts[-1] < weights:
        k = counts[-1]
        counts.append(min(weights, max(k + 1, int(k * (1.0 + resolution)))))
    return tuple(counts)


def frontier(
    network_of_width: Callable[[int], Network],
    law: Law,
    pruning: Pruning,
    *,
    widths: Sequence[int] = (16, 32, 64, 128),
    eps: float = 0.5,
    delta: float = 0.05,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    trials: int = 400,
    confidence: float = 0.95,
    resolution: float = 0.05,
    domain: UnitBall | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Brackets the largest common sparsity with `P(gap <= eps) >= 1 - delta` at each width.

    Beside each bracket stand the theorem's largest sparsity (`bounds.inverse.largest_sparsity`)
    and the one at which a typical gap at one input reaches eps at infinite width, an estimate.

    Args:
      network_of_width: `d -> Network`.
      law: of the weights.
      pruning: `magnitude`, `random` or `bernoulli`.
      widths: at which the frontier is looked for.
      eps: the gap that is allowed, positive.
      delta: in (0, 1).
      layers: which layers are pruned, see `networks.select_layers`.
      trials: independent pairs at each width; all its sparsities use the same.
      confidence: with which all verdicts of the study are right together, in (0, 1).
      resolution: step of the grid of sparsities, relative, in [0.001, 1].
      domain: how the gap over the unit ball is bracketed.
      seed: from 0 to 2^32 - 1.
      progress: called after every block.

    Returns:
      `{"plan": ..., "environment": ..., "points": [...]}`, plain data that is strict JSON; a point
      is one width. The README documents the keys.

    Raises:
      ValueError: a number out of range, too few trials for any claim to be said to hold, or a
        network that does not fit in memory; nothing has been sampled then.
    """
    asked = setting(
        network_of_width,
        law,
        pruning,
        widths=widths,
        layers=layers,
        trials=trials,
        confidence=confidence,
        domain=domain,
        seed=seed,
    )
    eps = validation.real("eps", eps, 0.0, float("inf"))
    delta = validation.real("delta", delta, 0.0, 1.0)
    resolution = validation.real("resolution", resolution, 0.001, 1.0, open=False)
    grids = [removal_grid(_largest_layer(net, layers), resolution) for net in asked.networks]
    cells = sum(map(len, grids))
    level = asked.level(cells, [delta])
    runs = [asked.prepare(network, Fraction(1.0)) for network in asked.networks]
    steps = Steps(progress, [most_probes(len(g)) * g[-1] for g in grids])
    points = []
    with Background() as background:
        background.compile(runs)
        for network, grid in zip(asked.networks, grids, strict=True):
            bracket = bisect(_prober(asked, network, grid, eps, delta, level, steps), len(grid))
            points.append(_point(asked, network, grid, bracket, eps, delta))
            steps.next()
    plan = plain(
        {
            "study": "frontier",
            "eps": eps,
            "delta": delta,
            "resolution": resolution,
            "cells": cells,
            **asked.facts(),
        }
    )
    return {
        "plan": {"hash": sha256(plan), **plan},
        "environment": environment(seed),
        "points": plain(points),
    }


def _prober(
    asked: Setting,
    network: Network,
    grid: Sequence[int],
    eps: float,
    delta: float,
    level: float,
    steps: Steps,
) -> Callable[[int], Probe]:
    """Samples and judges a cell of a width's grid."""
    done, shown = 0, defaultdict(list)
    share = lambda cells, of: f"{grid[of(cells)] / grid[-1]:.3g}" if cells else "none"

    def probe(cell):
        nonlocal done
        doing, most = f"{network}: sparsity {grid[cell] / grid[-1]:.3g}", most_probes(len(grid))
        so_far = (
            f"so far holds at {share(shown[HOLDS], max)}, violated at {share(shown[VIOLATED], min)}"
        )
        report = lambda n: steps.at(
            doing, (done + n / asked.trials) / most, f"{n} of {asked.trials} trials; {so_far}"
        )
        report(0)
        run = asked.prepare(network, Fraction(grid[cell] / grid[-1]))
        counts = engine.tally_run(run, [eps], report).counts(eps)
        done += 1
        ends = judge_ends(counts, delta, level)
        shown[ends.verdict].append(cell)
        return Probe(counts, ends)

    return probe


def _point(
    asked: Setting,
    network: Network,
    grid: Sequence[int],
    bracket: Bracket,
    eps: float,
    delta: float,
) -> dict[str, Any]:
    case = network, asked.law, asked.pruning
    theorem = inverse.largest_sparsity(*case, eps=eps, delta=delta, layers=asked.layers)
    typical = network.is_dense and inverse.typical_largest_sparsity(
        *case, eps=eps, layers=asked.layers
    )
    holds, violated = bracket.holds, bracket.violated
    return {
        "network": str(network),
        "width": asked.widths[asked.networks.index(network)],
        "holds": grid[holds] / grid[-1] if holds >= 0 else 0.0,
        "violated": grid[violated] / grid[-1] if violated < len(grid) else None,
        "open_because": bracket.open_because,
        "theorem": theorem.sparsity,
        "infinite_width": typical.sparsity if typical else None,
        "grid": len(grid),
        "probes": [
            {
                "sparsity": grid[i] / grid[-1],
                **probe.counts._asdict(),
                "p_low": probe.ends.p_low,
                "p_high": probe.ends.p_high,
                "verdict": probe.ends.verdict,
                "reason": probe.ends.reason,
            }
            for i, probe in sorted(bracket.probes.items())
        ],
    }


def _largest_layer(network: Network, layers: Layers) -> int:
    chosen = select_layers(network, layers)
    return max(n for n, c in zip(network.weight_counts, chosen, strict=True) if c)

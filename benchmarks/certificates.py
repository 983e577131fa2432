"""How tight the network theorem is: certified gap over simulated quantile, and what loses most.

    python benchmarks/certificates.py [--widths 128 512] [--layers 3] [--laws uniform normal]
                                      [--methods random magnitude] [--alpha 0.25] [--delta 0.01]
                                      [--trials 200] [--seed 0] [--json FILE]

The middle layers of a ReLU network of equal widths lose ⌊D^(1 - alpha)⌋ weights. `certify` gives a
number that the gap exceeds with probability at most delta; the simulated (1 - delta) quantile is
that of the gap's LOWER bound, found by ascent, so the true ratio lies between the two columns "over
lower" and "over upper". Then the proof of theorem 8 is idealised in steps, and each step's factor
shows what that part of the proof costs:

  spread   deviations from means, all set to 0
  removed  ||W - W∘M||: its bound against the simulated median
  convex   convex order: deviation of the dominating Gaussian against the weights' own
  rest     the structure: suprema over sets in place of the pair's own directions, and ascent

Quantiles are estimates; with n trials the 99 % quantile of n < 300 is nearly the largest value.

Part of the default printout (ten minutes on 2 busy cores, AMD EPYC), and that of `--widths 2048
--trials 24` (an hour):

                          by     by    lower   over   over                                 loses
  width  law   pruning    norms  images  99 % q.  lower  upper  spread  removed  convex  rest  most
  ─────────────────────────────────────────────────────────────────────────────────────────────────
  512  uniform random      5.84    5.41     1.25   4.33   2.19    1.22     1.09    1.15  2.82  rest
  512  uniform magnitude   0.26   0.242   0.0488   4.96   2.18    1.23     1.09    1.16   3.2  rest
  512  normal  random      6.14    4.43     1.28   3.45   1.78    1.28     1.08       1  2.49  rest
  512  normal  magnitude  0.188    0.14   0.0366   3.82   1.76    1.28     1.07       1  2.78  rest
 2048  uniform random      3.97     3.4    0.828    4.1   1.88    1.12     1.07    1.16  2.97  rest
 2048  uniform magnitude  0.088  0.0754   0.0146   5.17   1.91    1.12     1.07    1.16  3.74  rest
 2048  normal  random      4.11    2.69     0.84    3.2   1.49    1.13     1.07       1  2.65  rest
 2048  normal  magnitude 0.0637  0.0424   0.0108   3.93   1.47    1.14     1.06       1  3.27  rest
"""

import argparse
import dataclasses
import itertools
import math
import sys
import time
from typing import Any

import command
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxprune import bounds, laws, networks, pruning, validation
from jaxprune.bounds.ball_images import REMOVED
from jaxprune.bounds.counts import removed_counts
from jaxprune.bounds.images import ball_images, certify_by_images
from jaxprune.bounds.telescoped import certify_by_norms
from jaxprune.engine import simulate

LAWS = {"uniform": laws.uniform(6**0.5), "normal": laws.normal(2**0.5)}
STEPS = ("spread", "removed", "convex", "rest")


def idealised(network, law, method: str, removed: list[int], delta: float, seed: int) -> list:
    """The gap that theorem 8's recursion gives as parts of it become exact, one a step."""
    images = ball_images(network, law, method, removed, delta)
    rng = np.random.default_rng(seed)
    removed_part = lambda i, k: command.draw_removed(rng, network.layers[i], law, method, k)
    simulated = {
        i: float(np.median([command.norm(removed_part(i, k)) for _ in range(5)]))
        for i, k in enumerate(removed)
        if k
    }

    def without_spread(i, what):
        layer = images.layers[i]
        if what == REMOVED:
            return layer.removed.values(np.log(delta))
        return layer.frobenius if what != "weights" else layer.weights.mean

    def with_own_norms(i, what):
        return simulated[i] if what == REMOVED else without_spread(i, what)

    own = dataclasses.replace(
        images,
        layers=tuple(
            dataclasses.replace(facts, deviation=math.sqrt(law.variance(*layer.fans)))
            for facts, layer in zip(images.layers, network.layers, strict=True)
        ),
    )
    nothing = lambda i, what: 0.0
    return [
        float(each.together(norm, nothing).eps)
        for each, norm in (
            (images, without_spread),
            (images, with_own_norms),
            (own, with_own_norms),
        )
    ]


def measure(args: argparse.Namespace, width: int, law_name: str, method: str) -> dict[str, Any]:
    """One row of the table."""
    network, law = networks.dense((width,) * (args.layers + 1)), LAWS[law_name]
    amount, chosen = pruning.Sublinear(args.alpha), pruning.METHODS[method]
    layers = "middle" if args.layers > 2 else network.names[-1]
    start = time.perf_counter()
    certificate = bounds.certify(network, law, chosen, amount, layers=layers, delta=args.delta)
    seconds = time.perf_counter() - start
    tally = simulate(
        network, law, chosen, amount, layers=layers, eps=[certificate.eps],
        trials=args.trials, seed=args.seed,
    )  # fmt: skip
    lower, upper = (tally.gap_quantile(1 - args.delta)[side] for side in (0, 1))
    removed = list(removed_counts(network, chosen, amount, layers))
    by_norms = certify_by_norms(network, law, method, removed, args.delta)
    steps = idealised(network, law, method, removed, args.delta, args.seed)
    images = certify_by_images(network, law, method, removed, args.delta)
    chain = [images.eps, *steps, lower]
    ratios = (before / after for before, after in itertools.pairwise(chain))
    factors = dict(zip(STEPS, ratios, strict=True))
    return {
        "width": width,
        "layers": args.layers,
        "law": law_name,
        "method": method,
        "alpha": args.alpha,
        "delta": args.delta,
        "trials": args.trials,
        "certified": certificate.eps,
        "route": certificate.route,
        "by_norms": by_norms.eps,
        "by_images": images.eps,
        "lower_quantile": lower,
        "upper_quantile": upper,
        "over_lower": certificate.eps / lower,
        "over_upper": certificate.eps / upper,
        "factors": factors,
        "loses_most": max(factors, key=factors.get),
        "exceeded": tally.counts(certificate.eps).far,
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]], delta: float) -> Table:
    """One line a network."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("width", "law", "pruning"):
        made.add_column(name, no_wrap=True)
    quantile = f"{100 * (1 - delta):g} % q."
    columns = ("by\nnorms", "by\nimages", f"lower\n{quantile}", "over\nlower", "over\nupper")
    for name in (*columns, *STEPS):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("loses\nmost", no_wrap=True)
    for row in rows:
        keys = ("by_norms", "by_images", "lower_quantile", "over_lower", "over_upper")
        numbers = [row[key] for key in keys]
        made.add_row(
            str(row["width"]), row["law"], row["method"],
            *(f"{x:.3g}" for x in (*numbers, *row["factors"].values())),
            row["loses_most"],
        )  # fmt: skip
    return made


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(prog="certificates", description=__doc__.partition("\n")[0])
    made.add_argument("--widths", type=int, nargs="+", default=[128, 512], metavar="D")
    made.add_argument("--layers", type=int, default=3, metavar="L")
    made.add_argument("--laws", choices=LAWS, nargs="+", default=list(LAWS))
    made.add_argument(
        "--methods", choices=["random", "magnitude"], nargs="+", default=["random", "magnitude"]
    )
    made.add_argument("--alpha", type=float, default=0.25)
    made.add_argument("--delta", type=float, default=0.01)
    made.add_argument("--trials", type=int, default=200, metavar="N")
    made.add_argument("--seed", type=int, default=0)
    return made


def check(args: argparse.Namespace) -> None:
    """Raises ValueError with one line."""
    for width in args.widths:
        validation.integer("widths", width, 8, 8192)
    validation.integer("layers", args.layers, 2, 100)
    validation.real("alpha", args.alpha, 0.0, 1.0)
    validation.real("delta", args.delta, 0.0, 1.0)
    validation.integer("trials", args.trials, 1, 10**6)
    validation.integer("seed", args.seed, 0)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row of the table, printed."""
    progress, rows = Console(stderr=True), []
    for width, law, method in itertools.product(args.widths, args.laws, args.methods):
        rows.append(measure(args, width, law, method))
        progress.print(f"{width} {law} {method}: {rows[-1]['over_lower']:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows, args.delta))
    return rows


if __name__ == "__main__":
    sys.exit(command.carry_out(parser(), check, run))

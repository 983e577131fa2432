"""How fast the typical gap reaches its limit of infinite width: the slope in 1 / width.

    python benchmarks/finite_width.py [--widths 16 32 64 128 256 512] [--activations relu tanh]
                                      [--methods random magnitude] [--fraction 0.1] [--layers 3]
                                      [--law uniform] [--gain G] [--weights 2e8] [--seed 0]
                                      [--json FILE]

Claim measured: `jaxprune.infinite_width` gives the limit of `E (F(x) - f(x))²` per output; here is
how far networks of width d are from it. Each network has `--layers` layers of width d, input
included, the middle ones pruned; x has equal coordinates and norm 1. Simulated means over the limit
are fitted by

    mean(d) / limit(d) - 1 = slope / d + curvature / d²

by least squares, weighted by the standard errors. Printed: both with 95 % intervals, the p-value
of the fit (chi-square; small if the model is too simple for the widths), and the ratios. A linear
network (`--activations identity`) has no correction by random pruning; by magnitude, with uniform
weights, 3 / fraction is the curvature of its middle layer, because the threshold is random.

Typical printout, `--weights 1e8`, three minutes on 2 cores (slope and curvature):

  relu, random         -0.71 ± 0.44      1 ± 8
  relu, magnitude       0.16 ± 0.48     23 ± 9
  tanh, random         -0.01 ± 0.27     -0 ± 5
  tanh, magnitude       0.06 ± 0.31     31 ± 5
"""

import argparse
import itertools
import math
import sys
from typing import NamedTuple

import command
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import special

import jaxprune as jp
from jaxprune import validation
from jaxprune.activations import ACTIVATIONS
from jaxprune.pruning import METHODS

LAWS = {"uniform": (jp.uniform, 6**0.5), "normal": (jp.normal, 2**0.5)}
CONFIDENCE = 0.95


class Fit(NamedTuple):
    """`ratio - 1 = slope / d + curvature / d²`; half-widths of 95 % intervals, p of chi-square."""

    slope: float
    slope_error: float
    curvature: float
    curvature_error: float
    p_value: float


def fit(widths, ratios, errors) -> Fit:
    """Weighted least squares; `errors` are the standard errors of `ratios`, both `(n,)`, n >= 3."""
    widths, ratios, errors = (np.asarray(v, np.float64) for v in (widths, ratios, errors))
    design = np.stack([1 / widths, 1 / widths**2], axis=1) / errors[:, None]
    target = (ratios - 1.0) / errors
    covariance = np.linalg.inv(design.T @ design)
    slope, curvature = covariance @ design.T @ target
    half = special.ndtri(0.5 + 0.5 * CONFIDENCE) * np.sqrt(np.diag(covariance))
    misfit = float(np.sum((target - design @ [slope, curvature]) ** 2))
    p_value = special.chdtrc(len(widths) - 2, misfit)
    return Fit(*map(float, (slope, half[0], curvature, half[1], p_value)))


def measure(args: argparse.Namespace, activation: str, method: str) -> dict:
    """All widths of one activation and one method, and their fit."""
    make, gain = LAWS[args.law]
    law = make(gain if args.gain is None else args.gain)
    points = []
    for d in args.widths:
        network = jp.dense((d,) * (args.layers + 1), ACTIVATIONS[activation])
        case = network, law, METHODS[method], jp.Fraction(args.fraction)
        limit = jp.infinite_width(*case).mean_squared_gap
        trials = int(min(1e5, max(200, args.weights / (args.layers * d**2))))
        x = np.full((1, d), d**-0.5, np.float32)
        tally = jp.simulate(*case, eps=[1.0], trials=trials, domain=x, seed=args.seed)
        mean, error = tally.mean_squared_gap()
        if tally.finite != trials or not limit > 0.0:
            raise ValueError(f"width {d}: nothing was removed, or a gap is not finite")
        points.append(
            {"width": d, "trials": trials, "limit": limit, "mean": mean, "standard_error": error}
        )
    ratios, errors = ([v[key] / v["limit"] for v in points] for key in ("mean", "standard_error"))
    return {
        "activation": activation,
        "method": method,
        "law": str(law),
        "layers": args.layers,
        "fraction": args.fraction,
        "points": points,
        "fit": fit(args.widths, ratios, errors)._asdict(),
    }


def table(rows: list[dict], widths: list[int]) -> Table:
    """Slopes, and 100 times `mean / limit - 1` with its standard error, by width."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("activation, pruning")
    for name in ("slope", "curvature", "p", *(f"d = {d}" for d in widths)):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found = row["fit"]
        made.add_row(
            f"{row['activation']}, {row['method']}",
            f"{found['slope']:.2f} ± {found['slope_error']:.2f}",
            f"{found['curvature']:.0f} ± {found['curvature_error']:.0f}",
            f"{found['p_value']:.2g}",
            *(
                f"{100 * (v['mean'] / v['limit'] - 1):+.2f} ± "
                f"{100 * v['standard_error'] / v['limit']:.2f} %"
                for v in row["points"]
            ),
        )
    return made


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(prog="finite_width", description=__doc__.partition("\n")[0])
    made.add_argument(
        "--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512], metavar="D"
    )
    made.add_argument(
        "--activations", choices=ACTIVATIONS, nargs="+", default=["relu", "tanh"], metavar="S"
    )
    made.add_argument("--methods", choices=METHODS, nargs="+", default=["random", "magnitude"])
    made.add_argument("--fraction", type=float, default=0.1, metavar="Q", help="removed (0.1)")
    made.add_argument("--layers", type=int, default=3, metavar="L")
    made.add_argument("--law", choices=LAWS, default="uniform")
    made.add_argument("--gain", type=float, metavar="G", help="by default E ||W x||² = 2 ||x||²")
    made.add_argument(
        "--weights", type=float, default=2e8, help="drawn a width; sets the number of trials (2e8)"
    )
    made.add_argument("--seed", type=int, default=0)
    return made


def check(args: argparse.Namespace) -> None:
    """Raises ValueError with one line."""
    for width in args.widths:
        validation.integer("widths", width, 4, 4096)
    if len(set(args.widths)) < 3:
        raise ValueError(f"widths = {args.widths}: three different ones at least are needed")
    validation.real("fraction", args.fraction, 0.0, 1.0)
    validation.integer("layers", args.layers, 3, 100)
    validation.real("weights", args.weights, 0.0, math.inf)
    if args.gain is not None:
        validation.real("gain", args.gain, 0.0, math.inf)


def run(args: argparse.Namespace) -> list[dict]:
    """Every row of the table, printed."""
    progress, rows = Console(stderr=True), []
    for activation, method in itertools.product(args.activations, args.methods):
        with progress.status(f"{activation}, {method}"):
            rows.append(measure(args, activation, method))
    Console(width=150).print(table(rows, args.widths))
    return rows


if __name__ == "__main__":
    sys.exit(command.carry_out(parser(), check, run))

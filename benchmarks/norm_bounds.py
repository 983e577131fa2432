"""How far each norm bound is from the norm: bound over simulated quantile, member by member.

    python benchmarks/norm_bounds.py [--law uniform] [--widths 32 128 512 2048] [--ratios 1 16]
                                     [--fractions 1 0.5 0.1 0.01] [--methods random magnitude]
                                     [--delta 0.1] [--draws 200] [--seed 0] [--json FILE]

Claim measured: `jaxprune.bounds.random_matrices.removed_norm_bounds`, the family of theorems on the
operator norm of the part of a layer that pruning removes (all of the layer for fraction 1), each at
the same delta, over the (1 - delta) quantile of norms of drawn matrices. A layer has d rows and d /
ratio columns. Above 1 by as much as theory and drawing have left; below 1, beyond the error of the
quantile, would be a mistake (tests/test_norm_family.py looks for one with a stated false alarm).

Norms come from Lanczos iterations to 1e-4. Layers beyond 512 x 512 are drawn less often, but 40
times at least. The JSON file holds 95 % limits of every quantile, from order statistics.

Part of the default printout (one minute on 2 cores, AMD EPYC; no figure depends on the machine):

  bound / simulated 90 % quantile
                           tree  compar-  same  concen-  convex  Bern-  Frobe-
  layer     removed       walks     ison  var.  tration   order  stein    nius  chosen
  ────────────────────────────────────────────────────────────────────────────────────────────────
  512x512   all            1.02     1.01  1.01     1.05    1.14   2.27          comparison, p = 128
  128x128   random 0.1     1.07     1.11  1.67             3.52   2.54    9.17  tree walks, p = 20
  128x128   magnitude 0.1  1.08     1.11   1.7             3.69   2.68    9.59  tree walks, p = 20
  512x512   random 0.1     1.05     1.08  1.73             3.54   2.51    19.3  tree walks, p = 40
  512x512   random 0.01    1.09     1.18  3.73             9.53   3.04    16.4  tree walks, p = 20
  2048x2048 random 0.1     1.03     1.04  1.75              3.5   2.52      39  tree walks, p = 64
  2048x2048 random 0.01    1.08     1.15  4.24             10.6   2.93    37.3  tree walks, p = 32
"""

import argparse
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
from scipy import stats

from jaxprune import laws, networks, pruning, validation
from jaxprune.bounds import random_matrices

LAWS = {"uniform": laws.uniform(), "normal": laws.normal()}
LEAST_DRAWS = 40
COLUMNS = {
    "tree walks": "tree\nwalks",
    "comparison": "compar-\nison",
    "same variance": "same\nvar.",
    "concentration": "concen-\ntration",
    "Gaussian": "Gauss-\nian",
    "convex order": "convex\norder",
    "matrix Bernstein": "Bern-\nstein",
    "Frobenius norm": "Frobe-\nnius",
}


def measure(args: argparse.Namespace, width: int, ratio: int, method: str, fraction: float) -> dict:
    """One row of the table."""
    layer, law = networks.Dense(width // ratio, width), LAWS[args.law]
    count = math.prod(layer.weight_shape)
    removed = max(1, round(fraction * count))
    draws = max(min(args.draws, LEAST_DRAWS), min(args.draws, args.draws * 512**2 // count))
    rng = np.random.default_rng([args.seed, width, ratio, removed])
    norms = np.sort(
        [command.norm(command.draw_removed(rng, layer, law, method, removed)) for _ in range(draws)]
    )
    ranks = stats.binom.ppf((0.025, 0.975), draws, 1 - args.delta).astype(int)
    low, high = norms[np.clip(ranks, 0, draws - 1)]
    quantile = float(np.quantile(norms, 1 - args.delta))
    start = time.perf_counter()
    found = random_matrices.removed_norm_bounds(
        layer, law, pruning.METHODS[method], pruning.Count(removed), delta=args.delta
    )
    return {
        "law": args.law,
        "rows": layer.d_out,
        "columns": layer.d_in,
        "method": method,
        "fraction": removed / count,
        "delta": args.delta,
        "draws": draws,
        "quantile": quantile,
        "quantile_low": float(low),
        "quantile_high": float(high),
        "mean": float(norms.mean()),
        "seconds": time.perf_counter() - start,
        "chosen": found[0].name,
        "bounds": {
            bound.name.partition(",")[0]: {
                "bound": bound.value,
                "over_quantile": bound.value / quantile,
                "mean": bound.mean if math.isfinite(bound.mean) else None,
                "described": bound.name,
                "reference": bound.reference,
            }
            for bound in found
        },
    }


def table(rows: list[dict[str, Any]], delta: float) -> Table:
    """The ratios; the least of each row, the one that is used, is named in the last column."""
    names = [name for name in COLUMNS if any(name in row["bounds"] for row in rows)]
    made = Table(
        title=f"bound / simulated {100 * (1 - delta):g} % quantile",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("layer", no_wrap=True)
    made.add_column("removed", no_wrap=True)
    for name in names:
        made.add_column(COLUMNS[name], justify="right", no_wrap=True)
    made.add_column("chosen", no_wrap=True)
    for row in rows:
        ratios = (row["bounds"].get(name) for name in names)
        made.add_row(
            f"{row['rows']}x{row['columns']}",
            "all" if row["fraction"] == 1 else f"{row['method']} {row['fraction']:.3g}",
            *("" if found is None else f"{found['over_quantile']:.3g}" for found in ratios),
            row["chosen"],
        )
    return made


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(prog="norm_bounds", description=__doc__.partition("\n")[0])
    made.add_argument("--law", choices=LAWS, default="uniform")
    made.add_argument("--widths", type=int, nargs="+", default=[32, 128, 512, 2048], metavar="D")
    made.add_argument("--ratios", type=int, nargs="+", default=[1, 16], metavar="N")
    made.add_argument(
        "--fractions", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.01], metavar="Q"
    )
    made.add_argument(
        "--methods", choices=pruning.METHODS, nargs="+", default=["random", "magnitude"]
    )
    made.add_argument("--delta", type=float, default=0.1)
    made.add_argument("--draws", type=int, default=200, metavar="N")
    made.add_argument("--seed", type=int, default=0)
    return made


def check(args: argparse.Namespace) -> None:
    """Raises ValueError with one line."""
    for width in args.widths:
        validation.integer("widths", width, 1, 8192)
    for ratio in args.ratios:
        validation.integer("ratios", ratio, 1, min(args.widths))
    for fraction in args.fractions:
        validation.real("fractions", fraction, 1e-9, 1.0, open=False)
    validation.real("delta", args.delta, 0.0, 1.0)
    validation.integer("draws", args.draws, 2, 10**6)
    validation.integer("seed", args.seed, 0)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row of the table, printed."""
    progress, rows = Console(stderr=True), []
    for width, ratio, fraction in itertools.product(args.widths, args.ratios, args.fractions):
        # All of a layer is the same whatever the method.
        for method in args.methods[:1] if fraction == 1 else args.methods:
            with progress.status(f"{width}, {ratio}:1, {method} {fraction}"):
                rows.append(measure(args, width, ratio, method, fraction))
    Console(width=120).print(table(rows, args.delta))
    return rows


if __name__ == "__main__":
    sys.exit(command.carry_out(parser(), check, run))

"""What the benchmarks' command lines have in common."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.linalg import svds

from jaxprune import laws


class Parser(argparse.ArgumentParser):
    """Reports bad input in one line, and takes no abbreviations."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def carry_out(
    parser: argparse.ArgumentParser,
    check: Callable[[argparse.Namespace], None],
    run: Callable[[argparse.Namespace], list[dict[str, Any]]],
    argv: list[str] | None = None,
) -> int:
    """Parses, checks, runs and writes.

    Args:
      parser: the grammar but for `--json`.
      check: raises ValueError with one line.
      run: measures, prints the table and returns its rows; may raise ValueError likewise.
      argv: the command line; the program's own by default.

    Returns:
      The exit status: 0, 1 if `run` found a row that is not `sound`, 2 for bad input.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="every number, as strict JSON")
    args = parser.parse_args(argv)
    try:
        check(args)
        if args.json and not args.json.absolute().parent.is_dir():
            raise ValueError(f"json = {args.json}: a file in a folder that exists is needed")
        rows = run(args)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if args.json:
        options = {k: v for k, v in vars(args).items() if k != "json"}
        text = json.dumps({"options": options, "rows": rows}, indent=1, allow_nan=False)
        args.json.write_text(text + "\n")
    if not all(row.get("sound", True) for row in rows):
        print(f"{parser.prog}: an upper bound is below a distance", file=sys.stderr)
        return 1
    return 0


def draw_removed(rng: np.random.Generator, layer, law, method: str, removed: int) -> np.ndarray:
    """The removed part of one random layer, float32."""
    shape = layer.weight_shape
    uniform = law.family is laws.UNIFORM
    w = rng.uniform(-1, 1, shape) if uniform else rng.standard_normal(shape)
    w = (law.scale(*layer.fans) * w).astype(np.float32)
    if removed == w.size:
        return w
    if method == "bernoulli":
        return np.where(rng.random(shape) < removed / w.size, w, 0)
    key = np.abs(w) if method == "magnitude" else rng.random(shape, np.float32)
    return np.where(key < np.partition(key.ravel(), removed)[removed], w, 0)


def norm(x: np.ndarray) -> float:
    """Largest singular value, to 1e-4."""
    if min(x.shape) <= 64:
        return float(np.linalg.svd(x, compute_uv=False)[0])
    start = np.ones(min(x.shape), x.dtype)
    return float(svds(x, k=1, v0=start, tol=1e-4, return_singular_vectors=False)[0])

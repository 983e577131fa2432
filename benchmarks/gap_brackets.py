"""Upper bounds of the gap of one pair: tightness against cost.

    python benchmarks/gap_brackets.py [--widths 64 256] [--depths 2 3 5] [--q 0.0625]
                                      [--methods random magnitude] [--pads circular same valid]
                                      [--pairs 6] [--seed 0] [--json FILE]

Claim measured: upper end over lower end of the gap over the unit ball, median over pairs, and the
milliseconds that each upper bound takes. Targets have ReLU and weights uniform on +-sqrt(6 / fan);
a fraction q of the weights of every middle layer is removed (of the second layer if there are two).
Convolutions are 3x3 with 16 channels on 16x16 pixels. The lower end is the same for all: ascent
from 32 starts, at most 100 steps.

  norms       telescoping sum of products of operator norms, the better of both orders
  averaged    the same with averaged activations in each term (Combettes & Pesquet 2020); for
              convolutions with circular padding alone, where products of layers are known
  ECLipsE     the same with ECLipsE-Fast in each term (Xu & Sivaranjani, NeurIPS 2024)
  pair, fast  ECLipsE-Fast of the pair: the package's proof with one multiplier a layer, `T = 2 |Q|`
  pair, 1.4   the same with `T = 1.4 |Q|`
  multiplier  `jaxprune.gaps.multiplier_bound`: one multiplier a neuron

All but the last are NumPy in float64 and prove nothing about rounding; they stand here because they
lost. Times are of one pair on one BLAS thread, "multiplier" of one compiled call, of which XLA may
run parts on other cores. Every bound of every pair is compared with the lower end, and the exit
status is 1 if one is below it.

Part of the default printout (10 minutes on 2 busy cores, AMD EPYC):

  upper / lower, median
  layers, pruning        norms  averaged  ECLipsE  pair, fast  pair, 1.4  multiplier
  ──────────────────────────────────────────────────────────────────────────────────
  64 x 5, random          45.8      24.6     21.8        10.2       7.63        6.35
  256 x 2, random         1.93      1.58      1.5         1.5       1.41        1.37
  256 x 2, magnitude      1.96       1.6     1.52        1.51       1.39        1.35
  256 x 3, random         4.08       3.3     3.15        2.46       2.06        1.94
  256 x 3, magnitude       4.5      3.68     3.49        2.73       2.29        2.13
  256 x 5, random         45.9      25.5     21.9        10.8       7.76        7.12
  256 x 5, magnitude      57.3      31.4     27.2          13       9.25         8.5
  circular x 5, random    53.8      28.6     24.4        11.5       7.73         7.5
  same x 5, random          53               24.9        11.8       8.25        7.97
  valid x 5, random       69.6               32.6        16.2       11.7        10.7

  milliseconds a pair, median
  256 x 2, random         20.3      30.9     20.4        11.3       11.2        11.1
  256 x 3, random         29.4      39.6     26.1        18.4       18.3        18.9
  256 x 5, random          149       313      150        88.8       88.5         105
  circular x 5, random     217       157     76.8        43.3       58.6        89.2
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import command
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from jaxprune import gaps, networks, validation
from jaxprune.gaps import UnitBall, norms
from jaxprune.networks import Network

BALL = UnitBall(samples=128, starts=32, steps=100)
Matrices = np.ndarray
"""`(f, out, in)`: one matrix, or one a frequency of the shared torus."""


def top(matrices: Matrices) -> float:
    """The largest singular value."""
    return float(np.linalg.svd(matrices, compute_uv=False).max())


def plain(layers: list[Matrices]) -> float:
    """Lipschitz constant of layers with 1-Lipschitz activations between: product of norms."""
    return float(np.prod([top(m) for m in layers]))


def averaged(layers: list[Matrices]) -> float:
    """`theta_l / 2^(l-1)`, `theta_j = |W_j ... W_1| + sum_k theta_k |W_j ... W_(k+1)|`."""
    thetas = []
    for j in range(len(layers)):
        theta, product = 0.0, None
        for k in reversed(range(j + 1)):
            product = layers[k] if product is None else product @ layers[k]
            theta += top(product) * (thetas[k - 1] if k else 1.0)
        thetas.append(theta)
    return thetas[-1] / 2 ** (len(layers) - 1)


def eclipse(layers: list[Matrices]) -> float:
    """`M_0 = 1, M_i = l - (l^2/4) W_i M_(i-1)^-1 W_i^*`, `l = 2 / |W_i M_(i-1)^-1 W_i^*|`."""
    inverse = np.eye(layers[0].shape[-1])
    for w in layers[:-1]:
        s = w @ inverse @ adjoint(w)
        size = np.linalg.eigvalsh(s).max()
        if size == 0:
            return 0.0
        inverse = np.linalg.inv(2 / size * np.eye(s.shape[-1]) - s / size**2)
    w = layers[-1]
    return float(np.sqrt(np.linalg.eigvalsh(w @ inverse @ adjoint(w)).max()))


def adjoint(a: Matrices) -> Matrices:
    return np.conj(np.swapaxes(a, -1, -2))


def telescoped(
    lipschitz: Callable[[list[Matrices]], float], full: list[Matrices], removed: list
) -> float:
    """`sum_k Lip(layers before k, then P_k) Lip(layers after k)`; dense before and pruned behind,
    or the reverse."""
    kept = [w if p is None else w - p for w, p in zip(full, removed, strict=True)]
    total = []
    for before, behind in ((full, kept), (kept, full)):
        total.append(0.0)
        for k, p in enumerate(removed):
            if p is not None:
                rest = behind[k + 1 :]
                total[-1] += lipschitz([*before[:k], p]) * (lipschitz(rest) if rest else 1.0)
    return min(total)


def of_pair(margin: float, full: list[Matrices], removed: list) -> float:
    """One multiplier a layer, `T = (1 + margin) |Q|` in units in which h and e are alike."""
    pruned = [i for i, p in enumerate(removed) if p is not None]
    blocks = lambda i: "h" * (max(pruned) >= i) + "e" * (min(pruned) < i)
    form = None
    for i in reversed(range(len(full))):
        w, p = full[i], removed[i]
        p = np.zeros_like(w) if p is None else p
        into = {"hh": w, "he": np.zeros_like(w), "eh": p, "ee": w - p}
        rows = "e" if form is None else blocks(i + 1)
        m = np.concatenate(
            [np.concatenate([into[b + a] for a in blocks(i)], axis=-1) for b in rows], axis=-2
        )
        if form is None:
            form = adjoint(m) @ m
            continue
        n = w.shape[-2]
        own = [form[:, j : j + n, j : j + n] for j in range(0, n * len(rows), n)]
        units = np.sqrt(np.repeat([np.linalg.eigvalsh(q).max() for q in own], n))
        m, form = units[:, None] * m, form / np.outer(units, units)
        t = (1 + margin) * np.linalg.eigvalsh(form).max()
        form = t**2 / 4 * adjoint(m) @ np.linalg.solve(t * np.eye(len(units)) - form, m)
    return float(np.sqrt(np.linalg.eigvalsh(form).max()))


CANDIDATES = {
    "norms": lambda full, removed: telescoped(plain, full, removed),
    "averaged": lambda full, removed: telescoped(averaged, full, removed),
    "ECLipsE": lambda full, removed: telescoped(eclipse, full, removed),
    "pair, fast": lambda full, removed: of_pair(1.0, full, removed),
    "pair, 1.4": lambda full, removed: of_pair(0.4, full, removed),
}
KEPT = "multiplier"


def draw(rng: np.random.Generator, network: Network, method: str, q: float):
    """Weights, and removed parts of the middle layers."""
    count = len(network.layers)
    params, removed = [], []
    for i, layer in enumerate(network.layers):
        bound = np.float32(np.sqrt(6 / max(layer.fans)))
        w = bound * rng.uniform(-1, 1, layer.weight_shape).astype(np.float32)
        params.append(w)
        if not (0 < i < count - 1 or (count == 2 and i == 1)):
            removed.append(None)
            continue
        key = np.abs(w) if method == "magnitude" else rng.random(w.shape)
        limit = np.partition(key.ravel(), int(q * w.size))[int(q * w.size)]
        removed.append(np.where(key < limit, w, np.float32(0)))
    return tuple(params), tuple(removed)


def explicit(network: Network, weights) -> list:
    """The layers as matrices on the torus that they share."""
    torus, dilations = gaps.shared_torus(network)
    with jax.enable_x64(True):
        return [
            None
            if w is None
            else np.asarray(norms.transfer(layer, w.astype(np.float64), torus, dilation).matrices)
            for layer, w, dilation in zip(network.layers, weights, dilations, strict=True)
        ]


def measure(network: Network, name: str, method: str, args: argparse.Namespace) -> dict:
    """One row: median ratio and time of each bound."""
    lowest = jax.jit(lambda *pair: gaps.measure_ball(BALL, jax.random.key(0), network, *pair))
    bound = jax.jit(lambda *pair: gaps.multiplier_bound(network, *pair))
    rng = np.random.default_rng([args.seed, len(network.layers), *map(ord, name + method)])
    ratios, seconds = {}, {}
    for i in range(args.pairs):
        pair = draw(rng, network, method, args.q)
        lower = float(lowest(*pair).gap.lower)
        if i == 0:
            bound(*pair).block_until_ready()
        matrices = [explicit(network, weights) for weights in pair]
        runs = {KEPT: lambda pair=pair: float(bound(*pair))}
        for key, candidate in CANDIDATES.items():
            circular = all(getattr(x, "padding", "CIRCULAR") == "CIRCULAR" for x in network.layers)
            if key != "averaged" or circular:
                runs[key] = lambda c=candidate, m=matrices: c(*m)
        for key, run in runs.items():
            start = time.perf_counter()
            upper = run()
            seconds.setdefault(key, []).append(time.perf_counter() - start)
            ratios.setdefault(key, []).append(upper / lower)
    return {
        "network": str(network),
        "name": name,
        "layers": len(network.layers),
        "method": method,
        "pairs": args.pairs,
        "sound": all(r >= 1.0 for rs in ratios.values() for r in rs),
        "ratio": {key: float(np.median(rs)) for key, rs in ratios.items()},
        "milliseconds": {key: 1e3 * float(np.median(s)) for key, s in seconds.items()},
    }


def table(rows: list[dict], quantity: str, title: str) -> Table:
    """One column a bound."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("layers, pruning", no_wrap=True)
    names = [*CANDIDATES, KEPT]
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = (row[quantity].get(name) for name in names)
        made.add_row(
            f"{row['name']} x {row['layers']}, {row['method']}",
            *("" if x is None else f"{x:.3g}" for x in cells),
        )
    return made


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(prog="gap_brackets", description=__doc__.partition("\n")[0])
    made.add_argument("--widths", type=int, nargs="*", default=[64, 256], metavar="D")
    made.add_argument("--depths", type=int, nargs="+", default=[2, 3, 5], metavar="L")
    made.add_argument("--q", type=float, default=1 / 16)
    made.add_argument(
        "--methods", choices=("random", "magnitude"), nargs="+", default=["random", "magnitude"]
    )
    pads = [padding.lower() for padding in networks.PADDINGS]
    made.add_argument("--pads", choices=pads, nargs="*", default=sorted(pads))
    made.add_argument("--pairs", type=int, default=6, metavar="N")
    made.add_argument("--seed", type=int, default=0)
    return made


def check(args: argparse.Namespace) -> None:
    """Raises ValueError with one line."""
    for width in args.widths:
        validation.integer("widths", width, 4, 2048)
    for depth in args.depths:
        validation.integer("depths", depth, 2, 7)
    validation.real("q", args.q, 0.0, 1.0)
    validation.integer("pairs", args.pairs, 1, 10**5)
    validation.integer("seed", args.seed, 0)


def run(args: argparse.Namespace) -> list[dict]:
    """Every row of the tables, printed."""
    cases = [(f"{d}", networks.dense((d,) * (n + 1))) for d in args.widths for n in args.depths]
    cases += [
        (pad, networks.convolutional((16,) * (n + 1), 16, padding=pad.upper()))
        for pad in args.pads
        for n in args.depths
    ]
    rows, progress = [], Console(stderr=True)
    with threadpool_limits(1):
        for (name, network), method in itertools.product(cases, args.methods):
            progress.print(f"{network}, {method}", style="dim")
            rows.append(measure(network, name, method, args))
    console = Console(width=120)
    console.print(table(rows, "ratio", "upper / lower, median"))
    console.print(table(rows, "milliseconds", "milliseconds a pair, median"))
    return rows


if __name__ == "__main__":
    sys.exit(command.carry_out(parser(), check, run))

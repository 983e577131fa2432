"""Candidate programs of `throughput.py`: the engine and what a skilled user would write instead.

Each module has

    WORKLOADS: the kinds of workload it can run;
    device: what it runs on, `() -> str`;
    prepare: `Workload -> Candidate`, which chooses, compiles and warms up.

Only NumPy is imported here: a worker imports its own library after it is pinned.
"""

import importlib
import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

GAIN = math.sqrt(6.0)
LAYERS = 3
KERNEL, SIDE = 3, 16
SAMPLES, STARTS, STEPS = 64, 8, 20
KINDS = ("sampled", "conv", "trial")
PRUNINGS = ("random", "magnitude")
MODULES = {
    "engine": "engine_blocks",
    "numpy": "numpy_loop",
    "torch": "torch_batched",
    "jax": "jax_plain",
}

Measured = dict[str, np.ndarray]
"""One array `(trials,)` a measured quantity."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Workload:
    """Trials of one kind: networks of three equal layers, ReLU between them.

    Attributes:
      kind: "sampled" (dense, all layers pruned, fixed inputs), "conv" (the same for convolutions)
        or "trial" (dense, the middle layer pruned, the gap over the unit ball bracketed).
      pruning: "random" (each weight removed with probability q) or "magnitude" (the floor(q D)
        smallest of D).
      width: of the layers; channels of a convolution.
      inputs: points of the unit sphere; "trial" draws new ones in every trial.
    """

    kind: str
    pruning: str
    width: int
    inputs: int

    def __str__(self):
        return f"{self.kind}, {self.pruning}, width {self.width}, {self.inputs} inputs"

    @property
    def taps(self) -> int:
        """Entries of a kernel."""
        return KERNEL**2 if self.kind == "conv" else 1

    @property
    def pixels(self) -> int:
        """Places of an image."""
        return SIDE**2 if self.kind == "conv" else 1

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (self.width, SIDE, SIDE) if self.kind == "conv" else (self.width,)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of each layer."""
        square = (self.width, self.width)
        return (*square, KERNEL, KERNEL) if self.kind == "conv" else square

    @property
    def size(self) -> int:
        """Weights of a layer, D."""
        return self.width**2 * self.taps

    @property
    def pruned(self) -> slice:
        """Which layers are pruned."""
        return slice(1, 2) if self.kind == "trial" else slice(0, LAYERS)

    @property
    def fraction(self) -> float:
        """q."""
        return 1 / 16 if self.kind == "conv" else self.width**-0.5

    @property
    def removed(self) -> int:
        """floor(q D); a product that is whole but for rounding counts as whole."""
        return math.floor(self.fraction * self.size * (1 + 1e-12))

    @property
    def half_width(self) -> float:
        """The weights are uniform between minus and plus this."""
        return GAIN / math.sqrt(self.width * self.taps)

    @property
    def flops(self) -> int:
        """Of the products in F and f at all inputs, padding included; layers alike count once."""
        products = 2 * LAYERS - (self.kind == "trial")
        return products * 2 * self.size * self.pixels * self.inputs

    def points(self) -> np.ndarray:
        """The fixed inputs, `(inputs, *in_shape)` float32."""
        x = np.random.default_rng(0).standard_normal((self.inputs, math.prod(self.in_shape)))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x.astype(np.float32).reshape(self.inputs, *self.in_shape)


class Candidate(NamedTuple):
    """A program that is ready to run.

    Attributes:
      run: `(trials, seed) -> Measured`, for whole batches.
      batch: trials that run together.
      choices: what was chosen before timing, in words.
    """

    run: Callable[[int, int], Measured]
    batch: int
    choices: str = ""


def load(name: str):
    """The module of a candidate."""
    return importlib.import_module(f"peers.{MODULES[name]}")


def batch_sizes(bytes_a_trial: int, on_host: bool) -> list[int]:
    """1, 4, ... up to 256 as far as 64 MiB go; up to 65536 and 2 GiB on an accelerator."""
    room, most = (2**26, 2**8) if on_host else (2**31, 2**16)
    most = max(1, min(most, room // bytes_a_trial))
    return [4**i for i in range(9) if 4**i <= most]


def fastest(
    choices: Mapping[K, Candidate], seconds: float = 0.15, *, ordered: bool = False
) -> tuple[K, Candidate]:
    """The choice with most trials a second, each run for about `seconds` after one run apart.

    Args:
      choices: by name.
      seconds: of each.
      ordered: whether what comes after a choice of half the best rate may be left out.
    """
    best, most = None, 0.0
    for name, candidate in choices.items():
        candidate.run(candidate.batch, 0)
        started, trials = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < seconds:
            trials += candidate.batch
            candidate.run(candidate.batch, trials)
        rate = trials / spent
        if rate > most:
            best, most = name, rate
        elif ordered and rate < most / 2:
            break
    return best, choices[best]

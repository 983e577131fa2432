"""Which layer makes the gap, over many trials."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxprune import gaps, validation
from jaxprune.bits import STANDARD
from jaxprune.engine.blocks import words
from jaxprune.engine.run import prepare
from jaxprune.engine.trial import draw_pair
from jaxprune.gaps import Account, LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.types import Params

ORDERS = ("forward", "backward")


@dataclass(frozen=True)
class LayerAccount:
    """The gap by pruned layer; m of them, in the order of the network.

    Attributes:
      layers: names of the pruned layers.
      order: the same names, as they are switched from dense to pruned.
      trials: `gaps.Account`, its arrays with a leading axis of trials.
    """

    layers: tuple[str, ...]
    order: tuple[str, ...]
    trials: Account

    @property
    def counted(self) -> np.ndarray:
        """`(trials,)`: every number is finite, and the pair differs at its input."""
        columns = [np.asarray(field).reshape(len(field), -1) for field in self.trials]
        return np.isfinite(np.concatenate(columns, axis=1)).all(axis=1)

    def quantile(self, p: float) -> dict[str, dict[str, float]]:
        """By layer, the p-quantiles over the counted trials of its term, share and bound.

        Raises:
          ValueError: p outside [0, 1], or no trial counts.
        """
        p = validation.real("p", p, 0.0, 1.0, open=False)
        counted = self.counted
        if not counted.any():
            raise ValueError(f"{len(counted)} trials: one with a finite gap above 0 is needed")
        columns = {"term": self.trials.terms, "share": self.trials.shares}
        columns["bound"] = self.trials.bounds
        return {
            layer: {
                name: float(np.quantile(values[counted, i], p)) for name, values in columns.items()
            }
            for i, layer in enumerate(self.layers)
        }


MAX_KEPT = 10**7
"""Trials of an account, which keeps numbers of every layer of each."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _account_block(design, order, numbers, high, low):
    def one(h, l):
        network = design.network
        key, params, removed = draw_pair(design, numbers, (h, l))
        if design.ball:
            x = gaps.worst_input(design.ball, key, network, params, removed)
        else:
            x = gaps.worst_row(numbers.rows, network, params, removed)
        return gaps.layer_account(network, params, removed, x, order)

    return jax.vmap(one)(high, low)


def layer_account(
    network: Network,
    targets: Law | Params,
    pruning: Pruning,
    amount: Amount,
    *,
    trials: int = 100,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    order: str = "forward",
    domain: UnitBall | np.ndarray | None = None,
    seed: int = 0,
    stream: str = STANDARD,
    block: int | None = None,
) -> LayerAccount:
    """Splits the gap of each of many pairs by pruned layer.

    At the worst input found, `F(x) - f(x)` is the sum of what each layer changes as layers are
    switched from dense to pruned one at a time; `gaps.account` has the formulas. Trial i is the
    pair of trial i of `simulate`.

        account = jp.layer_account(network, law, jp.magnitude, jp.Fraction(0.5), layers="all")
        for layer, row in account.quantile(0.5).items():
            print(f"{layer}: {row['share']:.0%} of the difference, bound {row['bound']:.3g}")

    Args:
      network, targets, pruning, amount, trials, layers, seed, stream, block: see `simulate`.
      order: "forward" (input to output) or "backward". The shares depend on it.
      domain: `UnitBall(...)`, or `(n, *in_shape)` inputs, of which the worst is taken; the bounds
        are over the unit ball in both cases.

    Raises:
      ValueError: an argument outside its range, or a network that does not fit in memory.
    """
    validation.choice("order", order, ORDERS)
    validation.integer("trials", trials, 1, MAX_KEPT)
    if isinstance(domain, LinfBall):
        raise ValueError(f"domain = {domain}: UnitBall(...) or inputs are needed")
    run = prepare(
        network,
        targets,
        pruning,
        amount,
        trials=trials,
        layers=layers,
        domain=domain,
        seed=seed,
        stream=stream,
        block=block,
    )
    switched = [i for i, chosen in enumerate(run.design.pruned) if chosen]
    switched = tuple(switched if order == "forward" else reversed(switched))
    blocks = []
    for start in range(0, run.trials, run.chunk):
        block = _account_block(run.design, switched, run.numbers, *words(start, run.chunk))
        blocks.append(jax.tree.map(np.asarray, block))
    accounts = Account(*(np.concatenate(f)[: run.trials] for f in zip(*blocks, strict=True)))
    names = network.names
    return LayerAccount(
        tuple(names[i] for i in sorted(switched)), tuple(names[i] for i in switched), accounts
    )

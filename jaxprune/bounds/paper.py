"""The paper's own theorems: what they assume, and what they conclude from which constants.

X. Qian, D. Klabjan, A probabilistic approach to neural network pruning, ICML 2021. Theorem 1:
magnitude pruning of dense networks; theorem 2: random pruning of dense networks; theorem 3: random
pruning of convolutional ones. Each says that constants C1 .. C6 exist, which depend on the number
of layers, K, the Lipschitz constants and alpha, such that with probability at least 1 - delta the
gap is at most eps as soon as

    d >= max { C1^(1/alpha), (C2/eps)^(1/alpha), (C3/delta)^(1/alpha), C4, C5 + C6 log(1/delta) },

d the least hidden width. **The paper gives no number for any of the six**: its proof rests on
Latala's inequality, whose constant is unknown. Here they are whatever the user measured or derived.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from jaxprune import laws, validation
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning, Sublinear, magnitude, random


class Hypothesis(NamedTuple):
    """One assumption of the paper and whether a case meets it."""

    name: str
    met: bool
    detail: str


class PaperWidth(NamedTuple):
    """What the paper concludes from given constants.

    Attributes:
      width: the least d that the conclusion allows; infinity if beyond float64.
      binding: which of the five terms is the largest.
      terms: all five.
    """

    width: float
    binding: str
    terms: dict[str, float]


@dataclass(frozen=True)
class PaperConstants:
    """C1 .. C6 of the paper's conclusion; each at least 0, or None where no number is known."""

    c1: float | None = None
    c2: float | None = None
    c3: float | None = None
    c4: float | None = None
    c5: float | None = None
    c6: float | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                validation.real(field.name, value, 0.0, math.inf, open=False)

    def least_width(self, *, eps: float, delta: float, alpha: float) -> PaperWidth:
        """The least hidden width for which the paper's conclusion holds.

        Args:
          eps: the gap that is allowed.
          delta: in (0, 1), the probability that it may be exceeded.
          alpha: in (0, 1); `floor(D^(1 - alpha))` weights of a layer are removed.

        Raises:
          ValueError: a constant without a number, or an argument out of range.
        """
        eps = validation.real("eps", eps, 0.0, math.inf)
        delta = validation.real("delta", delta, 0.0, 1.0)
        alpha = validation.real("alpha", alpha, 0.0, 1.0)
        unknown = [field.name for field in fields(self) if getattr(self, field.name) is None]
        if unknown:
            raise ValueError(
                f"{unknown[0]} = None: a number is needed; the paper gives none for "
                f"{', '.join(unknown)}"
            )
        terms = {
            "C1^(1/alpha)": _root(self.c1, alpha),
            "(C2/eps)^(1/alpha)": _root(self.c2 / eps, alpha),
            "(C3/delta)^(1/alpha)": _root(self.c3 / delta, alpha),
            "C4": float(self.c4),
            "C5 + C6 log(1/delta)": self.c5 - self.c6 * math.log(delta),
        }
        binding = max(terms, key=terms.__getitem__)
        return PaperWidth(_up(terms[binding]), binding, terms)

    def holds(self, width: int, *, eps: float, delta: float, alpha: float) -> bool:
        """Whether `d >= max { ... }` at d = `width`; args are those of `least_width`."""
        width = validation.integer("width", width, 1)
        return width >= self.least_width(eps=eps, delta=delta, alpha=alpha).width

    def least_eps(self, width: int, *, delta: float, alpha: float) -> float:
        """The least eps of the conclusion at a width; infinity where no eps will do.

        Args:
          width: the least hidden width.
          delta: in (0, 1).
          alpha: in (0, 1).
        """
        width = validation.integer("width", width, 1)
        terms = self.least_width(eps=1.0, delta=delta, alpha=alpha).terms
        others = max(term for name, term in terms.items() if "eps" not in name)
        return self.c2 * width**-alpha if width >= _up(others) else math.inf


def _root(x: float, alpha: float) -> float:
    try:
        return x ** (1.0 / alpha)
    except OverflowError:
        return math.inf


def _up(width: float) -> float:
    """The least whole number that is no less, but for rounding in the last digits."""
    if not math.isfinite(width) or width > 2**53:
        return width
    return float(max(1, math.ceil(width * (1.0 - 1e-12))))


def paper_hypotheses(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amount,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
) -> tuple[str | None, tuple[Hypothesis, ...]]:
    """Which of the paper's theorems speaks of a case, and whether the case meets its hypotheses.

    Args:
      network: the network.
      law: of the weights.
      pruning: the method.
      amount: how much of each chosen layer is removed.
      layers: which layers are pruned, see `networks.select_layers`.

    Returns:
      The theorem's name, None if there is none (magnitude pruning of convolutions, Bernoulli
      masks), and its hypotheses one by one.
    """
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    validation.instance("amount", amount, Amount, "jp.Fraction, jp.Sublinear or jp.Count")
    theorem = {
        (True, magnitude.name): "Theorem 1",
        (True, random.name): "Theorem 2",
        (False, random.name): "Theorem 3",
    }.get((network.is_dense, pruning.name))
    chosen, names = select_layers(network, layers), network.names
    middle = tuple(0 < i < len(names) - 1 for i in range(len(names)))
    s = network.activation
    found = [
        Hypothesis("three layers or more", len(names) > 2, f"{len(names)} layers"),
        Hypothesis(
            "only the layers between first and last are pruned",
            not any(c and not m for c, m in zip(chosen, middle, strict=True)),
            ", ".join(name for name, c in zip(names, chosen, strict=True) if c),
        ),
        Hypothesis(
            "amount floor(D^(1 - alpha))", isinstance(amount, Sublinear), f"amount {amount}"
        ),
        Hypothesis(
            "Lipschitz activation, s(0) = 0",
            math.isfinite(s.lipschitz) and float(s.fn(np.zeros(()))) == 0.0,
            f"{s}, L = {s.lipschitz:.4g}",
        ),
        _law_hypothesis(network, law, pruning),
    ]
    return theorem, tuple(found)


def _law_hypothesis(network, law, pruning) -> Hypothesis:
    fans = [layer.fans for layer in network.layers]
    second = max(law.variance(*fan) * max(fan) for fan in fans)
    if pruning.name == magnitude.name:
        uniform = law.family is laws.UNIFORM and law.scaling == "max"
        detail = f"K = {law.gain:.4g}" if uniform else str(law)
        return Hypothesis("weights uniform on ±K/√max(fan)", uniform, detail)
    fourth = math.exp(law.family.log_moment(2))
    fourth *= max((law.scale(*fan) ** 2 * max(fan)) ** 2 for fan in fans)
    name = "independent, mean 0, E w² <= K1/max(fan), E w⁴ <= K2/max(fan)²"
    return Hypothesis(name, True, f"K1 = {second:.4g}, K2 = {fourth:.4g}")

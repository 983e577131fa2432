"""What theory says of one network, without sampling: certificates, their parts, their inverses."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import bounds, validation
from jaxprune.activations import Activation
from jaxprune.bounds import paper
from jaxprune.bounds.counts import removed_counts
from jaxprune.laws import Law
from jaxprune.networks import Network, dense, select_layers
from jaxprune.pruning import Amount, Pruning, magnitude
from jaxprune.studies.result import environment, law_source, plain, sha256


def bound(
    network: Network,
    law: Law,
    methods: Sequence[Pruning],
    amount: Amount,
    *,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    delta: float = 0.05,
    eps: float | None = None,
) -> dict[str, Any]:
    """Certified gaps with all their constants, typical gaps, and, for an eps, both read backwards.

    Args:
      network: dense or convolutional.
      law: of the weights.
      methods: pruning methods, at least one.
      amount: how much of each chosen layer is removed.
      layers: which layers are pruned, see `networks.select_layers`.
      delta: in (0, 1), the probability that a certificate may fail.
      eps: a gap that is allowed; None for no inverses.

    Returns:
      `{"plan": ..., "environment": ..., "methods": [...]}`, plain data that is strict JSON. Of
      each method: `certificate`, `norms` (of each layer, every theorem's answer, least first),
      `thresholds` (of magnitude pruning, what the threshold of each layer passes on either side
      with probability delta),
      `infinite_width` (null for convolutions), `paper` (which theorem of the paper speaks of it,
      and its hypotheses) and `inverses` (null without eps). These are `largest_sparsity` and
      `largest_amounts`, by `theorem` and by `infinite_width` (null for convolutions),
      `least_delta`, a proven bound of P(gap > eps) (null if there is none), and `least_width`:
      which `widths` of the network are d, and the least d by either, null where none up to 65536
      will do; the whole entry is null for convolutions, without hidden layers, and where nothing
      is removed.

    Raises:
      ValueError: an argument out of range; one line that names it.
    """
    validation.instance("law", law, Law, "uniform(...) or normal(...)")
    validation.instance("amount", amount, Amount, "jp.Fraction, jp.Sublinear or jp.Count")
    if not methods:
        raise ValueError("pruning = []: at least one method is needed")
    delta = validation.real("delta", delta, 0.0, 1.0)
    if eps is not None:
        eps = validation.real("eps", eps, 0.0, math.inf)
    chosen = select_layers(network, layers)
    source = {
        "network": str(network),
        "widths": network.widths,
        "law": law_source(law),
        "pruning": [method.name for method in methods],
        "amount": str(amount),
        "layers": [name for name, c in zip(network.names, chosen, strict=True) if c],
        "delta": delta,
        "eps": eps,
    }
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            found = [
                _method(network, law, method, amount, layers, delta, eps) for method in methods
            ]
    except ArithmeticError:
        raise ValueError(
            f"gain = {law.gain}, {len(network.layers)} layers: the gap is beyond float64"
        ) from None
    about = environment(0)
    del about["seed"], about["stream_version"], about["guard_band"]  # nothing is sampled
    return plain({"plan": {"hash": sha256(plain(source)), **source}, "environment": about,
                  "methods": found})  # fmt: skip


def _method(network, law, method, amount, layers, delta, eps) -> dict[str, Any]:
    certificate = bounds.certify(network, law, method, amount, layers=layers, delta=delta)
    limit = None
    if network.is_dense:
        moments = bounds.infinite_width(network, law, method, amount, layers=layers)
        limit = {
            "typical_gap": moments.typical_gap,
            "mean_squared_gap": moments.mean_squared_gap,
            "correlation": moments.correlation,
            "kept_energy": moments.kept_energy,
        }
    gaps = [certificate.eps, *([limit["typical_gap"]] if limit else [])]
    if not all(map(math.isfinite, gaps)) or (certificate.events and certificate.eps == 0.0):
        raise OverflowError
    theorem, hypotheses = paper.paper_hypotheses(network, law, method, amount, layers=layers)
    return {
        "pruning": method.name,
        "certificate": {
            "eps": certificate.eps,
            "route": certificate.route,
            "radii": certificate.radii,
            "errors": certificate.errors,
            "events": [
                {
                    "layer": event.layer,
                    "what": event.matrix,
                    "delta": event.delta,
                    **event.bound._asdict(),
                }
                for event in certificate.events
            ],
        },
        "norms": _norms(network, law, method, amount, layers, delta),
        "thresholds": _thresholds(network, law, method, amount, layers, delta),
        "infinite_width": limit,
        "paper": {
            "theorem": theorem,
            "hypotheses": [hypothesis._asdict() for hypothesis in hypotheses],
        },
        "inverses": None if eps is None else _inverses(
            network, law, method, amount, layers, delta, eps
        ),
    }  # fmt: skip


def _norms(network, law, method, amount, layers, delta) -> list[dict[str, Any]]:
    """Of each layer's weights, and of its removed part; layers of one shape share a row."""
    rows: dict[tuple, dict[str, Any]] = {}
    for name, layer, pruned in zip(
        network.names, network.layers, select_layers(network, layers), strict=True
    ):
        parts = {"weights": lambda layer=layer: bounds.norm_bounds(layer, law, delta=delta)}
        if pruned:
            parts["removed"] = lambda layer=layer: bounds.removed_norm_bounds(
                layer, law, method, amount, delta=delta
            )
        for matrix, answers in parts.items():
            row = rows.setdefault((layer, matrix), {"layers": [], "matrix": matrix})
            row["layers"].append(name)
            if "bounds" not in row:
                row["bounds"] = [answer._asdict() for answer in answers()]
    return list(rows.values())


def _thresholds(network, law, method, amount, layers, delta) -> dict[str, list[float]]:
    chosen = select_layers(network, layers)
    if method != magnitude:
        return {}
    found = {}
    for name, layer, size, c in zip(
        network.names, network.layers, network.weight_counts, chosen, strict=True
    ):
        if c and 0 < amount.count(size) < size:
            low, high = 0.0, bounds.magnitude_threshold(layer, law, amount, delta=delta)
            if 1.0 - delta < 1.0:
                low = bounds.magnitude_threshold(layer, law, amount, delta=1.0 - delta)
            found[name] = [low, high]
    return found


def _inverses(network, law, method, amount, layers, delta, eps) -> dict[str, Any]:
    """By theorem and by infinite width; simulation's are those of `frontier` and `threshold`."""
    case = (network, law, method)
    theorem = {"eps": eps, "delta": delta, "layers": layers}
    typical = {"eps": eps, "layers": layers} if network.is_dense else None
    removes = any(removed_counts(network, method, amount, layers))
    width = _network_of_width(network) if typical and removes else None
    return {
        "largest_sparsity": {
            "theorem": bounds.largest_sparsity(*case, **theorem).sparsity,
            "infinite_width": typical
            and bounds.typical_largest_sparsity(*case, **typical).sparsity,
        },
        "largest_amounts": {
            "theorem": _amounts(bounds.largest_amounts(*case, **theorem)),
            "infinite_width": typical
            and _amounts(bounds.typical_largest_amounts(*case, **typical)),
        },
        "least_delta": {
            "theorem": bounds.least_delta(*case, amount, eps=eps, layers=layers),
            "infinite_width": None,
        },
        "least_width": width
        and {
            "widths": width.widths,
            "theorem": _width(bounds.least_width(width, law, method, amount, **theorem)),
            "infinite_width": _width(
                bounds.typical_least_width(width, law, method, amount, **typical)
            ),
        },
    }


def _amounts(found: bounds.LargestAmounts) -> dict[str, Any]:
    removed = {name: count.k for name, count in found.amounts.items()}
    return {"removed": removed, "sparsity": found.sparsity, "eps": found.eps}


def _width(found: bounds.LeastWidth | None) -> int | None:
    return found and found.width


class _NetworkOfWidth(NamedTuple):
    """A dense network with d for some of its widths."""

    widths: tuple[int | str, ...]
    activation: Activation

    def __call__(self, d: int) -> Network:
        return dense([d if width == "d" else width for width in self.widths], self.activation)


def _network_of_width(network) -> _NetworkOfWidth | None:
    """d for every hidden width, and for input and output too where all widths are equal."""
    first, *hidden, last = network.widths
    if not hidden:
        return None
    ends = ("d", "d") if len(set(network.widths)) == 1 else (first, last)
    return _NetworkOfWidth((ends[0], *"d" * len(hidden), ends[1]), network.activation)

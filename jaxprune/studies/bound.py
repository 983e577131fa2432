"""What theory says of one network, without sampling: certificates, their parts, their inverses."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune import bounds, validation
from jaxprune.bounds import inverse, paper
from jaxprune.laws import Law
from jaxprune.networks import Conv, Network, dense, select_layers
from jaxprune.pruning import Amount, Pruning
from jaxprune.studies.result import environment, plain, sha256


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
      `infinite_width` (null for convolutions), `paper` (which theorem of the paper speaks of it,
      and its hypotheses) and `inverses` (null without eps; `least_width` is null for convolutions,
      its entries where no width up to 65536 does).

    Raises:
      ValueError: an argument out of range; one line that names it.
    """
    if not methods:
        raise ValueError("pruning = []: at least one method is needed")
    delta = validation.real("delta", delta, 0.0, 1.0)
    if eps is not None:
        eps = validation.real("eps", eps, 0.0, float("inf"))
    chosen = select_layers(network, layers)
    source = {
        "network": str(network),
        "widths": network.widths,
        "law": {"family": law.family.name, "scaling": law.scaling, "gain": law.gain},
        "pruning": [method.name for method in methods],
        "amount": str(amount),
        "layers": [name for name, c in zip(network.names, chosen, strict=True) if c],
        "delta": delta,
        "eps": eps,
    }
    found = [_method(network, law, method, amount, layers, delta, eps) for method in methods]
    about = environment(0)
    del about["seed"], about["stream_version"], about["guard_band"]  # nothing is sampled
    return plain({"plan": {"hash": sha256(plain(source)), **source}, "environment": about,
                  "methods": found})  # fmt: skip


def _method(network, law, method, amount, layers, delta, eps) -> dict[str, Any]:
    certificate = bounds.certify(network, law, method, amount, layers=layers, delta=delta)
    limit = None
    if _is_dense(network):
        moments = bounds.infinite_width(network, law, method, amount, layers=layers)
        limit = {
            "typical_gap": moments.typical_gap,
            "mean_squared_gap": moments.mean_squared_gap,
            "correlation": moments.correlation,
            "kept_energy": moments.kept_energy,
        }
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
        "infinite_width": limit,
        "paper": {
            "theorem": theorem,
            "hypotheses": [hypothesis._asdict() for hypothesis in hypotheses],
        },
        "inverses": None if eps is None else _inverses(
            network, law, method, amount, layers, delta, eps
        ),
    }  # fmt: skip


def _is_dense(network) -> bool:
    return not any(isinstance(layer, Conv) for layer in network.layers)


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


def _inverses(network, law, method, amount, layers, delta, eps) -> dict[str, Any]:
    """By theorem and by infinite width; simulation's are those of `frontier` and `threshold`."""
    arguments = (network, law, method)
    sparsity = inverse.largest_sparsity(*arguments, eps=eps, delta=delta, layers=layers)
    amounts = inverse.largest_amounts(*arguments, eps=eps, delta=delta, layers=layers)
    found = {
        "largest_sparsity": {"theorem": sparsity.sparsity, "infinite_width": None},
        "largest_amounts": {
            "removed": {name: count.k for name, count in amounts.amounts.items()},
            "sparsity": amounts.sparsity,
            "eps": amounts.eps,
        },
        "least_width": None,
    }
    if not _is_dense(network):
        return found
    typical = inverse.typical_largest_sparsity(*arguments, eps=eps, layers=layers)
    found["largest_sparsity"]["infinite_width"] = typical.sparsity
    widths = {}
    of_width = _hidden_widths(network)
    if of_width is not None:
        by = {
            "theorem": lambda: inverse.least_width(
                of_width, law, method, amount, eps=eps, delta=delta, layers=layers
            ),
            "infinite_width": lambda: inverse.typical_least_width(
                of_width, law, method, amount, eps=eps, layers=layers
            ),
        }
        for name, search in by.items():
            answer = search()
            widths[name] = None if answer is None else answer.width
        found["least_width"] = widths
    return found


def _hidden_widths(network) -> Callable[[int], Network] | None:
    """The network with all hidden widths d; with all widths d if they are equal now."""
    first, *hidden, last = network.widths
    if not hidden:
        return None
    if len({first, *hidden, last}) == 1:
        return lambda d: dense([d] * len(network.widths), network.activation)
    return lambda d: dense([first, *[d] * len(hidden), last], network.activation)

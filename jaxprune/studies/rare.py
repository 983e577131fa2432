"""How rare is a gap above eps? Estimates of both ends of its bracket, beside what is certified."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune import bounds, engine, validation
from jaxprune.laws import Law
from jaxprune.networks import Network, select_layers
from jaxprune.pruning import Amount, Pruning
from jaxprune.statistics import Estimate, Splitting
from jaxprune.studies.result import Progress, environment, law_source, plain, sha256


def rare(
    network: Network,
    law: Law,
    pruning: Pruning,
    amount: Amount,
    *,
    eps: float,
    layers: str | Sequence[str] | Callable[[str], bool] = "middle",
    splitting: Splitting | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Estimates P(gap > eps) over the unit ball from both ends of the bracket.

    Args:
      network: dense or convolutional.
      law: of the weights.
      pruning: the method.
      amount: how much of each chosen layer is removed.
      eps: the gap that is allowed.
      layers: which layers are pruned, see `networks.select_layers`.
      splitting: how to split; by default `Splitting()`.
      confidence: of each estimate's limits.
      seed: from 0 to 2^32 - 1.
      progress: called now and then.

    Returns:
      `{"plan": ..., "environment": ..., "ends": {"lower": ..., "upper": ...}, "theorem": ...}`,
      plain data that is strict JSON: the fields of `statistics.Estimate` and its `verdict`, of
      the probability that one end of the bracket exceeds eps; and the least delta at which
      `certify` gives eps, null if none does.

    Raises:
      ValueError: an argument out of range; one line that names it.
    """
    validation.instance("amount", amount, Amount, "jp.Fraction, jp.Sublinear or jp.Count")
    splitting = Splitting() if splitting is None else splitting
    estimates: dict[str, Estimate] = {}
    for i, end in enumerate(engine.ENDS):

        def advance(share, i=i, end=end):
            if progress:
                progress(Progress(f"{end} end of the gap's bracket", i + share, len(engine.ENDS)))

        estimates[end] = engine.rare_failure(
            network,
            law,
            pruning,
            amount,
            eps,
            end=end,
            layers=layers,
            plan=splitting,
            confidence=confidence,
            seed=seed,
            progress=advance,
        )
    theorem = bounds.least_delta(network, law, pruning, amount, eps=eps, layers=layers)
    chosen = select_layers(network, layers)
    source = {
        "network": str(network),
        "widths": network.widths,
        "law": law_source(law),
        "pruning": pruning.name,
        "amount": str(amount),
        "removed": [
            pruning.removed(amount, count) if c else 0
            for count, c in zip(network.weight_counts, chosen, strict=True)
        ],
        "layers": [name for name, c in zip(network.names, chosen, strict=True) if c],
        "eps": eps,
        "confidence": confidence,
        "splitting": vars(splitting),
        "seed": seed,
    }
    return plain(
        {
            "plan": {"hash": sha256(plain(source)), **source},
            "environment": environment(seed),
            "ends": {end: _fields(found) for end, found in estimates.items()},
            "theorem": theorem,
        }
    )


def _fields(found: Estimate) -> dict[str, Any]:
    return {**vars(found), "reliable": found.reliable, "verdict": found.verdict}

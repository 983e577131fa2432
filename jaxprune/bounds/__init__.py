"""Theorems with numbers: norms of random matrices, certified gaps, typical gaps at great width.

Everything runs on the host in float64. The proofs are in README.md.
"""

from jaxprune.bounds.certificate import Certificate, certify
from jaxprune.bounds.infinite_width import InfiniteWidth, infinite_width
from jaxprune.bounds.inverse import (
    LargestSparsity,
    LeastWidth,
    largest_sparsity,
    least_delta,
    least_width,
    typical_largest_sparsity,
    typical_least_width,
)
from jaxprune.bounds.layer_amounts import (
    LargestAmounts,
    largest_amounts,
    typical_largest_amounts,
)
from jaxprune.bounds.paper import Hypothesis, PaperConstants, PaperWidth, paper_hypotheses
from jaxprune.bounds.random_matrices import (
    NormBound,
    norm_bound,
    norm_bounds,
    removed_norm_bound,
    removed_norm_bounds,
)
from jaxprune.bounds.threshold import magnitude_threshold

__all__ = [
    "Certificate",
    "Hypothesis",
    "InfiniteWidth",
    "LargestAmounts",
    "LargestSparsity",
    "LeastWidth",
    "NormBound",
    "PaperConstants",
    "PaperWidth",
    "certify",
    "infinite_width",
    "largest_amounts",
    "largest_sparsity",
    "least_delta",
    "least_width",
    "magnitude_threshold",
    "norm_bound",
    "norm_bounds",
    "paper_hypotheses",
    "removed_norm_bound",
    "removed_norm_bounds",
    "typical_largest_amounts",
    "typical_largest_sparsity",
    "typical_least_width",
]

"""Theorems with numbers: norms of random matrices, certified gaps, typical gaps at great width.

Everything runs on the host in float64. The proofs are in README.md.
"""

from jaxprune.bounds.certificate import Certificate, certify
from jaxprune.bounds.infinite_width import InfiniteWidth, infinite_width
from jaxprune.bounds.random_matrices import NormBound, norm_bound, removed_norm_bound

__all__ = [
    "Certificate",
    "InfiniteWidth",
    "NormBound",
    "certify",
    "infinite_width",
    "norm_bound",
    "removed_norm_bound",
]

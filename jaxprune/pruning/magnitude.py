"""Magnitude pruning: the smallest weights of a layer go."""

from jaxprune.pruning.base import Pruning, exact_count
from jaxprune.pruning.selection import magnitude_keys, smallest


def _magnitude_mask(bits, w, level):
    return ~smallest(magnitude_keys(w), level, floats=True)


def _kept_energy(family, sparsity):
    return family.kept_energy(sparsity)


magnitude = Pruning("magnitude", exact_count, _magnitude_mask, exact_count, _kept_energy)
"""Exactly `amount.count(D)` weights of least |w| are removed; ties go to the lower index."""

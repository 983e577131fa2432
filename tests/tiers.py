"""Which cases of a grid are tested in every run."""

import itertools

import pytest


def grid(*axes, every):
    """All combinations of the values: one in `every` in the default run, the others in `-m ci`.

    With `every` prime to the lengths of the axes the default run meets each of their values early.
    """
    return [
        pytest.param(*values, marks=[pytest.mark.ci] if i % every else [])
        for i, values in enumerate(itertools.product(*axes))
    ]

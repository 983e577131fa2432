"""Which cases of a grid are tested in every run."""

import itertools

import pytest


def grid(*axes, every):
    """All combinations of the values: one in `every` in the default run, the others in `-m ci`.

    A sample: where the default run has to meet a certain value, its cases are named one by one.
    """
    return [
        pytest.param(*values, marks=[pytest.mark.ci] if i % every else [])
        for i, values in enumerate(itertools.product(*axes))
    ]

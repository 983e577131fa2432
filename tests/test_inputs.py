"""Inputs: a data set in the unit ball, whatever its units."""

import numpy as np
import pytest

from jaxprune.inputs import into_ball

HUGE = np.finfo(np.float64).max


@pytest.mark.parametrize(
    "x, expected",
    [
        ([[3.0, 4.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, 0.2]]),
        ([[1e200, 0.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]),
        ([[1e-200, 0.0]], [[1.0, 0.0]]),
        ([[1e-160, 1e-160]], [[0.5**0.5, 0.5**0.5]]),
        ([[5e-324, 0.0]], [[1.0, 0.0]]),
        ([[HUGE, HUGE], [-HUGE, 0.0]], [[0.5**0.5, 0.5**0.5], [-(0.5**0.5), 0.0]]),
    ],
)
def test_a_data_set_fills_the_ball_in_any_unit(x, expected):
    found = into_ball(np.array(x))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert 1 - 2e-6 < np.linalg.norm(found.astype(np.float64), axis=1).max() <= 1


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.empty((0, 3)), [[np.nan]], [[np.inf]]])
def test_no_data_set(x):
    with pytest.raises(ValueError, match="rows of finite numbers, not all 0"):
        into_ball(np.array(x))

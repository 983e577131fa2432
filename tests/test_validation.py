"""Arrays from outside: what NumPy would silently take for numbers is refused at every edge."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import models, statistics, validation

MASKED = np.ma.array([[1.0, 2555.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]])
PLAIN = np.ones((2, 2), np.float32)
NETWORK = jp.dense((2, 2, 2))


def simulate(targets=None, **more):
    targets = jp.normal() if targets is None else targets
    return jp.simulate(
        NETWORK, targets, jp.random, jp.Count(1), eps=[1.0], trials=1, layers="all", **more
    )


def linear(params, x):
    return x @ params["w"]


EDGES = {
    "x": lambda: jp.into_ball(MASKED),
    "domain": lambda: simulate(domain=MASKED),
    "labelled": lambda: simulate(domain=PLAIN, labelled=(MASKED, np.zeros(2, int))),
    "labels": lambda: simulate(domain=PLAIN, labelled=(PLAIN, np.ma.zeros(2, int))),
    "targets": lambda: simulate([PLAIN[None], MASKED[None]]),
    "w": lambda: models.prune({"w": MASKED}, amount=0.5),
    "scores of w": lambda: models.prune({"w": PLAIN}, {"w": MASKED}, 0.5),
    "mask of w": lambda: models.Masks({"w": MASKED > 2}),
    "moves x": lambda: models.moves(({"w": PLAIN}, linear), models.Masks(), MASKED),
    "upper": lambda: statistics.betting([0.0, 0.0], MASKED[:, 0], 0.1, low=0.0, high=1.0),
    "p_values": lambda: statistics.holm(MASKED[0]),
    "log_e_values": lambda: statistics.e_bh(MASKED[0]),
    "failures": lambda: statistics.upper_limit(np.ma.array([1, 2]), 9, 0.1),
    "alpha": lambda: statistics.limits(1, 9, np.ma.array([0.1, 0.2])),
}


@pytest.mark.parametrize("name", EDGES)
def test_masked_arrays_are_refused(name):
    said = f"{name.removeprefix('moves ')}: a masked array, whose mask would be lost"
    with pytest.raises(ValueError, match=said) as error:
        EDGES[name]()
    assert "\n" not in str(error.value)


def test_masked_parts_of_a_list_are_refused():
    with pytest.raises(ValueError, match="x: a masked array"):
        validation.array("x", [[1.0, 2.0], (3.0, np.ma.masked)])
    assert validation.array("x", [[1.0], (3.0,)], np.float32).tolist() == [[1.0], [3.0]]
    assert validation.array("x", jax.device_put(PLAIN)).tolist() == PLAIN.tolist()


@pytest.mark.parametrize("value", [[[1.0], [1.0, 2.0]], "a", [10**400]])
def test_what_is_no_array_of_numbers_is_said(value):
    with pytest.raises(ValueError, match=r"x = .*: an array of numbers is needed"):
        validation.array("x", value, np.float64)

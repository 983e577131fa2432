"""The paper's hypotheses and conclusion as an object."""

import math

import pytest

from jaxprune import activations, laws, networks, pruning
from jaxprune.bounds import PaperConstants, paper_hypotheses

CONSTANTS = PaperConstants(1.5, 0.2, 0.03, 40.0, 10.0, 7.0)
DENSE = networks.dense((32, 32, 32, 32))
CONV = networks.convolutional((3, 8, 8, 3), 6)
AMOUNT = pruning.Sublinear(0.25)


@pytest.mark.parametrize(
    "eps, delta, binding, width",
    [
        (0.01, 0.5, "(C2/eps)^(1/alpha)", 20.0**4),
        (1.0, 1e-3, "(C3/delta)^(1/alpha)", 30.0**4),
        (1.0, 0.9, "C4", 40.0),
        (1.0, 0.0265, "C4", 40.0),
    ],
)
def test_least_width_is_the_largest_of_the_five_terms(eps, delta, binding, width):
    found = CONSTANTS.least_width(eps=eps, delta=delta, alpha=0.25)
    assert found.binding == binding and found.width == pytest.approx(width)
    assert found.terms["C1^(1/alpha)"] == pytest.approx(1.5**4)
    assert found.terms["C5 + C6 log(1/delta)"] == pytest.approx(10 + 7 * math.log(1 / delta))
    d = int(found.width)
    assert CONSTANTS.holds(d, eps=eps, delta=delta, alpha=0.25)
    assert not CONSTANTS.holds(d - 1, eps=eps, delta=delta, alpha=0.25)


def test_least_eps_reads_the_conclusion_backwards():
    for width in (100, 10**6):
        eps = CONSTANTS.least_eps(width, delta=0.1, alpha=0.25)
        assert CONSTANTS.holds(width, eps=eps * (1 + 1e-9), delta=0.1, alpha=0.25)
        assert not CONSTANTS.holds(width, eps=eps * (1 - 1e-3), delta=0.1, alpha=0.25)
    assert CONSTANTS.least_eps(39, delta=0.5, alpha=0.25) == math.inf  # C4 = 40


def test_a_constant_without_a_number_is_refused():
    with pytest.raises(ValueError, match=r"^c3 = None: .* the paper gives none for c3, c6$"):
        PaperConstants(1, 1, None, 1, 1).least_width(eps=1.0, delta=0.1, alpha=0.5)
    for change in ({"eps": 0.0}, {"delta": 1.0}, {"alpha": 1.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(change))} = "):
            CONSTANTS.least_width(**{"eps": 1.0, "delta": 0.1, "alpha": 0.5} | change)
    with pytest.raises(ValueError, match=r"^c2 = "):
        PaperConstants(c2=-1.0)


def test_huge_terms_do_not_overflow():
    found = CONSTANTS.least_width(eps=1e-300, delta=0.1, alpha=0.01)
    assert found.width == math.inf and found.binding == "(C2/eps)^(1/alpha)"


@pytest.mark.parametrize(
    "network, method, theorem",
    [
        (DENSE, pruning.magnitude, "Theorem 1"),
        (DENSE, pruning.random, "Theorem 2"),
        (CONV, pruning.random, "Theorem 3"),
        (CONV, pruning.magnitude, None),
        (DENSE, pruning.bernoulli, None),
    ],
    ids=str,
)
def test_which_theorem_speaks(network, method, theorem):
    found, hypotheses = paper_hypotheses(network, laws.uniform(), method, AMOUNT)
    assert found == theorem and all(hypothesis.met for hypothesis in hypotheses)


def unmet(**change):
    case = {"network": DENSE, "law": laws.uniform(), "pruning": pruning.magnitude,
            "amount": AMOUNT, "layers": "middle"} | change  # fmt: skip
    layers = case.pop("layers")
    _, hypotheses = paper_hypotheses(*case.values(), layers=layers)
    return [hypothesis.name for hypothesis in hypotheses if not hypothesis.met]


def test_hypotheses_that_are_not_met_are_named():
    assert unmet(layers="all") == ["only the layers between first and last are pruned"]
    assert unmet(amount=pruning.Fraction(0.1)) == ["amount floor(D^(1 - alpha))"]
    for law in (laws.normal(), laws.uniform(scaling="he")):
        assert unmet(law=law) == ["weights uniform on ±K/√max(fan)"]
        assert unmet(law=law, pruning=pruning.random) == []
    short = networks.dense((5, 5, 5), activations.relu)
    assert unmet(network=short, layers="dense2") == [
        "three layers or more",
        "only the layers between first and last are pruned",
    ]


def test_moments_of_random_pruning_s_hypothesis():
    _, hypotheses = paper_hypotheses(DENSE, laws.normal(2.0), pruning.random, AMOUNT)
    assert hypotheses[-1].detail == "K1 = 4, K2 = 48"  # E w² = 4/d, E w⁴ = 3 · 16/d²

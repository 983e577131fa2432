"""Slopes over the widths of a plan, against a law that is known."""

import math

import numpy as np
import pytest

from jaxprune.engine import Tally, Trial
from jaxprune.studies import plan
from jaxprune.studies.exponents import exponents

WIDTHS = (16, 32, 64, 128)


def cases(hidden=WIDTHS, **changes):
    experiment = {
        "title": "t",
        "network": "dense",
        "widths": [[d] * 4 for d in hidden],
        "law": "uniform",
        "pruning": "random",
        "sparsity": [0.1, 0.2],
        "eps": [1.0],
    }
    return plan.parse({"title": "t", "experiment": [experiment | changes]}).cases


def tally(rng, width, power, spread=0.1, trials=400):
    """Gaps around width^power, upper bounds twice, typical distances a tenth of them."""
    gaps = (width**power * np.exp(spread * rng.normal(size=trials))).astype(np.float32)
    zero = np.zeros(trials, int)
    numbers = (gaps, 2 * gaps, gaps, gaps / 10, gaps, gaps)
    return Tally.of([1.0], range(trials), Trial(np.ones(trials, bool), *numbers, zero, zero))


def tallies(seed, all_cases, power):
    rng = np.random.default_rng(seed)
    return [tally(rng, case.network.widths[1], power) for case in all_cases]


@pytest.mark.ci
def test_slopes_of_a_known_law_are_covered():
    """200 studies with limits at 90 %: 160 or more hold, a false alarm below 1e-4 each of three."""
    all_cases = cases(sparsity=0.1)
    held = dict.fromkeys(("median_lower", "median_upper", "typical"), 0)
    for seed in range(200):
        [found] = exponents(all_cases, tallies(seed, all_cases, -0.75), 0.9)
        assert found["widths"] == sorted(WIDTHS)
        for name in held:
            held[name] += found[name]["low"] <= -0.75 <= found[name]["high"]
    assert all(160 <= n <= 198 for n in held.values()), held


def test_families_differ_by_width_alone():
    all_cases = cases()
    powers = [-1.0 if "10" in str(case.amount) else -0.5 for case in all_cases]
    rng = np.random.default_rng(1)
    found = exponents(
        all_cases,
        [tally(rng, c.network.widths[1], p) for c, p in zip(all_cases, powers, strict=True)],
        0.99,
    )
    slopes = {row["amount"]: row["typical"]["slope"] for row in found}
    assert len(slopes) == 2
    for amount, value in slopes.items():
        assert value == pytest.approx(-1.0 if "10" in amount else -0.5, abs=0.03)
    assert not exponents(cases(WIDTHS[:2]), tallies(0, cases(WIDTHS[:2]), -1.0), 0.99)


def test_cases_that_differ_by_more_than_the_width_are_no_family():
    def slopes(*rows):
        all_cases = cases(sparsity=0.1, widths=[list(row) for row in rows])
        rng = np.random.default_rng(0)
        return exponents(all_cases, [tally(rng, c.network.widths[1], -1.0) for c in all_cases], 0.9)

    for rows in (
        [(16, 32, 32, 8), (32, 64, 64, 8), (8, 128, 128, 8)],  # inputs of another width each
        [(8, 32, 32, 8), (8, 64, 64, 8), (8, 64, 64, 64, 8), (8, 128, 128, 9)],
    ):
        assert not slopes(*rows)
    both = [*cases(sparsity=0.1), *cases(sparsity=0.1, activation="tanh")]
    powers = [-1.0] * len(WIDTHS) + [-0.25] * len(WIDTHS)
    rng = np.random.default_rng(2)
    sampled = [tally(rng, c.network.widths[1], p) for c, p in zip(both, powers, strict=True)]
    found = exponents(both, sampled, 0.9)
    assert [row["typical"]["slope"] for row in found] == pytest.approx([-1.0, -0.25], abs=0.05)
    assert slopes((8, 32, 32, 4), (8, 64, 64, 4), (8, 128, 128, 4))
    assert slopes((32, 32, 32, 4), (64, 64, 64, 4), (128, 128, 128, 4))


def test_each_domain_has_a_family_named_as_its_cells_are():
    domains = {"domain": ["unit ball", "linf ball"], "eps": [1.0], "radius": 0.1}
    both = cases(sparsity=0.1, **domains)
    powers = [-1.0 if case.inputs == "unit ball" else -0.25 for case in both]
    rng = np.random.default_rng(4)
    sampled = [tally(rng, c.network.widths[1], p) for c, p in zip(both, powers, strict=True)]
    found = {row["domain"]: row["typical"]["slope"] for row in exponents(both, sampled, 0.9)}
    named = {"unit ball": -1.0, "linf ball of radius 0.1, outputs in linf": -0.25}
    assert found == pytest.approx(named, abs=0.05)
    assert {case.inputs for case in both} == named.keys()


def test_few_trials_say_nothing():
    all_cases = cases(sparsity=0.1)
    rng = np.random.default_rng(0)
    few = [tally(rng, case.network.widths[1], -1.0, trials=99) for case in all_cases]
    [found] = exponents(all_cases, few, 0.9)
    assert found["typical"] is found["median_lower"] is None


def test_bounds_that_are_zero_are_no_part_of_a_power_law():
    all_cases = cases(sparsity=0.1)
    n, correct = 200, (np.zeros(200, int),) * 2
    of = lambda finite, value: Tally.of(
        [1.0],
        range(n),
        Trial(np.full(n, finite), *(np.full(n, value, np.float32),) * 6, *correct),
    )
    zero, lost = of(True, 0.0), of(False, np.nan)
    good = tallies(0, all_cases[2:], -1.0)
    [found] = exponents(all_cases, [zero, lost, *good], 0.99)
    assert [found[k] for k in ("median_lower", "median_upper", "typical")] == [None] * 3
    [found] = exponents(all_cases, [zero, *tallies(0, all_cases[1:], -1.0)], 0.99)
    assert found["typical"]["points"] == 3 and math.isfinite(found["typical"]["low"])

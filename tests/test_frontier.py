"""The frontier against verdicts known beforehand, exact binomial sums, and NumPy's own pairs."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxprune as jp
from jaxprune import engine, statistics
from jaxprune.bounds import inverse
from jaxprune.report import frontier as words
from jaxprune.statistics import Counts, Ends, judge_ends, least_trials, level_of_one
from jaxprune.studies import frontier as study
from jaxprune.studies.frontier import Probe, bisect, frontier, most_probes, removal_grid

HOLDS, VIOLATED, UNDECIDED = "holds", "violated", "undecided"
NONE = Counts(0, 0, 0, 0)
ENDS = {
    HOLDS: Ends(HOLDS, HOLDS, 0.0, 1.0),
    VIOLATED: Ends(VIOLATED, VIOLATED, 0.0, 1.0),
    UNDECIDED: Ends(UNDECIDED, UNDECIDED, 0.0, 1.0),
    "bracket": Ends(VIOLATED, HOLDS, 0.0, 1.0),
}


def tail_at_most(k, n, p):
    return math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))


def test_ends_against_exact_binomial_sums():
    n, delta, level = 12, 0.3, 0.07
    for close, between, far in itertools.product(range(n + 1), repeat=3):
        nonfinite = n - close - between - far
        if nonfinite < 0:
            continue
        ends = judge_ends(Counts(close, between, far, nonfinite), delta, level)

        def verdict(most, least):
            if tail_at_most(most, n, delta) <= level:
                return HOLDS
            return VIOLATED if 1 - tail_at_most(least - 1, n, delta) <= level else UNDECIDED

        assert ends.upper == verdict(n - close, n - close)
        assert ends.lower == verdict(far + nonfinite, far)
        if ends.upper == HOLDS:
            assert ends.verdict == HOLDS and ends.reason is None and ends.p_low >= 1 - delta
        elif ends.lower == VIOLATED:
            assert ends.verdict == VIOLATED and ends.reason is None and ends.p_high <= 1 - delta
        else:
            shown = ends.upper == VIOLATED and ends.lower == HOLDS
            assert ends.verdict == UNDECIDED
            assert ends.reason == ("bracket" if shown else "trials")


def test_all_statements_of_a_cell_are_right_with_its_share_of_confidence():
    """Exact, by the multinomial law of the counts: no statement is wrong too often."""
    n, delta, confidence = 24, 0.25, 0.6
    level = level_of_one(confidence, 1)
    table = {
        (far, between): judge_ends(Counts(n - far - between, between, far, 0), delta, level)
        for far in range(n + 1)
        for between in range(n + 1 - far)
    }
    worst = 0.0
    for far, between in itertools.product((0.05, 0.2, 0.25, 0.2500001, 0.4), (0.0, 0.0001, 0.3)):
        wrong = 0.0
        for (f, b), ends in table.items():
            ways = math.comb(n, f) * math.comb(n - f, b)
            chance = ways * far**f * between**b * (1 - far - between) ** (n - f - b)
            claims = (
                (ends.upper, far + between <= delta),
                (ends.lower, far <= delta),
            )
            false = any(
                (said == HOLDS and not true) or (said == VIOLATED and true) for said, true in claims
            )
            false |= ends.p_low > 1 - far - between or ends.p_high < 1 - far
            wrong += false * chance
        worst = max(worst, wrong)
    assert 0.1 < worst <= 1 - confidence  # the bound holds, and it is not empty


@pytest.mark.parametrize(("delta", "level"), [(0.05, 1e-4), (0.5, 0.01), (0.9, 1e-3), (0.001, 0.1)])
def test_least_trials_is_the_least(delta, level):
    n = least_trials(delta, level)

    def both(n):
        holds = judge_ends(Counts(n, 0, 0, 0), delta, level).verdict
        violated = judge_ends(Counts(0, 0, n, 0), delta, level).verdict
        return (holds, violated) == (HOLDS, VIOLATED)

    assert both(n) and not both(n - 1)


@pytest.mark.parametrize(("weights", "resolution"), [(1, 0.1), (7, 0.001), (10_000, 0.07), (50, 1)])
def test_grid_runs_from_one_weight_to_all_in_steps_of_the_resolution(weights, resolution):
    grid = removal_grid(weights, resolution)
    assert grid[0] == 1 and grid[-1] == weights
    for a, b in itertools.pairwise(grid):
        assert a < b <= max(a + 1, a * (1 + resolution))
        # Half the step at least, but for the last one and where half a step is below 1 weight.
        assert b == weights or b - a >= 0.5 * a * resolution


def test_bisection_finds_every_boundary_with_few_probes():
    for size in range(1, 14):
        for first, second in itertools.combinations_with_replacement(range(size + 1), 2):
            truth = [HOLDS] * first + ["bracket"] * (second - first) + [VIOLATED] * (size - second)
            asked = []

            def probe(i, truth=truth, asked=asked):
                asked.append(i)
                return Probe(NONE, ENDS[truth[i]])

            bracket = bisect(probe, size)
            assert (bracket.holds, bracket.violated) == (first - 1, second)
            assert len(asked) == len(set(asked)) <= most_probes(size)
            if second == first:
                assert bracket.open_because == ("resolution" if first < size else None)
            else:
                assert bracket.open_because == "bracket"


def test_the_middle_is_probed_where_both_ends_lack_trials():
    """Cells that no number of trials decides lie between cells that lack them."""
    for between in range(1, 40):
        for shown in range(between):
            open_cells = [UNDECIDED] * between
            low = (between - shown) // 2
            open_cells[low : low + shown] = ["bracket"] * shown
            truth = [HOLDS] * 20 + open_cells + [VIOLATED] * 30
            bracket = bisect(lambda i, t=truth: Probe(NONE, ENDS[t[i]]), len(truth))
            assert (bracket.holds, bracket.violated) == (19, 20 + between)
            if shown != 1:  # a single cell may lie just beside the middle
                assert bracket.open_because == ("bracket" if shown else "trials")


def test_bisection_of_verdicts_in_any_order_says_only_what_it_saw():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 30))
        truth = rng.choice([HOLDS, UNDECIDED, VIOLATED], size)
        bracket = bisect(lambda i, t=truth: Probe(NONE, ENDS[t[i]]), size)
        assert -1 <= bracket.holds < bracket.violated <= size
        assert bracket.holds == -1 or truth[bracket.holds] == HOLDS
        assert bracket.violated == size or truth[bracket.violated] == VIOLATED
        if bracket.open_because == "trials":
            assert bracket.violated - bracket.holds > 1


def wrong_studies(level, studies, rng):
    """Bisections on common trials in which some verdict is wrong; the truth hugs delta.

    A trial of the cell q is far if U < b(q) and close if U > a(q), the same U for all cells.
    """
    n, delta = 200, 0.2
    b = delta + 0.02 * np.linspace(-1, 1, 25)
    a = b + 0.002
    wrong = 0
    for _ in range(studies):
        u = rng.random(n)

        def probe(i, u=u):
            far, close = int((u < b[i]).sum()), int((u > a[i]).sum())
            counts = Counts(close, n - far - close, far, 0)
            return Probe(counts, judge_ends(counts, delta, level))

        probes = bisect(probe, len(b)).probes
        wrong += any(
            (p.ends.upper == HOLDS and a[i] > delta)
            or (p.ends.upper == VIOLATED and a[i] <= delta)
            or (p.ends.lower == HOLDS and b[i] > delta)
            or (p.ends.lower == VIOLATED and b[i] <= delta)
            for i, p in probes.items()
        )
    return wrong


@pytest.mark.ci
def test_all_verdicts_of_a_study_are_right_at_the_stated_confidence():
    """False alarm below 1e-9; a level that ignores the other cells is caught."""
    studies, confidence = 80, 0.7
    rng = np.random.default_rng(1)
    wrong = wrong_studies(level_of_one(confidence, 25), studies, rng)
    assert statistics.p_value_at_least(wrong, studies, 1 - confidence) > 1e-9
    careless = wrong_studies(1 - confidence, studies, rng)
    assert statistics.p_value_at_least(careless, studies, 1 - confidence) < 1e-9


BALL = jp.UnitBall(samples=8, starts=4, steps=20)
LAW = jp.uniform(gain=2.0)
SMALL = dict(
    law=LAW,
    pruning=jp.random,
    layers="all",
    eps=1.4,
    delta=0.3,
    trials=300,
    confidence=0.99,
    resolution=0.2,
    domain=BALL,
)


def one_layer(d):
    return jp.dense((d, d))


@pytest.fixture(scope="module")
def result():
    return frontier(one_layer, widths=[4, 3], **SMALL)


@pytest.mark.ci
def test_verdicts_of_one_layer_against_numpy(result):
    """The gap of one layer is the spectral norm of what was removed. False alarm below 1 %."""
    rng, n = np.random.default_rng(5), 20_000
    for point in result["points"]:
        d = point["width"]
        w = rng.uniform(-1, 1, (n, d * d)) * 2.0 / math.sqrt(d)
        order = rng.random((n, d * d)).argsort(axis=1)
        for probe in point["probes"]:
            k = round(probe["sparsity"] * d * d)
            gap = np.linalg.norm(np.where(order < k, w, 0.0).reshape(n, d, d), 2, axis=(1, 2))
            share = (gap <= 1.4).mean()
            margin = 5 * math.sqrt(0.25 / n)
            assert probe["p_low"] - margin <= share <= probe["p_high"] + margin
            if probe["verdict"] == HOLDS:
                assert share >= 0.7 - margin
            if probe["verdict"] == VIOLATED:
                assert share <= 0.7 + margin
        assert 0 < point["holds"] < point["violated"] < 1


@pytest.mark.ci
def test_probes_are_simulations_that_can_be_run_again(result):
    point = result["points"][0]
    for probe in point["probes"][::2]:
        tally = jp.simulate(
            one_layer(point["width"]),
            LAW,
            jp.random,
            jp.Fraction(probe["sparsity"]),
            eps=[1.4],
            trials=300,
            layers="all",
            domain=BALL,
        )
        assert tally.counts(1.4) == Counts(*(probe[key] for key in Counts._fields))


def test_another_seed_draws_other_pairs():
    asked = SMALL | {"confidence": 0.5, "resolution": 1.0}
    (point,) = frontier(one_layer, widths=[3], seed=7, **asked)["points"]
    counts = [
        [
            jp.simulate(
                one_layer(3), LAW, jp.random, jp.Fraction(probe["sparsity"]),
                eps=[1.4], trials=300, layers="all", domain=BALL, seed=seed,
            ).counts(1.4)
            for probe in point["probes"]
        ]
        for seed in (7, 0)
    ]  # fmt: skip
    found = [Counts(*(probe[key] for key in Counts._fields)) for probe in point["probes"]]
    assert found == counts[0] != counts[1]


@pytest.mark.ci
def test_points_are_whole(result):
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    plan = result["plan"]
    assert plan["widths"] == [3, 4] and plan["layers"] == ["dense1"]
    assert plan["cells"] == sum(point["grid"] for point in result["points"])
    for point in result["points"]:
        verdicts = {p["sparsity"]: p["verdict"] for p in point["probes"]}
        assert verdicts[point["holds"]] == HOLDS and verdicts[point["violated"]] == VIOLATED
        assert point["open_because"] in ("bracket", "trials", "resolution")
        network = one_layer(point["width"])
        shared = dict(eps=1.4, layers="all")
        theorem = inverse.largest_sparsity(network, LAW, jp.random, delta=0.3, **shared)
        typical = inverse.typical_largest_sparsity(network, LAW, jp.random, **shared)
        assert point["theorem"] == theorem.sparsity <= point["holds"]
        assert point["infinite_width"] == typical.sparsity


@pytest.mark.ci
def test_the_same_request_gives_the_same_result_and_hash(result):
    seen = []
    again = frontier(one_layer, widths=[3, 4], **SMALL, progress=seen.append)
    assert again == result
    shares = [p.done / p.total for p in seen]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    # What is known before the last sparsity that is looked at.
    note = r"(\d+) of (\d+) trials; so far holds at (\S+), violated at (\S+)"
    done, trials, holds, violated = re.fullmatch(note, seen[-1].note).groups()
    assert int(done) <= int(trials) == SMALL["trials"]
    point = result["points"][-1]
    assert holds == "none" or float(holds) <= 1.01 * point["holds"]
    assert violated == "none" or float(violated) >= 0.99 * point["violated"]
    assert (holds, violated) != ("none", "none")
    other = frontier(one_layer, widths=[3], **{**SMALL, "seed": 1})
    assert other["plan"]["hash"] != result["plan"]["hash"]
    assert other["points"][0]["probes"] != result["points"][0]["probes"]


def test_where_everything_holds_and_where_nothing_does():
    all_of_it = frontier(one_layer, widths=[3], **{**SMALL, "eps": 1e3})["points"][0]
    assert (all_of_it["holds"], all_of_it["violated"]) == (1.0, None)
    assert all_of_it["open_because"] is None
    none = frontier(one_layer, widths=[3], **{**SMALL, "eps": 1e-6})["points"][0]
    assert (none["holds"], none["violated"]) == (0.0, 1 / 9)
    assert none["open_because"] == "resolution"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trials": 10}, "at least .* are needed"),
        ({"trials": 0}, "trials"),
        ({"trials": 10**15}, "trials"),
        ({"widths": range(1, 102)}, "number of widths = 101"),
        ({"eps": 0.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 0.0}, "confidence"),
        ({"resolution": 0.0}, "resolution"),
        ({"widths": []}, "widths"),
        ({"widths": "16"}, "widths"),
        ({"widths": [3, 0]}, "width"),
        ({"widths": [3, 2.5]}, "width"),
        ({"layers": "dense9"}, "dense9"),
        ({"layers": "middle"}, "chooses none"),
        ({"pruning": "random"}, "pruning"),
        ({"law": "uniform"}, "law"),
        ({"domain": np.zeros((1, 3))}, "domain"),
        ({"seed": -1}, "seed"),
        ({"widths": [300_000]}, "at most"),
    ],
)
def test_impossible_requests_are_refused_before_sampling(monkeypatch, change, named):
    monkeypatch.setattr(engine, "tally_run", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=named) as refusal:
        frontier(one_layer, **{"widths": [3], **SMALL, **change})
    assert "\n" not in str(refusal.value)


@pytest.mark.ci
def test_plot_shows_the_brackets_and_both_lines(result):
    ax = words.plot(Figure().add_subplot(), result)
    points = result["points"]
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    for label, key in (
        ("holds up to here", "holds"),
        ("violated from here", "violated"),
        ("infinite width, one input: an estimate", "infinite_width"),
    ):
        np.testing.assert_array_equal(drawn[label], [p[key] for p in points])
    theorem = next(y for label, y in drawn.items() if label.startswith("theorem"))
    np.testing.assert_array_equal(theorem, [p["theorem"] for p in points if p["theorem"]])


def test_the_module_names_its_reasons():
    assert {study.RESOLUTION, statistics.BRACKET, statistics.TRIALS, None} == set(
        words.OPEN_BECAUSE
    )

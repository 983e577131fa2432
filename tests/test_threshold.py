"""Thresholds and exponents against power laws known beforehand, and SciPy's fits."""

import csv
import io
import json
import math
import random

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import optimize, special, stats
from spoiling import outcomes

import jaxprune as jp
from jaxprune import engine, report, statistics
from jaxprune.bounds import inverse
from jaxprune.engine import Tally, Trial
from jaxprune.report import reading
from jaxprune.report import threshold as words
from jaxprune.statistics import Counts, exponent, judge_ends, level_of_one
from jaxprune.studies.threshold import Threshold, locate, threshold

H, V, U = "holds", "violated", "undecided"


@pytest.mark.parametrize(
    ("verdicts", "bracket"),
    [
        ((V, V, H, H), (3, 4)),
        ((V, U, U, H), (2, 5)),
        ((U, V, U, U), (3, None)),
        ((U, U, H, H), (None, 4)),
        ((H, H, H, H), (None, 2)),
        ((V, V, V, V), (5, None)),
        ((U, U, U, U), (None, None)),
        ((V, H, V, H), (2, 3)),  # no width below the least that holds is hidden by a later one
    ],
)
def test_least_width_lies_between_violated_and_holds(verdicts, bracket):
    assert locate((2, 3, 4, 5), verdicts) == Threshold(*bracket)


def test_exponent_of_an_exact_power_law():
    x = np.array([0.5, 2.0, 3.0, 11.0])
    fit = exponent(x, 3 * x**1.7, 3 * x**1.7, 0.95)
    for value in fit[:5]:
        assert value == pytest.approx(1.7, abs=1e-12)
    assert fit.power_law and fit.points == 4


def brackets(rng, k):
    x = np.sort(rng.uniform(0.1, 10.0, k))
    middle = np.exp(rng.normal(0, 1, k)) * x ** rng.normal()
    ratio = np.exp(rng.uniform(0, 0.5, k))
    return x, middle / ratio, middle * ratio


def test_limits_enclose_scipys_fits_of_all_values_inside_and_are_attained():
    rng = np.random.default_rng(0)
    for k in (3, 4, 6):
        x, low, high = brackets(rng, k)
        fit = exponent(x, low, high, 0.9)
        log_x = np.log(x)
        weight = (log_x - log_x.mean()) / ((log_x - log_x.mean()) ** 2).sum()
        ends = np.stack([weight * np.log(low), weight * np.log(high)])
        assert fit.low == pytest.approx(ends.min(0).sum(), abs=1e-12)
        assert fit.high == pytest.approx(ends.max(0).sum(), abs=1e-12)
        reached = []
        for share in (*rng.random((200, k)), *rng.integers(0, 2, (200, k))):
            line = stats.linregress(log_x, np.log(low) + share * np.log(high / low))
            margin = stats.t.ppf(0.95, k - 2) * line.stderr
            assert fit.low - 1e-9 <= line.slope <= fit.high + 1e-9
            assert fit.scatter_low - 1e-9 <= line.slope - margin
            assert line.slope + margin <= fit.scatter_high + 1e-9
            reached.append(line.slope + margin)
        assert max(reached) == pytest.approx(fit.scatter_high, abs=1e-9)


def test_two_points_have_no_scatter():
    fit = exponent([1.0, 4.0], [2.0, 6.0], [3.0, 8.0], 0.95)
    assert fit.low == pytest.approx(math.log(6 / 3) / math.log(4))
    assert fit.high == pytest.approx(math.log(8 / 2) / math.log(4))
    assert (fit.scatter_low, fit.scatter_high) == (-math.inf, math.inf) and fit.power_law


def test_power_law_through_all_brackets_against_linear_programming():
    rng, seen = np.random.default_rng(1), []
    for _ in range(150):
        x, low, high = brackets(rng, int(rng.integers(3, 6)))
        rows = np.stack([np.ones_like(x), np.log(x)], axis=1)
        inside = optimize.linprog(
            [0, 0],
            A_ub=np.concatenate([rows, -rows]),
            b_ub=np.concatenate([np.log(high), -np.log(low)]),
            bounds=[(None, None)] * 2,
        )
        seen.append(inside.status == 0)
        assert exponent(x, low, high, 0.9).power_law == seen[-1]
    assert 10 < sum(seen) < 140


def test_scatter_limits_cover_the_exponent_of_a_power_law():
    """Values scatter about a power law; brackets hold them. False alarm below 1e-9 each.

    With brackets of no width the t limits are exact, and neither miss too often nor too seldom.
    """
    rng, n, confidence, slope = np.random.default_rng(2), 1500, 0.8, 0.7
    x = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    missed = {0.0: 0, 0.3: 0}
    for _ in range(n):
        value = 5 * x**slope * np.exp(0.2 * rng.normal(size=5))
        for width in missed:
            share = rng.random(5)
            low, high = value * np.exp(-width * share), value * np.exp(width * (1 - share))
            fit = exponent(x, low, high, confidence)
            missed[width] += not fit.scatter_low <= slope <= fit.scatter_high
    for count in missed.values():
        assert statistics.p_value_at_least(count, n, 1 - confidence) > 1e-9
    assert statistics.p_value_at_most(missed[0.0], n, 1 - confidence) > 1e-9


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        ([1.0], [1.0], [1.0]),
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0]),
        ([1.0, 0.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, 2.0], [1.0, 1.0], [1.0, math.inf]),
        (range(1, 14), [1.0] * 13, [1.0] * 13),
    ],
)
def test_exponents_of_nothing_are_refused(x, low, high):
    with pytest.raises(ValueError):
        exponent(x, low, high, 0.9)


LAW = jp.uniform(gain=2.0)
WIDE = (8, 10, 12, 15, 19, 24, 30, 38, 48, 60)
SLOPE, DEVIATION, RATIO = 0.75, 0.1, 1.4


@pytest.fixture
def known_law(monkeypatch):
    """Pairs whose gap at width d is `d^-SLOPE` times a lognormal factor, bracketed to RATIO."""

    def tally_run(run, eps, progress=None):
        d, n = run.design.network.widths[1], run.trials
        seed = int(jax.random.key_data(run.numbers.root)[0]) + d
        gap = d**-SLOPE * np.exp(DEVIATION * np.random.default_rng(seed).normal(size=n))
        share = np.random.default_rng(seed + 1).random(n)
        zero = np.zeros(n)
        fields = dict.fromkeys(Trial._fields, zero)
        fields |= {
            "finite": np.ones(n, bool),
            "lower": gap * RATIO**-share,
            "upper": gap * RATIO ** (1 - share),
        }
        if progress:
            progress(n)
        return Tally.of(tuple(eps), range(n), Trial(**fields))

    monkeypatch.setattr(engine, "tally_run", tally_run)
    monkeypatch.setattr(engine, "compiled_block", lambda run: None)


@pytest.fixture
def no_theorem(monkeypatch):
    """Saves the time of the certificates."""
    monkeypatch.setattr(inverse, "least_width", lambda *_, **__: None)


def network(d):
    return jp.dense((d,) * 4)


@pytest.mark.ci
def test_brackets_and_exponents_of_a_known_law(known_law):
    """d* is known in closed form. False alarm below 1 %, the study's own."""
    found = threshold(
        network,
        LAW,
        jp.magnitude,
        jp.Sublinear(0.5),
        widths=WIDE,
        eps=[0.08, 0.1, 0.16],
        delta=0.1,
        deltas=[0.05, 0.1, 0.4],
        trials=2000,
        confidence=0.99,
    )
    for t in found["thresholds"]:
        quantile = math.exp(DEVIATION * special.ndtri(1 - t["delta"]))
        truth = math.ceil((quantile / t["eps"]) ** (1 / SLOPE))
        above, most = t["gap"].values()
        assert above is not None and most is not None and above < truth <= most
        assert most < 3 * above
    by = {(e["of"], e["kind"]): e for e in found["exponents"]}
    for kind in ("gap", "lower end", "upper end"):
        row = by["1/eps", kind]
        assert row["low"] < 1 / SLOPE < row["high"] and row["power_law"]
        assert row["scatter_low"] <= row["low"] <= row["estimate"] <= row["high"]
        # d* ~ exp(DEVIATION z / SLOPE): hardly any power of 1/delta, as the limits say.
        assert by["1/delta", kind]["low"] < 0.15 and by["1/delta", kind]["high"] < 0.6
    assert by["1/eps", "lower end"]["high"] - by["1/eps", "lower end"]["low"] < (
        by["1/eps", "gap"]["high"] - by["1/eps", "gap"]["low"]
    )
    assert by["1/eps", "paper"]["estimate"] == by["1/delta", "paper"]["estimate"] == 2.0
    x = np.log([1 / t["eps"] for t in found["thresholds"] if t["delta"] == 0.1])
    for kind in ("theorem", "infinite_width"):
        y = np.log([t[kind] for t in found["thresholds"] if t["delta"] == 0.1])
        assert by["1/eps", kind]["estimate"] == pytest.approx(stats.linregress(x, y).slope)


def test_a_pilot_picks_epsilons_that_the_thresholds_cross(known_law, no_theorem):
    found = threshold(
        network, LAW, jp.magnitude, jp.Sublinear(0.5), widths=WIDE, trials=1500, deltas=[0.05]
    )
    plan = found["plan"]
    assert plan["eps_source"] == "pilot" and len(plan["eps"]) == 8
    quantile = math.exp(DEVIATION * special.ndtri(0.95))
    low, high = 60**-SLOPE * quantile / RATIO, 8**-SLOPE * quantile * RATIO
    assert low * 0.9 < plan["eps"][0] < 1.4 * low and high / 1.4 < plan["eps"][-1] < high * 1.1
    closed = [t for t in found["thresholds"] if None not in t["gap"].values()]
    assert len(closed) >= 3


SMALL = dict(
    law=LAW,
    pruning=jp.magnitude,
    amount=jp.Count(6),
    widths=[5, 3],
    eps=[0.2, 0.5, 0.8],
    delta=0.3,
    deltas=[0.3],
    layers="all",
    trials=200,
    confidence=0.9,
    domain=jp.UnitBall(samples=8, starts=4, steps=10),
)


def one_layer(d):
    return jp.dense((d, d))


@pytest.fixture(scope="module")
def result():
    return threshold(one_layer, **SMALL)


@pytest.mark.ci
def test_cells_are_simulations_that_can_be_run_again(result):
    assert len(result["cells"]) == 2 * 3 == result["plan"]["cells"]
    level = level_of_one(0.9, 6)
    shared = {key: SMALL[key] for key in ("trials", "layers", "domain", "eps")}
    tallies = {
        d: jp.simulate(one_layer(d), LAW, jp.magnitude, jp.Count(6), **shared) for d in (3, 5)
    }
    for cell in result["cells"]:
        counts = Counts(*(cell[key] for key in Counts._fields))
        ends = judge_ends(counts, cell["delta"], level)
        assert counts == tallies[cell["width"]].counts(cell["eps"])
        assert (cell["verdict"], cell["reason"]) == (ends.verdict, ends.reason)
        assert (cell["p_low"], cell["p_high"]) == (ends.p_low, ends.p_high)


@pytest.mark.ci
def test_verdicts_of_one_layer_against_numpy(result):
    """The gap of one layer is the spectral norm of what was removed. False alarm below 10 %."""
    rng, n = np.random.default_rng(5), 10_000
    for cell in result["cells"]:
        d = cell["width"]
        w = rng.uniform(-1, 1, (n, d * d)) * 2.0 / math.sqrt(d)
        rank = np.abs(w).argsort(axis=1).argsort(axis=1)
        gap = np.linalg.norm(np.where(rank < 6, w, 0.0).reshape(n, d, d), 2, axis=(1, 2))
        share, margin = (gap <= cell["eps"]).mean(), 5 * math.sqrt(0.25 / n)
        assert cell["p_low"] - margin <= share <= cell["p_high"] + margin
    assert {cell["verdict"] for cell in result["cells"]} >= {H, V}


@pytest.mark.ci
def test_thresholds_follow_from_the_cells(result):
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    for t in result["thresholds"]:
        pair = t["eps"], t["delta"]
        row = [c["verdict"] for c in result["cells"] if (c["eps"], c["delta"]) == pair]
        assert tuple(t["gap"].values()) == locate((3, 5), row)
        shared = dict(eps=t["eps"], layers="all")
        case = one_layer, LAW, jp.magnitude, jp.Count(6)
        theorem = inverse.least_width(*case, delta=t["delta"], **shared)
        typical = inverse.typical_least_width(*case, **shared)
        assert t["theorem"] == (theorem.width if theorem else None)
        assert t["infinite_width"] == (typical.width if typical else None)
    assert result["plan"]["eps_of_deltas"] == 0.5 and result["plan"]["alpha"] is None
    assert [e["estimate"] for e in result["exponents"] if e["kind"] == "paper"] == [None, None]


@pytest.mark.ci
def test_too_few_brackets_have_no_exponent(result):
    rows = [e for e in result["exponents"] if e["kind"] in ("gap", "lower end", "upper end")]
    assert len(rows) == 6
    for row in rows:
        assert (row["estimate"] is None) == (row["points"] < 2)
        assert row["estimate"] is None or row["of"] == "1/eps"  # one delta only


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trials": 5}, "at least .* are needed"),
        ({"deltas": [1e-4, 0.3]}, "at least .* are needed"),
        ({"eps": []}, "eps"),
        ({"eps": [0.0, 1.0]}, "eps"),
        ({"eps": [0.1 * k for k in range(1, 14)]}, "at most 12"),
        ({"deltas": [0.5, 1.5]}, "deltas"),
        ({"delta": 0.0}, "delta"),
        ({"widths": [3]}, "two widths"),
        ({"widths": []}, "widths"),
        ({"amount": jp.Count(10)}, "count"),
        ({"amount": jp.Count(0)}, "removes nothing"),
        ({"amount": 0.5}, "amount"),
        ({"confidence": 1.0}, "confidence"),
        ({"layers": "middle"}, "chooses none"),
    ],
)
def test_impossible_requests_are_refused_before_sampling(monkeypatch, change, named):
    monkeypatch.setattr(engine, "tally_run", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=named) as refusal:
        threshold(one_layer, **{**SMALL, **change})
    assert "\n" not in str(refusal.value)


def test_plot_draws_every_closed_bracket(known_law, no_theorem):
    found = threshold(
        network, LAW, jp.magnitude, jp.Sublinear(0.5), widths=WIDE, trials=1500, deltas=[0.1, 0.3]
    )
    for variable in ("eps", "delta"):
        ax = words.plot(Figure().add_subplot(), found, variable)
        bars = [c for c in ax.collections if c.get_label().startswith("gap: exponent")]
        drawn = sorted(tuple(s[:, 1]) for s in bars[0].get_segments())
        plan = found["plan"]
        fixed, at = ("delta", 0.05) if variable == "eps" else ("eps", plan["eps_of_deltas"])
        closed = [tuple(t["gap"].values()) for t in found["thresholds"] if t[fixed] == at]
        assert drawn == sorted(b for b in closed if None not in b) and drawn
    brackets, exponents, _ = words.sections(found)[0].tables
    assert "infinite width,\nestimated" in brackets.names  # theorem 7 is a limit, not a bound
    assert "infinite width, estimated" in {row[1] for row in exponents.rows}


@pytest.mark.ci
def test_a_result_has_a_page_and_rows(result):
    read = json.loads(json.dumps(result))
    reading.check(read)
    assert read["plan"]["hash"] in report.page(read)
    rows = list(csv.DictReader(io.StringIO(report.to_csv(read))))
    assert [int(row["close"]) for row in rows] == [cell["close"] for cell in result["cells"]]
    read["cells"][0]["verdict"] = "sure"
    with pytest.raises(ValueError, match="verdict"):
        reading.check(read)


@pytest.mark.ci
def test_what_passes_the_checks_has_a_page(result):
    read = json.loads(json.dumps(result))
    found = outcomes(random.Random(0), [read], 40)
    assert min(found.values()) > 5, found

"""`jaxprune rare` and the study behind it."""

import csv
import io
import json
import random

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from spoiling import outcomes

import jaxprune as jp
from jaxprune import bounds, report
from jaxprune.cli import main
from jaxprune.report import rare as words
from jaxprune.report import reading
from jaxprune.statistics import ESTIMATED, Splitting
from jaxprune.studies.rare import rare

NETWORK, LAW, AMOUNT = jp.dense((4, 4, 4, 2)), jp.uniform(6**0.5), jp.Count(3)
PLAN = Splitting(particles=40, kill=8, steps=4)
FAST = ["--particles", "40", "--kill", "8", "--steps", "4"]


@pytest.fixture(scope="module")
def result():
    return rare(NETWORK, LAW, jp.magnitude, AMOUNT, eps=0.6, splitting=PLAN, confidence=0.999)


@pytest.mark.ci
def test_the_study_agrees_with_plain_simulation(result):
    """Of the limits, 1 seed in 1,000 misses; the direct frequencies err by less than .005."""
    json.dumps(result, allow_nan=False)
    tally = jp.simulate(NETWORK, LAW, jp.magnitude, AMOUNT, eps=[0.6], trials=20_000, seed=1)
    counts = tally.counts(0.6)
    exceeding = {"lower": counts.far, "upper": counts.not_close}
    for end, found in result["ends"].items():
        assert found["verdict"] == ESTIMATED and len(found["replicas"]) == 10
        assert found["low"] - 0.005 <= exceeding[end] / 20_000 <= found["high"] + 0.005
    assert result["theorem"] == bounds.least_delta(NETWORK, LAW, jp.magnitude, AMOUNT, eps=0.6)


@pytest.mark.ci
def test_the_same_seed_gives_the_same_result(result):
    again = rare(NETWORK, LAW, jp.magnitude, AMOUNT, eps=0.6, splitting=PLAN, confidence=0.999)
    assert again == result
    other = rare(
        NETWORK, LAW, jp.magnitude, AMOUNT, eps=0.6, splitting=PLAN, confidence=0.999, seed=1
    )
    for end, found in other["ends"].items():
        assert found["replicas"] != result["ends"][end]["replicas"]
    assert other["plan"]["hash"] != result["plan"]["hash"]


def printed(result):
    stream = io.StringIO()
    report.render(result, Console(file=stream, width=120))
    return stream.getvalue()


@pytest.mark.ci
def test_the_table_names_doubts_and_what_is_proved(result):
    ends = {
        "lower": result["ends"]["lower"] | {"doubts": [], "certifying_trials": None},
        "upper": result["ends"]["upper"] | {"doubts": ["mixing", "spread"]},
    }
    text = printed(result | {"ends": ends, "theorem": 0.01234})
    assert "none failed" in text and "unreliable: twice the moves" in text
    assert "> 10^12" in text and "P(gap > ε) ≤ 0.0124" in text
    assert "No theorem here" in printed(result | {"theorem": None})


@pytest.mark.ci
def test_a_replica_that_died_out_is_drawn_and_doubted():
    found = rare(NETWORK, LAW, jp.magnitude, jp.Count(0), eps=0.6, splitting=PLAN)
    assert "a replica died out" in printed(found)
    assert found["ends"]["lower"]["p"] == 0.0 and found["theorem"] < 1e-299
    assert words.plot(Figure().add_subplot(), found).lines


@pytest.mark.ci
def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "rare"
    arguments = ["rare", "--widths", "4", "4", "4", "2", "--count", "3", "--eps", "0.6", *FAST]
    assert main([*arguments, "--confidence", "0.999", "--out", str(out)]) == 0
    assert "lower end" in capsys.readouterr().out
    written = json.loads((out / "result.json").read_text())
    assert set(written) == {"plan", "environment", "ends", "theorem"}
    assert "lower end" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--eps"),
        (["--eps", "0"], "eps = 0.0"),
        (["--eps", "1", "--replicas", "3"], "replicas = 3"),
        (["--eps", "1", "--kill", "500"], "kill = 500"),
        (["--eps", "1", "--pruning", "l1"], "pruning = 'l1'"),
        (["--eps", "1", "--confidence", "1"], "confidence = 1.0"),
        (["--eps", "1", "--count", "3", "--alpha", "0.5"], "count = 3"),
    ],
)
def test_bad_input_is_one_line(arguments, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["rare", *arguments])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and named in error
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_a_result_has_a_page_and_rows(result):
    read = json.loads(json.dumps(result))
    reading.check(read)
    assert read["plan"]["hash"] in report.page(read)
    rows = csv.DictReader(io.StringIO(report.to_csv(read)))
    assert [(row["end"], float(row["high"])) for row in rows] == [
        (end, found["high"]) for end, found in result["ends"].items()
    ]
    assert "is further than 0.6 from the network it was pruned from" in report.page(read)
    del read["ends"]["upper"]["low"]
    with pytest.raises(ValueError, match="low"):
        reading.check(read)


@pytest.mark.ci
def test_what_passes_the_checks_has_a_page(result):
    read = json.loads(json.dumps(result))
    found = outcomes(random.Random(0), [read], 40)
    assert min(found.values()) > 5, found

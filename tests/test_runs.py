"""Plans before data: sampling that stops when it has decided, and the ledger of runs."""

import json

import numpy as np
import pytest

import jaxprune as jp
from jaxprune import cli
from jaxprune.engine import memory
from jaxprune.report import words
from jaxprune.statistics import (
    CERTIFIED,
    ESTIMATED,
    HOLDS,
    VIOLATED,
    Evidence,
    holm,
    log_e_violated,
    p_value_at_most,
)
from jaxprune.studies import plan as plans
from jaxprune.studies import runs
from jaxprune.studies.cases import LOOK
from jaxprune.studies.verify import verify

# One 1 x 3 layer of which one weight goes: gaps are plain absolute values of one weight.
PLAN = """
title = "one layer"
seed = 3
delta = 0.2
trials = 1000
until_decided = true

[[experiment]]
title = "one layer"
network = "dense"
widths = [3, 1]
layers = "all"
law = "uniform"
pruning = "random"
count = 1
eps = [0.01, 0.462, 0.7]
samples = 4
starts = 2
steps = 4
"""


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def command(folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    return cli.main(["verify", "--plan", "plan.toml", *arguments])


@pytest.mark.ci
def test_sampling_ends_at_the_first_look_that_decides_every_claim(plan_file):
    plan = plans.load(plan_file)
    source = dict(plan.source)
    (experiment,) = source["experiment"]
    # |w| is uniform on (0, 1/sqrt(3)): 0.01 is violated, 0.7 holds.
    easy = plans.parse(source | {"experiment": [experiment | {"eps": [0.01, 0.7]}]})
    cells = verify(easy)["cells"]
    assert [cell["verdict"] for cell in cells] == [VIOLATED, HOLDS]
    (trials,) = {cell["trials"] for cell in cells}
    assert trials % LOOK == 0 and trials < 300 and cells[0]["budget"] == 1000
    assert {cell["smallest_eps"] for cell in cells} == {0.7}
    # The same trials tallied by hand decide there and at no earlier look.
    (case,) = easy.cases
    run = jp.engine.prepare(
        case.network, case.targets, case.pruning, case.amount, trials=1000, layers="all",
        domain=case.ball, seed=3, block=LOOK,
    )  # fmt: skip
    tally, evidence = jp.engine.Tally((0.01, 0.7)), [Evidence(), Evidence()]
    for _, ids, block, _ in jp.engine.run_blocks(run):
        tally += jp.engine.Tally.of(tally.eps, ids, block)
        pairs = zip(evidence, tally.eps, strict=True)
        evidence = [e.look(tally.counts(eps), 0.2) for e, eps in pairs]
        if all(max(e) >= np.log(2 / 0.01) for e in evidence):
            break
    assert tally.trials == trials
    for name, key in (("holds", "p_value_holds"), ("violated", "p_value_violated")):
        p_values = holm(np.exp([-getattr(e, name) for e in evidence]))
        np.testing.assert_allclose([cell[key] for cell in cells], p_values, rtol=1e-12)
    for cell, eps in zip(cells, tally.eps, strict=True):
        assert {k: cell[k] for k in tally.counts(eps)._fields} == tally.counts(eps)._asdict()


@pytest.mark.ci
def test_an_epsilon_asked_for_twice_is_two_claims(plan_file):
    source = dict(plans.load(plan_file).source)
    (experiment,) = source["experiment"]
    twice = plans.parse(source | {"experiment": [experiment | {"eps": [0.7, 0.7]}]})
    first, second = verify(twice)["cells"]
    assert first["verdict"] == second["verdict"] == HOLDS
    assert first["p_value_holds"] == second["p_value_holds"]


def test_a_plan_may_ask_for_few_wrong_verdicts_among_many(plan_file):
    plan = plans.load(plan_file)
    few = plans.parse(dict(plan.source) | {"correction": "e-bh"})
    assert few.hash != plan.hash and plan.source["correction"] == "holm"
    result = verify(few)
    first, _, last = result["cells"]
    assert (first["verdict"], last["verdict"]) == (VIOLATED, HOLDS)
    assert "e-BH" in " ".join(words.caption(result))
    n, m = first["trials"], len(result["cells"])
    expected = min(1.0, m * np.exp(-log_e_violated(first["far"], n, 0.2)))
    assert first["p_value_violated"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("until_decided", [False, True])
def test_the_smallest_epsilon_is_tested_from_the_largest_down(
    plan_file, until_decided, monkeypatch
):
    """0.3 fails, so that 0.58 is the smallest that passes, whatever smaller ones say."""
    monkeypatch.setattr(memory, "MAX_CHUNK", LOOK)
    text = PLAN.replace("[0.01, 0.462, 0.7]", "[0.3, 0.58, 0.7]")
    plan_file.write_text(
        text.replace("until_decided = true", f"until_decided = {until_decided}".lower())
    )
    cells = verify(plans.load(plan_file, trials=400))["cells"]
    assert {cell["smallest_eps"] for cell in cells} == {0.58}
    plan_file.write_text(text.replace("[0.3, 0.58, 0.7]", "[0.1, 0.3]"))
    assert verify(plans.load(plan_file, trials=400))["cells"][0]["smallest_eps"] is None


def test_a_claim_at_its_boundary_uses_the_budget(plan_file):
    (cell,) = (c for c in verify(plans.load(plan_file, seed=4))["cells"] if c["eps"] == 0.462)
    assert cell["trials"] == cell["budget"] == 1000 and cell["verdict"] == "undecided"


def test_simulate_stops_where_it_is_told_and_keeps_the_first_trials():
    arguments = dict(eps=[0.3], layers="all", domain=jp.UnitBall(4, 2, 4), block=64, trials=512)
    network, law, amount = jp.dense((3, 1)), jp.uniform(), jp.Count(1)
    seen = []

    def until(tally):
        seen.append(tally.trials)
        return tally.trials >= 192

    tally = jp.simulate(network, law, jp.random, amount, until=until, **arguments)
    assert seen == [64, 128, 192] and tally.trials == 192
    whole = jp.simulate(network, law, jp.random, amount, **arguments | {"trials": 192})
    assert tally.counts(0.3) == whole.counts(0.3) and tally.worst == whole.worst


def test_a_theorem_s_epsilon_is_marked_certified(plan_file):
    text = PLAN.replace("[0.01, 0.462, 0.7]", '["theorem", 0.01]')
    plan_file.write_text(text)
    cells = verify(plans.load(plan_file, trials=64))["cells"]
    assert [cell["by_theorem"] for cell in cells] == [CERTIFIED, None]


@pytest.mark.ci
def test_another_seed_is_another_try_and_is_exploratory(tmp_path, plan_file, monkeypatch, capsys):
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert command(tmp_path, monkeypatch, "--trials", "64", "--seed", seed, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "exploratory" in printed and "seed 3, 4" in printed
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in "abc"]
    assert [r["runs"]["seeds"] for r in results] == [[3], [3], [3, 4]]
    assert [r["runs"]["exploratory"] for r in results] == [False, False, True]
    assert {cell["verdict"] for cell in results[2]["cells"]} == {ESTIMATED}
    assert {cell["smallest_eps"] for cell in results[2]["cells"]} == {None}
    assert results[0]["cells"][0]["verdict"] == results[1]["cells"][0]["verdict"] != ESTIMATED
    assert "exploratory" in (tmp_path / "c" / "report.html").read_text()
    # A changed plan is a new claim, with runs of its own.
    assert command(tmp_path, monkeypatch, "--trials", "128", "--seed", "4", "--out", "d") == 0
    changed = json.loads((tmp_path / "d" / "result.json").read_text())["runs"]
    assert changed["seeds"] == [4] and not changed["exploratory"]
    assert changed["claim"] != results[0]["runs"]["claim"]


def test_a_default_written_out_is_no_other_plan(plan_file):
    claim = runs.claim_hash(plans.load(plan_file).source)
    plan_file.write_text(PLAN.replace("trials = 1000", "trials = 1000\nruns = 1"))
    assert runs.claim_hash(plans.load(plan_file).source) == claim


def test_planned_runs_share_the_error(plan_file):
    plan_file.write_text(PLAN.replace("trials = 1000", "trials = 64\nruns = 4"))
    plan = plans.load(plan_file)
    assert plan.confidence == 0.99 and plan.confidence_of_run == pytest.approx(0.9975)
    folder = plan_file.parent
    made = [runs.begin(plans.load(plan_file, seed=s), folder) for s in (5, 6, 7, 6, 8, 9)]
    assert [m.exploratory for m in made] == [False] * 5 + [True]
    assert made[-1].seeds == (5, 6, 7, 8, 9)
    cells = verify(plan)["cells"]
    assert {cell["confidence"] for cell in cells} == {plan.confidence_of_run}


def test_another_stream_is_another_try_of_the_same_claim(tmp_path, plan_file):
    """Else one seed would give two independent samples, and the log would list neither."""
    slow = plans.load(plan_file)
    plan_file.write_text('stream = "threefry-13"\n' + PLAN)
    fast = plans.load(plan_file)
    plan_file.write_text('stream = "threefry-20"\n' + PLAN)
    assert plans.load(plan_file).hash == slow.hash != fast.hash and fast.stream == "threefry-13"
    assert not runs.begin(slow, tmp_path).exploratory
    second = runs.begin(fast, tmp_path)
    assert second.exploratory and second.seeds == (3, "3 of threefry-13")
    assert verify(slow)["cells"] != verify(fast)["cells"]
    plan_file.write_text('stream = "mt19937"\n' + PLAN)
    with pytest.raises(ValueError, match="stream = 'mt19937'"):
        plans.load(plan_file)


def test_no_run_is_picked_among_many():
    """10^4 analysts, each with up to 20 seeds of a false claim at its boundary; planned for one.

    An analyst errs if any run that is not exploratory says that the claim holds. At alpha = 0.05
    at most 607 may err (false alarm 1e-6); without the ledger two thirds do.
    """
    rng, delta, trials = np.random.default_rng(1), 0.1, 500
    failures = rng.binomial(trials, delta, size=(10_000, 20))
    counts = np.arange(trials + 1)
    says = (p_value_at_most(counts, trials, delta) <= 0.05)[failures]
    exploratory = np.array([runs.Runs("", 1, tuple(range(20)), s).exploratory for s in range(20)])
    assert (says & ~exploratory).any(axis=1).sum() <= 607
    assert says.any(axis=1).sum() > 3000


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"claim": 3}', '{"claim": "x", "seed": "no"}', "\xff"]
)
def test_a_spoilt_ledger_is_refused_in_one_line(text, tmp_path, plan_file, monkeypatch, capsys):
    (tmp_path / runs.LEDGER).write_bytes(text.encode("latin-1"))
    assert command(tmp_path, monkeypatch, "--trials", "64", "--out", "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "log of runs" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("until_decided = 1", "until_decided"),
        ("runs = 0", "runs"),
        ('correction = "e-bh"', "needs until_decided"),
        ('until_decided = true\ncorrection = "bonferroni"', "correction"),
    ],
)
def test_bad_plan_keys(line, named, plan_file):
    plan_file.write_text(PLAN.replace("until_decided = true", line))
    with pytest.raises(ValueError, match=named):
        plans.load(plan_file)

"""The main job end to end, on a small plan, as a library call and as a command."""

import hashlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cell_keys import CELL_KEYS
from scipy import stats
from tiny_plan import TINY

from jaxprune import cli, statistics
from jaxprune.engine import Store
from jaxprune.studies import plan as plans
from jaxprune.studies import runs
from jaxprune.studies.ahead import Background, Ended
from jaxprune.studies.sampling import about, sample
from jaxprune.studies.verify import Early, judged, verify

PLAN = """
title = "small"
seed = 3
delta = 0.2
confidence = 0.9
trials = 60

[[experiment]]
title = "dense <b>"
network = "dense"
widths = [[6, 7, 7, 5]]
law = "uniform"
gain = 2.0
pruning = ["magnitude", "random"]
alpha = 0.5
eps = ["theorem", 1e-6, 0.3]
samples = 8
starts = 2
steps = 2

[[experiment]]
title = "coins"
network = "dense"
widths = [[6, 7, 7, 5]]
law = "normal"
pruning = "bernoulli"
sparsity = 0.1
eps = [1e-6, 1e6]
samples = 8
starts = 2
steps = 2

[[experiment]]
title = "trained"
network = "dense"
widths = [64, 16, 16, 10]
data = "digits"
training = { steps = 150, learning_rate = 0.02 }
pruning = "magnitude"
sparsity = [0.0, 0.5]
domain = "test images"
eps = [1e-6, 1e6]
trials = 24
"""

FILES = {"result.json", "report.html", "run.db", "run.db.lock"}


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def command(plan_file, tmp_path_factory):
    """Folder and what was printed of `jaxprune verify`."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = {name: io.TextIOWrapper(io.BytesIO(), "utf-8") for name in ("stdout", "stderr")}
        for name, stream in printed.items():
            patch.setattr(f"sys.{name}", stream)
        arguments = ["--plan", str(plan_file), "--out", "out", "--json", "copy.json"]
        assert cli.main(["verify", *arguments]) == 0
        for stream in printed.values():
            stream.seek(0)
        return folder, printed["stdout"].read(), printed["stderr"].read()


@pytest.fixture(scope="module")
def result(command):
    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    folder, *_ = command
    return json.loads((folder / "copy.json").read_text(), parse_constant=refuse)


def test_the_command_prints_verdicts_and_writes_a_folder(command, result):
    folder, out, err = command
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    assert json.loads((folder / "out" / "result.json").read_text()) == result
    assert "\x1b" not in out and err == ""
    for word in ("dense <b>", "coins", "trained", "12 claims:", "out/report.html"):
        assert word in out
    # A line a claim, as soon as its case has all trials; then one a case, with the last word.
    early, late = out.split("\n\n")[:2]
    lines = [line for line in early.splitlines() if line.startswith("  ")]
    for line, cell in zip(lines, result["cells"], strict=True):
        case = f"  {cell['network'].split(',')[0]} {cell['pruning']} {cell['amount']}"
        assert line.startswith(case) and line.split()[-1] in (cell["verdict"], "open")
    assert sum(line.endswith("open") for line in lines) < len(lines) / 2
    lines = [line for line in late.splitlines() if line.startswith("  ")]
    said = [word for line in lines for word in re.findall(r"holds|violated|undecided", line)]
    assert said == [cell["verdict"] for cell in result["cells"]]


def test_a_verdict_that_is_said_early_is_the_last_one(command, result, plan_file):
    """Case after case; with an audit to come, or beyond the planned seeds, there is none."""
    folder, *_ = command
    plan = plans.load(plan_file)
    made = runs.find(plan, None)
    final = {}
    for cell in result["cells"]:
        final.setdefault(cell["case"], []).append(cell)
    with Store.open(folder / "out" / "run.db") as store:
        early = Early(plan, store, made)
        for number in (4, 0, 3, 1, 2):
            for cell, last in zip(early(number), final[number], strict=True):
                if cell["verdict"] is not None or number == 2:
                    assert cell == {key: last[key] for key in cell}
        audited, beyond = Early(plan, store, made, audited=True), made._replace(planned=0)
        assert {cell["verdict"] for cell in audited(0)} == {None}
        assert {cell["verdict"] for cell in Early(plan, store, beyond)(0)} == {"estimated"}


def test_no_verdict_is_lost_when_other_claims_get_their_trials():
    """Holm and e-BH: what they reject beside p-values (e-values) of 1 they reject beside any."""
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(2000):
        m, alpha = int(rng.integers(2, 9)), 0.1
        e = rng.exponential(3.0, m) * (rng.random(m) < 0.8)  # logarithms
        some = np.where(rng.random(m) < 0.5, e, 0.0)
        for adjusted, numbers in ((statistics.holm, np.exp), (statistics.e_bh, lambda x: -x)):
            before, after = (adjusted(numbers(-x)) <= alpha for x in (some, e))
            assert not np.any(before & ~after)
            rejected += before.sum()
    assert rejected > 2000


def test_cases_of_a_law_come_first_and_each_is_told_when_it_has_its_trials(result, plan_file):
    """In whatever order a plan has them, counts are the same."""
    source = plans.load(plan_file).source
    plan = plans.parse({**source, "experiment": source["experiment"][::-1]})
    done, begun = [], []

    def completed(number):
        done.append(number)
        begun.append(sorted(store.cases))

    with Store.create(None, about(plan)) as store:
        sample(plan, store, completed=completed)
        cells = judged(plan, store, runs.find(plan, None))["cells"]
    assert done == [2, 3, 4, 0, 1]  # the first two are trained
    assert begun == [sorted(done[: i + 1]) for i in range(5)]
    key = lambda cell: (cell["experiment"], cell["pruning"], cell["amount"], cell["eps"])
    for one, other in zip(sorted(cells, key=key), sorted(result["cells"], key=key), strict=True):
        for name in ("close", "between", "far", "nonfinite", "verdict", "worst_trials"):
            assert one[name] == other[name]


def test_training_ends_with_the_sampling_that_it_is_for():
    began, chunks = [], itertools.count()

    def train(job):
        began.append(job)
        while next(chunks) < 10**6:
            background.go_on()

    with pytest.raises(ZeroDivisionError), Background() as background:
        one, other = (background.train(train, job) for job in "ab")
        while not began:
            pass
        raise ZeroDivisionError
    assert began == ["a"] and isinstance(one.exception(), Ended) and other.cancelled()
    assert next(chunks) < 10**6


def test_every_cell_is_whole(result):
    assert len(result["cells"]) == 2 * 3 + 2 + 2 * 2
    for cell in result["cells"]:
        assert set(cell) == CELL_KEYS
        counts = [cell[key] for key in ("close", "between", "far", "nonfinite")]
        assert sum(counts) == cell["trials"] and min(counts) >= 0
        assert 0 <= cell["p_low"] <= cell["p_high"] <= 1
        assert cell["verdict"] in ("holds", "violated", "undecided")
        assert cell["delta"] == 0.2 and cell["confidence"] == 0.9
        low, high = cell["gap_lower_quantiles"], cell["gap_upper_quantiles"]
        assert all(low[p] <= high[p] for p in low)
        assert list(low.values()) == sorted(low.values())


def test_verdicts_of_the_obvious(result):
    for cell in result["cells"]:
        if cell["eps"] == 1e6 or cell["eps_source"] == "theorem" or cell["sparsity"] == 0:
            assert cell["verdict"] == "holds"
        if cell["eps"] == 1e-6 and cell["sparsity"] > 0:
            assert cell["verdict"] == "violated"


def test_p_values_are_corrected_for_all_claims_of_the_plan(result):
    """Holm's definition over every cell: the largest of (m - i + 1) p_(i) up to each."""
    cells = result["cells"]
    raw = {
        "p_value_holds": lambda c: stats.binom.cdf(c["trials"] - c["close"], c["trials"], 0.2),
        "p_value_violated": lambda c: stats.binom.sf(c["far"] - 1, c["trials"], 0.2),
    }
    for key, of in raw.items():
        p = sorted((of(cell), i) for i, cell in enumerate(cells))
        most = 0.0
        for step, (value, i) in enumerate(p):
            most = max(most, min(1.0, (len(p) - step) * value))
            assert cells[i][key] == pytest.approx(most, rel=1e-9, abs=1e-300)


def test_what_goes_with_which_target(result):
    dense, coins, trained = (
        [cell for cell in result["cells"] if cell["experiment"].startswith(name)]
        for name in ("dense", "coins", "trained")
    )
    assert all(cell["certified_eps"] > 0 for cell in dense + coins)
    assert all(cell["mean_squared_gap_infinite_width"] > 0 for cell in dense + coins)
    assert all(cell["mean_squared_gap_infinite_width"] is None for cell in trained)
    for key in ("accuracy_change", "mean_distance", "relative_distance_quantiles"):
        assert all(cell[key] is None for cell in dense + coins)
    for cell in trained:
        assert cell["certified_eps"] is None and cell["law"] is None
        mean, error = cell["mean_distance"], cell["mean_distance_standard_error"]
        mid, most = cell["mean_distance_quantiles"], cell["gap_upper_quantiles"]
        assert 0 <= error <= mean <= most["1"] and all(mid[p] <= most[p] for p in mid)
        relative = cell["relative_distance_quantiles"]
        assert (relative["1"] == 0) == (cell["sparsity"] == 0)
        assert cell["accuracy_target"] > 0.8
        change = cell["accuracy_pruned"] - cell["accuracy_target"]
        assert cell["accuracy_change"] == pytest.approx(change, abs=1e-12)
        if cell["sparsity"] == 0:
            assert cell["accuracy_change"] == 0 and cell["mean_squared_gap"] == 0
        assert cell["gap_lower_quantiles"] == pytest.approx(
            cell["gap_upper_quantiles"], rel=2**-7, abs=1e-30
        )


def test_the_plan_and_the_environment_are_on_record(result, plan_file):
    plan = plans.load(plan_file)
    assert result["plan"]["hash"] == plan.hash and result["plan"]["seed"] == 3
    rest = {key: value for key, value in result["plan"].items() if key != "hash"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == plan.hash
    assert result["plan"]["experiment"] == plan.source["experiment"]
    for key in ("jaxprune", "jax", "jaxlib", "numpy", "device", "seed", "stream_version"):
        assert key in result["environment"]


@pytest.mark.ci
def test_the_library_gives_the_same_numbers_as_the_command(result, plan_file):
    seen = []
    again = verify(plans.load(plan_file), seen.append)
    for a, b in zip(result["cells"], json.loads(json.dumps(again["cells"])), strict=True):
        a, b = ({k: v for k, v in cell.items() if k != "seconds"} for cell in (a, b))
        assert a == b
    shares = [p.done / p.total for p in seen]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] == pytest.approx(1)
    assert any("training" in p.doing for p in seen)


@pytest.mark.ci
def test_another_seed_gives_other_numbers(plan_file):
    source = plans.load(plan_file).source
    source = {**source, "experiment": source["experiment"][:1]}
    one, two = (verify(plans.parse(source, seed=s))["cells"][0] for s in (1, 2))
    assert one["worst_trials"] != two["worst_trials"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trials", "0"], "trials"),
        (["--trials", "-5"], "trials"),
        (["--trials", "1e3"], "trials"),
        (["--seed", "4294967296"], "seed"),
        (["--seed", "1.5"], "seed"),
        (["--seed", "-1"], "seed"),
        (["--plan", "nowhere.toml"], "nowhere.toml"),
        (["--out", "missing/folder"], "out"),
        (["--out", "full"], "out"),
        (["--out", "x" * 300], "out"),
        (["--out", "same", "--json", "same"], "json"),
        (["--json", "full/old.json"], "json"),
        (["--trails", "5"], "trails"),
        ([], "too large"),
        ([], "sparsity"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.json").write_text("mine")
    plan = PLAN.replace("sparsity = 0.1", "sparsity = 1.1" if named == "sparsity" else "count = 1")
    if named == "too large":
        plan, named = plan.replace("[6, 7, 7, 5]", "[40000, 40000, 40000, 40000]"), "GiB"
    plan = plan.replace('eps = ["theorem", 1e-6, 0.3]', "eps = 0.3")
    (tmp_path / "plan.toml").write_text(plan)
    before = sorted(tmp_path.rglob("*"))
    if "--plan" not in arguments:
        arguments = ["--plan", "plan.toml", *arguments]
    try:
        status = cli.main(["verify", *arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and named in captured.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "old.json").read_text() == "mine"


@pytest.mark.ci
@pytest.mark.parametrize("how", ["closed pipe", "ascii"])
def test_a_terminal_that_fails_costs_no_result(tmp_path, how):
    (tmp_path / "plan.toml").write_text(TINY)
    command = f"{sys.executable} -m jaxprune verify --plan plan.toml --out out"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command + (" | true" if how == "closed pipe" else "")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii" if how == "ascii" else "utf-8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_an_interrupt_writes_no_result_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxprune.studies.sampling.sample", interrupted)
    (tmp_path / "plan.toml").write_text(TINY)
    assert cli.main(["verify", "--plan", "plan.toml", "--out", "out"]) == 130
    assert "jaxprune resume out goes on" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.db", "run.db.lock"}


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--plan", "--trials", "--seed", "--until-decided", "--out", "--json"):
        assert option in text
    for name in plans.BUNDLED:
        assert name in text.split("Bundled plans:")[1].split("A plan has")[0]


def test_worst_trials_are_the_largest_lower_bounds(result):
    for cell in result["cells"]:
        gaps = [entry["gap"] for entry in cell["worst_trials"]]
        assert gaps == sorted(gaps, reverse=True)
        top = cell["gap_lower_quantiles"]["1"]
        assert gaps[0] == pytest.approx(top, rel=2**-7) or gaps[0] == top == 0
        assert all(0 <= entry["trial"] < cell["trials"] for entry in cell["worst_trials"])


def test_mean_squared_gap_has_an_error(result):
    for cell in result["cells"]:
        assert math.isfinite(cell["mean_squared_gap"])
        assert cell["mean_squared_gap_standard_error"] >= 0
        assert np.isfinite(cell["seconds"]) and re.fullmatch(r"[a-z ]+", cell["domain"])

"""`jaxprune report`: a page of any result, rows for other programs, files that are not believed."""

import copy
import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from spoiling import outcomes

from jaxprune import cli, networks, pruning, report
from jaxprune.engine import Tally, Trial, layer_account
from jaxprune.laws import uniform
from jaxprune.pruning import Fraction
from jaxprune.report import bound as bound_words
from jaxprune.report import document, reading
from jaxprune.report.section import Cell, Table
from jaxprune.studies import cases, sampling
from jaxprune.studies import plan as plans
from jaxprune.studies.accounts import accounts
from jaxprune.studies.bound import bound
from jaxprune.studies.frontier import frontier
from jaxprune.studies.result import sha256
from jaxprune.studies.standing import Standing
from jaxprune.studies.verify import verify

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PLAN = """
title = "t"
trials = 1000
[[experiment]]
title = "=HYPERLINK(1)"
network = "dense"
widths = [4, 6, 3]
layers = "all"
law = "uniform"
gain = 1.5
pruning = ["random", "magnitude"]
sparsity = 0.5
eps = [0.5, 20.0]
samples = 4
starts = 1
steps = 2
"""


@pytest.fixture(scope="module")
def verified():
    return verify(plans.parse(plans.reading.tomllib.loads(PLAN)))


@pytest.fixture(scope="module")
def bounded():
    network = networks.dense((8, 8, 8, 8))
    return bound(network, uniform(), [pruning.random], Fraction(0.5), eps=1.0)


@pytest.fixture(scope="module")
def bracketed():
    of_width = lambda d: networks.dense((d, d, d, d))
    return frontier(of_width, uniform(), pruning.random, widths=[4], trials=300, eps=2.0)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["report", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def page_of(name, result, rows, command, folder):
    """The page that the command writes of a result, and so many rows."""
    (folder / name).mkdir()
    report.write_json(result, folder / name / "result.json")
    status, said, _ = command(name, "--out", f"{name}.html", "--csv", f"{name}.csv")
    assert (status, said) == (0, f"{name}.html, {name}.csv\n")
    page = (folder / f"{name}.html").read_text()
    assert result["plan"]["hash"] in page and "://" not in page
    assert len(list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text())))) == rows
    return page


@pytest.mark.ci
def test_page_and_rows_of_claims(verified, command, tmp_path):
    claims = len(verified["cells"])
    assert "--case 1 --trial" in page_of("verify", verified, claims, command, tmp_path)
    status, said, _ = command("verify", "--out", "again.html", "--table")
    assert status == 0 and said.count("–1.000") == claims // 2


@pytest.mark.ci
def test_page_and_rows_of_other_studies(bounded, bracketed, command, tmp_path):
    page = page_of("bound", bounded, 1, command, tmp_path)
    assert "with probability at least 95 %, a network pruned in dense2 is within" in page
    probes = len(bracketed["points"][0]["probes"])
    page = page_of("frontier", bracketed, probes, command, tmp_path)
    assert "a network pruned to sparsity s in dense2 is within 2.0 of" in page


def test_the_account_of_a_case_is_that_of_its_pairs(verified):
    """A plan's case and `layer_account` of the same pairs; a case of one layer has none."""
    plan = plans.parse(plans.reading.tomllib.loads(PLAN.replace(', "magnitude"', "")))
    found = accounts(plan, 7)
    assert [account["case"] for account in found] == [0]
    case = plan.cases[0]
    same = layer_account(
        case.network, case.targets, case.pruning, case.amount, trials=7, layers="all",
        domain=case.ball, seed=plan.seed,
    )  # fmt: skip
    assert found[0]["counted"] == same.counted.sum() > 0
    for i, layer in enumerate(found[0]["layers"]):
        column = np.asarray(same.trials.shares)[same.counted, i]
        np.testing.assert_allclose(layer["share"], np.quantile(column, [0.5, 0.05, 0.95]))
        assert layer["term"] == np.median(np.asarray(same.trials.terms)[same.counted, i])
    page = report.page(verified, accounts=found)
    for account in found:
        for layer in account["layers"]:
            assert f"{100 * layer['share'][0]:.3g} %" in page
    alone = PLAN.replace('"all"', '["dense1"]')
    assert not accounts(plans.parse(plans.reading.tomllib.loads(alone)), 7)
    with pytest.raises(ValueError, match="account = 0"):
        accounts(plan, 0)


@pytest.mark.ci
def test_an_account_of_a_run(verified, command, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    assert cli.main(["verify", "--plan", "plan.toml", "--out", "run"]) == 0
    assert "--account 100" in (tmp_path / "run" / "report.html").read_text()
    assert command("run", "--account", "-1", "--out", "a.html")[0] == 2
    assert command("run", "--account", "5", "--out", "a.html")[0] == 0
    page = (tmp_path / "a.html").read_text()
    assert "share: median" in page and "--account 100" not in page
    other = verified | {"plan": verified["plan"] | {"seed": 9}}
    del other["plan"]["hash"]
    other["plan"]["hash"] = sha256(other["plan"])
    (tmp_path / "run" / "result.json").write_text(json.dumps(other))
    status, _, said = command("run", "--account", "5", "--out", "b.html")
    assert status == 2 and "another plan" in said and not (tmp_path / "b.html").exists()


def test_an_account_needs_the_run_itself(verified, command, tmp_path):
    report.write_json(verified, tmp_path / "result.json")
    status, _, said = command("result.json", "--account", "5")
    assert status == 2 and "account = 5" in said and "run.db" in said


@pytest.mark.ci
@pytest.mark.parametrize("without", ["norms", "bounds"])
def test_a_result_without_norms_has_a_page(bounded, without):
    method = bounded["methods"][0]
    norms = [] if without == "norms" else [row | {"bounds": []} for row in method["norms"]]
    result = bounded | {"methods": [method | {"norms": norms}]}
    reading.check(result)
    assert "<img" in report.page(bounded) and "<img" not in report.page(result)


@pytest.mark.ci
def test_the_plot_of_norms_has_every_bound(bounded):
    method = bounded["methods"][0]
    ax = bound_words.plot(Figure().add_subplot(), method)
    drawn = sorted(float(x) for line in ax.lines for x in line.get_xdata())
    assert drawn == sorted(a["value"] for row in method["norms"] for a in row["bounds"])


def test_rows_say_what_the_result_says(verified):
    rows = list(csv.DictReader(io.StringIO(report.to_csv(verified))))
    for row, cell in zip(rows, verified["cells"], strict=True):
        assert float(row["p_low"]) == cell["p_low"] and row["verdict"] == cell["verdict"]
        assert row["experiment"] == "'=HYPERLINK(1)"
        quantile = cell["gap_lower_quantiles"]["0.5"]
        assert float(row["gap_lower_quantiles.0.5"]) == quantile


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\x1b=1", " =1"])
def test_no_text_becomes_a_formula(verified, text):
    result = copy.deepcopy(verified)
    result["cells"][0]["network"] = text
    shown = next(csv.DictReader(io.StringIO(report.to_csv(result))))["network"]
    assert shown.startswith("'") and not re.search(r"[\x00-\x1f]", shown)


def test_a_text_is_one_cell_whatever_separates_cells(verified):
    """A semicolon where the reader's country has it for a comma, and quotation marks within."""
    result = copy.deepcopy(verified)
    for text in ("x;=cmd|'/c calc'!A1", 'a";=1+1;"b', 'a; "@x', "a\t=1", "a,b"):
        result["cells"][0]["network"] = text
        source = report.to_csv(result)
        assert source.splitlines()[1].startswith('"\'=HYPERLINK(1)","')
        for separator in ",;\t":
            rows = list(csv.reader(io.StringIO(source), delimiter=separator))
            cells = [cell for row in rows for cell in row]
            assert not any(cell.lstrip(' "').startswith(("=", "+", "-", "@")) for cell in cells)
    assert next(csv.DictReader(io.StringIO(source)))["network"] == "a,b"


def test_surrogates_of_a_foreign_result_become_spaces(verified, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas

    result = copy.deepcopy(verified)
    result["cells"][0] |= {"network": "a\ud83db", "layers": ["\udc80"], "\ud800": 1.0}
    reading.check(result)
    report.write_parquet(result, tmp_path / "a.parquet")
    back = pandas.read_parquet(tmp_path / "a.parquet")
    assert back["network"][0] == "a b" and back["layers"][0] == '[" "]' and back[" "][0] == 1.0


def test_data_frame_and_data_set(verified):
    pytest.importorskip("pandas")
    frame = report.to_dataframe(verified)
    assert list(frame["p_high"]) == [cell["p_high"] for cell in verified["cells"]]
    pytest.importorskip("xarray")
    data = report.to_xarray(verified)
    found = data["gap_quantile"].sel(bound="upper", level=0.5).to_numpy()
    wanted = [cell["gap_upper_quantiles"]["0.5"] for cell in verified["cells"]]
    np.testing.assert_array_equal(found, np.array(wanted, float))


def test_parquet_comes_back_as_it_was(verified, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas

    report.write_parquet(verified, tmp_path / "a.parquet")
    back = pandas.read_parquet(tmp_path / "a.parquet")
    assert list(back["p_low"]) == [cell["p_low"] for cell in verified["cells"]]


def test_a_file_that_is_there_is_not_replaced(verified, command, tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError):
        report.write_parquet(verified, tmp_path / "a.parquet")
    report.write_json(verified, tmp_path / "result.json")
    for option in ("--csv", "--parquet"):
        assert command("result.json", option, f"a.{option[2:]}", "--out", "b.html")[0] == 2
    assert {path.read_text() for path in tmp_path.glob("a.*")} == {"mine"}
    assert not (tmp_path / "b.html").exists()


@pytest.mark.ci
def test_texts_are_drawn_and_printed_as_they_are(bounded, bracketed):
    """No formula in a picture, no markup on a terminal, and no name is left out of a legend."""
    network = r"[red]$\foo$[/x]"
    result = copy.deepcopy(bounded)
    for row in result["methods"][0]["norms"]:
        row["layers"] = [network]
        row["bounds"][0]["name"] = "_first"
    result["plan"]["network"] = network
    reading.check(result)
    text = io.StringIO()
    report.render(result, Console(file=text, width=200))
    assert network in text.getvalue() and network in report.page(result)
    ax = bound_words.plot(Figure().add_subplot(), result["methods"][0])
    ax.figure.savefig(io.BytesIO())
    legend = [entry.get_text() for entry in ax.get_legend().get_texts()]
    assert " _first" in legend
    assert all(r"\foo" in tick.get_text() for tick in ax.get_yticklabels())
    result = copy.deepcopy(bracketed)
    result["plan"]["pruning"], result["plan"]["layers"] = network, [network]
    report.page(result)


def test_a_missing_extra_is_named(verified, command, tmp_path, monkeypatch):
    report.write_json(verified, tmp_path / "result.json")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, said = command("result.json", "--parquet", "a.parquet")
    assert status == 2 and "jaxprune[tables]" in said and os.listdir(tmp_path) == ["result.json"]


WRONG = {
    "cells[0].p_low": lambda r: r["cells"][0].update(p_low=2),
    "cells[1].network": lambda r: r["cells"][1].pop("network"),
    "cells[0].trials": lambda r: r["cells"][0].update(trials=1001),
    "cells[0].verdict": lambda r: r["cells"][0].update(verdict="proved"),
    "plan.hash": lambda r: r["plan"].update(seed=5),
    "no result": lambda r: r.pop("cells"),
}


@pytest.mark.parametrize("named", WRONG)
def test_a_wrong_result_is_refused_in_one_line(verified, command, tmp_path, named):
    result = copy.deepcopy(verified)
    WRONG[named](result)
    (tmp_path / "result.json").write_text(json.dumps(result))
    status, out, said = command("result.json")
    assert status == 2 and not out and said.count("\n") == 1 and named in said
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "NaN", "[" * 100_000, '{"plan": 1, "plan": 2}', "\udcff"]
)
def test_what_is_no_result_is_refused(command, tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    status, _, said = command("a.json")
    assert status == 2 and said.count("\n") == 1 and "a.json" in said
    assert command("none")[0] == 2 and command(".")[0] == 2


@pytest.mark.ci
def test_what_passes_the_checks_has_a_page(verified, bounded, bracketed):
    found = outcomes(random.Random(0), [verified, bounded, bracketed], 150)
    assert min(found.values()) > 10, found


@pytest.mark.ci
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
class TestInABrowser:
    def shown(self, source, tmp_path):
        (tmp_path / "page.html").write_text(source)
        where = [f"--user-data-dir={tmp_path}/profile", (tmp_path / "page.html").as_uri()]
        line = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", *where]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout

    def test_the_policy_lets_our_script_run_and_no_other(self, verified, tmp_path):
        foreign = "<script>document.title = 'run'</script></body>"
        found = self.shown(report.page(verified).replace("</body>", foreign), tmp_path)
        assert found.count("<button>") > 10 and "<title>t</title>" in found

    def test_tables_sort_by_value_with_nothing_last(self, tmp_path):
        values = [(10.0, "a10"), (None, "a–"), (9.0, "a9"), (-1.0, "a-1")]
        rows = [[Cell(name, value)] for value, name in values]
        table = document.table(Table(["x"], rows))
        for clicks, wanted in ((1, ["a-1", "a9", "a10", "a–"]), (2, ["a10", "a9", "a-1", "a–"])):
            click = "document.querySelector('th button').click();" * clicks
            source = f"<meta charset=utf-8>{table}<script>{document.SCRIPT}{click}</script>"
            found = self.shown(f"<!doctype html>{source}", tmp_path)
            assert re.findall("<td[^>]*>(a[^<]*)</td>", found) == wanted


def test_progress_says_where_the_trials_stand():
    """Its limits and its allowance are those of the verdict's own tests."""
    text = PLAN.replace("[0.5, 20.0]", "[20.0]")
    source = plans.reading.tomllib.loads(text) | {"trials": 1000, "delta": 0.05}
    plan, told = plans.parse(source), []
    verify(plan, told.append)
    notes = [p.note for p in told if p.note]
    assert notes
    for note in notes:
        found = re.fullmatch(
            r"(\d+) trials, \S+/s; P\(gap <= \S+\) in (\S+) to (\S+) \(99 % each\); "
            r"(holds if at most (\d+) of 1000 are not close, (\d+) so far|"
            r"too many are not close to show that it holds)",
            note,
        )
        assert found and 0 <= float(found[2]) <= float(found[3]) <= 1
        if found[5]:
            # The most failures of 1000 whose exact p-value is at most the level of one of 2 claims.
            p_value = lambda k: stats.binom.cdf(k, 1000, 0.05)
            level = (1 - plan.confidence) / 2
            assert p_value(int(found[5])) <= level < p_value(int(found[5]) + 1)
    assert any("holds if" in note for note in notes)


def test_progress_counts_the_trials_of_earlier_sittings():
    plan = plans.parse(plans.reading.tomllib.loads(PLAN))
    case = plan.cases[0]
    zero, one = np.zeros(10), np.ones(10)
    trials = Trial(**dict.fromkeys(Trial._fields, zero) | {"finite": one > 0, "upper": one})
    empty = cases.empty_tally(case)
    blocks = [Tally.of(empty.eps, range(i, i + 10), trials, 0, empty.cap) for i in (0, 10)]
    for kept, trials in ((blocks[:1], 20), ([], 10)):
        standing = Standing(case, plan, sampling.Watch(case, plan), kept)
        assert standing(blocks[1]).startswith(f"{trials} trials, ")

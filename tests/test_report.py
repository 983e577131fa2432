"""Table, plots and page say what the result says, and hostile text stays inert."""

import base64
import hashlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from jaxprune import report
from jaxprune.report import document, plots, reading, words

HOSTILE = "<img src=x onerror=alert(1)></title></script><script>alert(2)</script>\x1b[31m\x07\u202e"
LEVELS = ("0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95", "0.99", "1")


def cell(**changes):
    width, eps = changes.pop("width", 16), changes.pop("eps", 0.5)
    lower = {p: 0.1 * (i + 1) / width for i, p in enumerate(LEVELS)}
    return {
        "experiment": "one",
        "network": f"dense 8-{width}-{width}-4, relu",
        "law": "uniform, scale max",
        "training": None,
        "pruning": "magnitude",
        "amount": "D^0.75",
        "layers": ["dense2"],
        "widths": [8, width, width, 4],
        "sparsity": 0.25,
        "domain": "unit ball",
        "eps": eps,
        "eps_source": "asked",
        "delta": 0.05,
        "confidence": 0.99,
        "trials": 1000,
        "close": 911,
        "between": 42,
        "far": 17,
        "nonfinite": 30,
        "p_low": 0.88765,
        "p_high": 0.99123,
        "p_value_holds": 1.0,
        "p_value_violated": 0.2,
        "verdict": "undecided",
        "certified_eps": 3.5,
        "gap_lower_quantiles": lower,
        "gap_upper_quantiles": {p: 4 * v for p, v in lower.items()},
        "sampled_gap_quantiles": lower,
        "mean_squared_gap": 0.01,
        "mean_squared_gap_standard_error": 0.001,
        "mean_squared_gap_infinite_width": 0.0004,
        "accuracy_target": None,
        "accuracy_pruned": None,
        "accuracy_change": None,
        "worst_trials": [{"trial": 5, "gap": 0.06}],
        "by_theorem": None,
        "case": 0,
        "survival": [{"eps": 0.5, "low": 0.01, "high": 0.2}],
        "seconds": 1.0,
    } | changes


@pytest.fixture
def result():
    trained = {
        "experiment": HOSTILE,
        "network": f"conv 1-8-16-10, {HOSTILE}",
        "law": None,
        "training": HOSTILE,
        "certified_eps": None,
        "mean_squared_gap_infinite_width": None,
        "accuracy_target": 0.96,
        "accuracy_pruned": 0.93,
        "accuracy_change": -0.03,
        "domain": "test images",
    }
    nothing = dict.fromkeys(LEVELS)
    cells = [
        cell(eps=3.5, eps_source="theorem", verdict="holds", by_theorem="certified"),
        cell(),
        cell(width=64, verdict="violated"),
        cell(width=64, amount="D^0.5", gap_upper_quantiles=nothing),
        cell(**trained),
        cell(**trained, sparsity=0.8, pruning="random", gap_lower_quantiles=nothing),
    ]
    return {
        "plan": {
            "title": HOSTILE,
            "hash": "ab" * 32,
            "confidence": 0.99,
            "delta": 0.05,
            "seed": 1,
            "until_decided": False,
            "correction": "holm",
        },
        "runs": {"planned": 1, "seeds": [1], "present": 1, "exploratory": False},
        "blocks": {
            "complete": True,
            "tallies": "0" * 64,
            "damaged": [],
            "audited": 0,
            "failed_audit": None,
        },
        "environment": {"jax": "0.0", "device": HOSTILE},
        "cells": cells,
        "exponents": [
            {
                "experiment": "one",
                "pruning": HOSTILE,
                "amount": "D^0.75",
                "domain": "unit ball",
                "widths": [16, 32, 64],
                "median_lower": {
                    "slope": -0.514,
                    "intercept": 0.1,
                    "low": -0.553,
                    "high": -0.471,
                    "lack_of_fit": 0.2,
                },
                "median_upper": {
                    "slope": -0.4,
                    "intercept": 0.2,
                    "low": -0.6,
                    "high": -0.2,
                    "lack_of_fit": 0.001,
                },
                "typical": None,
            }
        ],
    }


def printed(result, **console):
    stream = io.StringIO()
    report.render(result, Console(file=stream, **console))
    return stream.getvalue()


def test_the_table_holds_every_claim(result):
    text = printed(result, width=120)
    for verdict in ("holds", "undecided", "violated"):
        assert re.search(rf"\b{verdict}\b *$", text, re.M)
    assert text.count("911/42/17/30") == 6
    assert text.count("0.887–0.992") == 6  # rounded outward
    assert "3.5 *" in text and "6 claims: 1 hold, 1 violated, 4 undecided; 1 certified" in text
    assert "99 %" in text and "Holm over all 6 claims" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_loses_no_number_at_any_width(result, width):
    text = printed(result, width=width)
    assert text.count("911/42/17/30") == 6 and text.count("undecided") >= 4
    assert "…" not in text and max(map(len, text.splitlines())) <= width


def summarized(result, **console):
    stream = io.StringIO()
    report.summarize(result, Console(file=stream, **console))
    return stream.getvalue()


def test_a_summary_of_few_claims_has_each_verdict_on_one_screen(result):
    text = summarized(result, width=80)
    said = " ".join(text.split())
    assert text.count("undecided") == 5 and "3.5 * holds, 0.5 undecided, 0.5 violated" in said
    assert "6 claims: 1 hold, 1 violated, 4 undecided; 1 certified" in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text) and "<img src=x" in text
    plan = [
        cell(experiment=f"Theorem {i // 4}", case=i // 2, eps=float(i), network="dense 64-64-64-10")
        for i in range(16)
    ]
    lines = summarized(result | {"cells": plan}, width=80).splitlines()
    assert (
        len(lines) <= 22 and max(map(len, lines)) <= 80
    )  # a line for the folder, one for a prompt


@pytest.mark.parametrize("experiments", [3, 9, 40])
def test_a_summary_of_many_claims_counts_them_on_one_screen(result, experiments):
    verdicts = ("holds", "violated", "undecided", "holds", "holds", "violated")
    cells = [
        cell(
            experiment=f"{i}: {HOSTILE}",
            verdict=v,
            by_theorem="certified" if v == "holds" else None,
        )
        for i in range(experiments)
        for v in verdicts
    ]
    text = summarized(result | {"cells": cells}, width=80)
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    rows = [line.split() for line in lines if re.search(r"\d+ +\d+ +\d+ +\d+ *$", line)]
    assert sum(int(row[-4]) for row in rows) == 3 * experiments  # hold
    assert sum(int(row[-3]) for row in rows) == 2 * experiments  # violated
    assert sum(int(row[-1]) for row in rows) == 3 * experiments  # certified


def test_a_summary_warns_of_what_limits_its_verdicts(result):
    said = lambda: " ".join(summarized(result, width=80).split())
    assert "audit" not in said() and "exploratory" not in said() and "missing" not in said()
    result["blocks"] |= {"failed_audit": "x came out otherwise", "complete": False}
    result["runs"]["exploratory"] = True
    for words_ in ("An audit found that x came out", "run is exploratory", "Blocks are missing"):
        assert words_ in said()


def test_lines_of_claims_fit_the_terminal():
    found = report.claim_lines(
        [
            cell(network="dense 64-64-64-10, relu", eps=0.0755, eps_source="theorem", verdict=None),
            cell(network="dense 64-64-64-10, relu", verdict="undecided"),
            cell(network=HOSTILE, domain="test images"),
        ]
    )
    first, second, hostile = (line.plain for line in found)
    assert first.endswith("P(gap ≤ 0.0755 *) in 0.887–0.992  open") and len(second) == 80
    assert "test images" in hostile and not re.search(r"[\x00-\x1f\x7f\u202e]", hostile)


@pytest.mark.parametrize("value", [7.8746, 0.16023, 0.017521, 5.0, 0.999, 9.999, 1234.5, 1e-7])
def test_certified_numbers_are_rounded_up(value):
    shown = float(words.number_up(value))
    assert value <= shown <= 1.011 * value


def test_no_control_character_reaches_the_terminal(result):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", printed(result, width=120))
    colours = printed(result, width=120, force_terminal=True, color_system="standard")
    assert set(re.findall(r"\x1b\[[\d;]*m", colours)) <= {
        "\x1b[0m",
        "\x1b[1m",
        "\x1b[31m",
        "\x1b[32m",
        "\x1b[33m",
    }


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_inert_and_whole(result):
    source = report.page(result)
    page = Page(source)
    assert page.tags.count("script") == 1 and "iframe" not in page.tags
    assert re.findall("<script>(.*?)</script>", source, re.S) == [document.SCRIPT]
    assert not any(name.startswith("on") for name, _ in page.attributes)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert "://" not in source
    (policy,) = (v for n, v in page.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for name in ("script", "style"):
        (inline,) = re.findall(f"<{name}>(.*?)</{name}>", source, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    text = " ".join(page.text)
    for word in ("911", "0.887", "0.992", "holds", "violated", "ab" * 32, "Holm"):
        assert word in text
    assert text.count("undecided") >= 4 and "<img src=x" in text


def test_a_page_draws_at_most_so_much(result, monkeypatch):
    """Of 100 experiments each has a plot before any has its second; the rest is one line."""
    monkeypatch.setattr(document, "picture", lambda drawing: f"<img alt='{drawing.name}'>")
    monkeypatch.setattr(document, "MAX_ROWS", 30)
    result["cells"] = [cell(experiment=f"e{i}", case=i) for i in range(100)]
    page = report.page(result)
    assert page.count("<img") == document.MAX_DRAWINGS and "of 201 are drawn" in page
    assert page.count("Quantiles of the gap") == document.MAX_DRAWINGS - 1
    assert page.count("<td") == 30 * 18 + 30 * 7 and page.count("The first 30 of 100 rows") == 2
    result["cells"] = result["cells"][:10]
    page = report.page(result)
    assert page.count("<img") == 21 and "are drawn" not in page and "The first" not in page


def test_a_drawing_shows_at_most_so_many_cases(result, monkeypatch):
    drawn = []
    monkeypatch.setattr(document, "picture", lambda drawing: drawn.append(drawing) or "")
    result["exponents"] = []
    result["cells"] = [cell(pruning=f"p{i}", case=i) for i in range(100)]
    assert "the first 8 of 100 series" in report.page(result)
    result["cells"] = [cell(width=i + 1, case=i) for i in range(100)]
    assert "the first 32 of 100 cases" in report.page(result)
    for brackets, series in ((drawn[1], 8), (drawn[7], 1)):
        ax = brackets.draw(Figure().add_subplot())
        assert len([c for c in ax.collections if c.get_segments()]) == series
        assert len(ax.get_legend().get_texts()) == series + 3


def test_a_picture_is_laid_out_once_and_holds_its_legend(result, monkeypatch):
    """No pass of Matplotlib's to measure everything; nothing touches the edges."""
    measured = []
    monkeypatch.setattr(Axes, "get_tightbbox", lambda *_, **__: measured.append(1))
    drawings = [d for part in report.verify.sections(result) for d in part.drawings]
    for drawing in drawings[:3]:
        source = document.picture(drawing)
        png = base64.b64decode(re.search("base64,([^']*)", source)[1])
        pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
        assert all(
            edge.min() == 1.0 for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        )
        grown = pixels.shape[0] > round(110 * drawing.height)
        assert grown == (drawing.name == "Quantiles of the gap")
    assert not measured


def test_names_that_the_font_lacks_are_drawn_without_a_warning(result):
    name = "剪枝 😀 שלום" + "x" * 500
    changes = {"experiment": name, "pruning": name, "amount": name, "network": name}
    result["cells"], result["exponents"] = [cell(**changes), cell(**changes, case=1)], []
    page = report.page(result)  # a warning is an error here
    assert page.count("<img") == 3 and name in page


def test_the_folder_is_new_and_strict_json(result, tmp_path):
    report.write_folder(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    with pytest.raises(FileExistsError):
        report.write_json(result, tmp_path / "out" / "result.json")
    result["cells"][0]["eps"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        report.write_json(result, tmp_path / "bad.json")


def test_a_folder_s_name_that_is_no_utf_8_is_written_and_read(tmp_path):
    facts = {"run": os.fsdecode(b"r\xff"), "é": "剪"}
    report.write_json(facts, tmp_path / "facts.json")
    text = (tmp_path / "facts.json").read_text("utf-8")
    assert json.loads(text) == facts and "剪" in text


def test_the_caption_says_what_blocks_show(result):
    said = lambda: " ".join(words.caption(result))
    assert "run twice" not in said() and "missing" not in said()
    result["blocks"] |= {"audited": 30, "complete": False}
    assert "30 blocks were run twice" in said() and "Blocks are missing" in said()


@pytest.mark.parametrize("value", [None, 0.0], ids=["all infinite", "all zero"])
@pytest.mark.parametrize("training", [None, "SGD"], ids=["sampled", "trained"])
def test_a_case_with_no_gap_to_draw_still_has_a_page(result, value, training):
    quantiles = dict.fromkeys(LEVELS, value)
    nothing = {f"gap_{side}_quantiles": quantiles for side in ("lower", "upper")}
    result["cells"] = [
        cell(
            **nothing,
            sampled_gap_quantiles=quantiles,
            certified_eps=None,
            mean_squared_gap_infinite_width=None,
            training=training,
        )
    ]
    page = Page(report.page(result))
    assert page.tags.count("img") == 3
    draw = plots.gap_against_sparsity if training else plots.gap_against_width
    for ax in (
        draw(Figure().add_subplot(), result["cells"]),
        plots.survival(Figure().add_subplot(), result["cells"][0]),
    ):
        assert [text.get_text() for text in ax.texts].count("no finite, positive gap to draw") == 1


def test_numbers_are_written_before_the_page(result, tmp_path, monkeypatch):
    """A page that cannot be drawn costs the page alone, not the finished run."""

    def fail(result, **_):
        raise RuntimeError("no page")

    # The package exports a function of the module's name.
    monkeypatch.setattr(sys.modules["jaxprune.report.page"], "page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        report.write_folder(result, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result


OVERFLOWING = """
title = "weights beyond float32"
trials = 8
[[experiment]]
title = "all trials non-finite"
network = "dense"
widths = [4, 4, 4, 4]
law = "uniform"
gain = 1e20
pruning = "magnitude"
alpha = 0.5
eps = [1.0]
samples = 2
starts = 1
steps = 1
"""


@pytest.mark.ci
def test_a_plan_whose_trials_all_overflow_is_reported(tmp_path):
    (tmp_path / "plan.toml").write_text(OVERFLOWING)
    arguments = ["verify", "--plan", "plan.toml", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxprune", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == ""
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["cells"]
    assert row["nonfinite"] == row["trials"] == 8 and row["verdict"] == "undecided"
    assert set(row["gap_upper_quantiles"].values()) == {None}
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.tags.count("img") == 3 and "undecided" in " ".join(page.text)


def drawn(ax):
    return [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]


def test_gap_against_width_draws_the_quantiles(result):
    cells = result["cells"][:4]
    ax = plots.gap_against_width(Figure().add_subplot(), cells)
    assert "width" in ax.get_xlabel() and "gap" in ax.get_ylabel()
    lines = drawn(ax)
    wanted = [
        [c["gap_lower_quantiles"]["0.5"] for c in (cells[0], cells[2])],
        [c["gap_upper_quantiles"]["0.5"] for c in (cells[0], cells[2])],
        [3.5, 3.5],
        [0.04, 0.04],  # sqrt(0.0004 * 4 outputs)
    ]
    for values in wanted:
        assert any(line.shape == (2,) and np.allclose(line, values) for line in lines)


def test_every_case_is_drawn():
    """Two methods, amounts and widths: eight brackets, and eight medians of either end."""
    cells = [
        cell(pruning=method, amount=amount, width=width)
        for method in ("magnitude", "random")
        for amount in ("D^0.5", "D^0.75")
        for width in (16, 64)
    ]
    ax = plots.gap_against_width(Figure().add_subplot(), cells)
    assert sum(len(c.get_segments()) for c in ax.collections) == 8
    markers = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in markers) == 16


def test_gap_against_sparsity_draws_medians_and_accuracy(result):
    ax = plots.gap_against_sparsity(Figure().add_subplot(), result["cells"][4:])
    assert "sparsity" in ax.get_xlabel() and "gap" in ax.get_ylabel()
    assert any("-3.0 pt" in text.get_text() for text in ax.texts)
    median = result["cells"][4]["gap_lower_quantiles"]["0.5"]
    assert any(np.allclose(line, [median]) for line in drawn(ax))


def test_survival_falls_from_one_bound_to_the_other(result):
    ax = plots.survival(Figure().add_subplot(), result["cells"][0])
    lower, upper, *_ = ax.get_lines()
    assert np.all(np.diff(lower.get_ydata()) < 0)
    np.testing.assert_allclose(
        np.asarray(upper.get_xdata()), 4 * np.asarray(lower.get_xdata(), float)
    )
    assert ax.get_xlabel() and ax.get_ylabel()


def test_the_band_of_the_survival_curve_is_a_survival_function(result):
    """At most `high` above an epsilon, at least `low` below it, nothing known beyond."""
    known = [{"eps": 0.5, "low": 0.3, "high": 0.6}, {"eps": 2.0, "low": 0.1, "high": 0.2}]
    ax = plots.survival(Figure().add_subplot(), cell(survival=known))
    (band,) = (c for c in ax.collections if type(c).__name__ == "FillBetweenPolyCollection")
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(0.5, 1.0), (0.5, 0.3), (0.5, 0.6), (0.5, 0.1), (2.0, 0.6), (2.0, 0.1)} <= corners
    assert {(2.0, 0.2), (2.0, 0.0)} <= corners
    stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in stars] == [(3.5, 0.05)]


def test_fits_are_drawn_and_nothing_is_told_apart_by_colour_alone(result):
    fit = {"pruning": "magnitude", "amount": "D^0.75", "domain": "unit ball", "widths": [16, 64]}
    fit |= {"median_lower": {"slope": -0.5, "intercept": 0.0}, "median_upper": None}
    ax = plots.gap_against_width(Figure().add_subplot(), result["cells"][:4], [fit])
    assert any(line.shape == (2,) and np.allclose(line, [0.25, 0.125]) for line in drawn(ax))
    shown = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    looks = [(x.get_marker(), x.get_linestyle(), x.get_markerfacecolor() == "none") for x in shown]
    assert len(set(looks)) == len(looks)


def test_cases_on_two_domains_have_a_fit_each(result):
    domains = {"unit ball": -0.5, "linf ball of radius 1, outputs in linf": 0.0}
    result["cells"] = [
        cell(domain=domain, width=width, case=i)
        for i, (domain, width) in enumerate(itertools.product(domains, (16, 32, 64)))
    ]
    (fit,) = result["exponents"]
    result["exponents"] = [
        fit | {"domain": domain, "median_upper": None}
        | {"median_lower": fit["median_lower"] | {"slope": slope, "intercept": 0.0}}
        for domain, slope in domains.items()
    ]  # fmt: skip
    for row in result["exponents"]:
        row["pruning"] = "magnitude"
    _, experiment, *_ = report.verify.sections(result)
    ax = experiment.drawings[0].draw(Figure().add_subplot())
    laws = [line for line in ax.get_lines() if [*line.get_xdata()] == [16, 64]]
    np.testing.assert_allclose([line.get_ydata() for line in laws], [[0.25, 0.125], [1.0, 1.0]])
    assert len({line.get_color() for line in laws}) == 2
    assert sum("linf" in note for note in experiment.notes) == 1
    console = Console(file=io.StringIO(), width=120)
    report.render(result, console)
    assert "magnitude D^0.75, linf ball" in console.file.getvalue()
    del result["exponents"][0]["domain"]
    with pytest.raises(ValueError, match=r"exponents\[0\].domain: missing"):
        reading.check(result)


def test_limits_mark_every_claim_by_its_verdict(result):
    ax = plots.limits(Figure().add_subplot(), result["cells"])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["holds (1)", "undecided (4)", "violated (1)", "1 − δ"]
    segments = [s for c in ax.collections for s in c.get_segments()]
    assert len(segments) == 6
    assert all(np.allclose(s[:, 0], [0.88765, 0.99123]) for s in segments)


def test_an_exploratory_run_s_claims_are_drawn_too():
    cells = [cell(verdict="estimated")] * 2
    ax = plots.limits(Figure().add_subplot(), cells)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["estimated (2)", "1 − δ"]
    assert sum(len(c.get_segments()) for c in ax.collections) == 2

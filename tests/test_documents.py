"""READMEs, guides and notebooks run as printed; the site names all that is offered."""

import importlib
import importlib.util
import inspect
import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from cell_keys import CELL_KEYS
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def in_tiers(paths, ci):
    """Documents that take long to run are marked, by name."""
    marks = {True: [pytest.mark.ci], False: []}
    return [pytest.param(path, id=path.stem, marks=marks[path.stem in ci]) for path in paths]


def blocks(language, path="README.md"):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / path).read_text(), re.M | re.S)
    return [text for name, text in found if name == language]


@pytest.mark.ci
def test_the_readme_s_python_prints_what_it_says(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out in blocks("")


@pytest.mark.ci
def test_the_models_readme_prints_what_it_says(capsys):
    path, names = "jaxprune/models/README.md", {}
    first, five, ball = blocks("python", path)
    said = blocks("", path)
    assert len([line for line in five.splitlines() if line]) == 5
    exec(compile(first, path, "exec"), names)
    for code, expected in zip((five, ball), said, strict=True):
        exec(compile(code, path, "exec"), names)
        assert without_rounding(capsys.readouterr().out) == without_rounding(expected)


def without_rounding(text):
    """What float32 rounds is another number on another processor."""
    return re.sub(r"(?<=differ by at most )\S+", "...", text)


def test_the_site_s_own_pages_are_found():
    assert {page.stem for page in PAGES} >= {"concepts", "statistics", "performance", "faq"}


@pytest.mark.parametrize("page", in_tiers(PAGES, ci={"faq"}))
def test_the_site_s_python_prints_what_it_says(page, capsys):
    """Each block of Python, in order, in one session; an output follows the code that prints it."""
    text, names = page.read_text("utf-8"), {}
    for code, said in re.findall(
        r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?", text, re.M | re.S
    ):
        exec(compile(code, str(page), "exec"), names)
        assert capsys.readouterr().out == said
        assert max(map(len, code.splitlines())) <= 100


def sources():
    """The hook that makes pages of READMEs and notebooks."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "docs" / "sources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_readmes_lead_to_pages_of_the_site():
    pages = sources()
    text = "[a](../gaps/README.md#x), [b](https://y.z), [c](#d), [e](../../notebooks/theory.ipynb)"
    turned = "[a](gaps.md#x), [b](https://y.z), [c](#d), [e](theory.md)"
    assert pages.with_links(text, "jaxprune/models") == turned
    with pytest.raises(ValueError, match=r"setup\.cfg"):
        pages.with_links("[a](setup.cfg)", "")


def test_every_readme_and_notebook_is_a_page():
    readmes = {"README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("jaxprune/*/README.md"))}
    notebooks = {str(path.relative_to(ROOT)) for path in NOTEBOOKS}
    pages = sources()
    assert readmes | notebooks <= set(pages.PAGES)
    for source in pages.PAGES:
        assert "README.md)" not in pages.content(source)


def test_the_api_names_all_that_is_offered():
    pages = sources()
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        text = page.read_text()
        spelled = pages.with_members(text)
        for package in re.findall(r"^::: (\S+)$", text, re.M):
            room = importlib.import_module(package)
            if not hasattr(room, "__path__"):
                continue  # a module, whose members stand in its own text
            named = [name for name in room.__all__ if not inspect.ismodule(getattr(room, name))]
            for name, path in zip(named, pages.offered(package).values(), strict=True):
                home, _, attribute = path.rpartition(".")
                assert getattr(importlib.import_module(home), attribute) is getattr(room, name)
                assert f"\n::: {path}\n" in spelled or f"[`{name}`][{path}]" in spelled


def test_code_is_no_list_and_no_link():
    pages = sources()
    text = "- a\n  b\n\n```yaml\n- c:\n  d: table[i](x)\n```\n"
    changed = pages.outside_code(lambda part: pages.with_lists(pages.with_links(part, "")), text)
    assert changed == text.replace("  b", "    b")


def test_items_of_lists_keep_what_belongs_to_them():
    text = "1. a\n   b\n\n       code\n\n   c\n2. d\n\nend\n\n    code\n- e\n  f\n"
    wanted = "1. a\n    b\n\n        code\n\n    c\n2. d\n\nend\n\n    code\n- e\n    f\n"
    assert sources().with_lists(text) == wanted


def test_notebooks_keep_text_code_and_output():
    png = {"image/png": "QUJD\n", "text/plain": ["<Figure>"]}
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, {"data": png}, {"data": {"text/plain": ["2"]}}],
        },
    ]
    assert sources().from_notebook(json.dumps({"cells": cells})).split("\n\n") == [
        "# A\nb",
        "```python\nprint(1)\n```",
        "```\n1\n```",
        '<img alt="The plot" src="data:image/png;base64,QUJD">',
        "```\n2\n```",
    ]


def test_the_readme_s_plan_is_one():
    from jaxprune.studies import plan

    (text,) = blocks("toml")
    assert sum(len(case.eps) for case in plan.parse(tomllib.loads(text)).cases) == 8


def test_every_key_of_a_cell_is_described():
    text = (ROOT / "jaxprune" / "studies" / "README.md").read_text()
    for key in CELL_KEYS:
        short = key.removeprefix("mean_squared_gap").lstrip("_")
        assert f"`{key}`" in text or f"`…_{short}`" in text, key


def test_one_version_is_told_everywhere():
    import jaxprune

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert project["version"] == cited == jaxprune.__version__
    assert f"be {cited}, the first" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_exactly_the_readme_s_test_command():
    readme, ci = ((ROOT / name).read_text() for name in ("README.md", ".ci/run"))
    command = "pip install -e '.[test]' && pytest"
    assert f"\n{command}\n" in readme and f"\n{command}\npytest -m ci\n" in ci


NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def printed(notebook):
    """What the cells print, the numbers in it, and the rest."""
    text = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
    return [float(x.replace(",", "")) for x in NUMBER.findall(text)], NUMBER.sub("#", text).split()


@pytest.mark.parametrize("path", in_tiers(NOTEBOOKS, ci={path.stem for path in NOTEBOOKS}))
def test_notebooks_print_what_they_show(path):
    """All words, and every number to a quarter: estimates of splitting vary with the processor."""
    notebook = nbformat.read(path, as_version=4)
    numbers, words = printed(notebook)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(path.parent))
    assert not any("def " in cell.source for cell in notebook.cells if cell.cell_type == "code")
    found, said = printed(notebook)
    assert said == words and numbers
    assert found == pytest.approx(numbers, rel=0.25, abs=0.1)

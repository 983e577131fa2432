"""The README's code and the notebooks run as printed."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(language, path="README.md"):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / path).read_text(), re.M | re.S)
    return [text for name, text in found if name == language]


def test_the_readme_s_python_prints_what_it_says(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out in blocks("")


def test_the_models_readme_prints_what_it_says(capsys):
    path, names = "jaxprune/models/README.md", {}
    first, five, ball = blocks("python", path)
    said = blocks("", path)
    assert len([line for line in five.splitlines() if line]) == 5
    exec(compile(first, path, "exec"), names)
    for code, expected in zip((five, ball), said, strict=True):
        exec(compile(code, path, "exec"), names)
        assert capsys.readouterr().out == expected


def test_the_readme_s_plan_is_one():
    from jaxprune.studies import plan

    (text,) = blocks("toml")
    assert sum(len(case.eps) for case in plan.parse(tomllib.loads(text)).cases) == 8


def test_every_key_of_a_cell_is_described():
    from test_verify import CELL_KEYS

    text = (ROOT / "jaxprune" / "studies" / "README.md").read_text()
    for key in CELL_KEYS:
        short = key.removeprefix("mean_squared_gap").lstrip("_")
        assert f"`{key}`" in text or f"`…_{short}`" in text, key


def test_ci_runs_exactly_the_readme_s_test_command():
    readme, ci = ((ROOT / name).read_text() for name in ("README.md", ".ci/run"))
    command = "pip install -e '.[test]' && pytest"
    assert f"\n{command}\n" in readme and f"\n{command}\n" in ci


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(path.parent))
    assert not any("def " in cell.source for cell in notebook.cells if cell.cell_type == "code")

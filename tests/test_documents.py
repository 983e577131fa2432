"""The README's code and the notebooks run as printed."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_readme_s_python_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r"P\(gap <= .*\) in \[.*\]: (?:holds|violated)\n", printed)) == 2


def test_the_readme_names_every_key_of_a_cell():
    from test_verify import CELL_KEYS

    text = (ROOT / "README.md").read_text()
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

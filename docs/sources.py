"""A hook of MkDocs: READMEs and notebooks are pages of the site, and have no copy in it."""

import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "jaxprune/models/README.md": "models.md",
    "jaxprune/studies/README.md": "studies.md",
    "jaxprune/gaps/README.md": "gaps.md",
    "jaxprune/bounds/README.md": "bounds.md",
    "notebooks/first_run.ipynb": "first_run.md",
    "notebooks/theory.ipynb": "theory.md",
    "notebooks/your_network.ipynb": "your_network.md",
    "notebooks/scaling.ipynb": "scaling.md",
    "notebooks/rare_failures.ipynb": "rare_failures.md",
    "notebooks/reading_a_verdict.ipynb": "reading_a_verdict.md",
}


def on_files(files, config):
    """Adds the pages."""
    from mkdocs.structure.files import File  # here, so that tests do without MkDocs

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=content(source)))
    return files


def content(source: str) -> str:
    """A page's Markdown, its links turned to those of the site."""
    text = (ROOT / source).read_text("utf-8")
    if source.endswith(".ipynb"):
        text = from_notebook(text)
    return with_lists(with_links(text, posixpath.dirname(source)))


def with_lists(text: str) -> str:
    """What belongs to an item of a list is indented by four, as Python-Markdown wants it."""
    lines, deeper = [], 0
    for line in text.split("\n"):
        if item := re.match(r"(\d+\.|-) ", line):
            deeper = 4 - len(item[0])
        elif line and not line.startswith("  "):
            deeper = 0
        elif line:
            line = " " * deeper + line
        lines.append(line)
    return "\n".join(lines)


def with_links(text: str, folder: str) -> str:
    """Relative links, as they are in `folder` of the repository, lead to pages."""

    def turned(match):
        label, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path not in PAGES:
            raise ValueError(f"{folder or '.'}: a link to {path}, which is no page of the site")
        return f"[{label}]({PAGES[path]}{anchor or ''})"

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", turned, text)


def from_notebook(text: str) -> str:
    """Markdown of a notebook: its text, its code, what it printed, its pictures."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fence(source, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="The plot" src="data:image/png;base64,{png}">')
            elif printed := output.get("text") or data.get("text/plain"):
                parts.append(fence("".join(printed)))
    return "\n\n".join(parts)


def fence(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"

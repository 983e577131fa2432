"""A hook of MkDocs: READMEs and notebooks are pages of the site, and have no copy in it; pages of
the API name what packages offer."""

import ast
import itertools
import json
import posixpath
import re
from collections.abc import Callable
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


def on_page_markdown(markdown, page, config, files):
    """The API's pages name all that a package offers."""
    return with_members(markdown)


def with_members(text: str) -> str:
    """Behind each package that is documented, one by one, what its `__all__` names.

    A function that is called as the module in which it is written would be taken for that module.
    What another package documents is a link to its page.
    """

    def spelled(match):
        package, options = match.groups()
        if not initial(package).exists():
            return match[0]
        found = offered(package)
        ours = [
            path
            for path in found.values()
            if path.startswith(f"{package}.") and package != "jaxprune"
        ]
        links = [
            f"- [`{name}`][{path}] {summary(path)}"
            for name, path in found.items()
            if path not in ours
        ]
        level = re.search(r"heading_level: (\d)", options)
        level = level[1] if level else "2"
        members = [f"::: {path}\n    options:\n      heading_level: {level}" for path in ours]
        head = f"::: {package}\n    options:\n{options}      members: false\n"
        return "\n\n".join([head, "\n".join(links), *members]) + "\n"

    return re.sub(r"^::: (\S+)\n    options:\n((?:      .*\n)*)", spelled, text, flags=re.M)


def initial(package: str) -> Path:
    """Where a package's names are."""
    return ROOT / package.replace(".", "/") / "__init__.py"


def offered(package: str) -> dict[str, str]:
    """Each name of a package's `__all__`, and where it is written; its own modules are left out."""
    tree = ast.parse(initial(package).read_text("utf-8"))
    names, homes = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    found = {}
    for name in names:
        home = homes.get(name)
        if home is None:
            found[name] = f"{package}.{name}"
        elif not initial(home).exists():
            found[name] = f"{home}.{name}"
        elif home != package:
            found[name] = offered(home)[name]
    return found


def summary(path: str) -> str:
    """The first line of what is said of a function or class."""
    home, _, name = path.rpartition(".")
    tree = ast.parse((ROOT / f"{home.replace('.', '/')}.py").read_text("utf-8"))
    for node, after in itertools.pairwise([*tree.body, None]):
        if getattr(node, "name", None) == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            return after.value.value.partition("\n")[0] if said else ""
    return ""


def content(source: str) -> str:
    """A page's Markdown, its links turned to those of the site."""
    text = (ROOT / source).read_text("utf-8")
    if source.endswith(".ipynb"):
        text = from_notebook(text)
    folder = posixpath.dirname(source)
    return outside_code(lambda part: with_lists(with_links(part, folder)), text)


def outside_code(change: Callable[[str], str], text: str) -> str:
    """A change of Markdown that leaves its blocks of code alone."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


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

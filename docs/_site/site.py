"""What the site has beside the pages in docs/: a hook of mkdocs.

- a page of the reference for each optimizer that `fastopt.optim` exports, and the lists of them;
- README.md, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md as pages;
- the files outside docs/ that pages link to, under their own paths; of a folder the name alone.

So a link in a page is the one that works where the repository is read as plain Markdown.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import docstrings

ROOT = Path(__file__).parents[2]
PAGES = {
    path: path.lower() for path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
}
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s:#]+)((?:#[^)\s]*)?)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    assert config.nav is not None
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    reference.append({"Optimizers": [{n: f"reference/{n}.md"} for n in docstrings.optimizers()]})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name, module in docstrings.optimizers().items():
        text = f"::: fastopt.optim.{module}.{name}\n    options:\n      heading_level: 1\n"
        text += "\nIts methods and properties: [what every optimizer has](common.md).\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path, page in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        text = LINK.sub(rehomed, text)
        files.append(File.generated(config, page, content=text))
    return files


def rehomed(match: re.Match[str]) -> str:
    """A link of a file at the top, as one in docs/ has it."""
    path = match[2]
    inside = path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}"
    return f"[{match[1]}]({inside}{match[3]})"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def outside(match: re.Match[str]) -> str:
        """A link out of docs/, to a page made of its target or to a copy of it."""
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(here), match[2]))
        if target.startswith(("docs/", "../")):
            return match[0]
        if (ROOT / target).is_dir():
            return match[1]
        uri = PAGES.get(target, target)
        if uri == target and files.get_file_from_path(uri) is None and (ROOT / target).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        link = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"[{match[1]}]({link}{match[3]})"

    markdown = LINK.sub(outside, markdown)
    if here == "reference/index.md":
        markdown += "\n".join(
            f"| [{name}]({name}.md) | {docstrings.summary(name)} |"
            for name in docstrings.optimizers()
        )
    if here == "reference/rules.md":
        rules = sorted((ROOT / "fastopt" / "rules").glob("[a-z]*.py"))
        names = [p.stem for p in rules if f"\ndef {p.stem}(" in p.read_text(encoding="utf-8")]
        markdown += "\n\n".join(f"::: fastopt.rules.{name}.{name}" for name in names)
    return markdown

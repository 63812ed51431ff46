"""MkDocs hooks: the repository's Markdown files as a site, with the links that GitHub follows.

MkDocs takes pages from one folder, while this project's pages also stand beside the code that they describe.
`on_files` gives MkDocs all of them under their paths in the repository, so that relative links hold on GitHub and
on the site. A file that is linked and is not a page (a result, a source file) is copied. Source: MkDocs'
documentation of hooks and of `File.generated`, version 1.6.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "cpp/README.md",
    "cpp/plugin/README.md",
)
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
OUTSIDE = ("http://", "https://", "mailto:")


def on_files(files: Files, config: Any) -> Files:
    """Every page of the repository and every file that one links to, in place of MkDocs' own list."""
    wanted = {*PAGES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))}
    todo = sorted(wanted)
    while todo:
        page = todo.pop()
        for target in _linked_files(page):
            if target not in wanted:
                wanted.add(target)
                if target.endswith(".md"):
                    todo.append(target)
    # The theme's files are added by MkDocs later; those of docs/ are replaced.
    return Files([File.generated(config, name, abs_src_path=str(ROOT / name)) for name in sorted(wanted)])


def on_config(config: Any) -> Any:
    """Put the pages of docs/ that the navigation does not name under "More"."""
    named = str(config.nav)
    pages = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))
    if more := [page for page in pages if page not in named]:
        config.nav.append({"More": more})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to folders become plain text: a site has no page of a folder."""

    def without_folder(match: re.Match[str]) -> str:
        target = _resolve(page.file.src_uri, match["target"])
        is_folder = target is not None and (ROOT / target).is_dir()
        return match["text"][1:-1] if is_folder else match[0]

    return LINK.sub(without_folder, markdown)


def _linked_files(page: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    targets = (_resolve(page, match["target"]) for match in LINK.finditer(text))
    return sorted({target for target in targets if target is not None and (ROOT / target).is_file()})


def _resolve(page: str, target: str) -> str | None:
    """The path in the repository that a link of a page leads to; None for one that leads out of it."""
    if target.startswith(OUTSIDE):
        return None
    path = (ROOT / PurePosixPath(page).parent / target).resolve()
    return path.relative_to(ROOT.resolve()).as_posix() if path.is_relative_to(ROOT.resolve()) else None

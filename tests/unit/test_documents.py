"""Every relative link of a document leads to a file and a heading that exist, and the files that prose names exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "kernels", "notes", "recipes", "tests", "tools")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`([\w.-]+/[\w./-]*(?:\.py|\.cu|/))(?::\d+[^`]*)?`")
PACKAGES = ("", "moe_train", "cluster", "cluster/moe_cluster", "kernels", "kernels/moe_kernels")
EXAMPLES = (
    "acme_moe/",
    "cluster/moe_cluster/pbs/",
    "pbs/",
    "moe_train/config/kinds/guard/overflow.py",
    "moe_train/config/kinds/router/cosine.py",
    "moe_train/engines/replicated.py",
    "moe_train/guards/overflow.py",
    "moe_train/moe/routers/cosine.py",
    "runs/NAME/",
    "attempts/K/",
    "checkpoints/step_XXXXXXXX/",
)
"""How names begin of files that a reader of the pages writes, or a run."""
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


@cache
def anchors(document: Path) -> set[str]:
    return {slug(heading) for heading in HEADING.findall(document.read_text())}


def broken_links(document: Path) -> Iterator[str]:
    prose = CODE.sub("", document.read_text())
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_of_a_document_is_broken(document: Path) -> None:
    assert list(broken_links(document)) == []


def missing_files(document: Path) -> set[str]:
    """The files and folders of ours that a document names in prose and that do not exist."""
    named = {name for name in NAMED_FILE.findall(document.read_text()) if not name.startswith(EXAMPLES)}
    folders = [*(ROOT / package for package in PACKAGES), document.parent]
    return {name for name in named if not any((folder / name).exists() for folder in folders)}


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=str,
)
def test_the_files_that_a_document_names_exist(document: Path) -> None:
    assert missing_files(document) == set()


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`moe/layers/layer.py`, `moe/gone.py:12 forward`, `tools/gone/`, `checkpoint/`")
    assert missing_files(page) == {"moe/gone.py", "tools/gone/"}


def test_a_broken_link_and_a_missing_anchor_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[a](page.md#a-page) [b](gone.md) [c](#gone) `[d](gone.md)` [e](https://example.org)\n"
    )
    assert list(broken_links(page)) == ["gone.md: no such file", "#gone: no such heading"]


def test_every_page_of_docs_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2].partition("validation:")[0]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}

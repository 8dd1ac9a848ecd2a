"""README and docs/ agree with the tree: their links lead somewhere, and the code that they name exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
FOREIGN = {"include/uapi/linux/fuse.h"}
"""Files of the kernel's source that the documents name."""
PLACES = ("daxfs", "tests", "scripts", "docs", "man", ".github")


@cache
def files() -> list[str]:
    """Return the paths of all files that the documents may name."""
    below = (
        path.relative_to(TOP).as_posix() for place in PLACES for path in (TOP / place).rglob("*") if path.is_file()
    )
    return [*below, *(path.name for path in TOP.iterdir() if path.is_file())]


@cache
def words() -> set[str]:
    """Return all words of the code."""
    code = [name for name in files() if name.startswith(("daxfs/", "tests/")) and name.endswith((".py", ".c", ".h"))]
    return {word for name in code for word in re.findall(r"\w+", (TOP / name).read_text())}


def prose(document: Path) -> str:
    """Return the text without its blocks of commands and code."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def quoted(document: Path) -> set[str]:
    """Return the texts between backticks."""
    return set(re.findall(r"`([^`\n]+)`", prose(document)))


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", prose(document)):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    for name in quoted(document):
        if re.fullmatch(r"[\w./-]+\.(py|c|h|md|yml)", name) and name not in FOREIGN:
            assert any(f"/{path}".endswith(f"/{name}") for path in files()), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_members_exist(document: Path) -> None:
    """Each word of a `Class.member` occurs in the code."""
    for name in quoted(document):
        if re.fullmatch(r"[A-Z]\w*(\.\w+)+(\(\))?", name):
            assert set(re.findall(r"\w+", name)) <= words(), name

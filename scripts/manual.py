"""Write the table of mount options into README.md and the man page, between the marks for it.

Run ``python scripts/manual.py`` after a change of daxfs/fuse/optiontable.py; a test compares the files with the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from daxfs.tools import optionlist

TOP = Path(__file__).parents[1]
PLACES: dict[str, tuple[str, str, Callable[[], str]]] = {
    "README.md": (
        "<!-- begin: options (made by scripts/manual.py) -->\n",
        "<!-- end: options -->\n",
        optionlist.as_markdown,
    ),
    "man/daxfs-mount.8": (
        '.\\" begin: options (made by scripts/manual.py)\n',
        '.\\" end: options\n',
        optionlist.as_roff,
    ),
}
"""For each file: the line before the table, the line after it, and the function that makes the table."""


def filled(name: str) -> str:
    """Return the file's text with the current table."""
    begin, end, made = PLACES[name]
    before, found, rest = (TOP / name).read_text().partition(begin)
    _, closed, after = rest.partition(end)
    assert found, f"{name} has lost the line {begin!r}"
    assert closed, f"{name} has lost the line {end!r}"
    return before + begin + made() + end + after


def main() -> None:
    """Write the files."""
    for name in PLACES:
        (TOP / name).write_text(filled(name))


if __name__ == "__main__":
    main()

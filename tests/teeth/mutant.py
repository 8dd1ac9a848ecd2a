"""What a mutant is: an edit of a source, why it is a fault, and which tests must notice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stale(Exception):
    """The text that an edit replaces is not in the source, or more than once."""


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: short, unique.
        path: of the source, from the top of the project.
        before: the text that is replaced; it stands there once.
        after: what replaces it.
        reason: what goes wrong then, in one sentence.
        tests: files or node ids of tests, of which one must fail.
        full: only the full run must notice; else the default tests must.
    """

    name: str
    path: str
    before: str
    after: str
    reason: str
    tests: tuple[str, ...]
    full: bool = False

    def apply(self, root: Path) -> None:
        """Change the source below ``root``. Raises as `applied`."""
        path = root / self.path
        path.write_text(self.applied(path.read_text()))

    def applied(self, text: str) -> str:
        """Return the source with the fault in it.

        Raises:
            Stale: the source has changed; the mutant must follow.
        """
        found = text.count(self.before)
        if found != 1:
            raise Stale(f"{self.path}: the text to replace is there {found} times")
        return text.replace(self.before, self.after)

"""Damage that an operation met and did without: noted here, counted when the operation has ended.

A reader is given what is sound. A directory with a damaged block lists its other blocks, and a group with a damaged
bitmap gives nothing away while the others do. The functions of this layer note what they left out; the fs layer reports
each note once, as ``errors=`` says (`daxfs.fs.damage`). Whoever changes what is damaged gets the error itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.journal.cache import Cache

if TYPE_CHECKING:
    from daxfs.errors import Corrupt
    from daxfs.journal.view import View

MOST = 256
"""The most notes of one mount; by then everybody knows that e2fsck must run."""


class Noted(Cache):
    """The notes of one mount.

    Attributes:
        waiting: those that are not reported yet.
    """

    __slots__ = ("_known", "waiting")

    def __init__(self) -> None:
        self._known: set[str] = set()
        self.waiting: list[Corrupt] = []

    def add(self, error: Corrupt) -> None:
        """Note damage, unless it was noted before."""
        text = error.strerror or ""
        if text not in self._known and len(self._known) < MOST:
            self._known.add(text)
            self.waiting.append(error)


def note(view: View, error: Corrupt) -> None:
    """Note damage that the caller does without.

    Raises:
        Corrupt: ``error``: memory is missing, and what was read there are zeros that the pool does not hold.
    """
    if view.pool.faults.pending[0]:
        raise error
    view.caches[Noted].add(error)

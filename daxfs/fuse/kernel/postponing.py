"""Requests that found the pool full and are answered later, when the kernel has forgotten what was removed before them.

A file that lost its last name takes room until the kernel forgets it, which it does a little after the removal was
answered. What it has forgotten already the core takes back by itself (`Connection.reclaim`). What it is about to forget
only time brings: so the request waits, and is answered for good when no file is left that could be forgotten, or after
`PATIENCE_SECONDS`. Where that was in vain no other request waits, until a name is taken away again.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fuse.kernel.request import Request

PATIENCE_SECONDS = 0.05
"""How long a request waits for files to be forgotten."""


class Postponing:
    """The requests of one session that wait for room.

    Attributes:
        messages: they, oldest first; always the same list.
    """

    def __init__(self, core: FileSystem) -> None:
        self.messages: list[bytes] = []
        self._core = core
        self._deadline = 0.0
        self._promising = True
        self._last_chance = False

    def put_off(self, request: Request) -> bool:
        """Keep a request that found the pool full; False: waiting brings nothing, it is to be refused."""
        if self._last_chance:
            self._promising = False
        if not self._promising or not self._core.holds_forgettable:
            return False
        if not self.messages:
            self._deadline = perf_counter() + PATIENCE_SECONDS
        self.messages.append(bytes(request.buffer[: request.length]))
        return True

    def name_removed(self) -> None:
        """A name is taken away: its file may be forgotten soon, so waiting may bring something again."""
        self._promising = True

    @property
    def due(self) -> bool:
        """Whether requests have waited enough: nothing is left that could be forgotten, or time is over."""
        return bool(self.messages) and (perf_counter() > self._deadline or not self._core.holds_forgettable)

    def last_chances(self) -> Iterator[bytes]:
        """The messages that wait, one after the other, to be answered now: until the end none is put off again."""
        waiting = self.messages[:]
        self.messages.clear()
        self._last_chance = True
        try:
            yield from waiting
        finally:
            self._last_chance = False

"""Postpone requests that found the pool full, until the kernel has forgotten the files that were removed before them.

A file that lost its last name occupies blocks until the kernel forgets it, shortly after the answer to the removal. The
core frees the files that are forgotten already (`Connection.reclaim`). For files that the kernel is about to forget,
the request waits. It is executed a second time when no file is left that could be forgotten, or after
`PATIENCE_SECONDS`; the result is final. If the pool is still full then, no further request waits until a name is
removed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fuse.kernel.request import Request

PATIENCE_SECONDS = 0.05
"""How long a request waits for the kernel to forget files."""


class Postponing:
    """The requests of one session that wait for free blocks.

    Attributes:
        messages: the waiting requests, oldest first; always the same list.
    """

    def __init__(self, core: FileSystem) -> None:
        self.messages: list[bytes] = []
        self._core = core
        self._deadline = 0.0
        self._promising = True
        self._last_chance = False

    def put_off(self, request: Request) -> bool:
        """Keep a request that found the pool full; return False if waiting is useless and it must be refused."""
        if self._last_chance:
            self._promising = False
        if not self._promising or not self._core.holds_forgettable:
            return False
        if not self.messages:
            self._deadline = perf_counter() + PATIENCE_SECONDS
        self.messages.append(bytes(request.buffer[: request.length]))
        return True

    def name_removed(self) -> None:
        """Allow requests to wait again: a name is removed, so the kernel may soon forget its file."""
        self._promising = True

    @property
    def due(self) -> bool:
        """Whether the waiting requests must be answered: no file is left that could be forgotten, or time is up."""
        return bool(self.messages) and (perf_counter() > self._deadline or not self._core.holds_forgettable)

    def last_chances(self) -> Iterator[bytes]:
        """Yield the waiting messages, to be answered now; while the iterator runs none is put off again."""
        waiting = self.messages[:]
        self.messages.clear()
        self._last_chance = True
        try:
            yield from waiting
        finally:
            self._last_chance = False

"""The atomic writes that clients have announced and that are still to come, as a connection keeps them.

They take memory of the daemon, so each user has a bounded number of them.
"""

from __future__ import annotations

import errno

from daxfs.errors import FsError

MOST_AHEAD = 1024
"""The most announced writes of one user that are still to come: one for each of many threads."""


class Announced:
    """Announced writes.

    Attributes:
        by_handle: (offset, length, user) of the writes to come, by the handle of the open file; empty without any.
    """

    __slots__ = ("_counts", "by_handle")

    def __init__(self) -> None:
        self.by_handle: dict[int, list[tuple[int, int, int]]] = {}
        self._counts: dict[int, int] = {}

    def add(self, handle: int, offset: int, length: int, uid: int) -> None:
        """Note a write; EBUSY: the user has too many."""
        count = self._counts.get(uid, 0)
        if count >= MOST_AHEAD:
            raise FsError(errno.EBUSY, f"user {uid} has announced {count} atomic writes that are still to come")
        self._counts[uid] = count + 1
        self.by_handle.setdefault(handle, []).append((offset, length, uid))

    def has(self, handle: int, offset: int, length: int) -> bool:
        """Return whether a write was announced."""
        return any(ahead[:2] == (offset, length) for ahead in self.by_handle.get(handle, ()))

    def take(self, handle: int, offset: int, length: int) -> bool:
        """Return whether a write was announced, which is forgotten: the next one like it is an ordinary one."""
        ahead = self.by_handle.get(handle, [])
        for index, (start, size, uid) in enumerate(ahead):
            if (start, size) == (offset, length):
                del ahead[index]
                self._uncount(uid)
                if not ahead:
                    del self.by_handle[handle]
                return True
        return False

    def closed(self, handle: int) -> None:
        """Forget the writes to an open file that was closed."""
        for _, _, uid in self.by_handle.pop(handle, []):
            self._uncount(uid)

    def _uncount(self, uid: int) -> None:
        self._counts[uid] -= 1
        if not self._counts[uid]:
            del self._counts[uid]

"""The limit of open files for each user of a mount (``max_open_files=``): every open file takes memory of the daemon.

RLIMIT_NOFILE bounds one process, and a user may have many. Root is not limited, as with the kernel's own limit
(/proc/sys/fs/file-max).
"""

from __future__ import annotations

import errno

from daxfs.errors import FsError


class OpenLimit:
    """Counts the open files of each user.

    Attributes:
        refused: the number of opens that met the limit.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._counts: dict[int, int] = {}
        self._users: dict[int, int] = {}

    def check(self, uid: int, most: int) -> None:
        """Refuse a user's open (ENFILE) if that user has ``most`` files open; 0: there is no limit."""
        if uid and 0 < most <= self._counts.get(uid, 0):
            self.refused += 1
            raise FsError(errno.ENFILE, f"user {uid} has {most} files open (max_open_files=)")

    def opened(self, handle: int, uid: int) -> None:
        """Count an open file."""
        if uid:
            self._users[handle] = uid
            self._counts[uid] = self._counts.get(uid, 0) + 1

    def closed(self, handle: int) -> None:
        """Count a file that was closed. A user without open files takes no memory."""
        uid = self._users.pop(handle, None)
        if uid is not None:
            self._counts[uid] -= 1
            if not self._counts[uid]:
                del self._counts[uid]

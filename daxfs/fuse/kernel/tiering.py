"""Memory and storage of a mount: an ioctl (`TIER`) shows how much of each is used, or moves a part of an open file.

The question is what to do, and which part of the file; the answer is JSON. While it waits for storage, other requests,
for the same file too, are answered. `daxfs.tools.tier` is the client.
"""

from __future__ import annotations

import errno
import json
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Any

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fuse.kernel.leases import opened
from daxfs.fuse.kernel.request import fixed

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 8192
TIER: int = 0xC000DA0B | SIZE << 16
"""_IOWR(0xda, 11, char[SIZE])."""
QUESTION = Struct(f"=QQQ{SIZE - 24}x")  # an `Action`, offset and length in bytes


class Action(IntEnum):
    """What to do."""

    SHOW = 0
    DEMOTE = 1
    PROMOTE = 2


def command(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer the ioctl `TIER`.

    Raises:
        FsError: EINVAL, no such action; EBADF, the file is not open for writing, and the caller is not root; as
            `FileSystem.demote` and `FileSystem.tier_use`.
    """
    action, offset, length = fixed(QUESTION, given)
    core = connection.core
    found: dict[str, Any]
    if action == Action.SHOW:
        found = core.tier_use()._asdict()
    elif action not in (Action.DEMOTE, Action.PROMOTE):
        raise FsError(errno.EINVAL)
    else:
        file = opened(connection, request)
        if not file.writable and request.caller().uid:
            raise FsError(errno.EBADF)
        move = core.steps.demote if action == Action.DEMOTE else core.steps.promote
        done = yield from move(file.ino, offset, length)
        connection.free_rest()
        found = done._asdict()
    return json.dumps(found, separators=(",", ":")).encode()

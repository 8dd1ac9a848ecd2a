"""Storage joins and leaves through a mount: an ioctl (`MEMBER`) on its root, with the path of a file or block device.

The answer is JSON, the sizes of the file system in blocks or one line that says why not. The daemon opens the member
itself. Other requests are answered meanwhile. Root may ask, and the user who runs the daemon. The client is
`daxfs.tools.tiermembers`.
"""

from __future__ import annotations

import errno
import json
import os
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.resizing import refusal, refuse_others

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 8192
MEMBER: int = 0xC000DA0C | SIZE << 16
"""_IOWR(0xda, 12, char[SIZE])."""
QUESTION = Struct(f"=Q{SIZE - 8}s")
"""An `Action`, and the absolute path, which ends with NULs."""


class Action(IntEnum):
    """What to do. `REPLACE` is `ADD` of what has the label of a pool."""

    ADD = 0
    REPLACE = 1
    REMOVE = 2


def command(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer `MEMBER`: ``{"before": N, "blocks": N}``, or ``{"errno": N, "reason": TEXT}``.

    Raises:
        FsError: ENOTTY, not the root directory; EINVAL, the argument is no question.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if len(given) != QUESTION.size:
        raise FsError(errno.EINVAL)
    action, name = QUESTION.unpack(given)
    path, core = os.fsdecode(name.rstrip(b"\0")), connection.core
    if action not in tuple(Action) or not os.path.isabs(path):
        raise FsError(errno.EINVAL)
    try:
        refuse_others(request)
        if action == Action.REMOVE:
            done = yield from core.steps.remove_storage(path)
        else:
            core.leave_storage_to(connection.wakened())
            done = yield from core.steps.add_storage(path, force=action == Action.REPLACE)
    except FsError as error:
        return refusal(error.errno or errno.EIO, error.strerror or "")
    return json.dumps(done._asdict()).encode()

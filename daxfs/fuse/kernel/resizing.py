"""Resizing through a mount: ext4's own ioctl, which resize2fs(8) sends to the mountpoint, and one that explains itself.

EXT4_IOC_RESIZE_FS takes a number of blocks, makes the file system larger and answers with an errno only. `RESIZE` does
the same for `daxfs resize`, and makes it smaller too: its answer is JSON, the size in blocks or one line that says why
not. It also tells how small the file system can become, and how much is left to move. The kernel asks for
CAP_SYS_RESOURCE; here root may resize, and the user who runs the daemon, since the pool is theirs.
EXT4_IOC_GROUP_EXTEND and EXT4_IOC_GROUP_ADD stay unknown (ENOTTY): resize2fs sends them to kernels before Linux 3.3.
"""

from __future__ import annotations

import errno
import json
import os
from struct import Struct
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.request import fixed

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

EXT4_IOC_RESIZE_FS = 0x40086610
"""_IOW('f', 16, __u64)."""
SIZE = 1024
RESIZE = 0xC000DA09 | SIZE << 16
"""_IOWR(0xda, 9, char[SIZE])."""
BLOCKS = Struct("=Q")
"""A size in blocks."""
QUESTION = Struct("=QQ")
"""The argument of `RESIZE`: one of the numbers below, and for `CHANGE` a size in blocks: 0 is all of the file."""
CHANGE, LEAST, LEFT = range(3)


def resize_fs(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer EXT4_IOC_RESIZE_FS.

    Raises:
        FsError: EPERM, neither root nor the owner of the daemon; EINVAL, fewer blocks than there are, which this ioctl
            does not do; and as `FileSystem.resize`.
    """
    (blocks,) = fixed(BLOCKS, given)
    refuse_others(request)
    if not blocks or blocks < connection.core.size:
        raise FsError(errno.EINVAL)
    yield from connection.core.steps.resize(blocks)
    return b""


def resize(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer `RESIZE`: ``{"before": N, "blocks": N}``, or ``{"errno": N, "reason": TEXT}``.

    `LEAST` is answered with ``{"least": N}``, `LEFT` with ``{"left": N}``, both in blocks.

    Raises:
        FsError: ENOTTY, not the root directory; EINVAL, the argument is too short.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if len(given) < QUESTION.size:
        raise FsError(errno.EINVAL)
    what, blocks = QUESTION.unpack_from(given)
    try:
        refuse_others(request)
        if what == LEFT:
            answer: dict[str, object] = {"left": connection.core.left_to_move}
        elif what == LEAST:
            answer = {"least": connection.core.minimum_size()}
        else:
            before, now = yield from connection.core.steps.resize(blocks)
            answer = {"before": before, "blocks": now}
    except FsError as error:
        return refusal(error.errno or errno.EIO, error.strerror or "")
    return json.dumps(answer).encode()


def refusal(number: int, reason: str) -> bytes:
    """Return the answer of a request that failed, with as much of the reason as fits: it may name many snapshots."""
    while len(text := json.dumps({"errno": number, "reason": reason}).encode()) > SIZE:
        reason = reason[: len(reason) * 3 // 4].rstrip(".") + "..."
    return text


def refuse_others(request: Request) -> None:
    """Refuse everybody but root and the user who runs the daemon (EPERM), questions too: an answer takes a commit."""
    if request.uid not in (0, os.geteuid()):
        raise FsError(errno.EPERM, "only root and the user who has mounted the pool resize it")

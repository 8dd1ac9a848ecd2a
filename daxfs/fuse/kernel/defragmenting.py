"""Defragmentation through a mount: an ioctl on an open file (`DEFRAGMENT`) moves its blocks to 2 MiB pages.

The question names a part of the file; the answer is JSON: how many bytes were moved, which parts stayed, why, and for
which processes, as many as fit, and where after the part the file goes on (null: nowhere), so that nobody asks for
holes. Other requests, for the same file too, are answered between the steps. `daxfs.tools.defrag` is the client.
"""

from __future__ import annotations

import errno
import json
from struct import Struct
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fuse.kernel.leases import opened
from daxfs.fuse.kernel.request import fixed
from daxfs.protocol import FURTHEST

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 8192
DEFRAGMENT: int = 0xC000DA0A | SIZE << 16
"""_IOWR(0xda, 10, char[SIZE])."""
QUESTION = Struct(f"=QQ{SIZE - 16}x")  # offset and length in bytes
MOST_STAYED = 64
"""The most parts that an answer lists."""


def command(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer the ioctl `DEFRAGMENT`.

    Raises:
        FsError: EBADF, the file is not open for writing, and the caller is not root; as `FileSystem.defragment`.
    """
    file = opened(connection, request)
    caller = request.caller()
    offset, length = fixed(QUESTION, given)
    if not file.writable and caller.uid:
        raise FsError(errno.EBADF)
    done = yield from connection.core.steps.defragment(file.ino, offset, length, caller)
    connection.free_rest()
    stayed = [each._asdict() for each in done.stayed[:MOST_STAYED]]
    answer = {"moved": done.moved, "next": _after(connection, file.ino, offset + length), "stayed": stayed}
    while len(text := json.dumps(answer, separators=(",", ":")).encode()) > SIZE:
        del stayed[len(stayed) * 3 // 4 :]
    return text


def _after(connection: Connection, ino: int, position: int) -> int | None:
    """Return where the first blocks of a file from a position on begin, in bytes; None: there are none."""
    try:
        found = connection.core.fiemap(ino, position, FURTHEST, 1)
    except FsError as error:
        if error.errno != errno.EFBIG:
            raise
        return None
    return found[0].logical if found else None

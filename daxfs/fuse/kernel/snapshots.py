"""Snapshots through a mount: one ioctl on the root directory (`SNAPSHOTS`) makes, deletes and lists them.

Only root may call it. `daxfs.tools.snapshots` is its client. A list is returned as JSON, as many snapshots from an
index on as fit.
"""

from __future__ import annotations

import errno
import json
from struct import Struct
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fuse.kernel import abi

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 8192
SNAPSHOTS = 0xC000DA08 | SIZE << 16
"""_IOWR(0xda, 8, char[SIZE])."""
QUESTION = Struct("=II256s")  # what to do, the index to list from, a name padded with zeros
CREATE, DELETE, LIST = 1, 2, 3


def command(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer the ioctl `SNAPSHOTS`.

    Raises:
        FsError: ENOTTY, not the root directory; EPERM, not root; EINVAL, an unknown command; and as
            `FileSystem.create_snapshot` and `FileSystem.delete_snapshot`.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if request.uid:
        raise FsError(errno.EPERM)
    if len(given) < QUESTION.size:
        raise FsError(errno.EINVAL)
    what, first, padded = QUESTION.unpack_from(given)
    name = bytes(padded).partition(b"\0")[0]
    core = connection.core
    if what == CREATE:
        core.create_snapshot(name)
    elif what == DELETE:
        yield from core.steps.delete_snapshot(name)
    elif what == LIST:
        return _listed(connection, first)
    else:
        raise FsError(errno.EINVAL)
    return b""


def _listed(connection: Connection, first: int) -> bytes:
    text = b"[]"
    rows = []
    for found in connection.core.list_snapshots()[first:]:
        row = found._asdict() | {"name": found.name.decode(errors="surrogateescape"), "uuid": found.uuid.hex()}
        rows.append(row)
        longer = json.dumps(rows, separators=(",", ":")).encode()
        if len(longer) > SIZE:
            break
        text = longer
    return text

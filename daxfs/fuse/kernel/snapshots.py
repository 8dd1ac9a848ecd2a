"""Snapshots through a mount: one ioctl on the root directory (`SNAPSHOTS`) makes, deletes and lists them.

Only root may call it. `daxfs.tools.snapshots` is its client. Answers are JSON: a list has as many snapshots from an
index on as fit; a new snapshot comes with the files that clients might store to while it was made, as many as fit.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fuse.kernel import abi

if TYPE_CHECKING:
    from daxfs.fs.types import Snapshot
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 8192
SNAPSHOTS = 0xC000DA08 | SIZE << 16
"""_IOWR(0xda, 8, char[SIZE])."""
QUESTION = Struct("=II256s")  # what to do, a number, a name padded with zeros
CREATE, DELETE, LIST = 1, 2, 3
"""What to do; the number is flags for CREATE, and the index to begin with for LIST."""
SKIP_MAPPED = 1


def command(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Answer the ioctl `SNAPSHOTS`.

    Raises:
        FsError: ENOTTY, not the root directory; EPERM, not root; EINVAL, an unknown command or flag; and as
            `FileSystem.create_snapshot` and `FileSystem.delete_snapshot`.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    if request.uid:
        raise FsError(errno.EPERM)
    if len(given) < QUESTION.size:
        raise FsError(errno.EINVAL)
    what, number, padded = QUESTION.unpack_from(given)
    name = bytes(padded).partition(b"\0")[0]
    core = connection.core
    if what == CREATE and not number & ~SKIP_MAPPED:
        made = yield from core.steps.create_snapshot(name, skip_mapped=bool(number & SKIP_MAPPED))
        return _text(made.files, {"snapshot": row(made.snapshot), "count": len(made.files)})
    if what == DELETE:
        yield from core.steps.delete_snapshot(name)
        return b""
    if what == LIST:
        return _text([row(found) for found in core.list_snapshots()[number:]])
    raise FsError(errno.EINVAL)


def row(found: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON has it, also for users (`daxfs snapshot list --json`)."""
    return found._asdict() | {"name": found.name.decode(errors="surrogateescape"), "uuid": found.uuid.hex()}


def _text(rows: Sequence[Any], facts: dict[str, Any] | None = None) -> bytes:
    """Return as many rows as fit, beside some facts if there are any."""
    count = len(rows)
    while True:
        part = rows[:count]
        text = json.dumps(part if facts is None else facts | {"files": part}, separators=(",", ":")).encode()
        if len(text) <= SIZE or not count:
            return text
        count = count * SIZE // len(text) if count > 1 else 0

"""Return what is in force on a mount, as JSON, to any process that can open its root directory.

The query is an ioctl on the root directory (`STATUS`). It returns a JSON object padded with zeros, which `daxfs info`
shows. A new fact is a row of `FACTS`.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs import compiled
from daxfs.errors import FsError
from daxfs.fs import atomic
from daxfs.fuse.kernel import abi, durability

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 0x3FF8
"""Bytes of the result; a command's number has 14 bits for it."""
STATUS = 0x8000DA06 | SIZE << 16
"""_IOR(0xda, 6, char[SIZE])."""


def options(connection: Connection) -> list[str]:
    """Return the mount options in force, as /proc/mounts would list them."""
    return connection.options.listed()


def errors(connection: Connection) -> dict[str, object]:
    """Return the errors of metadata that are recorded, and whether one has made the volume read-only."""
    found = connection.core.metadata_errors()
    return {
        "count": found.count,
        "first": found.first and found.first._asdict(),
        "last": found.last and found.last._asdict(),
        "behaviour": found.behaviour,
        "stopped": found.stopped,
    }


def atomic_write(connection: Connection) -> int:
    """Return the longest write(2), in bytes, that arrives as one request: a buffer may begin within a page.

    To a file with chattr +j such a write is atomic. 0: no write is.
    """
    if not connection.core.has_atomic_writes:
        return 0
    return min(connection.agreement.max_write, atomic.MOST_BYTES) - mmap.PAGESIZE


def core(_connection: Connection) -> str:
    """Return whether the daemon's core is compiled, and if not, why."""
    return compiled.state()


def process(_connection: Connection) -> int:
    """Return the daemon's process id."""
    return os.getpid()


FACTS: dict[str, Callable[[Connection], object]] = {
    "options": options,
    "atomic_write": atomic_write,
    "durability": durability.table,
    "warning": durability.warning,
    "errors": errors,
    "core": core,
    "process": process,
}
"""The function that returns a fact of a connection (any value of JSON), by the name in the JSON object."""


def query(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Answer the ioctl `STATUS`.

    Raises:
        FsError: ENOTTY, not the root directory; EOVERFLOW, the status is too long.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    text = json.dumps({name: value_of(connection) for name, value_of in FACTS.items()}, separators=(",", ":")).encode()
    if len(text) > SIZE:
        raise FsError(errno.EOVERFLOW, "the status does not fit into its answer")
    return text

"""What is in force on a mount, told as JSON to whoever can open its root directory.

The question is an ioctl on the root directory (`STATUS`), its answer a JSON object padded with zeros. `daxfs info`
shows it. A new fact is a row of `FACTS`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi, durability

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

SIZE = 0x3FF8
"""Bytes of the answer; a command's number has 14 bits for it."""
STATUS = 0x8000DA06 | SIZE << 16
"""_IOR(0xda, 6, char[SIZE])."""


def options(connection: Connection) -> list[str]:
    """The mount options in force, as /proc/mounts would list them."""
    return connection.options.listed()


FACTS: dict[str, Callable[[Connection], object]] = {
    "options": options,
    "durability": durability.table,
    "warning": durability.warning,
}
"""Name in the JSON object -> what tells its value (anything that JSON can hold) of a connection."""


def query(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """The command `STATUS`.

    Raises:
        FsError: ENOTTY, not the root directory; EOVERFLOW, the answer is too long.
    """
    if request.node != abi.ROOT_ID:
        raise FsError(errno.ENOTTY)
    text = json.dumps({name: value_of(connection) for name, value_of in FACTS.items()}, separators=(",", ":")).encode()
    if len(text) > SIZE:
        raise FsError(errno.EOVERFLOW, "the status does not fit into its answer")
    return text

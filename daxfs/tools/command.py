"""Send a command of daxfs's own, an ioctl(2), to the daemon of a mount.

The module of `daxfs.fuse.kernel` that answers a command has its number and its question. `mountpoints` opens the root
directory, through which commands about the mount as a whole go.
"""

from __future__ import annotations

import fcntl
import json
from typing import Any

_SIZE_SHIFT, _SIZE_MASK = 16, 0x3FFF  # include/uapi/asm-generic/ioctl.h


def send(descriptor: int, number: int, question: bytes = b"") -> bytes:
    """Send a command, and wait for its answer.

    Args:
        descriptor: an open file or directory of the mount.
        number: of the command; it tells how long the argument is.
        question: what the argument begins with; zeros follow.

    Returns:
        The argument as the daemon has left it.

    Raises:
        OSError: the daemon refuses; ENOTTY: the session has no such command, or this is no mount of daxfs; EINTR: a
            signal has ended the request early.
    """
    argument = bytearray(question.ljust(number >> _SIZE_SHIFT & _SIZE_MASK, b"\0"))
    fcntl.ioctl(descriptor, number, argument)  # the module passes on long arguments only if it may change them
    return bytes(argument)


def ask(descriptor: int, number: int, question: bytes = b"") -> Any:
    """Send a command whose answer is JSON, and return what that says. Raises as `send`."""
    return json.loads(send(descriptor, number, question).rstrip(b"\0"))

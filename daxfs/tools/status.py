"""What a mount tells of itself: the question behind ``daxfs info MOUNTPOINT`` (`daxfs.fuse.kernel.status`)."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from daxfs.fuse.kernel.status import SIZE, STATUS


def status(mountpoint: str) -> dict[str, Any]:
    """The facts by name; empty if the mount does not tell them.

    A daemon that ended, a session without ioctls (session=pyfuse3), and a caller who may not open the root directory
    get no facts: what lies in the pool can be shown without them.
    """
    answer = bytearray(SIZE)
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, STATUS, answer)
        finally:
            os.close(descriptor)
        found = json.loads(answer.rstrip(b"\0"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

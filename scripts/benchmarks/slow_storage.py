"""``daxfs mount -f`` with a storage that is as slow as one says: ``slow_storage.py POOL MOUNTPOINT MICROSECONDS GATE``.

In this machine storage is a file in memory, or on a disk of the host that nobody knows. So each call on it takes a
given time longer; the calls are those of the daemon, at most `storagequeue.THREADS` at a time. While the file GATE
exists no call ends.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from daxfs.pmem.storage import Storage
from daxfs.tools import mount

GATE_SECONDS = 0.01


def delayed(call: Callable[..., Any], seconds: float, gate: str = "") -> Callable[..., Any]:
    """Return a call that takes ``seconds`` longer, and does not end while ``gate`` exists."""

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        while gate and os.path.exists(gate):
            time.sleep(GATE_SECONDS)
        return call(*arguments)

    return slow


def main(pool: str, mountpoint: str, microseconds: str, gate: str) -> None:
    """Mount, and serve until the mount is gone."""
    seconds = int(microseconds) / 1e6
    Storage.read = delayed(Storage.read, seconds, gate)  # type: ignore[method-assign]
    Storage.write = delayed(Storage.write, seconds, gate)  # type: ignore[method-assign]
    mount.mount(pool, mountpoint, (), foreground=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

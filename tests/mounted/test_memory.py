"""A daemon whose memory runs out: requests that need more get ENOMEM, the mount stays, or ends; it never spins."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mount_rig import COMMAND, SESSIONS, mountpoint

from daxfs.fuse import mounts
from support import HANG_SECONDS, fsck

Pool = Callable[..., Path]
PIECE = 4096
SPAN = 1 << 20


def size_of(pid: int) -> int:
    """Bytes of address space that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))


def outcome(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("spare", [0, 1 << 20, 3 << 19])
def test_a_gather_that_memory_is_too_little_for(pool: Pool, session: str, spare: int) -> None:
    """libfuse needs memory of its own for large requests; where that is too little the session ends, but at once."""
    path = pool("-b", "4096")
    with mountpoint() as place, tempfile.TemporaryFile("w+") as said:
        command = [*COMMAND, "mount", "-f", path, place, "-o", f"session={session}"]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)
        try:
            while mounts.top_mount(str(place)) is None:
                assert daemon.poll() is None
                time.sleep(0.01)
            with open(place / "file", "w+b", buffering=0) as file:
                for offset in range(0, 2 * SPAN, 2 * PIECE):
                    os.pwrite(file.fileno(), b"x" * PIECE, offset)
                os.fsync(file.fileno())
                limit = size_of(daemon.pid) + spare
                resource.prlimit(daemon.pid, resource.RLIMIT_AS, (limit, limit))
                found = {outcome(lambda at=at: os.pread(file.fileno(), SPAN, at)) for at in (0, PIECE, SPAN) * 5}
                if session == "kernel":
                    assert found <= {0, errno.ENOMEM}
                    assert os.pread(file.fileno(), PIECE, 0) == b"x" * PIECE
                    assert daemon.poll() is None
                    os.fsync(file.fileno())
            daemon.terminate()
            code = daemon.wait(HANG_SECONDS)
            if session == "kernel":
                assert code == 0
                said.seek(0)
                assert (errno.ENOMEM in found) is ("out of memory" in said.read())
                assert errno.ENOMEM in found or spare
        finally:
            daemon.kill()
            daemon.wait(HANG_SECONDS)
    if code == 0:
        fsck(path)

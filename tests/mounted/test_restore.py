"""``daxfs snapshot restore``: what it refuses, and a computation that is brought back to a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cli_rig import daxfs
from in_memory import tmp_path
from mount_rig import mounted

from daxfs.fs import restoring
from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.opening import open_pool
from support import HANG_SECONDS, fsck

Pool = Callable[..., Path]
__all__ = ["tmp_path"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "SNAPSHOT.md"
WORDS = 40_000


def test_a_tree_is_brought_back_from_the_command_line(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        (mount.place / "file").write_text("first")
        daxfs("snapshot", "create", mount.place, "one")
        (mount.place / "file").write_text("second")
        daxfs("snapshot", "create", mount.place, "two")
        (mount.place / "file").write_text("third")
        assert "in use" in daxfs("snapshot", "restore", path, "one", code=32)
        assert (mount.place / "file").read_text() == "third"
    assert "there is no valid snapshot three" in daxfs("snapshot", "restore", path, "three", code=1)
    assert "would be deleted: two; --force" in daxfs("snapshot", "restore", path, "one", code=1)
    assert "deleted: one, two" in daxfs("snapshot", "restore", path, "one", "--force")
    fsck(path)
    with mounted(path) as mount:
        assert (mount.place / "file").read_text() == "first"
        assert daxfs("snapshot", "list", mount.place) == ""


def test_an_interrupted_restore_is_finished_by_the_same_command(pool: Pool) -> None:
    path = pool()
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("file", b"first")
        fs.create_snapshot(b"one")
        fs.tree.write_bytes("file", b"second")
    with open_pool(path) as opened:
        restoring.begin(opened, b"one")
    assert "run again: daxfs snapshot restore" in daxfs("mount", path, path.parent, code=32)
    assert "restore of one was interrupted" in daxfs("snapshot", "restore", path, "two", code=1)
    daxfs("snapshot", "restore", path, "one")
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("file") == b"first"


def program() -> str:
    """The program in docs/SNAPSHOT.md."""
    text = DOCUMENT.read_text()
    return text.partition("runs this program -->\n```python\n")[2].partition("```\n")[0]


def state_after(steps: int) -> bytes:
    state = np.zeros(WORDS, "u8")
    for step in range(steps):
        state[1:] = state[1:] * 3 + step
    state[0] = steps
    return state.tobytes()


def test_a_computation_that_was_killed_goes_on_from_a_checkpoint(pool: Pool) -> None:
    path = pool()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with mounted(path) as mount:
        (mount.place / "state").write_bytes(bytes(8 * WORDS))
        running = subprocess.Popen([sys.executable, "-c", program(), mount.place, "1000000"], env=environment)
        limit = time.monotonic() + HANG_SECONDS
        while "step-200" not in daxfs("snapshot", "list", mount.place):
            assert time.monotonic() < limit
            assert running.poll() is None
        running.kill()
        running.wait(HANG_SECONDS)
    daxfs("snapshot", "restore", path, "step-200", "--force")
    with mounted(path) as mount:
        assert (mount.place / "state").read_bytes() == state_after(200)
        subprocess.run([sys.executable, "-c", program(), mount.place, "250"], env=environment, check=True, timeout=60)
        assert (mount.place / "state").read_bytes() == state_after(250)
        assert "step-100" in daxfs("snapshot", "list", mount.place)

"""Workloads on pools with storage: files go down and come up between the operations of `crash_rig`.

The record and the images are of both members, one after the other (`tiered_recorder`): what a power cut leaves of
writes to storage that no synchronisation and fence follow is as undecided as stores to memory. daxfs recovers an image
as a pool with storage; e2fsck and the kernel see one file.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import tier_rig
from crash_rig import NEEDS, OPERATIONS, SINGLE, Operation, Run, littered, plant
from range_rig import PUNCH
from tiered_recorder import SplitPool, TieredPool, opened
from tree_rig import QUIET

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import finish
from daxfs.pmem.memory import MemoryPool
from explorer.disk import Disk, UndoPool
from support import run

GROUP = 1 << 20
MEMORY, STORAGE = 8 * GROUP, 4 * GROUP
TIERED: dict[str, tuple[str, ...]] = {
    "tiered": ("-b", "4096", "-g", str(GROUP >> 12), "-N", "64", "-m", "0", "-J", "size=4"),
}
TIER_OPERATIONS: dict[str, Operation] = {
    "demote": lambda w: [w.fs.demote(w.ino(path)) for path in ("big", "f")],
    "promote": lambda w: w.fs.promote(w.ino("big")),
    "demote once more": lambda w: w.fs.demote(w.ino("big")),
    "demote others": lambda w: [w.fs.demote(w.ino(path)) for path in ("g", "d/x")],
    "keep tiers": lambda w: finish(w.fs.steps.keeping_tiers()),
    "overwrite demoted": lambda w: w.write("big", 5000, 2000),
    "append to demoted": lambda w: w.write("f", 3000, 1700),
    "truncate demoted": lambda w: w.truncate("big", 2222),
    "punch demoted": lambda w: w.fallocate("big", PUNCH, 1500, 6002),
    "copy demoted": lambda w: w.copy("big", 0, "g", 0, 8192),
    "unlink demoted": lambda w: w.unlink("big"),
}
TIER_SINGLE = [*TIER_OPERATIONS, *(name for name in SINGLE if "snapshot" not in name)]
TIER_NEEDS = {
    **NEEDS,
    **dict.fromkeys([name for name in TIER_OPERATIONS if "demoted" in name or name == "promote"], ("demote",)),
    "demote once more": ("demote", "promote"),
}


@cache
def tiered_image(name: str) -> bytes:
    """Return both members of a pool with the tree of `crash_rig.plant`, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        made = tier_rig.make(Path(folder), MEMORY, STORAGE, TIERED[name])
        with FileSystem.open(made.pool, QUIET) as fs:
            plant(fs)
        whole = made.join()
        run("debugfs", "-w", "-R", "fallocate /unwritten 0 7", whole)
        run("debugfs", "-w", "-R", "set_inode_field /unwritten size 6000", whole)
        run("e2fsck", "-fy", whole, code=0)
        return littered(whole.read_bytes())


class TieredUndoPool(SplitPool, UndoPool):
    """A pool with storage on a disk; each store to its memory can be taken back, and storage is only read."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.split(bytes(disk.content), MEMORY, _refuse)


def _refuse(event: object) -> None:
    raise AssertionError(f"recovery writes to storage: {event}")


def recording(content: bytes | bytearray) -> TieredPool:
    """Return a recording pool with storage."""
    return TieredPool(content, MEMORY)


class TieredRun(Run):
    """A workload on a pool with storage."""

    recorder = staticmethod(recording)
    operations = {**OPERATIONS, **TIER_OPERATIONS}
    needs = TIER_NEEDS

    def mount(self) -> FileSystem:
        return opened(self.pool, QUIET)


def mounted(pool: MemoryPool) -> FileSystem:
    """Mount an image."""
    return opened(pool, QUIET)

"""The order of stores and fences at the ends of a mount, and the superblock that waits while the log goes round."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pytest
from crash_rig import FORMATS, QUIET, Workbench, image, recover
from recorder import Event, Fence, RecordingPool, Store

from daxfs.ext4.features import Incompat
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs import mounting
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import SetAttributes
from daxfs.journal.area import LogArea
from daxfs.journal.view import PoolView
from support import fsck, write_image

FLAGS, CHECKSUM = 0x60, 0x3FC
"""Where s_feature_incompat and s_checksum are in the superblock."""


class Watched:
    """A file system on a recording pool, and what kinds of stores it makes."""

    def __init__(self, name: str) -> None:
        self.pool = RecordingPool(bytearray(image(name)))
        sb = mounting.read_superblock(self.pool)
        geometry = Geometry.of(sb)
        self.size = geometry.block_size
        self.area: LogArea = mounting.log_area(PoolView(self.pool, geometry), sb)
        self.fs = FileSystem.open(self.pool, QUIET)

    def kind(self, event: Event) -> str:
        """What a store is of, "fence", or nothing."""
        if isinstance(event, Fence):
            return "fence"
        if not isinstance(event, Store):
            return ""
        within = event.offset - SUPERBLOCK_OFFSET
        if within == FLAGS:
            raised = int.from_bytes(event.data, "little") & Incompat.needs_recovery
            return "flag raised" if raised else "flag lowered"
        if within == CHECKSUM:
            return "checksum"
        if within <= 0 < within + len(event.data):
            return "superblock"
        block = event.offset // self.size
        if block == self.area.physical(0):
            return "tail"
        return "log" if self.area.holds(block) else "home"

    def order(self, events: Iterable[Event]) -> list[str]:
        """The kinds in order, runs of one kind as one."""
        return [kind for kind, _ in groupby(filter(None, map(self.kind, events)))]


COMMIT = ["log", "fence", "log", "fence"]
"""All of a transaction but the number in its commit record, that number."""


@pytest.mark.parametrize("name", FORMATS)
def test_the_order_of_an_unmount(name: str) -> None:
    """All is at home before the log is empty; then its blocks lose their magic, and the superblock says so."""
    watched = Watched(name)
    fs = watched.fs
    # Past the blocks that the pool's last mount has logged: its numbers come again, and a commit record that falls on
    # an old block of its own number is stored with one fence more.
    for earlier in (b"before", b"between"):
        fs.mkdir(ROOT_INO, earlier, 0o755)
        fs.sync()
    fs.mkdir(ROOT_INO, b"made", 0o755)
    start = len(watched.pool.events)
    fs.close()
    assert watched.order(watched.pool.events[start:]) == [
        *COMMIT, "home",
        *COMMIT, "superblock", "fence",
        "tail", "fence",
        "log", "fence",
        "flag lowered", "checksum", "fence",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_order_of_a_mount(name: str) -> None:
    """The flag that makes the next mount look into the log is at home before anything is in the log."""
    watched = Watched(name)
    order = watched.order(watched.pool.events)
    assert order[:5] == ["flag raised", "checksum", "fence", "tail", "fence"]
    assert order[-4:] == COMMIT
    assert set(order[5:]) == {"log", "fence"}


@pytest.mark.parametrize("name", ["1k", "no-csum", "no-extents"])
def test_an_orphan_held_while_the_log_goes_round(tmp_path: Path, name: str) -> None:
    """The superblock names it, and goes home before the transactions that have it are given up.

    Nothing else changes the superblock meanwhile, so that what the log loses is lost.
    """
    watched = Watched(name)
    fs, pool = watched.fs, watched.pool
    bench = Workbench(fs)
    bench.hold("big")
    fs.sync()
    ino = fs.tree.resolve("f")
    turns = 0
    while not fs.volume.journal.stats.tail_moves:
        start = len(pool.events)
        fs.setattr(ino, SetAttributes(mode=0o600 + turns % 2))
        fs.sync()
        turns += 1
    for mode in (0o640, 0o644):
        fs.setattr(ino, SetAttributes(mode=mode))
        fs.sync()
    assert turns > 100
    path = tmp_path / "pool"
    seen = 0
    for left in pool.crash_images(random.Random(1), start=start, prefixes=2, subsets=3):
        found = recover(left.image)
        assert b"big" not in found.facts
        write_image(path, left.image)
        fsck(path)
        seen += 1
    assert seen > 10

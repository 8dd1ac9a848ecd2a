"""Power cuts while a file system grows: each leaves one of the sizes on the way, and all files; three recoveries agree.

The pools have old bytes past the end of their file system, as a file that was shrunk once has.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from crash_rig import (
    noise,
    recover_by_e2fsck,
    recover_by_kernel,
    steady_clock,
    take_picture,
    torn_descriptor,
    torn_superblock,
    unlike,
)
from explorer.disk import Disk, UndoPool
from explorer.sweep import sweep
from recorder import Event, Fence, RecordingPool, Store
from tree_rig import QUIET

from daxfs.errors import Corrupt
from daxfs.fs.filesystem import FileSystem
from support import fsck, mke2fs, write_image

FORMATS = {
    "reserved blocks": ("-E", "resize=40000"),
    "meta_bg": ("-O", "^resize_inode"),
    "reserved blocks run out": ("-E", "resize=8000"),
    "no checksums": ("-O", "^metadata_csum,^64bit", "-E", "resize=40000"),
    "no flexible groups": ("-O", "^flex_bg", "-E", "resize=40000"),
}
BEFORE, AFTER = 2700, 9000
"""Blocks of 1 KiB. A group has 256 of them: the growth begins with a part of one and crosses blocks of descriptors."""
POOL = (AFTER + 100) << 10


class Growth(NamedTuple):
    """What was recorded. ``sizes``: each size in blocks, and the number of events after which it is durable."""

    base: bytes
    events: list[Event]
    sizes: list[tuple[int, int]]


@cache
def image(name: str) -> bytes:
    """A small file system with some files, at the beginning of a pool of old bytes."""
    with TemporaryDirectory() as folder:
        options = ("-b", "1024", "-g", "256", "-N", "128", "-J", "size=1", *FORMATS[name])
        path = mke2fs(Path(folder) / "pool", *options, size=f"{BEFORE}K")
        with FileSystem.open(path, QUIET) as fs:
            fs.tree.mkdir("d")
            for number in range(8):
                fs.tree.write_bytes(f"d/{number}", noise(3000 * number, number))
        content = path.read_bytes()
    return content + noise(POOL - len(content), 1)


def grown(name: str) -> Growth:
    """Grow it in steps, and make files in the new groups before the power fails."""
    pool = RecordingPool(bytearray(image(name)))
    with steady_clock():
        fs = FileSystem.open(pool, QUIET)
        pool.restart()
        sizes = [(BEFORE, 0)]
        steps = fs.steps.resize(AFTER)
        while next(steps, "ended") is None:
            if fs.volume.geometry.blocks_count > sizes[-1][0]:
                sizes.append((fs.volume.geometry.blocks_count, len(pool.events)))
        fs.tree.mkdir("new")
        for number in range(40):
            fs.tree.write_bytes(f"new/{number}", noise(9000, number))
        fs.sync()
    return Growth(pool.base, list(pool.events), sizes)


def check_cuts(name: str, folder: Path, *, cuts: int, depth: int, every: int) -> int:
    """Look at what some cuts leave, one image in ``every`` by three recoveries; returns how many were looked at."""
    growth, rng = grown(name), random.Random(name)
    assert len(growth.sizes) > 3
    disk, file = Disk(growth.base, 1024), folder / "cut"
    fences = [at for at, event in enumerate(growth.events) if isinstance(event, Fence)]
    chosen = set(rng.sample(fences, min(cuts, len(fences))))
    looked = 0
    for shown in sweep(growth.events, disk, rng, alone=depth, subsets=depth):
        if shown.position not in chosen:
            continue
        looked += 1
        where = f"cut at {shown.position} of {len(growth.events)}, {shown.label}"
        crashed = bytes(disk.content)
        allowed = {size for size, _ in growth.sizes}
        durable = max(size for size, position in growth.sizes if position <= shown.position)
        try:
            with FileSystem.open(UndoPool(disk), QUIET) as fs:
                picture, size = take_picture(fs), fs.volume.geometry.blocks_count
                assert size in allowed, where
                assert size >= durable, where
                assert all(fs.tree.read_bytes(f"d/{each}") == noise(3000 * each, each) for each in range(8)), where
                fs.check()
        except Corrupt as error:
            raise AssertionError(f"{where}: {error}") from error
        write_image(file, disk.content)
        fsck(file)
        if looked % every == 0 and not torn_superblock(crashed):
            assert not unlike(recover_by_e2fsck(crashed, file), picture), f"{where}: e2fsck"
            if not torn_descriptor(crashed):
                assert not unlike(recover_by_kernel(crashed, file), picture), f"{where}: the kernel"
    return looked


@pytest.mark.parametrize("name", ["reserved blocks run out", "no checksums"])
def test_a_power_cut_leaves_a_size_on_the_way(name: str, tmp_path: Path) -> None:
    assert check_cuts(name, tmp_path, cuts=4, depth=1, every=8) > 8


def torn(old: bytes, new: bytes, words: int) -> bytes:
    """A superblock of which the words whose bits are set in ``words`` are new."""
    return b"".join((new if words >> at & 1 else old)[8 * at : 8 * at + 8] for at in range(len(old) // 8))


@pytest.mark.parametrize("name", FORMATS)
def test_a_superblock_that_is_torn_between_two_sizes(name: str) -> None:
    """Whichever of its words are new, the log mends it."""
    growth, rng = grown(name), random.Random(name)
    place = slice(1024, 2048)
    stores = [at for at, event in enumerate(growth.events) if isinstance(event, Store) and event.offset == 1024]
    at = stores[-1]
    disk = Disk(growth.base, 1024)
    for event in growth.events[:at]:
        if isinstance(event, Store):
            disk.put(event.offset, event.data)
    store = growth.events[at]
    assert isinstance(store, Store)
    old = bytes(disk.content[place])
    lines = [0xFF << 8 * line for line in range(16)]
    for words in (*lines, *(rng.getrandbits(128) for _ in range(20))):
        mark = disk.mark()
        disk.put(1024, torn(old, store.data[:1024], words))
        with FileSystem.open(UndoPool(disk), QUIET) as fs:
            assert fs.volume.geometry.blocks_count == AFTER
            assert fs.tree.read_bytes("d/7") == noise(21_000, 7)
        disk.rewind(mark)


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_more_power_cuts(name: str, tmp_path: Path) -> None:
    assert check_cuts(name, tmp_path, cuts=1000, depth=4, every=20) > 200

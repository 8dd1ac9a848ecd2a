"""Power cuts while a file system shrinks: each leaves the old size or the new one, and all files; recoveries agree."""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
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
from daxfs.ext4.superblock import EXT4_ERROR_FS
from daxfs.fs.filesystem import FileSystem
from daxfs.structures import shrinkage
from support import fsck, mke2fs, run, write_image

FORMATS = {
    "default": ("-E", "resize=40000"),
    "meta_bg": ("-O", "^resize_inode"),
    "no checksums": ("-O", "^metadata_csum,^64bit", "-E", "resize=40000"),
    "no flexible groups": ("-O", "^flex_bg", "-E", "resize=40000"),
}
JOURNAL = {"journal": (), "journal, no checksums": ("-O", "^metadata_csum,^64bit")}
"""Formats of pools that were never small, so that the journal lies in the middle and moves."""
NUMBERS = {
    "numbers": ("-E", "resize=40000"),
    "numbers, orphan file": ("-O", "orphan_file", "-E", "resize=40000"),
    "numbers, no checksums": ("-O", "^metadata_csum,^64bit", "-E", "resize=40000"),
    "numbers, no extents": ("-O", "^metadata_csum,^64bit,^extent", "-E", "resize=40000"),
}
"""Formats of pools with directories in the groups that go, whose inodes get other numbers, in use or not."""
SMALL, BEFORE, AFTER = 2700, 8960, 5000
"""Blocks of 1 KiB. A group has 256 of them: the shrink ends in the middle of one, and gives a descriptor block up."""
DESCRIPTORS = range(2048, 4096)
"""The bytes of the group descriptors of what is left."""
FILES = 8
FOLDERS = 24


class Shrink(NamedTuple):
    """What was recorded. ``cut``: after how many events the pool's file may be cut."""

    base: bytes
    events: list[Event]
    cut: int


class Recorded(RecordingPool):
    """A recording pool that notes when its file would be cut."""

    cut = 0

    def shorten(self, length: int) -> None:
        assert length == AFTER << 10
        self.cut = len(self.events)


@cache
def image(name: str) -> bytes:
    """A file system that was small once, with files in its second half."""
    with TemporaryDirectory() as folder:
        options = ("-b", "1024", "-g", "256", "-N", "128", "-J", "size=1", *(FORMATS | JOURNAL | NUMBERS)[name])
        path = mke2fs(Path(folder) / "pool", *options, size=f"{BEFORE if name in JOURNAL else SMALL}K")
        if name not in JOURNAL:
            run("truncate", "-s", f"{BEFORE}K", path)
            run("resize2fs", "-f", path)
        with FileSystem.open(path, QUIET) as fs:
            fs.tree.write_bytes("before", noise(4_500_000, 0))
            for number in range(FILES):
                fs.tree.write_bytes(f"{number}", noise(9000 * number, number))
            if name in NUMBERS:
                make_folders(fs)
            fs.tree.unlink("before")
        return path.read_bytes()


def make_folders(fs: FileSystem) -> None:
    """Directories in all groups, each with a subdirectory, a file, and a second name of the file in another one."""
    for number in range(FOLDERS):
        fs.tree.mkdir(f"d{number}")
        fs.tree.mkdir(f"d{number}/sub")
        fs.tree.write_bytes(f"d{number}/file", noise(100 * number, number))
        ino, other = fs.tree.stat(f"d{number}/file").ino, fs.tree.stat(f"d{number // 2}").ino
        fs.link(ino, other, b"link %d" % number)


def expect_folders(fs: FileSystem, where: str) -> None:
    """They are all there, but for the names that were removed, and nothing else has the old numbers."""
    for number in range(FOLDERS):
        inside = {name for name in fs.tree.listdir(f"d{number}") if not name.startswith(b"link")}
        assert inside == ({b"file"} if number == 0 else {b"file", b"sub"}), where
        assert fs.tree.read_bytes(f"d{number}/file") == noise(100 * number, number), where
        assert fs.tree.stat(f"d{number}/file").ino == fs.tree.stat(f"d{number // 2}/link {number}").ino, where
        if number:
            parent = fs.lookup(fs.tree.stat(f"d{number}/sub").ino, b"..").ino
            assert parent == fs.tree.stat(f"d{number}").ino, where
    assert fs.statistics().nameless == 0, f"{where}: orphans are left"


def in_use(fs: FileSystem) -> list[int]:
    """Open a file that has lost its names, one that never had any, and a directory that was removed; the rest is known
    to the kernel. Return what the kernel knows of what will get other numbers.
    """
    past = list(shrinkage.inodes_past(fs.volume.view, AFTER))
    assert len(past) > 20
    for ino in [ino for ino in past if fs.getattr(ino).mode >> 12 == 4][:6]:
        fs.write(fs.tmpfile(ino, 0o600)[0], 0, noise(3000, 1))
    fs.opendir(fs.tree.stat("d0/sub").ino)
    fs.tree.rmdir("d0/sub")
    for ino in past:
        fs.pin(fs.getattr(ino))
    fs.sync()
    return past


def shrunk(name: str) -> Shrink:
    """Shrink it, and make files where groups had their metadata before the power fails."""
    pool = Recorded(bytearray(image(name)))
    with steady_clock():
        fs = FileSystem.open(pool, QUIET)
        past = in_use(fs) if name in NUMBERS else []
        pool.restart()
        fs.resize(AFTER)
        assert fs.size == AFTER
        assert fs.pins.aliases.numbers == set(past)
        for number in range(30):
            fs.tree.write_bytes(f"new {number}", noise(30_000, number))
        fs.sync()
    return Shrink(pool.base, list(pool.events), pool.cut)


def run_code(*command: str | Path) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def shown_size(content: bytes) -> int:
    """The blocks that the superblock at home shows, whatever the log holds."""
    return int.from_bytes(content[1028:1032], "little")


def check_cuts(name: str, folder: Path, *, cuts: int, depth: int, every: int) -> set[int]:
    """Look at what some cuts leave, one image in ``every`` by three recoveries; return the sizes that were found."""
    shrink, rng = shrunk(name), random.Random(name)
    disk, file = Disk(shrink.base, 1024), folder / "cut"
    fences = [at for at, event in enumerate(shrink.events) if isinstance(event, Fence)]
    chosen = set(rng.sample(fences, min(cuts, len(fences))))
    looked, found = 0, set[int]()
    for shown in sweep(shrink.events, disk, rng, alone=depth, subsets=depth):
        if shown.position not in chosen:
            continue
        looked += 1
        where = f"cut at {shown.position} of {len(shrink.events)}, {shown.label}"
        crashed = bytes(disk.content)
        if shown.position >= shrink.cut:
            crashed = crashed[: AFTER << 10]
        try:
            with FileSystem.open(UndoPool(disk), QUIET) as fs:
                picture = take_picture(fs)
                assert fs.size in (BEFORE, AFTER), where
                found_size = fs.size
                found.add(found_size)
                marked = bool(fs.volume.view.superblock().s_state & EXT4_ERROR_FS)
                assert not marked or name in JOURNAL, where
                assert fs.size == AFTER or shown.position < shrink.cut, where
                if name in NUMBERS:
                    expect_folders(fs, where)
                assert all(fs.tree.read_bytes(f"{each}") == noise(9000 * each, each) for each in range(FILES)), where
                fs.check()
        except Corrupt as error:
            raise AssertionError(f"{where}: {error}") from error
        write_image(file, crashed)
        with FileSystem.open(file, QUIET):
            pass
        if name in JOURNAL and run_code("e2fsck", "-p", file) == 1:  # blocks of one place of the log belonged to nobody
            assert "clean" in run("e2fsck", "-p", file)
        fsck(file)
        if looked % every == 0 and not torn_superblock(crashed):
            assert not unlike(recover_by_e2fsck(crashed, file), picture), f"{where}: e2fsck"
            if not torn_descriptor(crashed) and not marked:
                if shown_size(crashed) == BEFORE and found_size == AFTER:  # the kernel counts groups before its replay
                    with suppress(AssertionError):
                        recover_by_kernel(crashed, file)
                    crashed = file.read_bytes()
                assert not unlike(recover_by_kernel(crashed, file), picture), f"{where}: the kernel"
    return found


@pytest.mark.parametrize("name", ["default", "no checksums"])
def test_the_new_size_is_durable_before_descriptors_go_home(name: str) -> None:
    """e2fsck looks at both before it replays the log: new descriptors in the larger file system look bad to it."""
    shrink = shrunk(name)
    events = shrink.events[: shrink.cut]
    last = max(at for at, event in enumerate(events) if isinstance(event, Store) and event.offset in DESCRIPTORS)
    content, durable = bytearray(shrink.base[: DESCRIPTORS.start]), BEFORE
    for event in events[:last]:
        if isinstance(event, Store) and event.offset + len(event.data) <= DESCRIPTORS.start:
            content[event.offset : event.offset + len(event.data)] = event.data
        elif isinstance(event, Fence):
            durable = shown_size(bytes(content))
    assert durable == AFTER


@pytest.mark.parametrize("name", ["default", "journal", "numbers, orphan file", "numbers, no extents"])
def test_a_power_cut_leaves_one_of_two_sizes(name: str, tmp_path: Path) -> None:
    assert check_cuts(name, tmp_path, cuts=14, depth=1, every=12) == {BEFORE, AFTER}


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS | JOURNAL | NUMBERS)
def test_more_power_cuts(name: str, tmp_path: Path) -> None:
    assert check_cuts(name, tmp_path, cuts=1000, depth=4, every=20) == {BEFORE, AFTER}

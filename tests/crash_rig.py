"""Power cuts of a whole file system: short workloads, what each image may hold, and recovery.

A `Run` does a workload on a recording pool and takes a picture of the tree after each operation. `Run.judge` then says
whether what a cut left is one of these pictures, not older than the last sync; see there for what it asks of bytes.
"""

from __future__ import annotations

import functools
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import count, pairwise
from operator import ne
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from kernel_rig import kernel_mount
from range_rig import COLLAPSE, INSERT, KEEP_SIZE, PUNCH, ZERO
from recorder import CrashImage, RecordingPool
from relocation_rig import owned, place_of, used_places
from tree_rig import QUIET, Facts, walk

from daxfs.errors import FsError
from daxfs.ext4 import jbd2
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.hash import dirhash
from daxfs.ext4.inode import EXT4_JOURNAL_DATA_FL
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import appends, clock, imaging
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.mounting import read_superblock
from daxfs.fs.types import Options, RenameFlags, SetAttributes
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import blocks, dirblocks, groups, htree, inodes
from support import fsck, mke2fs, run, tool, write_image

WORD = 8
EPOCH_NS = 1_700_000_000 * 10**9
TICK_NS = 4_000_000
READ_ONLY = Options(read_only=True, atime="noatime")

FORMATS: dict[str, tuple[str, ...]] = {
    "1k": ("-b", "1024", "-O", "^resize_inode"),
    "no-csum": ("-b", "1024", "-O", "^metadata_csum,^64bit,^resize_inode"),
    "orphan-file": ("-b", "1024", "-O", "orphan_file,^resize_inode"),
    "no-extents": ("-b", "1024", "-O", "^extent,^64bit,^resize_inode", "-I", "128"),
    "4k": ("-b", "4096", "-O", "^resize_inode"),
}
PLAIN = {"no-journal": ("-b", "1024", "-O", "^has_journal,^metadata_csum,^64bit,^resize_inode")}
"""Formats whose commits are not atomic; without checksums, which a cut would tear and e2fsck 1.47 can't always mend."""


@contextmanager
def steady_clock() -> Iterator[None]:
    """The clock begins anew and moves a tick with each question: the same workload makes the same stores."""
    ticks = count(EPOCH_NS, TICK_NS)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(clock, "now", lambda: next(ticks))
        yield


def noise(size: int, seed: int) -> bytes:
    """Bytes that no other seed gives, none of them in long runs of zeros."""
    return random.Random(seed).randbytes(size)


@cache
def image(name: str) -> bytes:
    """A pool with a small tree that every operation finds something in; it was unmounted cleanly."""
    return made({**FORMATS, **PLAIN}[name], journal=name not in PLAIN)


def made(given: tuple[str, ...], *, journal: bool = True) -> bytes:
    """As `image`, of a format with these options of mke2fs."""
    large = "4096" in given
    with tempfile.TemporaryDirectory() as folder:
        options = (*given, "-N", "64", "-m", "0")
        if journal:
            options = (*options, "-J", f"size={4 if large else 1}")
        path = mke2fs(Path(folder) / "pool", *options, size="10M" if large else "2500K")
        with FileSystem.open(path, QUIET) as fs:
            plant(fs)
        if "^extent" not in " ".join(options):
            run("debugfs", "-w", "-R", "fallocate /unwritten 0 7", path)
            run("debugfs", "-w", "-R", "set_inode_field /unwritten size 6000", path)
        run("e2fsck", "-fy", path, code=0)
        return littered(path.read_bytes())


def littered(content: bytes) -> bytes:
    """The pool with old bytes in every free block, so that a block that is not filled is noticed."""
    made = bytearray(content)
    with FileSystem.open(MemoryPool(content), QUIET) as fs:
        size, groups_count = fs.volume.block_size, fs.volume.geometry.groups_count
        for group in range(groups_count):
            for start, count in blocks.free_runs(fs.volume.view, group, 1):
                made[start * size : (start + count) * size] = noise(count * size, start)
    return bytes(made)


def plant(fs: FileSystem) -> None:
    """Make the tree that a workload begins with."""
    tree = fs.tree
    for number, (name, size) in enumerate((("f", 3000), ("g", 700), ("d/x", 2048), ("big", 9000), ("unwritten", 0))):
        if "/" in name:
            tree.mkdir(os.path.dirname(name))
        tree.write_bytes(name, noise(size, number))
    file = fs.open_file(tree.resolve("big"), os.O_RDWR)
    fs.write(file, 20_000, noise(3000, 9))
    fs.release(file)
    tree.mkdir("e")
    tree.mkdir("d/sub")
    crowd(fs)
    tree.symlink("target", "l")
    fs.link(tree.resolve("f"), ROOT_INO, b"h")
    fs.setxattr(tree.resolve("g"), b"user.small", b"1")
    fs.setxattr(tree.resolve("g"), b"user.large", noise(600, 10))


def crowd(fs: FileSystem) -> None:
    """The directory ``i`` has an index, and its next name splits a leaf."""
    fs.tree.mkdir("i")
    ino = fs.tree.resolve("i")
    file, made = fs.create(ino, crowd_name(0), 0o600)
    fs.release(file)
    for number in count(1):
        if splits(fs, ino, crowd_name(number)):
            return
        fs.link(made.ino, ino, crowd_name(number))


def crowd_name(number: int) -> bytes:
    return b"%03d" % number + b"i" * 247


def splits(fs: FileSystem, ino: int, name: bytes) -> bool:
    """Whether a directory has an index, and no room for the name in the leaf that it belongs to."""
    view = fs.volume.view
    directory = inodes.read(view, ino)
    if not dirblocks.is_indexed(view, directory):
        return False
    number, words, version = htree.root(view, directory)
    major, _ = dirhash(name, version, view.geometry.hash_seed)
    _, leaf = htree.descend(view, directory, number, words, major)
    content = dirblocks.entries_block(view, directory, leaf)
    limit = dirblocks.limit_of(view.geometry)
    return dirblocks.find_room(directory, leaf, content, limit, len(name) + 11 & ~3)[0] < 0


# Operations


class Workbench:
    """An open file system and what a workload holds open in it."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.opened: list[OpenFile] = []
        self.serial = 100

    def ino(self, path: str) -> int:
        return self.fs.tree.resolve(path, follow=False)

    def bytes(self, size: int) -> bytes:
        """New bytes each time."""
        self.serial += 1
        return noise(size, self.serial)

    def write(self, path: str, offset: int, size: int) -> None:
        self.write_to(self.fs.open_file(self.ino(path), os.O_RDWR), offset, size, release=True)

    def write_to(self, file: OpenFile, offset: int, size: int, *, release: bool = False) -> None:
        content = self.bytes(size)
        try:
            done = self.fs.write(file, offset, content)
            assert done == size, f"{done} of {size} bytes written"
        finally:
            if release:
                self.fs.release(file)

    def write_atomically(self, path: str, offset: int, size: int, start: bytes = b"") -> None:
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        try:
            content = (start + self.bytes(size))[:size]
            assert self.fs.write(file, offset, content, atomic=True) == size
        finally:
            self.fs.release(file)

    def write_batch(self, path: str, *writes: tuple[int, int], commit: bool = True) -> None:
        """A batch of writes (offset, size)."""
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        try:
            batch = self.fs.batch(file)
            for offset, size in writes:
                batch.write(offset, self.bytes(size))
            if commit:
                batch.commit()
        finally:
            self.fs.release(file)

    def journal(self, path: str, *, on: bool) -> None:
        """chattr +j or -j."""
        ino = self.ino(path)
        others = self.fs.get_flags(ino) & ~EXT4_JOURNAL_DATA_FL
        self.fs.set_flags(ino, others | on * EXT4_JOURNAL_DATA_FL)

    def write_journaled(self, path: str, offset: int, size: int) -> None:
        """Write to a file with chattr +j."""
        if not self.fs.get_flags(self.ino(path)) & EXT4_JOURNAL_DATA_FL:
            self.journal(path, on=True)
        self.write(path, offset, size)

    def new(self, path: str, size: int) -> None:
        file, _ = self.fs.create(*self.fs.tree.parent(path), 0o644)
        self.write_to(file, 0, size, release=True)

    def truncate(self, path: str, size: int) -> None:
        self.fs.setattr(self.ino(path), SetAttributes(size=size))

    def unlink(self, path: str) -> None:
        self.fs.unlink(*self.fs.tree.parent(path))

    def hold(self, path: str) -> None:
        """Unlink it while it is open."""
        self.opened.append(self.fs.open_file(self.ino(path), os.O_RDWR))
        self.unlink(path)

    def begin_window(self) -> None:
        """Have an open file that was appended and synchronised so often that it has blocks past EOF for this."""
        self.append_durably()
        file, volume = self.opened[-1], self.fs.volume
        assert file.node.window > file.size or volume.tiers or not inodes.read(volume.view, file.ino).has_extents

    def append_durably(self) -> None:
        """Append to a new file, which stays open, so often that it gets a window if it can have one."""
        file, _ = self.fs.create(ROOT_INO, b"log", 0o644)
        self.opened.append(file)
        for _ in range(appends.ENOUGH + 1):
            self.append_block()
            self.fs.fsync(file.ino)

    def append_block(self) -> None:
        """Append a block to the file that was opened last."""
        file = self.opened[-1]
        self.write_to(file, file.size, self.fs.volume.block_size)

    def nameless(self, size: int) -> None:
        """Open a file without a name and write to it."""
        file, _ = self.fs.tmpfile(ROOT_INO, 0o640)
        self.opened.append(file)
        self.write_to(file, 0, size)

    def let_go(self) -> None:
        while self.opened:
            self.fs.release(self.opened.pop())

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.fs.rename(*self.fs.tree.parent(old), *self.fs.tree.parent(new), flags)

    def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        try:
            self.fs.fallocate(file, mode, offset, length)
        finally:
            self.fs.release(file)

    def copy(self, source: str, source_offset: int, target: str, offset: int, length: int) -> None:
        files = [self.fs.open_file(self.ino(path), os.O_RDWR) for path in (source, target)]
        try:
            self.fs.copy_range(files[0], source_offset, files[1], offset, length)
        finally:
            for file in files:
                self.fs.release(file)

    def relocate(self, path: str) -> None:
        """Every block of an inode gets another place, unless some must stay: clients use them, or there is no room."""
        self.leave(path, owned(self.fs, self.ino(path)))

    def relocate_map(self, path: str) -> None:
        """As `relocate`, of the blocks of the map itself: each in a step of its own."""
        for number in sorted(owned(self.fs, self.ino(path)) - used_places(self.fs, self.ino(path))):
            self.leave(path, {number})

    def leave(self, path: str, before: set[int]) -> None:
        if not before:
            raise IndexError(path)
        ino = self.ino(path)
        moved = self.fs.vacate(ino, place_of(self.fs, before))
        assert moved.stayed or not before & owned(self.fs, ino)

    def fragment(self, path: str) -> None:
        """The file gets blocks with holes between them, and its map blocks of its own."""
        size = self.fs.volume.block_size
        for block in (8, 10, 12, 14, 16, 18):
            self.write(path, block * size, size)

    def xattr(self, path: str, name: bytes, size: int) -> None:
        self.fs.setxattr(self.ino(path), name, self.bytes(size))

    def snapshot(self) -> None:
        """One more snapshot."""
        self.fs.create_snapshot(b"s%d" % len(self.fs.list_snapshots()))

    def delete_snapshot(self, at: int) -> None:
        """Delete one of the snapshots, in the order of their making."""
        self.fs.delete_snapshot(self.fs.list_snapshots()[at].name)

    def crowd(self) -> None:
        """The next name in the directory with an index."""
        names = len(self.fs.tree.listdir("i"))
        self.fs.link(self.fs.lookup(self.ino("i"), crowd_name(0)).ino, self.ino("i"), crowd_name(names))

    def fill(self) -> None:
        """A file takes all blocks that are free."""
        file, _ = self.fs.create(ROOT_INO, b"full", 0o644)
        try:
            assert self.fs.write(file, 0, self.bytes(16 << 20)) < 16 << 20
        finally:
            self.fs.release(file)


EXCHANGE = RenameFlags.EXCHANGE
WHITEOUT = RenameFlags.WHITEOUT
Operation = Callable[[Workbench], object]

OPERATIONS: dict[str, Operation] = {
    "create": lambda w: w.fs.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o640),
    "create long": lambda w: w.fs.mknod(w.ino("d"), b"n" * 250, stat.S_IFREG | 0o640),
    "mkfifo": lambda w: w.fs.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o600),
    "mkdir": lambda w: w.fs.mkdir(ROOT_INO, b"newdir", 0o755),
    "trim": lambda w: w.fs.trim(),
    "mkdir below": lambda w: w.fs.mkdir(w.ino("d/sub"), b"x", 0o755),
    "crowd": lambda w: [w.fs.link(w.ino("f"), w.ino("d"), b"%02d" % n + b"c" * 200) for n in range(1)],
    "split leaf": lambda w: w.crowd(),
    "fill": lambda w: w.fill(),
    "write new": lambda w: w.new("written", 2500),
    "write new in d": lambda w: w.new("d/written", 5000),
    "append": lambda w: w.write("f", 3000, 1700),
    "begin window": lambda w: w.begin_window(),
    "append in window": lambda w: w.append_block(),
    "append a byte": lambda w: w.write("g", 700, 1),
    "overwrite": lambda w: w.write("f", 100, 1403),
    "overwrite a word": lambda w: w.write("big", 1000, 8),
    "overwrite moved": lambda w: w.write("big", 5000, 2000),
    "overwrite and append": lambda w: w.write("d/x", 500, 4000),
    "fill a hole": lambda w: w.write("big", 12_345, 3000),
    "write beyond": lambda w: w.write("g", 5001, 333),
    "write unwritten": lambda w: w.write("unwritten", 1500, 700),
    "write unwritten whole": lambda w: w.write("unwritten", 0, 7168),
    "write to unlinked": lambda w: w.write_to(w.opened[-1], 300, 2000),
    "atomic overwrite": lambda w: w.write_atomically("big", 100, 1403),
    "atomic overwrite of a word": lambda w: w.write_atomically("f", 1000, 8),
    "atomic overwrite and append": lambda w: w.write_atomically("d/x", 500, 4000),
    "atomic write to hole and data": lambda w: w.write_atomically("big", 12_345, 9000),
    "atomic write beyond": lambda w: w.write_atomically("g", 5001, 333),
    "atomic write unwritten": lambda w: w.write_atomically("unwritten", 1500, 7000),
    "batch": lambda w: w.write_batch("big", (100, 1403), (5000, 2000), (5500, 10), (21_000, 500)),
    "batch in a block": lambda w: w.write_batch("f", (1000, 8), (1100, 30)),
    "batch with append": lambda w: w.write_batch("d/x", (2000, 4000), (0, 100)),
    "batch to holes": lambda w: w.write_batch("big", (12_345, 900), (9000, 10), (30_000, 4000)),
    "batch beyond": lambda w: w.write_batch("g", (0, 5), (5001, 333)),
    "batch after one that was dropped": lambda w: [
        w.write_batch("f", (0, 500), (6000, 100), commit=commit) for commit in (False, True)
    ],
    "atomic append": lambda w: w.write_atomically("g", 700, 200),
    "atomic overwrite with magic": lambda w: w.write_atomically("big", 4096, 1000, jbd2.MAGIC_BYTES),
    "atomic overwrite of many blocks": lambda w: w.write_atomically("big", 0, 9000),
    "journal": lambda w: [w.journal(path, on=True) for path in ("big", "f", "g")],
    "journal no longer": lambda w: w.journal("big", on=False),
    "atomic journaled overwrite": lambda w: w.write_journaled("big", 700, 1403),
    "atomic journaled overwrite of many blocks": lambda w: w.write_journaled("big", 1, 9000),
    "atomic journaled append": lambda w: w.write_journaled("f", 3000, 1700),
    "atomic journaled append within block": lambda w: w.write_journaled("g", 700, 100),
    "overwrite atomic": lambda w: w.write("big", 601, 1403),
    "truncate to nothing": lambda w: w.truncate("f", 0),
    "truncate to blocks": lambda w: w.truncate("big", 4096),
    "truncate unaligned": lambda w: w.truncate("big", 2222),
    "truncate within block": lambda w: w.truncate("g", 123),
    "truncate at hole": lambda w: w.truncate("big", 15_001),
    "truncate up": lambda w: w.truncate("g", 4000),
    "truncate up a hole": lambda w: w.truncate("f", 30_000),
    "truncate unwritten": lambda w: w.truncate("unwritten", 2500),
    "allocate": lambda w: w.fallocate("big", 0, 7000, 20_000),
    "allocate behind": lambda w: w.fallocate("g", KEEP_SIZE, 500, 6000),
    "punch": lambda w: w.fallocate("big", PUNCH, 1024, 4096),
    "punch unaligned": lambda w: w.fallocate("big", PUNCH, 1500, 6002),
    "punch to the end": lambda w: w.fallocate("f", PUNCH, 1000, 100_000),
    "zero": lambda w: w.fallocate("big", ZERO, 1024, 8192),
    "zero unaligned": lambda w: w.fallocate("f", ZERO, 501, 4000),
    "zero within": lambda w: w.fallocate("unwritten", ZERO | KEEP_SIZE, 3000, 9000),
    "collapse": lambda w: w.fallocate("big", COLLAPSE, w.fs.volume.block_size, w.fs.volume.block_size),
    "insert": lambda w: w.fallocate("big", INSERT, w.fs.volume.block_size, 2 * w.fs.volume.block_size),
    "copy": lambda w: w.copy("big", 1000, "f", 2000, 30_000),
    "copy blocks": lambda w: w.copy("big", 4096, "g", 0, 8192),
    "copy within": lambda w: w.copy("big", 20_000, "big", 3000, 2500),
    "copy holes": lambda w: w.copy("unwritten", 0, "big", 2048, 6000),
    "relocate": lambda w: w.relocate("big"),
    "relocate unwritten": lambda w: w.relocate("unwritten"),
    "relocate journaled": lambda w: w.relocate("big"),
    "relocate directory": lambda w: w.relocate("d"),
    "relocate index": lambda w: w.relocate("i"),
    "relocate map": lambda w: w.relocate_map("f"),
    "relocate symlink": lambda w: w.relocate("long"),
    "relocate attributes": lambda w: w.relocate("g"),
    "unlink one name": lambda w: w.unlink("f"),
    "unlink": lambda w: w.unlink("g"),
    "unlink big": lambda w: w.unlink("big"),
    "unlink symlink": lambda w: w.unlink("l"),
    "unlink open": lambda w: w.hold("big"),
    "unlink open g": lambda w: w.hold("g"),
    "release": lambda w: w.let_go(),
    "rename": lambda w: w.rename("f", "renamed"),
    "rename replacing": lambda w: w.rename("f", "g"),
    "rename replacing across": lambda w: w.rename("d/x", "big"),
    "rename across": lambda w: w.rename("g", "d/g"),
    "rename dir": lambda w: w.rename("d", "dd"),
    "rename dir across": lambda w: w.rename("d/sub", "e/sub"),
    "rename dir replacing": lambda w: w.rename("d/sub", "e"),
    "rename back": lambda w: w.rename("g", "f"),
    "exchange": lambda w: w.rename("f", "g", EXCHANGE),
    "exchange across": lambda w: w.rename("d/x", "e", EXCHANGE),
    "exchange dirs": lambda w: w.rename("d/sub", "e", EXCHANGE),
    "whiteout": lambda w: w.rename("f", "renamed", WHITEOUT),
    "whiteout replacing": lambda w: w.rename("g", "h", WHITEOUT),
    "whiteout across": lambda w: w.rename("d/x", "e/x", WHITEOUT),
    "whiteout dir across": lambda w: w.rename("d/sub", "e/sub", WHITEOUT),
    "tmpfile": lambda w: w.nameless(3000),
    "name tmpfile": lambda w: w.fs.link(w.opened[-1].ino, w.ino("d"), b"named"),
    "unlink named": lambda w: w.unlink("d/named"),
    "link": lambda w: w.fs.link(w.ino("g"), w.ino("d"), b"linked"),
    "link new": lambda w: w.fs.link(w.ino("new"), w.ino("e"), b"linked"),
    "symlink": lambda w: w.fs.symlink(ROOT_INO, b"short", b"t" * 40),
    "symlink long": lambda w: w.fs.symlink(ROOT_INO, b"long", b"t" * 300),
    "unlink symlink long": lambda w: w.unlink("long"),
    "set xattr": lambda w: w.xattr("f", b"user.new", 20),
    "set large xattr": lambda w: w.xattr("f", b"user.new", 700),
    "replace xattr": lambda w: w.xattr("g", b"user.large", 650),
    "set dir xattr": lambda w: w.xattr("d", b"trusted.x", 300),
    "remove xattr": lambda w: w.fs.removexattr(w.ino("g"), b"user.small"),
    "remove large xattr": lambda w: w.fs.removexattr(w.ino("g"), b"user.large"),
    "rmdir": lambda w: w.fs.rmdir(ROOT_INO, b"e"),
    "rmdir new": lambda w: w.fs.rmdir(ROOT_INO, b"newdir"),
    "fragment": lambda w: w.fragment("f"),
    "scatter": lambda w: [w.write("f", block * 2048, 1024) for block in range(2, 130)],
    "unlink h": lambda w: w.unlink("h"),
    "unlink open h": lambda w: w.hold("h"),
    "rename g to h": lambda w: w.rename("g", "h"),
    "truncate f unaligned": lambda w: w.truncate("f", 10_250),
    "append far": lambda w: w.write("f", 12_000, 900),
    "snapshot": lambda w: w.snapshot(),
    "second snapshot": lambda w: w.snapshot(),
    "delete snapshot": lambda w: w.delete_snapshot(0),
    "delete older snapshot": lambda w: w.delete_snapshot(-2),
    "delete newer snapshot": lambda w: w.delete_snapshot(-1),
    "chmod": lambda w: w.fs.setattr(w.ino("f"), SetAttributes(mode=0o4711)),
    "chown": lambda w: w.fs.setattr(w.ino("d"), SetAttributes(uid=70_000, gid=80_000)),
}

AFTER = ("", "sync", "fsync", "fdatasync")
"""What follows an operation; fsync and fdatasync are of one of the files f, g and big."""

DURABLE = [name for name in OPERATIONS if name.startswith("batch")]
"""The operations that are durable when they return."""

ATOMIC = [*DURABLE, *(name for name in OPERATIONS if name.startswith("atomic "))]
"""The operations whose content is there whole or not at all."""

LARGE = ("scatter", "fill", "fragment", "begin window")
"""Operations that take much longer than others, or prepare one that follows."""

SINGLE = [name for name in OPERATIONS if name not in LARGE]
"""The operations that are one handle, or have one that can be seen."""

NEEDS: dict[str, tuple[str, ...]] = {
    "journal no longer": ("journal",),
    "atomic journaled overwrite": ("journal",),
    "atomic journaled overwrite of many blocks": ("journal",),
    "atomic journaled append": ("journal",),
    "atomic journaled append within block": ("journal",),
    "relocate journaled": ("journal", "atomic journaled overwrite"),
    "write to unlinked": ("unlink open",),
    "append in window": ("begin window",),
    "release": ("unlink open",),
    "name tmpfile": ("tmpfile",),
    "unlink named": ("tmpfile", "name tmpfile"),
    "link new": ("create",),
    "unlink symlink long": ("symlink long",),
    "relocate symlink": ("symlink long",),
    "relocate map": ("fragment",),
    "rmdir new": ("mkdir",),
    "delete snapshot": ("snapshot",),
    "second snapshot": ("snapshot", "overwrite moved"),
    "delete older snapshot": ("snapshot", "overwrite moved", "second snapshot", "overwrite and append"),
    "delete newer snapshot": ("snapshot", "unlink", "second snapshot", "overwrite moved", "write new"),
}
"""The operations that an operation needs: without them it finds nothing to do. A `Run` does them first."""

AGAIN = (
    *("mkdir", "rmdir new", "symlink long", "unlink symlink long", "set large xattr", "replace xattr", "chmod"),
    *("truncate up", "truncate within block", "write beyond", "exchange", "exchange across", "overwrite"),
)
"""Operations that can be done again and again."""

Step = tuple[str, str]


def prelude(steps: Iterable[Step], needs: Mapping[str, tuple[str, ...]] = NEEDS) -> list[Step]:
    """Return the operations that these steps need and do not do themselves; they must be durable first."""
    done: set[str] = set()
    missing: dict[str, None] = {}
    for name, _ in steps:
        needed = needs.get(name, ())
        if needed and needed[-1] not in done:
            missing.update(dict.fromkeys(needed))
        done.add(name)
    return [(name, "sync") for name in missing]


# Pictures

FOLDER = b".daxfs/"
STORES = b".daxfs/snapshots/"


class Picture(NamedTuple):
    """A tree: ``facts`` by path without times and contents, times by inode, file contents by inode, and the trees in
    the images of snapshots by name (None: it has lost content).
    """

    facts: dict[bytes, Facts]
    times: dict[int, tuple[int, int]]
    contents: dict[int, bytes]
    snapshots: dict[bytes, Picture | None] = {}


def take_picture(fs: FileSystem, opened: Iterable[OpenFile] = ()) -> Picture:
    """Return the tree, and the contents of open files, which may no longer have a name."""
    facts: dict[bytes, Facts] = {}
    times, contents = {}, {}
    for path, found in walk(fs, contents=False).items():
        times[found.ino] = found.mtime_ns, found.ctime_ns
        if path.startswith(STORES):  # its content and size are those of its own snapshot
            facts[path] = found._replace(mtime_ns=0, ctime_ns=0, atime_ns=0, size=0, blocks=0)
            continue
        if stat.S_ISREG(found.mode) and found.ino not in contents:
            contents[found.ino] = content_of(fs, found.ino, found.size)
        facts[path] = found._replace(mtime_ns=0, ctime_ns=0, atime_ns=0)
    if (stores := STORES.rstrip(b"/")) in facts:
        facts[stores] = facts[stores]._replace(xattrs=())  # a record of mounts
    contents.update((file.ino, bytes(fs.read(file, 0, 1 << 20))) for file in opened)
    return Picture(facts, times, contents, past_trees(fs))


def past_trees(fs: FileSystem) -> dict[bytes, Picture | None]:
    """Return the trees in the images of all snapshots, in each of which e2fsck must find nothing."""
    made: dict[bytes, Picture | None] = {}
    for found in fs.list_snapshots():
        made[found.name] = None if found.lost or fs.read_only else past_tree(fs, found.name)
    return made


def past_tree(fs: FileSystem, name: bytes) -> Picture:
    """Return the tree in the image of a snapshot, in which e2fsck must find nothing."""
    return tree_of(bytes(content_of_snapshot(fs, name)))


@functools.lru_cache(maxsize=16)
def tree_of(content: bytes) -> Picture:
    """Return the tree in what a snapshot has; cached, since that is to be the same at each later moment."""
    made = cleaned(content)
    with tempfile.NamedTemporaryFile(prefix="daxfs-image-") as file:
        file.write(made)
        file.flush()
        fsck(Path(file.name))
    with FileSystem.open(MemoryPool(made), QUIET) as past:
        return without_stores(take_picture(past))


def image_of(fs: FileSystem, name: bytes) -> bytearray:
    """Return the image of a snapshot."""
    return cleaned(content_of_snapshot(fs, name))


def cleaned(content: bytes | bytearray) -> bytearray:
    """Return what a snapshot has as a cleanly unmounted pool."""
    made = bytearray(content)
    imaging.clean(MemoryPool(made))
    return made


def content_of_snapshot(fs: FileSystem, name: bytes) -> bytearray:
    """Return the blocks of a snapshot, as they are in a pool of the same size."""
    pool = fs.volume.pool
    made = bytearray(pool.size)
    for offset, content in imaging.pieces(pool, fs.open_snapshot(name)):
        made[offset : offset + len(content)] = content
    return made


def without_stores(picture: Picture) -> Picture:
    """Return a tree without times, without the directory of the stores, and without what has no name."""
    facts = {path: found for path, found in picture.facts.items() if not (path + b"/").startswith(FOLDER)}
    root = facts[b""]
    assert isinstance(root.content, tuple)
    facts[b""] = root._replace(content=tuple(entry for entry in root.content if entry[0] + b"/" != FOLDER), nlink=0)
    named = {found.ino for found in facts.values()}
    return Picture(facts, {}, {ino: content for ino, content in picture.contents.items() if ino in named})


def content_of(fs: FileSystem, ino: int, size: int) -> bytes:
    """The whole content of a file."""
    file = fs.open_file(ino)
    try:
        content = bytes(fs.read(file, 0, size + 1))
    finally:
        fs.release(file)
    assert len(content) == size
    return content


@lru_cache(maxsize=32)
def first_picture(content: bytes) -> Picture:
    """The tree in an image, which each workload on that image begins with."""
    with FileSystem.open(MemoryPool(content), QUIET) as fs:
        return take_picture(fs)


class Moment(NamedTuple):
    """After an operation: how many events were recorded when it began and had ended, and the tree."""

    name: str
    begun: int
    ended: int
    picture: Picture


class Promise(NamedTuple):
    """From event ``position`` on, what moment ``index`` showed is durable: all of it, or one inode (less its times)."""

    position: int
    index: int
    ino: int = 0
    data_only: bool = False


class Run:
    """A workload done on a recording pool.

    Attributes:
        pool: with the record of all stores.
        moments: the states the tree went through, the first before the workload.
        promises: what syncs have promised.
        start: events before the workload began; what it needs (`NEEDS`) was done by then.
        last: the pool's bytes at the end.
        laps: events before the log began anew.
        operations: what the steps may be.
        needs: as `NEEDS`.
    """

    recorder: Callable[[bytearray], RecordingPool] = RecordingPool
    operations: Mapping[str, Operation] = OPERATIONS
    needs: Mapping[str, tuple[str, ...]] = NEEDS

    def __init__(self, content: bytes, steps: Iterable[Step], *, close: bool = False) -> None:
        self.steps = list(steps)
        self.needed = prelude(self.steps, self.needs)
        self.pool = self.recorder(bytearray(content))
        self._content = content
        self.promises: list[Promise] = [Promise(0, 0)]
        with steady_clock():
            self._work(close=close)

    def _work(self, *, close: bool) -> None:
        fs = self.fs = self.mount()
        self.bench = Workbench(fs)
        self.block_size = fs.volume.block_size
        self.laps: list[int] = []
        self.moments = [Moment("start", 0, 0, first_picture(self._content))]
        for name, after in self.needed:
            self._do(name, after)
        self.start = len(self.pool.events)
        for name, after in self.steps:
            self._do(name, after)
        fs.sync()
        self._promise(Promise(len(self.pool.events), len(self.moments) - 1))
        self.last = bytes_after_close(fs, self.pool) if close else self.pool.image()

    def mount(self) -> FileSystem:
        """Mount the recording pool."""
        return FileSystem.open(self.pool, QUIET)

    def _do(self, name: str, after: str) -> None:
        begun = len(self.pool.events)
        laps = self.fs.volume.journal.stats.tail_moves
        try:
            self.operations[name](self.bench)
        except (FsError, IndexError):
            name += " (refused)"
        picture = take_picture(self.fs, self.bench.opened)
        picture = picture._replace(snapshots=self._expected(picture.snapshots))
        self.moments.append(Moment(name, begun, len(self.pool.events), picture))
        index = len(self.moments) - 1
        if name in DURABLE or name.endswith("snapshot"):
            self._promise(Promise(len(self.pool.events), index))
        if after == "sync":
            self.fs.sync()
            self._promise(Promise(len(self.pool.events), index))
        elif after:
            for path in ("f", "g", "big"):
                try:
                    ino = self.bench.ino(path)
                except FsError:
                    continue
                self.fs.fsync(ino, after == "fdatasync")
                self._promise(Promise(len(self.pool.events), index, ino, after == "fdatasync"))
        if self.fs.volume.journal.stats.tail_moves != laps:
            self.laps.append(begun)

    def _expected(self, found: dict[bytes, Picture | None]) -> dict[bytes, Picture | None]:
        """Return what the snapshots must show, of which ``found`` has the names: the tree before each was made."""
        before = self.moments[-1].picture
        made = {name: before.snapshots.get(name, without_stores(before)) for name in found}
        return {name: None if found[name] is None else tree for name, tree in made.items()}

    def _promise(self, promise: Promise) -> None:
        self.promises.append(promise)
        self.pool.mark(str(promise.position))  # the recorder shows the bytes again under a new promise

    def images(
        self, rng: random.Random, share: float = 1.0, *, prefixes: int = 2, subsets: int = 3, start: int | None = None
    ) -> Iterator[CrashImage]:
        """A share of the images, one at least, with cuts from the beginning of the workload on."""
        start = self.start if start is None else start
        sample = Sample(rng, share)
        for left in self.pool.crash_images(rng, start=start, prefixes=prefixes, subsets=subsets, wanted=sample.build):
            if sample.shows(left):
                yield left
        if not sample.shown and sample.spare is not None:
            yield sample.spare

    def describe(self, left: CrashImage) -> str:
        moments = [f"{moment.name} {moment.begun}..{moment.ended}" for moment in self.moments]
        return f"{self.steps}, cut at {left.position} of {len(self.pool.events)} ({left.choice}); {moments}"

    def stage(self, position: int) -> tuple[int, int]:
        """What `judge` uses of a position: how many promises hold by then, and the last moment that has begun."""
        kept = sum(promise.position <= position for promise in self.promises)
        return kept, self._last(position)

    def _last(self, position: int) -> int:
        return max(index for index, moment in enumerate(self.moments) if moment.begun <= position)

    def judge(self, found: Picture, position: int) -> list[str]:
        """Return why no cut after this many events may leave ``found``; an empty list if one may.

        It must be the tree of one moment: the last one that a sync promised, or a later one that had begun. Bytes are
        those of this moment or, word by word, of a later one, because overwrites go in place without waiting for
        anything; never of an earlier one, since a commit takes all data before it along. Times may be older than the
        tree, down to the last sync of the inode.
        """
        kept = [promise for promise in self.promises if promise.position <= position]
        floor = max(promise.index for promise in kept if not promise.ino)
        last = self._last(position)
        faults = []
        for index in range(last, floor - 1, -1):
            wrong = self._compare(found, index, last, floor, kept)
            if not wrong:
                return []
            faults.append(f"not as after {index} {self.moments[index].name}: {wrong[:4]}")
        return faults

    def _compare(self, found: Picture, index: int, last: int, floor: int, kept: list[Promise]) -> list[str]:
        expected = self.moments[index].picture
        if found.snapshots != expected.snapshots:
            return differing_snapshots(found.snapshots, expected.snapshots)
        if found.facts != expected.facts:
            return differing(found.facts, expected.facts)
        wrong = []
        for ino, content in found.contents.items():
            if not words_agree(content, self._versions(ino, index, last, kept)):
                wrong.append(f"content of inode {ino}")
        for ino, times in found.times.items():
            since = max([floor, *(promise.index for promise in kept if promise.ino == ino and not promise.data_only)])
            pictures = [moment.picture for moment in self.moments[min(since, index) : index + 1]]
            if times not in [picture.times[ino] for picture in pictures if ino in picture.times]:
                wrong.append(f"times of inode {ino}")
        for promise in kept:
            if promise.ino and promise.index > index and not self._kept(promise, found, last):
                wrong.append(f"inode {promise.ino} is not as it was synced")
        return wrong

    def _versions(self, ino: int, index: int, last: int, kept: list[Promise]) -> list[bytes]:
        """Return the contents that a file may hold, word by word, in a tree of moment ``index``."""
        later = self.moments[index : last + 1]
        since = max((promise.index for promise in kept if promise.ino == ino), default=0)
        contents = self.moments[index].picture.contents
        if since > index and self.moments[since].picture.contents.get(ino) != contents.get(ino):
            later = self.moments[since : last + 1]
        later = [moment for moment in later if ino in moment.picture.contents]
        return without_atomic([(moment.name, moment.picture.contents[ino]) for moment in later], self.block_size)

    def _kept(self, promise: Promise, found: Picture, last: int) -> bool:
        """Whether a synced inode is as it was then or later."""
        mine = {(path, facts) for path, facts in found.facts.items() if facts.ino == promise.ino}
        return any(
            mine == {(path, facts) for path, facts in moment.picture.facts.items() if facts.ino == promise.ino}
            for moment in self.moments[promise.index : last + 1]
        )


class Sample:
    """A random share of images, of which only those that are looked at are built.

    Attributes:
        shown: how many belong to the share.
        spare: as long as none does, a fair choice of those that do not.
    """

    def __init__(self, rng: random.Random, share: float) -> None:
        self._rng = rng
        self._share = share
        self._passed = 0
        self._chosen = False
        self.shown = 0
        self.spare: CrashImage | None = None

    def build(self) -> bool:
        """Decide on the next image: whether it belongs to the share, or may be the spare one."""
        self._chosen = self._share == 1.0 or self._rng.random() < self._share
        if self._chosen:
            return True
        self._passed += 1
        return (self._passed == 1 or self._rng.randrange(self._passed) < 1) and not self.shown

    def shows(self, left: CrashImage) -> bool:
        """Take an image that was built: whether it belongs to the share."""
        if self._chosen:
            self.shown += 1
            self.spare = None
        else:
            self.spare = left
        return self._chosen


def without_atomic(versions: list[tuple[str, bytes]], block_size: int) -> list[bytes]:
    """Return a file's contents after some operations, the first of which has made the tree, without atomic writes.

    The tree lacks the later ones. What an atomic write stores lies in new blocks, which only a later tree has, and so
    does what is stored to its blocks afterwards.
    """
    shown: list[bytes] = []
    hidden: set[int] = set()  # blocks
    before = b""
    for name, content in versions:
        if shown and name in ATOMIC:
            length = max(len(before), len(content))
            old, new = before.ljust(length, b"\0"), content.ljust(length, b"\0")
            for begin in range(0, length, block_size):
                if old[begin : begin + block_size] != new[begin : begin + block_size]:
                    hidden.add(begin // block_size)
        seen = bytearray(content)
        for block in hidden:
            begin, end = block * block_size, (block + 1) * block_size
            seen[begin:end] = shown[-1][begin:end].ljust(max(min(end, len(seen)) - begin, 0), b"\0")
        shown.append(bytes(seen))
        before = content
    return shown


def differing(found: dict[bytes, Facts], expected: dict[bytes, Facts]) -> list[str]:
    """Return the differences of two trees, in words."""
    if found.keys() != expected.keys():
        return [f"names {sorted(found.keys() ^ expected.keys())}"]
    return [
        f"{path!r} {field}: {mine!r:.120}, expected {model!r:.120}"
        for path in sorted(expected)
        for field, mine, model in zip(Facts._fields, found[path], expected[path], strict=True)
        if mine != model
    ]


def differing_snapshots(found: dict[bytes, Picture | None], expected: dict[bytes, Picture | None]) -> list[str]:
    """Return the differences of the snapshots of two trees, in words."""
    if found.keys() != expected.keys():
        return [f"snapshots {sorted(found)}, expected {sorted(expected)}"]
    wrong = []
    for name, tree in expected.items():
        past = found[name]
        if past is None or tree is None:
            wrong += [f"snapshot {name!r} is lost"] if past is not tree else []
        else:
            wrong += [f"snapshot {name!r}: {difference}" for difference in unlike(past, tree)]
    return wrong


def words_agree(content: bytes, versions: list[bytes]) -> bool:
    """Return whether each aligned word is that of one of the versions (the first has the right length).

    An operation that ends within a word may store to the word twice, as a write to a new block does: the bytes after
    its end become zeros, then those before its end get their content. Then each byte must be that of a version.
    """
    if not versions or len(content) != len(versions[0]):
        return False
    if content in versions:
        return True
    size = len(content)
    whole = -(-size // WORD) * WORD
    mine = np.frombuffer(content.ljust(whole, b"\0"), np.uint64)
    good = np.zeros(len(mine), bool)
    for version in versions:
        theirs = np.frombuffer(version[:size].ljust(whole, b"\0"), np.uint64)
        agrees = mine == theirs
        agrees[len(version) // WORD if len(version) < size else len(mine) :] = False
        good |= agrees
    return all(
        in_parts(content[at : at + WORD], [version[at : at + WORD] for version in versions])
        for at in (np.flatnonzero(~good) * WORD).tolist()
    )


def in_parts(word: bytes, versions: list[bytes]) -> bool:
    """Return whether an operation has changed a part of a word, and each byte is that of a version."""
    versions = [version for version in versions if len(version) == len(word)]
    changed = [sum(map(ne, before, after)) for before, after in pairwise(versions)]
    parted = any(0 < count < len(word) for count in changed)
    return parted and all(byte in {version[at] for version in versions} for at, byte in enumerate(word))


def bytes_after_close(fs: FileSystem, pool: RecordingPool) -> bytes:
    """Unmount; the pool's bytes then, which a closed pool shows no more."""
    pool.close, closing = lambda: None, pool.close  # type: ignore[method-assign]
    fs.close()
    content = pool.image()
    closing()
    return content


# Recovery


def recover(content: bytearray) -> Picture:
    """Mount the image with daxfs, in place, and unmount it."""
    with FileSystem.open(MemoryPool(content), QUIET) as fs:
        return take_picture(fs)


def grow_everything(content: bytearray) -> list[str]:
    """Make every file of a recovered image longer: what appears must be zeros. Returns the files where it is not."""
    wrong = []
    with FileSystem.open(MemoryPool(content), QUIET) as fs:
        tree = walk(fs, contents=False).items()
        files = {
            facts.ino: facts.size for path, facts in tree if stat.S_ISREG(facts.mode) and not path.startswith(STORES)
        }
        for ino, size in files.items():
            fs.setattr(ino, SetAttributes(size=size + 5000))
            if content_of(fs, ino, size + 5000)[size:].strip(b"\0"):
                wrong.append(f"inode {ino} has bytes past its old EOF")
    return wrong


def torn_superblock(content: bytes | bytearray) -> bool:
    """Whether the file system's superblock was cut while it was copied home; the kernel refuses such a pool."""
    return Superblock(memoryview(bytearray(content[SUPERBLOCK_OFFSET : 2 * SUPERBLOCK_OFFSET]))).is_torn()


def read_quietly(path: Path) -> Picture:
    """Return the tree of a recovered pool, on a read-only mount."""
    with FileSystem.open(path, READ_ONLY) as fs:
        return take_picture(fs)


def mend(path: Path, *options: str) -> bool:
    """Have e2fsck mend a pool, which it must be able to; whether it changed anything."""
    done = subprocess.run(
        [tool("e2fsck"), *options, path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), f"e2fsck {options} ends with {done.returncode}\n{done.stdout}{done.stderr}"
    return bool(done.returncode)


def recover_by_e2fsck(content: bytes, path: Path) -> Picture:
    """Return the tree that e2fsck recovers from the image; a second run of it must find nothing."""
    write_image(path, content)
    mend(path, "-fy", "-E", "no_optimize_extents")
    fsck(path)
    return read_quietly(path)


def preen(content: bytes, path: Path) -> None:
    """What boots do with the image: ``e2fsck -p`` must mend it without a question.

    After the replay it may end without a full check, which alone clears the feature orphan_present; ``-f`` makes one.
    """
    write_image(path, content)
    mend(path, "-p")
    mend(path, "-fp")
    fsck(path)


def recover_by_kernel(content: bytes, path: Path) -> Picture:
    """Return the tree that the kernel recovers by mounting the image; e2fsck must find nothing then."""
    write_image(path, content)
    with kernel_mount(path):
        pass
    fsck(path)
    return read_quietly(path)


def torn_descriptor(content: bytes | bytearray) -> bool:
    """Whether a group descriptor was cut within its cache line; the kernel refuses such a pool, too."""
    pool = MemoryPool(bytes(content))
    geometry = Geometry.of(read_superblock(pool))
    view = PoolView(pool, geometry)
    for group in range(geometry.groups_count):
        groups.locate(view, group)
    return groups.given_up(view) > 0


def unlike(found: Picture, expected: Picture) -> list[str]:
    """What two recoveries of one image disagree about; each may set the times of a truncate that it finishes."""
    wrong = differing(found.facts, expected.facts)
    return wrong + [
        f"content of inode {ino}" for ino in expected.contents if found.contents.get(ino) != expected.contents[ino]
    ]

"""The images that the fuzzer damages: small, and with every structure that it knows.

All but one are of pools that were unmounted; ``windows`` is what a power cut leaves of one in use.
"""

from __future__ import annotations

import random
import stat
from pathlib import Path
from typing import NamedTuple

import tier_rig
from fast_commit_rig import FastCommits, extents_of, slot_of, store
from tree_rig import PoolSide, furnish, mingle

from daxfs.fs import appends
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.pmem.storage import CONTENT
from support import mke2fs

FORMATS = {
    "default": ("-b", "1024"),
    "orphan file": ("-b", "1024", "-O", "orphan_file"),
    "no checksums": ("-b", "1024", "-O", "^metadata_csum", "-g", "2048"),
    "no extents": ("-b", "1024", "-O", "^extent,^64bit,^has_journal,^dir_index", "-I", "128"),
    "groups": ("-b", "1024", "-g", "1024", "-O", "^flex_bg"),
    "snapshots": ("-b", "1024", "-O", "orphan_file"),
    "fast commits": ("-b", "1024", "-O", "fast_commit", "-J", "size=4"),
    "deep index": ("-b", "1024"),
    "windows": ("-b", "1024"),
}
TIERS = "tiers"
"""A pool with storage, which is not made by mke2fs alone (`tiered`)."""
ALL = (*FORMATS, TIERS)
FOCUS = {
    "snapshots": "snapshot",
    "fast commits": "fast commit",
    "deep index": "directory index",
    "windows": "inode",
    TIERS: "storage label",
}
"""The structure that is damaged in every second mutation of a format."""
SIZES = {"fast commits": "16M"}
"""Others have 8 MiB."""


def image(folder: Path, name: str) -> bytes:
    """Make an image of a format."""
    path = mke2fs(folder / "base", *FORMATS[name], size=SIZES.get(name, "8M"))
    with FileSystem.open(path) as fs:
        furnish(fs)
        mingle(PoolSide(fs), random.Random(1), {}, 60)
        if name == "snapshots":
            take_snapshots(fs)
        if name == "deep index":
            fill_index(fs)
        if name == "windows":
            begin_windows(fs)
        in_use = path.read_bytes()
    if name == "fast commits":
        add_fast_commits(path)
    content = in_use if name == "windows" else path.read_bytes()
    path.unlink()
    return content


class Stage(NamedTuple):
    """The files of a tiered pool, which trials put down and damage.

    Attributes:
        members: the files.
        storage: the content of the storage's file, with its label.
        begin: bytes of memory that the file system has.
    """

    members: tier_rig.Members
    storage: bytes
    begin: int

    def put(self, memory: bytes | bytearray, storage: bytes | bytearray) -> Path:
        """Write both files; return the pool's."""
        self.members.pool.write_bytes(memory)
        self.members.storage.write_bytes(storage)
        return self.members.pool

    def joined(self, memory: bytes, storage: bytes) -> bytes:
        """Return what e2fsck sees of both."""
        return memory[: self.begin] + storage[CONTENT:]


def tiered(folder: Path) -> tuple[bytes, Stage]:
    """Make a tiered pool with files in memory and on storage; return the memory and the rest."""
    members = tier_rig.make(folder, 2 * tier_rig.GROUP, tier_rig.GROUP)
    with FileSystem.open(members.pool) as fs:
        furnish(fs)
        mingle(PoolSide(fs), random.Random(1), {}, 60)
        for name in ("/f", "/pieces"):
            fs.demote(fs.tree.stat(name).ino)
        begin = fs.volume.geometry.memory_blocks << fs.volume.block_bits
    return members.pool.read_bytes(), Stage(members, members.storage.read_bytes(), begin)


def fill_index(fs: FileSystem) -> None:
    """Make a directory whose index has two levels."""
    fs.tree.mkdir("/deep")
    deep, ino = fs.tree.resolve("/deep"), fs.tree.resolve("/f")
    for number in range(300):
        fs.link(ino, deep, b"%d" % number + b"i" * 245)


def begin_windows(fs: FileSystem) -> None:
    """Append to files so often that the list of orphans names them; others on it have no name."""
    for number in range(3):
        file, _ = fs.create(ROOT_INO, b"log%d" % number, 0o644)
        for _ in range(appends.ENOUGH + 1):
            fs.write(file, file.size, b"appended" * 128)
            fs.fsync(file.ino)
        assert file.node.window > file.size
    fs.write(fs.tmpfile(ROOT_INO, 0o600)[0], 0, b"nameless" * 1000)
    fs.sync()


def take_snapshots(fs: FileSystem) -> None:
    """Make two snapshots, each followed by changes whose old content it keeps."""
    for number in range(2):
        fs.create_snapshot(b"snapshot%d" % number)
        fs.tree.write_bytes("/f", b"changed" * 2000 * (number + 1))
        fs.tree.mkdir(f"/later{number}")
        fs.sync()


def add_fast_commits(path: Path) -> None:
    """Store two fast commits in the journal of a pool, with every kind of record."""
    with FileSystem.open(path) as fs:
        pieces, file, folder = (fs.tree.stat(name).ino for name in ("/pieces", "/f", "/d"))
        new = fs.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644).ino
        fs.unlink(ROOT_INO, b"new")
        taken = fs.mknod(ROOT_INO, b"taken", stat.S_IFREG | 0o644).ino
    slot = bytearray(slot_of(path, file))
    slot[0x64:0x68] = b"new\0"  # another generation
    last = extents_of(path, pieces)[-1]
    log = FastCommits(1024)
    log.inode(new, bytes(slot)).creat(ROOT_INO, new, b"fast").link(folder, new, b"linked")
    log.add_range(pieces, *last[:3], unwritten=True).inode(pieces, slot_of(path, pieces)).tail()
    log.del_range(pieces, 0, 20).unlink(ROOT_INO, taken, b"taken").inode(taken, slot_of(path, taken))
    log.add_range(new, 0, extents_of(path, pieces)[0].pblk, 1).inode(pieces, slot_of(path, pieces)).tail()
    store(path, bytes(log.content))

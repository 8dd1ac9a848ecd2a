"""The images that the fuzzer damages: small, and with every structure that it knows."""

from __future__ import annotations

import random
import stat
from pathlib import Path

from fast_commit_rig import FastCommits, extents_of, slot_of, store
from tree_rig import PoolSide, furnish, mingle

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from support import mke2fs

FORMATS = {
    "default": ("-b", "1024"),
    "orphan file": ("-b", "1024", "-O", "orphan_file"),
    "no checksums": ("-b", "1024", "-O", "^metadata_csum", "-g", "2048"),
    "no extents": ("-b", "1024", "-O", "^extent,^64bit,^has_journal,^dir_index", "-I", "128"),
    "groups": ("-b", "1024", "-g", "1024", "-O", "^flex_bg"),
    "snapshots": ("-b", "1024", "-O", "orphan_file"),
    "fast commits": ("-b", "1024", "-O", "fast_commit", "-J", "size=4"),
}
FOCUS = {"snapshots": "snapshot", "fast commits": "fast commit"}
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
    if name == "fast commits":
        add_fast_commits(path)
    content = path.read_bytes()
    path.unlink()
    return content


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

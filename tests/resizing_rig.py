"""What tests of growth and of shrinking have in common: small pools with many groups, and what dumpe2fs shows."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from support import mke2fs, run

KIB, MIB = 1 << 10, 1 << 20
SMALL, LARGE = 16 * MIB, 80 * MIB
SPECIAL = {
    "sparse-super2": ("-O", "sparse_super2,^resize_inode"),
    "no-sparse": ("-O", "^sparse_super,^resize_inode"),
    "flex4": ("-G", "4"),
    "flex64": ("-G", "64"),
    "no-resize-inode": ("-O", "^resize_inode"),
}


def made(path: Path, *options: str, size: str = "16M") -> Path:
    """A small pool with many small groups."""
    small = "1024" in options or "2048" in options
    given = (*(() if small else ("-b", "4096")), "-g", "512" if small else "256", "-N", "512")
    journal = () if any("^has_journal" in each for each in options) else ("-J", "size=4")
    text = " ".join(options)
    reserved = () if "resize" in text else ("-E", f"resize={300_000 if small else 65536}")
    return mke2fs(path, *given, *journal, *reserved, *options, size=size)


def grown(path: Path, *options: str) -> Path:
    """A pool of many groups, whose journal and inodes lie in the first: it was small once."""
    made(path, *options)
    run("truncate", "-s", LARGE, path)
    run("resize2fs", "-f", path)
    return path


def counts(path: Path) -> dict[str, int]:
    """The counters of the superblock, as dumpe2fs shows them."""
    text = run("dumpe2fs", "-h", path)
    names = (
        "Block count",
        "Free blocks",
        "Inode count",
        "Free inodes",
        "Reserved GDT blocks",
        "First meta block group",
    )
    found = {name: re.search(rf"^{name}: +(\d+)", text, re.M) for name in names}
    return {name: int(match[1]) for name, match in found.items() if match}


def fill(fs: FileSystem) -> None:
    """Make some files below /d."""
    fs.tree.mkdir("/d")
    for number in range(20):
        fs.tree.write_bytes(f"/d/{number}", bytes([number + 1]) * (number * 3000))


def is_filled(fs: FileSystem) -> bool:
    """Whether the files of `fill` are as they were made."""
    return all(fs.tree.read_bytes(f"/d/{number}") == bytes([number + 1]) * (number * 3000) for number in range(20))


def refused(fs: FileSystem, blocks: int) -> str:
    """The name of the error with which a size is refused."""
    with pytest.raises(FsError) as caught:
        fs.resize(blocks)
    return errno.errorcode[caught.value.errno or 0]

"""RENAME_WHITEOUT: a device 0/0 stays at the old name, as overlayfs expects and the kernel's ext4 makes it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from tree_rig import NAMED_ACL, QUIET, kernel_tree, pool_tree, same, timeless, wire

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, RenameFlags
from support import fsck

OpenFs = Callable[..., FileSystem]
MakePool = Callable[..., Path]

WHITEOUT, NOREPLACE, EXCHANGE = RenameFlags.WHITEOUT, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def test_what_is_left_behind(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    fs.tree.mkdir("/d")
    fs.tree.write_bytes("/f", b"content")
    directory = fs.tree.resolve("/d")
    fs.rename(ROOT_INO, b"f", directory, b"g", WHITEOUT, Caller(uid=1000, gid=2000, umask=0o777))
    left = fs.tree.stat("/f")
    assert left.mode == stat.S_IFCHR
    assert (left.rdev, left.nlink, left.uid, left.gid, left.size) == (0, 1, 1000, 2000, 0)
    assert fs.tree.read_bytes("/d/g") == b"content"
    fs.rename(ROOT_INO, b"f", directory, b"g")
    assert fs.tree.stat("/d/g").mode == stat.S_IFCHR
    fs.tree.unlink("/d/g")
    fs.tree.rmdir("/d")


@pytest.mark.crash
def test_flags_that_go_together(fs: FileSystem) -> None:
    fs.tree.write_bytes("/f", b"f")
    fs.tree.write_bytes("/g", b"g")
    for flags in (WHITEOUT | EXCHANGE, NOREPLACE | EXCHANGE, 7, 8, WHITEOUT | 8):
        with refused(errno.EINVAL):
            fs.tree.rename("/f", "/g", flags)
    free = fs.statfs().files_free
    with refused(errno.EEXIST):
        fs.tree.rename("/f", "/g", WHITEOUT | NOREPLACE)
    with refused(errno.ENOENT):
        fs.tree.rename("/nothing", "/h", WHITEOUT)
    fs.tree.rename("/f", "/f", WHITEOUT)
    assert fs.tree.read_bytes("/f") == b"f"
    assert fs.statfs().files_free == free
    fs.tree.rename("/f", "/h", WHITEOUT | NOREPLACE)
    assert (fs.tree.read_bytes("/h"), fs.tree.stat("/f").mode) == (b"f", stat.S_IFCHR)


def test_no_inode_left(open_fs: OpenFs) -> None:
    """Without an inode for the whiteout nothing is renamed."""
    fs = open_fs("-N", "16", size="8M")
    with refused(errno.ENOSPC):
        for number in range(100):
            fs.mknod(ROOT_INO, b"%d" % number, 0o644)
    before = set(fs.tree.listdir("/"))
    with refused(errno.ENOSPC):
        fs.tree.rename("/0", "/renamed", WHITEOUT)
    assert set(fs.tree.listdir("/")) == before


def test_the_kernel_leaves_the_same(pool: MakePool) -> None:
    """Files and directories are renamed across, over others, in an indexed directory, below a default ACL."""
    moves = [
        ("one", "moved", WHITEOUT),
        ("two", "d/two", WHITEOUT | NOREPLACE),
        ("three", "four", WHITEOUT),
        ("d/sub", "e/sub", WHITEOUT),
        ("d/many/17", "d/many/n17", WHITEOUT),
        ("heir/f", "heir/g", WHITEOUT),
        ("d/full", "e/empty", WHITEOUT),
        ("moved", "one", 0),
    ]
    ours, theirs = pool("-b", "4096"), pool("-b", "4096")
    for path in (ours, theirs):
        with FileSystem.open(path, QUIET) as fs:
            for name in ("d", "e", "heir", "d/sub", "d/full", "d/full/x", "e/empty", "d/many"):
                fs.tree.mkdir(name)
            for name in ("one", "two", "three", "four", "heir/f"):
                fs.tree.write_bytes(name, name.encode())
            for number in range(600):
                fs.link(fs.tree.resolve("four"), fs.tree.resolve("d/many"), b"%d" % number)
            fs.setxattr(fs.tree.resolve("heir"), b"system.posix_acl_default", wire(NAMED_ACL))
    with FileSystem.open(ours, QUIET) as fs:
        for old, new, flags in moves:
            fs.tree.rename(old, new, flags)
    libc = ctypes.CDLL(None, use_errno=True)
    with kernel_mount(theirs) as root:
        for old, new, flags in moves:
            done = libc.renameat2(-100, os.fsencode(root / old), -100, os.fsencode(root / new), int(flags))
            assert done == 0, os.strerror(ctypes.get_errno())
    found = timeless(pool_tree(ours))
    for path in (theirs, ours):
        with kernel_mount(path, "ro") as root:
            same(found, timeless(kernel_tree(root)))
    fsck(ours)
    fsck(theirs)

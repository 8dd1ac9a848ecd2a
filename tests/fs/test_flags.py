"""chattr(1)'s flags: which can be set, by whom, what each forbids; the kernel's ext4 gets the same calls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_rig import kernel_mount
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.ext4.inode import (
    EXT4_APPEND_FL,
    EXT4_CASEFOLD_FL,
    EXT4_COMPR_FL,
    EXT4_DAX_FL,
    EXT4_DIRSYNC_FL,
    EXT4_EXTENTS_FL,
    EXT4_FL_USER_VISIBLE,
    EXT4_IMMUTABLE_FL,
    EXT4_JOURNAL_DATA_FL,
    EXT4_NOATIME_FL,
    EXT4_NODUMP_FL,
    EXT4_PROJINHERIT_FL,
    EXT4_SYNC_FL,
    EXT4_TOPDIR_FL,
    EXT4_VERITY_FL,
)
from daxfs.fs import flags as module
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, FsXattr, Options, RenameFlags, SetAttributes
from daxfs.structures import inodes
from support import fsck

OpenFs = Callable[..., FileSystem]
MakePool = Callable[..., Path]

USER = Caller(uid=1000, gid=1000)
IMMUTABLE, APPEND = EXT4_IMMUTABLE_FL, EXT4_APPEND_FL

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FSXATTR = struct.Struct("<5I8x")

libc = ctypes.CDLL(None, use_errno=True)


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or the name of its error."""
    try:
        found = call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return found if isinstance(found, int | bytes | tuple) else None


@pytest.fixture
def ino(fs: FileSystem) -> int:
    """Return the number of a file with some content."""
    fs.tree.write_bytes("/f", b"c" * 10_000)
    return fs.tree.resolve("/f")


def force(fs: FileSystem, ino: int, flags: int) -> None:
    """Set flags in an inode that no user may set."""
    with fs.volume.handle(1) as tx:
        inodes.edit(tx, ino).flags |= flags


# Who may change what


@pytest.mark.crash
def test_what_is_kept(fs: FileSystem, ino: int) -> None:
    for flags in (0, EXT4_NODUMP_FL, EXT4_NOATIME_FL | EXT4_SYNC_FL, EXT4_DAX_FL, IMMUTABLE, APPEND, 0):
        before = fs.setattr(ino, SetAttributes(ctime_ns=5))
        fs.set_flags(ino, flags | EXT4_EXTENTS_FL)
        found = fs.getattr(ino)
        assert fs.get_flags(ino) == found.flags == flags | EXT4_EXTENTS_FL
        assert found.ctime_ns > 5
        assert found._replace(ctime_ns=0, flags=0) == before._replace(ctime_ns=0, flags=0)
        fs.set_flags(ino, EXT4_EXTENTS_FL)


@pytest.mark.crash
def test_flags_nobody_may_change_stay(fs: FileSystem) -> None:
    for number in range(600):
        fs.mknod(ROOT_INO, b"%d" % number + b"n" * 40, 0o644)
    root = fs.getattr(ROOT_INO).flags
    assert root & module.EXT4_FL_USER_VISIBLE & ~module.EXT4_FL_USER_MODIFIABLE, "an indexed directory"
    fs.set_flags(ROOT_INO, EXT4_EXTENTS_FL | EXT4_NODUMP_FL)
    assert fs.getattr(ROOT_INO).flags == root | EXT4_NODUMP_FL
    fs.set_flags(ROOT_INO, fs.get_flags(ROOT_INO) & ~EXT4_NODUMP_FL)
    assert fs.getattr(ROOT_INO).flags == root


@pytest.mark.crash
def test_owners_and_others(fs: FileSystem, ino: int) -> None:
    own = fs.mknod(ROOT_INO, b"own", 0o644, 0, USER).ino
    fs.set_flags(own, EXT4_EXTENTS_FL | EXT4_NODUMP_FL, USER)
    with refused(errno.EPERM):
        fs.set_flags(ino, EXT4_EXTENTS_FL | EXT4_NODUMP_FL, USER)
    for flag in (IMMUTABLE, APPEND):
        with refused(errno.EPERM):
            fs.set_flags(own, EXT4_EXTENTS_FL | flag, USER)
    fs.set_flags(own, EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL, USER)
    fs.set_flags(own, EXT4_EXTENTS_FL | APPEND)
    with refused(errno.EPERM):
        fs.set_flags(own, EXT4_EXTENTS_FL, USER)
    fs.set_flags(own, EXT4_EXTENTS_FL | APPEND | EXT4_SYNC_FL, USER)


@pytest.mark.crash
def test_journaled_data_excludes_dax(fs: FileSystem, ino: int) -> None:
    """For programs that ask whether they may store to memory; reads still come from there."""
    assert fs.uses_dax(ino)
    fs.set_flags(ino, EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL)
    assert not fs.uses_dax(ino)
    with refused(errno.EOPNOTSUPP):
        fs.set_flags(ino, EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL | EXT4_DAX_FL)
    fs.set_flags(ino, EXT4_EXTENTS_FL)
    fs.set_flags(ino, EXT4_EXTENTS_FL | EXT4_DAX_FL)
    with refused(errno.EOPNOTSUPP):
        fs.set_flags(ino, EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL)
    assert fs.uses_dax(ino)


@pytest.mark.crash
def test_journaled_data_is_inherited(fs: FileSystem) -> None:
    top = fs.mkdir(ROOT_INO, b"top", 0o755).ino
    fs.set_flags(top, fs.get_flags(top) | EXT4_JOURNAL_DATA_FL)
    below = fs.mkdir(top, b"below", 0o755).ino
    made = fs.mknod(below, b"f", stat.S_IFREG | 0o644)
    link = fs.symlink(below, b"link", b"t")
    assert made.flags & EXT4_JOURNAL_DATA_FL
    assert not link.flags & EXT4_JOURNAL_DATA_FL


def test_journaled_data_needs_a_journal(open_fs: OpenFs) -> None:
    fs = open_fs("-O", "^has_journal")
    made = fs.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644)
    with refused(errno.EOPNOTSUPP):
        fs.set_flags(made.ino, made.flags | EXT4_JOURNAL_DATA_FL)


@pytest.mark.crash
def test_what_has_no_flags(fs: FileSystem) -> None:
    fifo = fs.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o644).ino
    link = fs.symlink(ROOT_INO, b"link", b"target").ino
    for other in (fifo, link):
        for call in (
            lambda at=other: fs.get_flags(at),
            lambda at=other: fs.set_flags(at, 0),
            lambda at=other: fs.get_fsxattr(at),
            lambda at=other: fs.set_fsxattr(at, FsXattr(0, 0, 0, 0, 0)),
        ):
            with refused(errno.ENOTTY):
                call()  # type: ignore[misc]


def test_a_read_only_mount(pool: MakePool) -> None:
    with FileSystem.open(pool(), Options(read_only=True)) as fs:
        assert fs.get_flags(ROOT_INO) & EXT4_EXTENTS_FL
        with refused(errno.EROFS):
            fs.set_flags(ROOT_INO, EXT4_EXTENTS_FL)


class KernelFlags:
    """The two pairs of ioctls on paths below a mountpoint, by root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ioctl(self, name: str, request: int, given: bytes) -> bytes:
        descriptor = os.open(self.root / name, os.O_RDONLY)
        try:
            return fcntl.ioctl(descriptor, request, given)
        finally:
            os.close(descriptor)

    def get(self, name: str) -> int:
        return int.from_bytes(self.ioctl(name, FS_IOC_GETFLAGS, bytes(4)), "little")

    def set(self, name: str, flags: int) -> None:
        self.ioctl(name, FS_IOC_SETFLAGS, struct.pack("<I", flags))

    def get_extended(self, name: str) -> tuple[int, ...]:
        return FSXATTR.unpack(self.ioctl(name, FS_IOC_FSGETXATTR, bytes(28)))

    def set_extended(self, name: str, values: tuple[int, ...]) -> None:
        self.ioctl(name, FS_IOC_FSSETXATTR, FSXATTR.pack(*values))


class PoolFlags:
    """The same calls on a file system of daxfs."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def get(self, name: str) -> int:
        return self.fs.get_flags(self.fs.tree.resolve(name))

    def set(self, name: str, flags: int) -> None:
        self.fs.set_flags(self.fs.tree.resolve(name), flags)

    def get_extended(self, name: str) -> tuple[int, ...]:
        return tuple(self.fs.get_fsxattr(self.fs.tree.resolve(name)))

    def set_extended(self, name: str, values: tuple[int, ...]) -> None:
        self.fs.set_fsxattr(self.fs.tree.resolve(name), FsXattr(*values))


NOT_ASKED = EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL
"""What the kernel can change and daxfs can't."""


def questions(chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Yield each flag alone in both forms, some projects, then random combinations."""
    names = ("f", "d")
    for name, bit in itertools.product(names, range(32)):
        if not 1 << bit & NOT_ASKED:
            yield name, "set", (1 << bit)
        yield name, "set_extended", (1 << bit, 0, 0, 0, 0)
        yield name, "set_extended", (1 << bit, 4096, 7, 0, 4096)
    yield from ((name, "set_extended", (0, 0, 0, number, 0)) for name in names for number in (1, 5, 0xFFFFFFFF, 0))
    for _ in range(400):
        name, many = chance.choice(names), chance.choice((1, 2, 3, 5))
        if chance.random() < 0.5:
            bits = [bit for bit in range(32) if 1 << bit & EXT4_FL_USER_VISIBLE & ~NOT_ASKED]
            yield name, "set", sum(1 << bit for bit in chance.sample(bits, many))
        else:
            bits = [3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]
            xflags = sum(1 << bit for bit in chance.sample(bits, many))
            yield name, "set_extended", (xflags, chance.choice((0, 4096)), 0, chance.choice((0, 0, 3)), 0)


def answers(side: KernelFlags | PoolFlags) -> list[tuple[Any, ...]]:
    """Make all calls; protecting flags are cleared after each, so that the next call can change the file."""
    found = []
    for number, (name, method, given) in enumerate(questions(random.Random(7))):
        if method == "set":
            given |= side.get(name) & EXT4_EXTENTS_FL
        said = outcome(lambda at=name, how=method, what=given: getattr(side, how)(at, what))  # type: ignore[misc]
        # The kernel has set the flags already when it refuses the project; here nothing is done by halves.
        kept = () if said else (side.get(name), side.get_extended(name))
        found.append((name, method, given, said, kept))
        if number % 3 or said:
            side.set(name, EXT4_EXTENTS_FL)
    return found


def test_the_kernel_takes_the_same(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path, QUIET) as fs:
        fs.tree.mkdir("d")
        fs.tree.write_bytes("f", b"content")
        ours = answers(PoolFlags(fs))
        for name in ("f", "d"):
            fs.set_flags(fs.tree.resolve(name), EXT4_EXTENTS_FL)
    fsck(path)
    with kernel_mount(path) as root:
        theirs = answers(KernelFlags(root))
    differences = [f"{mine[:3]}: {mine[3:]}, the kernel {kernel[3:]}" for mine, kernel in zip(ours, theirs, strict=True)
                   if mine != kernel]  # fmt: skip
    assert not differences, "\n".join(differences[:20])
    assert {said for *_, said, _ in theirs} >= {None, "ENOTSUP", "EPERM", "EINVAL"}


@pytest.mark.crash
def test_flags_suit_the_kind(fs: FileSystem, ino: int) -> None:
    directory = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    for flag in (EXT4_DIRSYNC_FL, EXT4_TOPDIR_FL, EXT4_PROJINHERIT_FL):
        with refused(errno.EOPNOTSUPP):
            fs.set_flags(ino, flag | EXT4_EXTENTS_FL)
        fs.set_flags(directory, flag | EXT4_EXTENTS_FL)
    for other in (ino, directory):
        for flag in (EXT4_CASEFOLD_FL | EXT4_EXTENTS_FL, EXT4_NODUMP_FL):
            with refused(errno.EOPNOTSUPP):
                fs.set_flags(other, flag)
    fs.set_flags(directory, EXT4_EXTENTS_FL)


def test_a_block_mapped_file_stays_so(open_fs: OpenFs) -> None:
    fs = open_fs("-O", "^extent,^64bit")
    ino = fs.mknod(ROOT_INO, b"f", 0o644).ino
    with refused(errno.EOPNOTSUPP):
        fs.set_flags(ino, EXT4_EXTENTS_FL)
    fs.set_flags(ino, EXT4_COMPR_FL)


def test_projects_are_kept_and_handed_down(open_fs: OpenFs) -> None:
    fs = open_fs("-O", "project", "-I", "256")
    directory = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    fs.set_fsxattr(directory, FsXattr(module.XFLAG_PROJINHERIT, 0, 0, 42, 0))
    below = fs.mkdir(directory, b"below", 0o755).ino
    file = fs.mknod(below, b"f", 0o644).ino
    assert fs.get_fsxattr(below) == FsXattr(module.XFLAG_PROJINHERIT, 0, 0, 42, 0)
    assert fs.get_fsxattr(file) == FsXattr(0, 0, 0, 42, 0)
    with refused(errno.EINVAL):
        fs.set_fsxattr(file, FsXattr(0, 0, 0, 0xFFFFFFFF, 0))
    fs.set_fsxattr(file, FsXattr(module.XFLAG_IMMUTABLE, 0, 0, 42, 0))
    with refused(errno.EPERM):
        fs.set_fsxattr(file, FsXattr(module.XFLAG_IMMUTABLE, 0, 0, 43, 0))
    fs.set_fsxattr(file, FsXattr(0, 0, 0, 43, 0))
    assert fs.get_fsxattr(file).projid == 43
    with refused(errno.EXDEV):
        fs.link(fs.mknod(ROOT_INO, b"other", 0o644).ino, directory, b"n")
    nameless, _ = fs.tmpfile(directory, 0o644)
    assert fs.get_fsxattr(nameless.ino).projid == 42
    fs.release(nameless)


# What immutable and append-only forbid: every operation, on file and directory, here and in the kernel


class KernelWork:
    """Operations on paths below a mountpoint."""

    def __init__(self, root: Path) -> None:
        self.flags = KernelFlags(root)
        self.root = root

    def at(self, name: str) -> str:
        return str(self.root / name)

    def set(self, name: str, flags: int) -> None:
        self.flags.set(name, flags | EXT4_EXTENTS_FL)

    def plant(self, place: str) -> None:
        for name in ("", "/d", "/d/sub", "/e"):
            os.mkdir(self.at(place + name))
        for name in ("/d/f", "/d/g", "/e/h"):
            (self.root / (place + name)).write_bytes(b"content")
        os.setxattr(self.at(place + "/d/f"), "user.old", b"1")
        os.setxattr(self.at(place + "/d"), "user.old", b"1")

    def open(self, name: str, flags: int) -> Any:
        return os.open(self.at(name), flags)

    def close(self, file: Any) -> None:
        os.close(file)

    def write(self, file: Any, offset: int) -> int:
        return os.pwrite(file, b"xyz", offset)

    def cut_open(self, file: Any, size: int) -> None:
        os.ftruncate(file, size)

    def cut(self, name: str, size: int) -> None:
        os.truncate(self.at(name), size)

    def read(self, file: Any) -> bytes:
        return os.pread(file, 3, 0)

    def reserve(self, file: Any, mode: int) -> None:
        self._checked(libc.fallocate(file, mode, ctypes.c_long(0), ctypes.c_long(4096)))

    def chmod(self, name: str) -> None:
        os.chmod(self.at(name), 0o600)

    def chown(self, name: str) -> None:
        os.chown(self.at(name), 5, 5)

    def utimes(self, name: str, atime: int | None, mtime: int | None) -> None:
        """Set times: None is the current time, -1 leaves a time as it is."""
        special = {None: (1 << 30) - 1, -1: (1 << 30) - 2}
        times = [(0, special[time]) if time in special else (time, 0) for time in (atime, mtime)]
        self._checked(libc.utimensat(-100, os.fsencode(self.at(name)), struct.pack("<4q", *times[0], *times[1]), 0))

    def setxattr(self, name: str, attribute: str) -> None:
        os.setxattr(self.at(name), attribute, b"2")

    def removexattr(self, name: str) -> None:
        os.removexattr(self.at(name), "user.old")

    def link(self, old: str, new: str) -> None:
        os.link(self.at(old), self.at(new))

    def unlink(self, name: str) -> None:
        os.unlink(self.at(name))

    def rmdir(self, name: str) -> None:
        os.rmdir(self.at(name))

    def mkdir(self, name: str) -> None:
        os.mkdir(self.at(name))

    def mknod(self, name: str) -> None:
        os.mknod(self.at(name), stat.S_IFREG | 0o644)

    def symlink(self, name: str) -> None:
        os.symlink("target", self.at(name))

    def tmpfile(self, name: str) -> None:
        os.close(os.open(self.at(name), os.O_TMPFILE | os.O_RDWR))

    def rename(self, old: str, new: str, flags: int) -> None:
        self._checked(libc.renameat2(-100, os.fsencode(self.at(old)), -100, os.fsencode(self.at(new)), int(flags)))

    @staticmethod
    def _checked(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "")


class PoolWork:
    """Operations on a file system of daxfs."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def at(self, name: str) -> int:
        return self.fs.tree.resolve(name)

    def set(self, name: str, flags: int) -> None:
        self.fs.set_flags(self.at(name), flags | EXT4_EXTENTS_FL)

    def plant(self, place: str) -> None:
        for name in ("", "/d", "/d/sub", "/e"):
            self.fs.tree.mkdir(place + name)
        for name in ("/d/f", "/d/g", "/e/h"):
            self.fs.tree.write_bytes(place + name, b"content")
        self.fs.setxattr(self.at(place + "/d/f"), b"user.old", b"1")
        self.fs.setxattr(self.at(place + "/d"), b"user.old", b"1")

    def open(self, name: str, flags: int) -> Any:
        return self.fs.open_file(self.at(name), flags)

    def close(self, file: Any) -> None:
        self.fs.release(file)

    def write(self, file: Any, offset: int) -> int:
        return self.fs.write(file, offset, b"xyz")

    def cut_open(self, file: Any, size: int) -> None:
        self.fs.setattr(file.ino, SetAttributes(size=size))

    def cut(self, name: str, size: int) -> None:
        self.fs.setattr(self.at(name), SetAttributes(size=size))

    def read(self, file: Any) -> bytes:
        return bytes(self.fs.read(file, 0, 3))

    def reserve(self, file: Any, mode: int) -> None:
        self.fs.fallocate(file, mode, 0, 4096)

    def chmod(self, name: str) -> None:
        self.fs.setattr(self.at(name), SetAttributes(mode=0o600))

    def chown(self, name: str) -> None:
        self.fs.setattr(self.at(name), SetAttributes(uid=5, gid=5))

    def utimes(self, name: str, atime: int | None, mtime: int | None) -> None:
        times = SetAttributes(
            atime_ns=None if atime in (None, -1) else atime,
            mtime_ns=None if mtime in (None, -1) else mtime,
            atime_now=atime is None,
            mtime_now=mtime is None,
        )
        self.fs.setattr(self.at(name), times)

    def setxattr(self, name: str, attribute: str) -> None:
        self.fs.setxattr(self.at(name), attribute.encode(), b"2")

    def removexattr(self, name: str) -> None:
        self.fs.removexattr(self.at(name), b"user.old")

    def link(self, old: str, new: str) -> None:
        self.fs.link(self.at(old), *self.fs.tree.parent(new))

    def unlink(self, name: str) -> None:
        self.fs.unlink(*self.fs.tree.parent(name))

    def rmdir(self, name: str) -> None:
        self.fs.rmdir(*self.fs.tree.parent(name))

    def mkdir(self, name: str) -> None:
        self.fs.mkdir(*self.fs.tree.parent(name), 0o755)

    def mknod(self, name: str) -> None:
        self.fs.mknod(*self.fs.tree.parent(name), 0o644)

    def symlink(self, name: str) -> None:
        self.fs.symlink(*self.fs.tree.parent(name), b"target")

    def tmpfile(self, name: str) -> None:
        self.fs.release(self.fs.tmpfile(self.at(name), 0o600)[0])

    def rename(self, old: str, new: str, flags: int) -> None:
        self.fs.tree.rename(old, new, flags)


Work = KernelWork | PoolWork
Task = Callable[[Work, str, Any], Any]
"""An operation in a place of its own, with a descriptor of d/f that was open before the flags were set."""


def opening(flags: int) -> Task:
    """Open d/f and close it."""
    return lambda w, p, _: w.close(w.open(p + "/d/f", flags))


def writing(flags: int) -> Task:
    """Open d/f, write, close."""

    def task(w: Work, p: str, _: Any) -> Any:
        file = w.open(p + "/d/f", flags)
        try:
            return w.write(file, 1)
        finally:
            w.close(file)

    return task


TASKS: dict[str, Task] = {
    "open to read": opening(os.O_RDONLY),
    "open to write": opening(os.O_WRONLY),
    "open to append": opening(os.O_WRONLY | os.O_APPEND),
    "open to cut": opening(os.O_WRONLY | os.O_TRUNC),
    "open to cut and append": opening(os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
    "append": writing(os.O_WRONLY | os.O_APPEND),
    "write to an open one": lambda w, _, file: w.write(file, 0),
    "write beyond an open one": lambda w, _, file: w.write(file, 10_000),
    "read an open one": lambda w, _, file: w.read(file),
    "cut an open one": lambda w, _, file: w.cut_open(file, 2),
    "lengthen an open one": lambda w, _, file: w.cut_open(file, 5000),
    "fallocate": lambda w, _, file: w.reserve(file, 0),
    "fallocate, same size": lambda w, _, file: w.reserve(file, 1),
    "punch": lambda w, _, file: w.reserve(file, 3),
    "zero": lambda w, _, file: w.reserve(file, 16),
    "cut": lambda w, p, _: w.cut(p + "/d/f", 2),
    "chmod": lambda w, p, _: w.chmod(p + "/d/f"),
    "chown": lambda w, p, _: w.chown(p + "/d/f"),
    "chmod directory": lambda w, p, _: w.chmod(p + "/d"),
    "chown directory": lambda w, p, _: w.chown(p + "/d"),
    "touch": lambda w, p, _: w.utimes(p + "/d/f", None, None),
    "touch directory": lambda w, p, _: w.utimes(p + "/d", None, None),
    "touch atime": lambda w, p, _: w.utimes(p + "/d/f", None, -1),
    "touch mtime": lambda w, p, _: w.utimes(p + "/d/f", -1, None),
    "date": lambda w, p, _: w.utimes(p + "/d/f", 5, 6),
    "date mtime": lambda w, p, _: w.utimes(p + "/d/f", -1, 6),
    "date atime, touch mtime": lambda w, p, _: w.utimes(p + "/d/f", 5, None),
    "date directory": lambda w, p, _: w.utimes(p + "/d", 5, 6),
    "set attribute": lambda w, p, _: w.setxattr(p + "/d/f", "user.old"),
    "set trusted": lambda w, p, _: w.setxattr(p + "/d/f", "trusted.new"),
    "set attribute of directory": lambda w, p, _: w.setxattr(p + "/d", "user.new"),
    "remove attribute": lambda w, p, _: w.removexattr(p + "/d/f"),
    "remove attribute of directory": lambda w, p, _: w.removexattr(p + "/d"),
    "link it": lambda w, p, _: w.link(p + "/d/f", p + "/e/n"),
    "link into": lambda w, p, _: w.link(p + "/e/h", p + "/d/n"),
    "link over": lambda w, p, _: w.link(p + "/e/h", p + "/d/g"),
    "unlink": lambda w, p, _: w.unlink(p + "/d/f"),
    "unlink beside": lambda w, p, _: w.unlink(p + "/d/g"),
    "unlink nothing": lambda w, p, _: w.unlink(p + "/d/nothing"),
    "rmdir": lambda w, p, _: w.rmdir(p + "/d/sub"),
    "rmdir file": lambda w, p, _: w.rmdir(p + "/d/f"),
    "rmdir full": lambda w, p, _: w.rmdir(p + "/d"),
    "mkdir": lambda w, p, _: w.mkdir(p + "/d/n"),
    "mkdir over": lambda w, p, _: w.mkdir(p + "/d/f"),
    "mkdir below": lambda w, p, _: w.mkdir(p + "/d/sub/n"),
    "mknod": lambda w, p, _: w.mknod(p + "/d/n"),
    "mknod over": lambda w, p, _: w.mknod(p + "/d/f"),
    "symlink": lambda w, p, _: w.symlink(p + "/d/n"),
    "tmpfile": lambda w, p, _: w.tmpfile(p + "/d"),
    "rename": lambda w, p, _: w.rename(p + "/d/f", p + "/d/n", 0),
    "rename beside": lambda w, p, _: w.rename(p + "/d/g", p + "/d/n", 0),
    "rename out": lambda w, p, _: w.rename(p + "/d/g", p + "/e/n", 0),
    "rename in": lambda w, p, _: w.rename(p + "/e/h", p + "/d/n", 0),
    "rename over": lambda w, p, _: w.rename(p + "/e/h", p + "/d/f", 0),
    "rename over beside": lambda w, p, _: w.rename(p + "/e/h", p + "/d/g", 0),
    "rename itself": lambda w, p, _: w.rename(p + "/d/f", p + "/d/f", 0),
    "rename nothing": lambda w, p, _: w.rename(p + "/d/nothing", p + "/d/n", 0),
    "rename noreplace": lambda w, p, _: w.rename(p + "/e/h", p + "/d/f", RenameFlags.NOREPLACE),
    "rename directory": lambda w, p, _: w.rename(p + "/d", p + "/n", 0),
    "rename below": lambda w, p, _: w.rename(p + "/d/sub", p + "/e/sub", 0),
    "exchange": lambda w, p, _: w.rename(p + "/d/f", p + "/e/h", RenameFlags.EXCHANGE),
    "exchange beside": lambda w, p, _: w.rename(p + "/e/h", p + "/d/g", RenameFlags.EXCHANGE),
    "whiteout": lambda w, p, _: w.rename(p + "/d/f", p + "/e/n", RenameFlags.WHITEOUT),
    "whiteout into": lambda w, p, _: w.rename(p + "/e/h", p + "/d/n", RenameFlags.WHITEOUT),
}

PROTECTED = [
    (),
    (("d/f", IMMUTABLE),),
    (("d/f", APPEND),),
    (("d", IMMUTABLE),),
    (("d", APPEND),),
    (("d", APPEND), ("d/f", APPEND)),
    (("d/f", IMMUTABLE | APPEND),),
    (("d/sub", IMMUTABLE),),
    (("e", IMMUTABLE),),
    (("e", APPEND),),
]


def refusals(work: Work) -> dict[tuple[str, str], Any]:
    """Return the result of each task under each protection, and whether d/f was unchanged."""
    found = {}
    for number, (protection, name) in enumerate(itertools.product(PROTECTED, TASKS)):
        place = str(number)
        work.plant(place)
        file = work.open(place + "/d/f", os.O_RDWR)
        for target, flags in protection:
            work.set(f"{place}/{target}", flags)
        found[str(protection), name] = outcome(lambda p=place, t=name, f=file: TASKS[t](work, p, f))  # type: ignore[misc]
        work.close(file)
        for target, _ in protection:
            outcome(lambda at=f"{place}/{target}": work.set(at, 0))  # type: ignore[misc]
    return found


def test_the_kernel_forbids_the_same(pool: MakePool) -> None:
    ours, theirs = (pool("-b", "4096", "-N", "8192") for _ in range(2))
    with FileSystem.open(ours, QUIET) as fs:
        found = refusals(PoolWork(fs))
    fsck(ours)
    with kernel_mount(theirs) as root:
        expected = refusals(KernelWork(root))
    differences = [
        f"{key}: {found[key]}, the kernel {expected[key]}" for key in expected if found[key] != expected[key]
    ]
    assert not differences, "\n".join(differences)
    assert sum(said == "EPERM" for said in expected.values()) > 150


@pytest.mark.crash
def test_a_touch_is_no_date(fs: FileSystem, ino: int) -> None:
    fs.setattr(ino, SetAttributes(atime_ns=1, mtime_ns=2, ctime_ns=3))
    found = fs.setattr(ino, SetAttributes(mtime_now=True))
    assert found.atime_ns == 1
    assert found.mtime_ns == found.ctime_ns > 3
    found = fs.setattr(ino, SetAttributes(atime_now=True, mtime_ns=5))
    assert (found.atime_ns, found.mtime_ns) == (found.ctime_ns, 5)


# Flags that change what operations do


def test_reads_of_a_noatime_file(open_fs: OpenFs) -> None:
    fs = open_fs(mount=Options(atime="strictatime"))
    heir = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    fs.set_flags(heir, EXT4_NOATIME_FL | EXT4_EXTENTS_FL)
    made, found = fs.create(heir, b"f", 0o644)
    assert found.flags & EXT4_NOATIME_FL
    for turn in range(2):
        fs.write(made, 0, b"content" * 1000 * turn)
        fs.setattr(made.ino, SetAttributes(atime_ns=5))
        fs.read(made, 0, 10)
        assert fs.getattr(made.ino).atime_ns == 5
    fs.set_flags(made.ino, EXT4_EXTENTS_FL)
    fs.read(made, 0, 10)
    assert fs.getattr(made.ino).atime_ns > 5
    fs.release(made)
    directory = fs.opendir(heir)
    fs.setattr(heir, SetAttributes(atime_ns=5))
    list(fs.readdir(directory))
    assert fs.getattr(heir).atime_ns == 5
    fs.releasedir(directory)


@pytest.mark.crash
def test_what_is_done_to_a_sync_inode_is_durable(fs: FileSystem) -> None:
    def commits(change: Callable[[], object]) -> int:
        before = fs.volume.journal.stats.commits
        change()
        return fs.volume.journal.stats.commits - before

    plain = fs.mknod(ROOT_INO, b"plain", 0o644).ino
    directory = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    fs.set_flags(directory, EXT4_DIRSYNC_FL | EXT4_EXTENTS_FL)
    made = fs.mknod(directory, b"made", 0o644).ino
    assert not fs.getattr(made).flags & EXT4_DIRSYNC_FL
    fs.set_flags(made, EXT4_SYNC_FL | EXT4_EXTENTS_FL)
    file = fs.open_file(made, os.O_RDWR)
    durable: list[Callable[[], object]] = [
        lambda: fs.write(file, 0, b"new" * 2000),
        lambda: fs.write(file, 0, b"old"),
        lambda: fs.setattr(made, SetAttributes(size=100)),
        lambda: fs.setattr(made, SetAttributes(mode=0o600)),
        lambda: fs.setxattr(made, b"user.x", b"1"),
        lambda: fs.removexattr(made, b"user.x"),
        lambda: fs.release(fs.open_file(made, os.O_WRONLY | os.O_TRUNC)),
        lambda: fs.mkdir(directory, b"sub", 0o755),
        lambda: fs.link(plain, directory, b"linked"),
        lambda: fs.rename(directory, b"linked", directory, b"renamed"),
        lambda: fs.unlink(directory, b"renamed"),
        lambda: fs.rmdir(directory, b"sub"),
        lambda: fs.set_flags(made, EXT4_SYNC_FL | EXT4_EXTENTS_FL),
    ]
    for change in durable:
        fs.sync()
        assert commits(change)
        assert commits(lambda: fs.setattr(plain, SetAttributes(mode=0o600))) == 0, "only what concerns them"
    assert commits(lambda: fs.mknod(ROOT_INO, b"more", 0o644)) == 0
    fs.release(file)


# DAX


@pytest.mark.parametrize("policy", ["always", "inode", "never"])
def test_which_files_use_dax(open_fs: OpenFs, policy: str) -> None:
    fs = open_fs(mount=Options(dax=policy))
    directory = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    fs.set_flags(directory, EXT4_DAX_FL | EXT4_EXTENTS_FL)
    flagged = fs.mknod(directory, b"f", 0o644)
    below = fs.mkdir(directory, b"below", 0o755)
    plain = fs.mknod(ROOT_INO, b"f", 0o644)
    assert flagged.flags & below.flags & EXT4_DAX_FL
    assert not fs.mknod(directory, b"fifo", stat.S_IFIFO | 0o644).flags & EXT4_DAX_FL
    assert fs.uses_dax(flagged.ino) == (policy != "never")
    assert fs.uses_dax(plain.ino) == (policy == "always")
    assert not fs.uses_dax(directory)
    force(fs, flagged.ino, EXT4_VERITY_FL)
    assert not fs.uses_dax(flagged.ino)
    with fs.volume.handle(1) as tx:
        inodes.edit(tx, flagged.ino).flags &= ~EXT4_VERITY_FL
    fs.set_flags(flagged.ino, EXT4_EXTENTS_FL)
    assert fs.uses_dax(flagged.ino) == (policy == "always")


def test_an_open_file_keeps_its_way(open_fs: OpenFs) -> None:
    """As in the kernel, the flag counts when the inode has left the cache."""
    fs = open_fs(mount=Options(dax="inode"))
    first, made = fs.create(ROOT_INO, b"f", 0o644)
    fs.write(first, 0, b"content")
    for flag in (EXT4_DAX_FL, 0):
        second = fs.open_file(made.ino, os.O_RDWR)
        fs.write(second, 0, b"CONTENT")
        fs.set_flags(made.ino, flag | EXT4_EXTENTS_FL)
        assert fs.uses_dax(made.ino) != bool(flag)
        fs.release(first)
        assert fs.uses_dax(made.ino) != bool(flag)
        fs.write(second, 0, b"content")
        fs.release(second)
        assert fs.volume.nodes.open, "its times wait, so that its node is still there"
        first = fs.open_file(made.ino)
        assert fs.uses_dax(made.ino) == bool(flag)
    fs.release(first)

"""Files without a name (O_TMPFILE): made, kept while open, named, removed with the last close or by a power cut."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from tree_rig import NAMED_ACL, wire

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, Options, SetAttributes
from daxfs.structures import orphans
from support import fsck

OpenFs = Callable[..., FileSystem]
MakePool = Callable[..., Path]

AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
libc = ctypes.CDLL(None, use_errno=True)

DEFAULT = b"system.posix_acl_default"
USER = Caller(uid=1000, gid=2000, umask=0o027)


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def listed(fs: FileSystem) -> list[int]:
    """Return the orphans on the disk's list."""
    return list(orphans.listing(fs.volume.view))


@contextlib.contextmanager
def nothing_is_lost(fs: FileSystem) -> Iterator[None]:
    """Check that as many blocks and inodes are free at the end as at the start."""
    before = fs.statfs()
    yield
    fs.sync()
    after = fs.statfs()
    assert (after.free, after.files_free) == (before.free, before.files_free)
    assert listed(fs) == []


def test_it_lives_from_open_to_close(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    names = set(fs.tree.listdir("/"))
    with nothing_is_lost(fs):
        for synced in (False, True):
            file, made = fs.tmpfile(ROOT_INO, 0o640)
            assert made.nlink == 0
            assert made.mode == stat.S_IFREG | 0o640
            fs.write(file, 0, b"x" * 200_000)
            if synced:
                fs.sync()
                assert listed(fs) == [file.ino]
            assert bytes(fs.read(file, 199_990, 100)) == b"x" * 10
            assert set(fs.tree.listdir("/")) == names
            fs.release(file)


@pytest.mark.crash
def test_a_pinned_one_lives_until_it_is_forgotten(fs: FileSystem) -> None:
    with nothing_is_lost(fs):
        file, made = fs.tmpfile(ROOT_INO, 0o600)
        fs.pin(made)
        fs.release(file)
        assert fs.getattr(made.ino).nlink == 0
        fs.unpin(made.ino)


def test_unmounting_frees_what_is_still_open(pool: MakePool) -> None:
    path = pool()
    fs = FileSystem.open(path)
    file, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.write(file, 0, b"x" * 100_000)
    fs.sync()
    fs.close()
    fsck(path)


@pytest.mark.parametrize("synced", [False, True])
def test_it_gets_a_name(open_fs: OpenFs, any_format: tuple[str, ...], synced: bool) -> None:
    fs = open_fs(*any_format)
    fs.tree.mkdir("/d")
    others = [fs.tmpfile(ROOT_INO, 0o600)[0] for _ in range(2)]
    file, _ = fs.tmpfile(ROOT_INO, 0o644, os.O_WRONLY)
    others += [fs.tmpfile(ROOT_INO, 0o600)[0] for _ in range(2)]
    fs.write(file, 0, b"content")
    if synced:
        fs.sync()
    found = fs.link(file.ino, fs.tree.resolve("/d"), b"named")
    assert found.nlink == 1
    if synced:
        fs.sync()
        assert set(listed(fs)) == {other.ino for other in others}
    fs.release(file)
    assert fs.tree.read_bytes("/d/named") == b"content"
    assert fs.link(found.ino, ROOT_INO, b"again").nlink == 2
    fs.unlink(ROOT_INO, b"again")
    fs.tree.unlink("/d/named")
    with refused(errno.ENOENT):
        fs.tree.stat("/d/named")
    for other in others:
        fs.release(other)
    fs.sync()
    assert listed(fs) == []


@pytest.mark.crash
def test_what_gets_no_name(fs: FileSystem) -> None:
    closed, _ = fs.tmpfile(ROOT_INO, 0o600, os.O_RDWR | os.O_EXCL)
    with refused(errno.ENOENT):
        fs.link(closed.ino, ROOT_INO, b"n")
    unlinked, _ = fs.create(ROOT_INO, b"u", 0o600)
    fs.unlink(ROOT_INO, b"u")
    with refused(errno.ENOENT):
        fs.link(unlinked.ino, ROOT_INO, b"n")
    once, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.link(once.ino, ROOT_INO, b"n")
    fs.unlink(ROOT_INO, b"n")
    with refused(errno.ENOENT):
        fs.link(once.ino, ROOT_INO, b"n")
    for file in (closed, unlinked, once):
        fs.release(file)


@pytest.mark.crash
def test_a_refused_name_changes_nothing(fs: FileSystem) -> None:
    fs.tree.mkdir("/d")
    file, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.sync()
    with refused(errno.EEXIST):
        fs.link(file.ino, ROOT_INO, b"d")
    gone = fs.opendir(fs.tree.resolve("/d"))
    fs.tree.rmdir("/d")
    with refused(errno.ENOENT):
        fs.link(file.ino, gone.ino, b"n")
    with refused(errno.EPERM):
        fs.tmpfile(gone.ino, 0o600)
    fs.releasedir(gone)
    assert listed(fs) == [file.ino]
    assert fs.link(file.ino, ROOT_INO, b"n").nlink == 1
    fs.release(file)
    with refused(errno.ENOTDIR):
        fs.tmpfile(fs.tree.resolve("/n"), 0o600)


@pytest.mark.crash
def test_a_number_used_again_is_not_linkable(fs: FileSystem) -> None:
    file, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.release(file)
    again, made = fs.create(ROOT_INO, b"f", 0o600)
    assert made.ino == file.ino
    fs.unlink(ROOT_INO, b"f")
    with refused(errno.ENOENT):
        fs.link(made.ino, ROOT_INO, b"n")
    fs.release(again)


@pytest.mark.crash
def test_it_inherits_as_a_named_file_does(fs: FileSystem) -> None:
    heir = fs.mkdir(ROOT_INO, b"heir", 0o2775).ino
    fs.setattr(heir, SetAttributes(gid=77))
    for acl in (None, wire(NAMED_ACL)):
        if acl:
            fs.setxattr(heir, DEFAULT, acl)
        named, seen = fs.create(heir, b"named", 0o666, os.O_RDWR, USER)
        nameless, made = fs.tmpfile(heir, 0o666, os.O_RDWR, USER)
        assert (made.mode, made.uid, made.gid, made.flags) == (seen.mode, seen.uid, seen.gid, seen.flags)
        assert made.gid == 77
        assert {name: fs.getxattr(made.ino, name) for name in fs.listxattr(made.ino)} == {
            name: fs.getxattr(seen.ino, name) for name in fs.listxattr(seen.ino)
        }
        fs.release(named)
        fs.release(nameless)
        fs.unlink(heir, b"named")


def test_a_full_pool_makes_none(open_fs: OpenFs) -> None:
    fs = open_fs("-N", "16", size="8M")
    held = []
    with refused(errno.ENOSPC):
        for _ in range(100):
            held.append(fs.tmpfile(ROOT_INO, 0o600)[0])
    assert held
    for file in held:
        fs.release(file)
    fs.release(fs.tmpfile(ROOT_INO, 0o600)[0])


def test_read_only(pool: MakePool) -> None:
    with FileSystem.open(pool(), Options(read_only=True)) as fs, refused(errno.EROFS):
        fs.tmpfile(ROOT_INO, 0o600)


def errno_of(call: Callable[[], object]) -> str:
    """Return the name of the error that a call raises, "" if none."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_the_kernel_says_the_same(pool: MakePool) -> None:
    """The kernel's ext4 gets the same calls, and reads the file that daxfs has named."""
    path = pool("-b", "4096")
    with kernel_mount(path) as root:

        def name(descriptor: int, target: str) -> str:
            old, new = os.fsencode(f"/proc/self/fd/{descriptor}"), os.fsencode(root / target)
            done = libc.linkat(AT_FDCWD, old, AT_FDCWD, new, AT_SYMLINK_FOLLOW)
            return errno.errorcode[ctypes.get_errno()] if done else ""

        (root / "there").touch()
        plain = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o644)
        closed = os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o644)
        theirs = [name(plain, "there"), name(closed, "a"), name(plain, "a"), name(plain, "b")]
        for used in ("a", "b"):
            (root / used).unlink()
        theirs.append(name(plain, "c"))
        os.mkdir(root / "gone")
        gone = os.open(root / "gone", os.O_RDONLY)
        os.rmdir(root / "gone")
        theirs.append(errno_of(lambda: os.open(f"/proc/self/fd/{gone}", os.O_TMPFILE | os.O_RDWR)))
        for descriptor in (plain, closed, gone):
            os.close(descriptor)
    with FileSystem.open(path) as fs:
        file, _ = fs.tmpfile(ROOT_INO, 0o644)
        fixed, _ = fs.tmpfile(ROOT_INO, 0o644, os.O_RDWR | os.O_EXCL)
        fs.write(file, 0, b"content")

        def link(ino: int, name: bytes) -> str:
            return errno_of(lambda: fs.link(ino, ROOT_INO, name))

        ours = [link(file.ino, b"there"), link(fixed.ino, b"a"), link(file.ino, b"a"), link(file.ino, b"b")]
        fs.unlink(ROOT_INO, b"a")
        fs.unlink(ROOT_INO, b"b")
        ours.append(link(file.ino, b"c"))
        directory = fs.opendir(fs.mkdir(ROOT_INO, b"gone", 0o755).ino)
        fs.rmdir(ROOT_INO, b"gone")
        ours.append(errno_of(lambda: fs.tmpfile(directory.ino, 0o600)))
        fs.releasedir(directory)
        last, _ = fs.tmpfile(ROOT_INO, 0o644)
        fs.write(last, 0, b"last")
        fs.link(last.ino, ROOT_INO, b"last")
    assert ours == theirs
    with kernel_mount(path) as root:
        assert (root / "last").read_bytes() == b"last"
        assert (root / "last").stat().st_nlink == 1
    fsck(path)

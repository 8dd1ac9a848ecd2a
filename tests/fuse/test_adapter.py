"""The adapter with a fake core: the call that each request becomes, the answer to each refusal, and pins."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from fake_core import FakeCore

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.fs.types import ROOT_INO, Caller, SetAttributes
from daxfs.fuse.libfuse import adapter as module
from daxfs.fuse.libfuse.adapter import Adapter

CONTEXT = SimpleNamespace(uid=1000, gid=100, pid=77, umask=0o022)
CALLER = Caller(1000, 100, 77, 0o022)


def answer(request: Any) -> Any:
    """Run a handler to its end; it must not wait."""
    try:
        request.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a handler waited")


def refusal(request: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        answer(request)
    return caught.value.errno


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def fuse(core: FakeCore) -> Adapter:
    return Adapter(core)  # type: ignore[arg-type]


def made(fuse: Adapter, name: bytes = b"file") -> tuple[int, int]:
    """Create a file and open it; return its handle and its node."""
    info, entry = answer(fuse.create(1, name, stat.S_IFREG | 0o666, os.O_RDWR, CONTEXT))
    return info.fh, entry.st_ino


def test_root_is_one_outside_and_two_inside(fuse: Adapter, core: FakeCore) -> None:
    assert answer(fuse.getattr(1, CONTEXT)).st_ino == 1
    assert core.calls == [("getattr", (ROOT_INO,))]
    made(fuse)
    assert core.calls[1] == ("create", (ROOT_INO, b"file", stat.S_IFREG | 0o666, os.O_RDWR, CALLER))
    assert answer(fuse.lookup(12, b"..", CONTEXT)).st_ino == 1


def test_attributes_arrive_whole(fuse: Adapter, core: FakeCore) -> None:
    answer(fuse.mknod(1, b"null", stat.S_IFCHR | 0o640, os.makedev(1, 3), CONTEXT))
    inode = core.inodes[12]
    inode.times = [-1, 10**18 + 999_999_999, 2**33 * 10**9 + 5]
    inode.content = bytearray(1000)
    entry = answer(fuse.lookup(1, b"null", CONTEXT))
    assert (entry.st_ino, entry.generation) == (12, 0)
    assert entry.st_mode == stat.S_IFCHR | 0o640
    assert (entry.st_uid, entry.st_gid, entry.st_nlink, entry.st_rdev) == (1000, 100, 1, os.makedev(1, 3))
    assert (entry.st_size, entry.st_blocks) == (1000, 2)
    assert [entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns] == inode.times
    assert entry.attr_timeout == entry.entry_timeout == module.CACHE_SECONDS


def test_a_name_that_is_not_there_is_remembered_as_such(fuse: Adapter, core: FakeCore) -> None:
    entry = answer(fuse.lookup(1, b"nothing", CONTEXT))
    assert entry.st_ino == 0
    assert entry.entry_timeout == module.CACHE_SECONDS
    assert core.pins == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG, errno.EROFS])
def test_a_refusal_becomes_its_errno(fuse: Adapter, core: FakeCore, number: int) -> None:
    handle, node = made(fuse)
    requests = {
        "lookup": lambda: fuse.lookup(1, b"x", CONTEXT),
        "getattr": lambda: fuse.getattr(node, CONTEXT),
        "mkdir": lambda: fuse.mkdir(1, b"d", 0o755, CONTEXT),
        "symlink": lambda: fuse.symlink(1, b"l", b"target", CONTEXT),
        "link": lambda: fuse.link(node, 1, b"other", CONTEXT),
        "unlink": lambda: fuse.unlink(1, b"file", CONTEXT),
        "rmdir": lambda: fuse.rmdir(1, b"file", CONTEXT),
        "rename": lambda: fuse.rename(1, b"file", 1, b"new", 0, CONTEXT),
        "open_file": lambda: fuse.open(node, os.O_RDONLY, CONTEXT),
        "read": lambda: fuse.read(handle, 0, 10),
        "write": lambda: fuse.write(handle, 0, b"data"),
        "fsync": lambda: fuse.fsync(handle, True),
        "setxattr": lambda: fuse.setxattr(node, b"user.x", b"1", CONTEXT),
        "opendir": lambda: fuse.opendir(1, CONTEXT),
    }
    pins = dict(core.pins)
    for name, request in requests.items():
        core.refuse = {name: FsError(number)}
        assert refusal(request()) == number, name
    assert core.pins == pins, "a refused request counts as no lookup"


def test_damage_is_euclean(fuse: Adapter, core: FakeCore) -> None:
    core.refuse = {"getattr": Corrupt(CorruptKind.INODE_CHECKSUM, "inode 12")}
    assert refusal(fuse.getattr(12, CONTEXT)) == errno.EUCLEAN


def test_an_unknown_exception_goes_up(fuse: Adapter, core: FakeCore) -> None:
    core.refuse = {"getattr": KeyError("bug")}
    with pytest.raises(KeyError):
        answer(fuse.getattr(12, CONTEXT))


def test_lookups_are_counted_and_forgotten(fuse: Adapter, core: FakeCore) -> None:
    _, node = made(fuse)
    answer(fuse.lookup(1, b"file", CONTEXT))
    answer(fuse.link(node, 1, b"again", CONTEXT))
    answer(fuse.getattr(node, CONTEXT))
    answer(fuse.setattr(node, pyfuse3.EntryAttributes(), fields(), None, CONTEXT))
    assert core.pins == {node: 3}
    core.refuse = {"unpin": FsError(errno.EIO)}
    answer(fuse.forget([(node, 1)]))
    core.refuse = {}
    answer(fuse.forget([(node, 2), (node, 1)]))
    assert core.pins == {}


def fields(**given: bool) -> Any:
    names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    return SimpleNamespace(**{f"update_{name}": given.get(name, False) for name in names})


def test_setattr_passes_on_only_what_is_asked(fuse: Adapter, core: FakeCore) -> None:
    _, node = made(fuse)
    new = pyfuse3.EntryAttributes()
    new.st_mode, new.st_uid, new.st_gid, new.st_size = stat.S_IFREG | 0o4755, 7, 8, 99
    new.st_atime_ns = new.st_mtime_ns = new.st_ctime_ns = 123_456_789_012
    for name, value in {"mode": 0o4755, "uid": 7, "gid": 8, "size": 99}.items():
        answer(fuse.setattr(node, new, fields(**{name: True}), None, CONTEXT))
        assert core.calls[-1] == ("setattr", (node, SetAttributes(**{name: value}), CALLER))
    for name in ("atime", "mtime", "ctime"):
        answer(fuse.setattr(node, new, fields(**{name: True}), 5, CONTEXT))
        assert core.calls[-1][1][1] == SetAttributes(**{f"{name}_ns": 123_456_789_012})


def test_files_are_read_written_and_closed_by_handle(fuse: Adapter, core: FakeCore) -> None:
    handle, node = made(fuse)
    assert answer(fuse.write(handle, 3, b"abc")) == 3
    assert bytes(answer(fuse.read(handle, 0, 100))) == b"\0\0\0abc"
    info = answer(fuse.open(node, os.O_RDONLY | os.O_TRUNC, CONTEXT))
    assert info.direct_io
    assert info.fh != handle
    assert bytes(answer(fuse.read(info.fh, 0, 100))) == b""
    answer(fuse.fsync(handle, False))
    assert core.calls[-1] == ("fsync", (node, False))
    assert refusal(fuse.flush(handle)) == errno.ENOSYS
    answer(fuse.release(handle))
    answer(fuse.release(info.fh))
    assert core.open_files == 0


def test_a_write_that_may_drop_set_id_bits_tells_the_kernel(fuse: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, node = made(fuse)
    invalidated: list[tuple[int, bool]] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda ino, attr_only: invalidated.append((ino, attr_only)))
    answer(fuse.write(handle, 0, b"x"))
    assert invalidated == []
    fuse._files[handle].keeps_privileges = False
    answer(fuse.write(handle, 0, b"x"))
    assert invalidated == [(node, True)]


def listing(fuse: Adapter, monkeypatch: pytest.MonkeyPatch, room: int, cookie: int = 0) -> list[tuple[bytes, int, int]]:
    """Return the entries that one readdir of the root puts into a buffer of ``room`` entries."""
    taken: list[tuple[bytes, int, int]] = []

    def reply(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, following: int) -> bool:
        if len(taken) == room:
            return False
        taken.append((name, entry.st_ino, following))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    handle = answer(fuse.opendir(1, CONTEXT))
    answer(fuse.readdir(handle, cookie, None))  # type: ignore[arg-type]
    answer(fuse.fsyncdir(handle, False))
    answer(fuse.releasedir(handle))
    return taken


def test_readdir_pins_what_was_taken_and_nothing_else(
    fuse: Adapter, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b", b"c"):
        made(fuse, name)
    core.pins.clear()
    assert listing(fuse, monkeypatch, 4) == [(b".", 1, 1), (b"..", 1, 2), (b"a", 12, 3), (b"b", 13, 4)]
    assert core.pins == {12: 1, 13: 1}
    assert listing(fuse, monkeypatch, 4, cookie=4) == [(b"c", 14, 5)]
    assert core.pins == {12: 1, 13: 1, 14: 1}


def test_readdir_lists_a_damaged_inode(fuse: Adapter, core: FakeCore, monkeypatch: pytest.MonkeyPatch) -> None:
    made(fuse, b"a")
    core.refuse = {"getattr": Corrupt(CorruptKind.INODE_CHECKSUM, "inode 12")}
    assert [name for name, *_ in listing(fuse, monkeypatch, 9)] == [b".", b"..", b"a"]


def test_lookups_by_file_handle(fuse: Adapter, core: FakeCore) -> None:
    _, node = made(fuse)
    assert answer(fuse.lookup(node, b".", CONTEXT)).st_ino == node
    assert answer(fuse.lookup(1, b".", CONTEXT)).st_ino == 1
    assert refusal(fuse.lookup(8, b".", CONTEXT)) == errno.ESTALE
    core.refuse = {"getattr": Corrupt(CorruptKind.INODE_NUMBER, "what is not in the pool is not asked for")}
    assert refusal(fuse.lookup(999, b".", CONTEXT)) == errno.ESTALE
    core.refuse = {}
    answer(fuse.unlink(1, b"file", CONTEXT))
    assert refusal(fuse.lookup(node, b".", CONTEXT)) == errno.ESTALE


def test_the_rest(fuse: Adapter, core: FakeCore) -> None:
    _, node = made(fuse)
    answer(fuse.symlink(1, b"l", b"target", CONTEXT))
    assert answer(fuse.readlink(13, CONTEXT)) == b"target"
    answer(fuse.setxattr(node, b"user.x", b"1", CONTEXT))
    assert answer(fuse.getxattr(node, b"user.x", CONTEXT)) == b"1"
    assert answer(fuse.listxattr(node, CONTEXT)) == [b"user.x"]
    answer(fuse.removexattr(node, b"user.x", CONTEXT))
    assert refusal(fuse.getxattr(node, b"user.x", CONTEXT)) == errno.ENODATA
    assert answer(fuse.access(node, os.R_OK, CONTEXT)) is True
    assert answer(fuse.access(node, os.X_OK, CONTEXT)) is False
    found = answer(fuse.statfs(CONTEXT))
    assert (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail) == (
        4096,
        4096,
        1000,
        600,
        500,
    )
    assert (found.f_files, found.f_ffree, found.f_namemax) == (300, 200, 255)
    answer(fuse.rename(1, b"file", 1, b"new", 1, CONTEXT))
    name, (*arguments, caller) = core.calls[-1]
    assert (name, arguments) == ("rename", [ROOT_INO, b"file", ROOT_INO, b"new", 1])
    assert (caller.uid, caller.gid) == (CONTEXT.uid, CONTEXT.gid)
    assert refusal(fuse.poll(node, 1, None, CONTEXT)) == errno.ENOSYS
    made(fuse, b"open")
    answer(fuse.opendir(1, CONTEXT))
    fuse.close_all()
    assert core.open_files == 0

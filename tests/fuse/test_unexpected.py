"""Unexpected exceptions: an error for one request if no change was interrupted, else the end of the session."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import pytest
from fake_core import FakeCore
from message_rig import ROOT, Rig, pack

from daxfs import protocol
from daxfs.errors import FsError
from daxfs.fs import names
from daxfs.fs.types import ROOT_INO
from daxfs.fuse import serving, unexpected
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.unexpected import refusal
from daxfs.journal.log import Log
from daxfs.structures import blocks, inode_allocation

Bug = Callable[..., None]


@pytest.fixture(autouse=True)
def _as_it_is(_bugs_are_seen: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the behaviour of the daemon: in other tests a bug is raised."""
    monkeypatch.setattr(unexpected, "refusal", refusal)


def raising(error: BaseException) -> Bug:
    """Return a function that raises an exception."""

    def bug(*_: object, **__: object) -> None:
        raise error

    return bug


@pytest.mark.parametrize(
    ("error", "number"), [(KeyError("bug"), errno.EIO), (MemoryError(), errno.ENOMEM), (OverflowError(), errno.EIO)]
)
@pytest.mark.interpreted
def test_outside_of_a_change(
    rig: Rig, error: Exception, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.init()
    made, handle = rig.create(b"file")
    with monkeypatch.context() as broken:
        broken.setattr(names, "find", raising(error))
        assert rig.refused(Opcode.LOOKUP, body=b"file\0") == number
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "opcode 1" in record.getMessage()
    assert (record.exc_info is not None) is (number == errno.EIO)
    assert rig.lookup(b"file").nodeid == made.nodeid
    rig.write(made.nodeid, handle, b"data")
    assert not rig.core.read_only


@pytest.mark.interpreted
def test_inside_a_change(rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of()
    rig.init()
    with monkeypatch.context() as broken:
        broken.setattr(inode_allocation, "allocate", raising(KeyError("bug")))
        with pytest.raises(KeyError):
            rig.ask(Opcode.MKDIR, body=pack("mkdir_in", mode=0o755) + b"d\0")
    assert rig.core.interrupted
    with pytest.raises(serving.SessionFailed), serving.failing(rig.core, "/mnt"):
        raise KeyError("bug")
    with pytest.raises(FsError) as caught:
        rig.core.mkdir(2, b"e", 0o755)
    assert caught.value.errno == errno.EROFS
    rig.may_turn_read_only = True


@pytest.mark.interpreted
def test_inside_a_commit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.init()
    made, handle = rig.create(b"file")
    with monkeypatch.context() as broken:
        broken.setattr(Log, "commit", raising(KeyError("bug")))
        with pytest.raises(KeyError):
            rig.ask(Opcode.FSYNC, made.nodeid, pack("fsync_in", fh=handle))
    with pytest.raises(FsError) as caught:
        rig.core.sync()
    assert caught.value.errno == errno.EIO, "the journal was aborted"


@pytest.mark.interpreted
@pytest.mark.parametrize("place", ["handle", "buffers", "log"])
def test_memory_that_runs_out_ends_no_session(rig: Rig, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Before a commit is stored nothing is half done. In the middle of it the journal stops, as at any error there."""
    rig.init()
    made, handle = rig.create(b"file")
    owner, name = {"handle": (inode_allocation, "allocate"), "buffers": (Log, "prepare"), "log": (Log, "_write")}[place]
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, raising(MemoryError()))
        if place == "handle":
            assert rig.refused(Opcode.MKDIR, body=pack("mkdir_in", mode=0o755) + b"d\0") == errno.ENOMEM
        else:
            assert rig.refused(Opcode.FSYNC, made.nodeid, pack("fsync_in", fh=handle)) == errno.ENOMEM
    assert not rig.core.interrupted
    assert rig.core.getattr(ROOT_INO).nlink
    rig.may_turn_read_only = place == "log"


@pytest.mark.interpreted
def test_a_refusal_interrupts_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.init()
    with monkeypatch.context() as broken:
        broken.setattr(blocks, "allocate", raising(FsError(errno.ENOSPC)))
        assert rig.refused(Opcode.MKDIR, body=pack("mkdir_in", mode=0o755) + b"d\0") == errno.ENOSPC
    assert not rig.core.interrupted


def test_what_was_gathered_is_given_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback's frames hold the memory that the request had collected, and must release it."""
    rig.init()
    held: list[bytearray] = []

    class Counted(bytearray):
        def __del__(self) -> None:
            held.append(bytearray(1))

    def gather(*_: object, **__: object) -> None:
        part = Counted(1000)
        del _, __
        assert part
        raise MemoryError

    made, handle = rig.create(b"file")
    rig.write(made.nodeid, handle, b"x" * 5000)
    monkeypatch.setattr(type(rig.core), "read", gather)
    body = pack("read_in", fh=handle, offset=0, size=4096)
    assert rig.refused(Opcode.READ, made.nodeid, body) == errno.ENOMEM
    assert held


def test_what_nobody_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(FakeCore())
    rig.init()
    node = rig.create(b"file")[0].nodeid
    rig.core.refuse = {"unpin": KeyError("bug"), "release": KeyError("bug")}
    rig.forget(node)
    rig.connection.process_forgets()
    rig.connection.close_all(unmounted=True)
    assert sum("a bug in daxfs" in record.getMessage() for record in caplog.records) == 2
    rig.core.interrupted = True
    rig.forget(node)
    with pytest.raises(KeyError):
        rig.connection.process_forgets()


def test_a_path_that_clients_cannot_be_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.init()
    found = rig.core.pool_identity()
    fits = protocol.PATH_SIZE - 1
    for length, number in ((fits, 0), (fits + 1, errno.ENAMETOOLONG), (4000, errno.ENAMETOOLONG)):
        identity = found._replace(path="/" * length)
        monkeypatch.setattr(type(rig.core), "pool_identity", lambda _, identity=identity: identity)
        body = pack("ioctl_in", cmd=protocol.IOC_POOL, out_size=protocol.POOL.size)
        assert rig.ask(Opcode.IOCTL, ROOT, body).error == number

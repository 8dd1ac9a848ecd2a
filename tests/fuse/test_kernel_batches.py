"""Messages of batches: whose READ and WRITE goes where, and which commit the kernel's cache forbids."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from message_rig import Rig, pack, unpack

from daxfs.errors import FsError
from daxfs.fs import atomic
from daxfs.fs.filesystem import FileSystem
from daxfs.fuse.kernel import abi, openbatch
from daxfs.fuse.kernel.abi import Opcode

START, COMMIT, ABORT = 0xF501, 0xF502, 0xF505
GET_FEATURES = 0x8004F50C
LOCKOWNER = 2
WRITE_CACHE = 1
PAGE = mmap.PAGESIZE


def ioctl(fh: int, command: int) -> bytes:
    return pack("ioctl_in", fh=fh, cmd=command)


def read_call(rig: Rig, node: int, fh: int, offset: int, size: int) -> bytes:
    """read(2), which names the owner of its locks."""
    body = pack("read_in", fh=fh, offset=offset, size=size, read_flags=LOCKOWNER, lock_owner=9)
    return rig.done(Opcode.READ, node, body)


def begun(rig: Rig) -> tuple[int, int, int]:
    """A file of four pages with a batch on its first handle: node, that handle, another one."""
    found, fh = rig.create(b"f")
    node = found.nodeid
    rig.write(node, fh, b"o" * 4 * PAGE)
    other = rig.open(node)
    rig.done(Opcode.IOCTL, node, ioctl(fh, START), pid=77)
    return node, fh, other


def test_reads_and_writes_of_a_batch(agreed: Rig) -> None:
    node, fh, other = begun(agreed)
    agreed.write(node, fh, b"n" * 10, 5)
    assert read_call(agreed, node, fh, 0, 20) == b"o" * 5 + b"n" * 10 + b"o" * 5
    assert read_call(agreed, node, other, 0, 20) == b"o" * 20
    assert agreed.read(node, fh, 0, 20) == b"o" * 20, "a page for the cache, whoever's open file it names"
    agreed.write(node, other, b"w", 0)
    agreed.write(node, fh, b"c", 1, WRITE_CACHE)
    assert read_call(agreed, node, other, 0, 5) == b"wcooo", "written back from the cache, not staged"
    assert read_call(agreed, node, fh, 0, 6) == b"wcooon"
    assert agreed.refused(Opcode.IOCTL, node, ioctl(other, COMMIT), pid=77) == errno.EINVAL


@pytest.mark.parametrize(
    ("reads", "number"),
    [
        ([], 0),
        ([(0, PAGE)], errno.EBUSY),
        ([(PAGE, 3 * PAGE)], 0),
        ([(PAGE // 2, PAGE)], errno.EBUSY),
    ],
)
def test_pages_that_the_kernel_has_read(agreed: Rig, reads: list[tuple[int, int]], number: int) -> None:
    """A page of a staged range forbids the commit, read before or after the WRITE, for whichever open file."""
    for late in (False, True):
        node, fh, other = begun(agreed)
        if late:
            agreed.write(node, fh, b"n" * 10, 5)
        for offset, size in reads:
            agreed.read(node, other, offset, size)
        if not late:
            agreed.write(node, fh, b"n" * 10, 5)
        assert agreed.ask(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77).error == number
        assert read_call(agreed, node, other, 5, 10) == (b"o" if number else b"n") * 10
        assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77) == errno.EINVAL, "it has ended"
        agreed.release(fh, node)
        agreed.release(other, node)
        agreed.done(Opcode.UNLINK, 1, b"f\0")


def test_many_pages_that_the_kernel_has_read(agreed: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are noted count as all; a batch without a write can be committed all the same."""
    monkeypatch.setattr(openbatch, "MOST_CACHED", 1)
    node, fh, other = begun(agreed)
    for number in range(1, 4):
        agreed.read(node, other, number * PAGE, PAGE)
    agreed.done(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)
    agreed.done(Opcode.IOCTL, node, ioctl(fh, START), pid=77)
    agreed.write(node, fh, b"n", 0)
    for number in range(1, 4):
        agreed.read(node, other, number * PAGE, PAGE)
    assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77) == errno.EBUSY


def test_other_processes(agreed: Rig) -> None:
    """The thread that has begun it ends it, or one of its process; a number that no process has is another one."""
    node, fh, _ = begun(agreed)
    agreed.write(node, fh, b"n", 0)
    missing = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    for command in (COMMIT, ABORT):
        assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, command), pid=missing) == errno.EPERM
    agreed.done(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)
    assert read_call(agreed, node, fh, 0, 2) == b"no"
    agreed.done(Opcode.IOCTL, node, ioctl(fh, START), pid=os.getpid())
    assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=os.getppid()) == errno.EPERM


def test_the_release_ends_a_batch(agreed: Rig) -> None:
    node, fh, other = begun(agreed)
    agreed.write(node, fh, b"n" * 10_000, 0)
    agreed.release(fh, node)
    assert not agreed.connection.batches.by_handle
    agreed.done(Opcode.IOCTL, node, ioctl(other, START), pid=77)
    assert read_call(agreed, node, other, 0, 2) == b"oo"


def refuse_for_room(*_: object) -> None:
    raise FsError(errno.ENOSPC)


@pytest.mark.parametrize("room", [False, True])
def test_a_commit_that_waits_for_room_keeps_its_batch(agreed: Rig, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """It is made a second time when the kernel has forgotten a file; only then it has failed."""
    node, fh, other = begun(agreed)
    agreed.write(node, fh, b"n" * 10, 0)
    write_pieces = atomic.write_pieces
    monkeypatch.setattr(FileSystem, "holds_forgettable", True)
    monkeypatch.setattr(atomic, "write_pieces", refuse_for_room)
    assert agreed.answer(agreed.message(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)) is None
    assert read_call(agreed, node, fh, 0, 2) == b"nn"
    if room:
        monkeypatch.setattr(atomic, "write_pieces", write_pieces)
    for message in agreed.connection.scheduler.last_chances():
        answer = agreed.answer(message)
        assert answer is not None
        assert answer.error == (0 if room else errno.ENOSPC)
    assert read_call(agreed, node, other, 0, 2) == (b"nn" if room else b"oo")
    assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77) == errno.EINVAL, "it has ended"


def test_a_pool_without_a_journal_has_no_batches(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of("-O", "^has_journal")
    rig.init()
    found, fh = rig.create(b"f")
    query = pack("ioctl_in", fh=fh, cmd=GET_FEATURES, out_size=4)
    assert rig.done(Opcode.IOCTL, found.nodeid, query)[-4:] == bytes(4)
    assert rig.refused(Opcode.IOCTL, found.nodeid, ioctl(fh, START)) == errno.EOPNOTSUPP


def test_a_batch_is_no_source_of_a_copy(agreed: Rig) -> None:
    """It would give the bytes from before the batch."""
    node, fh, other = begun(agreed)
    for source, error in ((fh, errno.EBUSY), (other, 0)):
        target = agreed.open(node)
        body = pack("copy_file_range_in", fh_in=source, fh_out=target, nodeid_out=node, off_out=9 * PAGE, len=PAGE)
        assert agreed.ask(Opcode.COPY_FILE_RANGE, node, body).error == error


@contextmanager
def dead_process() -> Iterator[int]:
    """A process that was killed and whose parent has not asked for its status."""
    owner = subprocess.Popen(["sleep", "infinity"])
    yield owner.pid
    owner.kill()
    owner.wait()


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("request_of_the_child", [Opcode.WRITE, Opcode.READ, Opcode.FALLOCATE, START, COMMIT, ABORT])
def test_a_batch_ends_with_its_process(agreed: Rig, request_of_the_child: int) -> None:
    """A child has the open file too: it neither goes on with the batch nor is refused because of it."""
    found, fh = agreed.create(b"f")
    node = found.nodeid
    agreed.write(node, fh, b"o" * PAGE)
    with dead_process() as owner:
        agreed.done(Opcode.IOCTL, node, ioctl(fh, START), pid=owner)
        for pid in (owner, os.getpid()):
            body = pack("write_in", fh=fh, size=4) + b"lost"
            agreed.done(Opcode.WRITE, node, body, pid=pid)
        assert agreed.refused(Opcode.IOCTL, node, ioctl(fh, ABORT), pid=os.getpid()) == errno.EPERM
        killed(owner)
        body = {
            Opcode.WRITE: pack("write_in", fh=fh, size=4, offset=4) + b"kept",
            Opcode.READ: pack("read_in", fh=fh, size=8, read_flags=LOCKOWNER, lock_owner=9),
            Opcode.FALLOCATE: pack("fallocate_in", fh=fh, length=PAGE),
        }.get(Opcode(request_of_the_child) if request_of_the_child < START else Opcode.IOCTL)
        opcode = request_of_the_child if body else Opcode.IOCTL
        answer = agreed.ask(opcode, node, body or ioctl(fh, request_of_the_child), pid=os.getpid())
        assert answer.error == (errno.EINVAL if request_of_the_child == COMMIT else 0)
        kept = b"kept" if request_of_the_child == Opcode.WRITE else b"oooo"
        assert agreed.read(node, fh, 0, 8) == b"oooo" + kept
        agreed.release(fh, node)
    assert not agreed.connection.batches.by_handle
    assert not agreed.connection.batches.by_ino


def test_another_open_file_begins_a_batch_when_the_owner_of_the_first_is_dead(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    node = found.nodeid
    other = agreed.open(node)
    with dead_process() as owner:
        agreed.done(Opcode.IOCTL, node, ioctl(fh, START), pid=owner)
        assert agreed.refused(Opcode.IOCTL, node, ioctl(other, START), pid=os.getpid()) == errno.EBUSY
        killed(owner)
        agreed.done(Opcode.IOCTL, node, ioctl(other, START), pid=os.getpid())


def test_another_thread_ends_the_batch_of_one_that_has_ended(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    node = found.nodeid
    begin = partial(agreed.done, Opcode.IOCTL, node, ioctl(fh, START))
    thread = threading.Thread(target=lambda: begin(pid=threading.get_native_id()))
    thread.start()
    thread.join()
    agreed.done(Opcode.WRITE, node, pack("write_in", fh=fh, size=4) + b"done", pid=os.getpid())
    agreed.done(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=os.getpid())
    assert agreed.read(node, fh, 0, 8) == b"done"


@pytest.mark.parametrize("waits", [False, True])
def test_a_commit_whose_caller_is_interrupted_is_whole(
    agreed: Rig, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """A COMMIT is done when INTERRUPT comes, or is made at its last chance. Then the next batch begins."""
    node, fh, other = begun(agreed)
    agreed.write(node, fh, b"n" * 3 * PAGE, 0)
    message = agreed.message(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)
    interrupt = agreed.message(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=unpack("in_header", message).unique))
    with monkeypatch.context() as patch:
        if waits:
            patch.setattr(FileSystem, "holds_forgettable", True)
            patch.setattr(atomic, "write_pieces", refuse_for_room)
        answer = agreed.answer(message)
        assert (answer is None) == waits
        assert agreed.answer(interrupt) is None
    for late in agreed.connection.scheduler.last_chances():
        answer = agreed.answer(late)
    assert answer is not None
    assert answer.error == 0
    assert read_call(agreed, node, other, 0, 3 * PAGE) == b"n" * 3 * PAGE
    assert not agreed.connection.batches.by_handle
    agreed.core.check()
    agreed.done(Opcode.IOCTL, node, ioctl(other, START), pid=77)


@pytest.mark.parametrize("request_of_another_thread", [START, COMMIT, ABORT])
def test_a_batch_belongs_to_the_commit_that_waits(
    agreed: Rig, monkeypatch: pytest.MonkeyPatch, request_of_another_thread: int
) -> None:
    """Another thread can't end it and have the waiting COMMIT take the next batch, which is half written."""
    node, fh, other = begun(agreed)
    agreed.write(node, fh, b"n" * 3 * PAGE, 0)
    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "holds_forgettable", True)
        patch.setattr(atomic, "write_pieces", refuse_for_room)
        assert agreed.answer(agreed.message(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)) is None
        body = ioctl(fh, request_of_another_thread)
        assert agreed.refused(Opcode.IOCTL, node, body, pid=77) == errno.EBUSY
    (late,) = agreed.connection.scheduler.last_chances()
    answer = agreed.answer(late)
    assert answer is not None
    assert answer.error == 0
    assert read_call(agreed, node, other, 0, 3 * PAGE) == b"n" * 3 * PAGE


def test_a_commit_that_extends_the_file_invalidates_its_size(agreed: Rig) -> None:
    """The kernel knows the writes, and neither that they were staged nor that they are the file's now."""
    node, fh, _ = begun(agreed)
    agreed.write(node, fh, b"n" * PAGE, 5 * PAGE)
    agreed.notifications.clear()
    agreed.done(Opcode.IOCTL, node, ioctl(fh, COMMIT), pid=77)
    assert (abi.NOTIFY_INVAL_INODE, pack("notify_inval_inode_out", ino=node, off=-1)) in agreed.notifications

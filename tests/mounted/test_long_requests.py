"""Requests that take many steps, through the mount: others are answered meanwhile, and every end is a clean one.

The daemon is a fork of this process, so the size of a step that a test sets is the daemon's. No test depends on the
speed of the machine: what counts is whether a request is answered while another one runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from actor_rig import KEEP_SIZE, PUNCH_HOLE, libc
from mount_rig import Mounted, mounted, mountpoint

from daxfs.fs import copying, ranges, removal, truncating
from daxfs.fuse.kernel import files as files_module
from daxfs.fuse.kernel import remount
from support import HANG_SECONDS

BLOCK = 4096
COMB = 2000
SIZE = 2 * COMB * BLOCK
BEFORE_AND_AFTER = 2
"""The different answers without steps; more come from within an operation."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a step do the least that it can, so that there are many."""
    monkeypatch.setattr(truncating, "BLOCKS_PER_CUT", 1)
    monkeypatch.setattr(removal, "BLOCKS_PER_STEP", 1)
    monkeypatch.setattr(ranges, "RUNS_PER_STEP", 1)
    monkeypatch.setattr(ranges, "BYTES_PER_STEP", BLOCK)
    monkeypatch.setattr(copying, "HANDLES_PER_STEP", 1)


def comb(path: Path) -> int:
    """Make a file of many single blocks; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(COMB):
        os.pwrite(descriptor, b"%04d" % number * (BLOCK // 4), 2 * number * BLOCK)
    return descriptor


def fallocate(descriptor: int, mode: int) -> None:
    """fallocate(2) of the whole comb."""
    if libc.fallocate(descriptor, mode, ctypes.c_int64(0), ctypes.c_int64(SIZE)):
        raise OSError(ctypes.get_errno(), "fallocate")


def close(descriptor: int) -> None:
    """Close a file of a mount whose daemon has ended."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def begin(action: Callable[[], object]) -> int:
    """Run ``action`` in a child; return its process id. Its exit code is the errno."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            action()
            code = 0
        except OSError as error:
            code = error.errno or 254
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int | None:
    """Return the exit code of a child; None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def asked_meanwhile(root: Path, child: int, number: int = 0) -> tuple[int, list[int]]:
    """Ask for the free blocks until the child has ended; return its exit code and the answers.

    As soon as the answers show that its request is in progress, the child gets the signal ``number`` after each.
    """
    answers = []
    end = time.monotonic() + HANG_SECONDS
    while (code := ended(child)) is None:
        answers.append(os.statvfs(root).f_bfree)
        if answers[-1] != answers[0]:
            os.kill(child, number)
        assert time.monotonic() < end, "the child does not end"
    return code, answers


OPERATIONS: dict[str, Callable[[int], None]] = {
    "truncate": lambda descriptor: os.ftruncate(descriptor, 0),
    "fallocate": lambda descriptor: fallocate(descriptor, 0),
    "punch": lambda descriptor: fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_others_are_answered_meanwhile(pool: Callable[..., Path], name: str) -> None:
    """They see how far it is: each answer is of a state between two steps."""
    with mounted(pool("-b", "4096")) as mount:
        descriptor = comb(mount.place / "f")
        code, answers = asked_meanwhile(mount.place, begin(lambda: OPERATIONS[name](descriptor)))
        os.close(descriptor)
        assert code == 0
        assert len(set(answers)) > BEFORE_AND_AFTER
        assert answers in (sorted(answers), sorted(answers, reverse=True))


def test_a_removed_file_counts_as_free_at_once(pool: Callable[..., Path]) -> None:
    """Its last close returns before it is freed, and no answer counts its blocks as used."""
    with mounted(pool("-b", "4096")) as mount:
        os.stat(mount.place / "lost+found")
        before = os.statvfs(mount.place)
        descriptor = comb(mount.place / "f")
        (mount.place / "f").unlink()
        os.close(descriptor)
        end = time.monotonic() + HANG_SECONDS
        while os.statvfs(mount.place).f_bfree < before.f_bfree:
            assert time.monotonic() < end
        while (now := os.statvfs(mount.place)).f_ffree < before.f_ffree:
            assert now.f_bfree == before.f_bfree
            assert time.monotonic() < end


def test_writes_follow_the_operation_on_their_file(pool: Callable[..., Path]) -> None:
    """The content is that of one order: the kernel keeps overwrites that go straight to memory apart from nothing."""
    with mounted(pool("-b", "4096")) as mount:
        descriptor = comb(mount.place / "f")
        child = begin(lambda: fallocate(descriptor, 0x10))
        for number in range(0, COMB, 50):
            os.pwrite(descriptor, b"new!" * (BLOCK // 4), 2 * number * BLOCK)
        code, _ = asked_meanwhile(mount.place, child)
        assert code == 0
        for number in range(0, COMB, 10):
            assert os.pread(descriptor, BLOCK, 2 * number * BLOCK) in (b"new!" * (BLOCK // 4), bytes(BLOCK))
        os.close(descriptor)


def test_a_copy_ends_after_its_time(pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "COPY_SECONDS", 0.001)
    with mounted(pool("-b", "4096")) as mount:
        source = comb(mount.place / "f")
        target = os.open(mount.place / "g", os.O_RDWR | os.O_CREAT)
        counts = []
        length = os.fstat(source).st_size
        while sum(counts) < length:
            counts.append(os.copy_file_range(source, target, length, sum(counts), sum(counts)))
            assert counts[-1] > 0
        assert len(counts) > 10
        assert os.pread(source, length, 0) == os.pread(target, length, 0)
        os.close(source)
        os.close(target)


def test_a_signal_ends_an_fallocate(pool: Callable[..., Path]) -> None:
    """What is done stays; a truncate is not ended by a signal."""
    with mounted(pool("-b", "4096")) as mount:
        descriptor = comb(mount.place / "f")
        before = os.fstat(descriptor).st_blocks

        def taking_signals(action: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                signal.signal(signal.SIGUSR1, lambda *_: None)
                action()

            return run

        code, answers = asked_meanwhile(
            mount.place, begin(taking_signals(lambda: fallocate(descriptor, 0))), signal.SIGUSR1
        )
        assert code == errno.EINTR
        assert before < os.fstat(descriptor).st_blocks < 2 * before
        assert len(set(answers)) > 1
        code, _ = asked_meanwhile(
            mount.place, begin(taking_signals(lambda: os.ftruncate(descriptor, 0))), signal.SIGUSR1
        )
        assert code == 0
        assert os.fstat(descriptor).st_blocks == 0
        os.close(descriptor)


@pytest.mark.parametrize("name", OPERATIONS)
def test_sigterm_in_the_middle(pool: Callable[..., Path], name: str) -> None:
    """The daemon finishes the request, or cuts it short, and answers it; e2fsck finds nothing."""
    with mounted(pool("-b", "4096")) as mount:
        descriptor = comb(mount.place / "f")
        before = os.statvfs(mount.place).f_bfree
        child = begin(lambda: OPERATIONS[name](descriptor))
        while os.statvfs(mount.place).f_bfree == before:
            assert ended(child) is None, "too fast for this test"
        mount.daemon.send_signal(signal.SIGTERM)
        assert mount.daemon.wait(HANG_SECONDS) == 0, mount.said()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in (0, 0 if name == "truncate" else errno.EINTR)
        close(descriptor)


def test_a_killed_daemon_in_the_middle(pool: Callable[..., Path]) -> None:
    """Recovery finishes the truncate."""
    path = pool("-b", "4096")
    with mountpoint() as place:
        mount = Mounted(path, place)
        descriptor = comb(place / "f")
        before = os.statvfs(place).f_bfree
        child = begin(lambda: os.ftruncate(descriptor, 0))
        while os.statvfs(place).f_bfree == before:
            assert ended(child) is None, "too fast for this test"
        directory = os.open(place, os.O_RDONLY)
        os.fsync(directory)
        mount.daemon.kill()
        mount.down()
        os.waitpid(child, 0)
        close(directory)
        close(descriptor)
    with mounted(path) as mount:
        assert (mount.place / "f").stat().st_size == 0
        assert (mount.place / "f").stat().st_blocks == 0


def test_a_remount_is_refused_in_the_middle(pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096")) as mount:
        os.close(comb(mount.place / "f"))
        before = os.statvfs(mount.place).f_bfree
        child = begin(lambda: os.truncate(mount.place / "f", 0))
        while os.statvfs(mount.place).f_bfree == before:
            assert ended(child) is None, "too fast for this test"
        assert remount_read_only(mount) == errno.EBUSY
        code, _ = asked_meanwhile(mount.place, child)
        assert code == 0


def remount_read_only(mount: Mounted) -> int:
    """Ask the daemon for it; return the errno."""
    descriptor = os.open(mount.place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, remount.REMOUNT, bytearray(b"ro".ljust(remount.SIZE, b"\0")))
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(descriptor)
    return 0

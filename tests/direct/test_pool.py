"""The pool as a client maps it: which pool, with which rights, how long, and how stores become durable."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from direct_rig import DATA, POOL_SIZE, FakeDaemon, WriteBacks, through_kernel
from mount_rig import NOBODY, Mounted, as_user, in_child, mounted_by_root

from daxfs import direct, protocol
from daxfs.direct import pool as pools
from daxfs.pmem import persist


def test_a_pool_that_can_not_be_opened(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, *more: Any) -> int:
        if os.fsencode(path) == os.fsencode(daemon.pool):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(path, flags, *more)

    really = os.open
    monkeypatch.setattr(os, "open", refuse)
    with direct.open(daemon.file, "r+b") as file:
        assert file.why == "the pool can't be opened: Permission denied"
        through_kernel(file)
    with direct.map(daemon.file) as mapping:
        assert mapping.why == "the pool can't be opened: Permission denied"


@pytest.mark.parametrize("field", ["device", "inode", "rdevice", "version", "size"])
def test_another_pool_at_its_path_is_refused(daemon: FakeDaemon, field: str) -> None:
    wrong = POOL_SIZE * 2 if field == "size" else 99
    daemon.record = daemon.record._replace(**{field: wrong})
    with direct.open(daemon.file, "r+b") as file:
        through_kernel(file)


def test_the_clients_byte_of_the_pool_is_locked_as_long_as_it_is_mapped(daemon: FakeDaemon) -> None:
    question = struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, protocol.LOCKS + daemon.record.lock, 1, 0)

    def locked() -> bool:
        with daemon.pool.open("r+b") as pool:
            answer = fcntl.fcntl(pool, 36, question)  # F_OFD_GETLK
        return struct.unpack_from("@h", answer)[0] == fcntl.F_RDLCK

    assert not locked()
    file = direct.open(daemon.file)
    assert locked()
    mapping = direct.map(file)
    file.close()
    del file
    gc.collect()
    assert locked()
    mapping.close()
    del mapping
    gc.collect()
    assert not locked()


def test_a_pool_that_the_daemon_keeps_locked_is_refused(daemon: FakeDaemon) -> None:
    with daemon.pool.open("r+b") as pool:
        fcntl.fcntl(pool, 37, struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, protocol.LOCKS + 7, 1, 0))
        with direct.open(daemon.file, "r+b") as file:
            assert "locked" in file.why
            through_kernel(file)


def test_one_mapping_for_each_pool(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as one, direct.open(daemon.file) as two:
        assert pools.attach(one.fileno()) is pools.attach(two.fileno())
        daemon.record = daemon.record._replace(lock=8)
        assert pools.attach(one.fileno()).record.lock == 8


def test_without_libpmem_lines_are_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDaemon(tmp_path, persistence=protocol.Persistence.LINES)
    fake.serve(monkeypatch)
    monkeypatch.setattr(persist, "load_libpmem", lambda: None)
    with direct.open(fake.file, "r+b") as file:
        assert "libpmem" in file.why
        through_kernel(file)


def test_a_pool_without_map_sync_can_not_be_flushed_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDaemon(tmp_path, persistence=protocol.Persistence.LINES)
    fake.serve(monkeypatch)
    with direct.open(fake.file, "r+b") as file:
        assert "can't be mapped" in file.why
        through_kernel(file)


def test_msync_is_called_for_what_was_stored_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, done = FakeDaemon(tmp_path, persistence=protocol.Persistence.MSYNC), WriteBacks()
    fake.serve(monkeypatch)
    monkeypatch.setattr(pools.libc, "msync", done.msync)
    with direct.open(fake.file, "r+b") as file:
        cache = file._cache
        assert cache is not None
        file.pwrite(64, b"abc")
        file.pwrite(99, b"abc")
        assert done.calls == []
        file.flush()
        assert done.calls == [("msync", cache.pool.address, POOL_SIZE)]
        file.flush()
        assert len(done.calls) == 1
        file.pwrite(64, b"abc")
        file.flush(4096, 4096)
        assert done.calls[1] == ("msync", cache.pool.address + DATA + 4096, 4096)
        file.flush()
        assert len(done.calls) == 3


def test_an_msync_that_failed_stays_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDaemon(tmp_path, persistence=protocol.Persistence.MSYNC)
    fake.serve(monkeypatch)

    def fail(*_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    with direct.open(fake.file, "r+b") as file:
        file.pwrite(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(pools.libc, "msync", fail)
            with pytest.raises(OSError, match="write-back of the pool failed"):
                file.flush()
        file.pwrite(0, b"x")
        with pytest.raises(OSError, match="write-back of the pool failed"):
            file.flush()


def test_who_may_not_open_the_pool_has_the_file_through_the_kernel(mount: Mounted) -> None:
    mount.place.chmod(0o777)
    (mount.place / "a").write_bytes(b"x" * 5000)
    (mount.place / "a").chmod(0o666)

    def action() -> None:
        with direct.open(mount.place / "a", "r+b") as file:
            assert not file.direct
            assert file.why == "the pool can't be opened: Permission denied"
            file.pwrite(1, b"y")
            assert file.pread(0, 3) == b"xyx"
        with direct.map(mount.place / "a", access="rw") as mapping:
            assert not mapping.direct
            mapping.view[0] = ord("z")
            mapping.flush()

    mount.pool.chmod(0o600)
    assert as_user(action) == 0
    assert (mount.place / "a").read_bytes()[:3] == b"zyx"


DROPS: dict[str, Callable[[], None]] = {
    "setuid": lambda: os.setuid(NOBODY),
    "seteuid": lambda: os.seteuid(NOBODY),
    "setresuid": lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
}


@pytest.fixture
def guarded(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """Yield a mount whose pool only root may open."""
    with mounted_by_root(pool("-b", "4096")) as mount:
        (mount.place / "file").write_bytes(b"x" * 65536)
        (mount.place / "file").chmod(0o666)
        yield mount


def mapped(guarded: Mounted) -> bool:
    """Return whether this process maps any part of the pool."""
    return str(guarded.pool) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("how", DROPS)
def test_detach_before_rights_go(guarded: Mounted, how: str) -> None:
    path = guarded.place / "file"

    def work() -> None:
        file = direct.open(path, "r+b")
        assert file.pwrite(100, b"before") == 6
        assert file.pread(100, 6) == b"before"
        assert file.direct
        assert mapped(guarded)
        direct.detach()
        assert not mapped(guarded)
        assert (file.direct, file.why) == (False, "detached")
        DROPS[how]()
        assert file.pread(100, 6) == b"before"
        assert file.pwrite(100, b"after!") == 6
        file.flush()
        again = direct.open(path, "rb")
        assert again.pread(100, 6) == b"after!"
        assert not again.direct
        assert not mapped(guarded)

    in_child(work)
    assert path.read_bytes()[100:106] == b"after!"


def test_what_was_stored_past_eof_is_told_by_detach(guarded: Mounted) -> None:
    path = guarded.place / "long"

    def work() -> None:
        file = direct.open(path, "w+b")
        for place in range(0, 1 << 20, 1 << 16):
            file.pwrite(place, b"y" * (1 << 16))
        direct.detach()
        assert not mapped(guarded)
        assert os.stat(path).st_size == 1 << 20

    in_child(work)
    assert path.read_bytes() == b"y" * (1 << 20)


@pytest.mark.parametrize("asks", ["a place that is not known", "another open"])
def test_without_detach_it_is_noticed_at_the_next_question(guarded: Mounted, asks: str) -> None:
    path = guarded.place / "file"

    def work() -> None:
        file = direct.open(path, "r+b")
        other = direct.open(path, "r+b")
        file.pwrite(0, b"before")
        assert mapped(guarded)
        os.seteuid(NOBODY)
        if asks == "another open":
            assert not direct.open(path, "rb").direct
        else:
            os.truncate(path, 5000)  # the epoch ends
            assert file.pread(0, 6) == b"before"
        assert not mapped(guarded)
        assert not file.direct
        assert "rights" in file.why
        assert not other.direct
        assert other.pread(0, 6) == b"before"
        assert file.pwrite(65536, b"late") == 4
        os.seteuid(0)
        assert direct.open(path, "rb").direct

    in_child(work)
    assert path.read_bytes()[65536:65540] == b"late"


def test_who_may_still_open_the_pool_keeps_it(guarded: Mounted) -> None:
    guarded.pool.chmod(0o666)

    def work() -> None:
        file = direct.open(guarded.place / "file", "r+b")
        os.setuid(NOBODY)
        os.truncate(guarded.place / "file", 5000)
        assert file.pread(0, 4) == b"xxxx"
        assert file.direct
        assert direct.open(guarded.place / "file", "rb").direct

    in_child(work)


def test_a_live_mapping_keeps_its_pool_until_it_is_closed(guarded: Mounted) -> None:
    def work() -> None:
        mapping = direct.map(guarded.place / "file", access="rw")
        direct.detach()
        assert mapped(guarded)
        mapping.view[:4] = b"mine"
        mapping.close()
        assert not mapped(guarded)

    in_child(work)
    assert (guarded.place / "file").read_bytes()[:4] == b"mine"

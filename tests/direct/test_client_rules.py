"""The client's rules, with the daemon played by the test: refusals, epochs, renewing, what is told and flushed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from direct_rig import DATA, POOL_SIZE, REFUSALS, FakeDaemon

from daxfs import direct, protocol
from daxfs.direct import pool as pools
from daxfs.pmem import persist
from daxfs.protocol import Extent, Flag, Kind


def pool_bytes(daemon: FakeDaemon, start: int, length: int) -> bytes:
    """What lies in the pool."""
    return daemon.pool.read_bytes()[start : start + length]


def through_kernel(file: direct.DirectFile) -> None:
    """All of it works, on the file itself."""
    assert not file.direct
    assert file.pread(0, 4) == b"kkkk"
    assert file.pwrite(2, b"xy") == 2
    assert file.read(5) == b"kkxyk"
    buffer = bytearray(2)
    assert file.readinto(buffer) == 2
    assert file.size == 16 << 10
    file.flush()
    assert file.truncate(3) == 3
    assert file.pread(0, 9) == b"kkx"


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("call", ["pool", "lease"])
def test_a_refusal_means_system_calls_and_says_why(daemon: FakeDaemon, number: int, call: str) -> None:
    daemon.refuse[call] = number
    with direct.open(daemon.file, "r+b") as file:
        assert os.strerror(number) in file.why
        through_kernel(file)


def test_an_ordinary_file_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"k" * (16 << 10))
    with direct.open(tmp_path / "file", "r+b") as file:
        through_kernel(file)
    with direct.map(tmp_path / "file", access="rw") as mapping:
        assert not mapping.direct
        assert "gives no pool" in mapping.why
        mapping.view[1:2] = b"!"
        mapping.flush()
    assert (tmp_path / "file").read_bytes() == b"k!x"


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


def test_a_pool_that_can_only_be_read(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, *more: Any) -> int:
        if os.fsencode(path) == os.fsencode(daemon.pool) and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(path, flags, *more)

    really = os.open
    monkeypatch.setattr(os, "open", refuse)
    with direct.open(daemon.file, "r+b") as file:
        assert file.direct
        assert "read only" in file.why
        assert file.pread(0, 4) == b"mmmm"
        assert file.pwrite(0, b"x") == 1
    assert daemon.file.read_bytes()[:2] == b"xk"
    assert not any(lease.flags & Flag.WRITE for lease in daemon.leases)
    assert not direct.map(daemon.file, access="rw").direct
    assert direct.map(daemon.file).direct


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


def test_reads_and_writes_are_in_the_pool(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        assert file.pread(100, 50) == b"m" * 50
        assert file.pwrite(100, b"abc") == 3
        asked = len(daemon.leases)
        assert file.pwrite(200, bytearray(b"def")) == 3
        assert file.pwrite(300, memoryview(b"\1\0\2\0").cast("H")) == 4
        assert file.pread(98, 7) == b"mmabcmm"
        assert len(daemon.leases) == asked, "known parts are not asked for again"
    assert pool_bytes(daemon, DATA + 100, 3) == b"abc"
    assert pool_bytes(daemon, DATA + 200, 3) == b"def"
    assert pool_bytes(daemon, DATA + 300, 4) == b"\1\0\2\0"
    assert set(daemon.file.read_bytes()) == {ord("k")}
    assert [stored.size for stored in daemon.stored] == [0], "once, so that times move"


def test_a_new_epoch_is_seen_at_once_and_the_old_memory_given_back(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        file.pwrite(0, b"old")
        daemon.move(DATA * 4, b"n" * daemon.size)
        assert file.pread(0, 3) == b"nnn"
        assert daemon.renewals[-1]
        daemon.move(DATA * 2, b"o" * daemon.size)
        assert file.pwrite(0, b"new") == 3
    assert pool_bytes(daemon, DATA, 3) == b"old"
    assert pool_bytes(daemon, DATA * 2, 4) == b"newo"


def test_nothing_is_given_back_while_a_store_may_run(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        assert file.pread(0, 1) == b"m"
        held = file._held
        assert held is not None
        held.active += 1  # another thread is in the middle of a store
        daemon.move(DATA * 4, b"n" * daemon.size)
        assert file.pread(0, 3) == b"nnn"
        assert not daemon.renewals[-1]
        held.active -= 1


def test_while_another_thread_asks_the_kernel_is_asked(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        held = file._held
        assert held is not None
        daemon.move(DATA * 4, b"n" * daemon.size)
        with held._lock:
            assert file.pread(0, 3) == b"kkk"
        assert file.pread(0, 3) == b"nnn"


def test_an_epoch_that_never_holds_ends_at_the_kernel(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(*arguments: Any) -> int:
        result = daemon.ioctl(*arguments)
        daemon.epoch += 1
        daemon.post()
        return result

    with direct.open(daemon.file, "r+b") as file:
        monkeypatch.setattr(fcntl, "ioctl", restless)
        daemon.move(DATA, b"m" * daemon.size)
        assert file.pread(0, 3) == b"kkk"
        assert file.pwrite(0, b"x") == 1
    assert daemon.file.read_bytes()[:2] == b"xk"


def test_a_momentary_refusal_is_asked_again_later(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.move(DATA * 4, b"n" * daemon.size)
        daemon.refuse["lease"] = errno.EAGAIN
        assert file.pread(0, 3) == b"kkk"
        assert file.direct
        del daemon.refuse["lease"]
        found = {file.pread(0, 3) for _ in range(20)}
        assert file.pread(0, 3) == b"nnn"
        assert found <= {b"kkk", b"nnn"}


def test_an_answer_about_another_pool_ends_it(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.move(DATA * 4, b"n" * daemon.size)
        daemon.record = daemon.record._replace(inode=99)
        assert file.pread(0, 3) == b"kkk"
        assert "another pool" in file.why


def test_an_extent_outside_the_mapped_pool_ends_it(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file) as file:
        daemon.extents = [Extent(0, POOL_SIZE - 4096, 8192, Kind.MEMORY)]
        daemon.epoch += 1
        daemon.post()
        assert file.pread(0, 3) == b"kkk"
        assert "grown" in file.why


def test_parts_of_all_kinds(daemon: FakeDaemon) -> None:
    daemon.extents = [
        Extent(0, DATA, 4096, Kind.MEMORY),
        Extent(4096, 0, 4096, Kind.HOLE),
        Extent(8192, DATA * 2, 4096, Kind.MEMORY),
        Extent(12288, 0, 4096, Kind.KERNEL),
    ]
    with direct.open(daemon.file) as file:
        assert file.pread(4000, 8192 - 4000) == b"m" * 96 + bytes(4096)
        assert file.pread(4090, 4110) == b"m" * 6 + bytes(4096) + bytes(8)
        assert file.pread(8192, 5000) == b"k" * 5000, "a range that the kernel has a part of is read from it as one"
        buffer = bytearray(b"?" * 5000)
        assert file.readinto_at(4000, buffer) == 5000
        assert buffer == b"m" * 96 + bytes(4904)


def growing(daemon: FakeDaemon, records: int) -> direct.DirectFile:
    """A file to which so many KiB were appended without a word to the daemon."""
    file = direct.open(daemon.file, "r+b")
    daemon.extents = [Extent(0, DATA, 32 << 10, Kind.MEMORY)]
    file.seek(daemon.size)
    for _ in range(records + 1):
        file.write(b"w" * 1024)
        if daemon.size == 16 << 10:  # the first write was the kernel's
            daemon.size += 1024
            daemon.post()
    return file


def test_what_another_cut_is_not_made_longer_again(daemon: FakeDaemon) -> None:
    with growing(daemon, 3) as file:
        daemon.size = 100
        daemon.epoch += 1
        daemon.post()
        assert file.size == 100
    assert daemon.size == 100


def test_what_was_appended_is_saved_when_another_makes_the_file_longer(daemon: FakeDaemon) -> None:
    """But not what lay in the block that the file ended in."""
    file = growing(daemon, 10)
    daemon.size = 200 << 10
    daemon.epoch += 1
    daemon.post()
    with pytest.raises(OSError, match="3072 bytes from 17408 on are lost: another program"):
        file.size  # noqa: B018
    assert daemon.file.read_bytes()[20 << 10 :] == b"w" * (7 << 10)
    file.close()


@pytest.mark.parametrize("cause", ["size", "flush", "fileno", "close"])
def test_the_new_size_is_told_once(daemon: FakeDaemon, cause: str) -> None:
    file = growing(daemon, 8)
    assert (daemon.stored, daemon.appended) == ([], [])
    {"size": lambda: file.size, "flush": file.flush, "fileno": file.fileno, "close": file.close}[cause]()
    flags = protocol.DURABLE if cause == "flush" else 0
    holder = daemon.leases[0].holder
    assert daemon.appended == [protocol.Appended(17 << 10, 25 << 10, holder, flags)]
    file.close()
    assert len(daemon.appended) == 1


class Recorder:
    """libpmem, or msync(2): what was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def library(self) -> persist.Library:
        """Copies as libpmem does, and remembers."""

        def copy(target: int, source: Any, length: int, _flags: int) -> None:
            self.calls.append(("copy", target, length))
            ctypes.memmove(target, source, length)

        def flush(address: int, length: int) -> None:
            self.calls.append(("flush", address, length))

        return persist.Library(flush, lambda: self.calls.append(("drain",)), copy, lambda *_: None)

    def msync(self, address: int, length: int, flags: int) -> int:
        """In place of msync(2)."""
        assert flags == 4
        assert address % 4096 == 0
        self.calls.append(("msync", address, length))
        return 0


def test_lines_are_written_back_with_each_store_and_fenced_by_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, recorder = FakeDaemon(tmp_path, persistence=protocol.Persistence.LINES), Recorder()
    fake.serve(monkeypatch)
    monkeypatch.setattr(persist, "load_libpmem", recorder.library)
    monkeypatch.setattr(pools, "MAP_SYNC", mmap.MAP_SHARED)  # this pool lies on no fsdax mount
    with direct.open(fake.file, "r+b") as file:
        assert file.direct
        held = file._held
        assert held is not None
        file.pwrite(64, b"abc")
        assert recorder.calls == [("flush", held.pool.address + DATA + 64, 3)]
        file.flush()
        assert recorder.calls[1:] == [("drain",)]
        assert fake.stored == [protocol.Stored(0, protocol.DURABLE)]
        file.pwrite(0, b"x" * 8192)
        assert recorder.calls[2] == ("copy", held.pool.address + DATA, 8192)
        del recorder.calls[:]
        with direct.map(file, access="rw") as mapping:
            mapping.view[10:12] = b"!!"
            mapping.flush(10, 2)
        kind, _, length = recorder.calls[0]
        assert (kind, length, recorder.calls[1]) == ("flush", 2, ("drain",))


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
    fake, recorder = FakeDaemon(tmp_path, persistence=protocol.Persistence.MSYNC), Recorder()
    fake.serve(monkeypatch)
    monkeypatch.setattr(pools.libc, "msync", recorder.msync)
    with direct.open(fake.file, "r+b") as file:
        held = file._held
        assert held is not None
        file.pwrite(64, b"abc")
        file.pwrite(99, b"abc")
        assert recorder.calls == []
        file.flush()
        assert recorder.calls == [("msync", held.pool.address, POOL_SIZE)]
        file.flush()
        assert len(recorder.calls) == 1
        file.pwrite(64, b"abc")
        file.flush(4096, 4096)
        assert recorder.calls[1] == ("msync", held.pool.address + DATA + 4096, 4096)
        file.flush()
        assert len(recorder.calls) == 3


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


def test_a_forked_child_has_a_holder_of_its_own_and_no_old_extents(daemon: FakeDaemon) -> None:
    with direct.open(daemon.file, "r+b") as file:
        file.pwrite(0, b"x")
        held = file._held
        assert held is not None
        holder = held._holder
        child = os.fork()
        if child == 0:
            code = 1
            try:
                daemon.move(DATA * 4, b"n" * daemon.size)
                assert held.stores == held.reads
                assert held._holder != holder
                assert not held.stored
                assert file.pread(0, 3) == b"nnn"
                assert daemon.leases[-1].holder == held._holder
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert held._holder == holder


def test_a_mapping_that_a_child_shares_is_not_given_back(daemon: FakeDaemon) -> None:
    mapping = direct.map(daemon.file)
    holder = daemon.leases[-1].holder
    mapping.close()
    assert (daemon.leases[-1].holder, daemon.leases[-1].length, daemon.leases[-1].flags) == (holder, 0, Flag.RENEW)
    mapping = direct.map(daemon.file)
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(mapping.view[:3]) == b"mmm" else 1)
    assert os.waitpid(child, 0)[1] == 0
    asked = len(daemon.leases)
    mapping.close()
    assert len(daemon.leases) == asked


def test_threads_store_and_read_while_the_file_moves(daemon: FakeDaemon) -> None:
    """Each thread has a page and reads back what it wrote; the mover copies the file with all stores stopped."""
    wrong: list[bytes] = []
    gate = threading.Lock()
    done = threading.Event()
    with direct.open(daemon.file, "r+b") as file:

        def work(number: int) -> None:
            turn = 0
            while not done.is_set():
                turn += 1
                data = struct.pack("=QQ", number, turn) * 32
                with gate:
                    stored = file.pwrite(number * 4096, data)
                found = file.pread(number * 4096, stored)
                if found != data and found[:1] != b"k":
                    wrong.append(found[:16])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(200):
            with gate:
                old = daemon.extents[0].pool_offset
                content = pool_bytes(daemon, old, daemon.size)
                daemon.move(DATA * (1 + turn % 8), content)
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("mode", ["r", "rt", "rwb", "b", "rb+x", "rrb", ""])
def test_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match="use one of"):
        direct.open(tmp_path / "file", mode)

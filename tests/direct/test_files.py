"""Direct files: what is stored in memory is seen through the kernel, and the reverse."""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import mmap
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from direct_rig import DATA, KIB, MIB, REFUSALS, FakeDaemon, WriteBacks, noise, pool_bytes, through_kernel
from mount_rig import SESSIONS, Mounted, in_child, mounted, mountpoint

from daxfs import direct, protocol
from daxfs.direct import pool as pools
from daxfs.pmem import persist
from daxfs.protocol import Flag, GrantedExtent, Kind
from support import HANG_SECONDS


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


def test_parts_of_all_kinds(daemon: FakeDaemon) -> None:
    daemon.extents = [
        GrantedExtent(0, DATA, 4096, Kind.MEMORY),
        GrantedExtent(4096, 0, 4096, Kind.HOLE),
        GrantedExtent(8192, DATA * 2, 4096, Kind.MEMORY),
        GrantedExtent(12288, 0, 4096, Kind.KERNEL),
    ]
    with direct.open(daemon.file) as file:
        assert file.pread(4000, 8192 - 4000) == b"m" * 96 + bytes(4096)
        assert file.pread(4090, 4110) == b"m" * 6 + bytes(4096) + bytes(8)
        assert file.pread(8192, 5000) == b"k" * 5000, "a range that the kernel has a part of is read from it as one"
        buffer = bytearray(b"?" * 5000)
        assert file.readinto_at(4000, buffer) == 5000
        assert buffer == b"m" * 96 + bytes(4904)


def test_lines_are_written_back_with_each_store_and_fenced_by_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, done = FakeDaemon(tmp_path, persistence=protocol.Persistence.LINES), WriteBacks()
    fake.serve(monkeypatch)
    monkeypatch.setattr(persist, "load_libpmem", done.library)
    monkeypatch.setattr(pools, "MAP_SYNC", mmap.MAP_SHARED)  # this pool lies on no fsdax mount
    with direct.open(fake.file, "r+b") as file:
        assert file.direct
        cache = file._cache
        assert cache is not None
        file.pwrite(64, b"abc")
        assert done.calls == [("flush", cache.pool.address + DATA + 64, 3)]
        file.flush()
        assert done.calls[1:] == [("drain",)]
        assert fake.stored == [protocol.Stored(0, protocol.DURABLE)]
        file.pwrite(0, b"x" * 8192)
        assert done.calls[2] == ("copy", cache.pool.address + DATA, 8192)
        del done.calls[:]
        with direct.map(file, access="rw") as mapping:
            mapping.view[10:12] = b"!!"
            mapping.flush(10, 2)
        kind, _, length = done.calls[0]
        assert (kind, length, done.calls[1]) == ("flush", 2, ("drain",))


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


PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
fallocate = ctypes.CDLL(None, use_errno=True).fallocate
fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def test_memory_and_kernel_see_each_other(root: Path) -> None:
    content = noise(300 * KIB)
    (root / "a").write_bytes(content)
    with direct.open(root / "a", "r+b") as file:
        assert (file.direct, file.why) == (True, "")
        assert file.read() == content
        assert file.pread(5000, 7000) == content[5000:12000]
        assert file.pread(299 * KIB, 9000) == content[299 * KIB :]
        assert file.pread(400 * KIB, 10) == b""
        file.pwrite(100, b"direct")
        with (root / "a").open("r+b", buffering=0) as other:
            other.seek(100)
            assert other.read(6) == b"direct"
            other.write(b"kernel")
        assert file.pread(106, 6) == b"kernel"


def test_it_is_a_raw_stream(root: Path) -> None:
    with direct.open(root / "a", "w+b") as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
        assert file.write(b"one\ntwo\nthree") == 13
        assert file.tell() == 13
        assert file.seek(4) == 4
        assert file.readline() == b"two\n"
        assert file.seek(-5, os.SEEK_END) == 8
        assert list(file) == [b"three"]
        assert file.seek(0) == 0
        buffered = io.BufferedReader(file)
        assert buffered.readlines() == [b"one\n", b"two\n", b"three"]
        buffered.detach()
        with pytest.raises(OSError, match="Invalid"):
            file.seek(-1)
    assert file.closed
    for use in (file.read, file.tell, file.flush, file.fileno, lambda: file.pwrite(0, b"x")):
        with pytest.raises(ValueError, match="closed"):
            use()
    file.close()


def test_modes(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        direct.open(root / "a")
    with direct.open(root / "a", "xb") as file:
        file.write(b"123")
        with pytest.raises(io.UnsupportedOperation):
            file.read()
        with pytest.raises(io.UnsupportedOperation):
            file.pread(0, 1)
    with pytest.raises(FileExistsError):
        direct.open(root / "a", "xb")
    with direct.open(root / "a", "ab") as file:
        file.write(b"45")
    with direct.open(root / "a") as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"")
    with direct.open(root / "a") as file:
        assert file.read() == b"12345"
    with direct.open(root / "a", "wb") as file:
        assert file.size == 0
    with pytest.raises(IsADirectoryError):
        direct.open(root)


def test_a_size_that_was_not_told_is_told_when_somebody_may_look(root: Path) -> None:
    with direct.open(root / "a", "w+b") as file:
        for _ in range(10):
            file.write(b"x" * 5000)
        assert file.pread(49990, 20) == b"x" * 10, "its own reads know it anyway"
        assert os.fstat(file.fileno()).st_size == 50000
        file.write(b"y")
        assert file.size == 50001
        assert file.truncate(60000) == 60000
        assert file.pread(50000, 3) == b"y\0\0"
        file.seek(70000)
        file.write(b"z")
        file.seek(0, os.SEEK_END)
        assert file.tell() == 70001
    assert (root / "a").read_bytes()[49999:] == b"xy" + bytes(19999) + b"z"


def test_two_extending_writers(root: Path) -> None:
    """Each writer writes its own region past EOF, and no byte is lost."""
    with direct.open(root / "a", "w+b") as one, direct.open(root / "a", "r+b") as two:
        one.write(b"0" * 64 * KIB)
        for place in range(64 * KIB, 512 * KIB, 4 * KIB):
            one.pwrite(place, b"1" * 4096)
            two.pwrite(place + 448 * KIB, b"2" * 4096)
        one.flush()
        two.flush()
    assert (root / "a").read_bytes() == b"0" * 64 * KIB + b"1" * 448 * KIB + b"2" * 448 * KIB


def test_several_append(root: Path) -> None:
    """O_APPEND writes go through the kernel: each record is whole and lies at EOF as it was then."""

    def append(letter: bytes) -> None:
        with direct.open(root / "log", "ab") as log:
            for _ in range(200):
                assert log.write(letter * 100) == 100

    children = []
    for letter in (b"a", b"b", b"c"):
        child = os.fork()
        if child == 0:
            append(letter)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    content = (root / "log").read_bytes()
    records = [content[place : place + 100] for place in range(0, len(content), 100)]
    assert len(records) == 600
    assert all(len(set(record)) == 1 for record in records)


def test_a_cut_by_another_process_is_seen(root: Path) -> None:
    (root / "a").write_bytes(noise(MIB))
    with direct.open(root / "a", "r+b") as file:
        before = file.pread(0, 10)
        in_child(lambda: os.truncate(root / "a", 5))
        assert file.pread(0, 10) == before[:5]
        assert file.size == 5
        in_child(lambda: os.truncate(root / "a", 5000))
        assert file.pread(0, 10) == before[:5] + bytes(5)
        file.pwrite(4999, b"!")
        in_child(lambda: (root / "a").write_bytes(b"new"))
        assert file.pread(0, 10) == b"new"


def test_a_sparse_file(root: Path) -> None:
    with direct.open(root / "a", "w+b") as file:
        file.truncate(20 * MIB)
        assert file.pread(MIB, 10000) == bytes(10000)
        assert file.pwrite(10 * MIB + 5, b"lonely") == 6
        assert os.stat(root / "a").st_blocks * 512 <= 64 * KIB, "a small write in a hole fills no more than the kernel"
        assert file.pread(10 * MIB, 20) == bytes(5) + b"lonely" + bytes(9)
        content = noise(3 * MIB)
        for place in range(0, len(content), 4 * KIB):
            file.pwrite(MIB + place, content[place : place + 4 * KIB])
        assert file.pread(MIB - 3, 3 * MIB + 6) == bytes(3) + content + bytes(3)
        assert file.seek(2 * MIB, os.SEEK_DATA) == 2 * MIB
    assert (root / "a").stat().st_blocks * 512 < 8 * MIB


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 30))])
def test_random_steps_agree_with_a_model(root: Path, seed: int) -> None:
    """One process in memory, the kernel on the same file in between, and a bytearray as the model."""
    chance = random.Random(seed)
    model = bytearray()
    with direct.open(root / "a", "w+b") as file, (root / "a").open("r+b", buffering=0) as other:
        for step in range(400):
            offset, size = chance.randrange(300 * KIB), chance.choice([1, 100, 4096, 10000, 100 * KIB])
            action = chance.choice(["pwrite", "append", "pread", "kernel", "cut", "punch", "readinto", "size"])
            if action in {"pwrite", "append", "kernel"}:
                offset = len(model) if action == "append" else offset
                data = chance.randbytes(size)
                if action == "kernel":
                    assert file.size == len(model)
                    assert os.pwrite(other.fileno(), data, offset) == size
                    assert file.size >= offset + size
                else:
                    assert file.pwrite(offset, data) == size
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + size] = data
            elif action == "cut" and chance.random() < 0.3:
                assert file.size == len(model)
                os.ftruncate(other.fileno(), offset)
                model[offset:] = bytes(max(0, offset - len(model)))
            elif action == "punch":
                assert file.size == len(model)
                assert fallocate(other.fileno(), PUNCH, offset, size) == 0
                end = min(offset + size, len(model))
                if end > offset:
                    model[offset:end] = bytes(end - offset)
            elif action == "readinto":
                buffer = bytearray(size)
                done = file.readinto_at(offset, buffer)
                assert buffer[:done] == model[offset : offset + size]
            elif action == "size":
                assert file.size == len(model) == os.fstat(other.fileno()).st_size
            assert file.pread(offset, size) == model[offset : offset + size], (step, action)
    assert (root / "a").read_bytes() == model


def test_a_forked_child_goes_its_own_way(root: Path) -> None:
    (root / "a").write_bytes(b"x" * MIB)
    with direct.open(root / "a", "r+b") as file, direct.map(file, access="rw") as mapping:
        file.pwrite(0, b"parent")

        def child() -> None:
            assert file.pread(0, 6) == b"parent"
            file.pwrite(0, b"child!")
            mapping.view[100:103] = b"map"
            mapping.flush()
            file.close()
            mapping.close()

        in_child(child)
        assert file.direct
        assert file.pread(0, 6) == b"child!"
        assert file.pread(100, 3) == b"map"
        file.pwrite(0, b"after")
        assert bytes(mapping.view[:5]) == b"after"


def test_the_other_kind_of_session_serves_through_the_kernel(pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096"), *SESSIONS["pyfuse3"]) as mount:
        with direct.open(mount.place / "a", "w+b") as file:
            assert not file.direct
            assert "gives no pool" in file.why
            file.write(b"abc" * 1000)
            file.flush()
            assert file.pread(0, 3) == b"abc"
        with pytest.raises(OSError, match="No such device"):
            direct.map(mount.place / "a", access="rw")  # files of that session can't be mapped shared at all


def test_a_file_without_dax_is_the_kernels(pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"], "dax=never") as mount:
        (mount.place / "a").write_bytes(b"x" * mmap.PAGESIZE)
        with direct.open(mount.place / "a", "r+b") as file:
            assert not file.direct
            assert "gives no lease" in file.why
            file.pwrite(0, b"y")
        assert (mount.place / "a").read_bytes()[:2] == b"yx"


def test_flush_outlives_the_daemon(pool: Callable[..., Path]) -> None:
    """The daemon is killed after a flush; the next mount has size and bytes."""
    where = pool("-b", "4096")
    content = noise(700 * KIB)
    with mountpoint() as place:
        mount = Mounted(where, place, SESSIONS["kernel"])
        try:
            file = direct.open(place / "a", "wb")
            for start in range(0, len(content), 4096):
                file.write(content[start : start + 4096])
            file.flush()
            assert file.direct
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            file.write(b"lost")
            with pytest.raises(OSError, match="not connected"):
                file.close()
        finally:
            mount.down()
    del file
    gc.collect()  # errors that are gone had frames, which had the pool
    with mounted(where, *SESSIONS["kernel"]) as mount:
        assert (mount.place / "a").read_bytes() == content

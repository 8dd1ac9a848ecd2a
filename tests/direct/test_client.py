"""``daxfs.direct`` on a mounted pool: what is done in memory is seen through the kernel, and the reverse."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import io
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mount_rig import SESSIONS, Mounted, as_user, in_child, mounted, mountpoint

from daxfs import direct, protocol

KIB, MIB = 1 << 10, 1 << 20
PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

fallocate = ctypes.CDLL(None, use_errno=True).fallocate
fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@pytest.fixture
def mount(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """A pool whose clients may map it."""
    with mounted(pool("-b", "4096", size="256M"), *SESSIONS["kernel"]) as mount:
        yield mount
        gc.collect()


@pytest.fixture
def root(mount: Mounted) -> Path:
    """The root directory of the mount."""
    return mount.place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each ioctl that this process makes."""
    numbers: list[int] = []
    really = fcntl.ioctl

    def ioctl(descriptor: int, request: int, *more: object) -> int:
        numbers.append(request)
        return really(descriptor, request, *more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return numbers


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that are no pattern."""
    return random.Random(seed).randbytes(size)


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


@pytest.mark.parametrize("piece", [1000, 4 * KIB, 300 * KIB])
def test_a_file_grows_in_steps(root: Path, asked: list[int], piece: int) -> None:
    content = noise(9 * MIB)
    with direct.open(root / "a", "wb") as file:
        assert file.direct
        for place in range(0, len(content), piece):
            assert file.write(content[place : place + piece]) == len(content[place : place + piece])
        assert len(asked) < 20
    assert (root / "a").read_bytes() == content
    assert (root / "a").stat().st_blocks * 512 == 9 * MIB, "what was taken behind the end is given back"


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


def test_two_make_a_file_longer(root: Path) -> None:
    """Each writes its own region behind the end; nothing of either is lost."""
    with direct.open(root / "a", "w+b") as one, direct.open(root / "a", "r+b") as two:
        one.write(b"0" * 64 * KIB)
        for place in range(64 * KIB, 512 * KIB, 4 * KIB):
            one.pwrite(place, b"1" * 4096)
            two.pwrite(place + 448 * KIB, b"2" * 4096)
        one.flush()
        two.flush()
    assert (root / "a").read_bytes() == b"0" * 64 * KIB + b"1" * 448 * KIB + b"2" * 448 * KIB


def test_a_range_is_flushed_without_a_word_where_a_lease_told_it(root: Path, asked: list[int]) -> None:
    (root / "a").write_bytes(bytes(MIB))
    with direct.open(root / "a", "r+b") as file:
        file.pwrite(5000, b"x")
        count = len(asked)
        file.flush(5000, 1)
        assert len(asked) == count
        file.flush(0, 2 * MIB)
        assert asked[count:] == [protocol.IOC_STORED]
    with direct.open(root / "b", "wb") as file:
        file.write(b"small")
        file.flush(0, 5)
        assert file.direct


def test_several_append(root: Path) -> None:
    """O_APPEND writes are the kernel's: each record is whole and at the end of its moment."""

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


def test_memory_that_a_file_lost_is_not_another_files_while_it_may_be_touched(root: Path) -> None:
    """A mapped file is removed and the pool filled: the mapping keeps its own bytes."""
    content = noise(8 * MIB)
    (root / "a").write_bytes(content)
    mapping = direct.map(root / "a")
    assert mapping.direct
    (root / "a").unlink()
    full = False
    for number in range(400):
        try:
            (root / f"b{number}").write_bytes(b"b" * MIB)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            full = True
            break
    assert full
    assert bytes(mapping.view) == content


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


def test_filling_a_hole_in_order_asks_seldom(root: Path, asked: list[int]) -> None:
    with direct.open(root / "a", "w+b") as file:
        file.truncate(20 * MIB)
        for place in range(0, 20 * MIB, 4 * KIB):
            file.pwrite(place, b"f" * 4096)
    assert len(asked) < 30
    assert set((root / "a").read_bytes()) == {ord("f")}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 30))])
def test_random_steps_agree_with_a_model(root: Path, seed: int) -> None:
    """One process in memory, the same file through the kernel in between, and a bytearray."""
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


def in_pieces(root: Path, pieces: int) -> bytes:
    """Make ``a``, which lies in that many pieces of 64 KiB; returns its content."""
    content = noise(pieces * 64 * KIB)
    with (root / "a").open("wb", buffering=0) as one, (root / "b").open("wb", buffering=0) as two:
        for place in range(0, len(content), 64 * KIB):
            one.write(content[place : place + 64 * KIB])
            os.fsync(one.fileno())
            two.write(bytes(64 * KIB))
            os.fsync(two.fileno())
    return content


@pytest.mark.parametrize("access", ["r", "rw"])
def test_a_file_in_pieces_is_one_buffer(root: Path, access: str) -> None:
    content = in_pieces(root, 130)
    with direct.map(root / "a", access=access) as mapping:
        assert (mapping.direct, mapping.why) == (True, "")
        assert len(mapping) == len(content)
        assert bytes(mapping.view) == content
        assert mapping.view.readonly == (access == "r")
        assert np.array_equal(np.frombuffer(mapping.view, np.uint8), np.frombuffer(content, np.uint8))
    with direct.map(root / "a", 100001, 700003) as mapping:
        assert bytes(mapping.view) == content[100001:800004]


def test_stores_to_a_mapping_are_the_files(root: Path) -> None:
    (root / "a").write_bytes(bytes(5 * MIB + 123))
    with direct.map(root / "a", 5000, access="rw") as mapping:
        array = np.frombuffer(mapping.view, np.uint8)
        array[:] = 7
        mapping.flush(4096, 10)
        mapping.flush()
        del array
    content = (root / "a").read_bytes()
    assert content == bytes(5000) + b"\7" * (5 * MIB + 123 - 5000)


def test_a_view_outlives_everything_that_it_came_from(root: Path) -> None:
    content = noise(2 * MIB)
    (root / "a").write_bytes(content)
    file = direct.open(root / "a", "r+b")
    mapping = direct.map(file, access="rw")
    assert mapping.direct
    array = np.frombuffer(mapping.view, np.uint8)
    file.close()
    mapping.close()
    del mapping, file
    gc.collect()
    (root / "a").unlink()
    (root / "b").write_bytes(bytes(4 * MIB))
    assert array.tobytes() == content
    array[5] = 1


def test_a_mapping_outlives_all_descriptors(root: Path) -> None:
    """A child closes whatever is open, as daemons do."""
    content = noise(2 * MIB)
    (root / "a").write_bytes(content)

    def child() -> None:
        mapping = direct.map(root / "a")
        assert mapping.direct
        os.closerange(3, 1000)
        (root / "a").unlink()
        (root / "b").write_bytes(bytes(4 * MIB))
        assert bytes(mapping.view) == content

    in_child(child)


def test_a_closed_mapping(root: Path) -> None:
    (root / "a").write_bytes(b"x" * 5000)
    mapping = direct.map(root / "a")
    mapping.close()
    mapping.close()
    assert mapping.closed
    for use in (lambda: mapping.view, mapping.flush):
        with pytest.raises(ValueError, match="closed"):
            use()
    for place, length in ((0, 5001), (5000, None), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="of a file of 5000"):
            direct.map(root / "a", place, length)
    with pytest.raises(ValueError, match="use r or rw"):
        direct.map(root / "a", access="w")


def maps_of(mapping: direct.Mapping) -> int:
    """The address of a view's first byte."""
    return np.frombuffer(mapping.view, np.uint8).ctypes.data


def test_the_mapping_ends_with_the_last_view(root: Path) -> None:
    (root / "a").write_bytes(b"x" * MIB)
    mapping = direct.map(root / "a")
    view = mapping.view[100:200]
    address = f"{maps_of(mapping):x}-"
    mapping.close()
    del mapping
    assert address in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert address not in Path("/proc/self/maps").read_text()


def test_large_files_are_mapped_congruent_to_the_pool(root: Path) -> None:
    (root / "a").write_bytes(bytes(32 * MIB))
    mapping = direct.map(root / "a")
    ground = mapping._ground
    assert ground is not None
    layout = ground.ask(0, 32 * MIB, protocol.Flag(0))
    assert layout is not None
    largest = max(layout.pieces, key=lambda piece: piece.length)
    assert largest.place is not None
    assert (maps_of(mapping) + largest.start - largest.place) % (2 * MIB) == 0


def test_holes_of_a_mapping(root: Path) -> None:
    with (root / "few").open("wb") as file:
        file.truncate(3 * MIB)
    with (root / "many").open("wb") as file:
        file.truncate(100 * MIB)
    with direct.map(root / "few", access="rw") as mapping:
        mapping.view[MIB] = 1
        mapping.flush()
    assert (root / "few").stat().st_blocks * 512 == 3 * MIB
    with direct.map(root / "many", access="rw") as mapping:
        assert mapping.direct
        mapping.view[50 * MIB] = 1
        mapping.flush(50 * MIB, 1)
    assert (root / "many").stat().st_blocks * 512 < MIB
    assert (root / "many").read_bytes()[50 * MIB] == 1
    with direct.map(root / "many") as mapping:
        assert mapping.view[50 * MIB : 50 * MIB + 2] == b"\1\0"
        assert mapping.view[90 * MIB] == 0
    with direct.map(root / "many", access="rw", fill=True):
        pass
    assert (root / "many").stat().st_blocks * 512 == 100 * MIB


def test_a_mapping_knows_that_the_file_changed_below_it(root: Path) -> None:
    (root / "a").write_bytes(b"x" * MIB)
    with direct.map(root / "a") as mapping:
        assert not mapping.stale
        in_child(lambda: os.truncate(root / "a", 0))
        assert mapping.stale


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


def test_growth_survives_a_fork(root: Path) -> None:
    with direct.open(root / "a", "wb") as file:
        for _ in range(50):
            file.write(b"p" * 1000)
        in_child(file.close)
        for _ in range(50):
            file.write(b"q" * 1000)
    assert (root / "a").read_bytes() == b"p" * 50000 + b"q" * 50000


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
    """Killed after a flush, the daemon's next mount has the size and the bytes."""
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
            mount.daemon.wait(10)
            file.write(b"lost")
            with pytest.raises(OSError, match="not connected"):
                file.close()
        finally:
            mount.down()
    del file
    gc.collect()  # errors that are gone had frames, which had the pool
    with mounted(where, *SESSIONS["kernel"]) as mount:
        assert (mount.place / "a").read_bytes() == content

"""Ranges of a sparse pool file that are allocated before they are stored to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daxfs.errors import MissingMemory
from daxfs.pmem import reservation
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from support import run, tmpfs

SIZE = 4 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    with tmpfs(tmp_path, "size=256k"):
        yield tmp_path


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def allocated(pool: Pool) -> int:
    return os.stat(pool.path).st_blocks * 512


def test_a_range_is_allocated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    allocate = reservation.fallocate

    def count(descriptor: int, mode: int, offset: int, length: int) -> None:
        calls.append((offset, length))
        allocate(descriptor, mode, offset, length)

    monkeypatch.setattr(reservation, "fallocate", count)
    with open_pool(sparse(tmp_path / "pool")) as pool:
        assert pool.reserve is not None
        for offset in (0, 4096, 61440, 65536, 0):
            pool.reserve(offset, 4096)
        assert calls == [(0, 65536), (65536, 65536)]
        pool.reserve(SIZE - 4096, 4096)
        assert allocated(pool) == 3 * 65536
        assert pool.file_size == SIZE == os.stat(pool.path).st_size


def test_a_file_system_that_cannot_allocate_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library would store zeros into the holes, after a client has stored there."""

    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(reservation, "fallocate", unable)
    with open_pool(sparse(tmp_path / "pool")) as pool:
        assert pool.reserve is not None
        before = allocated(pool)
        pool.reserve(0, 4096)
        assert allocated(pool) == before
        pool.write(0, b"a store allocates by itself")


def test_a_pool_without_holes_reserves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(SIZE))
    with open_pool(path) as pool:
        assert pool.reserve is None
        pool.discard(0, 1 << 20)
        assert pool.reserve is not None, "now it has a hole"
        pool.reserve(0, 4096)
        assert allocated(pool) == SIZE - (1 << 20) + 65536
        pool.discard(0, 1 << 20)
        pool.reserve(0, 4096)
        assert allocated(pool) == SIZE - (1 << 20) + 65536, "what was punched is reserved again"
    with open_pool(path, read_only=True) as pool:
        assert pool.reserve is None
    with open_pool(path, private=True) as pool:
        assert pool.reserve is None


def test_no_room(small: Path) -> None:
    with open_pool(sparse(small / "pool")) as pool:
        assert pool.reserve is not None
        pool.reserve(0, 192 << 10)
        with pytest.raises(MissingMemory) as failed:
            pool.reserve(1 << 20, 128 << 10)
        assert failed.value.errno == errno.ENOSPC
        pool.reserve(2 << 20, 4096)
        pool.write(2 << 20, b"x" * 4096)


def test_the_last_pages_are_given_one_by_one(small: Path) -> None:
    with open_pool(sparse(small / "pool")) as pool:
        assert pool.reserve is not None
        pages = 0
        with suppress(MissingMemory):
            while pages < SIZE // 4096:
                pool.reserve(pages * 4096, 4096)
                pages += 1
        assert 60 <= pages < SIZE // 4096
        for page in range(pages):
            pool.write(page * 4096, b"y" * 4096)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """An xfs of the smallest size on a loop device."""
    image, place = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(300 << 20)
    run("mkfs.xfs", "-q", image)
    place.mkdir()
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        run("umount", place)


def fill(path: Path) -> int:
    """Write until there is no room; return the descriptor of the file."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in (1 << 20, 4096, 512):
        with suppress(OSError):
            while os.write(descriptor, b"x" * size):
                pass
    os.fsync(descriptor)
    return descriptor


def leave(filler: int, blocks: int) -> None:
    """Cut so many blocks of 4 KiB off a file."""
    os.ftruncate(filler, os.fstat(filler).st_size - 4096 * blocks)
    os.fsync(filler)


def test_a_page_of_a_large_folio_is_stored_to_though_its_neighbours_find_no_room(xfs: Path) -> None:
    """A folio of many pages is in the page cache; a store to one of them wants room for all (iomap_page_mkwrite)."""
    path = sparse(xfs / "pool")
    path.read_bytes()
    filler = fill(xfs / "filler")
    leave(filler, 3)
    with open_pool(path) as pool:
        at = (3 << 20) + 0x1C000
        assert pool.reserve is not None
        pool.reserve(at, 4096)
        with suppress(OSError):
            while True:
                os.posix_fallocate(filler, os.fstat(filler).st_size, 4096)
        pool.block_store(at, b"y" * 4096)
        assert bytes(pool.memory[at : at + 4096]) == b"y" * 4096
        assert path.read_bytes()[at : at + 4096] == b"y" * 4096
        pool.fence()
        with pytest.raises(MissingMemory):
            pool.block_store(at + 4096, b"y" * 4096)
    os.close(filler)


def test_what_is_allocated_needs_no_room(xfs: Path) -> None:
    """fallocate(2) of xfs is ENOSPC in a full file system even where all is allocated."""
    path = sparse(xfs / "pool")
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"z" * 8192, 1 << 20)
    filler = fill(xfs / "filler")
    with open_pool(path) as pool:
        assert pool.reserve is not None
        pool.reserve(1 << 20, 8192)
        with pytest.raises(MissingMemory):
            pool.reserve((1 << 20) + 4096, 8192)
    os.close(filler)


def test_neighbours_are_allocated_where_there_is_room(tmp_path: Path) -> None:
    with open_pool(sparse(tmp_path / "pool")) as pool:
        assert pool.reserve is not None
        pool.reserve((2 << 20) - 4096, 4096, around=True)
        assert allocated(pool) == 2 << 20
        pool.reserve((2 << 20) - 4096, 8192, around=True)
        assert allocated(pool) == SIZE


def test_neighbours_are_left_out_where_there_is_no_room(small: Path) -> None:
    with open_pool(sparse(small / "pool")) as pool:
        assert pool.reserve is not None
        pool.reserve(1 << 20, 4096, around=True)
        pool.write(1 << 20, b"x" * 4096)

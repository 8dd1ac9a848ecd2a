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
from daxfs.pmem.pool import Pool, open_pool
from support import tmpfs

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

"""Fully allocated pools, on file systems with and without room for them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.errors import UserError
from daxfs.tools import room
from daxfs.tools.mkfs import make_pool
from support import fsck, tmpfs

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with tmpfs(folder, "size=16m"):
        yield folder


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("options", [(), ("-E", "nodiscard"), ("-O", "^has_journal")])
def test_a_pool_is_allocated_whole(tmp_path: Path, options: tuple[str, ...]) -> None:
    pool = tmp_path / "pool"
    assert make_pool(pool, 24 * MIB, options).lacking == 0
    assert allocated(pool) >= 24 * MIB
    fsck(pool)


def test_an_existing_file_is_allocated_whole(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with pool.open("wb") as file:
        file.truncate(20 * MIB + 512)
    make_pool(pool)
    assert allocated(pool) >= 20 * MIB
    make_pool(pool, 32 * MIB, ["-F"])
    assert pool.stat().st_size == 32 * MIB
    assert allocated(pool) >= 32 * MIB
    fsck(pool)


def test_a_sparse_pool_keeps_its_holes(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assert make_pool(pool, 64 * MIB, sparse=True).lacking == 0
    assert allocated(pool) < 16 * MIB
    fsck(pool)


def test_no_room(small: Path) -> None:
    pool = small / "pool"
    with pytest.raises(UserError, match=r"pool has room for 16 MiB of 32 MiB; .* --sparse$") as refused:
        make_pool(pool, 32 * MIB)
    assert refused.value.code == 1
    assert not pool.exists()


def test_a_file_for_which_there_is_no_room_keeps_its_content_and_its_size(small: Path) -> None:
    pool = small / "pool"
    content = b"precious" * 1000
    pool.write_bytes(content)
    with pytest.raises(UserError, match="room for"):
        make_pool(pool, 32 * MIB)
    assert pool.read_bytes() == content


def test_what_a_sparse_pool_lacks_is_reported(small: Path) -> None:
    pool = small / "pool"
    lacking = make_pool(pool, 32 * MIB, sparse=True).lacking
    assert 16 * MIB <= lacking <= 17 * MIB
    fsck(pool)


def test_room_that_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    pool = tmp_path / "pool"
    with pytest.raises(UserError, match="no room for all of it"):
        make_pool(pool, 16 * MIB)
    assert not pool.exists()


def test_a_file_system_that_cannot_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    pool = tmp_path / "pool"
    make_pool(pool, 16 * MIB)
    fsck(pool)


def test_a_tmpfs_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: unlimited)
    with (tmp_path / "file").open("wb") as file:
        assert room.lacking(file.fileno(), 1 << 60) == 0

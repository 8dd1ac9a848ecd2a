"""Memory of the pool that goes away below clients: an error of the call, and no SIGBUS in a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest
from direct_rig import DATA, FakeDaemon
from mount_rig import SESSIONS, Mounted, mounted, mountpoint
from preload_rig import compile_library, compile_program, said

from daxfs import direct
from support import mke2fs, tmpfs

MIB = 1 << 20
CONTENT = os.urandom(MIB)


@pytest.fixture(params=["msync", "volatile"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A pool in a file, or in a tmpfs."""
    volatile = request.param == "volatile"
    with tmpfs(tmp_path, "size=64m") if volatile else nullcontext():
        yield mke2fs(tmp_path / "pool", "-b", "4096", size="32M")


def test_the_pool_is_cut_below_a_program(tmp_path: Path, pool: Path) -> None:
    """The program's own handler of SIGBUS gets its own faults, and none of the library's."""
    library = compile_library(tmp_path / "preload.so")
    program = compile_program("missing", tmp_path / "missing")
    with mountpoint() as place:
        mount = Mounted(pool, place, (*SESSIONS["kernel"], f"log={tmp_path / 'log'}"))
        try:
            for path in (place / "file", tmp_path / "plain"):
                path.write_bytes(CONTENT)
            assert said(library, program, place / "file", pool, tmp_path / "plain") == "good\n"
            assert mount.daemon.poll() is None
        finally:
            mount.down()
    assert pool.stat().st_size == 64 << 10


def test_the_pool_is_cut_below_python(tmp_path: Path, pool: Path) -> None:
    with mountpoint() as place:
        mount = Mounted(pool, place, (*SESSIONS["kernel"], f"log={tmp_path / 'log'}"))
        try:
            (place / "file").write_bytes(CONTENT)
            files = [direct.open(place / "file", "r+b") for _ in range(2)]
            buffer = bytearray(MIB)
            for file in files:
                assert file.pwrite(5, CONTENT[5:]) == MIB - 5
                assert (file.readinto_at(0, buffer), bytes(buffer)) == (MIB, CONTENT)
                assert file.direct
            os.truncate(pool, 64 << 10)
            for file in files:
                for call in (
                    partial(file.pwrite, 0, CONTENT[:4096]),
                    partial(file.pread, MIB - 4096, 4096),
                    partial(file.pread, 0, MIB),
                    partial(file.readinto_at, 0, buffer),
                    partial(file.pwrite, 0, CONTENT),
                ):
                    with pytest.raises(OSError, match="Input/output error"):
                        call()
                with suppress(OSError):  # as close(2), it promises nothing about the stores of before
                    file.close()
            assert mount.daemon.poll() is None
        finally:
            mount.down()


def test_the_end_of_the_pool_is_cut(tmp_path: Path, pool: Path) -> None:
    """The page of the store is missing, and so are the status entries behind it; what lies before can be read."""
    with mountpoint() as place:
        mount = Mounted(pool, place, (*SESSIONS["kernel"], f"log={tmp_path / 'log'}"))
        try:
            (place / "early").write_bytes(CONTENT)
            with direct.open(place / "early", "rb") as early:
                assert early.direct
                (place / "late").write_bytes(CONTENT)
                late = direct.open(place / "late", "r+b")
                for _ in range(2):
                    assert late.pwrite(MIB - 4096, CONTENT[:4096]) == 4096
                assert late._cache is not None
                _, end, delta, *_ = late._cache.write_extent
                os.truncate(pool, end + delta - 4096)
                with pytest.raises(OSError, match="Input/output error"):
                    late.pwrite(MIB - 4096, CONTENT[:4096])
                assert not late.direct
                assert early.pread(0, MIB) == CONTENT
                with suppress(OSError):
                    late.close()
        finally:
            mount.down()


def test_memory_that_is_missing_on_a_read_only_mount(tmp_path: Path, pool: Path) -> None:
    """Nothing changes there, so that there is no status entry which could show zeros."""
    with mounted(pool) as mount:
        (mount.place / "file").write_bytes(CONTENT)
    with mountpoint() as place:
        mount = Mounted(pool, place, (*SESSIONS["kernel"], "ro", f"log={tmp_path / 'log'}"))
        try:
            with direct.open(place / "file", "rb") as file:
                assert file.pread(4096, 4096) == CONTENT[4096:8192]
                assert file.direct
                os.truncate(pool, 64 << 10)
                for _ in range(2):
                    with pytest.raises(OSError, match="Input/output error"):
                        file.pread(4096, 4096)
                assert not file.direct
        finally:
            mount.down()


def test_a_store_that_meets_no_memory_is_written_by_the_kernel(daemon: FakeDaemon) -> None:
    """The status entry is there before the store; the page of the store is not."""
    with direct.open(daemon.file, "r+b") as file:
        assert file.pwrite(100, b"abc") == 3
        assert file._cache is not None
        low, high, _, epoch, status = file._cache.write_extent
        assert (low, high) == (0, daemon.size)
        os.truncate(daemon.pool, DATA)
        assert status[0] == epoch
        assert file.pwrite(200, b"def") == 3
        assert status[0] == 0
        assert file._cache.appended_end == 0
    assert not daemon.appended
    assert daemon.file.read_bytes()[198:205] == b"kkdefkk"

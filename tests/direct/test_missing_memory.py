"""Memory of the pool that goes away below clients: an error of the call, or the kernel's way, and no SIGBUS in a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mountpoint
from preload_rig import compile_library, compile_program, said

from support import mke2fs, tmpfs

MIB = 1 << 20


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
                path.write_bytes(os.urandom(MIB))
            assert said(library, program, place / "file", pool, tmp_path / "plain") == "good\n"
            assert mount.daemon.poll() is None
        finally:
            mount.down()
    assert pool.stat().st_size == 64 << 10

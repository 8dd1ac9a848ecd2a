"""A mounted pool whose memory goes away: errors for those who need it, and a daemon that lives and unmounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, Mounted, mounted, mountpoint

from support import fsck, mke2fs, run, tmpfs

MIB = 1 << 20
CONTENT = os.urandom(MIB)


def error_of(operation: str, *arguments: object) -> int:
    """The errno of a function of ``os``; 0: it succeeded."""
    try:
        getattr(os, operation)(*arguments)
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


@pytest.mark.parametrize("session", SESSIONS)
def test_a_pool_that_is_cut(tmp_path: Path, session: str) -> None:
    pool = mke2fs(tmp_path / "pool", size="32M")
    log = tmp_path / "log"
    with mountpoint() as place:
        mount = Mounted(pool, place, (*SESSIONS[session], f"log={log}"))
        try:
            (place / "file").write_bytes(CONTENT)
            descriptor = os.open(place / "file", os.O_RDWR)
            os.truncate(pool, 64 << 10)
            for size in (100, 4096, MIB):
                assert error_of("pread", descriptor, size, 0) == errno.EIO
            assert error_of("pwrite", descriptor, b"x" * 5000, 0) == errno.EIO
            assert error_of("fsync", descriptor) == errno.EIO
            assert error_of("mkdir", place / "new") == errno.EIO
            os.close(descriptor)
            assert mount.daemon.poll() is None
            os.statvfs(place)
            mount.unmount()
        finally:
            mount.down()
    assert pool.stat().st_size == 64 << 10
    assert log.read_text().count("was cut to 65536 bytes while it was in use; the operation fails") == 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 24 MiB."""
    with tmpfs(tmp_path, "size=24m"):
        yield tmp_path


def test_a_sparse_pool_on_a_file_system_that_fills_up(small: Path) -> None:
    pool = small / "pool"
    assert "lacks" in daxfs("mkfs", pool, "--size", "256M", "--sparse")
    with mounted(pool) as mount:
        (mount.place / "whole").write_bytes(CONTENT)
        descriptor = os.open(mount.place / "large", os.O_RDWR | os.O_CREAT)
        written = 0
        while not (failed := error_of("pwrite", descriptor, CONTENT[: 64 << 10], written)):
            written = os.fstat(descriptor).st_size
        assert failed == errno.ENOSPC
        assert written > MIB
        assert os.pread(descriptor, written, 0)[: 64 << 10] == CONTENT[: 64 << 10]
        os.close(descriptor)
        assert (mount.place / "whole").read_bytes() == CONTENT
        for name in ("a", "b", "c"):
            with open(mount.place / name, "wb", buffering=0) as file:
                assert error_of("write", file.fileno(), b"x") in (0, errno.ENOSPC)
    for options in (("ro",), ("rw",)):
        with mounted(pool, *options) as mount:
            assert (mount.place / "whole").read_bytes() == CONTENT
            assert (mount.place / "large").stat().st_size >= written
    with mounted(pool) as mount:
        (mount.place / "large").unlink()
        daxfs("sync", mount.place)
        run("fstrim", mount.place)
        (mount.place / "again").write_bytes(CONTENT)
    fsck(pool)


def test_a_hole_of_the_pool_reads_as_zeros_though_there_is_no_room(small: Path) -> None:
    """cp --sparse made a hole of a file's zeros; the page that a load needs can't be had."""
    pool = small / "pool"
    daxfs("mkfs", pool, "--size", "64M", "--sparse")
    with mounted(pool) as mount:
        (mount.place / "zeros").write_bytes(bytes(4 * MIB))
        (mount.place / "small").write_bytes(bytes(5000))
    run("fallocate", "--dig-holes", pool)
    filler = small / "filler"
    with filler.open("wb") as file:
        while not error_of("write", file.fileno(), CONTENT):
            pass
    with mounted(pool, "ro") as mount:
        assert (mount.place / "zeros").read_bytes() == bytes(4 * MIB)
        assert (mount.place / "small").read_bytes() == bytes(5000)
        filler.unlink()

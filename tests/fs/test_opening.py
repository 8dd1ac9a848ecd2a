"""Read-only mounts and checks of pools that were not unmounted: they see all that was committed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damage_rig import refusal
from kernel_rig import kernel_mount

from daxfs.errors import FsError, PoolError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.memory import MemoryPool
from daxfs.tools import info
from support import fsck, run

READ_ONLY = Options(read_only=True)
CONTENT = b"committed and not unmounted" * 100


@pytest.fixture(params=["1024", "4096"])
def crashed(pool: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """Return a pool as a power cut leaves it: committed transactions in the log, no home copies of them, an orphan."""
    path = pool("-b", request.param, size="16M")
    before = path.read_bytes()
    memory = MemoryPool(bytearray(before))
    fs = FileSystem.open(memory)
    fs.tree.mkdir("/d")
    fs.tree.write_bytes("/d/file", CONTENT)
    file, _ = fs.create(ROOT_INO, b"orphan", 0o600)
    fs.write(file, 0, bytes(50_000))
    fs.unlink(ROOT_INO, b"orphan")
    fs.sync()
    after = bytearray(memory.image())
    for extent in fs.describe(ROOT_INO):
        place = slice(extent.pblk * fs.volume.block_size, (extent.pblk + extent.length) * fs.volume.block_size)
        after[place] = before[place]  # home copies that the cut came before
    path.write_bytes(after)
    return path


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Make the pool immutable, so that not even root opens it for writing."""
    run("chattr", "+i", path)
    try:
        with pytest.raises(PermissionError):
            os.close(os.open(path, os.O_RDWR))
        yield
    finally:
        run("chattr", "-i", path)


def test_a_read_only_mount_replays_into_the_pool(crashed: Path) -> None:
    with FileSystem.open(crashed, READ_ONLY) as fs:
        assert fs.tree.read_bytes("/d/file") == CONTENT
        with pytest.raises(FsError) as refused:
            fs.tree.mkdir("/new")
        assert refused.value.errno == errno.EROFS
    fsck(crashed)


def test_a_pool_that_cant_be_written_is_replayed_in_memory(crashed: Path) -> None:
    before = crashed.read_bytes()
    with unwritable(crashed):
        with FileSystem.open(crashed, READ_ONLY) as fs, FileSystem.open(crashed, READ_ONLY) as other:
            assert fs.tree.read_bytes("/d/file") == CONTENT
            assert other.tree.read_bytes("/d/file") == CONTENT
            with pytest.raises(FsError) as refused:
                fs.pool_identity()
            assert refused.value.errno == errno.EOPNOTSUPP, "what others would map is not what this mount reads"
        with pytest.raises(PoolError):
            FileSystem.open(crashed)
    assert crashed.read_bytes() == before


def test_noload_looks_without_replay(crashed: Path) -> None:
    before = crashed.read_bytes()
    with FileSystem.open(crashed, Options(read_only=True, replay=False)) as fs:
        assert b"lost+found" in fs.tree.listdir("/")
    assert crashed.read_bytes() == before
    with pytest.raises(FsError) as refused:
        FileSystem.open(crashed, Options(replay=False))
    assert refused.value.errno == errno.EINVAL


def test_a_pool_object_for_reading_is_refused_in_one_line(crashed: Path) -> None:
    with pytest.raises(FsError) as refused:
        FileSystem.open(MemoryPool(crashed.read_bytes(), read_only=True), READ_ONLY)
    assert refused.value.errno == errno.EROFS
    assert str(crashed) not in refused.value.strerror


def test_looks_see_what_recovery_will_leave(crashed: Path) -> None:
    before = crashed.read_bytes()
    seen = info.examine(str(crashed))
    assert crashed.read_bytes() == before, "looking changes nothing"
    with FileSystem.open(MemoryPool(bytearray(before))) as fs:
        orphan = -(-50_000 // fs.volume.block_size)
        assert seen.free_blocks == fs.statfs().free - orphan, "the orphan is freed by the next mount"
    assert "replayed by the next mount" in seen.state


def test_a_pool_in_use_by_this_process(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/f", b"content")
        for mount in (None, Options(read_only=True)):
            error = refusal(path, mount)
            assert isinstance(error, PoolError)
            assert "in use" in str(error)
    FileSystem.open(path).close()
    fsck(path)


def test_a_pool_in_use_by_another_daxfs(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096")
    script = (
        "import sys; from daxfs.fs.filesystem import FileSystem\n"
        f"with FileSystem.open({str(path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        error = refusal(path)
        assert isinstance(error, PoolError)
        assert str(child.pid) in str(error)
    finally:
        child.communicate("", timeout=30)
    assert child.returncode == 0
    fsck(path)


def test_a_pool_that_the_kernel_has_mounted(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096")
    with kernel_mount(path) as root:
        error = refusal(path)
        assert isinstance(error, PoolError)
        assert str(root) in str(error)
        (root / "f").write_text("still the kernel's")
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/f") == b"still the kernel's"

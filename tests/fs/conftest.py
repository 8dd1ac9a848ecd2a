"""File systems for the tests of the fs layer: e2fsck checks each one at the end of its test."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import crash_marker
import pytest
from in_memory import tmp_path
from recall_clock import clock

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.memory import MemoryPool
from support import fsck, mke2fs, run

__all__ = ["clock", "tmp_path"]

# Every axis of the format that the runtime must serve, one option set each.
FORMATS = {
    "default": (),
    "no-csum": ("-O", "^metadata_csum,^metadata_csum_seed"),
    "gdt-csum": ("-O", "^metadata_csum,uninit_bg"),
    "no-64bit": ("-O", "^64bit"),
    "inode128": ("-I", "128"),
    "block1k": ("-b", "1024"),
    "block2k": ("-b", "2048"),
    "no-extents": ("-O", "^extent,^64bit"),
    "no-dir-index": ("-O", "^dir_index"),
    "no-journal": ("-O", "^has_journal"),
    "no-flex-bg": ("-O", "^flex_bg"),
    "orphan-file": ("-O", "orphan_file"),
    "meta-bg": ("-O", "meta_bg,^resize_inode"),
}


@pytest.fixture(params=FORMATS, ids=list(FORMATS))
def any_format(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the mke2fs options of each format in turn."""
    return FORMATS[request.param]


@pytest.fixture(params=[name for name in FORMATS if name != "no-journal"])
def journaled_format(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the mke2fs options of each format with a journal in turn: the others have no atomic writes."""
    return FORMATS[request.param]


CHECKED = [
    *(
        "create",
        "fallocate",
        "copy_range",
        "fsync",
        "lease",
        "link",
        "mkdir",
        "mknod",
        "notify_stored",
        "open_file",
        "release",
        "rename",
    ),
    *("rmdir", "setattr", "setxattr", "symlink", "sync", "tick", "tmpfile", "unlink", "unpin", "write"),
]
"""Operations after which what is kept in DRAM is held against the pool."""
OFTEN, SELDOM = 100, 25
"""Each of the first operations of a file system, and one in so many of those that follow."""


def check_after_operations(fs: FileSystem) -> None:
    """Call `FileSystem.check` after the operations of this file system, including those that fail."""
    count = 0

    def checked(operation: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            nonlocal count
            try:
                return operation(*arguments, **options)
            finally:
                count += 1
                if count < OFTEN or count % SELDOM == 0:
                    fs.check()

        return run

    for name in CHECKED:
        setattr(fs, name, checked(getattr(fs, name)))


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of one small pool of blocks of 4 KiB."""
    path = mke2fs(tmp_path_factory.mktemp("small") / "pool", "-b", "4096", "-N", "64", "-J", "size=4", size="10M")
    return path.read_bytes()


@pytest.fixture
def memory_fs(small_image: bytes) -> Iterator[FileSystem]:
    """Yield a file system on a small pool in memory, for fast tests; its state in DRAM is checked at the end."""
    with FileSystem.open(MemoryPool(small_image), Options(atime="noatime")) as fs:
        yield fs
        fs.check()


@pytest.fixture
def open_fs(pool: Callable[..., Path]) -> Iterator[Callable[..., FileSystem]]:
    """Yield a function that makes a pool and opens it; after the test every pool is closed and must be clean."""
    opened: list[tuple[FileSystem, Path]] = []

    def make(*options: str, size: str = "64M", mount: Options | None = None, tune: tuple[str, ...] = ()) -> FileSystem:
        # mke2fs gives small pools blocks of 1 KiB unless it gets another size.
        path = pool(*(options if "-b" in options else ("-b", "4096", *options)), size=size)
        if tune:
            run("tune2fs", *tune, path)
        fs = FileSystem.open(path, mount)
        check_after_operations(fs)
        opened.append((fs, path))
        return fs

    yield make
    for fs, path in opened:
        with contextlib.suppress(ValueError):
            fs.close()
        fsck(path)


@pytest.fixture
def fs(
    request: pytest.FixtureRequest,
    open_fs: Callable[..., FileSystem],
    pool: Callable[..., Path],
    tmp_path: Path,
) -> Iterator[FileSystem]:
    """Yield a file system with the default features, on a recording pool if the test has the marker ``crash``."""
    if request.node.get_closest_marker("crash") is None:
        yield open_fs()
        return
    recorded = crash_marker.Recorded(pool("-b", "4096", size=crash_marker.SIZE).read_bytes())
    yield recorded.fs
    content = recorded.close()
    assert crash_marker.complete(recorded.pool, content)
    rng = random.Random(request.node.nodeid)
    assert recorded.check(request.config.getoption("--crash-images"), rng, tmp_path)

"""Blocks that held metadata and hold data next: the replay of the log must not put the metadata back.

Each kind of metadata block is made, committed and freed. Then a file takes every free block of the pool, so that it
has the freed ones, and the power goes with everything still in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_rig import FORMATS, QUIET, Workbench, image, noise

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.pmem.memory import MemoryPool
from support import fsck, write_image


def scattered(bench: Workbench) -> None:
    """A file in so many pieces that its map needs blocks of its own."""
    bench.new("pieces", 100)
    for index in range(8):
        bench.write("pieces", 20 * (index + 1) * bench.fs.volume.block_size, 100)


def crowded(bench: Workbench) -> None:
    """A directory with an index."""
    bench.fs.mkdir(ROOT_INO, b"crowded", 0o755)
    for number in range(20):
        bench.fs.link(bench.ino("f"), bench.ino("crowded"), b"%02d" % number + b"n" * 240)
    bench.fs.sync()
    for number in range(20):
        bench.fs.unlink(bench.ino("crowded"), b"%02d" % number + b"n" * 240)


Step = Callable[[Workbench], object]
KINDS: dict[str, tuple[Step, Step]] = {
    "attribute block": (
        lambda bench: bench.xattr("f", b"user.new", 700),
        lambda bench: bench.fs.removexattr(bench.ino("f"), b"user.new"),
    ),
    "attribute block of a file that goes": (
        lambda bench: (bench.new("new", 10), bench.xattr("new", b"user.new", 700)),
        lambda bench: bench.unlink("new"),
    ),
    "map of a file that goes": (scattered, lambda bench: bench.unlink("pieces")),
    "map of a file that is cut": (scattered, lambda bench: bench.truncate("pieces", 100)),
    "directory": (
        lambda bench: bench.fs.mkdir(ROOT_INO, b"newdir", 0o755),
        lambda bench: bench.fs.rmdir(ROOT_INO, b"newdir"),
    ),
    "directory with an index": (crowded, lambda bench: bench.fs.rmdir(ROOT_INO, b"crowded")),
    "symbolic link": (
        lambda bench: bench.fs.symlink(ROOT_INO, b"long", b"t" * 300),
        lambda bench: bench.unlink("long"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_freed_metadata_block_that_holds_data(tmp_path: Path, kind: str, name: str) -> None:
    pool = MemoryPool(image(name))
    fs = FileSystem.open(pool, QUIET)
    make, give_up = KINDS[kind]
    bench = Workbench(fs)
    make(bench)
    fs.sync()
    give_up(bench)
    fs.sync()
    file, _ = fs.create(ROOT_INO, b"full", 0o600)
    content = noise(pool.size, 77)
    done = fs.write(file, 0, content)
    with pytest.raises(FsError):
        fs.write(file, done, b"x")
    assert fs.volume.journal.stats.tail_moves == 0, "the log still holds everything"
    fs.fsync(file.ino)
    left = bytearray(pool.image())
    with FileSystem.open(MemoryPool(left), QUIET) as after:
        found = after.open_file(after.tree.resolve("full"), os.O_RDONLY)
        assert bytes(after.read(found, 0, done)) == content[:done]
        after.release(found)
    path = tmp_path / "pool"
    write_image(path, left)
    fsck(path)

"""Images of snapshots: what they hold, and that other programs accept them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from crash_rig import FORMATS, image, image_of
from kernel_rig import kernel_mount
from snapshot_rig import tree, tree_in
from tree_rig import QUIET

from daxfs.fs import imaging, mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.journal.log import load_superblock
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import ByteRange
from support import fsck


@pytest.mark.parametrize("name", FORMATS)
def test_the_kernel_mounts_an_image(name: str, tmp_path: Path) -> None:
    fs = FileSystem.open(MemoryPool(bytearray(image(name))), QUIET)
    expected = tree(fs)
    fs.create_snapshot(b"s")
    fs.tree.write_bytes("f", b"later")
    made = image_of(fs, b"s")
    path = tmp_path / "image"
    path.write_bytes(made)
    with kernel_mount(path) as place:
        assert (place / "big").stat().st_size == len(fs.tree.read_bytes("big"))
    fsck(path)
    assert tree_in(bytearray(path.read_bytes())) == expected


def test_an_image_has_no_free_blocks_and_no_log() -> None:
    fs = FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)
    fs.create_snapshot(b"s")
    found = dict(imaging.pieces(fs.volume.pool, fs.open_snapshot(b"s")))
    used = fs.volume.geometry.blocks_count - fs.statfs().free
    log = sum(length for _, length in fs.volume.log_area.runs)  # type: ignore[union-attr]
    assert sum(map(len, found.values())) <= used - log << 12
    assert 0 in found
    assert not any(len(content) % 4096 for content in found.values())


def test_the_superblocks_of_an_image_are_those_of_a_clean_file_system() -> None:
    fs = FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)
    fs.tree.write_bytes("new", b"x")
    fs.create_snapshot(b"s")
    found = MemoryPool(bytearray(fs.volume.pool.size))
    for offset, content in imaging.pieces(fs.volume.pool, fs.open_snapshot(b"s")):
        found.write(offset, content)
    sb = mounting.read_superblock(found)
    sb.verify()
    assert not mounting.needs_recovery(sb)
    area = mounting.log_area(PoolView(found, fs.volume.geometry), sb)
    assert not load_superblock(found, fs.volume.geometry, area).s_start


def test_an_image_has_no_snapshots_of_its_own() -> None:
    fs = FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)
    fs.create_snapshot(b"older")
    fs.create_snapshot(b"newer")
    with FileSystem.open(MemoryPool(image_of(fs, b"newer")), QUIET) as found:
        assert found.list_snapshots() == []
        assert found.volume.pool.hook is None


class Counted:
    """What a snapshot shows, read from bytes; how much was read at once is noted."""

    chunk_bits = 12

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at_once: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        return self.read_all([ByteRange(offset, offset + length)])[0]

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        self.at_once.append(sum(end - begin for begin, end in ranges))
        return [self.content[begin:end] for begin, end in ranges]


@pytest.mark.parametrize("numbers", [range(0, 3000, 2), range(3000), [0, 1, 2999], [7], []])
def test_scattered_chunks_are_read_together(numbers: Sequence[int]) -> None:
    """The daemon of a mount is asked after each reading."""
    past = Counted(random.Random(1).randbytes((3000 << 12) - 1024))
    pool = MemoryPool(bytearray(past.content))
    found = list(imaging.parts(pool, past, np.array(numbers, np.intp)))
    assert b"".join(content for _, content in found) == b"".join(
        past.content[number << 12 : number + 1 << 12] for number in numbers
    )
    assert all(past.content[offset : offset + len(content)] == content for offset, content in found)
    assert max(past.at_once) <= 4 << 20
    assert len(past.at_once) <= 1 + len(numbers) // 768

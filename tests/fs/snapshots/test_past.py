"""The metadata of a snapshot, and which chunks snapshots need."""

from __future__ import annotations

import pytest
from crash_rig import FORMATS, image
from snapshot_rig import keeper
from tree_rig import QUIET

from daxfs.errors import Corrupt
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.snapshots import files, past
from daxfs.pmem.memory import MemoryPool
from daxfs.runs import ByteRange
from daxfs.structures import directories, inodes, mapping


@pytest.fixture(params=FORMATS)
def fs(request: pytest.FixtureRequest) -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image(request.param))), QUIET)


def names(view: past.View) -> set[bytes]:
    return {bytes(entry.name) for entry in directories.entries(view, inodes.read(view, ROOT_INO))}


def test_a_view_of_the_past_shows_directories_inodes_and_the_superblock(fs: FileSystem) -> None:
    ino = fs.tree.resolve("g")
    size = fs.getattr(ino).size
    before = names(fs.volume.view)
    fs.create_snapshot(b"s")
    fs.unlink(ROOT_INO, b"g")
    fs.tree.write_bytes("new", b"x")
    fs.sync()
    view = past.PastView(fs.volume.pool, fs.open_snapshot(b"s"))
    assert names(view) == before
    assert inodes.read(view, ino).size == size
    assert view.superblock().s_state & 1
    with pytest.raises(Corrupt):
        view.block(view.geometry.blocks_count)


def test_what_is_needed_is_what_was_in_use_but_for_the_log_and_the_stores(fs: FileSystem) -> None:
    fs.create_snapshot(b"older")
    view = fs.volume.view
    fs.sync()
    needed = past.needed_at(view)
    shift = files.chunk_bits(view) - view.geometry.block_bits

    def is_needed(block: int) -> bool:
        chunk = block >> shift
        return bool(needed[chunk >> 3] >> (chunk & 7) & 1)

    big = inodes.read(view, fs.tree.resolve("big"))
    assert all(is_needed(run.pblk) for run in mapping.walk(view, big))
    for start, length in keeper(fs).kept[0].store.runs:
        assert not any(is_needed(chunk << shift) for chunk in range(start, start + length))
    log = next(mapping.walk(view, inodes.read(view, view.superblock().s_journal_inum)))
    assert not is_needed(log.pblk + (2 << shift))


def test_a_mount_knows_again_what_is_needed(fs: FileSystem) -> None:
    fs.create_snapshot(b"older")
    fs.unlink(*fs.tree.parent("big"))
    fs.create_snapshot(b"newer")
    fs.tree.write_bytes("f", b"other" * 300)
    fs.sync()
    kept = keeper(fs)
    again = past.needed_by(fs.volume.pool, [each.store for each in kept.kept])
    assert kept.copier is not None
    known = bytes(kept.copier.needed)
    assert bytes(again.ljust(len(known), b"\0")) == known


def test_unions_and_differences_of_bitmaps() -> None:
    assert past.union(bytearray(b"\x01"), bytearray(b"\x02\x80")) == bytearray(b"\x03\x80")
    assert past.without(bytearray(b"\xff\xff"), [0, 9, 15]) == bytearray(b"\xfe\x7d")


def test_the_needed_chunks_that_ranges_touch() -> None:
    bitmap = bytearray(64)
    for chunk in (7, 8, 9, 63, 64, 500, 511):
        bitmap[chunk >> 3] |= 1 << (chunk & 7)

    def within(*ranges: tuple[int, int]) -> list[int]:
        return past.within(bitmap, [ByteRange(*each) for each in ranges], 12)

    assert within() == []
    assert within((0, 7 << 12)) == []
    assert within((8 << 12, (8 << 12) + 1)) == [8]
    assert within(((8 << 12) - 1, 9 << 12)) == [7, 8]
    assert within((60 << 12, 65 << 12), (7 << 12, 9 << 12), (8 << 12, 9 << 12)) == [7, 8, 63, 64]
    assert within((0, 512 << 12)) == [7, 8, 9, 63, 64, 500, 511]

"""The caches of a pool: they belong to its mount alone, and a rollback of the pool undoes their changes too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from alloc_rig import AllocRig
from directory_rig import DirectoryRig, make_image, weaken_hashes

from daxfs.ext4.inode import FT_REG_FILE
from daxfs.structures import blocks, blocksearch, directories
from daxfs.structures.dirhints import Hints


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@pytest.fixture
def two(tmp_path: Path) -> tuple[DirectoryRig, DirectoryRig]:
    """Open two pools with the same names, and list all of them."""
    rigs = tuple(DirectoryRig(make_image(tmp_path / f"pool{i}", "-b", "1024")) for i in range(2))
    for rig in rigs:
        rig.insert_many([b"name %d" % i for i in range(30)])
        rig.check()
    return rigs


def remembered(rig: DirectoryRig) -> tuple[int, int, int]:
    hints = rig.view.caches[Hints]
    return hints.mapped, len(hints.tails), len(hints.chunks)


def undo_a_name(rig: DirectoryRig) -> None:
    with suppress(Undo), rig.change() as (tx, inode):
        directories.insert(tx, directories.find(tx, inode, b"never"), rig.target, FT_REG_FILE)
        raise Undo


def test_an_undone_change_costs_its_own_pool_the_hints(two: tuple[DirectoryRig, DirectoryRig]) -> None:
    one, other = two
    before = remembered(other)
    assert min(before) > 0
    undo_a_name(one)
    assert remembered(one) == (0, 0, 0)
    assert remembered(other) == before
    for rig in two:
        rig.close()


def test_an_operation_that_changed_no_name_costs_no_hint(two: tuple[DirectoryRig, DirectoryRig]) -> None:
    rig, _ = two
    before = remembered(rig)
    with suppress(Undo), rig.change() as (tx, inode):
        assert directories.find(tx, inode, b"name 3").ino
        raise Undo
    assert remembered(rig) == before


@pytest.mark.interpreted
def test_an_abort_costs_its_own_pool_the_hints(
    two: tuple[DirectoryRig, DirectoryRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort drops the hints of its own pool, but not the cookies that readers of listings have got."""
    weaken_hashes(monkeypatch)
    one, other = two
    for rig in two:
        rig.view.caches[Hints].drop()
        rig.check()
        rig.remove(b"name 7")
        rig.commit_consistent()
    rest, before = one.listing(9), remembered(other)
    one.journal.abort()
    assert remembered(one) == (0, 0, 0)
    assert remembered(other) == before
    assert one.listing(9) == rest


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[tuple[AllocRig, AllocRig]]:
    rigs = AllocRig(tmp_path / "one", "-b", "4096"), AllocRig(tmp_path / "other", "-b", "4096")
    yield rigs
    for rig in rigs:
        rig.close()


def test_chunks_that_are_whole_again_are_found_again(pools: tuple[AllocRig, AllocRig]) -> None:
    rig, other = pools
    chunk = blocksearch.CHUNK_BYTES >> rig.geometry.block_bits
    hints, others = rig.view.caches[blocksearch.Hints], other.view.caches[blocksearch.Hints]
    others.no_chunk.add(7)
    with suppress(Undo), rig.handle() as tx:
        for start in range(chunk, rig.geometry.blocks_count, chunk):
            blocks.allocate(tx, start + 5, 1, tree=True)
        blocks.allocate(tx, 0, chunk, tree=True)
        assert hints.no_chunk
        raise Undo
    start, count = rig.allocate(want=chunk)
    assert (start % chunk, count) == (0, chunk)
    assert others.no_chunk == {7}

"""Searches for places to move blocks to: aligned, outside of a part of the pool, and over many groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daxfs.fs.filesystem import FileSystem
from daxfs.runs import BlockRun
from daxfs.structures import blocks
from daxfs.structures.destinations import Search

CHUNK = 512


@pytest.fixture
def fs(pool: Callable[..., Path]) -> Iterator[FileSystem]:
    with FileSystem.open(pool("-b", "4096", "-g", "1024", size="64M")) as opened:
        yield opened


def found(fs: FileSystem, search: Search, length: int, align: int = 1) -> BlockRun | None:
    """The end of a search."""
    search.begin(fs.volume.view, length, align)
    while not search.ended:
        run = search.look(fs.volume.view)
        if run is not None:
            return run
    return None


def is_free(fs: FileSystem, run: BlockRun) -> bool:
    return all(blocks.is_free(fs.volume.view, number) for number in range(run.start, run.start + run.length))


def test_aligned_places_follow_each_other(fs: FileSystem) -> None:
    search = Search(0)
    places = []
    while len(places) < 8 and (run := found(fs, search, CHUNK, CHUNK)) is not None:
        assert run.start % CHUNK == 0
        assert is_free(fs, run)
        with fs.volume.handle(4) as tx:
            assert blocks.take_run(tx, run)
            assert not blocks.take_run(tx, run), "it is in use now"
        places.append(run.start)
    assert places == sorted(set(places))
    assert len(places) == 8
    with fs.volume.handle(64) as tx:
        for start in places:
            blocks.free(tx, start, CHUNK)


def test_a_part_of_the_pool_is_avoided(fs: FileSystem) -> None:
    whole = fs.volume.geometry.blocks_count
    for low, high in ((0, 9000), (5000, whole), (3000, 9000), (100, whole - 100)):
        search = Search(low, BlockRun(low, high - low))
        for length, align in ((1, 1), (300, 1), (CHUNK, CHUNK), (100, 1)):
            run = found(fs, search, length, align)
            if run is not None:
                assert run.start + length <= low or run.start >= high
                assert is_free(fs, run)
    assert found(fs, Search(0, BlockRun(0, whole)), 1) is None


def test_a_run_that_no_group_has(fs: FileSystem) -> None:
    assert found(fs, Search(0), 1025) is None


def test_the_smallest_run_that_suffices_is_taken(fs: FileSystem) -> None:
    """Whole chunks stay whole."""
    run = found(fs, Search(0), 1024 - 50)
    assert run is None or is_free(fs, run)
    with fs.volume.handle(16) as tx:
        place = found(fs, Search(8 * 1024), CHUNK, CHUNK)
        assert place is not None
        assert blocks.take_run(tx, BlockRun(place.start, 100))
        assert blocks.take_run(tx, BlockRun(place.start + 140, 10))
    small = found(fs, Search(place.start), 30)
    assert small == BlockRun(place.start + 100, 30)
    with fs.volume.handle(16) as tx:
        blocks.free(tx, place.start, 100)
        blocks.free(tx, place.start + 140, 10)

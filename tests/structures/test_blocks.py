"""The block allocator, compared with a set model, numpy's count of the bitmaps, and e2fsck."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from alloc_rig import LAYOUTS, AllocRig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT
from daxfs.ext4.group import descriptor as bind
from daxfs.runs import BlockRun
from daxfs.structures import bitmaps, blocks, groupmaps, groups, reserves
from daxfs.structures.noted import Noted
from support import fsck

Rigs = Callable[..., AllocRig]


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """``rigs("4k")`` opens a pool of one of the `LAYOUTS`, or with other options and size."""

    made: list[AllocRig] = []

    def make(name: str = "default", *options: str, size: str = "") -> AllocRig:
        layout, default_size = LAYOUTS[name]
        made.append(AllocRig(tmp_path / f"pool{len(made)}", *layout, *options, size=size or default_size))
        return made[-1]

    yield make
    for rig in made:
        rig.pool.close()


def blocks_of(runs: list[tuple[int, int]]) -> set[int]:
    return {block for start, count in runs for block in range(start, start + count)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_block_can_be_taken_and_given_back(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout)
    with rig.corrupting() as sb:
        sb.reserved_blocks_count = 100
        sb.seal()
    free, kept = blocks.free_blocks(rig.view), reserves.tree_reserve(rig.geometry)
    assert kept == rig.geometry.blocks_count // 50
    taken: list[tuple[int, int]] = []
    goal = 0
    while blocks.free_blocks(rig.view) > 100 + kept:
        want = random.Random(len(taken)).choice((1, 7, 300, 2500))
        start, count = rig.allocate(goal, want, privileged=False, tree=False)
        assert 1 <= count <= want
        taken.append((start, count))
        goal = start + count if len(taken) % 3 else 0
    with pytest.raises(FsError) as full:
        rig.allocate(goal, 1, privileged=False, tree=False)
    assert full.value.errno == errno.ENOSPC
    for _ in range(100):
        taken.append(rig.allocate(goal, 1, tree=False))
    with pytest.raises(FsError):
        rig.allocate(goal, 1, tree=False)
    assert blocks.free_blocks(rig.view) == kept
    for _ in range(kept):
        taken.append(rig.allocate(goal, 1, privileged=False))
    with pytest.raises(FsError):
        rig.allocate(goal, 1)
    assert blocks.free_blocks(rig.view) == 0
    assert len(blocks_of(taken)) == sum(count for _, count in taken) == free
    rig.journal.commit()
    rig.check_counts()
    assert rig.used()[rig.geometry.first_data_block :].all()
    for start, count in taken:
        rig.free(start, count)
    rig.journal.commit()
    rig.check_counts()
    assert blocks.free_blocks(rig.view) == free
    rig.check_unattached(set())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_taken_is_what_e2fsck_finds(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout)
    chance = random.Random(layout)
    taken = [rig.allocate(chance.randrange(rig.geometry.blocks_count), chance.choice((1, 30, 600))) for _ in range(40)]
    rig.journal.commit()
    rig.check_counts()
    for start, count in taken[::3]:
        rig.free(start, count)
    del taken[::3]
    rig.journal.commit()
    rig.check_counts()
    rig.check_unattached(blocks_of(taken))


def test_the_goal_comes_first(rigs: Rigs) -> None:
    rig = rigs()
    start, count = rig.allocate(20000, 5)
    assert (start, count) == (20000, 5)
    assert rig.allocate(start + count, 300) == (20005, 300)
    near, count = rig.allocate(20000, 4)
    assert count == 4
    assert near >= 20305


def test_large_requests_start_on_huge_pages(rigs: Rigs) -> None:
    rig = rigs("4k")
    first, count = rig.allocate(0, 512)
    assert (first % 512, count) == (0, 512)
    second, count = rig.allocate(first + 7, 2048)
    assert (second % 512, count) == (0, 2048)
    assert rig.allocate(second + count, 1024) == (second + count, 1024)
    rig.allocate(40001, 3)
    third, count = rig.allocate(0, 20, align=512)
    assert (third % 512, count) == (0, 20)
    assert rig.allocate(third + count, 512 - 20) == (third + count, 512 - 20)


def test_small_requests_leave_huge_pages_whole(rigs: Rigs) -> None:
    rig = rigs("4k")
    chance = random.Random(1)
    small = [rig.allocate(0, chance.randrange(1, 30)) for _ in range(400)]
    used = len({block >> 9 for block in blocks_of(small)})
    assert used <= len(blocks_of(small)) / 512 + 3
    assert all(count > 0 for _, count in small)


@pytest.mark.interpreted
def test_one_search_finds_the_places_of_many_requests(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs("4k")
    searches = []
    run_starts = bitmaps.run_starts
    monkeypatch.setattr(bitmaps, "run_starts", lambda *args: searches.append(1) or run_starts(*args))
    rig.allocate(0, 200)
    before = len(searches)
    taken = [rig.allocate(0, 255) for _ in range(30)] + [rig.allocate(0, 100, align=512) for _ in range(10)]
    assert len(blocks_of(taken)) == 30 * 255 + 10 * 100
    assert all(start % 512 == 0 for start, _ in taken[30:])
    assert len(searches) - before <= 4


def test_kept_places_that_others_took_are_passed_over(rigs: Rigs) -> None:
    rig = rigs("4k")
    first, _ = rig.allocate(0, 255)
    goals = [(first & -512) + 512 * chunk for chunk in range(1, 40)]
    taken = [(first, 255), *(rig.allocate(0, 255) for _ in range(2)), *(rig.allocate(goal, 3) for goal in goals)]
    taken += [rig.allocate(0, 255) for _ in range(20)]
    assert len(blocks_of(taken)) == sum(count for _, count in taken)


def test_freed_blocks_of_partly_used_huge_pages_are_taken_before_kept_places(rigs: Rigs) -> None:
    rig = rigs("4k")
    small = [rig.allocate(0, 255) for _ in range(6)]
    rig.free(*small[0])
    rig.journal.commit()
    assert rig.allocate(0, 255)[0] < small[1][0]


def test_huge_pages_remain_on_a_pool_that_is_eighty_percent_full(rigs: Rigs) -> None:
    rig = rigs("4k")
    chance = random.Random(2)
    files: list[tuple[int, int]] = []
    total = blocks.free_blocks(rig.view)
    while blocks.free_blocks(rig.view) > total // 5:
        goal = rig.geometry.first_block(chance.randrange(rig.geometry.groups_count))
        files.append(rig.allocate(goal, chance.choice((1, 2, 8, 40, 200, 512, 1500))))
        if chance.random() < 0.1:
            rig.free(*files.pop(chance.randrange(len(files))))
            rig.journal.commit()
    rig.journal.commit()
    used = rig.used()
    whole = (~used[: len(used) // 512 * 512]).reshape(-1, 512).all(axis=1).sum()
    assert whole * 512 > blocks.free_blocks(rig.view) * 0.6
    start, count = rig.allocate(0, 512)
    assert (start % 512, count) == (0, 512)


def test_the_largest_run_is_the_last_resort(rigs: Rigs) -> None:
    rig = rigs("plain")
    taken = []
    while blocks.free_blocks(rig.view):
        taken.append(rig.allocate(0, 4096))
    even = [block for block in blocks_of(taken) if block % 2 == 0]
    for block in even:
        rig.free(block, 1)
    rig.free(20001, 1)
    rig.free(20003, 1)
    rig.journal.commit()
    assert rig.allocate(0, 100, align=16) == (20000, 5)
    assert rig.allocate(0, 100)[1] == 1


def test_freed_blocks_wait_for_the_commit(rigs: Rigs) -> None:
    rig = rigs()
    start, count = rig.allocate(20000, 50)
    rig.journal.commit()
    rig.free(start, count)
    with rig.handle() as tx:
        assert blocks.pending(tx) == 50
    again = blocks_of([rig.allocate(start, 10)])
    assert not again & set(range(start, start + count))
    rig.journal.commit()
    assert rig.allocate(start, 10) == (start, 10)


@pytest.mark.parametrize("aborted", [False, True])
def test_a_group_whose_first_bitmap_was_undone_has_none(rigs: Rigs, aborted: bool) -> None:
    """What lies in the place of a bitmap that was never written is not read."""
    rig = rigs()
    place = groups.descriptor(rig.view, 3).block_bitmap
    with rig.corrupting():
        begin = place * rig.geometry.block_size
        rig.pool.memory[begin : begin + rig.geometry.block_size] = b"\xaa" * rig.geometry.block_size
    with suppress(Undo), rig.handle() as tx:
        assert groups.blocks_uninit(rig.geometry, groups.descriptor(tx, 3))
        for _ in range(2):
            assert blocks.allocate(tx, 30000, 1)[0] >= 30000
        if not aborted:
            raise Undo
    if aborted:
        rig.journal.abort()
        assert not rig.view.caches[groupmaps._Places].written
    else:
        assert rig.allocate(30000, 1) == (30000, 1)
        rig.free(30000, 1)
        rig.journal.commit()
        rig.check_unattached(set())


def test_an_undone_handle_leaves_no_trace(rigs: Rigs) -> None:
    rig = rigs()
    kept = rig.allocate(20000, 50)
    rig.journal.commit()
    before = rig.pool.memory.tobytes()
    with suppress(Undo), rig.handle() as tx:
        blocks.allocate(tx, 30000, 600)
        blocks.allocate(tx, 45000, 1)
        blocks.free(tx, *kept)
        raise Undo
    assert rig.allocate(30000, 1) == (30000, 1)
    rig.free(30000, 1)
    rig.journal.commit()
    rig.journal.commit()
    rig.check_counts()
    sb = slice(1024, 2048)
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(rig.pool.memory, np.uint8))
    # The group of the goal, 3, has a bitmap now; nothing else differs.
    assert len({int(at) >> 10 for at in changed if not sb.start <= at < sb.stop}) <= 2
    rig.check_unattached(blocks_of([kept]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), layout=st.sampled_from(sorted(set(LAYOUTS) - {"4k"})))
def test_model(rigs: Rigs, data: st.DataObject, layout: str) -> None:
    rig = rigs(layout, "-N", "64", size="6M")
    limit = rig.geometry.blocks_count
    used = set(np.flatnonzero(rig.used()).tolist())
    ours: list[tuple[int, int]] = []
    waiting: set[int] = set()
    for _ in range(data.draw(st.integers(5, 40))):
        action = data.draw(st.sampled_from(("take", "take", "take", "undo", "free", "commit")))
        if action in ("take", "undo"):
            goal, want = data.draw(st.integers(0, limit)), data.draw(st.sampled_from((1, 3, 64, 513, 2100)))
            align = data.draw(st.sampled_from((1, 1, 16, 2048)))
            try:
                with rig.handle() as tx:
                    start, count = blocks.allocate(tx, goal, want, align=align, tree=True)
                    if action == "undo":
                        raise Undo
            except Undo:
                continue
            except FsError as error:
                assert error.errno == errno.ENOSPC
                assert len(used) == limit
                continue
            run = set(range(start, start + count))
            assert 1 <= count <= want
            assert not run & used
            if 0 < goal < limit and goal not in used and align == 1 and want == 1:
                assert start == goal
            used |= run
            ours.append((start, count))
        elif action == "free" and ours:
            start, count = ours.pop(data.draw(st.integers(0, len(ours) - 1)))
            cut = data.draw(st.integers(1, count))
            rig.free(start, cut)
            waiting |= set(range(start, start + cut))
            if cut < count:
                ours.append((start + cut, count - cut))
        elif action == "commit":
            rig.journal.commit()
            used -= waiting
            waiting.clear()
            assert set(np.flatnonzero(rig.used()).tolist()) == used
    rig.journal.commit()
    rig.check_counts()
    rig.check_unattached(blocks_of(ours))


def test_many_groups(tmp_path: Path) -> None:
    rig = AllocRig(tmp_path / "pool", "-b", "4096", "-N", "4096", size="20G")
    geometry = rig.geometry
    assert geometry.desc_blocks > 1
    taken = []
    for group in range(geometry.groups_count):
        free = groups.descriptor(rig.view, group).free_blocks_count
        while free:
            start, count = rig.allocate(geometry.first_block(group), free)
            assert geometry.group_of_block(start) == group
            taken.append((start, count))
            free -= count
        if group == 100:
            break
    start, count = rig.allocate(geometry.first_block(3), 512)
    assert geometry.group_of_block(start) == 101
    start, count = rig.allocate(geometry.first_block(120), 512)
    assert geometry.group_of_block(start) == 120
    rig.close()


def test_superblock_counts_are_corrected(rigs: Rigs) -> None:
    rig = rigs()
    right = groups.totals(rig.view)
    with rig.corrupting() as sb:
        sb.free_blocks_count = 17
        sb.s_free_inodes_count = 3
        sb.seal()
    with rig.handle() as tx:
        assert blocks.correct_free_counts(tx)
    rig.journal.commit()
    with rig.handle() as tx:
        assert not blocks.correct_free_counts(tx)
    sb = rig.view.superblock()
    assert (sb.free_blocks_count, sb.s_free_inodes_count) == right
    rig.close()
    fsck(rig.path)


# Damage


def lie(rig: AllocRig, block: int, *, sealed: bool = True, counted: bool = True) -> None:
    """Clear a bit of a block bitmap in the pool, with or without the counters and checksums that hide it."""
    geometry = rig.geometry
    group, bit = divmod(block - geometry.first_data_block, geometry.blocks_per_group)
    with rig.corrupting() as sb:
        number, offset = geometry.descriptor_position(group)
        start = number << geometry.block_bits
        desc = bind(rig.pool.memory[start : start + geometry.block_size], offset, geometry)
        start = desc.block_bitmap << geometry.block_bits
        bitmap = rig.pool.memory[start : start + geometry.block_size]
        bitmaps.clear_run(bitmap, bit, 1)
        if counted:
            desc.free_blocks_count += 1
            sb.free_blocks_count += 1
            sb.seal()
        if sealed:
            desc.seal_block_bitmap(bitmap, geometry)
        desc.seal(group, geometry)


@pytest.mark.parametrize(
    ("how", "kind"),
    [({"sealed": False}, "block bitmap checksum"), ({"counted": False}, "block bitmap"), ({}, "block bitmap")],
)
def test_a_group_with_a_wrong_block_bitmap_is_left_alone(rigs: Rigs, how: dict[str, bool], kind: str) -> None:
    rig = rigs()
    lie(rig, groups.descriptor(rig.view, 0).inode_table + 2, **how)
    number = groups.descriptor(rig.view, 0).block_bitmap
    before = bytes(rig.view.block(number))
    end = rig.geometry.first_block(1)
    for goal, want in ((1, 1), (0, 5000), (400, 1)):
        start, count = rig.allocate(goal, want)
        assert start >= end
        assert count
    rig.free(400, 1)
    rig.journal.commit()
    assert bytes(rig.view.block(number)) == before, "what is freed there stays in use"
    assert list(blocks.free_runs(rig.view, 0, 1)) == []
    assert not blocks.is_free(rig.view, end - 1)
    assert [error.kind for error in rig.view.caches[Noted].waiting] == [kind]
    rig.close()


@pytest.mark.parametrize("layout", ["default", "no flex", "4k"])
def test_groups_with_damaged_descriptors_are_left_alone(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout)
    geometry = rig.geometry
    number, offset = geometry.descriptor_position(1)
    at = (number << geometry.block_bits) + offset
    with rig.corrupting():
        rig.pool.memory[at + 12] ^= 1
    assert geometry.group_of_block(rig.allocate(geometry.first_block(1), 1)[0]) != 1
    assert [error.kind for error in rig.view.caches[Noted].waiting] == ["group descriptor checksum"]
    with pytest.raises(Corrupt, match="group descriptor checksum: group 1"), rig.handle(8) as tx:
        groups.edit_descriptor(tx, 1)
    rig.close()


def test_frees_that_make_no_sense_are_refused(rigs: Rigs) -> None:
    rig = rigs()
    geometry = rig.geometry
    rig.allocate(20000, 10)
    table = groups.descriptor(rig.view, 0).inode_table
    end = geometry.blocks_count
    for start, count in (
        (0, 1),
        (1, 1),
        (2, 1),
        (end - 1, 2),
        (end, 1),
        (20000, 0),
        (20000, -1),
        (table, 1),
        (8193, 1),
    ):
        with pytest.raises(Corrupt, match="block number"):
            rig.free(start, count)
    for start, count in ((20000, 11), (19999, 5), (30000, 1)):
        with pytest.raises(Corrupt, match="block bitmap"):
            rig.free(start, count)
    rig.journal.commit()
    rig.free(20003, 5)
    rig.free(20005, 1)
    with pytest.raises(Corrupt, match="freed twice"):
        rig.journal.commit()


def test_a_group_that_was_never_used_gets_its_bitmap(rigs: Rigs) -> None:
    for layout in ("default", "crc16", "no flex", "meta_bg"):
        rig = rigs(layout)
        geometry = rig.geometry
        fresh = [
            group
            for group in range(geometry.groups_count)
            if groups.descriptor(rig.view, group).bg_flags & EXT4_BG_BLOCK_UNINIT
        ]
        assert fresh, layout
        taken = [rig.allocate(geometry.first_block(group) + 900, 2) for group in fresh]
        assert [start for start, _ in taken] == [geometry.first_block(group) + 900 for group in fresh]
        rig.journal.commit()
        assert not any(groups.descriptor(rig.view, group).bg_flags & EXT4_BG_BLOCK_UNINIT for group in fresh)
        rig.check_counts()
        rig.check_unattached(blocks_of(taken))


@pytest.mark.parametrize("few", [True, False])
def test_many_runs_are_freed_across_the_borders_of_groups(rigs: Rigs, few: bool) -> None:
    """Many runs are handled as arrays; some of them lie in two groups, and some groups have few of them."""
    rig = rigs("default")
    before = rig.used()
    with rig.handle(256) as tx:
        while blocks.free_blocks(tx):
            blocks.allocate(tx, 0, 3000, tree=True)
    rig.journal.commit()
    size, chance = rig.geometry.blocks_per_group, random.Random(3)
    borders = [rig.geometry.first_block(group) - 1 for group in (2, 4)]
    inside = [number for number in range(3, 5 * size, 3) if all(abs(number - border) > 2 for border in borders)]
    starts = borders + chance.sample(inside, 10 if few else 300)
    runs = [BlockRun(number, 2) for number in starts if not before[[number, number + 1]].any()]
    assert {BlockRun(border, 2) for border in borders} <= set(runs)
    full = rig.used()
    chance.shuffle(runs)
    with rig.handle(256) as tx:
        blocks.free_all(tx, runs)
    rig.journal.commit()
    assert set(np.flatnonzero(full & ~rig.used()).tolist()) == blocks_of(runs)
    with pytest.raises(Corrupt), rig.handle(256) as tx:
        blocks.free_all(tx, runs)

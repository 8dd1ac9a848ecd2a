"""Inodes: reads compared with debugfs, allocation and freeing checked by e2fsck, and damage."""

from __future__ import annotations

import errno
import os
import random
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from alloc_rig import LAYOUTS, AllocRig

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.group import EXT4_BG_INODE_UNINIT
from daxfs.ext4.group import descriptor as bind
from daxfs.ext4.inode import EXT4_EXTENTS_FL, EXT4_TOPDIR_FL
from daxfs.structures import groups, inode_allocation, inode_bitmaps, inodes
from daxfs.structures.noted import Noted
from support import fsck, run, tool

Rigs = Callable[..., AllocRig]
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
ROOT = 2


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """``rigs("4k")`` opens a pool of one of the `LAYOUTS`, with further options."""
    made: list[AllocRig] = []

    def make(name: str = "default", *options: str, size: str = "") -> AllocRig:
        layout, default_size = LAYOUTS[name]
        made.append(AllocRig(tmp_path / f"pool{len(made)}", *layout, *options, size=size or default_size))
        return made[-1]

    yield make
    for rig in made:
        rig.pool.close()


def allocate(rig: AllocRig, mode: int = FILE, parent: int = ROOT, links: int = 1) -> int:
    """Make an inode, as ``mknod`` leaves it."""
    with rig.handle(4) as tx:
        inode = inode_allocation.allocate(tx, inodes.read(tx, parent), mode)
        inode.links_count = links
        return inode.number


def free(rig: AllocRig, ino: int) -> None:
    with rig.handle(4) as tx:
        inode_allocation.free(tx, inodes.edit(tx, ino))


def check_counts(rig: AllocRig) -> None:
    """Check that bitmaps, descriptors and superblock in the pool agree."""
    geometry = rig.geometry
    free_inodes = 0
    for group in range(geometry.groups_count):
        desc = groups.descriptor(rig.view, group)
        counted = geometry.inodes_per_group
        if not groups.inodes_uninit(geometry, desc):
            start = desc.inode_bitmap << geometry.block_bits
            bitmap = np.frombuffer(rig.pool.memory[start : start + geometry.block_size], np.uint8)
            bits = np.unpackbits(bitmap, bitorder="little")
            assert bits[geometry.inodes_per_group :].all()
            counted = int((bits[: geometry.inodes_per_group] == 0).sum())
        assert desc.free_inodes_count == counted
        free_inodes += counted
    assert rig.view.superblock().s_free_inodes_count == free_inodes
    rig.check_counts()


def check_unattached(rig: AllocRig, taken: set[int]) -> None:
    """Close the rig, and check that e2fsck finds exactly these inodes without a name, and nothing else wrong."""
    rig.close()
    done = subprocess.run(
        [tool("e2fsck"), "-fn", str(rig.path)], capture_output=True, text=True, timeout=60, check=False
    )
    found = set()
    for line in done.stdout.splitlines():
        match = re.match(r"Unattached (?:zero-length )?inode (\d+)", line)
        if match:
            found.add(int(match[1]))
        elif not re.match(
            r"Pass \d|(Connect to .*|Clear)\? no|Inode \d+ ref count is|Fix\? no|\S+: (\*+ WARN|\d+/\d+ files)|$", line
        ):
            raise AssertionError(f"{line}\n---\n{done.stdout}")
    assert found == taken


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_debugfs_reads(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "files"
    source.mkdir()
    for number in range(40):
        path = source / f"file{number}"
        path.write_bytes(b"x" * number * 777)
        path.chmod(0o400 + number)
        os.utime(path, ns=(number * 10**17 + 5, number * 10**17 + 987654321))
    options, size = LAYOUTS[layout]
    rig = AllocRig(tmp_path / "pool", *options, "-d", str(source), size=size)
    shown = run("debugfs", rig.path, "-f", "-", stdin="".join(f"stat <{ino}>\n" for ino in range(12, 52)))
    texts = re.split(r"debugfs: +stat ", shown)[1:]
    for ino, text in zip(range(12, 52), texts, strict=True):
        inode = inodes.read(rig.view, ino)
        assert inode.number == ino
        assert int(re.search(r"Mode: +(\d+)", text)[1], 8) == inode.mode & 0o7777
        assert int(re.search(r"Size: (\d+)", text)[1]) == inode.size
        assert int(re.search(r"Links: (\d+)", text)[1]) == inode.links_count
        assert int(re.search(r"Generation: (\d+)", text)[1]) == inode.generation
        assert int(re.search(r"Blockcount: (\d+)", text)[1]) == inode.blocks
    rig.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_inode_can_be_taken_and_given_back(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout, "-N", "1024")
    geometry = rig.geometry
    left = rig.view.superblock().s_free_inodes_count
    taken = [allocate(rig) for _ in range(left)]
    assert len(set(taken)) == left
    assert min(taken) >= geometry.first_ino
    with pytest.raises(FsError) as full:
        allocate(rig)
    assert full.value.errno == errno.ENOSPC
    rig.journal.commit()
    check_counts(rig)
    assert rig.view.superblock().s_free_inodes_count == 0
    for ino in taken:
        assert inodes.read(rig.view, ino).links_count == 1
    random.Random(1).shuffle(taken)
    for ino in taken:
        free(rig, ino)
    rig.journal.commit()
    check_counts(rig)
    again = allocate(rig)
    free(rig, again)
    rig.close()
    fsck(rig.path)


def fill_unused_slots(rig: AllocRig) -> None:
    """The unused part of the inode tables may hold anything."""
    geometry = rig.geometry
    if geometry.metadata_csum or geometry.gdt_csum:
        for group in range(geometry.groups_count):
            desc = groups.descriptor(rig.view, group)
            first = geometry.inodes_per_group - desc.itable_unused
            start = (desc.inode_table << geometry.block_bits) + first * geometry.inode_size
            length = desc.itable_unused * geometry.inode_size
            rig.pool.write(start, random.Random(group).randbytes(length))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_taken_is_what_e2fsck_finds(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout, "-N", "2048")
    geometry = rig.geometry
    fill_unused_slots(rig)
    chance = random.Random(layout)
    taken: list[int] = []
    for _ in range(200):
        if taken and chance.random() < 0.3:
            free(rig, taken.pop(chance.randrange(len(taken))))
        else:
            # Inodes of a parent in another group go to that group.
            with rig.handle(4) as tx:
                parent = inodes.read(tx, ROOT)
                parent.number = chance.randrange(1, geometry.inodes_count + 1)
                inode = inode_allocation.allocate(tx, parent, FILE)
                inode.links_count = 1
                taken.append(inode.number)
        if chance.random() < 0.1:
            rig.journal.commit()
    rig.journal.commit()
    check_counts(rig)
    assert len({(ino - 1) // geometry.inodes_per_group for ino in taken}) > 1
    check_unattached(rig, set(taken))


def test_a_new_inode_is_blank(rigs: Rigs) -> None:
    rig = rigs("4k")
    ino = allocate(rig)
    with rig.handle() as tx:
        inode = inodes.edit(tx, ino)
        first = inode.generation
        inode.buffer[28:60] = b"\xee" * 32
        inode.buffer[160:] = b"\xee" * 96
        inode.i_flags = EXT4_EXTENTS_FL
    rig.journal.commit()
    free(rig, ino)
    assert inodes.read(rig.view, ino).i_dtime
    with rig.handle() as tx:
        inode = inode_allocation.allocate(tx, inodes.read(tx, ROOT), stat.S_IFIFO | 0o600)
        assert inode.number == ino
        assert inode.mode == stat.S_IFIFO | 0o600
        assert inode.i_extra_isize == rig.geometry.want_extra_isize == 32
        assert inode.generation != first
        inode.i_mode = inode.i_generation = inode.i_extra_isize = 0
        assert not any(inode.buffer)
        inode.i_mode = FILE
        inode.i_extra_isize = 32
    free(rig, ino)
    rig.close()
    fsck(rig.path)


def test_files_stay_near_their_directory(rigs: Rigs) -> None:
    rig = rigs("default", "-N", "1024")
    size = rig.geometry.inodes_per_group
    parent = 3 * size + 1
    with rig.handle(64) as tx:
        directory = inodes.read(tx, ROOT)
        directory.number = parent
        made = [inode_allocation.allocate(tx, directory, FILE).number for _ in range(size + 1)]
    assert {(ino - 1) // size for ino in made[:size]} == {3}
    assert (made[size] - 1) // size == 4


def test_directories_spread_from_the_top_and_gather_below(rigs: Rigs) -> None:
    rig = rigs("default", "-N", "1024")
    geometry = rig.geometry
    size = geometry.inodes_per_group
    with rig.handle(64) as tx:
        root = inodes.read(tx, ROOT)
        top = [inode_allocation.allocate(tx, root, DIRECTORY).number for _ in range(geometry.groups_count)]
        spread = [(ino - 1) // size for ino in top]
        parent = inodes.read(tx, top[0])
        below = [inode_allocation.allocate(tx, parent, DIRECTORY).number for _ in range(20)]
        assert {(ino - 1) // size for ino in below} == {(top[0] - 1) // size}
        inodes.edit(tx, top[0]).i_flags |= EXT4_TOPDIR_FL
        apart = [inode_allocation.allocate(tx, parent, DIRECTORY).number for _ in range(3)]
        assert {(ino - 1) // size for ino in apart}.isdisjoint({(top[0] - 1) // size})
        assert groups.descriptor(tx, spread[0]).used_dirs_count >= 21
    assert len(set(spread)) >= geometry.groups_count // 2


def test_an_undone_handle_leaves_no_trace(rigs: Rigs) -> None:
    rig = rigs()
    kept = allocate(rig)
    rig.journal.commit()
    before = rig.pool.memory.tobytes()
    for parent in (ROOT, 5 * rig.geometry.inodes_per_group):
        with pytest.raises(Undo):
            undone(rig, parent, kept)
    rig.journal.commit()
    assert rig.pool.memory == before
    check_unattached(rig, {kept})


def undone(rig: AllocRig, parent: int, kept: int) -> None:
    with rig.handle(8) as tx:
        directory = inodes.read(tx, ROOT)
        directory.number = parent
        inode_allocation.allocate(tx, directory, FILE)
        inode_allocation.free(tx, inodes.edit(tx, kept))
        raise Undo


def test_the_lowest_free_inode_is_found_again(rigs: Rigs) -> None:
    """It is known where the search begins, also after a free, an undone handle, and an abort."""
    rig = rigs()
    made = [allocate(rig) for _ in range(8)]
    assert made == list(range(made[0], made[0] + 8))
    free(rig, made[5])
    free(rig, made[2])
    assert [allocate(rig), allocate(rig), allocate(rig)] == [made[2], made[5], made[7] + 1]
    with suppress(Undo), rig.handle() as tx:
        taken = [inode_allocation.allocate(tx, inodes.read(tx, ROOT), FILE).number for _ in range(3)]
        raise Undo
    assert allocate(rig) == taken[0]
    with suppress(Undo), rig.handle() as tx:
        inode_allocation.free(tx, inodes.edit(tx, made[1]))
        raise Undo
    assert [allocate(rig), allocate(rig)] == taken[1:]
    check_unattached(rig, {*made, made[7] + 1, *taken})


def test_numbers_out_of_range(rigs: Rigs) -> None:
    rig = rigs()
    count = rig.geometry.inodes_count
    for ino in (0, -1, count + 1, 1 << 32):
        with pytest.raises(Corrupt, match="inode number"):
            inodes.read(rig.view, ino)
        assert not inodes.nameable(rig.view, ino)
    with pytest.raises(FsError) as stale:
        inodes.read(rig.view, count)
    assert stale.value.errno == errno.ESTALE
    assert [ino for ino in range(14) if inodes.nameable(rig.view, ino)] in ([2, 11, 12, 13], [2, 11, 13])
    assert inode_bitmaps.in_use(rig.view, 11)
    assert not inode_bitmaps.in_use(rig.view, count)


def test_free_refuses_what_it_must(rigs: Rigs) -> None:
    rig = rigs()
    for ino in (1, 2, 7, 10):
        reserved = inodes.read(rig.view, ROOT)
        reserved.number = ino
        with pytest.raises(Corrupt, match="is reserved"), rig.handle() as tx:
            inode_allocation.free(tx, reserved)
    ino = allocate(rig)
    free(rig, ino)
    with pytest.raises(Corrupt, match="free already"):
        free(rig, ino)
    rig.close()
    fsck(rig.path)


def test_block_accounting(rigs: Rigs) -> None:
    rig = rigs("4k")
    with rig.handle() as tx:
        inode = inodes.edit(tx, 11)
        before = inode.blocks
        inodes.add_blocks(inode, 3, rig.geometry)
        assert inode.blocks == before + 24
        inodes.add_blocks(inode, -3, rig.geometry)
        with pytest.raises(Corrupt, match="inode block count"):
            inodes.add_blocks(inode, -(before // 8) - 1, rig.geometry)
        assert inode.blocks == before


# Damage


def spoil(rig: AllocRig, ino: int, at: int) -> None:
    """Flip a bit of an inode in the pool itself."""
    number, offset = inodes.position(rig.view, ino)
    with rig.corrupting():
        rig.pool.memory[(number << rig.geometry.block_bits) + offset + at] ^= 1


@pytest.mark.parametrize("layout", ["default", "4k", "no flex"])
def test_a_damaged_inode_leaves_the_others_usable(rigs: Rigs, layout: str) -> None:
    rig = rigs(layout)
    made = [allocate(rig) for _ in range(4)]
    spoil(rig, made[1], 4)
    for _ in range(2):
        with pytest.raises(Corrupt, match=f"inode checksum: inode {made[1]}"):
            inodes.read(rig.view, made[1])
    for _ in range(2):
        with rig.handle() as tx:
            inodes.edit(tx, made[0]).i_size_lo = 7
            assert inodes.read(tx, made[0]).size == 7
            assert inodes.read(tx, made[2]).size == 0
        # The block is in the transaction now, and the damaged inode is still refused.
        with pytest.raises(Corrupt), rig.handle() as tx:
            inodes.edit(tx, made[1])
        with pytest.raises(Corrupt):
            inodes.read(rig.view, made[1])
        rig.journal.commit()
    assert inodes.read(rig.view, made[0]).size == 7


def test_an_edited_inode_needs_no_check_after_the_cache_of_checks_is_cleared(rigs: Rigs) -> None:
    rig = rigs()
    old = allocate(rig)
    rig.journal.commit()
    with rig.handle() as tx:
        inodes.edit(tx, old).i_size_lo = 99
        new = inode_allocation.allocate(tx, inodes.read(tx, ROOT), FILE).number
        tx.caches[inodes.Known].drop()
        assert inodes.read(tx, old).size == 99
        assert inodes.read(tx, new).mode == FILE
        tx.caches[inodes.Known].drop()
        inodes.edit(tx, old).i_size_lo = 0
        inodes.edit(tx, new).links_count = 1
    check_unattached(rig, {old, new})


@pytest.mark.parametrize("aborted", [False, True])
def test_an_inode_of_an_undone_handle_is_checked_again(rigs: Rigs, aborted: bool) -> None:
    """A slot that was checked within an undone handle is checked again: it holds its old content."""
    rig = rigs()
    with suppress(Undo), rig.handle() as tx:
        ino = inode_allocation.allocate(tx, inodes.read(tx, ROOT), FILE).number
        assert inodes.edit(tx, ino).mode == FILE
        if not aborted:
            raise Undo
    if aborted:
        rig.journal.abort()
    with pytest.raises(FsError) as caught:
        inodes.read(rig.view, ino)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("counted", [False, True])
def test_a_group_with_a_wrong_inode_bitmap_is_left_alone(rigs: Rigs, counted: bool) -> None:
    rig = rigs()
    geometry = rig.geometry
    number, offset = geometry.descriptor_position(0)
    with rig.corrupting():
        start = number << geometry.block_bits
        desc = bind(rig.pool.memory[start : start + geometry.block_size], offset, geometry)
        bitmap = desc.inode_bitmap << geometry.block_bits
        rig.pool.memory[bitmap] &= 0xFD
        if counted:
            desc.free_inodes_count += 1
        desc.seal_inode_bitmap(rig.pool.memory[bitmap : bitmap + geometry.block_size], geometry)
        desc.seal(0, geometry)
    made = allocate(rig)
    assert geometry.group_of_inode(made) > 0, "another group has room"
    (noted,) = rig.view.caches[Noted].waiting
    assert noted.kind.startswith("inode bitmap")
    with pytest.raises(Corrupt, match="inode bitmap"):
        inode_bitmaps.in_use(rig.view, 11)
    assert inode_bitmaps.may_be_in_use(rig.view, 11), "the bitmap is not believed"
    assert inode_bitmaps.may_be_in_use(rig.view, geometry.inodes_per_group - 1)
    before = bytes(rig.view.block(groups.descriptor(rig.view, 0).inode_bitmap))
    with rig.handle(4) as tx:
        inode_allocation.free(tx, inodes.edit(tx, 11))
    assert bytes(rig.view.block(groups.descriptor(rig.view, 0).inode_bitmap)) == before, "until e2fsck makes it anew"
    assert not inodes.read(rig.view, 11).links_count


def test_a_group_that_was_never_used_gets_its_bitmap(rigs: Rigs) -> None:
    for layout in ("default", "crc16", "no flex", "meta_bg"):
        rig = rigs(layout)
        geometry = rig.geometry
        fresh = [
            group
            for group in range(geometry.groups_count)
            if groups.descriptor(rig.view, group).bg_flags & EXT4_BG_INODE_UNINIT
        ]
        assert fresh, layout
        taken = []
        for group in fresh:
            with rig.handle(8) as tx:
                parent = inodes.read(tx, ROOT)
                parent.number = group * geometry.inodes_per_group + 1
                inode = inode_allocation.allocate(tx, parent, FILE)
                inode.links_count = 1
                taken.append(inode.number)
            desc = groups.descriptor(rig.view, group)
            assert desc.itable_unused == geometry.inodes_per_group - 1
        assert taken == [group * geometry.inodes_per_group + 1 for group in fresh]
        rig.journal.commit()
        check_counts(rig)
        check_unattached(rig, set(taken))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_inode_can_be_taken_by_its_number(rigs: Rigs, layout: str) -> None:
    """The slots before it that were never used are zeroed; they are given away later as others are."""
    rig = rigs(layout, "-N", "2048")
    fill_unused_slots(rig)
    per_group = rig.geometry.inodes_per_group
    wanted = [rig.geometry.first_ino + 5, per_group + 20, per_group + 18, per_group + 23]
    for ino in wanted:
        with rig.handle(8) as tx:
            inode = inode_allocation.take(tx, ino, FILE)
            assert (inode.number, inode.mode, inode.size) == (ino, FILE, 0)
            inode.links_count = 1
    with pytest.raises(Corrupt, match="in use already"), rig.handle(8) as tx:
        inode_allocation.take(tx, wanted[0], FILE)
    first = allocate(rig, parent=per_group + 20)
    assert first == per_group + 1
    rig.journal.commit()
    check_counts(rig)
    check_unattached(rig, {*wanted, first})

"""A part of the pool is emptied: trees stay as they are, and what stays there is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lease_rig import MAP, Client
from range_rig import make
from relocation_rig import fragmented, owned, place_of
from snapshot_rig import differences, tree
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import BAD, FIXED, MAPPED, SNAPSHOT, Evacuation
from daxfs.runs import BlockRun, ByteRange
from daxfs.structures import badblocks, inode_bitmaps, inodes, usage

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20


def populate(fs: FileSystem) -> None:
    """Files, directories, links and attributes of all kinds, in both halves of the pool."""
    fill(fs, "a")
    fs.tree.write_bytes("filler", bytes(18 * MIB))
    fill(fs, "b")
    fs.unlink(ROOT_INO, b"filler")
    fs.sync()


def fill(fs: FileSystem, top: str) -> None:
    chance = random.Random(top)
    tree = fs.tree
    tree.mkdir(top)
    for number in range(12):
        tree.mkdir(f"{top}/{number}")
        tree.write_bytes(f"{top}/{number}/small", chance.randbytes(chance.randrange(9000)))
        fs.setxattr(tree.resolve(f"{top}/{number}/small"), b"user.x", chance.randbytes(chance.choice((10, 700))))
        tree.symlink("t" * 200, f"{top}/{number}/link")
    for number in range(3):
        tree.write_bytes(f"{top}/{number}/large", chance.randbytes(MIB))
    for number in range(40):
        fs.link(tree.resolve(f"{top}/0/small"), tree.resolve(f"{top}/1"), b"%d" % number + b"n" * 220)
    fs.release(fragmented(fs, 300, b"fragments" + top.encode()))


def within(fs: FileSystem, place: ByteRange) -> set[int]:
    """The inodes that have blocks in a part of the pool."""
    bits = fs.volume.block_bits
    low, high = place.begin >> bits, place.end >> bits
    found = set()
    for group in range(fs.volume.geometry.groups_count):
        for ino in inode_bitmaps.in_use_of(fs.volume.view, group):
            if inodes.nameable(fs.volume.view, ino) and any(low <= number < high for number in owned(fs, ino)):
                found.add(ino)
    return found


def fixed_blocks(done: Evacuation, fs: FileSystem) -> int:
    return sum(part.length for parts in done.stayed.values() for part in parts) >> fs.volume.block_bits


def test_half_of_the_pool_is_emptied(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format, size="56M", mount=QUIET)
    populate(fs)
    empty(fs, ByteRange(28 * MIB, 56 * MIB))
    assert empty(fs, ByteRange(0, 28 * MIB)).metadata


def empty(fs: FileSystem, place: ByteRange) -> Evacuation:
    """Empty a part of the pool, and check that it is, and that nobody sees it."""
    before = tree(fs)
    assert within(fs, place)
    done = fs.evacuate(place)
    assert within(fs, place) == set()
    assert {stayed.why for parts in done.stayed.values() for stayed in parts} <= {FIXED}
    assert not {ino for ino in done.stayed if inodes.nameable(fs.volume.view, ino)}
    assert done.left == fixed_blocks(done, fs)
    assert done.moved
    fs.check()
    assert tree(fs) == before
    again = fs.evacuate(place)
    assert (again.moved, again.metadata) == (0, 0)
    assert again.stayed == done.stayed
    return done


def test_what_stays_is_named(open_fs: OpenFs, tmp_path: Path) -> None:
    fs = open_fs(mount=QUIET)
    populate(fs)
    fs.sync()
    before = tree(fs)
    fs.create_snapshot(b"s")
    file = make(fs, b"mapped")
    fs.write(file, 0, bytes(MIB))
    mapping = Client(fs, file)
    mapping.ask(0, MIB, MAP)
    store = fs.tree.resolve(".daxfs/snapshots/s")
    with fs.volume.handle(badblocks.CREDITS) as tx:
        spare = next(number for number in range(tx.geometry.blocks_count - 1, 0, -1) if badblocks.add(tx, number))
    everything = ByteRange(0, fs.volume.pool.size)
    done = fs.evacuate(everything)
    why = {ino: {part.why for part in parts} for ino, parts in done.stayed.items()}
    assert why[8] == {FIXED}
    assert why[store] == {SNAPSHOT}
    assert why[1] == {BAD}
    assert spare
    assert done.moved == 0, "there is no other place"
    some = owned(fs, file.ino)
    done = fs.evacuate(place_of(fs, some))
    assert {part.why for part in done.stayed[file.ino]} == {MAPPED}
    assert owned(fs, file.ino) == some
    mapping.close()
    done = fs.evacuate(place_of(fs, some))
    assert file.ino not in done.stayed
    fs.sync()
    assert differences(fs, b"s", before, tmp_path) == []


def test_other_operations_between_the_steps(open_fs: OpenFs) -> None:
    fs = open_fs(size="56M", mount=QUIET)
    populate(fs)
    place = ByteRange(0, 28 * MIB)
    chance = random.Random(7)
    for number, _ in enumerate(fs.steps.evacuate(place)):
        victim = f"a/{chance.randrange(12)}"
        if number % 3 == 0:
            fs.tree.write_bytes(f"{victim}/new{number}", chance.randbytes(20_000))
        elif number % 3 == 1 and (names := [n for n in fs.tree.listdir(victim) if n.startswith(b"new")]):
            fs.unlink(fs.tree.resolve(victim), names[0])
        else:
            file = fs.open_file(fs.tree.resolve("fragmentsa"), 2)
            fs.write(file, chance.randrange(2 * MIB), b"between" * 100)
            fs.release(file)
        if number > 60:
            break
    fs.check()
    expected = tree(fs)
    fs.sync()
    fs.evacuate(place)
    assert within(fs, place) == set()
    assert tree(fs) == expected


def test_used_blocks_of_a_part(open_fs: OpenFs) -> None:
    fs = open_fs()
    view, size, bits = fs.volume.view, fs.volume.geometry.blocks_count, fs.volume.block_bits

    def used(part: BlockRun) -> int:
        return sum(usage.used_within(view, group, part) for group in range(fs.volume.geometry.groups_count))

    base = used(BlockRun(0, size))
    fs.tree.write_bytes("f", bytes(10 * 4096))
    (run,) = fs.describe(fs.tree.resolve("f"))
    assert used(BlockRun(0, size)) == base + 10
    assert used(BlockRun(run.pblk, 4)) == 4
    assert used(BlockRun(size, 5)) == 0
    assert fs.evacuate(ByteRange(run.pblk << bits, run.pblk + 4 << bits)).left == 0
    assert fs.evacuate(ByteRange(size << bits, size + 5 << bits)).left == 0

"""Relocation: content, map and attributes stay as they are while blocks move, whatever uses the file meanwhile."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from lease_rig import MAP, RENEW, STORE, Client, another, check
from range_rig import KEEP_SIZE, content, make, refused, set_flag
from recall_clock import Clock
from snapshot_rig import differences, tree
from tree_rig import QUIET

from daxfs.ext4.inode import EXT4_IMMUTABLE_FL, EXT4_JOURNAL_DATA_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.moving.relocation import MOST_RUNS
from daxfs.fs.steps import finish
from daxfs.fs.types import BAD, FRAGMENTED, FULL, MAPPED, Attributes, FileExtent, Relocation, SetAttributes, Stayed
from daxfs.runs import ByteRange
from daxfs.tools import mapview

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20
CHUNK = 2 * MIB


def interleaved(fs: FileSystem, size: int, unit: int = 8192) -> OpenFile:
    """A file of random bytes that lies in pieces of ``unit`` bytes, since another one was written beside it."""
    file, beside = make(fs), make(fs, b"beside")
    for each in (file, beside):  # a file that grows at its end gets 2 MiB pages by itself
        fs.setattr(each.ino, SetAttributes(size=size))
    chance = random.Random(size)
    for offset in range(0, size, unit):
        fs.write(file, offset, chance.randbytes(min(unit, size - offset)))
        fs.write(beside, offset, b"b" * unit)
    fs.release(beside)
    return file


def shown(fs: FileSystem, ino: int) -> Attributes:
    """What stat(2) shows, without the blocks of the map itself."""
    return fs.getattr(ino)._replace(blocks=0)


def whole(fs: FileSystem, file: OpenFile) -> int:
    """How many 2 MiB of a file one page each can map."""
    bits = fs.volume.block_bits
    extents = [FileExtent(r.lblk << bits, r.pblk << bits, r.length << bits, 0) for r in fs.describe(file.ino)]
    return mapview.huge_bytes(extents) // CHUNK


def place_of(fs: FileSystem, file: OpenFile, lblk: int) -> int:
    """The block of the pool at a block of the file; -1: a hole."""
    return next((r.pblk + lblk - r.lblk for r in fs.describe(file.ino) if r.lblk <= lblk < r.lblk + r.length), -1)


def states(fs: FileSystem, file: OpenFile) -> dict[int, bool]:
    """The file's blocks, and whether they are unwritten."""
    return {lblk: r.unwritten for r in fs.describe(file.ino) for lblk in range(r.lblk, r.lblk + r.length)}


def within(fs: FileSystem, file: OpenFile, place: ByteRange) -> int:
    """How many blocks of a file lie in a part of the pool."""
    low, high = place.begin >> fs.volume.block_bits, place.end >> fs.volume.block_bits
    return sum(max(min(r.pblk + r.length, high) - max(r.pblk, low), 0) for r in fs.describe(file.ino))


def half(fs: FileSystem) -> ByteRange:
    """The second half of the pool."""
    size = fs.volume.pool.size
    return ByteRange(size // 2, size)


def test_files_in_pieces_get_2_mib_each(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs(*any_format)
    file = interleaved(fs, 2 * CHUNK + 100_000)
    before, attributes, map_before = content(fs, file), shown(fs, file.ino), states(fs, file)
    assert whole(fs, file) == 0
    done = fs.defragment(file.ino)
    assert done.stayed == ()
    assert done.moved >= 2 * CHUNK
    fs.check()
    assert whole(fs, file) == 2
    assert (content(fs, file), shown(fs, file.ino), states(fs, file)) == (before, attributes, map_before)
    fs.sync()
    assert content(fs, file) == before
    assert fs.defragment(file.ino) == Relocation(0, ())
    fs.release(file)


def test_no_step_moves_many_runs(open_fs: OpenFs) -> None:
    """However many pieces 2 MiB lie in: they get into fewer ones first."""
    fs = open_fs()
    file = interleaved(fs, CHUNK, 4096)
    before = content(fs, file)
    runs = fs.describe(file.ino)
    assert len(runs) > 2 * MOST_RUNS
    steps = fs.steps.defragment(file.ino)
    while not whole(fs, file):
        with suppress(StopIteration):
            next(steps)
        now = fs.describe(file.ino)
        assert len(set(runs) - set(now)) <= MOST_RUNS + 2
        runs = now
    assert content(fs, file) == before
    fs.check()
    fs.release(file)


def test_the_end_and_a_chunk_with_a_hole_become_one_run(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = interleaved(fs, MIB)
    fs.fallocate(file, 0x3, 100_000, 200_000)  # a hole
    fs.fallocate(file, KEEP_SIZE, MIB, 50_000)
    before, map_before = content(fs, file), states(fs, file)
    fs.defragment(file.ino)
    runs = fs.describe(file.ino)
    assert all(a.pblk + a.length == b.pblk for a, b in pairwise(runs))
    assert (content(fs, file), states(fs, file)) == (before, map_before)
    fs.release(file)


def test_unwritten_blocks_move_without_a_store(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    fs.fallocate(file, 0, 0, CHUNK)
    place = half(fs)
    if not within(fs, file, place):
        place = ByteRange(0, place.begin)
    bits = fs.volume.block_bits
    assert fs.vacate(file.ino, place).moved == CHUNK
    new = [bytes(fs.volume.pool.memory[r.pblk << bits : r.pblk + r.length << bits]) for r in fs.describe(file.ino)]
    assert set(states(fs, file).values()) == {True}
    assert within(fs, file, place) == 0
    assert not b"".join(new).strip(b"\0"), "what mke2fs left there is still there"
    fs.release(file)


def test_a_part_of_the_pool_is_vacated(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    """Files of all shapes; the free space elsewhere is in pieces too."""
    fs = open_fs(*any_format, size="96M")
    chance = random.Random(3)
    place = half(fs)
    files = [make(fs, b"%d" % number) for number in range(4)]
    for _ in range(120):
        fs.write(chance.choice(files), chance.randrange(20) * 300_000, chance.randbytes(chance.choice((9, 70_000))))
    if fs.volume.geometry.has_extents:
        fs.fallocate(files[0], KEEP_SIZE, 0, 9 * MIB)
    large = make(fs, b"large")
    fs.write(large, 0, chance.randbytes(9 * MIB))
    before = [(content(fs, file), shown(fs, file.ino), states(fs, file)) for file in (*files, large)]
    for file in (*files, large):
        expected = within(fs, file, place) << fs.volume.block_bits
        done = fs.vacate(file.ino, place)
        assert done == Relocation(expected, ())
        assert within(fs, file, place) == 0
        fs.check()
    assert [(content(fs, file), shown(fs, file.ino), states(fs, file)) for file in (*files, large)] == before


def test_only_the_named_part_of_a_file_moves(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = interleaved(fs, 3 * CHUNK)
    last = place_of(fs, file, 2 * 512)
    assert fs.defragment(file.ino, CHUNK, CHUNK).moved == CHUNK
    assert whole(fs, file) == 1
    assert place_of(fs, file, 2 * 512) == last
    fs.release(file)


def test_what_is_between_two_steps_stays(open_fs: OpenFs) -> None:
    """Writes, cuts and a removal between steps: nobody waits, and each step looks anew."""
    fs = open_fs()
    file = interleaved(fs, 4 * CHUNK)
    model = bytearray(content(fs, file))
    for number, _ in enumerate(fs.steps.defragment(file.ino)):
        new = b"%d" % number * 5000
        offset = number * 1_700_000 % len(model)
        model[offset : offset + len(new)] = new
        fs.write(file, offset, new)
        if number == 2:
            model = model[: 3 * CHUNK]
            fs.setattr(file.ino, SetAttributes(size=3 * CHUNK))
            fs.unlink(ROOT_INO, b"f")
        assert content(fs, file) == model
    assert content(fs, file) == model
    fs.check()
    fs.release(file)


def test_a_file_that_is_removed_meanwhile_is_freed(open_fs: OpenFs) -> None:
    fs = open_fs()
    fs.release(interleaved(fs, 2 * CHUNK))
    ino = fs.lookup(ROOT_INO, b"f").ino
    steps = fs.steps.defragment(ino)
    next(steps)
    fs.unlink(ROOT_INO, b"f")
    steps.close()
    for _ in fs.steps.freeing():
        pass
    fs.check()
    assert not fs.holds_forgettable


def test_logged_blocks_and_protected_files_move(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = interleaved(fs, CHUNK)
    set_flag(fs, file.ino, EXT4_JOURNAL_DATA_FL)
    fs.write(file, 10_000, b"logged" * 100)
    before = content(fs, file)
    assert fs.defragment(file.ino).moved == CHUNK
    assert content(fs, file) == before
    fs.write(file, 10_000, b"again!" * 100)
    set_flag(fs, file.ino, EXT4_IMMUTABLE_FL)
    place = place_of(fs, file, 0) << fs.volume.block_bits
    assert fs.vacate(file.ino, ByteRange(place, place + CHUNK)).moved == CHUNK
    assert content(fs, file) == before.replace(b"logged" * 100, b"again!" * 100)
    fs.release(file)


def test_what_is_refused(open_fs: OpenFs) -> None:
    fs = open_fs()
    fs.tree.mkdir("d")
    fs.tree.symlink("x" * 100, "l")
    fs.create_snapshot(b"s")
    store = fs.tree.resolve(".daxfs/snapshots/s")
    for ino in (ROOT_INO, 7, 8, fs.tree.resolve("d"), fs.tree.resolve("l", follow=False), store):
        with refused(errno.EINVAL):
            fs.defragment(ino)
    file = make(fs)
    with refused(errno.EINVAL):
        fs.defragment(file.ino, -1)
    fs.release(file)


def test_a_full_pool_and_one_without_a_free_chunk(open_fs: OpenFs) -> None:
    fs = open_fs(size="24M")
    file = interleaved(fs, CHUNK)
    rest = make(fs, b"rest")
    with refused(errno.ENOSPC):
        while True:
            fs.write(rest, rest.size, bytes(MIB))
    before = fs.describe(file.ino)
    assert fs.defragment(file.ino) == Relocation(0, (Stayed(0, CHUNK, FULL),))
    assert fs.describe(file.ino) == before
    fs.fallocate(rest, 0x3, 3 * MIB, CHUNK)  # free, but not aligned to 2 MiB as a rule: the search decides
    fs.sync()
    done = fs.defragment(file.ino)
    assert done.moved == (CHUNK if whole(fs, file) else 0)
    fs.check()


def test_bad_memory_stays_and_is_named(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, random.Random(1).randbytes(100 * 4096))
    place = place_of(fs, file, 0) << 12
    fs.volume.pool.bad.add(place + 10 * 4096, place + 12 * 4096)
    fs.volume.forget_content()
    done = fs.vacate(file.ino, ByteRange(place, place + 100 * 4096))
    assert done == Relocation(98 * 4096, (Stayed(10 * 4096, 2 * 4096, BAD),))
    assert [place_of(fs, file, lblk) << 12 for lblk in (10, 11)] == [place + 10 * 4096, place + 11 * 4096]
    fs.release(file)


def test_a_log_too_small_for_all_pieces_at_once(open_fs: OpenFs) -> None:
    """What one transaction can't hold is put into fewer runs first."""
    fs = open_fs("-b", "1024", "-J", "size=1", size="200M")
    file = interleaved(fs, CHUNK, 1024)
    before = content(fs, file)
    limits = {run.unwritten for run in fs.describe(file.ino)}
    done = fs.defragment(file.ino)
    assert limits == {False}
    assert content(fs, file) == before
    assert done.moved >= CHUNK or done.stayed[0].why == FRAGMENTED
    assert whole(fs, file) == (0 if done.stayed else 1)
    fs.release(file)


def test_a_snapshot_shows_what_was(open_fs: OpenFs, tmp_path: Path) -> None:
    fs = open_fs(mount=QUIET)
    file = interleaved(fs, CHUNK)
    fs.sync()
    before = tree(fs)
    fs.create_snapshot(b"s")
    fs.defragment(file.ino)
    fs.write(file, 0, b"new" * 1000)
    fs.sync()
    old = make(fs, b"more")
    fs.write(old, 0, bytes(8 * MIB))  # in the blocks that became free, too
    assert differences(fs, b"s", before, tmp_path) == []


# Clients


def test_a_reader_keeps_the_old_blocks_until_it_renews(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = interleaved(fs, CHUNK)
    reader = Client(fs, file)
    old = reader.ask_all(0, CHUNK)
    places = {run.pblk for run in fs.describe(file.ino)}
    assert fs.defragment(file.ino) == Relocation(CHUNK, ())
    assert not reader.current, "its epoch has ended"
    assert fs.grants.epochs.deferred == CHUNK
    check(fs, [reader])
    assert {piece.pool_offset >> 12 for piece in old} <= places
    fs.sync()
    assert not places & {run.pblk for run in fs.describe(file.ino)}
    reader.renew()
    assert fs.grants.epochs.deferred == 0
    check(fs, [reader])
    reader.close()


@pytest.mark.usefixtures("clock")
def test_a_writer_is_asked_first(open_fs: OpenFs) -> None:
    """What it stores until it renews moves along, and it is granted the new place afterwards."""
    fs = open_fs()
    file = interleaved(fs, CHUNK)
    writer = Client(fs, file)
    writer.ask(0, CHUNK, STORE)
    model = bytearray(content(fs, file))
    before = fs.describe(file.ino)
    steps = fs.steps.defragment(file.ino)
    place = writer.place(5000)
    for _ in range(5):
        next(steps)
        assert fs.describe(file.ino) == before, "nothing moves while it may store"
    assert place is not None
    fs.volume.pool.write(place, b"late")
    model[5000:5004] = b"late"
    with refused(errno.EAGAIN):
        writer.ask(0, CHUNK, STORE | RENEW)
    assert finish(steps) == Relocation(CHUNK, ())
    assert content(fs, file) == model
    writer.ask(0, CHUNK, STORE | RENEW)
    check(fs, [writer])
    writer.close()


def test_a_writer_that_sleeps_keeps_its_place(open_fs: OpenFs, clock: Clock) -> None:
    fs = open_fs()
    file = interleaved(fs, 2 * CHUNK)
    asleep = Client(fs, file)
    asleep.ask(0, CHUNK, STORE)
    before = fs.describe(file.ino)[0]
    done = None
    steps = fs.steps.defragment(file.ino)
    waited = 0
    while done is None:
        try:
            next(steps)
            waited += 1
            clock.now += 0.3
        except StopIteration as end:
            done = end.value
    assert done == Relocation(CHUNK, (Stayed(0, CHUNK, MAPPED, (file.caller.pid,)),))
    assert fs.describe(file.ino)[0] == before
    assert whole(fs, file) == 1
    began = clock.now
    assert fs.defragment(file.ino).moved == 0, "it is known not to answer: nobody waits a second time"
    assert clock.now == began
    asleep.ask(0, CHUNK, STORE | RENEW)
    asleep.renew()
    assert fs.defragment(file.ino) == Relocation(CHUNK, ())
    check(fs, [asleep])
    asleep.close()


def test_what_is_mapped_stays_also_for_loading(open_fs: OpenFs) -> None:
    """A mapping never renews: its process would load the old content for good."""
    fs = open_fs()
    file = interleaved(fs, 2 * CHUNK)
    mapping = Client(fs, file)
    mapping.ask(0, CHUNK, MAP)
    loader = another(mapping, 2)
    loader.ask(CHUNK, CHUNK)
    done = fs.defragment(file.ino)
    assert done == Relocation(CHUNK, (Stayed(0, CHUNK, MAPPED, (file.caller.pid,)),))
    check(fs, [mapping, loader])
    mapping.close()
    loader.renew()
    assert fs.defragment(loader.file.ino) == Relocation(CHUNK, ())
    loader.close()


def test_what_clients_of_an_earlier_mount_may_touch_stays(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = interleaved(fs, CHUNK)
    before = fs.describe(file.ino)
    fs.grants.epochs.stale = True
    assert fs.defragment(file.ino) == Relocation(0, (Stayed(0, CHUNK, MAPPED),))
    assert fs.describe(file.ino) == before
    fs.grants.epochs.stale = False
    fs.release(file)

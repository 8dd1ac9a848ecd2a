"""Atomic writes: all or nothing for readers, for refusals and for direct clients. Power cuts are in tests/explorer."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import pytest
from range_rig import content, make, refused

from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs import atomic
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.structures import inodes

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20


def places(fs: FileSystem, file: OpenFile) -> set[int]:
    """The blocks of a file."""
    return {block for run in fs.describe(file.ino) for block in range(run.pblk, run.pblk + run.length)}


def test_random_atomic_writes_equal_a_bytearray(open_fs: OpenFs, journaled_format: tuple[str, ...]) -> None:
    fs = open_fs(*journaled_format)
    chance = random.Random(7)
    file, model = make(fs), bytearray()
    for _ in range(150):
        offset = chance.randrange(300_000)
        if chance.random() < 0.2:
            fs.setattr(file.ino, SetAttributes(size=offset))
            model = model[:offset] + bytes(max(offset - len(model), 0))
            continue
        if chance.random() < 0.2 and fs.volume.geometry.has_extents:
            fs.fallocate(file, 1, offset, 20_000)
        new = chance.randbytes(chance.choice((1, 100, 1024, 4096, 5000, 40_000, 200_000)))
        assert fs.write(file, offset, new, atomic=chance.random() < 0.7) == len(new)
        model += bytes(max(offset + len(new) - len(model), 0))
        model[offset : offset + len(new)] = new
        assert content(fs, file) == model
    fs.check()
    fs.release(file)


def test_random_pieces_at_once_equal_a_bytearray(open_fs: OpenFs, journaled_format: tuple[str, ...]) -> None:
    """Pieces share blocks, touch, lie in holes and past EOF."""
    fs = open_fs(*journaled_format)
    chance = random.Random(8)
    file, model = make(fs), bytearray()
    for _ in range(60):
        borders = sorted(chance.sample(range(120_000), 2 * chance.randrange(1, 30)))
        if chance.random() < 0.5:
            borders = [border // 1024 * 1024 for border in borders]
        pieces = [
            (begin, chance.randbytes(min(end - begin, 9000)))
            for begin, end in zip(borders[::2], borders[1::2], strict=True)
            if begin < end
        ]
        before = fs.volume.journal.stats
        atomic.write_pieces(fs.volume, file, pieces)
        for offset, new in pieces:
            model += bytes(max(offset + len(new) - len(model), 0))
            model[offset : offset + len(new)] = new
        assert content(fs, file) == model
        assert fs.volume.journal.stats.rollbacks == before.rollbacks
    fs.check()
    fs.release(file)


def test_pieces_past_eof_show_nothing_old(open_fs: OpenFs) -> None:
    """The last block of the file, which no piece touches, keeps no bytes past the old EOF."""
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"o" * 9000)
    fs.sync()
    place = max(run.pblk + run.length for run in fs.describe(file.ino)) * fs.volume.block_size
    fs.volume.pool.write(place - 100, b"x" * 100)  # as a program leaves there that maps the last page
    atomic.write_pieces(fs.volume, file, [(10, b"n"), (30_000, b"n")])
    assert content(fs, file) == b"o" * 10 + b"n" + b"o" * 8989 + bytes(21_000) + b"n"
    fs.release(file)


def test_the_old_blocks_stay_as_they_were(open_fs: OpenFs) -> None:
    """Until the commit they are what a power cut leaves."""
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"o" * 60_000)
    fs.sync()
    old = places(fs, file)
    fs.write(file, 5000, b"n" * 40_000, atomic=True)
    new = places(fs, file) - old
    assert len(new) == 10
    size = fs.volume.block_size
    for block in old:
        found = bytes(fs.volume.pool.memory[block * size : (block + 1) * size])
        assert found.strip(b"\0") in (b"o" * size, b"o" * (60_000 % size))
    assert content(fs, file) == b"o" * 5000 + b"n" * 40_000 + b"o" * 15_000


def test_the_longest_and_longer(open_fs: OpenFs) -> None:
    fs = open_fs(size="96M")
    file = make(fs)
    new = random.Random(1).randbytes(atomic.MOST_BYTES)
    assert fs.write(file, 100, new, atomic=True) == len(new)
    assert bytes(fs.read(file, 100, len(new))) == new
    with refused(errno.EINVAL):
        fs.write(file, 0, new + b"x", atomic=True)
    assert fs.write(file, 0, b"", atomic=True) == 0
    assert file.size == 100 + len(new)


def test_refusals_change_nothing(open_fs: OpenFs) -> None:
    fs = open_fs()
    file, reader = make(fs), fs.open_file(fs.lookup(ROOT_INO, b"f").ino)
    fs.write(file, 0, b"old content")
    before = fs.getattr(file.ino)
    with refused(errno.EBADF):
        fs.write(reader, 0, b"x", atomic=True)
    with refused(errno.EINVAL):
        fs.write(file, -1, b"x", atomic=True)
    with refused(errno.EFBIG):
        fs.write(file, fs.volume.max_size(file.ino) - 1, b"xx", atomic=True)
    for flag in (EXT4_IMMUTABLE_FL, EXT4_APPEND_FL):
        with fs.volume.handle(2) as tx:
            inodes.edit(tx, file.ino).flags |= flag
        fs.volume.refresh(file.ino)
        if flag == EXT4_IMMUTABLE_FL:
            with refused(errno.EPERM):
                fs.write(file, 0, b"x", atomic=True)
        with fs.volume.handle(2) as tx:
            inodes.edit(tx, file.ino).flags &= ~flag
        fs.volume.refresh(file.ino)
    assert content(fs, file) == b"old content"
    assert fs.getattr(file.ino).mtime_ns == before.mtime_ns
    for opened in (file, reader):
        fs.release(opened)


def test_a_full_pool(open_fs: OpenFs) -> None:
    """An overwrite needs a second copy; where there is no room for it, the old one stays whole."""
    fs = open_fs(size="48M")
    file, filler = make(fs), make(fs, b"filler")
    fs.write(file, 0, b"o" * 4 * MIB)
    while fs.statfs().free * fs.volume.block_size > 3 * MIB:
        fs.write(filler, filler.size, b"x" * 100_000)
    free = fs.statfs().free
    with refused(errno.ENOSPC):
        fs.write(file, 0, b"n" * 4 * MIB, atomic=True)
    assert content(fs, file) == b"o" * 4 * MIB
    assert fs.statfs().free == free
    assert fs.write(file, 0, b"n" * MIB, atomic=True) == MIB
    fs.setattr(filler.ino, SetAttributes(size=0))
    assert fs.write(file, 0, b"n" * 4 * MIB, atomic=True) == 4 * MIB, "what was freed is used"
    assert content(fs, file) == b"n" * 4 * MIB
    for opened in (file, filler):
        fs.release(opened)


def test_appending_atomically(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs, flags=os.O_RDWR | os.O_APPEND)
    for _ in range(3):
        fs.write(file, 0, b"x" * 3000, atomic=True)
    assert file.size == 9000
    fs.release(file)


def test_an_atomic_write_drops_set_id_bits(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    fs.setattr(file.ino, SetAttributes(mode=0o4755))
    fs.write(file, 0, b"x", True, atomic=True)
    assert fs.getattr(file.ino).mode & 0o7777 == 0o755
    fs.release(file)


@pytest.mark.parametrize("pieces", [500])
def test_scattered_blocks(open_fs: OpenFs, pieces: int) -> None:
    """A file in many extents, replaced at once, within the credits (the tests check them)."""
    fs = open_fs()
    file, other = make(fs), make(fs, b"other")
    size = fs.volume.block_size
    for number in range(pieces):
        fs.write(file, number * size, b"o" * size)
        fs.write(other, number * size, b"-" * size)
    fs.write(file, size // 2, b"n" * (size * (pieces - 1)), atomic=True)
    assert content(fs, file) == b"o" * (size // 2) + b"n" * (size * (pieces - 1)) + b"o" * (size // 2)
    for opened in (file, other):
        fs.release(opened)

"""Data on storage: reads, changes, promotions and demotions, as a library."""

from __future__ import annotations

import errno
import os
import random
import threading

import pytest
import tier_rig
from in_memory import tmp_path
from range_rig import COLLAPSE, INSERT
from tier_rig import MIB, Members, fs, tiered

from daxfs.errors import FsError, OnStorage
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.openfile import OpenFile
from daxfs.fs.steps import finish
from daxfs.fs.types import ROOT_INO, LeaseRequest, SetAttributes
from daxfs.protocol import TOKEN_SIZE, Flag, GrantedExtent, Kind
from daxfs.structures import inodes, mapping

__all__ = ["fs", "tiered", "tmp_path"]


def on_storage(fs: FileSystem, ino: int) -> int:
    """Return how many blocks of a file lie on storage."""
    inode = inodes.read(fs.volume.view, ino)
    border = fs.volume.geometry.memory_blocks
    return sum(run.length for run in mapping.walk(fs.volume.view, inode) if run.pblk >= border)


def cold(fs: FileSystem, content: bytes, name: bytes = b"cold") -> int:
    """Make a file that lies on storage."""
    fs.tree.write_bytes(b"/" + name, content)
    ino = fs.lookup(ROOT_INO, name).ino
    done = fs.demote(ino)
    assert done.moved == -(-len(content) // 4096) * 4096
    assert not done.stayed
    assert on_storage(fs, ino) == done.moved >> 12
    return ino


def test_a_file_goes_down_and_comes_up(fs: FileSystem) -> None:
    content = os.urandom(5 * MIB + 1234)
    free = fs.tier_use().memory_free
    ino = cold(fs, content)
    fs.sync()
    assert free - fs.tier_use().memory_free < 8 * 4096, "its memory is free"
    assert fs.tree.read_bytes("/cold") == content
    assert on_storage(fs, ino), "reads leave it there"
    done = fs.promote(ino)
    assert done.moved == 5 * MIB + 4096
    assert not on_storage(fs, ino)
    assert fs.tree.read_bytes("/cold") == content
    assert fs.promote(ino).moved == 0


def test_reads_of_every_kind(fs: FileSystem) -> None:
    content = os.urandom(3 * MIB + 100)
    ino = cold(fs, content)
    fs.promote(ino, MIB, MIB // 2)
    file = fs.open_file(ino)
    chance = random.Random(1)
    for _ in range(40):
        offset = chance.randrange(len(content))
        size = chance.randrange(1, 70_000)
        assert bytes(fs.read(file, offset, size)) == content[offset : offset + size]
    assert bytes(finish(fs.steps.read(file, 1, 3 * MIB))) == content[1 : 1 + 3 * MIB]
    fs.release(file)


CHANGES = {
    "inside": lambda fs, file: fs.write(file, MIB + 17, b"y" * 5000),
    "across the end": lambda fs, file: fs.write(file, 2 * MIB - 7, b"y" * 500),
    "past the end": lambda fs, file: fs.write(file, 2 * MIB + 99_999, b"y"),
    "whole blocks": lambda fs, file: fs.write(file, MIB, b"y" * 8192),
    "atomically": lambda fs, file: fs.write(file, 4097, b"y" * 100, atomic=True),
    "cut": lambda fs, file: fs.setattr(file.ino, SetAttributes(size=MIB + 1)),
    "longer": lambda fs, file: fs.setattr(file.ino, SetAttributes(size=3 * MIB)),
    "hole": lambda fs, file: fs.fallocate(file, 3, 5000, MIB),
    "zero": lambda fs, file: fs.fallocate(file, 0x10, 5000, MIB),
    "collapse": lambda fs, file: fs.fallocate(file, 8, 4096, MIB),
    "insert": lambda fs, file: fs.fallocate(file, 0x20, 4096, MIB),
    "allocate": lambda fs, file: fs.fallocate(file, 0, MIB, 3 * MIB),
    "copy from": lambda fs, file: fs.copy_range(file, 100, file, MIB, 300_000),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_those_of_a_file_in_memory(fs: FileSystem, name: str) -> None:
    content = os.urandom(2 * MIB - 50)
    ino = cold(fs, content)
    fs.tree.write_bytes("/warm", content)
    for number in (ino, fs.lookup(ROOT_INO, b"warm").ino):
        file = fs.open_file(number, os.O_RDWR)
        CHANGES[name](fs, file)
        fs.release(file)
    assert fs.tree.read_bytes("/cold") == fs.tree.read_bytes("/warm")


def test_blocks_that_another_file_had(fs: FileSystem) -> None:
    ino = cold(fs, b"a" * MIB)
    before = mapping.runs(fs.volume.view, inodes.read(fs.volume.view, ino))
    assert fs.tree.read_bytes("/cold") == b"a" * MIB
    fs.promote(ino)
    fs.sync()
    other = cold(fs, b"b" * MIB, b"other")
    assert mapping.runs(fs.volume.view, inodes.read(fs.volume.view, other)) == before
    assert fs.tree.read_bytes("/other") == b"b" * MIB


def test_a_write_brings_up_what_it_changes(fs: FileSystem) -> None:
    ino = cold(fs, bytes(4 * MIB))
    file = fs.open_file(ino, os.O_RDWR)
    fs.write(file, MIB, b"x")
    assert on_storage(fs, ino) == 1023
    fs.release(file)


def test_a_session_gets_the_steps(fs: FileSystem) -> None:
    """Nothing is done before, and the operation works afterwards."""
    content = os.urandom(MIB)
    ino = cold(fs, content)
    file = fs.open_file(ino, os.O_RDWR)
    fs.leave_storage_to(lambda: None)
    with pytest.raises(OnStorage) as read:
        fs.read(file, 5, 10)
    finish(read.value.bring())
    assert bytes(fs.read(file, 5, 10)) == content[5:15]
    with pytest.raises(OnStorage) as write:
        fs.write(file, 5, b"abc")
    finish(write.value.bring())
    assert fs.write(file, 5, b"abc") == 3
    fs.release(file)


def test_a_file_that_changes_meanwhile_goes_down_as_it_is_then(fs: FileSystem) -> None:
    content = bytearray(os.urandom(MIB))
    fs.tree.write_bytes("/f", content)
    ino = fs.lookup(ROOT_INO, b"f").ino
    file = fs.open_file(ino, os.O_RDWR)
    steps = fs.steps.demote(ino)
    waiting = next(steps)
    assert waiting is not None
    fs.write(file, 1000, b"new")
    content[1000:1003] = b"new"
    waiting.wait()
    assert finish(steps).moved == MIB
    assert fs.tree.read_bytes("/f") == content
    fs.release(file)


def test_clients_keep_their_memory(fs: FileSystem) -> None:
    ino = cold(fs, bytes(MIB))
    fs.tree.write_bytes("/warm", bytes(MIB))
    file = fs.open_file(fs.lookup(ROOT_INO, b"warm").ino, os.O_RDWR)
    assert [piece.kind for piece in lease(fs, file)] == [Kind.MEMORY]
    assert fs.demote(file.ino) == (0, MIB)
    fs.release(file)
    file = fs.open_file(ino)
    assert [piece.kind for piece in lease(fs, file)] == [Kind.KERNEL]
    fs.release(file)


def test_a_client_asks_for_all_of_a_file_that_ends_within_a_block_on_storage(fs: FileSystem) -> None:
    """What lies past EOF in that block is not granted, and so not zeroed."""
    content = os.urandom(MIB - 1000)
    ino = cold(fs, content)
    file = fs.open_file(ino, os.O_RDWR)
    assert [piece.kind for piece in lease(fs, file, Flag.WRITE | Flag.FILL)] == [Kind.KERNEL]
    lease(fs, file, Flag.WRITE | Flag.FILL | Flag.EXTEND)
    assert fs.statistics().memory_errors == 0
    fs.release(file)
    assert fs.tree.read_bytes("/cold") == content


def lease(fs: FileSystem, file: OpenFile, flags: int = 0) -> list[GrantedExtent]:
    token = fs.pool_identity().token
    found = fs.lease(file, LeaseRequest(1, 0, MIB, flags, 64, bytes(fs.volume.memory[token : token + TOKEN_SIZE])))
    return list(found.pieces)


def test_storage_that_fails(fs: FileSystem, tiered: Members) -> None:
    ino = cold(fs, os.urandom(MIB))
    fs.tree.write_bytes("/warm", b"warm")
    os.truncate(tiered.storage, 4096)
    with pytest.raises(FsError) as error:
        fs.tree.read_bytes("/cold")
    assert error.value.errno == errno.EIO
    assert fs.tree.read_bytes("/warm") == b"warm"
    os.truncate(tiered.storage, tier_rig.STORAGE + (2 << 20))
    assert ino


def test_storage_that_does_not_answer(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    cold(fs, os.urandom(MIB))
    fs.tree.write_bytes("/warm", b"warm")
    tiers = fs.volume.tiers
    assert tiers is not None
    answer = threading.Event()
    read = tiers.queues[0].storage.read

    def stalled(offset: int, length: int) -> bytes:
        answer.wait()
        return read(offset, length)

    monkeypatch.setattr(tiers.queues[0].storage, "read", stalled)
    tiers.queues[0].limit_seconds = 0.0
    try:
        for _ in range(2):
            with pytest.raises(FsError) as error:
                fs.tree.read_bytes("/cold")
            assert error.value.errno == errno.EIO
        assert "did not answer" in str(error.value)
        assert fs.tree.read_bytes("/warm") == b"warm"
        with pytest.raises(FsError):
            fs.demote(fs.lookup(ROOT_INO, b"warm").ino)
    finally:
        answer.set()


def test_unwritten_blocks_go_down_without_a_copy(fs: FileSystem) -> None:
    fs.tree.write_bytes("/f", b"x" * 4096)
    ino = fs.lookup(ROOT_INO, b"f").ino
    file = fs.open_file(ino, os.O_RDWR)
    fs.fallocate(file, 0, 0, 2 * MIB)
    assert fs.demote(ino) == (2 * MIB, 0)
    assert on_storage(fs, ino) == 512
    assert bytes(fs.read(file, 0, 2 * MIB)) == b"x" * 4096 + bytes(2 * MIB - 4096)
    fs.write(file, MIB, b"y")
    assert on_storage(fs, ino) == 511
    assert fs.promote(ino).moved == 2 * MIB - 4096
    assert bytes(fs.read(file, 0, 2 * MIB)) == b"x" * 4096 + bytes(MIB - 4096) + b"y" + bytes(MIB - 1)
    fs.release(file)


def test_wrong_arguments_are_refused_before_storage_is_needed(fs: FileSystem) -> None:
    ino = cold(fs, os.urandom(MIB + 100))
    file = fs.open_file(ino, os.O_RDWR)
    tiers = fs.volume.tiers
    assert tiers is not None
    tiers.queues[0].fail("the test says so")
    limit = fs.volume.geometry.max_extent_file_size
    for mode, offset, length, expected in (
        (COLLAPSE, 4096, 2 * MIB, errno.EINVAL),
        (COLLAPSE, 5, 4096, errno.EINVAL),
        (INSERT, 2 * MIB, 4096, errno.EINVAL),
        (INSERT, 0, 5, errno.EINVAL),
        (INSERT, 0, limit - 4096 & -4096, errno.EFBIG),
        (COLLAPSE, 0, 4096, errno.EIO),
        (INSERT, 0, 4096, errno.EIO),
    ):
        with pytest.raises(FsError) as refused:
            fs.fallocate(file, mode, offset, length)
        assert refused.value.errno == expected, (mode, offset, length)
    with pytest.raises(FsError) as refused:
        fs.write(file, limit, b"x")
    assert refused.value.errno == errno.EFBIG
    fs.release(file)

"""All grants of a volume: how holders leave, and how a client's extending write ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from lease_rig import (
    EXTEND,
    FAR,
    MEMORY,
    RENEW,
    STORE,
    Client,
    another,
    check,
    client,
    entry_of,
    free_blocks,
    truncate,
)
from range_rig import COLLAPSE, INSERT, PUNCH, refused

from daxfs.errors import FsError
from daxfs.fs.change import Change
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import WriteNotification

BLOCK = 4096


def others_grow() -> dict[str, Callable[[FileSystem, Client], object]]:
    return {
        "write": lambda fs, held: fs.write(held.file, BLOCK, b"w" * 50),
        "write far": lambda fs, held: fs.write(held.file, 9 * BLOCK, b"w" * 50),
        "truncate": lambda fs, held: truncate(fs, held.file.ino, 5 * BLOCK),
        "allocate": lambda fs, held: fs.fallocate(held.file, 0, 0, 3 * BLOCK),
        "copy": lambda fs, held: fs.copy_range(held.file, 0, held.file, 2 * BLOCK, 100),
        "cut": lambda fs, held: truncate(fs, held.file.ino, 50),
    }


@pytest.mark.parametrize("name", others_grow())
def test_a_preallocation_ends_when_others_move_eof(fs: FileSystem, name: str) -> None:
    held = client(fs, content=b"x" * BLOCK)
    before = held.ask(0, 8 * BLOCK, STORE | EXTEND)
    held.store(BLOCK, b"staged" * 2000)
    others_grow()[name](fs, held)
    assert entry_of(fs, before.entry).epoch != before.epoch
    size = fs.getattr(held.file.ino).size
    with refused(errno.EAGAIN):
        fs.notify_stored(held.file, WriteNotification(BLOCK + 12_000, base=BLOCK))
    check(fs, [held])
    assert b"staged" not in bytes(fs.read(held.file, 0, FAR))
    truncate(fs, held.file.ino, size + 8 * BLOCK)
    assert b"staged" not in bytes(fs.read(held.file, 0, FAR))


def test_what_was_grown_and_not_told_goes(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    held.ask(0, 100, STORE)
    before = free_blocks(fs)
    held.ask(0, 50 * BLOCK, STORE | EXTEND)
    assert free_blocks(fs) == before - 49
    held.store(100, b"staged")
    held.close()
    assert free_blocks(fs) >= before
    assert fs.tree.read_bytes("f") == b"x" * 100


def test_statistics(fs: FileSystem) -> None:
    held = client(fs, content=b"x")
    other = another(held, 2)
    for one in (held, other, held):
        one.ask()
    assert fs.statistics().leases == 2
    held.renew()
    assert fs.statistics().leases == 1
    other.close()
    assert fs.statistics().leases == 0
    assert not fs.grants.by_ino


OpenFs = Callable[..., FileSystem]
MIB = 1 << 20


def test_undone_operations_defer_nothing(fs: FileSystem) -> None:
    """A handle that defers frees and then fails has deferred nothing."""
    held = client(fs, content=b"x" * MIB)
    held.ask(0, FAR, STORE)
    volume = fs.volume

    def cut_and_fail() -> None:
        with volume.handle(200) as tx:
            Change(volume, tx, held.file.ino).unmap(0, None)
            assert fs.statistics().deferred == MIB
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_and_fail()
    assert fs.statistics().deferred == 0
    check(fs, [held])
    truncate(fs, held.file.ino, 0)
    assert fs.statistics().deferred == MIB
    held.close()
    assert fs.statistics().deferred == 0


def extender(fs: FileSystem) -> Client:
    """Return a client that was granted eight blocks past EOF of a file of eight."""
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(8 * BLOCK, 8 * BLOCK, STORE | EXTEND)
    return held


def past_eof(held: Client) -> set[int]:
    """Return the blocks of the pool that the client was granted past EOF."""
    granted = [piece for answer in held.answers for piece in answer.pieces if piece.kind == MEMORY]
    return {
        at // BLOCK for piece in granted for at in range(piece.pool_offset, piece.pool_offset + piece.length, BLOCK)
    }


def blocks_of(fs: FileSystem, ino: int) -> set[int]:
    return {run.pblk + at for run in fs.describe(ino) for at in range(run.length)}


def take_all_inodes(fs: FileSystem) -> None:
    for number in range(fs.statfs().files_free):
        fs.symlink(ROOT_INO, b"%d" % number, b"x")


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT])
def test_a_shift_ends_a_preallocation(fs: FileSystem, mode: int) -> None:
    """A late store of the extender hits nothing that others write past the old EOF."""
    held = extender(fs)
    given = past_eof(held)
    other = fs.open_file(held.file.ino, os.O_RDWR)
    fs.fallocate(other, mode, 0, BLOCK)
    fs.write(other, fs.getattr(other.ino).size, b"y" * 9 * BLOCK)
    assert not given & blocks_of(fs, other.ino)
    check(fs, [held])
    fs.release(other)
    held.close()


@pytest.fixture
def crowded(open_fs: OpenFs) -> FileSystem:
    return open_fs("-m", "0", "-N", "64", size="16M")


@pytest.mark.parametrize("way", ["close", "renew", "give back"])
def test_the_last_holder_goes_without_a_free_inode(crowded: FileSystem, way: str) -> None:
    """No one may touch the blocks that it leaves past EOF, so that no quarantine inode is needed."""
    held = extender(crowded)
    take_all_inodes(crowded)
    if way == "close":
        held.close()
    elif way == "renew":
        held.ask(0, BLOCK, RENEW)
    else:
        held.renew()
    crowded.check()
    assert len(blocks_of(crowded, crowded.lookup(ROOT_INO, b"f").ino)) == 8
    if way != "close":
        held.close()


def test_a_preallocation_that_can_not_be_freed_stays(crowded: FileSystem) -> None:
    """Every operation that must end it is refused until there is an inode for the deferred frees."""
    held = extender(crowded)
    given = past_eof(held)
    other = crowded.open_file(held.file.ino, os.O_RDWR)
    take_all_inodes(crowded)
    for _ in range(2):
        with refused(errno.ENOSPC):
            crowded.write(other, 8 * BLOCK, b"y" * BLOCK)
        crowded.check()
    crowded.unlink(ROOT_INO, b"0")
    assert crowded.write(other, 8 * BLOCK, b"y" * BLOCK) == BLOCK
    assert not given & blocks_of(crowded, other.ino)
    check(crowded, [held])
    crowded.release(other)
    held.close()


def test_a_close_that_fails_frees_what_has_no_name(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    held = extender(fs)
    fs.unlink(ROOT_INO, b"f")

    def fail(*_: object) -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs.grants.epochs, "free_past_eof", fail)
    with refused(errno.EIO):
        held.close()
    fs.check()
    assert fs.volume.lives.nameless == {fs.grants.page.ino}


def test_punched_blocks_are_not_preallocated(open_fs: OpenFs) -> None:
    """A punch up to EOF frees the rest of EOF's page, including what a client was granted there."""
    fs = open_fs("-b", "1024", size="16M")
    held = client(fs, content=b"x")
    held.ask(0, 4096, STORE | EXTEND)
    held.store(1024, b"y" * 3072)
    other = held.fs.open_file(held.file.ino, os.O_RDWR)
    fs.fallocate(other, PUNCH, 0, 4096)
    fs.sync()
    assert all(low >= 4096 or high <= 1024 for low, high, _, _ in fs.grants.by_ino[held.file.ino].preallocated.runs)
    fs.release(other)
    held.close()

"""Blocks that wait to be freed: how many for one user, who holds them, and what the log says of them."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import pytest
from lease_rig import (
    FAR,
    GROW,
    MEMORY,
    NOTHING,
    RENEW,
    ROOM,
    STORE,
    Client,
    another,
    check,
    client,
    make,
    token,
    truncate,
)
from range_rig import COLLAPSE, INSERT, PUNCH, refused

from daxfs.errors import FsError
from daxfs.fs.change import Change
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import requests, waiting
from daxfs.fs.types import Caller, LeaseRequest

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20
OWNER, READER, OTHER = (Caller(uid, uid, uid + 70_000) for uid in (1000, 1001, 1002))


@pytest.fixture
def fs(open_fs: OpenFs) -> FileSystem:
    return open_fs("-m", "0", size="64M")


def rewrite(fs: FileSystem, size: int = 2 * MIB, name: bytes = b"f") -> None:
    """The owner writes his file anew, with O_TRUNC."""
    file = fs.open_file(fs.lookup(ROOT_INO, name).ino, os.O_RDWR | os.O_TRUNC, OWNER)
    fs.write(file, 0, os.urandom(size))
    fs.release(file)


def reader_of(fs: FileSystem, name: bytes = b"f", caller: Caller = READER) -> Client:
    return Client(fs, fs.open_file(fs.lookup(ROOT_INO, name).ino, os.O_RDONLY, caller))


def free(fs: FileSystem) -> int:
    fs.sync()
    return fs.statfs().free * 4096


def test_a_reader_without_the_pool_holds_nothing(fs: FileSystem) -> None:
    """The owner rewrites his file for ever, and the room of the file is all that it takes."""
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs)
    reader = reader_of(fs)
    before = free(fs)
    for _ in range(100):
        with refused(errno.EOPNOTSUPP):
            fs.lease(reader.file, LeaseRequest(1, 0, FAR, NOTHING, ROOM))
        rewrite(fs)
    assert free(fs) == before
    assert fs.statistics().deferred == 0


def test_a_reader_with_the_pool_holds_no_more_than_the_bound(fs: FileSystem) -> None:
    """It asks again and again and never renews: at the bound it is refused, and the owner goes on."""
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs)
    reader = reader_of(fs)
    before, most = free(fs), waiting.limit(fs.grants)
    granted = 0
    for _ in range(100):
        try:
            reader.ask(0, FAR)
            granted += 1
        except FsError as error:
            assert error.errno == errno.EAGAIN
        rewrite(fs)
    assert granted == most // (2 * MIB)
    assert most <= fs.statistics().deferred < most + 2 * MIB
    assert before - free(fs) < most + 3 * MIB
    check(fs, [reader])
    superuser = another(reader, flags=os.O_RDONLY)
    assert superuser.ask().pieces, "the bound is another user's"
    superuser.close()
    reader.ask(flags=RENEW)
    rewrite(fs)
    reader.close()
    assert fs.statistics().deferred == 0
    assert free(fs) >= before - MIB


def test_one_user_is_bounded_over_all_his_files_and_opens(fs: FileSystem) -> None:
    names = [b"f%d" % number for number in range(12)]
    readers: list[Client] = []
    for name in names:
        fs.release(make(fs, name, b"x"))
    for _ in range(3):
        for name in names:
            rewrite(fs, MIB, name)
            reader = reader_of(fs, name)
            try:
                reader.ask(0, FAR)
                readers.append(reader)
            except FsError as error:
                assert error.errno == errno.EAGAIN
                reader.close()
            rewrite(fs, MIB, name)
    assert waiting.waiting_for(fs.grants, READER.uid) <= waiting.limit(fs.grants) + MIB
    with refused(errno.EAGAIN):
        reader_of(fs, names[0]).ask()
    assert reader_of(fs, names[0], OTHER).ask().pieces
    check(fs, readers)


def test_what_two_hold_counts_for_both(fs: FileSystem) -> None:
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs)
    one, other = reader_of(fs), reader_of(fs, caller=OTHER)
    for reader in (one, other):
        reader.ask(0, FAR)
    rewrite(fs)
    assert {each.uid: each.size for each in fs.statistics().holding} == {READER.uid: 2 * MIB, OTHER.uid: 2 * MIB}
    assert fs.statistics().deferred == 2 * MIB
    other.ask(flags=RENEW)
    assert [(each.uid, each.pid) for each in fs.statistics().holding] == [(READER.uid, READER.pid)]
    one.close()
    assert (fs.statistics().deferred, fs.statistics().holding) == (0, ())


def test_who_renews_is_not_refused(fs: FileSystem) -> None:
    """An honest client is never more than one rewriting late, however large the file."""
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs, 12 * MIB)
    reader = reader_of(fs)
    for _ in range(10):
        assert reader.ask(0, FAR, RENEW).pieces
        rewrite(fs, 12 * MIB)
        assert fs.statistics().deferred == 12 * MIB > waiting.limit(fs.grants)
    assert reader.ask(0, FAR, RENEW).pieces
    assert fs.statistics().deferred == 0
    check(fs, [reader])


def test_what_is_renewed_at_the_bound_is_freed_though_more_is_refused(fs: FileSystem) -> None:
    for name in (b"f", b"g"):
        fs.release(make(fs, name, b"x"))
        rewrite(fs, 10 * MIB, name)
    held, mapped = reader_of(fs), reader_of(fs, b"g")
    for reader in (held, mapped):
        reader.ask(0, FAR)
    for name in (b"f", b"g"):
        rewrite(fs, 1, name)
    with refused(errno.EAGAIN):
        held.ask(flags=RENEW)
    assert held.file.node.grants is None
    assert fs.statistics().deferred == 10 * MIB
    mapped.close()
    assert held.ask(flags=RENEW).pieces
    assert fs.statistics().deferred == 0


def test_a_full_pool_names_who_holds_what(fs: FileSystem, caplog: pytest.LogCaptureFixture) -> None:
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs, 20 * MIB)
    reader = reader_of(fs)
    reader.ask(0, FAR)
    rewrite(fs, 1)
    eater = make(fs, b"eater")
    with caplog.at_level(logging.WARNING, "daxfs.fs"):
        for _ in range(5):
            with refused(errno.ENOSPC):
                while True:
                    fs.write(eater, fs.getattr(eater.ino).size, bytes(MIB))
            with refused(errno.ENOSPC):
                fs.fallocate(eater, 0, 0, 60 * MIB)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"{fs.volume.pool.path} is full while {20 * MIB} bytes wait to be freed: "
        f"{20 * MIB} for process {READER.pid} of user {READER.uid}"
    )


def test_a_full_pool_where_nothing_waits_needs_no_word(fs: FileSystem, caplog: pytest.LogCaptureFixture) -> None:
    eater = make(fs, b"eater")
    with caplog.at_level(logging.DEBUG, "daxfs.fs"), refused(errno.ENOSPC):
        while True:
            fs.write(eater, fs.getattr(eater.ino).size, bytes(MIB))
    assert not caplog.records


def test_the_bound_is_said_once(fs: FileSystem, caplog: pytest.LogCaptureFixture) -> None:
    fs.release(make(fs, b"f", b"x"))
    rewrite(fs, 10 * MIB)
    reader = reader_of(fs)
    reader.ask(0, FAR)
    rewrite(fs, 1)
    with caplog.at_level(logging.WARNING, "daxfs.fs"):
        for _ in range(10):
            with refused(errno.EAGAIN):
                reader.ask()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"user {READER.uid} gets no new leases while {8 * MIB} bytes or more wait to be freed")
    assert f"process {READER.pid}" in line


def test_holders_are_bounded_over_all_files(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_HOLDERS_OF_ALL_FILES", 50)
    held = [client(fs, b"f%d" % number, b"x") for number in range(10)]
    for number in range(5):
        for one in held:
            fs.lease(one.file, LeaseRequest(number, 0, 1, NOTHING, ROOM, token(fs)))
    assert fs.statistics().leases == 50
    late = client(fs, b"late", b"x")
    for one in (held[0], late):
        with refused(errno.EAGAIN):
            fs.lease(one.file, LeaseRequest(99, 0, 1, NOTHING, ROOM, token(fs)))
    assert late.file.node.grants is None
    assert fs.lease(held[3].file, LeaseRequest(2, 0, 1, NOTHING, ROOM, token(fs))).pieces
    held.pop().close()
    assert fs.statistics().leases == 45
    assert late.ask().pieces
    for one in (*held, late):
        one.close()
    assert fs.statistics().leases == 0


def test_undone_operations_leave_the_books_as_they_were(fs: FileSystem) -> None:
    """A handle that parks and then fails has deferred nothing."""
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


# The end of a growth

BLOCK = 4096


def grower(fs: FileSystem) -> Client:
    """A client that was given eight blocks to make a file of eight longer."""
    held = client(fs, content=b"x" * 8 * BLOCK)
    held.ask(8 * BLOCK, 8 * BLOCK, STORE | GROW)
    return held


def behind_the_end(held: Client) -> set[int]:
    """Blocks of the pool that it was given behind the end of the file."""
    told = [piece for answer in held.answers for piece in answer.pieces if piece.kind == MEMORY]
    return {at // BLOCK for piece in told for at in range(piece.pool_offset, piece.pool_offset + piece.length, BLOCK)}


def blocks_of(fs: FileSystem, ino: int) -> set[int]:
    return {run.pblk + at for run in fs.describe(ino) for at in range(run.length)}


def take_all_inodes(fs: FileSystem) -> None:
    for number in range(fs.statfs().files_free):
        fs.symlink(ROOT_INO, b"%d" % number, b"x")


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT])
def test_what_is_shifted_is_no_growth_any_more(fs: FileSystem, mode: int) -> None:
    """A store of the grower that comes late hits nothing that others write behind the end."""
    held = grower(fs)
    given = behind_the_end(held)
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
    """Nobody may touch what it leaves behind the end, so that no quarantine inode is needed."""
    held = grower(crowded)
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


def test_a_growth_that_can_not_be_ended_goes_on(crowded: FileSystem) -> None:
    """Whoever needs it gone is refused, each time, until there is an inode to hold what is given up."""
    held = grower(crowded)
    given = behind_the_end(held)
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
    held = grower(fs)
    fs.unlink(ROOT_INO, b"f")

    def fail(*_: object) -> None:
        raise FsError(errno.EIO)

    monkeypatch.setattr(fs.grants.epochs, "cut", fail)
    with refused(errno.EIO):
        held.close()
    fs.check()
    assert fs.volume.lives.nameless == {fs.grants.page.ino}


def test_blocks_that_were_punched_are_no_growth_any_more(open_fs: OpenFs) -> None:
    """Of the page that EOF is in, a punch frees what a client was given."""
    fs = open_fs("-b", "1024", size="16M")
    held = client(fs, content=b"x")
    held.ask(0, 4096, STORE | GROW)
    held.store(1024, b"y" * 3072)
    other = held.fs.open_file(held.file.ino, os.O_RDWR)
    fs.fallocate(other, PUNCH, 0, 4096)
    fs.sync()
    assert all(low >= 4096 or high <= 1024 for low, high, _, _ in fs.grants.by_ino[held.file.ino].growth.runs)
    fs.release(other)
    held.close()


def test_each_change_is_counted(fs: FileSystem) -> None:
    """A client whose stores were made durable sees that they are not all there is."""
    held = client(fs, content=b"x" * BLOCK)
    held.ask(0, BLOCK, STORE)
    grants = fs.grants.by_ino[held.file.ino]
    for change in (
        lambda: fs.write(held.file, 0, b"y"),
        lambda: fs.write(held.file, BLOCK, b"y"),
        lambda: fs.link(held.file.ino, ROOT_INO, b"link"),
        lambda: fs.unlink(ROOT_INO, b"link"),
    ):
        before = grants.changes
        change()
        assert grants.changes > before
    held.close()

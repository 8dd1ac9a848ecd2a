"""For whom deferred frees wait: the limit for one user, which processes are named, and what the log says."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import pytest
from lease_rig import (
    FAR,
    NOTHING,
    RENEW,
    ROOM,
    Client,
    another,
    check,
    make,
)
from range_rig import refused

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import waiting
from daxfs.fs.types import Caller, LeaseRequest

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20
OWNER, READER, OTHER = (Caller(uid, uid, uid + 70_000) for uid in (1000, 1001, 1002))


@pytest.fixture
def fs(open_fs: OpenFs) -> FileSystem:
    return open_fs("-m", "0", size="64M")


def rewrite(fs: FileSystem, size: int = 2 * MIB, name: bytes = b"f") -> None:
    """Write the file anew as its owner, with O_TRUNC."""
    file = fs.open_file(fs.lookup(ROOT_INO, name).ino, os.O_RDWR | os.O_TRUNC, OWNER)
    fs.write(file, 0, os.urandom(size))
    fs.release(file)


def reader_of(fs: FileSystem, name: bytes = b"f", caller: Caller = READER) -> Client:
    return Client(fs, fs.open_file(fs.lookup(ROOT_INO, name).ino, os.O_RDONLY, caller))


def free(fs: FileSystem) -> int:
    fs.sync()
    return fs.statfs().free * 4096


def test_a_reader_without_the_pool_holds_nothing(fs: FileSystem) -> None:
    """The owner rewrites the file again and again, and the space of one file suffices."""
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
    """The reader asks again and again and never renews: at the limit it is refused, and the owner goes on."""
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
    """An honest client keeps at most one version of the file waiting, however large the file."""
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

"""Batches of the core: all or nothing, durable, unseen before. Power cuts are in tests/explorer."""

from __future__ import annotations

import errno
import os
import random
from array import array
from collections.abc import Callable
from contextlib import suppress

from lease_rig import STORE, Client
from range_rig import content, make, refused, set_flag

from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.protocol import Flag

OpenFs = Callable[..., FileSystem]
MIB = 1 << 20


def test_random_batches_equal_a_bytearray(open_fs: OpenFs, journaled_format: tuple[str, ...]) -> None:
    fs = open_fs(*journaled_format)
    chance = random.Random(5)
    file, model = make(fs), bytearray()
    other = fs.open_file(file.ino, os.O_RDWR)
    for _ in range(60):
        changed = bytearray(model)
        batch = fs.batch(file)
        for _ in range(chance.randrange(8)):
            offset, new = chance.randrange(150_000), chance.randbytes(chance.choice((1, 100, 4096, 5000, 30_000)))
            assert batch.write(offset, new) == len(new)
            changed += bytes(max(offset + len(new) - len(changed), 0))
            changed[offset : offset + len(new)] = new
            assert content(fs, other) == model, "others see the file as before"
        assert batch.size == len(changed)
        assert batch.read(1000, 120_000) == changed[1000:121_000]
        if chance.random() < 0.7:
            batch.commit()
            model = changed
        else:
            batch.abort()
        assert content(fs, other) == content(fs, file) == model
    fs.check()
    for opened in (file, other):
        fs.release(opened)


def test_items_of_several_bytes(open_fs: OpenFs) -> None:
    """All bytes of a view are written, whatever its items are."""
    fs = open_fs()
    file = make(fs)
    numbers = memoryview(array("I", range(1000)))
    with fs.batch(file) as batch:
        assert batch.write(0, numbers) == 4000
    assert content(fs, file) == numbers.tobytes()
    assert fs.write(file, 0, memoryview(array("I", [7] * 1000)), atomic=True) == 4000
    assert content(fs, file) == memoryview(array("I", [7] * 1000)).tobytes()
    fs.release(file)


def test_a_commit_is_one_handle_and_durable(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"o" * 100_000)
    fs.sync()
    before = fs.volume.journal.stats.commits
    with fs.batch(file) as batch:
        for offset in range(0, 100_000, 20_000):
            batch.write(offset, b"n" * 5000)
        assert not fs.volume.journal.dirty, "nothing is in the pool before the commit"
    assert fs.volume.journal.stats.commits == before + 1
    assert not fs.volume.journal.dirty
    fs.release(file)


def test_a_write_that_others_made_meanwhile(open_fs: OpenFs) -> None:
    """It stays in bytes that are not staged, in the same block too."""
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"o" * 8192)
    with fs.batch(file) as batch:
        batch.write(100, b"t" * 50)
        other = fs.open_file(file.ino, os.O_RDWR)
        fs.write(other, 0, b"w" * 120)
        assert content(fs, other) == b"w" * 120 + b"o" * 8072
        fs.setattr(file.ino, SetAttributes(size=5000))
    assert content(fs, other) == b"w" * 100 + b"t" * 50 + b"o" * 4850
    for opened in (file, other):
        fs.release(opened)


def test_an_exception_and_a_close_end_it(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"old")
    with suppress(ZeroDivisionError), fs.batch(file) as batch:
        batch.write(0, b"new")
        raise ZeroDivisionError
    assert content(fs, file) == b"old"
    batch = fs.batch(file)
    batch.write(0, b"new")
    reader = fs.open_file(file.ino)
    fs.release(reader)
    assert batch.read(0, 3) == b"new", "the close of another open file is nothing to it"
    fs.release(file)
    for use in (lambda: batch.write(0, b"x"), lambda: batch.read(0, 1), batch.commit):
        with refused(errno.EINVAL):
            use()
    batch.abort()
    assert fs.tree.read_bytes("/f") == b"old"
    assert not fs.volume.staging.by_ino
    assert not fs.volume.staging.pages


def test_refusals(open_fs: OpenFs) -> None:
    fs = open_fs()
    file, reader = make(fs), fs.open_file(fs.lookup(ROOT_INO, b"f").ino)
    fs.write(file, 0, b"old content")
    with refused(errno.EBADF):
        fs.batch(reader)
    batch = fs.batch(file)
    with refused(errno.EBUSY):
        fs.batch(file)
    writer = fs.open_file(file.ino, os.O_WRONLY)
    with refused(errno.EBUSY):
        fs.batch(writer)
    with refused(errno.EINVAL):
        batch.write(-1, b"x")
    with refused(errno.EFBIG):
        batch.write(fs.volume.max_size(file.ino), b"x")
    with refused(errno.EFBIG):
        batch.write(0, bytes(16 * MIB + 1))
    assert batch.read(0, 100) == b"old content"
    assert batch.read(100, 5) == b""
    batch.commit()
    unreadable = fs.batch(writer)
    with refused(errno.EBADF):
        unreadable.read(0, 1)
    set_flag(fs, file.ino, EXT4_IMMUTABLE_FL)
    with refused(errno.EPERM):
        unreadable.write(0, b"x")
    unreadable.abort()
    assert content(fs, file) == b"old content"
    for opened in (file, reader, writer):
        fs.release(opened)


def test_an_append_only_file(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs, flags=os.O_RDWR | os.O_APPEND)
    fs.write(file, 0, b"old")
    with fs.batch(file) as batch:
        batch.write(0, b" and")
        batch.write(0, b" new")
    assert content(fs, file) == b"old and new"
    set_flag(fs, file.ino, EXT4_APPEND_FL)
    file.append = False  # as the session opens it: the kernel places the writes
    with fs.batch(file) as batch:
        with refused(errno.EPERM):
            batch.write(0, b"x")
        batch.write(11, b"!")
    assert content(fs, file) == b"old and new!"
    fs.release(file)


def test_a_commit_without_room_changes_nothing(open_fs: OpenFs) -> None:
    fs = open_fs(size="48M")
    file, filler = make(fs), make(fs, b"filler")
    fs.write(file, 0, b"o" * 4 * MIB)
    while fs.statfs().free * fs.volume.block_size > 3 * MIB:
        fs.write(filler, filler.size, b"x" * 100_000)
    batch = fs.batch(file)
    batch.write(0, b"n" * 4 * MIB)
    with refused(errno.ENOSPC):
        batch.commit()
    assert content(fs, file) == b"o" * 4 * MIB
    with refused(errno.EINVAL):
        batch.commit()
    assert not fs.volume.staging.pages
    for opened in (file, filler):
        fs.release(opened)


def test_a_volume_that_has_become_read_only(open_fs: OpenFs) -> None:
    fs = open_fs()
    file = make(fs)
    batch, late = fs.batch(file), make(fs, b"late")
    batch.write(0, b"new")
    fs.remount(Options(read_only=True))
    with refused(errno.EROFS):
        batch.commit()
    with refused(errno.EROFS):
        fs.batch(late)
    assert file.size == 0
    for opened in (file, late):
        fs.release(opened)


def test_set_id_bits(open_fs: OpenFs) -> None:
    """They go with the commit, as the writes said, and not before."""
    fs = open_fs()
    file = make(fs)
    for kill, left in ((False, 0o4755), (True, 0o755)):
        fs.setattr(file.ino, SetAttributes(mode=0o4755))
        batch = fs.batch(file)
        batch.write(0, b"x", kill)
        batch.write(9, b"x", False)
        assert fs.getattr(file.ino).mode & 0o7777 == 0o4755
        batch.commit()
        assert fs.getattr(file.ino).mode & 0o7777 == left
    fs.release(file)


def test_clients_may_not_store_meanwhile(open_fs: OpenFs) -> None:
    """Grants for storing are taken back, and refused until the end; others may read, but not through the same file."""
    fs = open_fs()
    file = make(fs)
    fs.write(file, 0, b"o" * 20_000)
    writer, reader = (Client(fs, fs.open_file(file.ino, os.O_RDWR), number) for number in (1, 2))
    writer.ask(flags=STORE)
    own = Client(fs, file, 3)
    before = own.ask().epoch
    batch = fs.batch(file)
    with refused(errno.EAGAIN):
        writer.ask(flags=STORE | Flag.RENEW)
    with refused(errno.EAGAIN):
        own.ask(flags=Flag.RENEW)
    assert reader.ask().epoch != before, "the epoch has ended"
    batch.write(0, b"n" * 5000)
    batch.commit()
    writer.ask(flags=STORE | Flag.RENEW)
    own.ask(flags=Flag.RENEW)
    fs.check()
    for client in (writer, reader, own):
        client.close()

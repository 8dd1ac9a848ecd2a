"""Write notifications: what a client has stored becomes part of the file."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

from lease_rig import (
    EXTEND,
    FAR,
    STORE,
    Client,
    SharedPool,
    another,
    check,
    client,
    entry_of,
    make,
    recorded,
)
from range_rig import KEEP_SIZE, ZERO, refused
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, SetAttributes
from daxfs.pmem.memory import MemoryPool
from support import wait_a_tick

BLOCK = 4096


def test_extending_writes(fs: FileSystem) -> None:
    """The file has what was stored past EOF after the report, and nothing is zeroed twice."""
    held = client(fs, content=b"x" * 100)
    held.ask(0, 100, STORE)
    content = random.Random(1).randbytes(10 * BLOCK)
    held.ask(0, 10 * BLOCK, STORE | EXTEND)
    held.store(100, content[100:])
    for at in (100, 5 * BLOCK):
        held.ask(at, 10 * BLOCK - at, STORE | EXTEND)
    assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100
    for size in (150, BLOCK, BLOCK + 1, 7 * BLOCK - 5):
        held.stored(size)
        assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100 + content[100:size]
        assert entry_of(fs, held.answers[-1].entry).size == size
        check(fs, [held])
        held.ask(0, 10 * BLOCK, STORE | EXTEND)
    held.stored(10 * BLOCK)
    assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100 + content[100:]
    assert held.current
    check(fs, [held])


def test_zeroing_past_eof(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    held.ask(0, 4 * BLOCK, STORE | EXTEND)
    held.store(100, b"q" * 3 * BLOCK)
    fs.fallocate(held.file, ZERO | KEEP_SIZE, 2 * BLOCK, BLOCK)
    held.stored(100 + 3 * BLOCK)
    expected = b"x" * 100 + b"q" * (2 * BLOCK - 100) + bytes(BLOCK) + b"q" * 100
    assert bytes(fs.read(held.file, 0, FAR)) == expected


def test_stored(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * BLOCK)
    fs.setattr(held.file.ino, SetAttributes(mtime_ns=5, atime_ns=5))
    with refused(errno.EINVAL):
        held.stored()
    held.ask(0, BLOCK, STORE)
    held.store(0, b"new")
    ctime = fs.getattr(held.file.ino).ctime_ns
    wait_a_tick()
    held.stored()
    facts = fs.getattr(held.file.ino)
    assert facts.mtime_ns > 5
    assert facts.ctime_ns > ctime
    assert facts.size == BLOCK
    reader = another(held, 2, os.O_RDONLY)
    reader.ask()
    with refused(errno.EBADF):
        reader.stored()
    held.ask(0, 2 * BLOCK, STORE | EXTEND)
    with refused(errno.EFBIG):
        held.stored(1 << 60)
    held.renew()
    with refused(errno.EINVAL):
        held.stored()


def test_stores_are_durable_when_told_so(tmp_path: Path) -> None:
    fs = recorded(tmp_path / "pool")
    pool = fs.volume.pool
    assert isinstance(pool, SharedPool)
    held = client(fs, content=b"x" * 100)
    held.ask(0, 4 * BLOCK, STORE | EXTEND)
    content = random.Random(1).randbytes(9000)
    held.store(50, content)
    held.stored(9050, durable=True)
    mtime = fs.getattr(held.file.ino).mtime_ns
    for left in pool.crash_images(random.Random(1), start=len(pool.events)):
        with FileSystem.open(MemoryPool(bytearray(left.image)), QUIET) as again:
            assert again.tree.read_bytes("f") == b"x" * 50 + content
            assert again.lookup(ROOT_INO, b"f").mtime_ns == mtime


def test_a_report_of_appends_drops_set_id_bits(fs: FileSystem) -> None:
    """The bits were set after memory past EOF was granted, while the client may still store there."""
    file = make(fs, b"f", b"x" * BLOCK)
    held = Client(fs, fs.open_file(file.ino, os.O_RDWR, Caller(1000, 1000)))
    held.ask(BLOCK, BLOCK, STORE | EXTEND)
    fs.setattr(file.ino, SetAttributes(mode=0o6755))
    held.stored(2 * BLOCK)
    attributes = fs.getattr(file.ino)
    assert (attributes.size, attributes.mode & 0o6000) == (2 * BLOCK, 0)

"""Lease requests: what is filled before an answer, and which requests are refused."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from lease_rig import (
    EXTEND,
    FAR,
    FILL,
    KERNEL,
    MAP,
    MEMORY,
    NOTHING,
    RENEW,
    ROOM,
    STORE,
    WRITE,
    Client,
    SharedPool,
    another,
    check,
    client,
    fill_up,
    free_blocks,
    kinds,
    make,
    recorded,
    sparse,
    token,
    truncate,
)
from range_rig import check_credits, refused, set_flag
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL, EXT4_SYNC_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import requests
from daxfs.fs.grants.requests import MAX_ALL_HOLDERS, MAX_HOLDERS
from daxfs.fs.types import Caller, LeaseRequest, Options, SetAttributes
from daxfs.pmem.memory import MemoryPool
from daxfs.protocol import Flag
from support import fsck, mke2fs

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


def test_holes_are_filled(fs: FileSystem) -> None:
    held = sparse(fs)
    old = held.ask()
    assert held.ask(0, FAR, WRITE).pieces == old.pieces
    assert held.current
    answer = held.ask(0, FAR, STORE)
    assert answer.made
    assert not [piece for piece in answer.pieces if piece.kind != MEMORY]
    assert old.epoch != answer.epoch
    again = held.ask(0, FAR, STORE)
    assert (again.pieces, again.made, again.epoch) == (answer.pieces, False, answer.epoch)
    expected = b"a" * 2 * BLOCK + bytes(3 * BLOCK) + b"b" * 2000
    assert bytes(fs.read(held.file, 0, FAR)) == expected
    held.store(3 * BLOCK - 2, b"across")
    assert bytes(fs.read(held.file, 3 * BLOCK - 2, 6)) == b"across"
    check(fs, [held])


def dirty_pool(open_fs: OpenFs, *options: str, size: str = "16M") -> FileSystem:
    """Return a pool whose free blocks hold old bytes."""
    fs = open_fs(*options, size=size)
    junk = make(fs, b"junk")
    with refused(errno.ENOSPC):
        while True:
            fs.write(junk, fs.getattr(junk.ino).size, b"j" * (1 << 20))
    fs.release(junk)
    fs.unlink(ROOT_INO, b"junk")
    fs.sync()
    return fs


@pytest.mark.parametrize("size", [1, 100, 1024, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
@pytest.mark.parametrize("block_size", ["1024", "4096"])
@pytest.mark.parametrize("before", ["hole", "unwritten", "written"])
def test_old_bytes_never_show(open_fs: OpenFs, size: int, block_size: str, before: str) -> None:
    """Old bytes show neither in what was filled nor past EOF, where the file is then extended."""
    fs = dirty_pool(open_fs, "-b", block_size)
    held = client(fs)
    if before == "hole":
        truncate(fs, held.file.ino, size)
    elif before == "unwritten":
        fs.fallocate(held.file, 0, 0, size)
    else:
        fs.write(held.file, 0, bytes(size))
    held.ask(0, 5 * BLOCK, STORE | EXTEND)
    assert held.place(5 * BLOCK - 1) is not None
    held.stored(4 * BLOCK)
    assert bytes(fs.read(held.file, 0, FAR)) == bytes(4 * BLOCK)
    held.close()
    truncate(fs, held.file.ino, 20 * BLOCK)
    assert fs.tree.read_bytes("f") == bytes(20 * BLOCK)


def test_one_grows_at_a_time(fs: FileSystem) -> None:
    held, other = (one := client(fs, content=b"x" * BLOCK)), another(one, 2)
    held.ask(0, 4 * BLOCK, STORE | EXTEND)
    other.ask()
    with refused(errno.EAGAIN):
        other.ask(0, 4 * BLOCK, STORE | EXTEND)
    with refused(errno.EAGAIN):
        other.stored(2 * BLOCK)
    held.store(BLOCK, b"staged")
    held.ask(0, BLOCK, RENEW)
    other.ask(0, 4 * BLOCK, STORE | EXTEND)
    other.stored(3 * BLOCK)
    assert bytes(fs.read(other.file, BLOCK, FAR)) == bytes(2 * BLOCK)


@pytest.mark.parametrize("flags", [WRITE, STORE, STORE | EXTEND, MAP, NOTHING], ids=repr)
def test_answers_are_committed(tmp_path: Path, flags: Flag) -> None:
    """A power cut right after an answer finds the file as the answer describes it, and zeros where it was filled."""
    fs = recorded(tmp_path / "pool")
    pool = fs.volume.pool
    assert isinstance(pool, SharedPool)
    held = sparse(fs)
    check_credits(fs)
    answer = held.ask(0, 8 * BLOCK, flags)
    for left in pool.crash_images(random.Random(1), start=len(pool.events)):
        with FileSystem.open(MemoryPool(bytearray(left.image)), QUIET) as again:
            ino = again.lookup(ROOT_INO, b"f").ino
            mapped = {run.lblk + at: run.pblk + at for run in again.describe(ino) for at in range(run.length)}
            for piece in answer.pieces:
                for at in range(0, piece.length if piece.kind == MEMORY else 0, BLOCK):
                    assert mapped[piece.offset + at >> 12] == piece.pool_offset + at >> 12
            assert again.tree.read_bytes("f") == b"a" * 2 * BLOCK + bytes(3 * BLOCK) + b"b" * 2000


def test_ranges_that_are_none(fs: FileSystem) -> None:
    held = client(fs, content=b"x")
    for offset, length, flags in (
        (-1, 5, NOTHING),
        (0, -1, NOTHING),
        (0, 0, NOTHING),
        (0, 0, WRITE),
        (1 << 62, 1, NOTHING),
        (0, 5, FILL),
        (0, 5, EXTEND),
        (0, 5, WRITE | EXTEND),
        (0, 5, FILL | EXTEND),
    ):
        with refused(errno.EINVAL):
            held.ask(offset, length, flags)
    with refused(errno.EFBIG):
        held.ask(1 << 60, 5, STORE | EXTEND)
    assert held.file.node.grants is None


def test_rights(fs: FileSystem) -> None:
    ino = make(fs, b"f", b"x").ino
    reader = Client(fs, fs.open_file(ino, os.O_RDONLY))
    writer = Client(fs, fs.open_file(ino, os.O_WRONLY))
    assert reader.ask().pieces
    assert writer.ask(flags=WRITE).pieces
    with refused(errno.EBADF):
        reader.ask(flags=WRITE)
    with refused(errno.EBADF):
        writer.ask()


def test_a_directory(fs: FileSystem) -> None:
    with refused(errno.EOPNOTSUPP):
        Client(fs, fs.open_file(ROOT_INO)).ask()


def test_no_dax(open_fs: OpenFs) -> None:
    fs = open_fs(mount=Options(dax="never"))
    with refused(errno.EOPNOTSUPP):
        client(fs, content=b"x").ask()


@pytest.mark.parametrize(
    ("flag", "number"),
    [(EXT4_IMMUTABLE_FL, errno.EPERM), (EXT4_APPEND_FL, errno.EOPNOTSUPP), (EXT4_SYNC_FL, errno.EOPNOTSUPP)],
)
def test_flags_of_the_file(fs: FileSystem, flag: int, number: int) -> None:
    held = client(fs, content=b"x" * 10)
    held.ask(flags=STORE)
    set_flag(fs, held.file.ino, flag)
    assert not held.current
    with refused(number):
        held.ask(flags=STORE | RENEW)
    assert held.ask(flags=RENEW).pieces


def test_set_id_bits(fs: FileSystem) -> None:
    """A lease for storing drops set-id bits. The superuser's request is refused instead: its writes keep the bits."""
    somebody = Caller(1000, 1000)
    file, made = fs.create(ROOT_INO, b"f", 0o755, os.O_RDWR, somebody)
    fs.write(file, 0, b"x")
    fs.setattr(made.ino, SetAttributes(mode=0o6755))
    fs.setxattr(made.ino, b"security.capability", b"\1\0\0\2" + bytes(16))
    with refused(errno.EOPNOTSUPP):
        another(Client(fs, file)).ask(flags=WRITE)
    assert fs.getattr(made.ino).mode & 0o7777 == 0o6755
    held = Client(fs, file)
    assert held.ask(flags=WRITE).pieces
    assert fs.getattr(made.ino).mode & 0o7777 == 0o755
    assert b"security.capability" not in fs.listxattr(made.ino)
    fs.setattr(made.ino, SetAttributes(mode=0o4755))
    assert not held.current


def test_reading_only(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="16M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("f", b"content")
    with FileSystem.open(path, Options(read_only=True)) as fs:
        held = Client(fs, fs.open_file(fs.tree.resolve("f")))
        answer = held.ask()
        assert (answer.entry, answer.size) == (0, 7)
        assert kinds(held.ask(0, 8192, MAP).pieces)[-1][0] == KERNEL
        held.close()
    fsck(path)


def test_after_an_abort(tmp_path: Path) -> None:
    """Clients that may store must ask again and are refused; clients that read go on; a close does nothing."""
    fs = recorded(tmp_path / "pool")
    held = client(fs, content=b"x" * 9000)
    held.ask(flags=STORE)
    truncate(fs, held.file.ino, 100)
    held.ask(flags=STORE)
    fs.abort(RuntimeError("for the test"))
    assert not held.current
    with refused(errno.EROFS):
        held.ask(flags=STORE)
    with refused(errno.EROFS):
        held.stored()
    assert held.ask().pieces
    held.close()
    assert not fs.volume.nodes.open


def test_too_many_holders(fs: FileSystem) -> None:
    held = client(fs, content=b"x")
    for number in range(MAX_HOLDERS):
        fs.lease(held.file, LeaseRequest(number, 0, 1, NOTHING, ROOM, token(fs)))
    with refused(errno.EAGAIN):
        fs.lease(held.file, LeaseRequest(MAX_HOLDERS, 0, 1, NOTHING, ROOM, token(fs)))
    assert held.ask().pieces
    held.renew()
    assert fs.lease(held.file, LeaseRequest(MAX_HOLDERS, 0, 1, NOTHING, ROOM, token(fs))).pieces


def test_too_many_holders_of_one_file(fs: FileSystem) -> None:
    held = [client(fs, content=b"x")]
    held += [another(held[0]) for _ in range(MAX_ALL_HOLDERS // MAX_HOLDERS)]
    for one in held[:-1]:
        for number in range(MAX_HOLDERS):
            fs.lease(one.file, LeaseRequest(number, 0, 1, NOTHING, ROOM, token(fs)))
    for flags in (NOTHING, STORE | EXTEND):
        with refused(errno.EAGAIN):
            held[-1].ask(flags=flags, length=BLOCK)
    with refused(errno.EINVAL):
        held[-1].stored()
    held[0].close()
    assert held[-1].ask(BLOCK, BLOCK, STORE | EXTEND).pieces


def test_a_full_pool(open_fs: OpenFs) -> None:
    """A range that can't be filled as a whole stays as it is, and earlier answers stay true."""
    fs = open_fs(size="16M")
    held = client(fs)
    truncate(fs, held.file.ino, 100 * BLOCK)
    reader = another(held, 2)
    reader.ask()
    fill_up(fs, 50)
    free = free_blocks(fs)
    with refused(errno.ENOSPC):
        held.ask(0, 100 * BLOCK, STORE)
    assert free_blocks(fs) == free
    assert held.ask(0, 40 * BLOCK, STORE).made
    held.store(0, b"there")
    assert not reader.current
    check(fs, [held, reader])


@pytest.mark.interpreted
def test_a_fill_that_fails_midway(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = open_fs(size="16M")
    held = client(fs)
    truncate(fs, held.file.ino, 4000 * BLOCK)
    reader = another(held, 2)
    reader.ask(0, 4000 * BLOCK)
    fill_up(fs, 50)
    monkeypatch.setattr("daxfs.structures.blocks.free_blocks", lambda _: 1 << 30)
    with refused(errno.ENOSPC):
        held.ask(0, 4000 * BLOCK, STORE)
    check(fs, [reader])
    monkeypatch.undo()
    if fs.describe(held.file.ino):
        assert not reader.current


def test_large_requests_come_in_parts(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_FILLED", 10 * BLOCK)
    fs = open_fs(size="16M")
    held = client(fs)
    truncate(fs, held.file.ino, 35 * BLOCK)
    answer = held.ask(100, FAR, STORE)
    assert answer.next == 10 * BLOCK
    assert held.ask_all(0, 35 * BLOCK, STORE)
    assert len(fs.describe(held.file.ino)) >= 1
    assert sum(run.length for run in fs.describe(held.file.ino)) == 35


def test_every_format(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    """Fill, store, cut, extend and close."""
    fs = dirty_pool(open_fs, *any_format, "-J", "size=4") if "^has_journal" not in any_format else open_fs(*any_format)
    check_credits(fs)
    size = fs.volume.block_size
    held, other = (one := client(fs)), another(one, 2)
    fs.write(held.file, 3 * size, b"x" * 300 * size)
    fs.write(held.file, 500 * size, b"end")
    held.ask_all(0, 501 * size, WRITE)
    held.ask_all(0, 501 * size, STORE)
    other.ask_all(0, 501 * size)
    content = random.Random(2).randbytes(400 * size)
    held.store(50 * size + 7, content)
    assert bytes(fs.read(held.file, 50 * size + 7, len(content))) == content
    check(fs, [held, other])
    if "^extent,^64bit" in any_format:
        with refused(errno.EOPNOTSUPP):
            held.ask(0, 600 * size, STORE | EXTEND)
    else:
        held.ask(500 * size, 100 * size, STORE | EXTEND)
        held.store(500 * size + 3, b"grown" * size)
        held.stored(505 * size + 3)
        assert bytes(fs.read(held.file, 500 * size, FAR)) == b"end" + b"grown" * size
    for cut in (450 * size + 1, 100 * size, 0):
        truncate(fs, held.file.ino, cut)
        check(fs, [held, other])
    empty = free_blocks(fs)
    held.close()
    other.close()
    assert free_blocks(fs) >= empty + 450


def test_a_request_that_is_refused_changes_nothing(fs: FileSystem) -> None:
    held = sparse(fs)
    held.ask(flags=STORE)
    content = bytes(fs.read(held.file, 0, FAR))
    for flags in (FILL, EXTEND, WRITE | EXTEND):
        with pytest.raises(FsError):
            held.ask(flags=flags)
    assert bytes(fs.read(held.file, 0, FAR)) == content
    assert held.current


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

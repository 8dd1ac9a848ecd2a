"""What clients of direct mapping are told, what they may do with it, and what is refused."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from lease_rig import (
    FAR,
    FILL,
    GROW,
    HOLE,
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
    free_blocks,
    make,
    slot,
    token,
    truncate,
)
from range_rig import COLLAPSE, KEEP_SIZE, PUNCH, ZERO, check_credits, refused, set_flag
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL, EXT4_SYNC_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import requests
from daxfs.fs.grants.inode_grants import MAX_KERNEL
from daxfs.fs.grants.requests import MAX_ALL_HOLDERS, MAX_HOLDERS
from daxfs.fs.types import Caller, LeaseRequest, Options, Piece, SetAttributes, Stored
from daxfs.pmem.memory import MemoryPool
from daxfs.protocol import Flag
from support import fsck, mke2fs, wait_a_tick

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


def kinds(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    """(kind, offset, length) of each piece."""
    return [(piece.kind, piece.offset, piece.length) for piece in pieces]


def sparse(fs: FileSystem) -> Client:
    """Blocks 0 and 1 written, 2 a hole, 3 unwritten, 4 a hole, 5 written up to its middle."""
    held = client(fs, content=b"a" * 2 * BLOCK)
    fs.fallocate(held.file, 0, 3 * BLOCK, BLOCK)
    fs.write(held.file, 5 * BLOCK, b"b" * 2000)
    return held


# What an answer says


def test_memory_and_holes(fs: FileSystem) -> None:
    held = sparse(fs)
    answer = held.ask()
    assert kinds(answer.pieces) == [(MEMORY, 0, 2 * BLOCK), (HOLE, 2 * BLOCK, 3 * BLOCK), (MEMORY, 5 * BLOCK, BLOCK)]
    assert (answer.next, answer.size, answer.made) == (6 * BLOCK, 5 * BLOCK + 2000, False)
    for piece in answer.pieces:
        if piece.kind == MEMORY:
            mine = bytes(fs.volume.pool.memory[piece.pool_offset : piece.pool_offset + 2000])
            assert mine == bytes(fs.read(held.file, piece.offset, 2000))
    check(fs, [held])


def test_a_part(fs: FileSystem) -> None:
    held = sparse(fs)
    whole = held.ask().pieces[0]
    answer = held.ask(100, 2 * BLOCK)
    assert answer.pieces == [
        Piece(100, whole.pool_offset + 100, 2 * BLOCK - 100, MEMORY),
        Piece(2 * BLOCK, 0, 100, HOLE),
    ]
    assert answer.next == 100 + 2 * BLOCK


def test_the_slot(fs: FileSystem) -> None:
    held = sparse(fs)
    answer = held.ask()
    assert slot(fs, answer.entry) == (answer.epoch, answer.size, held.file.ino)
    fs.write(held.file, answer.size, b"more")
    assert slot(fs, answer.entry) == (answer.epoch, answer.size + 4, held.file.ino)
    other = client(fs, b"g", b"x").ask()
    assert other.entry != answer.entry
    assert other.epoch != answer.epoch


def test_behind_the_end(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    assert held.ask(BLOCK, 5).pieces == []
    assert held.ask(0, FAR).next == BLOCK
    empty = client(fs, b"g")
    for flags in (NOTHING, WRITE, STORE):
        answer = empty.ask(0, FAR, flags)
        assert (answer.pieces, answer.size, answer.next) == ([], 0, 0)
    assert kinds(empty.ask(0, 2 * BLOCK, MAP).pieces) == [(KERNEL, 0, 2 * BLOCK)]


def test_little_room(fs: FileSystem) -> None:
    held = sparse(fs)
    assert held.ask(room=0).next == 0
    answer = held.ask(room=2)
    assert (len(answer.pieces), answer.next) == (2, 5 * BLOCK)
    rest = held.ask(answer.next)
    assert kinds(answer.pieces + rest.pieces) == kinds(held.ask().pieces)


def test_a_scattered_file(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """In more pieces than a file may have in DRAM."""
    for module in ("data", "nodes"):
        monkeypatch.setattr(f"daxfs.fs.{module}.MAX_RUNS", 20)
    held = client(fs)
    truncate(fs, held.file.ino, 400 * BLOCK)
    for block in range(0, 400, 2):
        fs.write(held.file, block * BLOCK, b"%d" % block)
    assert held.file.node.scattered
    pieces = held.ask_all(0, 400 * BLOCK, WRITE, 7)
    assert [piece.kind for piece in pieces] == [MEMORY, HOLE] * 200
    check(fs, [held])
    held.ask_all(0, 400 * BLOCK, STORE)
    assert {piece.kind for piece in held.ask_all(0, 400 * BLOCK)} == {MEMORY}
    held.store(399 * BLOCK, b"end")
    assert bytes(fs.read(held.file, 399 * BLOCK, 3)) == b"end"
    check(fs, [held])
    truncate(fs, held.file.ino, 0)
    check(fs, [held])


def test_an_answer_ends(fs: FileSystem) -> None:
    """What makes an answer wrong begins an epoch, what does not leaves it."""
    held = sparse(fs)
    bystander = client(fs, b"g", b"x" * BLOCK)
    bystander.ask()

    def still_holds(action: Callable[[], object]) -> bool:
        held.ask(flags=RENEW)
        action()
        check(fs, [held, bystander])
        assert bystander.current
        return bool(held.current)

    ino, size = held.file.ino, 5 * BLOCK + 2000
    assert still_holds(lambda: fs.write(held.file, 0, b"z" * 5000))
    assert still_holds(lambda: fs.write(held.file, size, b"z" * 5000))
    assert still_holds(lambda: truncate(fs, ino, 10 * BLOCK))
    assert still_holds(lambda: fs.fallocate(held.file, ZERO, BLOCK, BLOCK))
    assert still_holds(lambda: fs.setattr(ino, SetAttributes(mode=0o600)))
    assert still_holds(fs.sync)
    assert not still_holds(lambda: fs.write(held.file, 4 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.write(held.file, 3 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.fallocate(held.file, PUNCH, BLOCK, BLOCK))
    assert not still_holds(lambda: fs.fallocate(held.file, COLLAPSE, 0, BLOCK))
    assert not still_holds(lambda: truncate(fs, ino, 5))


def test_a_hole_in_the_last_block(fs: FileSystem) -> None:
    held = client(fs)
    truncate(fs, held.file.ino, 100)
    held.ask()
    fs.write(held.file, 100, b"appended")
    check(fs, [held])
    assert not held.current


def test_mapped_through_the_kernel(fs: FileSystem) -> None:
    held = sparse(fs)
    reader = another(held)
    reader.ask()
    assert kinds(held.ask(0, 8 * BLOCK, MAP).pieces) == [
        (MEMORY, 0, 2 * BLOCK),
        (KERNEL, 2 * BLOCK, 3 * BLOCK),
        (MEMORY, 5 * BLOCK, BLOCK),
        (KERNEL, 6 * BLOCK, 2 * BLOCK),
    ]
    assert not reader.current
    fs.write(held.file, 3 * BLOCK, b"filled" * 1000)
    truncate(fs, held.file.ino, 8 * BLOCK)
    answer = reader.ask(flags=RENEW)
    assert [piece.kind for piece in answer.pieces] == [MEMORY, KERNEL, MEMORY, KERNEL]
    held.close()
    assert not reader.current
    assert [piece.kind for piece in reader.ask(flags=RENEW).pieces] == [MEMORY, HOLE, MEMORY, HOLE]
    check(fs, [reader])


def test_mapping_with_holes_filled(fs: FileSystem) -> None:
    held = sparse(fs)
    answer = held.ask(0, 8 * BLOCK, MAP | STORE)
    assert [piece.kind for piece in answer.pieces][-1] == KERNEL
    assert sum(piece.length for piece in answer.pieces if piece.kind == MEMORY) == 6 * BLOCK
    assert answer.made


@pytest.mark.parametrize("shift", [0, 1])
def test_pages_of_small_blocks(open_fs: OpenFs, shift: int) -> None:
    """A page that is not one piece of memory, and at the same place in a page of the pool, can't be mapped from it."""
    fs = open_fs("-b", "1024")
    filler = make(fs, b"filler")
    held = client(fs)
    for pages in range(8):
        fs.write(filler, pages * 5000, b"f" * 1024 * (1 + shift))
        fs.write(held.file, pages * 4096, b"x" * 4096)
    fs.fallocate(held.file, PUNCH, 9 * 1024, 1024)
    for piece in held.ask(0, 16 * 4096, MAP).pieces:
        assert not piece.offset % 4096
        assert not piece.length % 4096
        assert not piece.pool_offset % 4096
    assert [piece.kind for piece in held.ask(8192, 4096).pieces] == [KERNEL]
    check(fs, [held])


# Storing


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
    """Free blocks hold old bytes."""
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
    """Neither in what was filled, nor behind the end, where the file then grows."""
    fs = dirty_pool(open_fs, "-b", block_size)
    held = client(fs)
    if before == "hole":
        truncate(fs, held.file.ino, size)
    elif before == "unwritten":
        fs.fallocate(held.file, 0, 0, size)
    else:
        fs.write(held.file, 0, bytes(size))
    held.ask(0, 5 * BLOCK, STORE | GROW)
    assert held.place(5 * BLOCK - 1) is not None
    held.stored(4 * BLOCK)
    assert bytes(fs.read(held.file, 0, FAR)) == bytes(4 * BLOCK)
    held.close()
    truncate(fs, held.file.ino, 20 * BLOCK)
    assert fs.tree.read_bytes("f") == bytes(20 * BLOCK)


def test_growing(fs: FileSystem) -> None:
    """What was stored behind the end is in the file when that is told, and nothing is zeroed twice."""
    held = client(fs, content=b"x" * 100)
    held.ask(0, 100, STORE)
    content = random.Random(1).randbytes(10 * BLOCK)
    held.ask(0, 10 * BLOCK, STORE | GROW)
    held.store(100, content[100:])
    for at in (100, 5 * BLOCK):
        held.ask(at, 10 * BLOCK - at, STORE | GROW)
    assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100
    for size in (150, BLOCK, BLOCK + 1, 7 * BLOCK - 5):
        held.stored(size)
        assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100 + content[100:size]
        assert slot(fs, held.answers[-1].entry).size == size
        check(fs, [held])
        held.ask(0, 10 * BLOCK, STORE | GROW)
    held.stored(10 * BLOCK)
    assert bytes(fs.read(held.file, 0, FAR)) == b"x" * 100 + content[100:]
    assert held.current
    check(fs, [held])


def test_one_grows_at_a_time(fs: FileSystem) -> None:
    held, other = (one := client(fs, content=b"x" * BLOCK)), another(one, 2)
    held.ask(0, 4 * BLOCK, STORE | GROW)
    other.ask()
    with refused(errno.EAGAIN):
        other.ask(0, 4 * BLOCK, STORE | GROW)
    with refused(errno.EAGAIN):
        other.stored(2 * BLOCK)
    held.store(BLOCK, b"staged")
    held.ask(0, BLOCK, RENEW)
    other.ask(0, 4 * BLOCK, STORE | GROW)
    other.stored(3 * BLOCK)
    assert bytes(fs.read(other.file, BLOCK, FAR)) == bytes(2 * BLOCK)


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
def test_growth_ends_when_others_move_the_end(fs: FileSystem, name: str) -> None:
    held = client(fs, content=b"x" * BLOCK)
    before = held.ask(0, 8 * BLOCK, STORE | GROW)
    held.store(BLOCK, b"staged" * 2000)
    others_grow()[name](fs, held)
    assert slot(fs, before.entry).epoch != before.epoch
    size = fs.getattr(held.file.ino).size
    with refused(errno.EAGAIN):
        fs.stored(held.file, Stored(BLOCK + 12_000, base=BLOCK))
    check(fs, [held])
    assert b"staged" not in bytes(fs.read(held.file, 0, FAR))
    truncate(fs, held.file.ino, size + 8 * BLOCK)
    assert b"staged" not in bytes(fs.read(held.file, 0, FAR))


def test_zeroing_behind_the_end(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    held.ask(0, 4 * BLOCK, STORE | GROW)
    held.store(100, b"q" * 3 * BLOCK)
    fs.fallocate(held.file, ZERO | KEEP_SIZE, 2 * BLOCK, BLOCK)
    held.stored(100 + 3 * BLOCK)
    expected = b"x" * 100 + b"q" * (2 * BLOCK - 100) + bytes(BLOCK) + b"q" * 100
    assert bytes(fs.read(held.file, 0, FAR)) == expected


def test_what_was_grown_and_not_told_goes(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    held.ask(0, 100, STORE)
    before = free_blocks(fs)
    held.ask(0, 50 * BLOCK, STORE | GROW)
    assert free_blocks(fs) == before - 49
    held.store(100, b"staged")
    held.close()
    assert free_blocks(fs) >= before
    assert fs.tree.read_bytes("f") == b"x" * 100


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
    held.ask(0, 2 * BLOCK, STORE | GROW)
    with refused(errno.EFBIG):
        held.stored(1 << 60)
    held.renew()
    with refused(errno.EINVAL):
        held.stored()


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


def test_slots_are_used_again(fs: FileSystem) -> None:
    held = [client(fs, b"f%d" % number, b"x") for number in range(100)]
    slots = [one.ask().entry for one in held]
    assert len(set(slots)) == 100
    assert len({address // BLOCK for address in slots}) == 2
    for one in held:
        one.close()
    assert {client(fs, b"g%d" % number, b"x").ask().entry for number in range(100)} == set(slots)


# Durability


def recorded(path: Path, *options: str) -> FileSystem:
    image = mke2fs(path, "-b", "4096", "-N", "64", "-J", "size=4", *options, size="10M").read_bytes()
    return FileSystem.open(SharedPool(image), QUIET)


@pytest.mark.parametrize("flags", [WRITE, STORE, STORE | GROW, MAP, NOTHING], ids=repr)
def test_answers_are_committed(tmp_path: Path, flags: Flag) -> None:
    """A power cut right after an answer finds the file as it was told, and zeros where it was filled."""
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


def test_stores_are_durable_when_told_so(tmp_path: Path) -> None:
    fs = recorded(tmp_path / "pool")
    pool = fs.volume.pool
    assert isinstance(pool, SharedPool)
    held = client(fs, content=b"x" * 100)
    held.ask(0, 4 * BLOCK, STORE | GROW)
    content = random.Random(1).randbytes(9000)
    held.store(50, content)
    held.stored(9050, durable=True)
    mtime = fs.getattr(held.file.ino).mtime_ns
    for left in pool.crash_images(random.Random(1), start=len(pool.events)):
        with FileSystem.open(MemoryPool(bytearray(left.image)), QUIET) as again:
            assert again.tree.read_bytes("f") == b"x" * 50 + content
            assert again.lookup(ROOT_INO, b"f").mtime_ns == mtime


# Refusals


def test_ranges_that_are_none(fs: FileSystem) -> None:
    held = client(fs, content=b"x")
    for offset, length, flags in (
        (-1, 5, NOTHING),
        (0, -1, NOTHING),
        (0, 0, NOTHING),
        (0, 0, WRITE),
        (1 << 62, 1, NOTHING),
        (0, 5, FILL),
        (0, 5, GROW),
        (0, 5, WRITE | GROW),
        (0, 5, FILL | GROW),
    ):
        with refused(errno.EINVAL):
            held.ask(offset, length, flags)
    with refused(errno.EFBIG):
        held.ask(1 << 60, 5, STORE | GROW)
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
    """They go when somebody may store, but for the superuser's, whose stores are writes then."""
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
    """Who may store must ask again, and is refused; who reads goes on; closing does nothing."""
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
    for flags in (NOTHING, STORE | GROW):
        with refused(errno.EAGAIN):
            held[-1].ask(flags=flags, length=BLOCK)
    with refused(errno.EINVAL):
        held[-1].stored()
    held[0].close()
    assert held[-1].ask(BLOCK, BLOCK, STORE | GROW).pieces


def test_many_ranges_through_the_kernel(fs: FileSystem) -> None:
    """Those of one holder become one when there are too many; what everybody is told is cut out of all of them."""
    held = client(fs)
    truncate(fs, held.file.ino, 4 * MAX_KERNEL * BLOCK)
    second = another(held, 2)
    for number in range(MAX_KERNEL):
        held.ask(2 * number * BLOCK, BLOCK, MAP, keep=False)
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [
        (kind, number * BLOCK, BLOCK) for number, kind in enumerate([KERNEL, HOLE, KERNEL, HOLE])
    ]
    second.ask(BLOCK, BLOCK, MAP, keep=False)
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [(KERNEL, 0, 3 * BLOCK), (HOLE, 3 * BLOCK, BLOCK)]
    held.ask(2 * MAX_KERNEL * BLOCK, BLOCK, MAP, keep=False)
    whole = kinds(second.ask(0, 4 * MAX_KERNEL * BLOCK).pieces)
    assert whole[0] == (KERNEL, 0, (2 * MAX_KERNEL + 1) * BLOCK)
    assert len(whole) == 2
    held.renew()
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [
        (HOLE, 0, BLOCK),
        (KERNEL, BLOCK, BLOCK),
        (HOLE, 2 * BLOCK, 2 * BLOCK),
    ]


def test_set_id_bits_go_when_what_was_appended_is_told(fs: FileSystem) -> None:
    """They came after the memory behind the end was given, and while the client may still store there."""
    file = make(fs, b"f", b"x" * BLOCK)
    held = Client(fs, fs.open_file(file.ino, os.O_RDWR, Caller(1000, 1000)))
    held.ask(BLOCK, BLOCK, STORE | GROW)
    fs.setattr(file.ino, SetAttributes(mode=0o6755))
    held.stored(2 * BLOCK)
    attributes = fs.getattr(file.ino)
    assert (attributes.size, attributes.mode & 0o6000) == (2 * BLOCK, 0)


# Full pools, other formats


def fill_up(fs: FileSystem, spare: int) -> None:
    """Leave so many blocks."""
    size = fs.volume.block_size
    eater = make(fs, b"eater")
    with refused(errno.ENOSPC):
        while True:
            fs.write(eater, fs.getattr(eater.ino).size, bytes(1 << 20))
    truncate(fs, eater.ino, fs.getattr(eater.ino).size // size * size - spare * size)
    fs.release(eater)
    fs.sync()


def test_a_full_pool(open_fs: OpenFs) -> None:
    """What can't be filled as a whole stays as it is, and nobody misses what was told."""
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


def test_no_room_for_the_board(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    held = client(fs, content=b"x")
    fill_up(fs, 0)
    assert fs.statfs().available == 0
    with refused(errno.ENOSPC):
        held.ask()
    assert held.file.node.grants is None
    assert bytes(fs.read(held.file, 0, 5)) == b"x"


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
    """Fill, store, cut, grow and close."""
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
            held.ask(0, 600 * size, STORE | GROW)
    else:
        held.ask(500 * size, 100 * size, STORE | GROW)
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
    for flags in (FILL, GROW, WRITE | GROW):
        with pytest.raises(FsError):
            held.ask(flags=flags)
    assert bytes(fs.read(held.file, 0, FAR)) == content
    assert held.current

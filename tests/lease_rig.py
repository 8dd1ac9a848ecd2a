"""Clients of direct access without a mount: what each was granted, and who owns those blocks of the pool now.

A `Client` sends requests as a process does, and remembers every block that it may touch until it renews or its file is
closed. `check` is the oracle: it walks the maps of all inodes and the bitmaps, and does not use the daemon's own
records of grants.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pointer_map
from range_rig import COLLAPSE, INSERT, KEEP_SIZE, PUNCH, ZERO, refused
from recorder import RecordingPool
from tree_rig import QUIET

from daxfs.ext4.inode import EXT4_EXTENTS_FL
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.removal import holds_blocks
from daxfs.fs.types import Grant, LeaseRequest, SetAttributes, WriteNotification
from daxfs.protocol import EXTENTS, Flag, GrantedExtent, Kind
from daxfs.structures import blocks, extent_tree, inode_bitmaps, inodes, mapping
from support import mke2fs

WRITE, FILL, EXTEND, MAP, RENEW, PAGES = Flag.WRITE, Flag.FILL, Flag.EXTEND, Flag.MAP, Flag.RENEW, Flag.PAGES
STORE = WRITE | FILL
NOTHING = Flag(0)
HOLE, MEMORY, KERNEL = Kind.HOLE, Kind.MEMORY, Kind.KERNEL
ROOM = EXTENTS
FAR = 1 << 40
BLOCK = 4096


class SharedPool(RecordingPool):
    """A recorded pool that others may map: ``ours``, clients of this mount, or ``stale_clients``, of an earlier one."""

    ours = False
    stale_clients = False

    def mapped_elsewhere(self, but: int | None = None) -> bool:
        return self.stale_clients or (self.ours and but is None)


class Entry(NamedTuple):
    """The words of a file's status entry."""

    epoch: int
    size: int
    ino: int


def entry_of(fs: FileSystem, offset: int) -> Entry:
    """Return a status entry as a client loads it."""
    return Entry(*struct.unpack_from("=QQQ", fs.volume.pool.memory, offset))


def token(fs: FileSystem) -> bytes:
    """Return the token in the pool, as a client quotes it."""
    fs.grants.page.ensure()
    place = fs.grants.page.token
    return bytes(fs.volume.pool.memory[place : place + 16]) if place else b""


class Client:
    """One process with one open file.

    Attributes:
        granted: blocks of the pool that it may touch.
        answers: the answers since it renewed.
    """

    def __init__(self, fs: FileSystem, file: OpenFile, holder: int = 1) -> None:
        self.fs = fs
        self.file = file
        self.holder = holder
        self.granted: set[int] = set()
        self.answers: list[Grant] = []

    def ask(
        self, offset: int = 0, length: int = FAR, flags: Flag = NOTHING, room: int = ROOM, *, keep: bool = True
    ) -> Grant:
        """Send one request; ``keep``: remember the answer, so that `check` compares it."""
        if flags & RENEW:
            self.forget()
        answer = self.fs.lease(self.file, LeaseRequest(self.holder, offset, length, flags, room, token(self.fs)))
        bits = self.fs.volume.block_bits
        for piece in answer.pieces:
            if piece.kind == MEMORY:
                first, end = piece.pool_offset, piece.pool_offset + piece.length
                self.granted.update(range(first >> bits, (end - 1 >> bits) + 1))
        if keep and answer.pieces:
            self.answers.append(answer)
        return answer

    def ask_all(self, offset: int, length: int, flags: Flag = NOTHING, room: int = ROOM) -> list[GrantedExtent]:
        """Request all of a range, in as many requests as it takes."""
        pieces: list[GrantedExtent] = []
        position, end = offset, offset + length
        while position < end:
            answer = self.ask(position, end - position, flags, room)
            pieces += answer.pieces
            if answer.next <= position:
                break
            position = answer.next
        return pieces

    def forget(self) -> None:
        self.granted.clear()
        self.answers.clear()

    def renew(self) -> None:
        """Renew without a new request."""
        self.ask(0, 0, RENEW)

    def close(self) -> None:
        self.forget()
        self.fs.release(self.file)

    @property
    def current(self) -> list[Grant]:
        """The answers that still hold."""
        return [
            answer
            for answer in self.answers
            if not answer.entry or entry_of(self.fs, answer.entry).epoch == answer.epoch
        ]

    def place(self, offset: int) -> int | None:
        """Return where in the pool the byte lies, according to answers that hold."""
        for answer in self.current:
            for piece in answer.pieces:
                if piece.kind == MEMORY and piece.offset <= offset < piece.offset + piece.length:
                    return piece.pool_offset + offset - piece.offset
        return None

    def store(self, offset: int, content: bytes) -> None:
        """Store into granted memory, byte by byte if it is in pieces, and flush."""
        step = self.fs.volume.block_size
        at = 0
        while at < len(content):
            count = min(step - (offset + at) % step, len(content) - at)
            place = self.place(offset + at)
            assert place is not None, f"byte {offset + at} is no memory"
            self.fs.volume.pool.write(place, content[at : at + count])
            at += count

    def stored(self, size: int = 0, *, durable: bool = False) -> None:
        self.fs.notify_stored(self.file, WriteNotification(size=size, durable=durable))


def make(fs: FileSystem, name: bytes, content: bytes | None = None, flags: int = os.O_RDWR) -> OpenFile:
    """Return a new open file with some content."""
    file, _ = fs.create(ROOT_INO, name, 0o644, flags)
    if content:
        fs.write(file, 0, content)
    return file


def client(fs: FileSystem, name: bytes = b"f", content: bytes | None = None, holder: int = 1) -> Client:
    """Return a client of a new file."""
    return Client(fs, make(fs, name, content), holder)


def kinds(pieces: Iterable[GrantedExtent]) -> list[tuple[int, int, int]]:
    """Return (kind, offset, length) of each piece."""
    return [(piece.kind, piece.offset, piece.length) for piece in pieces]


def sparse(fs: FileSystem) -> Client:
    """Return a client of a file whose blocks 0 and 1 are written, 2 a hole, 3 unwritten, 4 a hole, 5 half written."""
    held = client(fs, content=b"a" * 2 * BLOCK)
    fs.fallocate(held.file, 0, 3 * BLOCK, BLOCK)
    fs.write(held.file, 5 * BLOCK, b"b" * 2000)
    return held


def fill_up(fs: FileSystem, spare: int) -> None:
    """Fill the pool with one file until only ``spare`` blocks are free."""
    size = fs.volume.block_size
    eater = make(fs, b"eater")
    with refused(errno.ENOSPC):
        while True:
            fs.write(eater, fs.getattr(eater.ino).size, bytes(1 << 20))
    truncate(fs, eater.ino, fs.getattr(eater.ino).size // size * size - spare * size)
    fs.release(eater)
    fs.sync()


def recorded(path: Path, *options: str) -> FileSystem:
    """Return a file system on a new small pool that records stores, flushes and fences."""
    image = mke2fs(path, "-b", "4096", "-N", "64", "-J", "size=4", *options, size="10M").read_bytes()
    return FileSystem.open(SharedPool(image), QUIET)


def another(old: Client, holder: int = 1, flags: int = os.O_RDWR) -> Client:
    """Return a client of the same file with an open file of its own."""
    return Client(old.fs, old.fs.open_file(old.file.ino, flags), holder)


def truncate(fs: FileSystem, ino: int, size: int) -> None:
    fs.setattr(ino, SetAttributes(size=size))


# The oracle


class Owners(NamedTuple):
    """The owners of blocks: ``data`` and ``metadata`` by inode number; ``free`` now, or at the next commit."""

    data: dict[int, int]
    metadata: dict[int, int]
    free: set[int]


def owners(fs: FileSystem) -> Owners:
    """Find the owner of every block. A block with two owners is an error."""
    volume = fs.volume
    view, geometry = volume.view, volume.geometry
    data: dict[int, int] = {}
    metadata: dict[int, int] = {}
    for ino in (ROOT_INO, *range(geometry.first_ino, geometry.inodes_count + 1)):
        if not inode_bitmaps.in_use(view, ino):
            continue
        inode = inodes.read(view, ino)
        if inode.file_acl:
            metadata[inode.file_acl] = ino
        if not holds_blocks(inode):
            continue
        for run in mapping.walk(view, inode):
            for block in range(run.pblk, run.pblk + run.length):
                assert block not in data, f"block {block} belongs to inodes {data[block]} and {ino}"
                data[block] = ino
        for block in index_blocks(fs, inode):
            metadata[block] = ino
    assert not data.keys() & metadata.keys()
    free = set()
    for group in range(geometry.groups_count):
        for start, count in blocks.free_runs(view, group, 1):
            free.update(range(start, start + count))
    if volume.was_writable:
        for start, count in volume.journal._transaction.frees:
            free.update(range(start, start + count))
    assert not free & data.keys(), "blocks of files are free"
    return Owners(data, metadata, free)


def index_blocks(fs: FileSystem, inode: inodes.Inode) -> set[int]:
    """Return the blocks of the inode's map itself."""
    view = fs.volume.view
    found: set[int] = set()
    if inode.flags & EXT4_EXTENTS_FL:
        position = 0
        while position < extent_tree.MAX_BLOCKS:
            path, position = extent_tree.descend(view, inode, position)
            found.update(step.number for step in path[1:])
    else:
        found.update(pointer_map.index_blocks(view, inode))
    return found


def check(fs: FileSystem, clients: Iterable[Client], ghosts: Iterable[tuple[int, set[int]]] = ()) -> None:
    """Check that no block that a client may touch has another owner, and that answers that hold are true.

    ``ghosts``: (inode, blocks) of clients of an earlier mount that still map the pool.
    """
    found = owners(fs)
    fs.check()
    keepers = fs.volume.lives.nameless - {fs.grants.page.ino}
    for holder in clients:
        expect_owned(found, holder.granted, holder.file.ino, keepers)
        for answer in holder.current:
            expect_true(fs, holder, answer)
    for ino, touchable in ghosts:
        expect_owned(found, touchable, ino, keepers)


def expect_owned(found: Owners, touchable: set[int], ino: int, keepers: set[int]) -> None:
    """Check that the blocks belong to the file or to a quarantine inode."""
    for block in touchable:
        owner = found.data.get(block)
        where = f"block {block}, granted of inode {ino}"
        assert block not in found.free, f"{where}, is free"
        assert block not in found.metadata, f"{where}, is metadata of inode {found.metadata[block]}"
        assert owner == ino or owner in keepers, f"{where}, belongs to inode {owner}"


def expect_true(fs: FileSystem, holder: Client, answer: Grant) -> None:
    """Check an answer whose epoch runs: where the file lies, and what reads as zeros."""
    if answer.entry:
        now = entry_of(fs, answer.entry)
        assert (now.size, now.ino) == (fs.getattr(holder.file.ino).size, holder.file.ino)
    bits = fs.volume.block_bits
    runs = fs.describe(holder.file.ino)
    mapped = {run.lblk + at: (run.pblk + at, run.unwritten) for run in runs for at in range(run.length)}
    size = fs.getattr(holder.file.ino).size
    for piece in answer.pieces:
        end = piece.offset + piece.length
        if piece.kind == HOLE:
            end = min(end, size)
        for lblk in range(piece.offset >> bits, (end - 1 >> bits) + 1) if piece.offset < end else ():
            at = mapped.get(lblk)
            if piece.kind == MEMORY:
                place = piece.pool_offset - piece.offset + (lblk << bits) >> bits
                assert at is not None, f"{piece}: block {lblk} is a hole"
                assert at[0] == place, f"{piece}: block {lblk} is at {at[0]}"
                assert not at[1] or lblk << bits >= size, f"{piece}: block {lblk} is unwritten"
            elif piece.kind == HOLE:
                assert at is None or at[1], f"{piece}: block {lblk} has memory now"


def free_blocks(fs: FileSystem) -> int:
    """Return the number of free blocks after a commit."""
    fs.sync()
    return fs.statfs().free


# Pairs of a state and an operation

BLOCKS = 40
"""Blocks that the file of the pairs has at its beginning; after a hole there are some more."""


@cache
def planted(folder: Path, name: str, options: tuple[str, ...]) -> bytes:
    """Return a small pool with these mke2fs options and the files of `plant`; it is made once, below the folder."""
    path = mke2fs(folder / name, *options, size="9M" if name == "4k" else "2500K")
    with FileSystem.open(path, QUIET) as fs:
        plant(fs)
    return path.read_bytes()


def plant(fs: FileSystem) -> None:
    """Make the file ``f`` with a hole and an unaligned end, other files, and free blocks that hold old bytes."""
    size = fs.volume.block_size
    junk = make(fs, b"junk", random.Random(1).randbytes(600 * size))
    fs.release(junk)
    fs.unlink(ROOT_INO, b"junk")
    fs.sync()
    for name, blocks_ in ((b"f", BLOCKS), (b"g", 5), (b"source", 12)):
        fs.release(make(fs, name, random.Random(blocks_).randbytes(blocks_ * size)))
    file = fs.open_file(fs.lookup(ROOT_INO, b"f").ino, os.O_RDWR)
    fs.write(file, (BLOCKS + 5) * size, random.Random(2).randbytes(3 * size + 100))
    fs.release(file)
    fs.sync()


class Pair(NamedTuple):
    """A file system with a leased file, its clients, and open files that have no lease."""

    fs: FileSystem
    clients: list[Client]
    others: list[OpenFile]

    @property
    def ino(self) -> int:
        """The inode number of the leased file."""
        return (self.clients[0].file if self.clients else self.others[0]).ino

    @property
    def block(self) -> int:
        return self.fs.volume.block_size

    def through(self, action: Callable[[OpenFile], object]) -> None:
        """Do something through an open file of its own."""
        file = self.fs.open_file(self.ino, os.O_RDWR)
        try:
            action(file)
        finally:
            self.fs.release(file)

    def fallocate(self, mode: int, first: float, count: float) -> None:
        offset, length = int(first * self.block), int(count * self.block)
        self.through(lambda file: self.fs.fallocate(file, mode, offset, length))

    def copy(self, first: float) -> None:
        source = self.fs.open_file(self.fs.lookup(ROOT_INO, b"source").ino)
        self.through(lambda file: self.fs.copy_range(source, 0, file, int(first * self.block), 12 * self.block))
        self.fs.release(source)

    def write(self, first: float, size: int, *, atomic: bool = False) -> None:
        content = random.Random(9).randbytes(size)
        self.through(lambda file: self.fs.write(file, int(first * self.block), content, atomic=atomic))

    def write_batch(self, *writes: tuple[float, int]) -> None:
        """A batch of writes (first block, size in bytes)."""
        file = self.fs.open_file(self.ino, os.O_RDWR)
        with self.fs.batch(file) as batch:
            for first, size in writes:
                batch.write(int(first * self.block), random.Random(size).randbytes(size))
        self.fs.release(file)


def opened(fs: FileSystem) -> OpenFile:
    return fs.open_file(fs.lookup(ROOT_INO, b"f").ino, os.O_RDWR)


def with_flags(flags: Flag, end: int = BLOCKS + 20) -> Callable[[FileSystem], Pair]:
    """Return a function that makes a state with one client, which was granted the whole file with these flags."""

    def begin(fs: FileSystem) -> Pair:
        held = Client(fs, opened(fs))
        length = end * fs.volume.block_size
        # Files without extents can't be grown by a client.
        held.ask_all(0, length, flags if fs.volume.geometry.has_extents else flags & ~EXTEND)
        return Pair(fs, [held], [])

    return begin


def two_holders(fs: FileSystem) -> Pair:
    """Return a state with two holders of one open file. The second one's `Client.close` is for both."""
    first = Client(fs, opened(fs), 1)
    second = Client(fs, first.file, 2)
    first.ask(flags=STORE)
    second.ask()
    return Pair(fs, [first, second], [])


def two_files(fs: FileSystem) -> Pair:
    """Return a state with two open files, one of which was granted less."""
    clients = [Client(fs, opened(fs), 1), Client(fs, opened(fs), 1)]
    clients[0].ask(0, 10 * fs.volume.block_size)
    clients[1].ask(flags=STORE)
    return Pair(fs, clients, [])


def gone(fs: FileSystem) -> Pair:
    """Return a state whose only client has closed its file."""
    other = opened(fs)
    pair = with_flags(STORE)(fs)
    pair.clients[0].close()
    return Pair(fs, [], [other])


STATES: dict[str, Callable[[FileSystem], Pair]] = {
    "none": lambda fs: Pair(fs, [], [opened(fs)]),
    "read": with_flags(NOTHING),
    "write": with_flags(STORE),
    "grown": with_flags(STORE | EXTEND),
    "mapped": with_flags(MAP),
    "two holders": two_holders,
    "two files": two_files,
    "gone": gone,
}

OPERATIONS: dict[str, Callable[[Pair], object]] = {
    "truncate to nothing": lambda pair: truncate(pair.fs, pair.ino, 0),
    "truncate to the middle": lambda pair: truncate(pair.fs, pair.ino, 20 * pair.block),
    "truncate unaligned": lambda pair: truncate(pair.fs, pair.ino, 7 * pair.block + 333),
    "truncate to the size": lambda pair: truncate(pair.fs, pair.ino, (BLOCKS + 8) * pair.block + 100),
    "truncate up": lambda pair: truncate(pair.fs, pair.ino, (BLOCKS + 15) * pair.block),
    "open and cut": lambda pair: pair.fs.release(pair.fs.open_file(pair.ino, os.O_RDWR | os.O_TRUNC)),
    "punch": lambda pair: pair.fallocate(PUNCH, 3.5, 9),
    "punch to the end": lambda pair: pair.fallocate(PUNCH, BLOCKS - 1, 100),
    "collapse": lambda pair: pair.fallocate(COLLAPSE, 4, 8),
    "insert": lambda pair: pair.fallocate(INSERT, 4, 8),
    "zero": lambda pair: pair.fallocate(ZERO, 5.5, 50),
    "zero past EOF": lambda pair: pair.fallocate(ZERO | KEEP_SIZE, BLOCKS + 2, 12),
    "allocate": lambda pair: pair.fallocate(0, 30, 30),
    "allocate past EOF": lambda pair: pair.fallocate(KEEP_SIZE, BLOCKS, 30),
    "write into a hole": lambda pair: pair.write(BLOCKS + 1.5, 2000),
    "write past EOF": lambda pair: pair.write(BLOCKS + 11.5, 9000),
    "overwrite": lambda pair: pair.write(3.5, 5000),
    "overwrite atomically": lambda pair: pair.write(3.5, 5000, atomic=True),
    "write past EOF atomically": lambda pair: pair.write(BLOCKS + 11.5, 9000, atomic=True),
    "batch": lambda pair: pair.write_batch((3.5, 5000), (BLOCKS + 11.5, 9000), (9.25, 10)),
    "copy into": lambda pair: pair.copy(BLOCKS - 3.5),
    "unlink": lambda pair: pair.fs.unlink(ROOT_INO, b"f"),
    "rename over": lambda pair: pair.fs.rename(ROOT_INO, b"g", ROOT_INO, b"f"),
}
MOVES = ("collapse", "insert")
NEED_EXTENTS = (*MOVES, "zero", "zero past EOF", "allocate", "allocate past EOF")


def pairs(name: str = "") -> list[tuple[str, str]]:
    """Return all pairs of states and operations that a format allows."""
    return [
        (state, operation)
        for state in STATES
        for operation in OPERATIONS
        if name != "no-extents" or operation not in NEED_EXTENTS
    ]

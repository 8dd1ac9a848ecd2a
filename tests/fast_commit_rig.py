"""Areas of fast commits, made by hand: record by record, valid or not, in the journal of a clean pool."""

from __future__ import annotations

import struct
from pathlib import Path

from daxfs.ext4 import fast_commit
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, Extent
from daxfs.ext4.fast_commit import Tag
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.jbd2 import Incompat
from daxfs.fs import mounting, recovery_flag
from daxfs.journal.log import load_superblock
from daxfs.journal.tail import JournalSuperblockWriter
from daxfs.journal.view import PoolView
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.structures import inodes, mapping

SEQUENCE = 1000


class FastCommits:
    """The bytes of fast commits of the transaction `SEQUENCE`, as the kernel lays them out: each begins a block."""

    def __init__(self, block_size: int, sequence: int = SEQUENCE) -> None:
        self.block_size = block_size
        self.sequence = sequence
        self.content = bytearray()
        self.ends: list[int] = []
        self._crc = 0

    def record(self, tag: int, value: bytes) -> FastCommits:
        """Add a record, in the next block if it does not fit."""
        left = self.block_size - len(self.content) % self.block_size
        if fast_commit.HEADER.size + len(value) > left - fast_commit.HEADER.size:
            self._put(Tag.PAD, bytes(left - fast_commit.HEADER.size))
        if not self.content:
            self._put(Tag.HEAD, fast_commit.HEAD.pack(0, self.sequence))
        return self._put(tag, value)

    def _put(self, tag: int, value: bytes) -> FastCommits:
        record = fast_commit.HEADER.pack(tag, len(value)) + value
        self._crc = crc32c(self._crc, record)
        self.content += record
        return self

    def creat(self, parent: int, ino: int, name: bytes) -> FastCommits:
        return self.record(Tag.CREAT, fast_commit.NAME.pack(parent, ino) + name)

    def link(self, parent: int, ino: int, name: bytes) -> FastCommits:
        return self.record(Tag.LINK, fast_commit.NAME.pack(parent, ino) + name)

    def unlink(self, parent: int, ino: int, name: bytes) -> FastCommits:
        return self.record(Tag.UNLINK, fast_commit.NAME.pack(parent, ino) + name)

    def inode(self, ino: int, raw: bytes) -> FastCommits:
        return self.record(Tag.INODE, fast_commit.INODE.pack(ino) + raw)

    def add_range(self, ino: int, lblk: int, pblk: int, length: int, *, unwritten: bool = False) -> FastCommits:
        length += EXT_INIT_MAX_LEN * unwritten
        return self.record(Tag.ADD_RANGE, fast_commit.ADD_RANGE.pack(ino, lblk, length, pblk >> 32, pblk & 0xFFFFFFFF))

    def del_range(self, ino: int, lblk: int, length: int) -> FastCommits:
        return self.record(Tag.DEL_RANGE, fast_commit.DEL_RANGE.pack(ino, lblk, length))

    def tail(self, sequence: int | None = None) -> FastCommits:
        """End the fast commit, with a TAIL that takes the rest of the block."""
        number = self.sequence if sequence is None else sequence
        left = self.block_size - len(self.content) % self.block_size - fast_commit.HEADER.size
        start = fast_commit.HEADER.pack(Tag.TAIL, left) + struct.pack("<I", number)
        self.content += start + struct.pack("<I", crc32c(self._crc, start)) + bytes(left - fast_commit.TAIL.size)
        self._crc = 0
        self.ends.append(len(self.content))
        return self


def store(path: Path, content: bytes) -> None:
    """Store an area in the journal of a clean pool, which is then as a power cut leaves one: nothing was committed."""
    with open_pool(path) as pool:
        put(pool, content)


def put(pool: Pool, content: bytes) -> None:
    """Store an area in the journal of a clean pool that is open."""
    sb = mounting.read_superblock(pool)
    geometry = Geometry.of(sb)
    view = PoolView(pool, geometry)
    area = mounting.log_area(view, sb)
    old = load_superblock(pool, geometry, area)
    new = old._replace(
        s_start=old.s_first,
        s_sequence=SEQUENCE,
        s_feature_incompat=old.s_feature_incompat | Incompat.FAST_COMMIT,
    )
    size = geometry.block_size
    JournalSuperblockWriter(pool, area.physical(0) * size, old).rewrite(new)
    pool.zero(area.physical(old.s_first) * size, size)
    for number in range(-(-len(content) // size)):
        pool.write(area.physical(new.log_end + 1 + number) * size, content[number * size : (number + 1) * size])
    recovery_flag.store(pool, raised=True)
    view.release()


def slot_of(path: Path, ino: int) -> bytes:
    """Return what the kernel logs of an inode: its slot up to the end of the extra fields."""
    with open_pool(path, read_only=True) as pool:
        view = PoolView(pool, Geometry.of(mounting.read_superblock(pool)))
        inode = inodes.read(view, ino)
        raw = bytes(inode.buffer[: inode.extra_end])
        view.release()
    return raw


def extents_of(path: Path, ino: int) -> list[Extent]:
    """Return the map of an inode."""
    with open_pool(path, read_only=True) as pool:
        view = PoolView(pool, Geometry.of(mounting.read_superblock(pool)))
        found = list(mapping.walk(view, inodes.read(view, ino)))
        view.release()
    return found


def shorten(path: Path, blocks: int) -> None:
    """Leave so many blocks of the log; the area for fast commits stays where it is."""
    with open_pool(path) as pool:
        geometry = Geometry.of(mounting.read_superblock(pool))
        view = PoolView(pool, geometry)
        area = mounting.log_area(view, view.superblock())
        old = load_superblock(pool, geometry, area)
        writer = JournalSuperblockWriter(pool, area.physical(0) * geometry.block_size, old)
        writer.rewrite(old._replace(s_first=old.log_end - blocks, s_start=old.log_end - blocks))
        pool.zero(area.physical(old.log_end - blocks) * geometry.block_size, geometry.block_size)
        view.release()

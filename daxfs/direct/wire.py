"""The protocol of direct mapping in Python: what ``daxfs.h`` says in C, number for number.

Clients (``daxfs.direct``) and the daemon (``daxfs.fuse.kernel.leases``) both read and write these records; a test
compiles the header and compares. docs/DIRECT.md has the rules. Everything is in the machine's own byte order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from daxfs.pmem.exclusive import CLIENT_LOCKS

Buffer = bytes | bytearray | memoryview

VERSION = 2
LOCKS = CLIENT_LOCKS


class Persistence(IntEnum):
    """How stores become durable."""

    VOLATILE = 0  # never: the pool is ordinary memory
    MSYNC = 1  # msync(2) of the mapping
    LINES = 2  # write back cache lines and fence (libpmem)


class Kind(IntEnum):
    """What a part of a file is."""

    HOLE = 0  # reads as zeros
    MEMORY = 1  # lies in the pool
    KERNEL = 2  # somebody maps these bytes through the kernel: use the file itself


class Flag(IntFlag):
    """What a lease request asks for."""

    WRITE = 1  # to store; the file must be open for writing
    FILL = 2  # with WRITE: give holes blocks of zeros up to the end of the file
    GROW = 4  # with WRITE and FILL: also behind the end of the file
    MAP = 8  # for mmap(2): what is no memory is answered, and from now on kept, as KERNEL
    RENEW = 16  # this holder uses nothing any more that it was told before this request


FIRST_STEP, LAST_STEP = (
    256 << 10,
    4 << 20,
)  # bytes past EOF that a client asks for with GROW: first, and at most at once

DURABLE = 1  # flag of STORED and APPENDED: as fsync(2)
DATA_ONLY = 2  # with DURABLE: as fdatasync(2)

POOL = struct.Struct("=IIQQQQII16s952sQ")
EXTENT = struct.Struct("=QQQII")
LEASE = struct.Struct("=QQQIIQQQQQQQ16s24x")  # the head; EXTENTs follow
STORED = struct.Struct("=QII")
APPENDED = struct.Struct("=QQQIIQ")
SLOT = struct.Struct("=QQQQ32x")

PATH_SIZE = 952  # bytes of a pool's path, the NUL behind it included
TOKEN_SIZE = 16  # bytes that lie in the pool at Pool.token
EXTENTS = 124  # in a full request
SHORT_EXTENTS = 4
LEASE_SIZE = LEASE.size + EXTENTS * EXTENT.size
SHORT_LEASE_SIZE = LEASE.size + SHORT_EXTENTS * EXTENT.size

_TYPE = 0xDA


def _request(direction: int, number: int, size: int) -> int:
    """An ioctl number as include/uapi/asm-generic/ioctl.h builds it (x86, arm, riscv, s390)."""
    return direction << 30 | size << 16 | _TYPE << 8 | number


IOC_POOL = _request(2, 2, POOL.size)
IOC_LEASE = _request(3, 3, LEASE_SIZE)
IOC_SHORT_LEASE = _request(3, 3, SHORT_LEASE_SIZE)
IOC_STORED = _request(1, 4, STORED.size)
IOC_APPENDED = _request(3, 5, APPENDED.size)
IOC_SYNC = _request(0, 6, 0)


class Pool(NamedTuple):
    """``struct daxfs_pool``: which pool, and how to know that the opened one is it."""

    persistence: int
    device: int  # st_dev
    inode: int  # st_ino
    rdevice: int  # st_rdev
    size: int  # bytes that can be mapped
    block_size: int  # bytes
    lock: int  # a client holds a shared lock (F_OFD_SETLK) of the pool's byte LOCKS + lock while it maps the pool
    uuid: bytes
    path: bytes
    token: int = 0  # pool offset of the token that lease requests quote; 0: none is needed
    version: int = VERSION

    def pack(self) -> bytes:
        """The record.

        Raises:
            ValueError: the path does not fit.
        """
        if len(self.path) >= PATH_SIZE:
            raise ValueError(f"a pool's path of {len(self.path)} bytes; {PATH_SIZE - 1} fit")
        return POOL.pack(self.version, *self[:-1])

    @classmethod
    def unpack(cls, buffer: Buffer) -> Pool:
        """From a record."""
        version, *fields, path, token = POOL.unpack_from(buffer)
        return cls._make([*fields, path.partition(b"\0")[0], token, version])


class Extent(NamedTuple):
    """``struct daxfs_extent``: a part of a file, all in bytes."""

    offset: int  # in the file
    pool_offset: int  # of Kind.MEMORY: in the pool
    length: int
    kind: int

    def pack(self) -> bytes:
        """The record."""
        return EXTENT.pack(*self, 0)


class Lease(NamedTuple):
    """``struct daxfs_lease``: question (the first four fields and the token) and answer, with its extents."""

    holder: int
    offset: int
    length: int
    flags: int
    next: int = 0  # where the extents end
    size: int = 0  # of the file, bytes
    slot: int = 0  # pool offset of the file's slot; 0: nothing will change
    epoch: int = 0
    device: int = 0  # of the pool
    inode: int = 0
    lock: int = 0  # as in Pool
    token: bytes = b""  # question: what lies in the pool at Pool.token
    extents: tuple[Extent, ...] = ()

    def pack_into(self, buffer: bytearray | memoryview) -> None:
        """Write head and extents to the buffer's start.

        Raises:
            struct.error: the buffer is too short for them.
        """
        head = (self.holder, self.offset, self.length, self.flags, len(self.extents), *self[4:12])
        LEASE.pack_into(buffer, 0, *head)
        place = LEASE.size
        for extent in self.extents:
            EXTENT.pack_into(buffer, place, *extent, 0)
            place += EXTENT.size

    def pack(self, size: int | None = None) -> bytes:
        """The record, filled up with zeros to ``size`` bytes (as long as it must be if None)."""
        buffer = bytearray(LEASE.size + len(self.extents) * EXTENT.size if size is None else size)
        self.pack_into(buffer)
        return bytes(buffer)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Lease:
        """From a record of either length.

        Raises:
            struct.error: the buffer is shorter than the head, or than the extents that the head counts.
        """
        head: tuple[Any, ...] = LEASE.unpack_from(buffer)
        count: int = head[4]
        places = range(LEASE.size, LEASE.size + count * EXTENT.size, EXTENT.size)
        extents = tuple(Extent(*EXTENT.unpack_from(buffer, place)[:4]) for place in places)
        return cls._make([*head[:4], *head[5:], extents])


class Stored(NamedTuple):
    """``struct daxfs_stored``: this open file's holder has stored."""

    size: int = 0  # the file is at least this long now; 0: as it is
    flags: int = 0  # DURABLE

    def pack(self) -> bytes:
        """The record."""
        return STORED.pack(*self, 0)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Stored:
        """From a record."""
        return cls(*STORED.unpack_from(buffer)[:2])


class Appended(NamedTuple):
    """``struct daxfs_appended``: this open file's holder has stored behind the end of the file."""

    base: int  # the end as the holder knew it; EAGAIN if it is another by now
    size: int  # the end now
    holder: int  # who was told of the memory there
    flags: int = 0  # DURABLE
    changes: int = 0  # answer: what the slot says right after this

    def pack(self) -> bytes:
        """The record."""
        return APPENDED.pack(*self[:4], 0, self.changes)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Appended:
        """From a record."""
        base, size, holder, flags, _, changes = APPENDED.unpack_from(buffer)
        return cls(base, size, holder, flags, changes)


class Slot(NamedTuple):
    """``struct daxfs_slot``: what changes while a file is leased, in the pool itself."""

    epoch: int
    size: int  # of the file, bytes
    ino: int
    changes: int = 0  # goes up with all that the daemon changes of the file

    def pack(self) -> bytes:
        """The record."""
        return SLOT.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Slot:
        """From a record."""
        return cls(*SLOT.unpack_from(buffer))


def extent_count(buffer: Buffer) -> int:
    """How many extents the head of a lease record counts; there may be room for less."""
    count: int = LEASE.unpack_from(buffer)[4]
    return count


def room(size: int) -> int:
    """How many extents fit into a lease record of ``size`` bytes."""
    return (size - LEASE.size) // EXTENT.size

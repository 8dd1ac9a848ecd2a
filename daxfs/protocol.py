"""Layer 1: the protocol of direct mapping, every number, flag, record and lock that the daemon and its clients share.

The daemon (``daxfs.fs``, ``daxfs.fuse``) and the Python client (``daxfs.direct``) import it; C clients include
direct/daxfs.h. A test compiles that header and compares: names, values, and each field's place, width and type, with
nothing on one side that the other lacks. docs/DIRECT.md has the rules. All numbers are in the machine's byte order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

Buffer = bytes | bytearray | memoryview

FILESYSTEM_TYPE = "fuse.daxfs"
"""What /proc/self/mountinfo calls a mount: clients believe no other."""
VERSION = 2
"""Clients of version 1 quote no token: they are refused, and go through the kernel."""


class Persistence(IntEnum):
    """How stores become durable (``enum daxfs_persistence``)."""

    VOLATILE = 0  # never: the pool is ordinary memory
    MSYNC = 1  # msync(2) of the mapping
    LINES = 2  # write back cache lines and fence (libpmem)


class Kind(IntEnum):
    """What a part of a file is (``enum daxfs_kind``)."""

    HOLE = 0  # reads as zeros
    MEMORY = 1  # lies in the pool
    KERNEL = 2  # somebody maps these bytes through the kernel: use the file itself


class Flag(IntFlag):
    """What a lease request asks for (``enum daxfs_flag``)."""

    WRITE = 1  # to store; the file must be open for writing
    FILL = 2  # with WRITE: give holes blocks of zeros up to EOF
    GROW = 4  # with WRITE and FILL: also past EOF
    MAP = 8  # for mmap(2): what is no memory is answered, and from now on kept, as KERNEL
    RENEW = 16  # this holder no longer uses anything that was granted to it before this request


class Durability(IntFlag):
    """Flags of STORED and APPENDED (``enum daxfs_durability``)."""

    DURABLE = 1  # as fsync(2)
    DATA_ONLY = 2  # with DURABLE: as fdatasync(2)


# Plain numbers: to combine an IntFlag's members costs more than all else that a short request does.
DURABLE, DATA_ONLY = (int(flag) for flag in Durability)

FURTHEST = 1 << 62
"""No file, pool or range ends past this byte, so that the sum of two places does not overflow."""
LEAST_POOL = 2048
"""Bytes of the smallest pool: the superblock ends there."""
MAGIC, MAGIC_AT, UUID_AT = b"\x53\xef", 1080, 1128
"""What each pool has in ext4's superblock (s_magic, s_uuid), and where in the pool: a client compares both."""
LEAST_BLOCK, MOST_BLOCK = 1 << 10, 1 << 16
"""Sizes that a block may have, in bytes."""
FIRST_STEP, LAST_STEP = 256 << 10, 4 << 20
"""Bytes past EOF that a client asks for at once with GROW: the first time, and at most. Zeroing more in one request
would keep every other user of the mount waiting."""
MOST_FILLED = 64 << 20
"""Bytes that one request gives blocks of zeros at most, some ten milliseconds; the client asks again from there.
A client leaves the holes of a mapping that has more of them to the kernel."""

# Locks. A client holds a shared lock (F_OFD_SETLK) of the pool's byte LOCKS + Pool.lock while it maps the pool.

LOCKS = 1 << 62
"""The first of these bytes, far past the pool's end; each mount has one of its own."""
LOCK_NUMBERS = 1 << 31
"""Pool.lock is less."""
READER_LOCKS = 1 << 30
"""Pool.lock is at least this for read-only mounts, whose end the pool does not show."""

# Records. Each field has its format of the module ``struct``; ``x`` is reserved: written as zeros, not looked at.

TOKEN_SIZE = 16
"""Bytes that lie in the pool at Pool.token: random, new with each mount."""
PATH_SIZE = 952
"""Bytes of a pool's path, with the NUL that ends it."""
EXTENTS, SHORT_EXTENTS = 124, 4
"""Extents that a lease record of either length has room for."""

LAYOUTS = {
    "daxfs_pool": {
        "version": "I",
        "persistence": "I",
        "device": "Q",
        "inode": "Q",
        "rdevice": "Q",
        "size": "Q",
        "block_size": "I",
        "lock": "I",
        "uuid": "16s",
        "path": f"{PATH_SIZE}s",
        "token": "Q",
    },
    "daxfs_extent": {
        "offset": "Q",
        "pool_offset": "Q",
        "length": "Q",
        "kind": "I",
        "reserved": "4x",
    },
    "daxfs_lease": {  # extents follow
        "holder": "Q",
        "offset": "Q",
        "length": "Q",
        "flags": "I",
        "count": "I",
        "next": "Q",
        "size": "Q",
        "slot": "Q",
        "epoch": "Q",
        "device": "Q",
        "inode": "Q",
        "lock": "Q",
        "token": f"{TOKEN_SIZE}s",
        "reserved": "24x",
    },
    "daxfs_stored": {
        "size": "Q",
        "flags": "I",
        "reserved": "4x",
    },
    "daxfs_appended": {
        "base": "Q",
        "size": "Q",
        "holder": "Q",
        "flags": "I",
        "reserved": "4x",
        "changes": "Q",
    },
    "daxfs_slot": {
        "epoch": "Q",
        "size": "Q",
        "ino": "Q",
        "changes": "Q",
        "reserved": "32x",
    },
}
"""The structures of the C header: fields in order, under the names that C has for them."""


def _struct(name: str) -> struct.Struct:
    return struct.Struct("=" + "".join(LAYOUTS[name].values()))


def _place(name: str, field: str) -> int:
    """Where a field begins, in bytes."""
    layout = LAYOUTS[name]
    return struct.calcsize("=" + "".join(list(layout.values())[: list(layout).index(field)]))


POOL = _struct("daxfs_pool")
EXTENT = _struct("daxfs_extent")
LEASE = _struct("daxfs_lease")
STORED = _struct("daxfs_stored")
APPENDED = _struct("daxfs_appended")
ENTRY = _struct("daxfs_slot")

LEASE_SIZE = LEASE.size + EXTENTS * EXTENT.size
SHORT_LEASE_SIZE = LEASE.size + SHORT_EXTENTS * EXTENT.size

EPOCH_AT, SIZE_AT, CHANGES_AT = (_place("daxfs_slot", field) for field in ("epoch", "size", "changes"))
"""Where in a status entry the words begin that the daemon changes one by one, in bytes."""
ENDED = (1 << 64) - 1
"""The epoch of a status entry whose daemon has gone, or that is given to another file: no grant holds any longer."""

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
    lock: int  # the pool's byte LOCKS + lock is what clients of this mount lock
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
        return EXTENT.pack(*self)


class Lease(NamedTuple):
    """``struct daxfs_lease``: question (the first four fields and the token) and answer, with its extents."""

    holder: int
    offset: int
    length: int
    flags: int
    next: int = 0  # where the extents end
    size: int = 0  # of the file, bytes
    entry: int = 0  # pool offset of the file's status entry (``slot`` in C); 0: nothing will change
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
            EXTENT.pack_into(buffer, place, *extent)
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
        extents = tuple(Extent._make(EXTENT.unpack_from(buffer, place)) for place in places)
        return cls._make([*head[:4], *head[5:], extents])


class Stored(NamedTuple):
    """``struct daxfs_stored``: this open file's holder has stored."""

    size: int = 0  # the file is at least this long now; 0: as it is
    flags: int = 0  # Durability

    def pack(self) -> bytes:
        """The record."""
        return STORED.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Stored:
        """From a record."""
        return cls._make(STORED.unpack_from(buffer))


class Appended(NamedTuple):
    """``struct daxfs_appended``: this open file's holder has stored past EOF."""

    base: int  # EOF as the holder knew it; EAGAIN if it is another by now
    size: int  # EOF now
    holder: int  # to whom the memory there was granted
    flags: int = 0  # Durability
    changes: int = 0  # answer: what the status entry says right after this

    def pack(self) -> bytes:
        """The record."""
        return APPENDED.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Appended:
        """From a record."""
        return cls._make(APPENDED.unpack_from(buffer))


class StatusEntry(NamedTuple):
    """``struct daxfs_slot``: what changes while a file is leased, a cache line of the lease status page in the pool.

    Clients watch it, the daemon alone writes. C programs know it under its first name, which stays.
    """

    epoch: int
    size: int  # of the file, bytes
    ino: int
    changes: int = 0  # goes up with all that the daemon changes of the file

    def pack(self) -> bytes:
        """The record."""
        return ENTRY.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> StatusEntry:
        """From a record."""
        return cls._make(ENTRY.unpack_from(buffer))


def extent_count(buffer: Buffer) -> int:
    """How many extents the head of a lease record counts; there may be room for less."""
    count: int = LEASE.unpack_from(buffer)[4]
    return count


def room(size: int) -> int:
    """How many extents fit into a lease record of ``size`` bytes."""
    return (size - LEASE.size) // EXTENT.size

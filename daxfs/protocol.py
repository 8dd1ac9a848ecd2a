"""Layer 1: the protocol of direct access: the numbers, flags, records and locks that the daemon and its clients share.

The daemon (``daxfs.fs``, ``daxfs.fuse``) and the Python client (``daxfs.direct``) import this module. C clients include
direct/daxfs.h. A test compiles that header and compares names, values, and the offset, width and type of each field;
neither side may have anything that the other lacks. docs/DIRECT.md has the rules. All numbers are in the machine's byte
order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

Buffer = bytes | bytearray | memoryview

FILESYSTEM_TYPE = "fuse.daxfs"
"""The file system type of a mount in /proc/self/mountinfo; clients trust mounts of no other type."""
VERSION = 2
"""The version of the protocol. Clients of version 1 quote no token: the daemon refuses them, and they go through the
kernel."""


class Persistence(IntEnum):
    """How stores become durable (``enum daxfs_persistence``)."""

    VOLATILE = 0  # never: the pool is ordinary memory
    MSYNC = 1  # msync(2) of the mapping
    LINES = 2  # write back cache lines and fence (libpmem)


class Kind(IntEnum):
    """How a client reaches a part of a file (``enum daxfs_kind``)."""

    HOLE = 0  # reads as zeros
    MEMORY = 1  # lies in the pool
    KERNEL = 2  # page-cache mapped: use the file itself


class Flag(IntFlag):
    """What a lease request asks for (``enum daxfs_flag``)."""

    WRITE = 1  # to store; the file must be open for writing
    FILL = 2  # with WRITE: give holes blocks of zeros up to EOF
    EXTEND = 4  # with WRITE and FILL: also past EOF, for extending writes
    MAP = 8  # for mmap(2): whatever is not MEMORY is answered as KERNEL, and stays KERNEL
    RENEW = 16  # this holder no longer uses anything that was granted to it before this request
    PAGES = 32  # with MAP: all of the range is mapped through the kernel, and is answered as KERNEL


class Durability(IntFlag):
    """Flags of STORED and APPENDED (``enum daxfs_durability``)."""

    DURABLE = 1  # as fsync(2)
    DATA_ONLY = 2  # with DURABLE: as fdatasync(2)


class Announcement(IntFlag):
    """Flags of ATOMIC: what a client says about an atomic write (``enum daxfs_announcement``)."""

    ANNOUNCE = 1  # the next write(2) of these bytes through this open file is atomic
    WITHDRAW = 2  # that write has failed, or will not come


# Plain numbers: combining members of an IntFlag costs more than the rest of a short request.
DURABLE, DATA_ONLY = (int(flag) for flag in Durability)

FURTHEST = 1 << 62
"""No file, pool or range ends past this byte, so that the sum of two offsets does not overflow."""
LEAST_POOL = 2048
"""Bytes of the smallest pool: the superblock ends there."""
MAGIC, MAGIC_AT, UUID_AT = b"\x53\xef", 1080, 1128
"""The magic number of ext4's superblock, and the pool offsets of s_magic and s_uuid; a client compares both fields."""
LEAST_BLOCK, MOST_BLOCK = 1 << 10, 1 << 16
"""The smallest and the largest size of a block, in bytes."""
FIRST_STEP, LAST_STEP = 256 << 10, 4 << 20
"""Bytes past EOF that a client requests at once with EXTEND: in its first request, and at most. Zeroing more in one
request would keep every other user of the mount waiting."""
MOST_FILLED = 64 << 20
"""The most bytes of holes that one request fills with blocks of zeros, which takes some ten milliseconds. The client
continues with another request. Where a mapping has more holes than this, the client leaves them to the kernel."""

# Locks. A client holds a shared lock (F_OFD_SETLK) of the pool's byte LOCKS + Pool.lock while it maps the pool.

LOCKS = 1 << 62
"""The first byte of the locks, far past the pool's end; each mount has a byte of its own."""
LOCK_NUMBERS = 1 << 31
"""Pool.lock is less than this."""
READER_LOCKS = 1 << 30
"""Pool.lock is at least this for read-only mounts: they store nothing, so the pool does not show when they end."""

# Records. Each field has its format of the module ``struct``. ``x`` is reserved: store zeros, and ignore it on reading.

TOKEN_SIZE = 16
"""Bytes of the token, which lies in the pool at Pool.token: random, and new with each mount."""
PATH_SIZE = 944
"""Bytes of the field for a pool's path, the terminating NUL included."""
EXTENTS, SHORT_EXTENTS = 124, 4
"""Extents for which a lease record of the long and of the short form has room."""
COMMIT_WORDS = 64
"""Commit words for which the answer to DAXFS_IOC_ARMED has room."""

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
        "align": "Q",
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
    "daxfs_commit_word": {
        "pool_offset": "Q",
        "armed": "I",
        "valid": "I",
    },
    "daxfs_armed": {  # words follow
        "base": "Q",
        "size": "Q",
        "holder": "Q",
        "flags": "I",
        "count": "I",
        "changes": "Q",
    },
    "daxfs_atomic": {
        "offset": "Q",
        "length": "I",
        "flags": "I",
        "least": "I",
        "most": "I",
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
    """Return the offset of a field in its record, in bytes."""
    layout = LAYOUTS[name]
    return struct.calcsize("=" + "".join(list(layout.values())[: list(layout).index(field)]))


POOL = _struct("daxfs_pool")
EXTENT = _struct("daxfs_extent")
LEASE = _struct("daxfs_lease")
STORED = _struct("daxfs_stored")
APPENDED = _struct("daxfs_appended")
COMMIT_WORD = _struct("daxfs_commit_word")
ARMED = _struct("daxfs_armed")
ATOMIC = _struct("daxfs_atomic")
ENTRY = _struct("daxfs_slot")

LEASE_SIZE = LEASE.size + EXTENTS * EXTENT.size
SHORT_LEASE_SIZE = LEASE.size + SHORT_EXTENTS * EXTENT.size
ARMED_SIZE = ARMED.size + COMMIT_WORDS * COMMIT_WORD.size

EPOCH_AT, SIZE_AT, INO_AT, CHANGES_AT = (_place("daxfs_slot", field) for field in ("epoch", "size", "ino", "changes"))
"""Offsets, in a status entry, of the words that the daemon changes one by one, in bytes."""
ENDED = (1 << 64) - 1
"""The epoch of a status entry whose daemon has ended, or that belongs to another file now: no grant holds."""

_TYPE = 0xDA


def _request(direction: int, number: int, size: int) -> int:
    """Return an ioctl number, built as in include/uapi/asm-generic/ioctl.h (x86, arm, riscv, s390)."""
    return direction << 30 | size << 16 | _TYPE << 8 | number


IOC_POOL = _request(2, 2, POOL.size)
IOC_LEASE = _request(3, 3, LEASE_SIZE)
IOC_SHORT_LEASE = _request(3, 3, SHORT_LEASE_SIZE)
IOC_STORED = _request(1, 4, STORED.size)
IOC_APPENDED = _request(3, 5, APPENDED.size)
IOC_ARMED = _request(3, 5, ARMED_SIZE)
IOC_SYNC = _request(0, 6, 0)
IOC_ATOMIC = _request(3, 9, ATOMIC.size)


class Pool(NamedTuple):
    """``struct daxfs_pool``: which pool a mount uses, and how a client recognizes it after opening it."""

    persistence: int
    device: int  # st_dev
    inode: int  # st_ino
    rdevice: int  # st_rdev
    size: int  # bytes that can be mapped
    block_size: int  # bytes
    lock: int  # clients of this mount lock the pool's byte LOCKS + lock
    uuid: bytes
    path: bytes
    align: int = 0  # the unit in which the pool can be mapped, in bytes, a power of two; 0: a page
    token: int = 0  # pool offset of the token that lease requests quote; 0: none is needed
    version: int = VERSION

    def pack(self) -> bytes:
        """Return the record's bytes.

        Raises:
            ValueError: the path does not fit.
        """
        if len(self.path) >= PATH_SIZE:
            raise ValueError(f"a pool's path of {len(self.path)} bytes; {PATH_SIZE - 1} fit")
        return POOL.pack(self.version, *self[:-1])

    @classmethod
    def unpack(cls, buffer: Buffer) -> Pool:
        """Read a record."""
        version, *fields, path, align, token = POOL.unpack_from(buffer)
        return cls._make([*fields, path.partition(b"\0")[0], align, token, version])


class GrantedExtent(NamedTuple):
    """``struct daxfs_extent``: a part of a file; offsets and length are in bytes."""

    offset: int  # in the file
    pool_offset: int  # of Kind.MEMORY: in the pool
    length: int
    kind: int

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return EXTENT.pack(*self)


class Lease(NamedTuple):
    """``struct daxfs_lease``: a request (the first four fields and the token) and its answer, with the extents."""

    holder: int
    offset: int
    length: int
    flags: int
    next: int = 0  # file offset at which the extents end
    size: int = 0  # of the file, bytes
    entry: int = 0  # pool offset of the file's status entry (``slot`` in C); 0: none, because nothing will change
    epoch: int = 0
    device: int = 0  # of the pool
    inode: int = 0
    lock: int = 0  # as in Pool
    token: bytes = b""  # request: the bytes of the pool at Pool.token
    extents: tuple[GrantedExtent, ...] = ()

    def pack_into(self, buffer: bytearray | memoryview) -> None:
        """Write the head and the extents to the start of the buffer.

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
        """Return the record's bytes, padded with zeros to ``size`` bytes; None: without padding."""
        buffer = bytearray(LEASE.size + len(self.extents) * EXTENT.size if size is None else size)
        self.pack_into(buffer)
        return bytes(buffer)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Lease:
        """Read a record of either length.

        Raises:
            struct.error: the buffer is shorter than the head, or than the extents that the head counts.
        """
        head: tuple[Any, ...] = LEASE.unpack_from(buffer)
        count: int = head[4]
        places = range(LEASE.size, LEASE.size + count * EXTENT.size, EXTENT.size)
        extents = tuple(GrantedExtent._make(EXTENT.unpack_from(buffer, place)) for place in places)
        return cls._make([*head[:4], *head[5:], extents])


class Stored(NamedTuple):
    """``struct daxfs_stored``: the write notification of a holder that has stored within the file."""

    size: int = 0  # the file is at least this long now; 0: its size has not changed
    flags: int = 0  # Durability

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return STORED.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Stored:
        """Read a record."""
        return cls._make(STORED.unpack_from(buffer))


class Appended(NamedTuple):
    """``struct daxfs_appended``: the write notification of a holder that has stored past EOF."""

    base: int  # EOF as the holder knows it; EAGAIN if EOF has changed since
    size: int  # EOF now
    holder: int  # the holder to which the memory past EOF was granted
    flags: int = 0  # Durability
    changes: int = 0  # answer: ``changes`` of the status entry right after this request

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return APPENDED.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Appended:
        """Read a record."""
        return cls._make(APPENDED.unpack_from(buffer))


class Atomic(NamedTuple):
    """``struct daxfs_atomic``: an atomic write that will come, and the sizes that such writes can have, in bytes."""

    offset: int = 0
    length: int = 0
    flags: int = 0  # Announcement
    least: int = 0  # answer
    most: int = 0  # answer

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return ATOMIC.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> Atomic:
        """Read a record."""
        return cls._make(ATOMIC.unpack_from(buffer))


class StatusEntry(NamedTuple):
    """``struct daxfs_slot``: the state of a leased file that changes, one cache line of a status page in the pool.

    Clients read it; only the daemon writes it. The structure keeps its first name, ``slot``, for C programs.
    """

    epoch: int
    size: int  # of the file, bytes
    ino: int
    changes: int = 0  # rises with every change that the daemon makes to the file

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return ENTRY.pack(*self)

    @classmethod
    def unpack(cls, buffer: Buffer) -> StatusEntry:
        """Read a record."""
        return cls._make(ENTRY.unpack_from(buffer))


def extent_count(buffer: Buffer) -> int:
    """Return the number of extents that the head of a lease record claims; the record may have room for fewer."""
    count: int = LEASE.unpack_from(buffer)[4]
    return count


def room(size: int) -> int:
    """Return the number of extents that fit into a lease record of ``size`` bytes."""
    return (size - LEASE.size) // EXTENT.size

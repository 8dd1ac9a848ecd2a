"""Checks of the daemon's answers, made before any number in them is used as a place or a length.

``pool`` and ``requests`` read answers through this module. A sound answer may still name memory that this process has
not mapped, because the pool has grown: ``requests.lease`` compares with the mapped size. preload/ioctls.c does the
checks in C.
"""

from __future__ import annotations

from collections.abc import Iterator

from daxfs import protocol
from daxfs.direct.trust import Refused
from daxfs.protocol import FURTHEST, LEAST_BLOCK, LEAST_POOL, MOST_BLOCK, Kind

_BLOCK_SIZES = {1 << bits for bits in range(64) if LEAST_BLOCK <= 1 << bits <= MOST_BLOCK}


def read_pool(answer: protocol.Buffer) -> protocol.Pool:
    """Read the answer to DAXFS_IOC_POOL.

    Raises:
        Refused: the answer has another version of the protocol, or describes no pool.
    """
    pool = protocol.Pool.unpack(answer)
    if pool.version != protocol.VERSION:
        raise Refused(f"the mount speaks version {pool.version} of the protocol, this client {protocol.VERSION}")
    _check("persistence", pool.persistence, pool.persistence <= max(protocol.Persistence))
    _check("size", pool.size, LEAST_POOL <= pool.size <= FURTHEST)
    _check("block size", pool.block_size, pool.block_size in _BLOCK_SIZES)
    _check("unit of mappings", pool.align, pool.align & (pool.align - 1) == 0 and pool.align <= FURTHEST)
    _check("path", pool.path, pool.path.startswith(b"/") and len(pool.path) < protocol.PATH_SIZE)
    _check("place of the token", pool.token, pool.token <= pool.size - protocol.TOKEN_SIZE)
    return pool


def read_lease(asked: protocol.Lease, answer: protocol.Buffer) -> protocol.Lease:
    """Read the answer to DAXFS_IOC_LEASE.

    The extents that are returned follow each other without gaps from the requested offset to ``next``; what the answer
    has before that offset is cut off.

    Raises:
        Refused: the answer does not fit the request, or contradicts itself.
    """
    count = protocol.extent_count(answer)
    _check("number of extents", count, count <= protocol.room(len(answer)))
    lease = protocol.Lease.unpack(answer)
    _check("question", lease[:4], lease[:4] == asked[:4])
    _check("end", lease.next, asked.offset <= lease.next <= FURTHEST)
    _check("file size", lease.size, lease.size <= FURTHEST)
    _check("status entry", lease.entry, lease.entry <= FURTHEST and lease.entry % 8 == 0)
    place = min(lease.extents[0].offset, asked.offset) if lease.extents else asked.offset
    for extent in lease.extents:
        _check("extent", extent, extent.offset == place and 0 < extent.length <= lease.next - place)
        _check("kind", extent.kind, extent.kind <= max(Kind))
        _check("pool offset", extent.pool_offset, extent.kind != Kind.MEMORY or extent.pool_offset <= FURTHEST)
        place += extent.length
    _check("end", lease.next, place == lease.next)
    return lease._replace(extents=tuple(_cut(lease.extents, asked.offset)))


def _cut(extents: tuple[protocol.GrantedExtent, ...], offset: int) -> Iterator[protocol.GrantedExtent]:
    """Yield the extents from ``offset`` on; the one that ``offset`` lies in begins there."""
    for extent in extents:
        before = max(offset - extent.offset, 0)
        if before < extent.length:
            place = extent.pool_offset + before if extent.kind == Kind.MEMORY else extent.pool_offset
            yield protocol.GrantedExtent(extent.offset + before, place, extent.length - before, extent.kind)


def _check(what: str, found: object, sound: bool) -> None:
    if not sound:
        raise Refused(f"the daemon's answer makes no sense: {what} {found}")

"""Opening a pool: claim its file or device, choose how stores become durable, map it."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace

from daxfs.errors import PoolError
from daxfs.pmem import exclusive, kinds, persist
from daxfs.pmem.badblocks import BadRanges, listed
from daxfs.pmem.descriptors import above_standard
from daxfs.pmem.faults import MappedFaults
from daxfs.pmem.mapped import MappedPool
from daxfs.pmem.pool import Pool
from daxfs.pmem.region import AddressRange

MAP_SYNC = 0x80000 | 3
"""Flags of a mapping whose flushed stores are durable, because the kernel has no metadata left to write."""


def open_pool(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    persistence: str | None = None,
    exclusively: bool = True,
    private: bool = False,
    sysfs: str = "/sys",
) -> Pool:
    """Map a pool.

    Args:
        path: a regular file, a block device or a /dev/dax device.
        read_only: map without the right to store, and share the pool with other readers.
        persistence: force ``libpmem``, ``msync`` or ``volatile``; None: choose by the kind of pool.
        exclusively: refuse a pool that is in use. A tool that only reads may pass False, together with
            ``read_only`` or ``private``.
        private: stores go to memory of this process and never to the pool, which is opened for reading and shared
            with other readers. Only pages that are stored to take memory.
        sysfs: where sysfs is mounted (tests bring their own).

    Raises:
        PoolError: the pool is missing or empty, is in use by daxfs or the kernel, or can't be accessed or flushed.
    """
    name = os.fspath(path)
    reading = read_only or private
    if not (exclusively or reading):
        raise ValueError("only a read-only pool may be opened while someone else uses it")
    target = kinds.identify(name, sysfs=sysfs)
    descriptors: list[int] = []
    with above_standard():
        try:
            if exclusively:
                descriptors.append(exclusive.claim(target, read_only=reading, sysfs=sysfs))
                # Before the claim, the last user of the pool may have resized or replaced it (mkfs).
                target = kinds.identify(name, sysfs=sysfs)
            access = os.O_RDONLY if reading else os.O_RDWR
            descriptors.insert(0, os.open(name, access | os.O_CLOEXEC))
            if not all(os.path.samestat(os.fstat(opened), target.status) for opened in descriptors):
                raise PoolError(f"{name} was just replaced by another file; try again", kinds.MOUNT_FAILED)
            target = replace(target, status=os.fstat(descriptors[0]))
            bad = BadRanges(target.size, listed(target, sysfs))
            if private:
                return _map_privately(target, tuple(descriptors), bad)
            return _map(target, tuple(descriptors), read_only, persistence, bad)
        except BaseException as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise kinds.pool_error(name, error) from None
            raise


def mapped_kind(target: kinds.Target, descriptor: int) -> str:
    """Return the kind of an open pool: that of ``target``, or ``fsdax`` where the kernel grants MAP_SYNC for a file."""
    if target.kind != kinds.FILE:
        return target.kind
    try:
        mmap.mmap(descriptor, mmap.PAGESIZE, flags=MAP_SYNC, prot=mmap.PROT_READ).close()
    except OSError:
        return kinds.FILE
    return kinds.FSDAX


def _map(
    target: kinds.Target, descriptors: tuple[int, ...], read_only: bool, persistence: str | None, bad: BadRanges
) -> Pool:
    protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
    kind = mapped_kind(target, descriptors[0])
    way = persist.choose(target.path, kind, persistence, read_only=read_only)
    addresses = _reserve(target)
    flags = MAP_SYNC if kind == kinds.FSDAX else mmap.MAP_SHARED
    addresses.map(target.size, descriptors[0], protection=protection, flags=flags)
    memory = addresses.view()
    if read_only:
        operations = persist.refusing(way)
    elif way == persist.LIBPMEM and (library := persist.load_libpmem()) is not None:
        operations = persist.libpmem(memory, library)
    elif way == persist.MSYNC:
        operations = persist.msync(memory, addresses.flush)
    else:
        operations = persist.volatile(memory)
    pool = MappedPool(
        target,
        kind,
        addresses,
        memory=memory,
        operations=operations,
        descriptors=descriptors,
        read_only=read_only,
        faults=MappedFaults(target.path, addresses, target.align, bad),
        bad=bad,
    )
    pool.advise()
    if not read_only:
        pool.reserve_holes()
    return pool


def _reserve(target: kinds.Target) -> AddressRange:
    try:
        return AddressRange(target.size, target.align)
    except OSError as error:
        text = f"{target.path}: no addresses for {target.size} bytes ({error.strerror}); raise the limit (ulimit -v)"
        raise PoolError(text, kinds.MOUNT_FAILED) from None


def _map_privately(target: kinds.Target, descriptors: tuple[int, ...], bad: BadRanges) -> Pool:
    """Map the pool copy-on-write. A devdax device does not support this (EINVAL)."""
    addresses = _reserve(target)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    addresses.map(target.size, descriptors[0], protection=protection, flags=mmap.MAP_PRIVATE)
    memory = addresses.view()
    pool = MappedPool(
        target,
        mapped_kind(target, descriptors[0]),
        addresses,
        memory=memory,
        operations=persist.volatile(memory),
        descriptors=descriptors,
        read_only=False,
        faults=MappedFaults(target.path, addresses, target.align, bad),
        bad=bad,
    )
    pool.private = True
    pool.status = None  # other processes that map the file see different content
    return pool

"""The requests of a client about an open file: lease, write notifications, renewal.

``lease_cache`` and ``maps`` send their requests through this module. It keeps no state: a caller passes the descriptor
and its holder number. ``answers`` checks each answer before this module returns it. preload/ioctls.c does this in C.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from daxfs import protocol
from daxfs.direct import answers
from daxfs.direct.pool import Pool
from daxfs.direct.trust import Refused
from daxfs.protocol import Flag, Kind


def random_holder() -> int:
    """Return a holder number that no other process has; never 0."""
    return int.from_bytes(os.urandom(8), "little") or 1


def control(descriptor: int, request: int, record: bytes | bytearray) -> None:
    """Call ioctl(2). The kernel writes the answer into ``record`` if it is a bytearray.

    Raises:
        OSError: the daemon's.
    """
    fcntl.ioctl(descriptor, request, record, True)


def lease(pool: Pool, descriptor: int, request: protocol.Lease, buffer: bytearray) -> protocol.Lease:
    """Request a lease, and check that the answer concerns this pool. ``buffer`` holds request and answer.

    A signal ends a request that fills much memory (EINTR), and what is filled stays. So after the signal's handler has
    returned the request is made again.

    Raises:
        OSError: the daemon's.
        Refused: the answer makes no sense, or names another pool or a part of the pool that is not mapped here.
    """
    while True:
        request._replace(token=pool.token).pack_into(buffer)
        with suppress(InterruptedError):
            control(descriptor, protocol.IOC_LEASE, buffer)
            break
    answer = answers.read_lease(request, buffer)
    if (answer.device, answer.inode) != (pool.record.device, pool.record.inode):
        raise Refused("the file lies in another pool now")
    ends = [extent.pool_offset + extent.length for extent in answer.extents if extent.kind == Kind.MEMORY]
    if max(ends, default=0) > pool.size or answer.entry + protocol.ENTRY.size > pool.size:
        raise Refused("the pool has grown; open the file again")
    return answer


def status_words(pool: Pool, entry: int, size: int) -> memoryview:
    """Return the words of a status entry: the epoch is word 0, the file size in bytes is word 1.

    ``entry`` is the pool offset of the status entry. On a read-only mount it is 0, since nothing changes there: the
    words are then constant until memory is missing, with the epoch 0 that the daemon answers there.

    Raises:
        Refused: as `Guard.constant_words`.
    """
    if not entry:
        return pool.guard.constant_words(size)
    return pool.memory[entry : entry + protocol.ENTRY.size].cast("Q")


def notify_stored(descriptor: int, flags: int = 0) -> None:
    """Send a write notification: the open file's holder has stored, so that the daemon updates the file's times.

    Raises:
        OSError: the daemon's.
    """
    control(descriptor, protocol.IOC_STORED, protocol.Stored(0, flags).pack())


def notify_appended(descriptor: int, base: int, size: int, holder: int, flags: int = 0) -> None:
    """Send a write notification: ``holder`` has stored past EOF ``base``, so that the file is ``size`` bytes long.

    Raises:
        OSError: the daemon's; EAGAIN, EOF is no longer at ``base``, and nothing has changed.
    """
    control(descriptor, protocol.IOC_APPENDED, protocol.Appended(base, size, holder, flags).pack())


def renew(pool: Pool, descriptor: int, holder: int) -> None:
    """Give back everything that was granted to a holder.

    Errors are ignored: the leases end at the latest when the kernel releases the open file.
    """
    request = protocol.Lease(holder, 0, 0, Flag.RENEW, token=pool.token)
    buffer = bytearray(request.pack(protocol.SHORT_LEASE_SIZE))
    try:
        control(descriptor, protocol.IOC_SHORT_LEASE, buffer)
    except OSError:
        return

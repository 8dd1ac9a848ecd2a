"""Handlers of the connection itself: INIT, DESTROY, INTERRUPT, SYNCFS, and the requests that daxfs does not need."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi, durability, negotiation
from daxfs.fuse.kernel.abi import Opcode

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request

log = logging.getLogger("daxfs.fuse")


def init(connection: Connection, request: Request) -> bytes:
    """Answer INIT, the handshake, and log what this kernel lacks."""
    wanted = negotiation.wanted(
        cache_links=connection.options.atime != "strictatime", cache_data=connection.caches_data
    )
    try:
        agreement, answer = negotiation.answer_init(request, wanted)
    except FsError as error:
        log.error("%s", error.strerror)
        raise
    if agreement.minor:
        connection.agreement = agreement
        log.info("FUSE 7.%d, requests of %d KiB", agreement.minor, agreement.max_write >> 10)
        for line in agreement.missing():
            log.warning("this kernel: %s", line)
        if (warning := durability.warning(connection)) is not None:
            log.warning("%s", warning)
    return answer


def destroy(connection: Connection, _request: Request) -> bytes:
    """Answer DESTROY, the last request of a connection."""
    connection.ended = True
    return b""


def interrupt(connection: Connection, request: Request) -> None:
    """Handle INTERRUPT, which has no answer: a signal has reached the caller of a request that is not answered."""
    connection.scheduler.interrupt(request.arguments(abi.INTERRUPT_IN).unique)


def syncfs(connection: Connection, _request: Request) -> bytes:
    """Answer SYNCFS: syncfs(2)."""
    connection.core.sync()
    return b""


def needless(_connection: Connection, _request: Request) -> bytes:
    """Return ENOSYS, so that the kernel sends no more FLUSH (closing makes nothing durable) and POLL (always ready)."""
    raise FsError(errno.ENOSYS)


TABLE: dict[int, Handler] = {
    Opcode.INIT: init,
    Opcode.DESTROY: destroy,
    Opcode.INTERRUPT: interrupt,
    Opcode.SYNCFS: syncfs,
    Opcode.FLUSH: needless,
    Opcode.POLL: needless,
}

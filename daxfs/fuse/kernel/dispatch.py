"""Answer a message: find the handler, call it, translate its error. Any malformed message is answered or dropped.

Only an exception that interrupted a change leaves this module; it ends the session (`daxfs.fuse.unexpected`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import FsError, MissingMemory, OnStorage
from daxfs.fuse import logs, unexpected
from daxfs.fuse.kernel import abi, attributes, control, directories, files, ioctls, names
from daxfs.fuse.kernel.abi import BODY
from daxfs.fuse.kernel.connection import SMALL
from daxfs.fuse.kernel.scheduling import SLICE_SECONDS

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer, Work

log = logging.getLogger("daxfs.fuse")

_HEADER = abi.IN_HEADER.index
LENGTH, OPCODE, UNIQUE, EXTENSIONS = _HEADER.len, _HEADER.opcode, _HEADER.unique, _HEADER.total_extlen

Reply = tuple[bytes] | tuple[bytes, bytes | memoryview]

TABLE: dict[int, Handler] = {
    int(opcode): handler
    for module in (control, names, attributes, files, directories, ioctls)
    for opcode, handler in module.TABLE.items()
}

_out_header = abi.OUT_HEADER.pack
OUT = abi.OUT_HEADER.size


def answer(connection: Connection, request: Request, length: int, table: dict[int, Handler]) -> Reply | None:
    """Answer the message of ``length`` bytes in the request's buffer.

    Args:
        connection: that received the message.
        request: describes the message; afterwards its ``undo`` reverts the operation if the answer can't be delivered.
        length: of the message in bytes.
        table: the handlers by opcode.

    Returns:
        The buffers of the answer, valid until the next change of the file system; None if there is no answer.
    """
    if length < BODY:
        log.error("a message of %d bytes", length)
        return None
    words = request.words
    opcode, unique = words[OPCODE], request.longs[UNIQUE]
    request.undo = None
    request.end = length
    try:
        handler = table[opcode]
    except KeyError:
        return refusal(FsError(errno.ENOSYS), opcode, unique)
    try:
        if words[LENGTH] != length:
            raise FsError(errno.EINVAL, f"opcode {opcode}: {length} bytes, the header says {words[LENGTH]}")
        if request.halves[EXTENSIONS]:
            request.leave_out_extensions()
        body = handler(connection, request)
    except FsError as error:
        if is_full(error) and connection.scheduler.postpone(bytes(request.buffer[:length])):
            request.refused = None
            return None
        if isinstance(error, OnStorage):
            connection.scheduler.bring(request, error.bring())
            request.refused = None
            return None
        request.refuse()
        return refusal(error, opcode, unique)
    except Exception as error:
        request.refuse()
        request.take_back()
        return refusal(unexpected.refusal(connection.core, error, f"opcode {opcode}"), opcode, unique)
    if body is None:
        return None
    size = len(body)
    if size < SMALL:
        return (_out_header(OUT + size, 0, unique) + body,)
    return _out_header(OUT + size, 0, unique), body


def proceed(
    connection: Connection, request: Request, work: Work, seconds: float, poll: Callable[[int], object]
) -> Reply | None:
    """Continue a work for a slice.

    Args:
        connection: that the work belongs to.
        request: its ``undo`` is the work's afterwards, as in `answer`.
        work: unfinished; the scheduler learns whether it has ended.
        seconds: the length of the slice, within `SLICE_SECONDS`.
        poll: asked for the waiting requests, which end the slice at the next step.

    Returns:
        The answer, once the work has ended; None before, and if nobody waits for the answer.
    """
    scheduler = connection.scheduler
    request.undo = None
    ended = True
    body: Answer = None
    try:
        ended = work.run(min(max(seconds, 0.0), SLICE_SECONDS), partial(poll, 0))
        if not ended:
            return None
        body = work.answer()
    except FsError as error:
        if not work.message:
            logs.unanswered("freeing files", error)
            return None
        if is_full(error) and not work.again and scheduler.postpone(work.message):
            return None
        return refusal(error, work.opcode, work.unique)
    except Exception as error:
        return refusal(unexpected.refusal(connection.core, error, f"opcode {work.opcode}"), work.opcode, work.unique)
    finally:
        if ended:
            scheduler.ended(work)
            if work.message and connection.counting is not None:
                connection.counting.work_ended(work, body)
    if work.again:
        request.buffer[: len(work.message)] = work.message
        return answer(connection, request, len(work.message), connection.table)
    return None if body is None else (_out_header(OUT + len(body), 0, work.unique), body)


def is_full(error: FsError) -> bool:
    """Return whether files that the kernel forgets may help.

    They give no room to the file system below the pool, which `MissingMemory` is about.
    """
    return error.errno == errno.ENOSPC and not isinstance(error, MissingMemory)


def refusal(error: FsError, opcode: int, unique: int) -> Reply | None:
    """Return the answer to a refused request; None, and a line in the log, if its opcode has no answer."""
    if opcode in abi.WITHOUT_ANSWER:
        logs.unanswered(f"opcode {opcode}", error)
        return None
    return (_out_header(OUT, -(error.errno or errno.EIO), unique),)

"""From a message to its answer: which handler, which error. A message, however malformed, has an answer or is dropped.

Only an exception that interrupted a change leaves this module; it ends the session (`daxfs.fuse.unexpected`).
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse import logs, unexpected
from daxfs.fuse.kernel import abi, attributes, control, directories, files, ioctls, names
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.request import BODY

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Answer, Connection, Handler
    from daxfs.fuse.kernel.request import Request

log = logging.getLogger("daxfs.fuse")

Reply = tuple[bytes] | tuple[bytes, bytes | memoryview]

TABLE: dict[int, Handler] = {
    int(opcode): handler
    for module in (control, names, attributes, files, directories, ioctls)
    for opcode, handler in module.TABLE.items()
}
QUICK = files.QUICK
WITHOUT_ANSWER = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)

_out_header = abi.OUT_HEADER.pack
OUT = abi.OUT_HEADER.size
SMALL = 1024
"""Bytes that are sooner copied behind the header than handed to the kernel as a buffer of their own."""


def answer(connection: Connection, request: Request, length: int, table: dict[int, Handler]) -> Reply | None:
    """Answer the message of ``length`` bytes in the request's buffer.

    Args:
        connection: whose it is.
        request: filled here; its ``undo`` is set if the answer must be taken back when it can't be delivered.
        length: bytes.
        table: the handlers.

    Returns:
        The buffers of the answer, valid until the next change of the file system; None: there is none.
    """
    if length < BODY:
        log.error("a message of %d bytes", length)
        return None
    words = request.words
    opcode, unique = words[1], request.longs[1]
    request.undo = None
    body: Answer = None
    quick = QUICK.get(opcode)
    try:
        if quick is not None and words[0] == length and not words[9] and connection.counting is None:
            try:
                body = quick(connection, request, length)
            except FsError as error:
                if error.errno != errno.ENOSPC:
                    raise
        if body is None:
            body = ordinarily(connection, request, length, table.get(opcode))
    except FsError as error:
        if error.errno == errno.ENOSPC and connection.postpone(request):
            return None
        return refusal(error, opcode, unique)
    except Exception as error:
        request.take_back()
        return refusal(unexpected.refusal(connection.core, error, f"opcode {opcode}"), opcode, unique)
    if body is None:
        return None
    size = len(body)
    if size < SMALL:
        return (_out_header(OUT + size, 0, unique) + body,)
    return _out_header(OUT + size, 0, unique), body


def ordinarily(connection: Connection, request: Request, length: int, handler: Handler | None) -> Answer:
    """The body of an answer, by the handler; asked again if the pool was full and forgets wait that may free room."""
    words = request.words
    extensions = words[9] & 0xFFFF
    request.length = length
    request.end = length - 8 * extensions
    if handler is None:
        raise FsError(errno.ENOSYS)
    if words[0] != length or request.end < BODY:
        raise FsError(errno.EINVAL, f"opcode {words[1]}: {length} bytes, the header says {words[0]}")
    try:
        return handler(connection, request)
    except FsError as error:
        if error.errno != errno.ENOSPC or not connection.forgets:
            raise
    connection.settle()
    return handler(connection, request)


def refusal(error: FsError, opcode: int, unique: int) -> Reply | None:
    """The answer to a request that was refused."""
    if opcode in WITHOUT_ANSWER:
        logs.unanswered(f"opcode {opcode}", error)
        return None
    return (_out_header(OUT, -(error.errno or errno.EIO), unique),)

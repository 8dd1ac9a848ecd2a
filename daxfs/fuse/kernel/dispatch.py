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
from daxfs.fuse.kernel.abi import BODY, Opcode

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request

log = logging.getLogger("daxfs.fuse")

_HEADER = abi.IN_HEADER.index
LENGTH, OPCODE, UNIQUE, EXTENSIONS = _HEADER.len, _HEADER.opcode, _HEADER.unique, _HEADER.total_extlen

Reply = tuple[bytes] | tuple[bytes, bytes | memoryview]

TABLE: dict[int, Handler] = {
    int(opcode): handler
    for module in (control, names, attributes, files, directories, ioctls)
    for opcode, handler in module.TABLE.items()
}
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
        if error.errno == errno.ENOSPC and connection.postponing.put_off(request):
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


def refusal(error: FsError, opcode: int, unique: int) -> Reply | None:
    """The answer to a request that was refused."""
    if opcode in WITHOUT_ANSWER:
        logs.unanswered(f"opcode {opcode}", error)
        return None
    return (_out_header(OUT, -(error.errno or errno.EIO), unique),)

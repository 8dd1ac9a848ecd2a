"""Handlers of open files: data, size changes by range, positions of data and holes, durability.

Reads answer with the pool's memory itself: the session hands it to the kernel before it looks at the next request.
Files are opened ``positioned``: the kernel has put the offset of an appending write right already, and pages that it
writes back go where they were mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.types import Attributes, Caller
from daxfs.fuse.groups import with_groups_that_matter
from daxfs.fuse.kernel import abi, negotiation
from daxfs.fuse.kernel.abi import Init, Opcode
from daxfs.fuse.kernel.names import remembered
from daxfs.fuse.kernel.request import BODY

if TYPE_CHECKING:
    from daxfs.fs.filesystem import OpenFile
    from daxfs.fuse.kernel.connection import Connection, Handler, QuickHandler
    from daxfs.fuse.kernel.request import Request

READ_END = BODY + abi.READ_IN.size
WRITE_DATA = BODY + abi.WRITE_IN.size
_write_out = abi.WRITE_OUT.pack
LARGEST_READ = negotiation.MOST_PAGES * mmap.PAGESIZE
"""No request is larger, and zeros for the holes of a file must be made."""
LARGEST_COPY = 64 << 20
"""So much one request copies at most, in some milliseconds: others wait meanwhile, and the caller asks again."""


def open_file(connection: Connection, request: Request) -> bytes:
    """Open by node; the kernel has checked the rights."""
    flags, open_flags = request.arguments(abi.OPEN_IN)
    kill = bool(open_flags & abi.OPEN_KILL_SUIDGID) if connection.agreement.has(Init.HANDLE_KILLPRIV_V2) else None
    caller = request.caller()
    if flags & (os.O_ACCMODE | os.O_TRUNC):
        caller = with_groups_that_matter(connection.core, request.ino, caller)
    file = connection.core.open_file(request.ino, flags, caller, kill, positioned=True)
    if flags & os.O_TRUNC and kill is not False:
        connection.forget_attributes_of(file.ino)
    return connection.opened(request, file)


def create(connection: Connection, request: Request) -> bytes:
    """Make a regular file and open it."""
    flags, mode, umask, _ = request.arguments(abi.CREATE_IN)
    name = request.name(BODY + abi.CREATE_IN.size)
    file, made = connection.core.create(request.ino, name, mode, flags, request.caller(umask), positioned=True)
    return made_and_opened(connection, request, file, made)


def tmpfile(connection: Connection, request: Request) -> bytes:
    """Make a file without a name and open it (O_TMPFILE)."""
    flags, mode, umask, _ = request.arguments(abi.CREATE_IN)
    file, made = connection.core.tmpfile(request.ino, mode, flags, request.caller(umask), positioned=True)
    return made_and_opened(connection, request, file, made)


def made_and_opened(connection: Connection, request: Request, file: OpenFile, made: Attributes) -> bytes:
    """Entry and handle in one answer."""
    entry = remembered(connection, request, made)
    forget = request.undo
    answer = connection.opened(request, file)
    close = request.undo

    def undo() -> None:
        for step in (close, forget):
            if step is not None:
                step()

    request.undo = undo
    return entry + answer


def read(connection: Connection, request: Request) -> memoryview | bytes:
    """Data, as a view of the pool where it lies together."""
    handle, offset, size, _, _, _ = request.arguments(abi.READ_IN)
    return connection.core.read(connection.file(handle), offset, min(size, LARGEST_READ))


def write(connection: Connection, request: Request) -> bytes:
    """Data into the file; what comes from the kernel's page cache never takes set-id bits away."""
    handle, offset, size, flags, _, wanted = request.arguments(abi.WRITE_IN)
    file = connection.file(handle)
    content = request.data(WRITE_DATA, size)
    if flags & abi.WRITE_CACHE:
        # Pages never make a file longer. What was behind the end may be on its way while the file is being cut.
        content = content[: max(file.size - offset, 0)]
        written = connection.core.write(file, offset, content, False)
        return abi.WRITE_OUT.pack(size if written == len(content) else written)
    kill = bool(flags & abi.WRITE_KILL_SUIDGID) if connection.agreement.has(Init.HANDLE_KILLPRIV_V2) else None
    if wanted & os.O_APPEND and offset < file.size:
        # A client has made it longer by itself; the kernel does not know the size until it asks again.
        offset = file.size
        connection.forget_attributes_of(file.ino)
    with change_of_content(connection, request, file) as caller:
        written = connection.core.write(file, offset, content, kill, caller)
    if wanted & os.O_DSYNC and not file.durable:
        connection.core.fsync(file.ino, datasync=True)
    return abi.WRITE_OUT.pack(written)


@contextmanager
def change_of_content(connection: Connection, request: Request, file: OpenFile) -> Iterator[Caller | None]:
    """A change of the file's content, made inside by the caller that is yielded; None: by the one who opened the file.

    Set-id bits may go, even if the change fails then; and the kernel, which looks at its cached mode when it runs a
    program, does not know: it is told to ask again.
    """
    if file.keeps_privileges:
        yield None
        return
    caller = None
    if connection.agreement.has(Init.HANDLE_KILLPRIV_V2):
        caller = with_groups_that_matter(connection.core, file.ino, request.caller())
    try:
        yield caller
    finally:
        connection.forget_attributes_of(file.ino)


def quick_read(connection: Connection, request: Request, length: int) -> memoryview | bytes | None:
    """What `read` does where nothing is unusual; None: something is. The arguments are read where they lie."""
    if length != READ_END:
        return None
    longs, size = request.longs, request.words[14]
    file = connection.files.get(longs[5])
    if file is None or size > LARGEST_READ:
        return None
    return connection.core.read(file, longs[6], size)


def quick_write(connection: Connection, request: Request, length: int) -> bytes | None:
    """The same for `write`: no page, not to be made durable, a file that has no privileges to lose."""
    if length < WRITE_DATA:
        return None
    longs, words = request.longs, request.words
    file = connection.files.get(longs[5])
    if file is None or length != WRITE_DATA + words[14] or not file.keeps_privileges:
        return None
    if words[15] & abi.WRITE_CACHE or words[18] & (os.O_DSYNC | os.O_APPEND):
        return None
    return _write_out(connection.core.write(file, longs[6], request.buffer[WRITE_DATA:length]))


def release(connection: Connection, request: Request) -> bytes:
    """The last user has closed it."""
    handle, _, _, _ = request.arguments(abi.RELEASE_IN)
    connection.closed(handle)
    return b""


def fsync(connection: Connection, request: Request) -> bytes:
    """fsync(2) and fdatasync(2)."""
    handle, flags = request.arguments(abi.FSYNC_IN)
    connection.core.fsync(connection.file(handle).ino, bool(flags & abi.FSYNC_FDATASYNC))
    return b""


def fallocate(connection: Connection, request: Request) -> bytes:
    """fallocate(2); the kernel itself refuses to collapse and insert ranges through FUSE."""
    handle, offset, length, mode = request.arguments(abi.FALLOCATE_IN)
    file = connection.file(handle)
    with change_of_content(connection, request, file) as caller:
        connection.core.fallocate(file, mode, offset, length, caller)
    return b""


def lseek(connection: Connection, request: Request) -> bytes:
    """SEEK_DATA and SEEK_HOLE; the kernel does the other kinds itself."""
    handle, offset, whence = request.arguments(abi.LSEEK_IN)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise FsError(errno.EINVAL)
    return abi.LSEEK_OUT.pack(connection.core.seek(connection.file(handle), offset, whence))


def copy_file_range(connection: Connection, request: Request) -> bytes:
    """copy_file_range(2), a piece of it."""
    source, offset, _, target, target_offset, length, flags = request.arguments(abi.COPY_FILE_RANGE_IN)
    if flags:
        raise FsError(errno.EINVAL)
    wide = request.opcode == Opcode.COPY_FILE_RANGE_64
    length = min(length, LARGEST_COPY)
    file, changed = connection.file(source), connection.file(target)
    with change_of_content(connection, request, changed) as caller:
        copied = connection.core.copy_range(file, offset, changed, target_offset, length, caller)
    return abi.COPY_FILE_RANGE_OUT.pack(copied) if wide else abi.WRITE_OUT.pack(copied)


QUICK: dict[int, QuickHandler] = {int(Opcode.READ): quick_read, int(Opcode.WRITE): quick_write}
"""The requests that carry data, as long as nobody counts them: a fifth of their time is what comes before the core."""
TABLE: dict[int, Handler] = {
    Opcode.OPEN: open_file,
    Opcode.CREATE: create,
    Opcode.TMPFILE: tmpfile,
    Opcode.READ: read,
    Opcode.WRITE: write,
    Opcode.RELEASE: release,
    Opcode.FSYNC: fsync,
    Opcode.FALLOCATE: fallocate,
    Opcode.LSEEK: lseek,
    Opcode.COPY_FILE_RANGE: copy_file_range,
    Opcode.COPY_FILE_RANGE_64: copy_file_range,
}

"""Handlers of open files: data, fallocate, positions of data and holes, durability.

A read is answered with the pool's memory itself: the session passes it to the kernel before it reads the next request.
Files are opened ``positioned``: the kernel has set the offset of an appending write already, and a page that it writes
back belongs where it was mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fs.types import Attributes, Caller
from daxfs.fuse.groups import with_groups_that_matter
from daxfs.fuse.kernel import abi, negotiation, staged
from daxfs.fuse.kernel.abi import BODY, Init, Opcode
from daxfs.fuse.kernel.connection import unknown_handle
from daxfs.fuse.kernel.names import remembered
from daxfs.fuse.kernel.request import cut_short

if TYPE_CHECKING:
    from daxfs.fs.filesystem import OpenFile
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

# READ and WRITE read their arguments in place: the work before the call of the core is a fifth of a small request.
_READ, _WRITE = abi.READ_IN.index, abi.WRITE_IN.index
READ_FH, READ_OFFSET, READ_SIZE = _READ.fh, _READ.offset, _READ.size
WRITE_FH, WRITE_OFFSET, WRITE_SIZE = _WRITE.fh, _WRITE.offset, _WRITE.size
WRITE_FLAGS, WRITE_OPEN_FLAGS = _WRITE.write_flags, _WRITE.flags
READ_END = BODY + abi.READ_IN.size
WRITE_DATA = BODY + abi.WRITE_IN.size
WRITE_CACHE = abi.WRITE_CACHE
APPENDING_OR_DURABLE = os.O_APPEND | os.O_DSYNC
_write_out = abi.WRITE_OUT.pack
LARGEST_READ = negotiation.MOST_PAGES * mmap.PAGESIZE
"""The most bytes that a READ asks for: a bound for the zeros that holes need."""
LARGEST_AT_ONCE = 1 << 20
"""The most bytes that are read in one step, even if they lie in single blocks."""
LARGEST_COPY = 64 << 20
"""The most bytes that one request copies."""
COPY_SECONDS = 0.005
"""How long one request copies: it ends with fewer bytes then, and the caller asks again."""

R = TypeVar("R")


def open_file(connection: Connection, request: Request) -> Answer:
    """Answer OPEN: open a file by its node; the kernel has checked permissions."""
    connection.check_open_limit(request)
    flags, open_flags = request.arguments(abi.OPEN_IN)
    kill = bool(open_flags & abi.OPEN_KILL_SUIDGID) if connection.agreement.has(Init.HANDLE_KILLPRIV_V2) else None
    caller = request.caller()
    if flags & (os.O_ACCMODE | os.O_TRUNC):
        caller = with_groups_that_matter(connection.core, request.ino, caller)
    if not flags & os.O_TRUNC:
        return connection.opened(request, connection.core.open_file(request.ino, flags, caller, kill, positioned=True))

    def opened(file: OpenFile) -> bytes:
        if kill is not False:
            connection.invalidate_attributes(file.ino)
        return connection.opened(request, file)

    steps = connection.core.steps.open_file(request.ino, flags, caller, kill, positioned=True)
    return connection.scheduler.begin(request, steps, opened, frozenset({request.node}))


def create(connection: Connection, request: Request) -> bytes:
    """Answer CREATE: create a regular file and open it."""
    connection.check_open_limit(request)
    flags, mode, umask, _ = request.arguments(abi.CREATE_IN)
    name = request.name(BODY + abi.CREATE_IN.size)
    file, made = connection.core.create(request.ino, name, mode, flags, request.caller(umask), positioned=True)
    return made_and_opened(connection, request, file, made)


def tmpfile(connection: Connection, request: Request) -> bytes:
    """Answer TMPFILE: create a file without a name and open it (O_TMPFILE)."""
    connection.check_open_limit(request)
    flags, mode, umask, _ = request.arguments(abi.CREATE_IN)
    file, made = connection.core.tmpfile(request.ino, mode, flags, request.caller(umask), positioned=True)
    return made_and_opened(connection, request, file, made)


def made_and_opened(connection: Connection, request: Request, file: OpenFile, made: Attributes) -> bytes:
    """Return fuse_entry_out and fuse_open_out of a new file; an undelivered answer undoes both."""
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


def read(connection: Connection, request: Request) -> Answer:
    """Answer READ: return data, as a view of the pool if it lies in one piece."""
    if request.end < READ_END:
        raise cut_short()
    longs, size = request.longs, request.words[READ_SIZE]
    try:
        file = connection.files[longs[READ_FH]]
    except KeyError:
        raise unknown_handle(longs[READ_FH]) from None
    if connection.batches.by_handle:
        found = staged.read(connection, request, file, longs[READ_OFFSET], min(size, LARGEST_READ))
        if found is not None:
            return found
    offset = longs[READ_OFFSET]
    if size > LARGEST_AT_ONCE:
        steps = connection.core.steps.read(file, offset, min(size, LARGEST_READ))
        return connection.scheduler.begin(request, steps, partial(as_view_or_copy, connection))
    content = connection.core.read(file, offset, size)
    # This condition is that of `as_view_or_copy`, whose call would be a fiftieth of a small request.
    return content if len(content) >= connection.shortest_view else as_view_or_copy(connection, content)


def as_view_or_copy(connection: Connection, content: memoryview | bytes) -> memoryview | bytes:
    """Return what was read as the kernel can take it: as it is, or as a copy."""
    if len(content) >= connection.shortest_view:
        return content
    copy = bytes(content)
    connection.core.finish_copy()
    return copy


def write(connection: Connection, request: Request) -> bytes:
    """Answer WRITE: write data to an open file."""
    longs, words = request.longs, request.words
    end = WRITE_DATA + words[WRITE_SIZE]
    if request.end < end:
        raise cut_short()
    try:
        file = connection.files[longs[WRITE_FH]]
    except KeyError:
        raise unknown_handle(longs[WRITE_FH]) from None
    offset, content = longs[WRITE_OFFSET], request.buffer[WRITE_DATA:end]
    if words[WRITE_FLAGS] & WRITE_CACHE:
        return _write_out(written_back(connection, file, offset, content))
    if longs[WRITE_FH] in connection.batches.by_handle:
        written = staged.write(connection, request, offset, content, kill_given(connection, request))
        if written is not None:
            return _write_out(written)
    if connection.announced.by_handle and connection.announced.has(longs[WRITE_FH], offset, words[WRITE_SIZE]):
        return _write_out(written_as_announced(connection, request, file, offset, content))
    if words[WRITE_OPEN_FLAGS] & APPENDING_OR_DURABLE or not file.keeps_privileges:
        return _write_out(written_with_care(connection, request, file, offset, content))
    return _write_out(connection.core.write(file, offset, content))


def written_back(connection: Connection, file: OpenFile, offset: int, content: memoryview) -> int:
    """Write data from the kernel's page cache, which clears no set-id bits.

    Data past EOF is dropped: pages never make a file longer, and write-back may overtake a truncate. All of the rest is
    written, or the request fails: the kernel takes a page for written whatever the answer's size is
    (``fuse_writepage_end`` in fs/fuse/file.c).
    """
    inside = content[: max(connection.core.size_of(file) - offset, 0)]
    written = 0
    while written < len(inside):
        written += connection.core.write(file, offset + written, inside[written:], False)
    return len(content)


def written_with_care(
    connection: Connection, request: Request, file: OpenFile, offset: int, content: memoryview, *, atomic: bool = False
) -> int:
    """Write with O_APPEND, with O_DSYNC, atomically, or to a file whose privileges the write may clear."""
    open_flags = request.words[WRITE_OPEN_FLAGS]
    kill = kill_given(connection, request)
    size = connection.core.size_of(file)
    if open_flags & os.O_APPEND and offset != size:
        # The kernel's size is out of date until it requests the attributes again: a client has extended the file, or a
        # batch has written past EOF and was not committed.
        offset = size
        connection.invalidate_attributes(file.ino)
    with change_of_content(connection, request, file) as caller:
        written = connection.core.write(file, offset, content, kill, caller, atomic=atomic)
    if open_flags & os.O_DSYNC and not file.durable:
        connection.core.fsync(file.ino, datasync=True)
    return written


def written_as_announced(
    connection: Connection, request: Request, file: OpenFile, offset: int, content: memoryview
) -> int:
    """Make an announced write, which is forgotten once it is answered: a postponed one is made again."""
    forget = partial(connection.announced.take, request.longs[WRITE_FH], offset, len(content))
    request.refused = forget
    written = written_with_care(connection, request, file, offset, content, atomic=True)
    request.refused = None
    forget()
    return written


def kill_given(connection: Connection, request: Request) -> bool | None:
    """Return whether a WRITE drops set-id bits; None: the kernel leaves it to the core."""
    if not connection.agreement.has(Init.HANDLE_KILLPRIV_V2):
        return None
    return bool(request.words[WRITE_FLAGS] & abi.WRITE_KILL_SUIDGID)


def change_of_content(
    connection: Connection, request: Request, file: OpenFile
) -> AbstractContextManager[Caller | None]:
    """Surround a change of the file's content; yield the caller that makes it, or None for the opener of the file."""
    return nullcontext() if file.keeps_privileges else loss_of_privileges(connection, request, file)


@contextmanager
def loss_of_privileges(connection: Connection, request: Request, file: OpenFile) -> Iterator[Caller | None]:
    """Surround a change of content that may clear set-id bits, even if it fails; yield the caller as above.

    At exec the kernel looks only at its cached mode, so the file's attributes are invalidated afterwards.
    """
    caller = None
    if connection.agreement.has(Init.HANDLE_KILLPRIV_V2):
        caller = with_groups_that_matter(connection.core, file.ino, request.caller())
    try:
        yield caller
    finally:
        connection.invalidate_attributes(file.ino)


def release(connection: Connection, request: Request) -> bytes:
    """Answer RELEASE: the last descriptor and mapping of an open file are gone."""
    connection.closed(request.arguments(abi.RELEASE_IN).fh)
    return b""


def fsync(connection: Connection, request: Request) -> bytes:
    """Answer FSYNC: fsync(2) and fdatasync(2)."""
    given = request.arguments(abi.FSYNC_IN)
    connection.core.fsync(connection.file(given.fh).ino, bool(given.fsync_flags & abi.FSYNC_FDATASYNC))
    return b""


def changing_content(
    connection: Connection, request: Request, file: OpenFile, operation: Callable[[Caller | None], Steps[R]]
) -> Steps[R]:
    """Run the steps of an operation that changes the file's content, as `change_of_content`.

    If it fails, the kernel takes its cached attributes for right, but a part may be done: they are invalidated.
    """
    with change_of_content(connection, request, file) as caller:
        try:
            return (yield from operation(caller))
        except FsError:
            connection.invalidate_attributes(file.ino)
            raise


def fallocate(connection: Connection, request: Request) -> Answer:
    """Answer FALLOCATE: fallocate(2). The kernel itself refuses to collapse and insert ranges through FUSE."""
    given = request.arguments(abi.FALLOCATE_IN)
    file = connection.file(given.fh)
    staged.refuse(connection, given.fh, request.pid)

    def operation(caller: Caller | None) -> Steps[None]:
        return connection.core.steps.fallocate(file, given.mode, given.offset, given.length, caller)

    steps = changing_content(connection, request, file, operation)
    return connection.scheduler.begin(request, steps, lambda _: b"", frozenset({request.node}), shortens=True)


def lseek(connection: Connection, request: Request) -> Answer:
    """Answer LSEEK for SEEK_DATA and SEEK_HOLE; the kernel handles the other kinds itself."""
    given = request.arguments(abi.LSEEK_IN)
    if given.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise FsError(errno.EINVAL)
    steps = connection.core.steps.seek(connection.file(given.fh), given.offset, given.whence)
    return connection.scheduler.begin(request, steps, abi.LSEEK_OUT.pack)


def copy_file_range(connection: Connection, request: Request) -> Answer:
    """Answer COPY_FILE_RANGE: copy up to `LARGEST_COPY` bytes of a copy_file_range(2), for `COPY_SECONDS`."""
    given = request.arguments(abi.COPY_FILE_RANGE_IN)
    if given.flags:
        raise FsError(errno.EINVAL)
    wide = request.opcode == Opcode.COPY_FILE_RANGE_64
    length = min(given.len, LARGEST_COPY)
    source, target = connection.file(given.fh_in), connection.file(given.fh_out)
    staged.refuse(connection, given.fh_in, request.pid)
    staged.refuse(connection, given.fh_out, request.pid)

    def operation(caller: Caller | None) -> Steps[int]:
        return connection.core.steps.copy_range(source, given.off_in, target, given.off_out, length, caller)

    return connection.scheduler.begin(
        request,
        changing_content(connection, request, target, operation),
        abi.COPY_FILE_RANGE_OUT.pack if wide else abi.WRITE_OUT.pack,
        frozenset({request.node, given.nodeid_out}),
        shortens=True,
        patience=COPY_SECONDS,
    )


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

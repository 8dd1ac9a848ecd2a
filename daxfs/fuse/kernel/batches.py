"""Batches of several writes, by the ioctls of F2FS that SQLite uses (SQLITE_ENABLE_BATCH_ATOMIC_WRITE).

START begins a batch on an open file, COMMIT makes its writes durable, all or none, ABORT drops them. So does the
close of the open file, and COMMIT itself if it fails. Unlike on F2FS nobody else sees the writes before COMMIT, other
open files of the same inode are not affected, and only the process that has begun a batch may end it.

Source: f2fs_ioc_start_atomic_write and others in fs/f2fs/file.c; the numbers are in `daxfs.f2fs`.
"""

from __future__ import annotations

import errno
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi, staged
from daxfs.fuse.kernel.files import change_of_content
from daxfs.fuse.kernel.openbatch import OpenBatch

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection
    from daxfs.fuse.kernel.request import Request

FEATURES = Struct("=I")
FEATURE_ATOMIC_WRITE = 0x0004


def features(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Answer F2FS_IOC_GET_FEATURES: whether this file can have batches."""
    handle = request.arguments(abi.IOCTL_IN).fh
    file, core = connection.files.get(handle), connection.core
    able = core.has_atomic_writes and not core.read_only
    able = able and file is not None and not connection.has_cache(file.ino)
    return FEATURES.pack(FEATURE_ATOMIC_WRITE if able else 0)


def start(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Answer F2FS_IOC_START_ATOMIC_WRITE.

    Raises:
        FsError: EOPNOTSUPP, the kernel caches the file's data, where others would see it. Others as
            `FileSystem.batch`.
    """
    handle = request.arguments(abi.IOCTL_IN).fh
    file = connection.file(handle)
    if connection.has_cache(file.ino):
        raise FsError(errno.EOPNOTSUPP, f"inode {file.ino}: the kernel caches its data")
    other = connection.batches.by_ino.get(file.ino)
    if other is not None:
        staged.running(connection, other.handle, request.pid)
    batch = connection.core.batch(file, request.uid)
    connection.batches.add(OpenBatch(batch, handle, file.ino, request.pid))
    return b""


def commit(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Answer F2FS_IOC_COMMIT_ATOMIC_WRITE: the batch ends, durable or without a trace.

    Raises:
        FsError: EINVAL, there is no batch; EPERM, another process has begun it; EBUSY, another thread's COMMIT of it
            waits for room, or the kernel has read staged pages into its cache, for somebody's mapping. Others as
            `Batch.commit`.
    """
    handle = request.arguments(abi.IOCTL_IN).fh
    file, begun = connection.file(handle), staged.running(connection, handle, request.pid)
    if begun is None:
        raise FsError(errno.EINVAL, f"file handle {handle} has no batch")
    check_may_end(request, begun)
    begun.committer = request.unique
    request.refused = partial(staged.drop, connection, begun)
    if begun.outdates:
        raise FsError(errno.EBUSY, f"inode {file.ino}: a mapping has read pages that the batch writes")
    with change_of_content(connection, request, file) as caller:
        begun.batch.try_commit(caller)
    request.refused = None
    staged.drop(connection, begun)
    return b""


def abort(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Answer F2FS_IOC_ABORT_ATOMIC_WRITE: drop what was written; without a batch there is nothing to drop."""
    handle = request.arguments(abi.IOCTL_IN).fh
    connection.file(handle)
    begun = staged.running(connection, handle, request.pid)
    if begun is not None:
        check_may_end(request, begun)
        staged.drop(connection, begun)
    return b""


def check_may_end(request: Request, begun: OpenBatch) -> None:
    """Refuse whoever may not end a batch. The kernel names threads.

    Raises:
        FsError: EPERM, a process that shares the open file and has not begun the batch; EBUSY, another thread of its
            process while a COMMIT waits for room. It would drop the batch, begin the next one, and have that committed.
    """
    if not begun.is_of(request.pid):
        raise FsError(errno.EPERM, f"thread {request.pid} is not of process {begun.process}, which has begun")
    if begun.committer not in (0, request.unique):
        raise FsError(errno.EBUSY, f"file handle {begun.handle}: the COMMIT of its batch waits for room")

"""Batches: writes through one open file that become the file's all at once, durably, or never.

The writes are staged in DRAM (`staging.py`), and nobody but their writer can read them. `Batch.commit` writes them as
one atomic write of several pieces (`atomic.write_pieces`) and makes it durable. So a batch needs nothing in the pool
before its commit, and one that ends otherwise has changed nothing, however it ends: `Batch.abort`, the close of the
file, the end of the daemon, a power cut.

While a file has a batch, clients of direct access may not store to it, and may not read it through the batch's own open
file (`daxfs.fs.grants.requests`). Other writers are not excluded: what they write to bytes that are staged is replaced
by the commit, as if they had written before it.
"""

from __future__ import annotations

import errno
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.ext4.inode import EXT4_IMMUTABLE_FL
from daxfs.fs import atomic, data
from daxfs.fs.operations import changing, reading
from daxfs.structures import inodes

if TYPE_CHECKING:
    from daxfs.fs.data import Buffer
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.staging import Staged
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume


class Batch:
    """A batch of one open file. As a context manager it is committed, or aborted after an exception.

    Example:
        >>> with fs.batch(file) as batch:
        ...     batch.write(0, header)
        ...     batch.write(40960, page)
    """

    def __init__(self, volume: Volume, file: OpenFile, uid: int) -> None:
        """Begin; `FileSystem.batch` calls this.

        Raises:
            FsError: EBADF, the file is not open for writing; EBUSY, there is a batch already; ENOMEM, the user has too
                many; EOPNOTSUPP, the pool has no journal; EROFS.
        """
        if not file.writable:
            raise FsError(errno.EBADF)
        atomic.refuse_without_journal(volume)
        volume.writable()
        self.volume = volume
        self._file = file
        self._staged = volume.staging.begin(file.ino, file, uid)
        file.node.restricted()

    @property
    def size(self) -> int:
        """The size that the file would have after a commit now, in bytes."""
        return max(self._file.size, self._staged.end)

    @reading
    def write(self, offset: int, content: Buffer, kill_privileges: bool | None = None) -> int:
        """Stage all of ``content`` at ``offset`` (at the end with O_APPEND), or nothing; return its length.

        Args:
            offset: in bytes.
            content: what to write.
            kill_privileges: as in `FileSystem.write`; the commit obeys it.

        Raises:
            FsError: EINVAL: the batch has ended. EFBIG: it has too many pages, or the file would be too long.
                ENOMEM: the user's batches have too many pages. EPERM, EROFS as for a write.
        """
        volume, file, staged = self.volume, self._file, self._running()
        content = memoryview(content).cast("B")
        volume.writable()
        if file.append:
            offset = self.size
        if offset < 0:
            raise FsError(errno.EINVAL)
        if volume.exceeds_map(file.ino, offset + len(content)):
            raise FsError(errno.EFBIG)
        if not file.keeps_privileges:
            data.refuse_overwrite(volume, file, offset)
            if inodes.read(volume.view, file.ino).flags & EXT4_IMMUTABLE_FL:
                raise FsError(errno.EPERM)
        if len(content):
            volume.staging.put(staged, offset, content)
            if kill_privileges is not None:
                staged.kill = staged.kill or kill_privileges
        return len(content)

    @reading
    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` as the file would be after a commit now."""
        staged, file = self._running(), self._file
        if not file.readable:
            raise FsError(errno.EBADF)
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        content = bytearray(atomic.kept(self.volume, file, offset, end))
        staged.overlay(offset, content)
        return bytes(content)

    def commit(self, caller: Caller | None = None) -> None:
        """Make all that was written the file's, durably, or nothing. The batch has ended in any case.

        Args:
            caller: as in `FileSystem.write`.

        Raises:
            FsError: as `try_commit`.
        """
        try:
            self.try_commit(caller)
        finally:
            self.abort()

    def try_commit(self, caller: Caller | None = None) -> None:
        """Commit as `commit` does, but go on with the batch after an error.

        Raises:
            FsError: EINVAL: the batch has ended. Others as `atomic.write_pieces`: nothing has changed. EIO: the
                journal has failed, and the next mount finds all or nothing.
        """
        self._running()
        self._commit(caller)
        self.abort()

    @changing
    def _commit(self, caller: Caller | None) -> None:
        file, staged = self._file.used_by(caller), self._staged
        pieces = staged.pieces(partial(atomic.kept, self.volume, file))
        atomic.write_pieces(self.volume, file, pieces, staged.kill)
        data.fsync(self.volume, file.ino)

    def abort(self) -> None:
        """Drop all that was written, if the batch has not ended."""
        end(self.volume, self._file)

    def _running(self) -> Staged:
        staged = self._staged
        if self.volume.staging.by_ino.get(self._file.ino) is not staged:
            raise FsError(errno.EINVAL, "the batch has ended")
        return staged

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def end(volume: Volume, file: OpenFile) -> None:
    """End the batch of an open file, if it has one."""
    staged = volume.staging.by_ino.get(file.ino)
    if staged is not None and staged.opened is file:
        volume.staging.end(file.ino)

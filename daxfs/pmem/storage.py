"""The storage member of a tiered pool: a file or a block device that is read and written, and never mapped.

A tiered pool is memory followed by members of storage, under one file system (docs/TIERS.md). Each of these begins with
a `Label`, which says to which pool it belongs; its content begins at `CONTENT`. This module opens, claims and verifies
one, and reads and writes its content by offset. Each call returns when the system call does, however long that takes.
It knows nothing of what the content means, nor how a pool finds its member (`daxfs.fs.tiers.members`).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping
from typing import NamedTuple

from daxfs.errors import FsError, PoolError
from daxfs.pmem import exclusive, kinds
from daxfs.pmem.descriptors import above_standard
from daxfs.runs import ByteRange

CONTENT = 2 << 20
"""Where the content begins, in bytes: a multiple of every unit that devices and file systems have."""
_MAGIC = b"daxfs storage 1\n"
_LABEL = struct.Struct("<16s16sQQ")
_ID_SIZE = 16
_UNIT = 4096


class Label(NamedTuple):
    """What the beginning of a member of storage says.

    Attributes:
        id: random bytes; the pool's record of its storage has the same.
        begin: bytes of the pool before it, memory and other members.
        size: bytes of content when the label was stored; the pool's record has those of today.
    """

    id: bytes
    begin: int
    size: int


def new_id() -> bytes:
    """Return an identity for a new member."""
    return os.urandom(_ID_SIZE)


class Storage:
    """An open member, claimed for this process; readers share the claim.

    Attributes:
        path: for messages.
        room: bytes that it has for content.
        read_only: whether it is open for reading only.
        place: the bytes of the pool that it holds.
    """

    def __init__(self, path: str, *, read_only: bool = False, exclusively: bool = True) -> None:
        """Open and claim it. ``exclusively`` False, for reading only: claim nothing.

        Raises:
            PoolError: it does not exist, is neither a file nor a block device, is too small or in use, or can't be
                opened.
        """
        self.path = path
        self.read_only = read_only
        self.place = ByteRange(0, 0)
        if not os.path.exists(path):
            raise PoolError(f"{path} does not exist", kinds.MOUNT_FAILED)
        _refuse_others(path)
        target = kinds.identify(path)
        if target.kind == kinds.DEVDAX:
            raise PoolError(f"{path} is memory; the storage of a pool is a file or a block device", kinds.MOUNT_FAILED)
        self.room = target.exact_size - CONTENT
        if self.room < _UNIT:
            raise PoolError(f"{path} has {target.exact_size} bytes, too few for storage", kinds.MOUNT_FAILED)
        access = os.O_RDONLY if read_only else os.O_RDWR
        self._guard = -1
        with above_standard():
            if exclusively:
                self._guard = exclusive.claim(target, read_only=read_only)
            try:
                self._descriptor = os.open(path, access | os.O_CLOEXEC)
            except OSError as error:
                self._release()
                raise kinds.pool_error(path, error) from None
        self.status = os.fstat(self._descriptor)

    def label(self) -> Label | None:
        """Return its label; None: it has none."""
        found = self._pread(_LABEL.size, 0)
        magic, member, begin, size = _LABEL.unpack(found.ljust(_LABEL.size, b"\0"))
        return Label(member, begin, size) if magic == _MAGIC else None

    def set_label(self, label: Label) -> None:
        """Store its label, durably."""
        self._pwrite(_LABEL.pack(_MAGIC, *label).ljust(_UNIT, b"\0"), 0)
        self.sync()

    def clear_label(self) -> None:
        """Remove its label, durably: it belongs to no pool."""
        self._pwrite(bytes(_UNIT), 0)
        self.sync()

    def measure(self) -> None:
        """Look again how much room it has.

        Raises:
            PoolError: as at its opening.
        """
        self.room = kinds.identify(self.path).exact_size - CONTENT

    def head(self, offset: int, length: int) -> bytes:
        """Return bytes from its beginning, whatever lies there."""
        return self._pread(length, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the content.

        Raises:
            FsError: EIO, or as pread(2); it has become shorter.
        """
        found = self._pread(length, CONTENT + offset)
        if len(found) < length:
            raise FsError(errno.EIO, f"{self.path} has ended at byte {CONTENT + offset + len(found)}")
        return found

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        """Store bytes of the content; durable after the next `sync`.

        Raises:
            FsError: EIO, ENOSPC, or as pwrite(2).
        """
        self._pwrite(content, CONTENT + offset)

    def write_all(self, parts: Mapping[int, bytes]) -> None:
        """Store bytes of the content, by their offsets, durably. Raises FsError as `write` and `sync`."""
        for offset, content in parts.items():
            self.write(offset, content)
        self.sync()

    def sync(self) -> None:
        """Make what was written durable.

        Raises:
            FsError: as fdatasync(2).
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Give up the claim. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._release()

    def _release(self) -> None:
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def _pread(self, length: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise self._failed(error) from None
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _pwrite(self, content: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(content)
        while view:
            try:
                done = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                raise self._failed(error) from None
            view, offset = view[done:], offset + done

    def _failed(self, error: OSError) -> FsError:
        return FsError(error.errno or errno.EIO, f"{self.path}: {error.strerror}")


def _refuse_others(path: str) -> None:
    """Refuse what is no storage, before `kinds` advises to make a pool of it.

    Raises:
        PoolError: it is neither a file nor a device, or an empty file.
    """
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a device"
        raise PoolError(f"{path} is {what}; the storage of a pool is a file or a block device", kinds.MOUNT_FAILED)
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raise PoolError(f"{path} has 0 bytes, too few for storage", kinds.MOUNT_FAILED)

"""Paths and file objects over the facade, for programs that use a pool without a mount.

`Tree` resolves POSIX paths (symbolic links too) inside a pool. `PoolFile` is an unbuffered binary file whose reads are
copies out of the pool's memory and whose `view` is that memory itself. Both work as the superuser, since only mounts
check rights. This module adds no semantics of its own.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError
from daxfs.fs.types import ROOT_INO, Attributes, DirEntry, SetAttributes

if TYPE_CHECKING:
    from daxfs.fs.opendirectory import OpenDirectory
    from daxfs.fs.openfile import OpenFile

MAX_LINKS = 40
"""Symbolic links followed in one path before ELOOP, as in the kernel."""

MODES = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+b": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


class Operations(Protocol):
    """The operations of `FileSystem` that paths and file objects use."""

    def lookup(self, parent: int, name: bytes) -> Attributes: ...

    def readlink(self, ino: int) -> bytes: ...

    def mkdir(self, parent: int, name: bytes, mode: int) -> Attributes: ...

    def symlink(self, parent: int, name: bytes, target: bytes) -> Attributes: ...

    def create(self, parent: int, name: bytes, mode: int, flags: int) -> tuple[OpenFile, Attributes]: ...

    def unlink(self, parent: int, name: bytes) -> None: ...

    def rmdir(self, parent: int, name: bytes) -> None: ...

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None: ...

    def getattr(self, ino: int) -> Attributes: ...

    def setattr(self, ino: int, changes: SetAttributes) -> Attributes: ...

    def open_file(self, ino: int, flags: int) -> OpenFile: ...

    def release(self, file: OpenFile) -> None: ...

    def size_of(self, file: OpenFile) -> int: ...

    def read(self, file: OpenFile, offset: int, size: int) -> memoryview | bytes: ...
    def finish_copy(self) -> None: ...

    def write(self, file: OpenFile, offset: int, content: bytes | bytearray | memoryview) -> int: ...

    def fsync(self, ino: int) -> None: ...

    def opendir(self, ino: int) -> OpenDirectory: ...

    def readdir(self, directory: OpenDirectory) -> Iterator[DirEntry]: ...

    def releasedir(self, directory: OpenDirectory) -> None: ...


class PoolFile(io.RawIOBase):
    """An open file of a pool: unbuffered, binary, seekable."""

    def __init__(self, fs: Operations, file: OpenFile) -> None:
        super().__init__()
        self._fs = fs
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return self._file.readable

    def writable(self) -> bool:
        return self._file.writable

    def seekable(self) -> bool:
        return True

    def view(self, offset: int, size: int) -> memoryview | bytes:
        """Return the pool's memory if the range lies together, else a copy; read-only, valid until the next change."""
        return self._fs.read(self._file, offset, size)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        content = self._fs.read(self._file, self._position, len(buffer))
        buffer[: len(content)] = content
        self._fs.finish_copy()
        self._position += len(content)
        return len(content)

    def write(self, content: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        written = self._fs.write(self._file, self._position, content)
        self._position = self._fs.size_of(self._file) if self._file.append else self._position + written
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._fs.size_of(self._file)}[whence]
        if base + offset < 0:
            raise FsError(errno.EINVAL)
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        self._fs.setattr(self._file.ino, SetAttributes(size=size))
        return size

    def close(self) -> None:
        if not self.closed:
            self._fs.release(self._file)
        super().close()


def _names(path: bytes) -> list[bytes]:
    """Return the names of a path, the last one first."""
    return [name for name in path.split(b"/") if name][::-1]


class Tree:
    """The names of a pool as paths. Paths are ``str`` (surrogateescape) or ``bytes``, always from the root."""

    def __init__(self, fs: Operations) -> None:
        self.fs = fs

    def resolve(self, path: str | bytes, *, follow: bool = True) -> int:
        """Return the inode number that a path leads to (ENOENT, ENOTDIR, ELOOP)."""
        ino, links = ROOT_INO, 0
        rest = _names(os.fsencode(path))  # the last one first
        while rest:
            above, found = ino, self.fs.lookup(ino, rest.pop())
            ino = found.ino
            if stat.S_ISLNK(found.mode) and (follow or rest):
                links += 1
                if links > MAX_LINKS:
                    raise FsError(errno.ELOOP)
                target = self.fs.readlink(ino)
                ino = ROOT_INO if target.startswith(b"/") else above
                rest += _names(target)
        return ino

    def parent(self, path: str | bytes) -> tuple[int, bytes]:
        """Return the directory that holds the last name of a path, and that name."""
        above, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
        return self.resolve(above), name

    def stat(self, path: str | bytes, *, follow: bool = True) -> Attributes:
        """Return the attributes of stat(2), or of lstat(2)."""
        return self.fs.getattr(self.resolve(path, follow=follow))

    def open(self, path: str | bytes, mode: str = "rb", permissions: int = 0o644) -> PoolFile:
        """Open a file; ``mode`` is one of rb, r+b, wb, w+b, ab, xb."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: expected one of {' '.join(MODES)}")
        flags = MODES[mode]
        try:
            ino = self.resolve(path)
        except FsError as error:
            if error.errno != errno.ENOENT or not flags & os.O_CREAT:
                raise
            above, name = self.parent(path)
            file, _ = self.fs.create(above, name, permissions, flags)
            return PoolFile(self.fs, file)
        if flags & os.O_EXCL:
            raise FsError(errno.EEXIST)
        return PoolFile(self.fs, self.fs.open_file(ino, flags))

    def listdir(self, path: str | bytes = "/") -> list[bytes]:
        """Return the names in a directory, without "." and ".."."""
        return [name for name, _ in self._entries(self.resolve(path))]

    def _entries(self, ino: int) -> Iterator[tuple[bytes, int]]:
        directory = self.fs.opendir(ino)
        try:
            for entry in self.fs.readdir(directory):
                if entry.name not in (b".", b".."):
                    yield entry.name, entry.ino
        finally:
            self.fs.releasedir(directory)

    def mkdir(self, path: str | bytes, permissions: int = 0o755) -> None:
        """Make a directory."""
        above, name = self.parent(path)
        self.fs.mkdir(above, name, permissions)

    def symlink(self, target: str | bytes, path: str | bytes) -> None:
        """Make a symbolic link at ``path``."""
        above, name = self.parent(path)
        self.fs.symlink(above, name, os.fsencode(target))

    def rename(self, old: str | bytes, new: str | bytes, flags: int = 0) -> None:
        """Rename, and replace what has the name ``new``."""
        old_above, old_name = self.parent(old)
        new_above, new_name = self.parent(new)
        self.fs.rename(old_above, old_name, new_above, new_name, flags)

    def unlink(self, path: str | bytes) -> None:
        """Remove a name that is not a directory's."""
        above, name = self.parent(path)
        self.fs.unlink(above, name)

    def rmdir(self, path: str | bytes) -> None:
        """Remove an empty directory."""
        above, name = self.parent(path)
        self.fs.rmdir(above, name)

    def read_bytes(self, path: str | bytes) -> bytes:
        """Return the whole content of a file."""
        with self.open(path) as file:
            return file.readall() or b""

    def write_bytes(self, path: str | bytes, content: bytes) -> None:
        """Replace the whole content of a file (made if it is not there)."""
        with self.open(path, "wb") as file:
            position = 0
            while position < len(content):
                position += file.write(memoryview(content)[position:])

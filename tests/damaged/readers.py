"""Read all that can be reached in an image, through the kernel or through daxfs, as one and the same record.

`walk` visits each inode once, in the same order for both readers. What fails is recorded by its errno in the place of
the value, and the walk goes on. Kernel and daxfs have different numbers for damage (EUCLEAN, EBADMSG, EIO), so all
of them are `DAMAGED`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from daxfs.fs.filesystem import ROOT_INO, FileSystem

T = TypeVar("T")

DAMAGED = "DAMAGED"
DAMAGE = frozenset((errno.EUCLEAN, errno.EBADMSG, errno.EIO))
PIECE = 4096
"""Contents are read in pieces of this size, so that a block that can't be read does not hide its neighbours."""
MOST_PIECES = 512
"""The most pieces that are read from the beginning of a file, and from its end."""
MOST_NAMES = 200_000

Record = dict[str, object]
Tree = dict[bytes, Record]
"""Path -> what was read there; the path of the root is empty."""


class Status(NamedTuple):
    """What both readers know of an inode."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime: int


class Reader(Protocol):
    """One way to read an image. Every method raises OSError; a place is what `status` needs to find the inode again."""

    def status(self, path: bytes) -> Status:
        """Return the status of the inode at ``path``."""

    def names(self, path: bytes, found: list[bytes]) -> None:
        """Add the names of a directory to ``found`` as far as they can be listed."""

    def target(self, path: bytes) -> bytes:
        """Return the target of a symbolic link."""

    def attributes(self, path: bytes) -> list[bytes]:
        """Return the names of the extended attributes."""

    def attribute(self, path: bytes, name: bytes) -> bytes:
        """Return an extended attribute."""

    def content(self, path: bytes, offsets: list[int]) -> list[bytes | str]:
        """Return the pieces of a file at ``offsets``, or why one can't be read."""


def attempt(read: Callable[[], T]) -> T | str:
    """Return what ``read`` returns, or the name of its error."""
    try:
        return read()
    except OSError as error:
        return named(error)


def named(error: OSError) -> str:
    """Return the name of an error."""
    number = error.errno or 0
    return DAMAGED if number in DAMAGE else errno.errorcode.get(number, str(number))


class KernelReader:
    """The tree below a mountpoint."""

    def __init__(self, mountpoint: bytes) -> None:
        self._root = mountpoint

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root

    def status(self, path: bytes) -> Status:
        """See `Reader`."""
        found = os.lstat(self._at(path))
        return Status(
            found.st_ino,
            found.st_mode,
            found.st_nlink,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            found.st_size,
            found.st_mtime_ns,
        )

    def names(self, path: bytes, found: list[bytes]) -> None:
        """See `Reader`."""
        with os.scandir(self._at(path)) as entries:
            found.extend(entry.name for entry in entries)

    def target(self, path: bytes) -> bytes:
        """See `Reader`."""
        return os.readlink(self._at(path))

    def attributes(self, path: bytes) -> list[bytes]:
        """See `Reader`."""
        return [os.fsencode(name) for name in os.listxattr(self._at(path), follow_symlinks=False)]

    def attribute(self, path: bytes, name: bytes) -> bytes:
        """See `Reader`."""
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def content(self, path: bytes, offsets: list[int]) -> list[bytes | str]:
        """See `Reader`."""
        file = os.open(self._at(path), os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return [attempt(lambda at=offset: os.pread(file, PIECE, at)) for offset in offsets]
        finally:
            os.close(file)


class PoolReader:
    """The tree of a pool that daxfs has opened as a library."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._inos = {b"": ROOT_INO}

    def status(self, path: bytes) -> Status:
        """See `Reader`."""
        if path:
            parent, _, name = path.rpartition(b"/")
            found = self._fs.lookup(self._inos[parent], name)
            self._inos[path] = found.ino
        else:
            found = self._fs.getattr(ROOT_INO)
        return Status(found.ino, found.mode, found.nlink, found.uid, found.gid, found.rdev, found.size, found.mtime_ns)

    def names(self, path: bytes, found: list[bytes]) -> None:
        """See `Reader`."""
        directory = self._fs.opendir(self._inos[path])
        try:
            for entry in self._fs.readdir(directory):
                if entry.name not in (b".", b".."):
                    found.append(entry.name)
        finally:
            self._fs.releasedir(directory)

    def target(self, path: bytes) -> bytes:
        """See `Reader`."""
        return self._fs.readlink(self._inos[path])

    def attributes(self, path: bytes) -> list[bytes]:
        """See `Reader`."""
        return self._fs.listxattr(self._inos[path])

    def attribute(self, path: bytes, name: bytes) -> bytes:
        """See `Reader`."""
        return self._fs.getxattr(self._inos[path], name)

    def content(self, path: bytes, offsets: list[int]) -> list[bytes | str]:
        """See `Reader`."""
        file = self._fs.open_file(self._inos[path])
        try:
            return [attempt(lambda at=offset: bytes(self._fs.read(file, at, PIECE))) for offset in offsets]
        finally:
            self._fs.release(file)


def walk(reader: Reader) -> Tree:
    """Read everything that can be reached, once."""
    tree: Tree = {}
    seen: set[int] = set()
    todo = [b""]
    while todo and len(tree) < MOST_NAMES:
        path = todo.pop()
        record = tree[path] = {}
        status = attempt(lambda path=path: reader.status(path))
        if isinstance(status, str):
            record["status"] = status
            continue
        again = status.ino in seen
        seen.add(status.ino)
        kind = stat.S_IFMT(status.mode)
        record["status"] = status._replace(size=0) if kind == stat.S_IFDIR else status
        if again:
            continue
        _read_attributes(reader, path, record)
        if kind == stat.S_IFLNK:
            record["target"] = attempt(lambda path=path: reader.target(path))
        elif kind == stat.S_IFREG:
            _read_content(reader, path, status.size, record)
        elif kind == stat.S_IFDIR:
            names: list[bytes] = []
            found = attempt(lambda path=path, names=names: reader.names(path, names))
            record["names"] = tuple(sorted(set(names)))
            record["listing"] = found or "whole"
            todo += [path + b"/" + name if path else name for name in reversed(record["names"])]
    return tree


def _read_attributes(reader: Reader, path: bytes, record: Record) -> None:
    names = attempt(lambda: reader.attributes(path))
    if isinstance(names, str):
        record["attributes"] = names
        return
    record["attributes"] = tuple(
        (name, attempt(lambda name=name: reader.attribute(path, name))) for name in sorted(names)
    )


def _read_content(reader: Reader, path: bytes, size: int, record: Record) -> None:
    pieces = -(-size // PIECE)
    numbers = sorted({*range(min(pieces, MOST_PIECES)), *range(max(pieces - MOST_PIECES, 0), pieces)})
    offsets = [number * PIECE for number in numbers]
    found = attempt(lambda: reader.content(path, offsets))
    if isinstance(found, str):
        record["content"] = found
        return
    bad = tuple((offset, piece) for offset, piece in zip(offsets, found, strict=True) if isinstance(piece, str))
    record["unreadable"] = bad
    for offset, piece in zip(offsets, found, strict=True):
        if isinstance(piece, bytes):
            record[f"content at {offset}"] = hashlib.sha256(piece).hexdigest() if piece.strip(b"\0") else "zeros"

"""A file system in dicts with the facade's methods: what the FUSE sessions are tested against without a pool.

It keeps the rules that a session depends on (errno, lookup counts, handles) and none of the format.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from daxfs.errors import FsError
from daxfs.fs.pins import Pins
from daxfs.fs.reclaim import Reclaimers
from daxfs.fs.steps import Steps
from daxfs.fs.types import ROOT_INO, Attributes, Caller, DirEntry, DirListing, FsXattr, Options, SetAttributes, StatFs

FILE_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7}


@dataclass
class FakeInode:
    """One inode; ``content`` is its data, or the target of a symbolic link."""

    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    links: int = 1
    times: list[int] = field(default_factory=lambda: [10**18 + 1, 10**18 + 2, 10**18 + 3])
    content: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class FakeFile:
    """An open file."""

    def __init__(self, inode: FakeInode, flags: int, positioned: bool) -> None:
        self._inode = inode
        self.ino = inode.ino
        self.append = bool(flags & os.O_APPEND) and not positioned
        self.durable = False
        self.keeps_privileges = True

    @property
    def size(self) -> int:
        return len(self._inode.content)


class FakeSteps:
    """The operations of a `FakeCore` in steps: each does all in its last one, after ``yields`` others.

    ``yielded`` counts the steps so far; ``interrupted`` what was thrown into an operation.
    """

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self.yields = self.yielded = 0
        self.interrupted: list[Exception] = []
        self.unfinished = self.misplaced = False

    def __getattr__(self, name: str) -> Callable[..., Steps[Any]]:
        operation = getattr(self._core, name)

        def in_steps(*arguments: Any, **options: Any) -> Steps[Any]:
            for _ in range(self.yields):
                self.yielded += 1
                try:
                    yield
                except FsError as error:
                    self.interrupted.append(error)
                    raise
            return operation(*arguments, **options)

        return in_steps

    def readdir(self, directory: SimpleNamespace, cookie: int, most: int | None = None) -> Steps[DirListing]:
        found = list((yield from self.__getattr__("readdir")(directory, cookie)))[:most]
        columns = zip(*found, strict=True) if found else ([], [], [], [])
        return DirListing(*map(list, columns))

    def release(self, file: FakeFile) -> None:
        self._core.release(file)

    def unpin(self, ino: int, count: int = 1) -> None:
        self._core.unpin(ino, count)

    def freeing(self) -> Steps[None]:
        for _ in range(self.yields):
            self.yielded += 1
            yield
        self.unfinished = False


class FakeCore:
    """The facade over a dict of inodes. ``refuse`` makes the named method raise; ``calls`` remembers what came.

    ``cached`` names the inodes whose data the kernel may keep.
    """

    def __init__(self) -> None:
        self.inodes = {ROOT_INO: FakeInode(ROOT_INO, stat.S_IFDIR | 0o755, links=2)}
        self.pins = Pins()
        self.steps = FakeSteps(self)
        self.storages: list[str] = []
        self.refuse: dict[str, BaseException] = {}
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.cached: set[int] = set()
        self.open_files = 0
        self.aborted: BaseException | None = None
        self.ticks = 0
        self.options = Options()
        self.interrupted = False
        self.holds_forgettable = False
        self.reclaimers = Reclaimers()
        self.has_atomic_writes = True
        self._next = 12

    def add_reclaimer(self, reclaim: Callable[[], bool], unfinished: Callable[[], bool]) -> None:
        self.reclaimers.add(reclaim, unfinished)

    def _enter(self, name: str, *args: object) -> None:
        def once() -> None:
            self.calls.append((name, args))
            error = self.refuse.get(name)
            if error is not None:
                raise error

        self.reclaimers.retrying(once)

    def _inode(self, ino: int) -> FakeInode:
        try:
            return self.inodes[ino]
        except KeyError:
            raise FsError(errno.ESTALE) from None

    def _attributes(self, inode: FakeInode) -> Attributes:
        size = len(inode.content)
        return Attributes(
            inode.ino, inode.mode, inode.links, inode.uid, inode.gid, inode.rdev, size, -(-size // 512), *inode.times,
            crtime_ns=0, generation=0, flags=0,
        )  # fmt: skip

    def _new(self, parent: int, name: bytes, mode: int, caller: Caller) -> FakeInode:
        directory = self._inode(parent)
        if name in directory.names:
            raise FsError(errno.EEXIST)
        inode = FakeInode(self._next, mode & ~caller.umask, caller.uid, caller.gid)
        self._next += 1
        self.inodes[inode.ino] = inode
        directory.names[name] = inode.ino
        return inode

    def lookup(self, parent: int, name: bytes) -> Attributes:
        self._enter("lookup", parent, name)
        if name == b"..":
            return self._attributes(self._inode(ROOT_INO))
        names = self._inode(parent).names
        if name not in names:
            raise FsError(errno.ENOENT)
        return self._attributes(self._inode(names[name]))

    def find(self, parent: int, name: bytes) -> Attributes | None:
        try:
            return self.lookup(parent, name)
        except FsError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def getattr(self, ino: int) -> Attributes:
        self._enter("getattr", ino)
        return self._attributes(self._inode(ino))

    def size_of(self, file: FakeFile) -> int:
        return file.size

    def setattr(self, ino: int, changes: SetAttributes, caller: Caller) -> Attributes:
        self._enter("setattr", ino, changes, caller)
        inode = self._inode(ino)
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | changes.mode
        if changes.size is not None:
            inode.content[changes.size :] = bytes(max(0, changes.size - len(inode.content)))
        inode.uid = inode.uid if changes.uid is None else changes.uid
        inode.gid = inode.gid if changes.gid is None else changes.gid
        for index, given in enumerate((changes.atime_ns, changes.mtime_ns, changes.ctime_ns)):
            if given is not None:
                inode.times[index] = given
        return self._attributes(inode)

    def by_number(self, ino: int) -> Attributes:
        self._enter("by_number", ino)
        inode = self._inode(ino)
        if not inode.links:
            raise FsError(errno.ESTALE)
        return self._attributes(inode)

    def readlink(self, ino: int) -> bytes:
        return bytes(self._inode(ino).content)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        self._enter("mknod", parent, name, mode, rdev, caller)
        inode = self._new(parent, name, mode, caller)
        inode.rdev = rdev
        return self._attributes(inode)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        self._enter("mkdir", parent, name, mode, caller)
        return self._attributes(self._new(parent, name, stat.S_IFDIR | mode & 0o7777, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        self._enter("symlink", parent, name, target, caller)
        inode = self._new(parent, name, stat.S_IFLNK | 0o777, caller)
        inode.content[:] = target
        return self._attributes(inode)

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        self._enter("link", ino, parent, name, caller)
        inode = self._inode(ino)
        self._inode(parent).names[name] = ino
        inode.links += 1
        return self._attributes(inode)

    def unlink(self, parent: int, name: bytes) -> None:
        self._enter("unlink", parent, name)
        self._inode(self._inode(parent).names.pop(name)).links -= 1

    def rmdir(self, parent: int, name: bytes) -> None:
        self._enter("rmdir", parent, name)
        del self._inode(parent).names[name]

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        caller: Caller | None = None,
    ) -> None:
        self._enter("rename", parent, name, new_parent, new_name, flags, *([caller] if caller else []))
        self._inode(new_parent).names[new_name] = self._inode(parent).names.pop(name)

    def open_file(
        self, ino: int, flags: int, caller: Caller, *kill_privileges: bool | None, positioned: bool = False
    ) -> FakeFile:
        self._enter("open_file", ino, flags, caller, *kill_privileges)
        if flags & os.O_TRUNC:
            del self._inode(ino).content[:]
        self.open_files += 1
        return FakeFile(self._inode(ino), flags, positioned)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller, *, positioned: bool = False
    ) -> tuple[FakeFile, Attributes]:
        self._enter("create", parent, name, mode, flags, caller)
        inode = self._new(parent, name, stat.S_IFREG | mode & 0o7777, caller)
        return self.open_file(inode.ino, 0, caller, positioned=positioned), self._attributes(inode)

    def tmpfile(
        self, parent: int, mode: int, flags: int, caller: Caller, *, positioned: bool = False
    ) -> tuple[FakeFile, Attributes]:
        self._enter("tmpfile", parent, mode, flags, caller)
        inode = self._new(parent, b"", stat.S_IFREG | mode & 0o7777, caller)
        del self._inode(parent).names[b""]
        inode.links = 0
        return self.open_file(inode.ino, 0, caller, positioned=positioned), self._attributes(inode)

    def uses_dax(self, ino: int) -> bool:
        return ino not in self.cached

    def read(self, file: FakeFile, offset: int, size: int) -> bytes:
        self._enter("read", file.ino, offset, size)
        return bytes(self._inode(file.ino).content[offset : offset + size])

    def finish_copy(self) -> None:
        """No memory is ever missing."""

    def has_no_room_for_holes(self) -> bool:
        return False

    def write(
        self, file: FakeFile, offset: int, content: bytes, *how: bool | Caller | None, atomic: bool = False
    ) -> int:
        self._enter("write", file.ino, offset, bytes(content), *how, *(["atomic"] if atomic else []))
        data = self._inode(file.ino).content
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(content)] = content
        return len(content)

    def fallocate(self, file: FakeFile, mode: int, offset: int, length: int, caller: Caller | None) -> None:
        self._enter("fallocate", file.ino, mode, offset, length, caller)

    def seek(self, file: FakeFile, offset: int, whence: int) -> int:
        self._enter("seek", file.ino, offset, whence)
        return offset + 1

    def copy_range(
        self,
        source: FakeFile,
        offset: int,
        target: FakeFile,
        target_offset: int,
        length: int,
        caller: Caller | None,
    ) -> int:
        self._enter("copy_range", source.ino, offset, target.ino, target_offset, length, caller)
        return length

    def get_flags(self, ino: int) -> int:
        self._enter("get_flags", ino)
        return 0x80000

    def set_flags(self, ino: int, flags: int, caller: Caller) -> None:
        self._enter("set_flags", ino, flags, caller)

    def get_fsxattr(self, ino: int) -> FsXattr:
        self._enter("get_fsxattr", ino)
        return FsXattr(0x8000, 1, 2, 3, 4)

    def set_fsxattr(self, ino: int, wanted: FsXattr, caller: Caller) -> None:
        self._enter("set_fsxattr", ino, wanted, caller)

    def generation(self, ino: int) -> int:
        return self._inode(ino).ino + 1000

    def trim(self, start: int, length: int, minimum: int) -> int:
        self._enter("trim", start, length, minimum)
        return 12345

    def sync(self) -> None:
        self._enter("sync")

    def release(self, file: FakeFile) -> None:
        self._enter("release", file.ino)
        self.open_files -= 1

    def fsync(self, ino: int, datasync: bool) -> None:
        self._enter("fsync", ino, datasync)

    def opendir(self, ino: int) -> SimpleNamespace:
        self._enter("opendir", ino)
        self.open_files += 1
        return SimpleNamespace(ino=ino)

    def readdir(self, directory: SimpleNamespace, cookie: int) -> Iterator[DirEntry]:
        self._enter("readdir", directory.ino, cookie)
        entries = [(b".", directory.ino), (b"..", ROOT_INO), *self._inode(directory.ino).names.items()]
        for number, (name, ino) in enumerate(entries, 1):
            if number > cookie:
                kind = stat.S_IFMT(self.inodes[ino].mode) if ino in self.inodes else stat.S_IFREG
                yield DirEntry(name, ino, FILE_TYPES.get(kind, 0), number)

    def releasedir(self, directory: SimpleNamespace) -> None:
        self._enter("releasedir", directory.ino)
        self.open_files -= 1

    def statfs(self) -> StatFs:
        return StatFs(4096, 1000, 600, 500, 300, 200, 255)

    def access(self, ino: int, mask: int, caller: Caller) -> bool:
        self._enter("access", ino, mask, caller)
        return mask != os.X_OK

    def getxattr(self, ino: int, name: bytes) -> bytes:
        self._enter("getxattr", ino, name)
        try:
            return self._inode(ino).xattrs[name]
        except KeyError:
            raise FsError(errno.ENODATA) from None

    def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller, kill_set_gid: bool | None = None
    ) -> None:
        self._enter("setxattr", ino, name, value, flags, caller, kill_set_gid)
        self._inode(ino).xattrs[name] = value

    def listxattr(self, ino: int, caller: Caller) -> list[bytes]:
        return list(self._inode(ino).xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._enter("removexattr", ino, name)
        del self._inode(ino).xattrs[name]

    def pin(self, found: Attributes) -> None:
        self.pins.pin(found.ino, found.generation)

    def unpin(self, ino: int, count: int = 1) -> None:
        self._enter("unpin", ino, count)
        self.pins.unpin(ino, count)

    def look_for_owners(self) -> None:
        """There are none."""

    def tick(self) -> None:
        self.ticks += 1

    def end_mount(self) -> None:
        """Nobody maps what this core has."""

    def abort(self, error: BaseException) -> None:
        self.aborted = error

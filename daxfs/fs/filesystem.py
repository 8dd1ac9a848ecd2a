"""The facade: everything that can be done with a pool, mounted or not.

`FileSystem` works on inode numbers and names in bytes, synchronously; each call is one whole operation. The FUSE
sessions call it and so may any program (`paths.py` adds paths and file objects). It adds to the operations of this
floor what they share: damage is recorded and turns the volume read-only, what finds the pool full is tried once more
after room was reclaimed, and with ``sync`` every change is durable when the call returns.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from daxfs.errors import Corrupt, FsError
from daxfs.fs import (
    attributes,
    copying,
    data,
    flags,
    label,
    mounting,
    names,
    opening,
    outside,
    ranges,
    remounting,
    removal,
    trim,
)
from daxfs.fs.data import OpenFile
from daxfs.fs.grants import requests, waiting, write_notifications
from daxfs.fs.grants.table import Grants
from daxfs.fs.opendirectory import OpenDirectory
from daxfs.fs.paths import Tree
from daxfs.fs.types import (
    ROOT_INO,
    Attributes,
    Caller,
    DirEntry,
    FileExtent,
    FsXattr,
    Grant,
    LeaseRequest,
    Options,
    PoolIdentity,
    SetAttributes,
    StatFs,
    Statistics,
    WriteNotification,
)
from daxfs.pmem.pool import Pool
from daxfs.structures import inodes
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume

P = ParamSpec("P")
R = TypeVar("R")
SUPERUSER = Caller()
NODE_KINDS = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})
"""What mknod(2) makes."""


def note_failure(volume: Volume, error: FsError) -> None:
    """An operation failed: damage is recorded, and a full pool is explained in the log."""
    if isinstance(error, Corrupt):
        volume.report(error)
    elif error.errno == errno.ENOSPC:
        waiting.explain_full(mounting.grants_of(volume))


def recording_damage(method: Callable[Concatenate[FileSystem, P], R]) -> Callable[Concatenate[FileSystem, P], R]:
    """Damage that the operation meets is recorded."""

    @wraps(method)
    def guarded(self: FileSystem, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Corrupt as error:
            self.volume.report(error)
            raise

    return cast("Callable[Concatenate[FileSystem, P], R]", guarded)


def reading(method: Callable[Concatenate[FileSystem, P], R]) -> Callable[Concatenate[FileSystem, P], R]:
    """An operation that changes nothing on the pool: it opens no handle and commits nothing."""
    return recording_damage(method)


def maintaining(method: Callable[Concatenate[FileSystem, P], R]) -> Callable[Concatenate[FileSystem, P], R]:
    """An operation that may change the pool but takes no room: it frees, cuts, commits, trims, or remounts.

    What of it must be durable when it returns, it makes durable itself.
    """
    return recording_damage(method)


def changing(method: Callable[Concatenate[FileSystem, P], R]) -> Callable[Concatenate[FileSystem, P], R]:
    """An operation that changes the pool whole or not at all: in a full pool it is tried once more (`reclaim.py`)."""

    @wraps(method)
    def guarded(self: FileSystem, *args: P.args, **kwargs: P.kwargs) -> R:
        volume = self.volume
        try:
            result = volume.reclaimers.retrying(method, self, *args, **kwargs)
        except FsError as error:
            note_failure(volume, error)
            raise
        volume.finish()
        return result

    return cast("Callable[Concatenate[FileSystem, P], R]", guarded)


def piecewise(method: Callable[Concatenate[FileSystem, P], R]) -> Callable[Concatenate[FileSystem, P], R]:
    """An operation that may have done a part when it fails, and that itself asks again when the pool was full."""

    @wraps(method)
    def guarded(self: FileSystem, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = method(self, *args, **kwargs)
        except FsError as error:
            note_failure(self.volume, error)
            raise
        self.volume.finish()
        return result

    return cast("Callable[Concatenate[FileSystem, P], R]", guarded)


@contextmanager
def made_by(file: OpenFile, caller: Caller | None) -> Iterator[None]:
    """The changes inside are those of ``caller``, who need not have opened the file; None: of the one who opened it."""
    opener = file.caller
    file.caller = opener if caller is None else caller
    try:
        yield
    finally:
        file.caller = opener


class FileSystem:
    """An ext4 file system in a pool of persistent memory.

    Example:
        >>> with FileSystem.open("/dev/shm/pool") as fs:
        ...     fs.tree.write_bytes("/hello", b"persistent")
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.tree = Tree(self)
        self.add_reclaimer(self._reclaim_grants)

    @classmethod
    def open(cls, pool: str | os.PathLike[str] | Pool, options: Options | None = None) -> FileSystem:
        """Open a pool by path, or one that is open already; replays its journal if the last user did not close it.

        Raises:
            PoolError: the path can't be opened as memory, or is in use.
            FsError, Corrupt, Unsupported: what is in the pool is no ext4, damaged, or has unknown features.
        """
        options = options or Options()
        opened = pool if isinstance(pool, Pool) else opening.open_for(os.fspath(pool), options)
        try:
            return cls(mounting.mount(opened, options))
        except BaseException:
            if opened is not pool:
                opened.close()
            raise

    @property
    def grants(self) -> Grants:
        """What clients were granted, of the mount as it is now."""
        return mounting.grants_of(self.volume)

    def _reclaim_grants(self) -> bool:
        return self.grants.reclaim()

    def __enter__(self) -> FileSystem:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit, mark the pool clean and give it back. Files still open are closed; views of it become invalid."""
        try:
            mounting.unmount(self.volume)
        finally:
            self.volume.memory = memoryview(b"")
            self.volume.pool.close()

    # Names

    @reading
    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Attributes of ``name`` in the directory ``parent``."""
        return names.lookup(self.volume, parent, name)

    @reading
    def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        return names.readlink(self.volume, ino)

    @changing
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0, caller: Caller = SUPERUSER) -> Attributes:
        """Make a regular file, device node, FIFO or socket: the type bits of ``mode`` say which (EINVAL: another)."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in NODE_KINDS:
            raise FsError(errno.EINVAL)
        return names.make(self.volume, parent, name, kind | (mode & 0o7777), caller, rdev=rdev)

    @changing
    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller = SUPERUSER) -> Attributes:
        """Make a directory."""
        return names.make(self.volume, parent, name, stat.S_IFDIR | (mode & 0o7777), caller)

    @changing
    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller = SUPERUSER) -> Attributes:
        """Make a symbolic link to ``target``."""
        return names.make(self.volume, parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    @changing
    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        flags: int = os.O_RDWR,
        caller: Caller = SUPERUSER,
        *,
        positioned: bool = False,
    ) -> tuple[OpenFile, Attributes]:
        """Make a regular file and open it (the open never fails on the mode just given); `open_file` has the rest."""
        made = names.make(self.volume, parent, name, stat.S_IFREG | (mode & 0o7777), caller)
        return self._open(made.ino, flags & ~os.O_TRUNC, caller, positioned=positioned), made

    @changing
    def tmpfile(
        self,
        parent: int,
        mode: int,
        flags: int = os.O_RDWR,
        caller: Caller = SUPERUSER,
        *,
        positioned: bool = False,
    ) -> tuple[OpenFile, Attributes]:
        """Make and open a file without a name, as open(2) with O_TMPFILE.

        It is gone with its last close, unless `link` gave it a name; with O_EXCL it can't get one.
        """
        made = names.make_nameless(self.volume, parent, mode, caller, linkable=not flags & os.O_EXCL)
        return self._open(made.ino, flags & ~os.O_TRUNC, caller, positioned=positioned), made

    @changing
    def link(self, ino: int, parent: int, name: bytes, caller: Caller = SUPERUSER) -> Attributes:
        """One more name for an inode."""
        return names.link(self.volume, ino, parent, name, caller)

    @changing
    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away."""
        names.unlink(self.volume, parent, name)

    @changing
    def rmdir(self, parent: int, name: bytes) -> None:
        """Take an empty directory away."""
        names.rmdir(self.volume, parent, name)

    @changing
    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        caller: Caller = SUPERUSER,
    ) -> None:
        """renameat2(2) with all its flags (`RenameFlags`); a whiteout that is left behind belongs to ``caller``."""
        names.rename(self.volume, parent, name, new_parent, new_name, flags, caller)

    # Attributes

    @reading
    def getattr(self, ino: int) -> Attributes:
        """What stat(2) tells."""
        return attributes.read_attributes(self.volume, ino)

    @changing
    def setattr(self, ino: int, changes: SetAttributes, caller: Caller = SUPERUSER) -> Attributes:
        """Change mode, owner, group, size or times."""
        return attributes.set_attributes(self.volume, ino, changes, caller)

    @reading
    def get_flags(self, ino: int) -> int:
        """The inode's flags as lsattr(1) shows them (``FS_*_FL``)."""
        return flags.get_flags(self.volume, ino)

    @changing
    def set_flags(self, ino: int, new: int, caller: Caller = SUPERUSER) -> None:
        """Change the inode's flags as chattr(1) does."""
        flags.set_flags(self.volume, ino, new, caller)

    @reading
    def get_fsxattr(self, ino: int) -> FsXattr:
        """The flags that file systems share (``FS_XFLAG_*``), and the project."""
        return flags.get_fsxattr(self.volume, ino)

    @changing
    def set_fsxattr(self, ino: int, new: FsXattr, caller: Caller = SUPERUSER) -> None:
        """Change the flags that file systems share, and the project."""
        flags.set_fsxattr(self.volume, ino, new, caller)

    @reading
    def uses_dax(self, ino: int) -> bool:
        """Whether the file's data goes straight to memory, as the mount and the file's DAX flag say."""
        return flags.uses_dax(self.volume, ino)

    @reading
    def access(self, ino: int, mask: int, caller: Caller = SUPERUSER) -> bool:
        """Whether ``caller`` may read (4), write (2) or execute (1)."""
        return attributes.access(self.volume, ino, mask, caller)

    @reading
    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an extended attribute."""
        return attributes.get_xattr(self.volume, ino, name)

    @changing
    def setxattr(
        self,
        ino: int,
        name: bytes,
        value: bytes,
        flags: int = 0,
        caller: Caller = SUPERUSER,
        kill_set_gid: bool | None = None,
    ) -> None:
        """Set an extended attribute.

        ``kill_set_gid`` says whether an access ACL takes S_ISGID away; None: unless the caller is in the file's group.
        """
        attributes.set_xattr(self.volume, ino, name, value, flags, caller, kill_set_gid)

    @reading
    def listxattr(self, ino: int, caller: Caller = SUPERUSER) -> list[bytes]:
        """The names of the extended attributes that ``caller`` may see."""
        return attributes.list_xattrs(self.volume, ino, caller)

    @changing
    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute."""
        attributes.remove_xattr(self.volume, ino, name)

    @reading
    def statfs(self) -> StatFs:
        """Sizes and free space."""
        return attributes.statfs(self.volume)

    @reading
    def get_label(self) -> bytes:
        """The label of the file system."""
        return label.get_label(self.volume)

    @changing
    def set_label(self, new: bytes, caller: Caller = SUPERUSER) -> None:
        """Change the label, durably: EPERM, not the superuser; EINVAL, more than 16 bytes."""
        label.set_label(self.volume, new, caller)

    # Files

    @maintaining
    def open_file(
        self,
        ino: int,
        flags: int = os.O_RDONLY,
        caller: Caller = SUPERUSER,
        kill_privileges: bool | None = None,
        *,
        positioned: bool = False,
    ) -> OpenFile:
        """Open a file by inode number; `release` it when done.

        Args:
            ino: of a regular file or a directory.
            flags: of open(2).
            caller: who opens it.
            kill_privileges: whether O_TRUNC takes set-id bits away, as in `write`.
            positioned: every write says where it goes, with O_APPEND too: whoever sends them has put appends in place.
        """
        return self._open(ino, flags, caller, kill_privileges, positioned=positioned)

    def _open(
        self, ino: int, flags: int, caller: Caller, kill_privileges: bool | None = None, *, positioned: bool
    ) -> OpenFile:
        file = data.open_file(self.volume, ino, flags, caller, kill_privileges)
        if positioned:
            file.append = False
        return file

    @maintaining
    def release(self, file: OpenFile) -> None:
        """Close an open file; the last close of a file without a name frees it."""
        try:
            if file.node.grants is not None:
                self.grants.leave(file)
        finally:
            self.volume.nodes.closed(file.node)
            removal.collect(self.volume, file.ino)

    def read(self, file: OpenFile, offset: int, size: int) -> memoryview | bytes:
        """Up to ``size`` bytes from ``offset``: a view of the pool's memory where they lie together, else bytes."""
        try:
            return data.read(self.volume, file, offset, size)
        except Corrupt as error:
            self.volume.report(error)
            raise

    def write(
        self,
        file: OpenFile,
        offset: int,
        content: bytes | bytearray | memoryview,
        kill_privileges: bool | None = None,
        caller: Caller | None = None,
    ) -> int:
        """Write at ``offset``, or at the end with O_APPEND unless the file was opened ``positioned``.

        Args:
            file: open for writing.
            offset: bytes.
            content: what to write.
            kill_privileges: whether set-id bits go (FUSE_WRITE_KILL_SUIDGID); None: unless the superuser writes.
            caller: who writes; None: the one who opened the file.

        Returns:
            The number of bytes written.
        """
        if caller is not None:
            with made_by(file, caller):
                return self.write(file, offset, content, kill_privileges)
        try:
            written = data.write(self.volume, file, offset, content, kill_privileges)
        except FsError as error:
            note_failure(self.volume, error)
            raise
        if self.volume.sync_due:
            self.volume.finish()
        elif file.durable:
            data.make_durable(self.volume, file)
        return written

    @piecewise
    def fallocate(self, file: OpenFile, mode: int, offset: int, length: int, caller: Caller | None = None) -> None:
        """fallocate(2) with ext4's modes (``FALLOC_FL_*``); EOPNOTSUPP for all others. ``caller`` as in `write`."""
        with made_by(file, caller):
            ranges.fallocate(self.volume, file, mode, offset, length)
        if file.durable:
            data.make_durable(self.volume, file)

    @piecewise
    def copy_range(
        self,
        source: OpenFile,
        source_offset: int,
        target: OpenFile,
        target_offset: int,
        length: int,
        caller: Caller | None = None,
    ) -> int:
        """copy_file_range(2): one copy from memory to memory, holes stay holes. ``caller`` as in `write`.

        Returns:
            The number of bytes copied.
        """
        with made_by(target, caller):
            copied = copying.copy_range(self.volume, source, source_offset, target, target_offset, length)
        if target.durable:
            data.make_durable(self.volume, target)
        return copied

    @reading
    def seek(self, file: OpenFile, offset: int, whence: int) -> int:
        """Where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from ``offset`` on; ENXIO at the end of the file."""
        return ranges.seek(self.volume, file, offset, whence)

    @reading
    def describe(self, ino: int) -> list[Extent]:
        """The extents of a file, in order: (logical block, physical block, length in blocks, unwritten)."""
        return data.describe(self.volume, ino)

    @reading
    def fiemap(self, ino: int, start: int, length: int, limit: int) -> list[FileExtent]:
        """FS_IOC_FIEMAP: the extents of a range of bytes, ``limit`` at most, those past EOF too."""
        return ranges.fiemap(self.volume, ino, start, length, limit)

    def fsync(self, ino: int, datasync: bool = False) -> None:
        """Make a file or directory durable."""
        try:
            data.fsync(self.volume, ino, data_only=datasync)
        except Corrupt as error:
            self.volume.report(error)
            raise

    @maintaining
    def sync(self) -> None:
        """Make everything durable, what clients have stored in memory by themselves too."""
        requests.flush_stores(self.volume)
        self.volume.commit()

    @maintaining
    def trim(self, start: int = 0, length: int = 1 << 63, minimum: int = 0) -> int:
        """Give free memory of the pool back to the system (FITRIM); how many bytes."""
        return trim.trim(self.volume, start, length, minimum)

    # Memory, for clients that load and store by themselves

    @piecewise
    def pool_identity(self) -> PoolIdentity:
        """Which pool to map."""
        return requests.identity(self.grants)

    @piecewise
    def lease(self, file: OpenFile, request: LeaseRequest, caller: Caller | None = None) -> Grant:
        """Where bytes of the file lie in the pool, for a client to use until its status entry changes, or `release`.

        ``caller`` as in `write`: a client that may store takes privileges away as one that writes.
        """
        with made_by(file, caller):
            return requests.grant(self.grants, file, request)

    @piecewise
    def notify_stored(self, file: OpenFile, claim: WriteNotification) -> int:
        """Apply a client's write notification (`write_notifications.apply`); return the file's count of changes."""
        return write_notifications.apply(self.grants, file, claim)

    @maintaining
    def end_mount(self) -> None:
        """This process is about to close all files: what clients still map stays theirs, for the next mount to free."""
        self.grants.end_mount()

    # Directories

    @reading
    def opendir(self, ino: int) -> OpenDirectory:
        """Open a directory; `releasedir` it when done."""
        return OpenDirectory(self.volume.nodes.opened(names.read_directory_inode(self.volume, ino)))

    def readdir(self, directory: OpenDirectory, cookie: int = 0) -> Iterator[DirEntry]:
        """The names strictly after ``cookie``; the iterator is valid until the next change of the file system."""
        node = directory.node
        if node.atime_due:
            node.accessed()
        try:
            yield from names.readdir(self.volume, directory.ino, cookie)
        except Corrupt as error:
            self.volume.report(error)
            raise

    @maintaining
    def releasedir(self, directory: OpenDirectory) -> None:
        """Close an open directory."""
        self.volume.nodes.closed(directory.node)
        removal.collect(self.volume, directory.ino)

    # References by number

    @reading
    def by_number(self, ino: int) -> Attributes:
        """Attributes of a file whose number was kept, be it pinned or not; ESTALE if there is none (any more)."""
        return names.by_number(self.volume, ino)

    @property
    def holds_forgettable(self) -> bool:
        """Whether files without a name take room though nobody has them open: only pins keep them."""
        volume = self.volume
        return any(not volume.nodes.is_open(ino) for ino in volume.lives.nameless)

    @property
    def pins(self) -> Mapping[int, int]:
        """How often each inode is pinned, those that are; always the same object."""
        return self.volume.lives.pins

    def pin(self, ino: int) -> None:
        """The inode is known by number to somebody (a FUSE lookup): it outlives its last name until `unpin`."""
        self.volume.lives.pin(ino)

    @maintaining
    def unpin(self, ino: int, count: int = 1) -> None:
        """``count`` pins less (a FUSE forget)."""
        self.volume.lives.unpin(ino, count)
        removal.collect(self.volume, ino)

    @reading
    def generation(self, ino: int) -> int:
        """The inode's generation number: with the number it names a file for good."""
        return inodes.read(self.volume.view, ino).generation

    # Housekeeping

    def add_reclaimer(self, reclaim: Callable[[], bool]) -> None:
        """Have ``reclaim`` called when an operation finds the pool full, before that is tried once more.

        Args:
            reclaim: gives back room that it keeps, such as files that nobody knows any more (`unpin`), and answers
                whether it gave any. It may call this file system.
        """
        self.volume.reclaimers.add(reclaim)

    @property
    def options(self) -> Options:
        """How the pool is mounted now."""
        return self.volume.options

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed: so mounted, damaged, aborted, or in somebody else's hands."""
        return self.volume.read_only

    def find_groups_by(self, groups_of: Callable[[Caller], frozenset[int]]) -> None:
        """How to find the supplementary groups of a caller, asked where they decide about reserved blocks."""
        self.volume.groups_of = groups_of

    @maintaining
    def remount(self, options: Options) -> None:
        """Mount in another way, to read-only or back too; see `remounting.remount`. Files stay open."""
        remounting.remount(self.volume, options)

    @maintaining
    def tick(self) -> None:
        """Commit when the commit interval has passed."""
        volume = self.volume
        if not volume.read_only:
            outside.take_over(volume)
            volume.tick()
        self.grants.reclaim()

    def look_for_owners(self) -> None:
        """Stop storing if somebody else has taken the pool through a loop device; called now and then."""
        owner = self.volume.pool.other_owner()
        if owner and not self.volume.read_only:
            self.volume.disown(owner)

    def statistics(self) -> Statistics:
        """What the volume keeps in DRAM and what its journal did. It costs nothing until it is asked."""
        volume = self.volume
        grants = self.grants
        return Statistics(
            open_files=sum(node.opens for node in volume.nodes.open.values()),
            remembered=len(volume.lives.pins),
            lazy_times=len(volume.nodes.lazy),
            nameless=len(volume.lives.nameless),
            leases=grants.holders,
            deferred=grants.epochs.deferred,
            holding=waiting.largest_deferrals(grants),
            journal=volume.journal.stats if volume.was_writable else None,
        )

    def check(self) -> None:
        """Hold all that is kept in DRAM of open inodes and grants against the pool: for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        self.volume.check()
        if not self.volume.read_only:
            self.grants.check()

    @property
    def interrupted(self) -> bool:
        """Whether an exception that nobody expected (no `FsError`) met a change of metadata half done.

        The change is undone, but what was kept in memory beside it is not to be trusted: `abort`, or close without more
        changes.
        """
        return self.volume.interrupted

    def abort(self, error: BaseException) -> None:
        """Stop the journal after an unknown error; nothing is changed from then on."""
        self.volume.abort(error)


__all__ = ["ROOT_INO", "FileSystem", "OpenDirectory", "OpenFile"]

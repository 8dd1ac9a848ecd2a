"""The facade: everything that can be done with a pool, mounted or not.

`FileSystem` works on inode numbers and names in bytes, synchronously; each call is one whole operation. The FUSE
sessions call it, and any program may (`paths.py` adds paths and file objects; `stepwise.py` offers long operations in
steps). Here are the operations on names and files; `administration.py` has those on the file system as a whole.

The decorators of `operations.py` add what all operations share: bad metadata is recorded and may make the volume
read-only, an operation that finds the pool full runs once more after space was reclaimed, and with ``sync`` every
change is durable when the call returns.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import (
    appends,
    attributes,
    damage,
    data,
    flags,
    mounting,
    names,
    openfile,
    opening,
    ranges,
    removal,
    truncating,
)
from daxfs.fs import (
    atomic as atomic_writes,
)
from daxfs.fs.administration import Administration
from daxfs.fs.batches import Batch
from daxfs.fs.grants import arming, requests, write_notifications
from daxfs.fs.grants.table import Grants
from daxfs.fs.opendirectory import OpenDirectory
from daxfs.fs.openfile import OpenFile
from daxfs.fs.operations import brought, changing, failure, maintaining, piecewise, reading
from daxfs.fs.paths import Tree
from daxfs.fs.steps import finish
from daxfs.fs.stepwise import SUPERUSER
from daxfs.fs.tiers import members
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
    WriteNotification,
)
from daxfs.pmem.pool import Pool
from daxfs.structures import directories, inodes
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.pins import Pins
    from daxfs.fs.volume import Volume
    from daxfs.journal.armed import CommitWord

NODE_KINDS = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})
"""What mknod(2) makes."""


class FileSystem(Administration):
    """An ext4 file system in a pool of persistent memory.

    Example:
        >>> with FileSystem.open("/dev/shm/pool") as fs:
        ...     fs.tree.write_bytes("/hello", b"persistent")
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.tree = Tree(self)
        volume.reclaimers.add(partial(removal.free_some, volume), partial(removal.unfinished, volume))
        volume.reclaimers.add(partial(appends.end_all, volume))
        self.add_reclaimer(self._reclaim_grants)

    @classmethod
    def open(cls, pool: str | os.PathLike[str] | Pool, options: Options | None = None) -> FileSystem:
        """Open a pool by path, or one that is open already. Replay its journal if the pool was not closed.

        Raises:
            PoolError: the path can't be opened as memory, or is in use.
            FsError, Corrupt, Unsupported: the pool holds no ext4, is damaged, or has unknown features.
        """
        options = options or Options()
        opened = pool if isinstance(pool, Pool) else opening.open_for(os.fspath(pool), options)
        try:
            with opened.faults.checked():
                volume = mounting.mount(opened, options, members.follow)
            return cls(volume)
        except BaseException:
            if opened is not pool:
                opened.close()
            raise

    @property
    def grants(self) -> Grants:
        """The grants of clients, of the current mount."""
        return mounting.grants_of(self.volume)

    def _reclaim_grants(self) -> bool:
        return self.grants.reclaim()

    def __enter__(self) -> FileSystem:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit, mark the pool clean and close it. Open files are closed; views of the pool become invalid."""
        try:
            mounting.unmount(self.volume)
        finally:
            if self.volume.tiers is not None:
                self.volume.tiers.close()
            self.volume.memory = memoryview(b"")
            self.volume.pool.close()

    # Names

    @reading
    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the attributes of ``name`` in the directory ``parent``."""
        return names.lookup(self.volume, parent, name)

    @reading
    def find(self, parent: int, name: bytes) -> Attributes | None:
        """Return what `lookup` does; None: there is no such name. An exception would cost as much as the search."""
        return names.find(self.volume, parent, name)

    @reading
    def readlink(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""
        return names.readlink(self.volume, ino)

    @changing
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0, caller: Caller = SUPERUSER) -> Attributes:
        """Make a regular file, device node, FIFO or socket: the type bits of ``mode`` say which (EINVAL: another)."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in NODE_KINDS:
            raise FsError(errno.EINVAL)
        return attributes.attributes_of(
            names.make(self.volume, parent, name, kind | (mode & 0o7777), caller, rdev=rdev)
        )

    @changing
    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller = SUPERUSER) -> Attributes:
        """Make a directory."""
        return attributes.attributes_of(names.make(self.volume, parent, name, stat.S_IFDIR | (mode & 0o7777), caller))

    @changing
    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller = SUPERUSER) -> Attributes:
        """Make a symbolic link to ``target``."""
        return attributes.attributes_of(
            names.make(self.volume, parent, name, stat.S_IFLNK | 0o777, caller, target=target)
        )

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
        """Make a regular file and open it (`open_file`); the open never fails on the mode that was just given."""
        made = names.make(self.volume, parent, name, stat.S_IFREG | (mode & 0o7777), caller)
        file = OpenFile(self.volume.nodes.opened(made), flags & ~os.O_TRUNC, caller)
        if positioned:
            file.append = False
        return file, attributes.attributes_of(made)

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
        """Add a name for an inode."""
        return names.link(self.volume, ino, parent, name, caller)

    @changing
    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is not a directory's."""
        names.unlink(self.volume, parent, name)

    @changing
    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        finish(names.rmdir(self.volume, parent, name))

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
        """Rename as renameat2(2), with all its flags (`RenameFlags`); a whiteout that is left belongs to ``caller``."""
        finish(names.rename(self.volume, parent, name, new_parent, new_name, flags, caller))
        removal.free_rest(self.volume)

    # Attributes

    @reading
    def getattr(self, ino: int) -> Attributes:
        """Return the attributes of stat(2)."""
        return attributes.read_attributes(self.volume, ino)

    @reading
    def size_of(self, file: OpenFile) -> int:
        """Return the size of an open file in bytes."""
        return file.node.size

    @changing
    def setattr(self, ino: int, changes: SetAttributes, caller: Caller = SUPERUSER) -> Attributes:
        """Change mode, owner, group, size or times."""
        return finish(attributes.set_attributes(self.volume, ino, changes, caller))

    @reading
    def get_flags(self, ino: int) -> int:
        """Return the inode's flags as lsattr(1) shows them (``FS_*_FL``)."""
        return flags.get_flags(self.volume, ino)

    @changing
    def set_flags(self, ino: int, new: int, caller: Caller = SUPERUSER) -> None:
        """Change the inode's flags as chattr(1) does."""
        flags.set_flags(self.volume, ino, new, caller)

    @reading
    def get_fsxattr(self, ino: int) -> FsXattr:
        """Return the flags that file systems share (``FS_XFLAG_*``), and the project."""
        return flags.get_fsxattr(self.volume, ino)

    @changing
    def set_fsxattr(self, ino: int, new: FsXattr, caller: Caller = SUPERUSER) -> None:
        """Change the flags that file systems share, and the project."""
        flags.set_fsxattr(self.volume, ino, new, caller)

    @reading
    def uses_dax(self, ino: int) -> bool:
        """Return whether the file's data goes straight to memory, as the mount and the file's DAX flag say."""
        return flags.uses_dax(self.volume, ino)

    @reading
    def access(self, ino: int, mask: int, caller: Caller = SUPERUSER) -> bool:
        """Return whether ``caller`` may read (4), write (2) or execute (1)."""
        return attributes.access(self.volume, ino, mask, caller)

    @reading
    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Return the value of an extended attribute."""
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

        ``kill_set_gid`` says whether an access ACL removes S_ISGID; None: unless the caller is in the file's group.
        """
        attributes.set_xattr(self.volume, ino, name, value, flags, caller, kill_set_gid)

    @reading
    def listxattr(self, ino: int, caller: Caller = SUPERUSER) -> list[bytes]:
        """Return the names of the extended attributes that ``caller`` may see."""
        return attributes.list_xattrs(self.volume, ino, caller)

    @changing
    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute."""
        attributes.remove_xattr(self.volume, ino, name)

    @reading
    def statfs(self) -> StatFs:
        """Return sizes and free space."""
        return attributes.statfs(self.volume)

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
            ino: a regular file or a directory.
            flags: those of open(2).
            caller: the caller that opens the file.
            kill_privileges: whether O_TRUNC drops set-id bits, as in `write`.
            positioned: every write gives its offset, even with O_APPEND: the sender has placed appends itself.
        """
        return self._open(ino, flags, caller, kill_privileges, positioned=positioned)

    def _open(
        self, ino: int, flags: int, caller: Caller, kill_privileges: bool | None = None, *, positioned: bool
    ) -> OpenFile:
        if flags & os.O_TRUNC:
            file = finish(truncating.open_file(self.volume, ino, flags, caller, kill_privileges))
        else:
            file = openfile.open_whole(self.volume, ino, flags, caller)
        if positioned:
            file.append = False
        return file

    @maintaining
    def release(self, file: OpenFile) -> None:
        """Close an open file; the last close of a file without a name frees it."""
        try:
            self.steps.release(file)
        finally:
            removal.free_rest(self.volume)

    def read(self, file: OpenFile, offset: int, size: int) -> memoryview | bytes:
        """Return up to ``size`` bytes from ``offset``: a view of the pool's memory if they lie together, else bytes."""
        try:
            if self.volume.armed:
                self.volume.settle()
            return data.read(self.volume, file, offset, size)
        except BaseException as error:
            if brought(self.volume, error):
                return self.read(file, offset, size)
            raise failure(self.volume, error, reads=True)  # noqa: B904 (it is the same error as a rule)

    def finish_copy(self) -> None:
        """End a copy out of the memory that `read` returned. A hole of the pool's file was read as zeros.

        Raises:
            MissingMemory: EIO, the copy met memory that is not there.
        """
        self.volume.finish_copy()

    def has_no_room_for_holes(self) -> bool:
        """Return whether the pool's file has holes, and the file system that holds it is almost full."""
        return self.volume.pool.has_no_room_for_holes()

    def write(
        self,
        file: OpenFile,
        offset: int,
        content: bytes | bytearray | memoryview,
        kill_privileges: bool | None = None,
        caller: Caller | None = None,
        *,
        atomic: bool = False,
    ) -> int:
        """Write at ``offset``, or at EOF with O_APPEND unless the file was opened ``positioned``.

        Args:
            file: open for writing.
            offset: first byte.
            content: what to write.
            kill_privileges: whether set-id bits are dropped (FUSE_WRITE_KILL_SUIDGID); None: unless the superuser
                writes.
            caller: the caller that writes; None: the one that opened the file.
            atomic: write all or nothing, also as a power cut leaves it (`daxfs.fs.atomic`). Each write to a file with
                chattr +j is atomic.

        Returns:
            The number of bytes written.
        """
        if caller is not None:
            file = file.used_by(caller)
        try:
            if self.volume.armed:
                self.volume.settle()
            if atomic or (file.node.journaled and self._writes_atomically(content)):
                written = atomic_writes.write(self.volume, file, offset, content, kill_privileges)
            else:
                written = data.write(self.volume, file, offset, content, kill_privileges)
        except BaseException as error:
            if brought(self.volume, error):
                return self.write(file, offset, content, kill_privileges, caller, atomic=atomic)
            raise failure(self.volume, error, explained=True, change=True)  # noqa: B904 (the same error as a rule)
        if self.volume.sync_due:
            self.volume.finish()
        elif file.durable:
            data.make_durable(self.volume, file)
        return written

    def _writes_atomically(self, content: bytes | bytearray | memoryview) -> bool:
        """Whether a write to a file with chattr +j is atomic: a driver may set the flag without a journal, too."""
        return self.has_atomic_writes and len(content) <= atomic_writes.MOST_BYTES

    @property
    def has_atomic_writes(self) -> bool:
        """Whether writes can be atomic: the pool has a journal."""
        return self.volume.log_area is not None

    @reading
    def batch(self, file: OpenFile, uid: int | None = None) -> Batch:
        """Begin a batch: writes through ``file`` that become the file's all at once, or never.

        Args:
            file: open for writing.
            uid: the user for whom the staged memory counts; None: the one that opened the file.
        """
        return Batch(self.volume, file, file.caller.uid if uid is None else uid)

    def fallocate(self, file: OpenFile, mode: int, offset: int, length: int, caller: Caller | None = None) -> None:
        """Do what fallocate(2) does in ext4's modes (``FALLOC_FL_*``; EOPNOTSUPP: others). ``caller`` as in `write`."""
        finish(self.steps.fallocate(file, mode, offset, length, caller))

    def copy_range(
        self,
        source: OpenFile,
        source_offset: int,
        target: OpenFile,
        target_offset: int,
        length: int,
        caller: Caller | None = None,
    ) -> int:
        """Copy as copy_file_range(2), from memory to memory; holes stay holes. ``caller`` as in `write`.

        Returns:
            The number of bytes copied.
        """
        return finish(self.steps.copy_range(source, source_offset, target, target_offset, length, caller))

    def seek(self, file: OpenFile, offset: int, whence: int) -> int:
        """Return where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from ``offset`` on; ENXIO at EOF."""
        return finish(self.steps.seek(file, offset, whence))

    @reading
    def describe(self, ino: int) -> list[Extent]:
        """Return the extents of a file, in order: (logical block, physical block, length in blocks, unwritten)."""
        return data.describe(self.volume, ino)

    @reading
    def fiemap(self, ino: int, start: int, length: int, limit: int) -> list[FileExtent]:
        """Return the extents of a range of bytes (FS_IOC_FIEMAP), ``limit`` at most, including those past EOF."""
        return ranges.fiemap(self.volume, ino, start, length, limit)

    def fsync(self, ino: int, datasync: bool = False) -> None:
        """Make a file or directory durable."""
        try:
            if self.volume.armed:
                self.volume.settle()
            data.fsync(self.volume, ino, data_only=datasync)
        except BaseException as error:
            raise failure(self.volume, error)  # noqa: B904 (it is the same error as a rule)

    @maintaining
    def sync(self) -> None:
        """Make everything durable, including what clients have stored."""
        requests.flush_stores(self.volume)
        self.volume.commit()

    # Leases of memory

    @piecewise
    def pool_identity(self) -> PoolIdentity:
        """Return the identity of the pool, for a client that maps it."""
        return requests.identity(self.grants)

    def lease(self, file: OpenFile, request: LeaseRequest, caller: Caller | None = None) -> Grant:
        """Return where bytes of the file lie in the pool; it holds until the status entry changes, or until `release`.

        ``caller`` as in `write`: a lease for storing drops set-id bits and capabilities, as a write does.
        """
        try:
            return finish(self.steps.lease(file, request, caller))
        finally:
            removal.free_rest(self.volume)

    @piecewise
    def notify_stored(self, file: OpenFile, claim: WriteNotification) -> int:
        """Apply a client's write notification (`write_notifications.apply`); return the file's count of changes."""
        return write_notifications.apply(self.grants, file, claim)

    @piecewise
    def append_stored(self, file: OpenFile, claim: WriteNotification, wanted: int) -> tuple[int, list[CommitWord]]:
        """Apply the notification of an append, durably, and arm up to ``wanted`` more of the same length.

        Returns:
            The file's count of changes, and the words by which the client commits the next appends itself
            (`daxfs.fs.grants.arming`).
        """
        before = file.node.size
        changes = write_notifications.apply(self.grants, file, claim._replace(durable=True))
        return changes, arming.arm(self.grants, file, file.node.size - before, wanted)

    @maintaining
    def end_mount(self) -> None:
        """End all leases before this process closes all files. What clients still map is freed by the next mount."""
        self.grants.end_mount()

    # Directories

    @reading
    def opendir(self, ino: int) -> OpenDirectory:
        """Open a directory; `releasedir` it when done."""
        return OpenDirectory(self.volume.nodes.opened(directories.read_inode(self.volume.view, ino)))

    def readdir(self, directory: OpenDirectory, cookie: int = 0) -> Iterator[DirEntry]:
        """Yield the names strictly after ``cookie``; the iterator is valid until the next change of the file system."""
        node = directory.node
        if node.atime_due:
            node.accessed()
        try:
            yield from names.readdir(self.volume, directory.ino, cookie)
            if self.volume.faults[0]:
                raise self.volume.lost_memory()
        except BaseException as error:
            raise failure(self.volume, error, reads=True)  # noqa: B904 (it is the same error as a rule)
        if self.volume.noted:
            damage.report_noted(self.volume)

    @maintaining
    def releasedir(self, directory: OpenDirectory) -> None:
        """Close an open directory."""
        self.volume.nodes.closed(directory.node)
        removal.collect(self.volume, directory.ino)

    # References by number

    @reading
    def by_number(self, ino: int) -> Attributes:
        """Return the attributes of a file by its number, be it pinned or not; ESTALE: there is none, or no longer."""
        return names.by_number(self.volume, ino)

    @property
    def holds_forgettable(self) -> bool:
        """Whether files without a name take space although they are not open: only pins keep them."""
        volume = self.volume
        return any(not volume.nodes.is_open(ino) for ino in volume.lives.nameless)

    @property
    def pins(self) -> Pins:
        """How often each pinned inode is pinned; always the same object."""
        return self.volume.lives.pins

    def pin(self, found: Attributes) -> None:
        """Pin an inode whose number is known outside (a FUSE lookup): it outlives its last name until `unpin`."""
        self.volume.lives.pins.pin(found.ino, found.generation)

    @maintaining
    def unpin(self, ino: int, count: int = 1) -> None:
        """Remove ``count`` pins (a FUSE forget)."""
        self.steps.unpin(ino, count)
        removal.free_rest(self.volume)

    @reading
    def generation(self, ino: int) -> int:
        """Return the inode's generation number; inode number and generation name a file for good."""
        return inodes.read(self.volume.view, ino).generation


__all__ = ["ROOT_INO", "FileSystem", "OpenDirectory", "OpenFile"]

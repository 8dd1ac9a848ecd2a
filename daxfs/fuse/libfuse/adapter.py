"""pyfuse3's requests as calls of `FileSystem`, and its answers as pyfuse3 wants them. Translation only.

Inode numbers are node ids, but for the root: FUSE's 1 is ext4's 2 (ext4's own inode 1, the bad blocks, has no name).
The kernel checks rights (``default_permissions`` and POSIX ACLs) and caches names and attributes for as long as it
likes, since nobody else changes the pool. Every entry that an answer carries is one lookup that the kernel will forget
again: it is pinned here, forgotten in `forget`. A refusal (`FsError`) becomes its errno; an exception that interrupted
a change goes up and ends the session (`session.py`, the only user of this module).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields

from daxfs.errors import FsError
from daxfs.fs.attributes import ACL_ACCESS
from daxfs.fs.types import ROOT_INO, Attributes, Caller, DirEntry, SetAttributes
from daxfs.fuse import logs, unexpected
from daxfs.fuse.groups import with_groups, with_groups_that_matter

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem, OpenDirectory, OpenFile

log = logging.getLogger("daxfs.fuse")

ROOT_NODE = 1
CACHE_SECONDS = 3600 * 24
ARGUMENTS_OF_MOST = 4
"""``self`` and three more: read, write, lookup, unlink, open, readdir, getxattr."""

Method = Callable[..., Any]
AsyncMethod = Callable[..., Awaitable[Any]]


def refusal(error: FsError) -> FUSEError:
    """The FUSE answer to an operation that the core refused."""
    return FUSEError(error.errno or errno.EIO)


def handler(method: Method) -> AsyncMethod:
    """Make a plain method the coroutine function that pyfuse3 awaits; the one place where errors are translated.

    Passing on a fixed number of arguments takes 0.3 us less than ``*args``, so most handlers get that shape.
    """
    if method.__code__.co_argcount == ARGUMENTS_OF_MOST:

        @wraps(method)
        async def translated(self: Adapter, a: Any, b: Any, c: Any) -> Any:
            try:
                return method(self, a, b, c)
            except FsError as error:
                raise refusal(error) from None
            except FUSEError:
                raise
            except Exception as error:
                raise self.unexpected(error, method.__name__) from None

        return translated

    @wraps(method)
    async def translated_any(self: Adapter, *args: Any) -> Any:
        try:
            return method(self, *args)
        except FsError as error:
            raise refusal(error) from None
        except FUSEError:
            raise
        except Exception as error:
            raise self.unexpected(error, method.__name__) from None

    return translated_any


def entry_of(attributes: Attributes) -> EntryAttributes:
    """The attributes as pyfuse3's entry. The caller pins the inode if the answer counts as a lookup."""
    ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _, generation, _ = attributes
    entry = EntryAttributes()
    entry.st_ino = ROOT_NODE if ino == ROOT_INO else ino
    entry.generation = generation
    entry.st_mode = mode
    entry.st_nlink = nlink
    entry.st_uid = uid
    entry.st_gid = gid
    entry.st_rdev = rdev
    entry.st_size = size
    entry.st_blocks = blocks
    entry.st_atime_ns = atime
    entry.st_mtime_ns = mtime
    entry.st_ctime_ns = ctime
    entry.entry_timeout = CACHE_SECONDS
    entry.attr_timeout = CACHE_SECONDS
    return entry


def absent_entry() -> EntryAttributes:
    """The answer that lets the kernel remember that a name does not exist."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_SECONDS
    return entry


def damaged_entry(found: DirEntry) -> EntryAttributes:
    """A name whose inode can't be read: it is listed, and asking for more gives the error."""
    entry = EntryAttributes()
    entry.st_ino = found.ino
    entry.st_mode = MODE_OF_FILE_TYPE.get(found.file_type, stat.S_IFREG)
    entry.entry_timeout = 0
    entry.attr_timeout = 0
    return entry


MODE_OF_FILE_TYPE = {
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


def caller_of(context: RequestContext) -> Caller:
    """Who asks. Supplementary groups are the kernel's business: it has checked the rights already."""
    return Caller(context.uid, context.gid, context.pid, context.umask)


def ino_of(node: int) -> int:
    """The inode number of a FUSE node id."""
    return ROOT_INO if node == ROOT_NODE else node


class Adapter:
    """The handlers of one session, by pyfuse3's names. Handles of open files and directories are given once each."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, core: FileSystem) -> None:
        self._core = core
        self._read = core.read
        self._write = core.write
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}
        self._handles = count(1)
        self._absent = absent_entry()

    def unexpected(self, error: Exception, what: str) -> FUSEError:
        """The answer to a request that met an exception that nobody expected; raises it if it interrupted a change."""
        return refusal(unexpected.refusal(self._core, error, what))

    def _remembered(self, attributes: Attributes) -> EntryAttributes:
        """The entry of an answer that the kernel counts as a lookup."""
        self._core.pin(attributes.ino)
        return entry_of(attributes)

    def _by_handle(self, node: int) -> Attributes:
        """The inode of a file handle, which may be old or made up (ESTALE): see fs/ext4/super.c, ext4_nfs_get_inode."""
        if node == ROOT_INO:
            raise FsError(errno.ESTALE)
        return self._core.by_number(ino_of(node))

    def _opened(self, file: OpenFile) -> FileInfo:
        handle = next(self._handles)
        self._files[handle] = file
        return FileInfo(fh=handle, direct_io=True, keep_cache=False)

    def init(self) -> None:
        """The kernel has answered the handshake."""

    # Names

    @handler
    def lookup(self, parent: int, name: bytes, _context: RequestContext) -> EntryAttributes:
        if name == b".":
            return self._remembered(self._by_handle(parent))
        try:
            found = self._core.lookup(ROOT_INO if parent == ROOT_NODE else parent, name)
        except FsError as error:
            if error.errno == errno.ENOENT:
                return self._absent
            raise
        return self._remembered(found)

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        """Nobody waits for an answer, so a refusal is only logged."""
        unpin = self._core.unpin
        for node, lookups in inode_list:
            try:
                unpin(ino_of(node), lookups)
            except FsError as error:
                logs.unanswered(f"forgetting inode {node}", error)
            except Exception as error:
                self.unexpected(error, f"forgetting inode {node}")

    @handler
    def readlink(self, node: int, _context: RequestContext) -> bytes:
        return self._core.readlink(node)

    @handler
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: RequestContext) -> EntryAttributes:
        return self._remembered(self._core.mknod(ino_of(parent), name, mode, rdev, caller_of(context)))

    @handler
    def mkdir(self, parent: int, name: bytes, mode: int, context: RequestContext) -> EntryAttributes:
        return self._remembered(self._core.mkdir(ino_of(parent), name, mode, caller_of(context)))

    @handler
    def symlink(self, parent: int, name: bytes, target: bytes, context: RequestContext) -> EntryAttributes:
        return self._remembered(self._core.symlink(ino_of(parent), name, target, caller_of(context)))

    @handler
    def link(self, node: int, parent: int, name: bytes, context: RequestContext) -> EntryAttributes:
        return self._remembered(self._core.link(node, ino_of(parent), name, caller_of(context)))

    @handler
    def unlink(self, parent: int, name: bytes, _context: RequestContext) -> None:
        self._core.unlink(ino_of(parent), name)

    @handler
    def rmdir(self, parent: int, name: bytes, _context: RequestContext) -> None:
        self._core.rmdir(ino_of(parent), name)

    @handler
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, context: RequestContext
    ) -> None:
        """A whiteout that is left behind belongs to the caller."""
        self._core.rename(ino_of(parent), name, ino_of(new_parent), new_name, flags, caller_of(context))

    # Attributes

    @handler
    def getattr(self, node: int, _context: RequestContext) -> EntryAttributes:
        return entry_of(self._core.getattr(ROOT_INO if node == ROOT_NODE else node))

    @handler
    def setattr(
        self, node: int, new: EntryAttributes, fields: SetattrFields, _fh: int | None, context: RequestContext
    ) -> EntryAttributes:
        changes = SetAttributes(
            mode=new.st_mode & 0o7777 if fields.update_mode else None,
            uid=new.st_uid if fields.update_uid else None,
            gid=new.st_gid if fields.update_gid else None,
            size=new.st_size if fields.update_size else None,
            atime_ns=new.st_atime_ns if fields.update_atime else None,
            mtime_ns=new.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=new.st_ctime_ns if fields.update_ctime else None,
        )
        caller = caller_of(context)
        if caller.uid and not (changes.size is changes.uid is changes.gid is None):
            caller = with_groups_that_matter(self._core, ino_of(node), caller)
        return entry_of(self._core.setattr(ino_of(node), changes, caller))

    @handler
    def access(self, node: int, mode: int, context: RequestContext) -> bool:
        return self._core.access(ino_of(node), mode, caller_of(context))

    @handler
    def getxattr(self, node: int, name: bytes, _context: RequestContext) -> bytes:
        return self._core.getxattr(ino_of(node), name)

    @handler
    def setxattr(self, node: int, name: bytes, value: bytes, context: RequestContext) -> None:
        """pyfuse3 keeps XATTR_CREATE and XATTR_REPLACE to itself: it has asked for the attribute before."""
        caller = caller_of(context)
        if caller.uid and name == ACL_ACCESS:
            caller = with_groups(caller)
        self._core.setxattr(ino_of(node), name, value, 0, caller)

    @handler
    def listxattr(self, node: int, context: RequestContext) -> list[bytes]:
        return self._core.listxattr(ino_of(node), caller_of(context))

    @handler
    def removexattr(self, node: int, name: bytes, _context: RequestContext) -> None:
        self._core.removexattr(ino_of(node), name)

    @handler
    def statfs(self, _context: RequestContext) -> pyfuse3.StatvfsData:
        found = self._core.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = found.block_size
        answer.f_blocks = found.blocks
        answer.f_bfree = found.free
        answer.f_bavail = found.available
        answer.f_files = found.files
        answer.f_ffree = answer.f_favail = found.files_free
        answer.f_namemax = found.name_max
        return answer

    # Files

    @handler
    def open(self, node: int, flags: int, context: RequestContext) -> FileInfo:
        caller = caller_of(context)
        if caller.uid and flags & (os.O_ACCMODE | os.O_TRUNC):
            caller = with_groups_that_matter(self._core, node, caller)
        return self._opened(self._core.open_file(node, flags, caller))

    @handler
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        file, made = self._core.create(ino_of(parent), name, mode, flags, caller_of(context))
        return self._opened(file), self._remembered(made)

    @handler
    def read(self, handle: int, offset: int, size: int) -> memoryview | bytes:
        return self._read(self._files[handle], offset, size)

    @handler
    def write(self, handle: int, offset: int, content: bytes) -> int:
        file = self._files[handle]
        if file.keeps_privileges:
            return self._write(file, offset, content)
        # The write may take away set-id bits, which the kernel has in its cache and asks for at exec only there.
        written = self._write(file, offset, content)
        pyfuse3.invalidate_inode(file.ino, attr_only=True)
        return written

    @handler
    def flush(self, _handle: int) -> None:
        """Closing makes nothing durable. ENOSYS: done, and the kernel need not ask again."""
        raise FUSEError(errno.ENOSYS)

    @handler
    def release(self, handle: int) -> None:
        self._core.release(self._files.pop(handle))

    @handler
    def fsync(self, handle: int, datasync: bool) -> None:
        self._core.fsync(self._files[handle].ino, datasync)

    @handler
    def poll(self, _node: int, _handle: int, _poll: object, _context: RequestContext) -> int:
        """ENOSYS: files are always ready, and the kernel need not ask again."""
        raise FUSEError(errno.ENOSYS)

    # Directories

    @handler
    def opendir(self, node: int, _context: RequestContext) -> int:
        directory = self._core.opendir(ino_of(node))
        handle = next(self._handles)
        self._directories[handle] = directory
        return handle

    @handler
    def readdir(self, handle: int, cookie: int, token: ReaddirToken) -> None:
        core = self._core
        reply = pyfuse3.readdir_reply
        for found in core.readdir(self._directories[handle], cookie):
            try:
                entry = entry_of(core.getattr(found.ino))
            except FsError as error:
                logs.unanswered(f"inode {found.ino}", error)
                entry = damaged_entry(found)
            if not reply(token, found.name, entry, found.cookie):
                return
            if found.name not in (b".", b".."):
                core.pin(found.ino)

    @handler
    def releasedir(self, handle: int) -> None:
        self._core.releasedir(self._directories.pop(handle))

    @handler
    def fsyncdir(self, handle: int, datasync: bool) -> None:
        self._core.fsync(self._directories[handle].ino, datasync)

    def close_all(self) -> None:
        """Close what the kernel left open when the session ended."""
        for file in self._files.values():
            self._core.release(file)
        for directory in self._directories.values():
            self._core.releasedir(directory)
        self._files.clear()
        self._directories.clear()

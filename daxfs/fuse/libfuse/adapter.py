"""Translate pyfuse3's requests to calls of `FileSystem`, and results to pyfuse3's types; no other work is done here.

Inode numbers are node ids, except for the root: FUSE's 1 is ext4's 2 (ext4's inode 1, the bad blocks, has no name). The
kernel checks permissions (``default_permissions`` and POSIX ACLs) and may cache names and attributes for a day, since
nobody else changes the pool. Every entry in an answer is a lookup that the kernel will forget later: the handler pins
the inode, and `forget` unpins it. A refusal (`FsError`) becomes its errno. An exception that interrupted a change is
raised again and ends the session (`session.py`, the only user of this module).
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
    """Translate a refusal of the core to the exception that pyfuse3 answers with."""
    return FUSEError(error.errno or errno.EIO)


def handler(method: Method) -> AsyncMethod:
    """Wrap a plain method in the coroutine function that pyfuse3 awaits; only this decorator translates errors.

    A fixed number of arguments is 0.3 us faster than ``*args``, so most handlers have `ARGUMENTS_OF_MOST`.
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
    """Convert attributes to pyfuse3's entry. The caller pins the inode if the answer counts as a lookup."""
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
    """Return the entry that lets the kernel cache the absence of a name."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_SECONDS
    return entry


def damaged_entry(found: DirEntry) -> EntryAttributes:
    """Return the entry of a name whose inode can't be read: the name is listed, and stat(2) returns the error."""
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
    """Return the caller of a request, without supplementary groups: the kernel has checked permissions already."""
    return Caller(context.uid, context.gid, context.pid, context.umask)


def ino_of(node: int) -> int:
    """Convert a FUSE node id to an inode number."""
    return ROOT_INO if node == ROOT_NODE else node


class Adapter:
    """The handlers of one session, by pyfuse3's names. A handle of an open file or directory is never given again."""

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
        """Return the answer to a request that met an unexpected exception; raise the exception to end the session."""
        return refusal(unexpected.refusal(self._core, error, what))

    def _remembered(self, attributes: Attributes) -> EntryAttributes:
        """Pin an inode and return its entry, for an answer that the kernel counts as a lookup."""
        self._core.pin(attributes)
        return entry_of(attributes)

    def _by_handle(self, node: int) -> Attributes:
        """Return the inode of an NFS file handle; ESTALE if old or forged (fs/ext4/super.c, ext4_nfs_get_inode)."""
        if node == ROOT_INO:
            raise FsError(errno.ESTALE)
        return self._core.by_number(ino_of(node))

    def _opened(self, file: OpenFile) -> FileInfo:
        handle = next(self._handles)
        self._files[handle] = file
        return FileInfo(fh=handle, direct_io=True, keep_cache=False)

    def init(self) -> None:
        """Do nothing: pyfuse3 calls this after the kernel's answer to INIT."""

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
        """Unpin forgotten inodes. A forget has no answer, so a refusal is only logged."""
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
        """Rename; a whiteout in the old place (RENAME_WHITEOUT) belongs to the caller."""
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
        """Set an attribute. pyfuse3 handles XATTR_CREATE and XATTR_REPLACE itself, by a getxattr before."""
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
        # The write may clear set-id bits, and exec looks only at the kernel's cached mode: invalidate that.
        written = self._write(file, offset, content)
        pyfuse3.invalidate_inode(file.ino, attr_only=True)
        return written

    @handler
    def flush(self, _handle: int) -> None:
        """Return ENOSYS: closing makes nothing durable, and the kernel sends no further FLUSH."""
        raise FUSEError(errno.ENOSYS)

    @handler
    def release(self, handle: int) -> None:
        self._core.release(self._files.pop(handle))

    @handler
    def fsync(self, handle: int, datasync: bool) -> None:
        self._core.fsync(self._files[handle].ino, datasync)

    @handler
    def poll(self, _node: int, _handle: int, _poll: object, _context: RequestContext) -> int:
        """Return ENOSYS: files are always ready, and the kernel sends no further POLL."""
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
            inode = None
            try:
                inode = core.getattr(found.ino)
                entry = entry_of(inode)
            except FsError as error:
                logs.unanswered(f"inode {found.ino}", error)
                entry = damaged_entry(found)
            if not reply(token, found.name, entry, found.cookie):
                return
            if inode is not None and found.name not in (b".", b".."):
                core.pin(inode)

    @handler
    def releasedir(self, handle: int) -> None:
        self._core.releasedir(self._directories.pop(handle))

    @handler
    def fsyncdir(self, handle: int, datasync: bool) -> None:
        self._core.fsync(self._directories[handle].ino, datasync)

    def close_all(self) -> None:
        """Close the files and directories that are still open when the session ends."""
        for file in self._files.values():
            self._core.release(file)
        for directory in self._directories.values():
            self._core.releasedir(directory)
        self._files.clear()
        self._directories.clear()

"""Handlers of attributes: stat, statx, setattr, extended attributes, access, statfs."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs.types import SetAttributes
from daxfs.fuse.groups import with_groups_that_matter
from daxfs.fuse.kernel import abi, encoding, nodeid, staged
from daxfs.fuse.kernel.abi import BODY, Init, Opcode, SetAttr
from daxfs.fuse.kernel.encoding import BILLION

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

(MODE, UID, GID, SIZE, ATIME, MTIME, FH, ATIME_NOW, MTIME_NOW, _, CTIME, KILL_SUIDGID) = [int(flag) for flag in SetAttr]
"""Plain integers: ``&`` of an IntFlag takes half a microsecond, and every SETATTR tests all of them."""


def getattr_(connection: Connection, request: Request) -> bytes:
    """Answer GETATTR: stat(2)."""
    return connection.attributes(connection.core.getattr(request.ino))


def statx(connection: Connection, request: Request) -> bytes:
    """Answer STATX: statx(2) with the birth time; the kernel sends GETATTR for a statx(2) without it."""
    request.arguments(abi.STATX_IN)
    found = connection.core.getattr(request.ino)
    dax = stat.S_ISREG(found.mode) and connection.core.uses_dax(found.ino)
    found = nodeid.known_as(found, connection.core.pins)
    connection.outdated.discard(found.ino)
    return encoding.statx_out(found, connection.block_size, dax=dax)


def setattr_(connection: Connection, request: Request) -> Answer:
    """Change mode, owner, size and times. A truncate is answered after its last step."""
    given = request.arguments(abi.SETATTR_IN)
    valid = given.valid
    if valid & SIZE and valid & FH:
        staged.refuse(connection, given.fh, request.pid)
    if max(given.atimensec, given.mtimensec, given.ctimensec) >= BILLION:
        raise FsError(errno.EINVAL)
    kill: bool | None = None
    if connection.agreement.has(Init.HANDLE_KILLPRIV_V2):
        kill = bool(valid & KILL_SUIDGID)
    changes = SetAttributes(
        mode=given.mode & 0o7777 if valid & MODE else None,
        uid=given.uid if valid & UID else None,
        gid=given.gid if valid & GID else None,
        size=given.size if valid & SIZE else None,
        atime_ns=nanoseconds(given.atime, given.atimensec) if valid & ATIME and not valid & ATIME_NOW else None,
        mtime_ns=nanoseconds(given.mtime, given.mtimensec) if valid & MTIME and not valid & MTIME_NOW else None,
        ctime_ns=nanoseconds(given.ctime, given.ctimensec) if valid & CTIME else None,
        atime_now=bool(valid & ATIME_NOW),
        mtime_now=bool(valid & MTIME_NOW),
        kill_privileges=kill if valid & SIZE else None,
    )
    caller = request.caller()
    if not (changes.size is changes.uid is changes.gid is None):
        caller = with_groups_that_matter(connection.core, request.ino, caller)
    if changes.size is None:
        return connection.attributes(connection.core.setattr(request.ino, changes, caller))
    steps = connection.core.steps.setattr(request.ino, changes, caller)
    return connection.scheduler.begin(request, steps, connection.attributes, frozenset({request.node}))


def nanoseconds(seconds: int, rest: int) -> int:
    """Convert a time of the protocol, whose seconds are signed 64-bit numbers, to nanoseconds."""
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * BILLION + rest


def access(connection: Connection, request: Request) -> bytes:
    """Answer ACCESS: access(2). The kernel does not send it while it checks permissions itself."""
    mask = request.arguments(abi.ACCESS_IN).mask
    if not connection.core.access(request.ino, mask & (os.R_OK | os.W_OK | os.X_OK), request.caller()):
        raise FsError(errno.EACCES)
    return b""


def statfs(connection: Connection, request: Request) -> Answer:
    """Answer STATFS: statfs(2). Waiting forgets are processed first, so that removed files count as free."""
    core = connection.core
    if not connection.forgets:
        return encoding.statfs_out(core.statfs())
    return connection.scheduler.begin(request, connection.forgetting(), lambda _: encoding.statfs_out(core.statfs()))


def getxattr(connection: Connection, request: Request) -> bytes:
    """Return the value of an extended attribute, or its size if the caller's buffer has size 0."""
    room = request.arguments(abi.GETXATTR_IN).size
    name = request.name(BODY + abi.GETXATTR_IN.size)
    return sized(connection.core.getxattr(request.ino, name), room)


def listxattr(connection: Connection, request: Request) -> bytes:
    """Return the names of all extended attributes, each with a zero byte, or their size for a buffer of size 0."""
    room = request.arguments(abi.GETXATTR_IN).size
    names = connection.core.listxattr(request.ino, request.caller())
    return sized(b"".join(name + b"\0" for name in names), room)


def sized(value: bytes, room: int) -> bytes:
    """Return the value if it fits into ``room`` bytes, or its size if ``room`` is 0; ERANGE if it does not fit."""
    if not room:
        return abi.GETXATTR_OUT.pack(len(value))
    if len(value) > room:
        raise FsError(errno.ERANGE)
    return value


def setxattr(connection: Connection, request: Request) -> bytes:
    """Set an extended attribute. With SETXATTR_EXT the kernel decides whether an ACL clears S_ISGID."""
    given = request.arguments(abi.SETXATTR_IN)
    at, kill_set_gid = BODY + abi.SETXATTR_IN.size, None
    if connection.agreement.has(Init.SETXATTR_EXT):
        at = BODY + abi.SETXATTR_IN_EXT.size
        kill_set_gid = bool(request.arguments(abi.SETXATTR_IN_EXT).setxattr_flags & abi.SETXATTR_ACL_KILL_SGID)
    name = request.name(at)
    value = request.data(at + len(name) + 1, given.size)
    connection.core.setxattr(request.ino, name, bytes(value), given.flags, request.caller(), kill_set_gid)
    return b""


def removexattr(connection: Connection, request: Request) -> bytes:
    """Remove an extended attribute."""
    connection.core.removexattr(request.ino, request.name())
    return b""


TABLE: dict[int, Handler] = {
    Opcode.GETATTR: getattr_,
    Opcode.STATX: statx,
    Opcode.SETATTR: setattr_,
    Opcode.ACCESS: access,
    Opcode.STATFS: statfs,
    Opcode.GETXATTR: getxattr,
    Opcode.LISTXATTR: listxattr,
    Opcode.SETXATTR: setxattr,
    Opcode.REMOVEXATTR: removexattr,
}

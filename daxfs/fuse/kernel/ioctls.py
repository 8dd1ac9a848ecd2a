"""ioctl(2) on files and directories: inode flags, version, label, trim, batches, and daxfs's own commands.

FUSE passes on "restricted" commands: the command's number says how many bytes go in and out, and no pointer is
followed. The commands of chattr(1), lsattr(1) and xfs_io(8) come through the kernel's fileattr interface, which has
checked the owner. FIEMAP does not come: the kernel answers it for FUSE (EOPNOTSUPP).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from daxfs import f2fs, protocol
from daxfs.errors import FsError
from daxfs.fs.steps import Steps
from daxfs.fs.types import FsXattr
from daxfs.fuse.kernel import (
    abi,
    atomicwrites,
    batches,
    defragmenting,
    leases,
    membership,
    remount,
    resizing,
    snapshots,
    statistics,
    status,
    tiering,
)
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.request import fixed
from daxfs.fuse.kernel.scheduling import FITRIM

if TYPE_CHECKING:
    from daxfs.fuse.kernel.connection import Connection, Handler
    from daxfs.fuse.kernel.request import Request
    from daxfs.fuse.kernel.work import Answer

    Command = Callable[[Connection, Request, memoryview], bytes]
    CommandInSteps = Callable[[Connection, Request, memoryview], Steps[bytes]]

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC32_GETFLAGS = 0x80046601
FS_IOC32_SETFLAGS = 0x40046602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_IOC_GETFSLABEL = 0x81009431
FS_IOC_SETFSLABEL = 0x41009432

LARGEST_ARGUMENT = 1 << 14
"""The limit of an argument's size in bytes: a command's number has 14 bits for the size (_IOC_SIZEBITS)."""

FLAGS = Struct("=I")
FSXATTR = Struct("=IIIII8x")  # xflags extsize nextents projid cowextsize
FSTRIM_RANGE = Struct("=QQQ")  # start len minlen


def get_flags(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Return the inode flags: lsattr(1)."""
    return FLAGS.pack(connection.core.get_flags(request.ino))


def set_flags(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Set the inode flags: chattr(1)."""
    (flags,) = fixed(FLAGS, given)
    connection.core.set_flags(request.ino, flags, request.caller())
    connection.invalidate_attributes(request.ino)  # ctime has changed
    return b""


def get_fsxattr(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Return the extended flags and the project id of an inode (struct fsxattr)."""
    return FSXATTR.pack(*connection.core.get_fsxattr(request.ino))


def set_fsxattr(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Set the extended flags and the project id of an inode (struct fsxattr)."""
    connection.core.set_fsxattr(request.ino, FsXattr(*fixed(FSXATTR, given)), request.caller())
    connection.invalidate_attributes(request.ino)
    return b""


def get_version(connection: Connection, request: Request, _given: memoryview) -> bytes:
    """Return the generation number, which user-space file handles contain."""
    core, ino = connection.core, request.ino
    known = core.pins.aliases.outside(ino)
    return FLAGS.pack(core.generation(ino) if known is None else known.generation)


def trim(connection: Connection, request: Request, given: memoryview) -> Steps[bytes]:
    """Give free memory back to the file or device under the pool: fstrim(8)."""
    if request.uid:
        raise FsError(errno.EPERM)
    start, length, least = fixed(FSTRIM_RANGE, given)
    trimmed = yield from connection.core.steps.trim(start, length, least)
    return FSTRIM_RANGE.pack(start, trimmed, least)


def get_label(connection: Connection, _request: Request, _given: memoryview) -> bytes:
    """Return the label of the file system."""
    return connection.core.get_label()


def set_label(connection: Connection, request: Request, given: memoryview) -> bytes:
    """Set the label of the file system; it ends at the first zero byte."""
    connection.core.set_label(bytes(given).partition(b"\0")[0], request.caller())
    return b""


COMMANDS: dict[int, Command] = {
    FS_IOC_GETFLAGS: get_flags,
    FS_IOC_SETFLAGS: set_flags,
    FS_IOC_GETVERSION: get_version,
    FS_IOC_FSGETXATTR: get_fsxattr,
    FS_IOC_FSSETXATTR: set_fsxattr,
    FS_IOC_GETFSLABEL: get_label,
    FS_IOC_SETFSLABEL: set_label,
    f2fs.F2FS_IOC_GET_FEATURES: batches.features,
    f2fs.F2FS_IOC_START_ATOMIC_WRITE: batches.start,
    f2fs.F2FS_IOC_COMMIT_ATOMIC_WRITE: batches.commit,
    f2fs.F2FS_IOC_ABORT_ATOMIC_WRITE: batches.abort,
    statistics.STATISTICS: statistics.query,
    status.STATUS: status.query,
    remount.REMOUNT: remount.change,
    protocol.IOC_POOL: leases.pool,
    protocol.IOC_STORED: leases.stored,
    protocol.IOC_APPENDED: leases.appended,
    protocol.IOC_ARMED: leases.armed,
    protocol.IOC_SYNC: leases.sync,
    protocol.IOC_ATOMIC: atomicwrites.announce,
}

IN_STEPS: dict[int, CommandInSteps] = {
    FITRIM: trim,
    snapshots.SNAPSHOTS: snapshots.command,
    defragmenting.DEFRAGMENT: defragmenting.command,
    tiering.TIER: tiering.command,
    membership.MEMBER: membership.command,
    resizing.EXT4_IOC_RESIZE_FS: resizing.resize_fs,
    resizing.RESIZE: resizing.resize,
    protocol.IOC_LEASE: leases.lease,
    protocol.IOC_SHORT_LEASE: leases.lease,
}
"""Commands that take several steps. INTERRUPT shortens them."""

ALONGSIDE = frozenset(
    {defragmenting.DEFRAGMENT, resizing.EXT4_IOC_RESIZE_FS, resizing.RESIZE, tiering.TIER, membership.MEMBER}
)
"""Those of them between whose steps the same file or directory may change."""

COMPAT_COMMANDS: dict[int, Command] = {FS_IOC32_GETFLAGS: get_flags, FS_IOC32_SETFLAGS: set_flags}
"""Commands of 32-bit programs whose numbers differ because their arguments are shorter."""


def ioctl(connection: Connection, request: Request) -> Answer:
    """Answer IOCTL: call the command, and cut or pad its result to the size asked for; ENOTTY for an unknown one."""
    given = request.arguments(abi.IOCTL_IN)
    in_steps = IN_STEPS.get(given.cmd)
    command = COMPAT_COMMANDS.get(given.cmd) if given.flags & abi.IOCTL_COMPAT else None
    command = command or COMMANDS.get(given.cmd)
    if command is None and in_steps is None:
        raise FsError(errno.ENOTTY)
    if given.out_size > LARGEST_ARGUMENT:
        raise FsError(errno.EINVAL)
    argument = request.data(abi.IOCTL_ARGUMENT, given.in_size)

    def framed(answer: bytes) -> bytes:
        return abi.IOCTL_OUT.pack(0, 0, 0, 0) + answer[: given.out_size].ljust(given.out_size, b"\0")

    if in_steps is not None:
        steps = in_steps(connection, request, argument)
        changes = frozenset({request.node}) if given.cmd not in ALONGSIDE else frozenset()
        return connection.scheduler.begin(request, steps, framed, changes, shortens=True)
    assert command is not None
    return framed(command(connection, request, argument))


TABLE: dict[int, Handler] = {Opcode.IOCTL: ioctl}

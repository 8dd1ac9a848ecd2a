"""The messages of the kernel's FUSE protocol: opcodes, flags and layouts, by the kernel's names. No behaviour.

All integers are in the machine's byte order. A request is `IN_HEADER`, then the arguments in a `Layout` of named
fields, then names or data from ``BODY + LAYOUT.size`` on. An answer is `OUT_HEADER`, then a body packed by a
``struct.Struct``, whose fields have the order of the C structure named beside it; padding is a field or ``x``.

Source: include/uapi/linux/fuse.h, protocol 7.31 to 7.45.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from daxfs.fuse.kernel.layout import U16, U32, U64, Layout

MAJOR = 7
MINOR = 45
"""The newest protocol whose messages are described here."""
OLDEST_MINOR = 31
"""The oldest protocol that daxfs supports: Linux 5.4."""
ROOT_ID = 1
MIN_READ_BUFFER = 8192


class Opcode(IntEnum):
    """The operation that a request asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


WITHOUT_ANSWER = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)


class Init(IntFlag):
    """Capabilities that INIT offers and its answer accepts (FUSE_* flags; ``flags2`` carries bits 32 and up)."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42
    HAS_SYNCFS = 1 << 43


class SetAttr(IntFlag):
    """The valid fields of a SETATTR (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

OPEN_KILL_SUIDGID = 1 << 0
READ_LOCKOWNER = 1 << 1
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
IOCTL_COMPAT = 1 << 0

NOTIFY_INVAL_INODE = 2
"""The code of a notification. A notification is an answer with ``unique`` 0 and its code in the field ``error``."""

EXT_GROUPS = 32
"""The type of the extension that names a supplementary group (FUSE_EXT_GROUPS)."""


# Requests: a named type for each structure, then the layouts with their offsets


class InHeader(NamedTuple):
    """fuse_in_header, the beginning of every request."""

    len: U32
    opcode: U32
    unique: U64
    nodeid: U64
    uid: U32
    gid: U32
    pid: U32
    total_extlen: U16
    padding: U16


class InitIn(NamedTuple):
    """The first fields of fuse_init_in, which every kernel sends."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32


class InitInExt(NamedTuple):
    """The rest of fuse_init_in, which a kernel with INIT_EXT sends."""

    flags2: U32


class ForgetIn(NamedTuple):
    """fuse_forget_in."""

    nlookup: U64


class BatchForgetIn(NamedTuple):
    """fuse_batch_forget_in."""

    count: U32  # type: ignore[assignment]  # a tuple has a method of that name
    dummy: U32


class SetattrIn(NamedTuple):
    """fuse_setattr_in."""

    valid: U32
    padding: U32
    fh: U64
    size: U64
    lock_owner: U64
    atime: U64
    mtime: U64
    ctime: U64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    unused4: U32
    uid: U32
    gid: U32
    unused5: U32


class MknodIn(NamedTuple):
    """fuse_mknod_in."""

    mode: U32
    rdev: U32
    umask: U32
    padding: U32


class MkdirIn(NamedTuple):
    """fuse_mkdir_in."""

    mode: U32
    umask: U32


class RenameIn(NamedTuple):
    """fuse_rename_in."""

    newdir: U64


class Rename2In(NamedTuple):
    """fuse_rename2_in."""

    newdir: U64
    flags: U32
    padding: U32


class LinkIn(NamedTuple):
    """fuse_link_in."""

    oldnodeid: U64


class OpenIn(NamedTuple):
    """fuse_open_in."""

    flags: U32
    open_flags: U32


class CreateIn(NamedTuple):
    """fuse_create_in, for CREATE and TMPFILE."""

    flags: U32
    mode: U32
    umask: U32
    open_flags: U32


class ReleaseIn(NamedTuple):
    """fuse_release_in."""

    fh: U64
    flags: U32
    release_flags: U32
    lock_owner: U64


class ReadIn(NamedTuple):
    """fuse_read_in, for READ, READDIR and READDIRPLUS."""

    fh: U64
    offset: U64
    size: U32
    read_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32


class WriteIn(NamedTuple):
    """fuse_write_in."""

    fh: U64
    offset: U64
    size: U32
    write_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32


class FsyncIn(NamedTuple):
    """fuse_fsync_in."""

    fh: U64
    fsync_flags: U32
    padding: U32


class SetxattrIn(NamedTuple):
    """fuse_setxattr_in without SETXATTR_EXT."""

    size: U32
    flags: U32


class SetxattrInExt(NamedTuple):
    """fuse_setxattr_in with SETXATTR_EXT."""

    size: U32
    flags: U32
    setxattr_flags: U32
    padding: U32


class GetxattrIn(NamedTuple):
    """fuse_getxattr_in, for GETXATTR and LISTXATTR."""

    size: U32
    padding: U32


class AccessIn(NamedTuple):
    """fuse_access_in."""

    mask: U32
    padding: U32


class InterruptIn(NamedTuple):
    """fuse_interrupt_in."""

    unique: U64


class IoctlIn(NamedTuple):
    """fuse_ioctl_in."""

    fh: U64
    flags: U32
    cmd: U32
    arg: U64
    in_size: U32
    out_size: U32


class FallocateIn(NamedTuple):
    """fuse_fallocate_in."""

    fh: U64
    offset: U64
    length: U64
    mode: U32
    padding: U32


class LseekIn(NamedTuple):
    """fuse_lseek_in."""

    fh: U64
    offset: U64
    whence: U32
    padding: U32


class CopyFileRangeIn(NamedTuple):
    """fuse_copy_file_range_in."""

    fh_in: U64
    off_in: U64
    nodeid_out: U64
    fh_out: U64
    off_out: U64
    len: U64
    flags: U64


class StatxIn(NamedTuple):
    """fuse_statx_in."""

    getattr_flags: U32
    reserved: U32
    fh: U64
    sx_flags: U32
    sx_mask: U32


IN_HEADER = Layout(InHeader, 0)
BODY = IN_HEADER.size
"""The offset of a request's arguments."""

INIT_IN = Layout(InitIn, BODY)
INIT_IN_EXT = Layout(InitInExt, BODY + INIT_IN.size, unused=44)
FORGET_IN = Layout(ForgetIn, BODY)
BATCH_FORGET_IN = Layout(BatchForgetIn, BODY)
SETATTR_IN = Layout(SetattrIn, BODY)
MKNOD_IN = Layout(MknodIn, BODY)
MKDIR_IN = Layout(MkdirIn, BODY)
RENAME_IN = Layout(RenameIn, BODY)
RENAME2_IN = Layout(Rename2In, BODY)
LINK_IN = Layout(LinkIn, BODY)
OPEN_IN = Layout(OpenIn, BODY)
CREATE_IN = Layout(CreateIn, BODY)
RELEASE_IN = Layout(ReleaseIn, BODY)
READ_IN = Layout(ReadIn, BODY)
WRITE_IN = Layout(WriteIn, BODY)
FSYNC_IN = Layout(FsyncIn, BODY)
SETXATTR_IN = Layout(SetxattrIn, BODY)
SETXATTR_IN_EXT = Layout(SetxattrInExt, BODY)
GETXATTR_IN = Layout(GetxattrIn, BODY)
ACCESS_IN = Layout(AccessIn, BODY)
INTERRUPT_IN = Layout(InterruptIn, BODY)
IOCTL_IN = Layout(IoctlIn, BODY)
IOCTL_ARGUMENT = BODY + IOCTL_IN.size
"""The offset of an ioctl's argument."""
FALLOCATE_IN = Layout(FallocateIn, BODY)
LSEEK_IN = Layout(LseekIn, BODY)
COPY_FILE_RANGE_IN = Layout(CopyFileRangeIn, BODY)
STATX_IN = Layout(StatxIn, BODY)

# Answers, and the structures that follow the arguments of a request

OUT_HEADER = Struct("=IiQ")  # len error unique
EXT_HEADER = Struct("=II")  # size type
SUPP_GROUPS = Struct("=I")  # nr_groups; nr_groups u32 follow
FORGET_ONE = Struct("=QQ")  # nodeid nlookup

INIT_OUT = Struct("=IIIIHHIIHHII24x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2
# max_stack_depth, then request_timeout and unused

ATTR = Struct("=QQQqqqIIIIIIIIII")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
ATTR_OUT = Struct("=QI4x" + ATTR.format[1:])  # attr_valid attr_valid_nsec attr
ENTRY_HEAD = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ENTRY_OUT = Struct(ENTRY_HEAD.format + ATTR.format[1:])  # attr follows
DIRENT = Struct("=QQII")  # ino off namelen type, then the name, padded to 8 bytes
STATX_OUT = Struct("=QII16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
# attr_valid attr_valid_nsec flags; mask blksize attributes nlink uid gid mode ino size blocks attributes_mask;
# atime btime ctime mtime; rdev_major rdev_minor dev_major dev_minor

OPEN_OUT = Struct("=QII")  # fh open_flags backing_id
WRITE_OUT = Struct("=I4x")  # size
STATFS_OUT = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
GETXATTR_OUT = Struct("=I4x")  # size
IOCTL_OUT = Struct("=iIII")  # result flags in_iovs out_iovs
LSEEK_OUT = Struct("=Q")  # offset
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes_copied
INVAL_INODE_OUT = Struct("=Qqq")  # ino off len

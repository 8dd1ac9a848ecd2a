"""The messages of the kernel's FUSE protocol: opcodes, flags and layouts, by the kernel's names. No behaviour.

All integers are in the machine's byte order. Every request begins with `IN_HEADER`, every answer with `OUT_HEADER`. A
layout is a ``struct.Struct`` whose fields stand in the order of the C structure beside it; padding is a field or
``x``. Offsets of what follows a layout are ``IN_HEADER.size + LAYOUT.size``.

Source: include/uapi/linux/fuse.h, protocol 7.31 to 7.45.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 45
"""The newest protocol whose messages are described here."""
OLDEST_MINOR = 31
"""Linux 5.4."""
ROOT_ID = 1
MIN_READ_BUFFER = 8192


class Opcode(IntEnum):
    """What a request asks for (enum fuse_opcode)."""

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


class Init(IntFlag):
    """Capabilities, offered by INIT and accepted by its answer (FUSE_* flags; bits 32 and up travel in ``flags2``)."""

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
    """Which fields of a SETATTR count (FATTR_*)."""

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
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
IOCTL_COMPAT = 1 << 0

NOTIFY_INVAL_INODE = 2
"""Notifications are answers to no request: unique 0, and this code where an error would stand."""

EXT_GROUPS = 32
"""The extension that names a supplementary group (FUSE_EXT_GROUPS)."""

IN_HEADER = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = Struct("=IiQ")  # len error unique
EXT_HEADER = Struct("=II")  # size type
SUPP_GROUPS = Struct("=I")  # nr_groups, then so many u32

INIT_IN = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_EXT = Struct("=I44x")  # flags2 unused[11]
INIT_OUT = Struct("=IIIIHHIIHHII24x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2
# max_stack_depth, then request_timeout and unused

ATTR = Struct("=QQQQQQIIIIIIIIII")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
ATTR_OUT = Struct("=QI4x" + ATTR.format[1:])  # attr_valid attr_valid_nsec attr
ENTRY_HEAD = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ENTRY_OUT = Struct(ENTRY_HEAD.format + ATTR.format[1:])  # attr follows
DIRENT = Struct("=QQII")  # ino off namelen type, then the name, padded to 8 bytes
STATX_IN = Struct("=I4xQII")  # getattr_flags fh sx_flags sx_mask
STATX_OUT = Struct("=QII16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
# attr_valid attr_valid_nsec flags; mask blksize attributes nlink uid gid mode ino size blocks attributes_mask;
# atime btime ctime mtime; rdev_major rdev_minor dev_major dev_minor

FORGET_IN = Struct("=Q")  # nlookup
BATCH_FORGET_IN = Struct("=I4x")  # count
FORGET_ONE = Struct("=QQ")  # nodeid nlookup
SETATTR_IN = Struct("=I4xQQQQQQIIII4xII4x")
# valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid
MKNOD_IN = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN = Struct("=II")  # mode umask
RENAME_IN = Struct("=Q")  # newdir
RENAME2_IN = Struct("=QI4x")  # newdir flags
LINK_IN = Struct("=Q")  # oldnodeid
OPEN_IN = Struct("=II")  # flags open_flags
OPEN_OUT = Struct("=QII")  # fh open_flags backing_id
CREATE_IN = Struct("=IIII")  # flags mode umask open_flags
RELEASE_IN = Struct("=QIIQ")  # fh flags release_flags lock_owner
READ_IN = Struct("=QQIIQI4x")  # fh offset size read_flags lock_owner flags
WRITE_IN = Struct("=QQIIQI4x")  # fh offset size write_flags lock_owner flags
WRITE_OUT = Struct("=I4x")  # size
STATFS_OUT = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
FSYNC_IN = Struct("=QI4x")  # fh fsync_flags
SETXATTR_IN = Struct("=II")  # size flags
SETXATTR_IN_EXT = Struct("=IIII")  # size flags setxattr_flags padding
GETXATTR_IN = Struct("=I4x")  # size
GETXATTR_OUT = Struct("=I4x")  # size
ACCESS_IN = Struct("=I4x")  # mask
IOCTL_IN = Struct("=QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT = Struct("=iIII")  # result flags in_iovs out_iovs
FALLOCATE_IN = Struct("=QQQI4x")  # fh offset length mode
LSEEK_IN = Struct("=QQI4x")  # fh offset whence
LSEEK_OUT = Struct("=Q")  # offset
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes_copied
INVAL_INODE_OUT = Struct("=Qqq")  # ino off len

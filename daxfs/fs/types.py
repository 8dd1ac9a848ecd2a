"""The plain values that cross the border of the file-system floor.

Tuples and frozen dataclasses of plain values only: no record, no memory, no FUSE type. Any floor above may keep them as
long as it likes, since none of them refers to the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from daxfs.protocol import Kind

if TYPE_CHECKING:
    from daxfs.journal.journal import Statistics as JournalStatistics

ROOT_INO = 2


class Attributes(NamedTuple):
    """What stat(2) and statx(2) tell. Times in nanoseconds since the epoch, ``blocks`` in 512-byte units."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    crtime_ns: int
    generation: int
    flags: int


class SetAttributes(NamedTuple):
    """The attributes to change; ``None`` leaves one as it is. Times in nanoseconds since the epoch.

    ``atime_now`` and ``mtime_now`` set a time to the moment of the call; that they are not given as times matters to
    append-only inodes, which may be touched but not dated. ``kill_privileges`` says whether a new size takes set-id
    bits away (None: it does unless the caller is the superuser); a new owner always does.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    kill_privileges: bool | None = None


class Caller(NamedTuple):
    """Whose operation it is. ``groups`` are the supplementary groups, where they are known."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0
    groups: frozenset[int] = frozenset()


class DirEntry(NamedTuple):
    """One name of a directory; listing again from ``cookie`` goes on strictly after it."""

    name: bytes
    ino: int
    file_type: int
    cookie: int


class FileExtent(NamedTuple):
    """A part of a file and where it lies in the pool, in bytes; ``flags`` are FIEMAP's (``FIEMAP_EXTENT_*``)."""

    logical: int
    physical: int
    length: int
    flags: int


class StatFs(NamedTuple):
    """What statvfs(3) tells; blocks in units of ``block_size`` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int


class FsXattr(NamedTuple):
    """Extended flags of an inode (struct fsxattr, include/uapi/linux/fs.h): ``xflags`` are FS_XFLAG_* bits."""

    xflags: int
    extsize: int
    nextents: int
    projid: int
    cowextsize: int


class Deferral(NamedTuple):
    """Bytes of a leased inode that wait for one open file before they are freed, and who opened that file.

    ``pid`` is 0 where the daemon can't see the process. The file may be another process's by now.
    """

    ino: int
    uid: int
    pid: int
    size: int


class Statistics(NamedTuple):
    """What a volume keeps in DRAM now, and what its journal did since the mount.

    ``open_files``: opens without a close. ``remembered``: inodes known by number to somebody (FUSE lookups).
    ``lazy_times``: inodes whose times wait for the next commit. ``nameless``: inodes in use without a name.
    ``leases``: holders that may load or store without asking. ``deferred``: bytes that files gave up and that wait for
    such holders; ``holding``: which open files they wait for, those with most of it.
    ``journal``: None on a read-only mount.
    """

    open_files: int
    remembered: int
    lazy_times: int
    nameless: int
    leases: int
    deferred: int
    holding: tuple[Deferral, ...]
    journal: JournalStatistics | None


class LeaseRequest(NamedTuple):
    """A client's question about the bytes [offset, offset + length).

    ``flags`` are `protocol.Flag`; ``room``: pieces that it can take; ``token``: what lies in the pool at
    `PoolIdentity.token`, to prove that the client can open it.
    """

    holder: int
    offset: int
    length: int
    flags: int
    room: int
    token: bytes = b""


class Piece(NamedTuple):
    """A part of a file, in bytes; ``pool_offset`` only of memory."""

    offset: int
    pool_offset: int
    length: int
    kind: Kind


class Grant(NamedTuple):
    """The answer: pieces without gaps from the request's offset to ``next``; ``made``: blocks were allocated for it.

    It holds while the status entry at pool offset ``entry`` says ``epoch``; without an entry (0) for good.
    """

    next: int
    size: int
    entry: int
    epoch: int
    pieces: list[Piece]
    made: bool


class WriteNotification(NamedTuple):
    """What a client says of its own stores.

    ``size``: the file is so long now, at least; ``base``: if it was so long before (None: in any case), ``holder``: and
    if this one makes it longer (None: any of the open file). ``durable``: as fsync(2), and with ``data_only`` as
    fdatasync(2).
    """

    size: int = 0
    base: int | None = None
    durable: bool = False
    data_only: bool = False
    holder: int | None = None


class PoolIdentity(NamedTuple):
    """Which pool: how to find it, how to know it (stat(2)), how stores become durable, what to lock while it is mapped.

    ``persistence`` is ``libpmem``, ``msync`` or ``volatile``. ``token``: pool offset of the token that lease requests
    quote; 0: none is needed.
    """

    path: str
    device: int
    inode: int
    rdevice: int
    size: int
    persistence: str
    block_size: int
    lock: int
    uuid: bytes
    token: int


class RenameFlags(IntFlag):
    """Flags of renameat2(2) (include/uapi/linux/fs.h)."""

    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


@dataclass(frozen=True, slots=True)
class Options:
    """How a pool is mounted.

    Attributes:
        read_only: nothing is changed but by recovery; where the pool can't be written, that is done in memory.
        replay: the log is replayed; False (mount option ``noload``, read-only mounts only) looks without.
        sync: every operation that returned is durable (mount option ``sync``).
        commit_interval: seconds until finished operations are durable anyway (``commit=``).
        atime: ``relatime``, ``strictatime`` or ``noatime``, as mount(8) means them.
        directory_atime: listing a directory moves its time of access as ``atime`` says.
        dax: which files' data goes straight to memory: ``always`` all, ``inode`` those with the flag, ``never`` none.
        mountpoint: recorded in the superblock as the place last mounted on.
        grpid: new files take their directory's group; None: as the superblock says.
        resuid: the user that may take reserved blocks, beside the superuser; None: as the superblock says.
        resgid: the group that may; 0 is nobody's, None: as the superblock says.
    """

    read_only: bool = False
    replay: bool = True
    sync: bool = False
    commit_interval: float = 5.0
    atime: str = "relatime"
    directory_atime: bool = True
    dax: str = "always"
    mountpoint: str = ""
    grpid: bool | None = None
    resuid: int | None = None
    resgid: int | None = None

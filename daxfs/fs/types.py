"""The plain values that cross the border of the file-system layer.

They are tuples and frozen dataclasses of plain values: no record, no memory, no FUSE type. Any layer above may keep
them, since none of them refers to the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from daxfs.protocol import GrantedExtent
from daxfs.runs import ByteRange
from daxfs.structures.directories import Entry, Listing

if TYPE_CHECKING:
    from daxfs.ext4.superblock import RecordedError
    from daxfs.journal.statistics import Statistics as JournalStatistics

ROOT_INO = 2
DEFAULT_TIER_HIGH, DEFAULT_TIER_LOW = 90, 80
"""Percent of the memory of a tiered pool (`Options.tier_high`)."""

DirEntry = Entry
"""One name of a directory; a listing from its ``cookie`` continues strictly after it."""
DirListing = Listing
"""Names of a directory, in columns."""


class Attributes(NamedTuple):
    """The attributes of stat(2) and statx(2). Times in nanoseconds since the epoch, ``blocks`` in 512-byte units."""

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

    ``atime_now`` and ``mtime_now`` set a time to the moment of the call. They are apart from given times because an
    append-only inode accepts only the current time. ``kill_privileges`` says whether a new size drops set-id bits
    (None: unless the caller is the superuser); a new owner always does.
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
    """The process that makes a call. ``groups`` are its supplementary groups, if they are known."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0
    groups: frozenset[int] = frozenset()


class FileExtent(NamedTuple):
    """A part of a file and where it lies in the pool, in bytes; ``flags`` are FIEMAP's (``FIEMAP_EXTENT_*``)."""

    logical: int
    physical: int
    length: int
    flags: int


class StatFs(NamedTuple):
    """The values of statvfs(3); blocks in units of ``block_size`` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int


class Resized(NamedTuple):
    """The sizes of a file system in blocks, before and after it was resized."""

    before: int
    blocks: int


class FsXattr(NamedTuple):
    """Extended flags of an inode (struct fsxattr, include/uapi/linux/fs.h): ``xflags`` are FS_XFLAG_* bits."""

    xflags: int
    extsize: int
    nextents: int
    projid: int
    cowextsize: int


class Deferral(NamedTuple):
    """Bytes of a leased inode that are freed only after one open file has renewed or closed, and who opened that file.

    ``pid`` is 0 if the daemon can't see the process. The open file may belong to another process by now.
    """

    ino: int
    uid: int
    pid: int
    size: int


class Statistics(NamedTuple):
    """What a volume keeps in DRAM now, and what its journal did since the mount.

    ``open_files``: opens without a close. ``remembered``: pinned inodes (FUSE lookups). ``lazy_times``: inodes whose
    times wait for the next commit. ``nameless``: inodes in use without a name. ``leases``: holders of leases.
    ``deferred``: bytes that files gave up and that holders may still touch; ``holding``: the open files for which most
    is deferred. ``journal``: None on a read-only mount. ``memory_errors``: loads and stores that met missing memory.
    ``bad_bytes``: of memory that is known to be bad; ``bad``: where in the pool. ``snapshots``: those that are valid;
    ``snapshot_copied``: bytes that were copied for them since the mount, ``snapshot_mapped``: those of them that were
    copied at once when a snapshot was made, since clients might store there.
    """

    open_files: int
    remembered: int
    lazy_times: int
    nameless: int
    leases: int
    deferred: int
    memory_errors: int
    bad_bytes: int
    snapshots: int
    snapshot_copied: int
    snapshot_mapped: int
    holding: tuple[Deferral, ...]
    journal: JournalStatistics | None
    bad: tuple[ByteRange, ...]


class Snapshot(NamedTuple):
    """A snapshot of the pool.

    ``created_ns``: when it was made, in nanoseconds since 1970. ``size``: bytes of its store. ``copied``: bytes of old
    content in it. ``uuid``: of the snapshot; zeros if its store is damaged. ``lost``: why it has lost content, so that
    it can only be deleted; "" for a valid one. ``mapped``: bytes that were copied when it was made, since clients might
    store there. ``skipped``: bytes that clients might store to then, and that were not copied.
    """

    name: bytes
    created_ns: int
    size: int
    copied: int
    uuid: bytes
    lost: str
    mapped: int = 0
    skipped: int = 0


class MappedFile(NamedTuple):
    """A file that a process may have stored to, without the daemon, while a snapshot was made.

    ``pid``: the process that opened it, as in `Deferral`. ``size``: bytes that it was granted for storing.
    """

    ino: int
    pid: int
    size: int


class NewSnapshot(NamedTuple):
    """A snapshot that was just made, and the files that clients might store to meanwhile."""

    snapshot: Snapshot
    files: tuple[MappedFile, ...]


CONTENT, MAP, ATTRIBUTES = "content", "map", "attributes"


class Stayed(NamedTuple):
    """A part of a file that a relocation has left where it lies.

    ``why``: one of `REASONS_TO_STAY`. ``pids``: the processes that opened the file and keep it there, as in `Deferral`.
    ``part``: bytes of the content lie there, or a block of the map that these bytes need (``map``), or the inode's
    block of extended attributes (``attributes``).
    """

    offset: int
    length: int
    why: str
    pids: tuple[int, ...] = ()
    part: str = CONTENT


MAPPED, BAD, FULL, FRAGMENTED = "mapped", "bad", "full", "fragmented"
DAMAGED, FIXED, SNAPSHOT = "damaged", "fixed", "snapshot"
REASONS_TO_STAY = {
    MAPPED: "programs map it, or may store to it and do not answer",
    BAD: "its memory is bad",
    FULL: "there is no free run that is long enough",
    FRAGMENTED: "one transaction of the log can't hold its pieces",
    DAMAGED: "it is damaged",
    FIXED: "the file system keeps it for itself: its journal, reserved descriptors, a quota or a list of orphans",
    SNAPSHOT: "it holds a snapshot",
}
"""Why a part of a file stays where it is."""


class Relocation(NamedTuple):
    """What a relocation did: bytes of the content that lie elsewhere now, parts that stayed, and bytes of metadata.

    The metadata are blocks of the map itself and of extended attributes; the blocks of a directory are its content.
    """

    moved: int
    stayed: tuple[Stayed, ...]
    metadata: int = 0


class Evacuation(NamedTuple):
    """What became of a part of the pool that was to be emptied.

    ``moved``, ``metadata``: bytes, as in `Relocation`. ``stayed``: inode -> what it still has there. ``left``: blocks
    of the part that are in use, beside the groups' own metadata: what stayed, and what was allocated there meanwhile.
    """

    moved: int
    metadata: int
    stayed: dict[int, tuple[Stayed, ...]]
    left: int


class LeaseRequest(NamedTuple):
    """A client's request for the bytes [offset, offset + length).

    ``flags`` are `protocol.Flag`; ``room``: the number of pieces that the answer may have; ``token``: the bytes at pool
    offset `PoolIdentity.token`, which prove that the client can open the pool.
    """

    holder: int
    offset: int
    length: int
    flags: int
    room: int
    token: bytes = b""


class Grant(NamedTuple):
    """The answer to a lease request: pieces without gaps from the request's offset to ``next``.

    ``made``: blocks were allocated for it. It holds while the status entry at pool offset ``entry`` shows ``epoch``;
    without an entry (0) it holds for good.
    """

    next: int
    size: int
    entry: int
    epoch: int
    pieces: list[GrantedExtent]
    made: bool


class MemberUse(NamedTuple):
    """One member of a pool's storage, in bytes.

    Attributes:
        path: where it is.
        size: what the file system has there; ``free`` of it is free.
        free: see above.
        failed: why nothing on it can be used any longer; "": it can.
    """

    path: str
    size: int
    free: int
    failed: str


class TierUse(NamedTuple):
    """Memory and storage of a tiered pool, in bytes.

    Attributes:
        memory: what the file system has in memory; ``memory_free`` of it is free.
        memory_free: see above.
        storage: what it has on storage; ``storage_free`` of it is free.
        storage_free: see above.
        reads: reads of files since the mount, of up to 256 KiB each; ``hits`` of them did not wait for the storage.
        hits: see above.
        read: read from storage for readers since the mount.
        promoted: moved to memory since the mount.
        demoted: moved to storage since the mount.
        members: those of the storage, in order.
    """

    memory: int
    memory_free: int
    storage: int
    storage_free: int
    reads: int
    hits: int
    read: int
    promoted: int
    demoted: int
    members: tuple[MemberUse, ...]


class WriteNotification(NamedTuple):
    """A client's report of its own stores.

    ``size``: the file is at least this long now. ``base``: EOF before the stores; the report is refused if EOF is
    elsewhere (None: it is never refused for that). ``holder``: the holder that stored past EOF (None: any of the open
    file). ``durable``: as fsync(2), and with ``data_only`` as fdatasync(2).
    """

    size: int = 0
    base: int | None = None
    durable: bool = False
    data_only: bool = False
    holder: int | None = None


class PoolIdentity(NamedTuple):
    """The pool's path, its identity by stat(2), how stores become durable, and which byte to lock while it is mapped.

    ``persistence`` is ``libpmem``, ``msync`` or ``volatile``. ``align``: the unit in which the pool can be mapped, in
    bytes. ``token``: pool offset of the token that lease requests
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
    align: int
    token: int


class RenameFlags(IntFlag):
    """Flags of renameat2(2) (include/uapi/linux/fs.h)."""

    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


@dataclass(frozen=True, slots=True)
class MetadataErrors:
    """The errors of metadata that the superblock records.

    Attributes:
        count: faults since e2fsck has cleared the record.
        first: the first of them; None: there was none.
        last: the last of them.
        behaviour: what the mount does about one: ``continue`` or ``remount-ro``.
        stopped: the volume was mounted for writing, and an error has made it read-only.
    """

    count: int
    first: RecordedError | None
    last: RecordedError | None
    behaviour: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a mount.

    Attributes:
        read_only: only recovery changes the pool; if the pool can't be written, recovery is done in memory.
        replay: the log is replayed; False (mount option ``noload``, read-only mounts only): it is left alone.
        sync: every operation that returned is durable (mount option ``sync``).
        commit_interval: seconds until finished operations are durable at the latest (``commit=``).
        atime: ``relatime``, ``strictatime`` or ``noatime``, as in mount(8).
        directory_atime: whether listing a directory changes its access time, as ``atime`` says.
        dax: which files' data goes straight to memory: ``always`` all, ``inode`` those with the flag, ``never`` none.
        mountpoint: recorded in the superblock as the place last mounted on.
        grpid: new files take their directory's group; None: as the superblock says.
        resuid: the user that may take reserved blocks, beside the superuser; None: as the superblock says.
        resgid: the group that may take reserved blocks; 0: no group; None: as the superblock says.
        errors: ``continue`` or ``remount-ro``, what an error of metadata does to the volume (`daxfs.fs.damage`); None:
            as the superblock says.
        tier_high: percent of the memory of a pool with storage; while more is in use, files go to storage.
        tier_low: until less than so many percent are in use.
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
    errors: str | None = None
    tier_high: int = DEFAULT_TIER_HIGH
    tier_low: int = DEFAULT_TIER_LOW

"""A mounted pool: what the operations of this layer share.

The volume owns the journal, the nodes and the mount options. It opens handles, keeps times that wait for the commit,
and can become read-only. Operations live in the sibling modules and take the volume first;
`mounting.py` makes and unmakes volumes. Nothing here knows names or data.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.features import RoCompat
from daxfs.ext4.inode import EXT4_DIRSYNC_FL, EXT4_EXTENTS_FL, EXT4_SYNC_FL
from daxfs.ext4.superblock import Superblock
from daxfs.fs import defaults
from daxfs.fs.lifetimes import Lifetimes
from daxfs.fs.nodes import MAX_LAZY, Nodes
from daxfs.fs.reclaim import Reclaimers
from daxfs.fs.staging import Staging
from daxfs.fs.types import Caller, Options
from daxfs.journal.logged import LoggedData
from daxfs.structures import inode_allocation, inodes, overhead
from daxfs.structures.blocksearch import CHUNK_BYTES
from daxfs.structures.noted import Noted

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.fs.notifiers import BlockNotifier, MountNotifier
    from daxfs.fs.tiers.heat import Heat
    from daxfs.fs.tiers.storagecache import StorageCache
    from daxfs.journal.area import LogArea
    from daxfs.journal.handle import Handle
    from daxfs.journal.journal import Journal
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.structures.inodes import Inode

log = logging.getLogger("daxfs.fs")

P = ParamSpec("P")
R = TypeVar("R")

LARGE_FILE = 0x7FFFFFFF
"""A larger file needs the feature ``large_file`` (ext4_update_inode in fs/ext4/inode.c)."""
MOST_PENDING = 512
"""The size (`Journal.pending`) from which on a long operation commits, so that no commit takes long: some 5 ms."""
LARGE_CHUNKS = 2
"""Chunks of 2 MiB that a file has when it counts as large (`Volume.grown`)."""
SUPERUSER = Caller()


class Volume:
    """One mounted pool. ``journal`` is None exactly if the volume was mounted read-only.

    ``log_area``: the blocks of its log; None without a log, and before the volume is first changed. ``sync_due``: what
    the running operation has changed must be durable when it returns (`finish`). ``groups_of``: finds the supplementary
    groups of a caller. ``label_was_set``: through this mount, so that a label from outside the mount is older
    (`outside`).
    ``resizing``: it is being made larger or smaller (`resizing`, `shrinking`). ``new_end``: the size in
    blocks that a shrink makes; 0: none runs.
    ``under_way``: the operations in steps that have begun and not ended (`operations`): they hold inode numbers.
    ``superblock_buffer``: for a copy of the superblock at home (`outside`): in the middle of a commit none can be made.
    ``armed``: a client may append by itself, until `settle`.
    ``next_bad_block``: the first one that `badmemory.retire` has not examined in this round.
    ``noted``: the damage that operations have done without, and that is to be reported.
    ``tiers``: what lies on the pool's storage; None: it has none. ``heat``: how often data is used then.
    ``on_storage_answer``: called in a thread when a call on storage has returned, which somebody waits for between two
    steps; None: nobody but the call's own caller does.
    ``faults[0]``: how many loads and stores of the running operation met missing memory (`daxfs.pmem.faults`).
    """

    def __init__(self, pool: Pool, geometry: Geometry, view: View, journal: Journal | None, options: Options) -> None:
        self.pool = pool
        self.memory = pool.memory.toreadonly()  # what reads return
        self.faults = pool.faults.pending
        self.noted = view.caches[Noted].waiting
        self.geometry = geometry
        self.block_size = geometry.block_size
        self.block_bits = geometry.block_bits
        self.view = view
        self.options = options
        self.defaults = defaults.in_force(view.superblock(), options)
        self.groups_of: Callable[[Caller], frozenset[int]] = lambda caller: caller.groups
        self.sync_due = options.sync
        self.nodes = Nodes(options, geometry.block_bits, self.write_times)
        if journal is not None:
            self.nodes.in_log = journal.logged
        self._allow_changes(journal is not None)
        self.lives = Lifetimes()
        inode_allocation.keep_free(view, self.lives.pins.aliases.numbers)
        self.staging = Staging()
        self.tiers: StorageCache | None = None
        self.heat: Heat | None = None
        self.on_storage_answer: Callable[[], object] | None = None
        self.notifier: BlockNotifier  # set at once by the maker of the volume
        self.snapshots: MountNotifier  # as well
        self.reclaimers = Reclaimers()
        self.reclaimers.add(self.commit_frees)
        self.large_file_from = (
            LARGE_FILE if not geometry.ro_compat & RoCompat.large_file else geometry.max_extent_file_size
        )
        self.mounted_state = view.superblock().s_state
        self.label_was_set = False
        self.resizing = False
        self.new_end = 0
        self.under_way = 0
        self.armed = False
        self.superblock_buffer = bytearray(Superblock.SIZE)
        self._every_map = min(geometry.max_extent_file_size, geometry.max_indirect_file_size)
        self._chunk = max(CHUNK_BYTES >> geometry.block_bits, 1)
        self._overhead: int | None = None
        self.log_area: LogArea | None = None
        self._journal = journal
        self._last_commit = time.monotonic()
        self._bad_bytes = pool.bad.bytes
        self.next_bad_block = 0

    def adopt(self, options: Options) -> None:
        """Put other options in force (`remounting`)."""
        self.options = self.nodes.options = options
        self.defaults = defaults.in_force(self.view.superblock(), options)
        self.sync_due = options.sync
        for ino in self.nodes.open:
            self.refresh(ino)

    def begin_writing(self, journal: Journal) -> None:
        """Change the pool through ``journal`` from now on (`remounting`)."""
        self._journal = journal
        self.nodes.in_log = journal.logged
        self.view = journal.view
        self._allow_changes(True)
        self.mounted_state = journal.view.superblock().s_state
        self.label_was_set = False
        self._last_commit = time.monotonic()

    def end_writing(self, view: View) -> None:
        """Change nothing from now on: the journal was closed, and ``view`` shows the pool (`remounting`)."""
        self._journal = None
        self.nodes.in_log = LoggedData()
        self.view = view
        self._allow_changes(False)

    @property
    def was_writable(self) -> bool:
        """Whether the volume was mounted for writing; damage may have made it read-only since."""
        return self._journal is not None

    @property
    def journal(self) -> Journal:
        """The journal; EROFS on a read-only mount."""
        if self._journal is None:
            raise FsError(errno.EROFS)
        return self._journal

    def writable(self) -> None:
        """Refuse to change a read-only volume (EROFS)."""
        if self.read_only:
            raise FsError(errno.EROFS)

    def handle(self, credits: int, caller: Caller = SUPERUSER) -> Handle:
        """Open a handle that may change up to ``credits`` blocks; reserved blocks are for privileged callers."""
        if self.read_only or self._journal is None:
            raise FsError(errno.EROFS)
        return self._journal.handle(credits, privileged=self.privileged(caller))

    def privileged(self, caller: Caller) -> bool:
        """Return whether the caller may take reserved blocks (``ext4_has_free_clusters`` in fs/ext4/balloc.c)."""
        if caller.uid in (0, self.defaults.reserve_uid):
            return True
        gid = self.defaults.reserve_gid
        return gid != 0 and (caller.gid == gid or gid in self.groups_of(caller))

    def retrying(self, operation: Callable[Concatenate[Volume, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an atomic operation; if the pool is full, once more after all reclaimers (`reclaim.py`)."""
        return self.reclaimers.retrying(operation, self, *args, **kwargs)

    def commit_frees(self) -> bool:
        """Commit if the running transaction has freed blocks: they become free with it (a reclaimer)."""
        if not self.pending_frees():
            return False
        self.commit()
        return True

    def pending_frees(self) -> int:
        """Return the number of blocks that the running transaction has freed: they become free with its commit."""
        return self._journal.pending_free_blocks if self._journal is not None else 0

    def pending_frees_in_memory(self) -> int:
        """Return how many of them are not on storage."""
        return self._journal.pending_frees_below(self.geometry.memory_blocks) if self._journal is not None else 0

    def allow_large_files(self) -> None:
        """Set the feature ``large_file`` before the first file gets longer than 2 GiB."""
        with self.handle(1) as tx:
            tx.edit_superblock().s_feature_ro_compat |= RoCompat.large_file
        self.large_file_from = self.geometry.max_extent_file_size

    def follow_size(self) -> None:
        """Use all of a pool or a file system that has become larger or smaller, and no more."""
        self.memory = self.pool.memory.toreadonly()
        self._overhead = None
        if self._journal is not None:
            self._journal.follow_size()
        self.notifier.follow_size()

    @property
    def overhead(self) -> int:
        """The number of blocks that are never data; counted once, since it changes only when the file system grows."""
        if self._overhead is None:
            sb = self.view.superblock()
            log_blocks = 0
            if self.geometry.has_journal and sb.s_journal_inum:
                with suppress(FsError):  # statfs need not fail because the journal's inode is damaged
                    log_blocks = inodes.read(self.view, sb.s_journal_inum).size >> self.block_bits
            self._overhead = overhead.blocks(self.view, log_blocks)
        return self._overhead

    def alignment(self, lblk: int, want: int) -> int:
        """Return the alignment in blocks for a new run at logical block ``lblk``: 2 MiB at the start of large files."""
        chunk = self._chunk
        return chunk if 4 * want >= chunk and lblk % chunk == 0 else 1

    def grown(self, lblk: int, want: int) -> tuple[int, int]:
        """Return how many blocks to allocate at the end of a file, and with which alignment.

        A file that has grown to `LARGE_CHUNKS`, in whatever pieces, is likely to grow further. So the next page of
        2 MiB begins in a chunk of its own, and no run reaches past its beginning. Smaller files would leave many chunks
        that they fill in part.

        Args:
            lblk: the file's first new block.
            want: blocks that are wanted at once.
        """
        chunk = self._chunk
        if lblk < LARGE_CHUNKS * chunk - chunk:
            return want, self.alignment(lblk, want)
        rest = lblk % chunk
        if rest:
            return min(want, chunk - rest), 1
        return want, chunk if lblk >= LARGE_CHUNKS * chunk else self.alignment(lblk, want)

    def max_size(self, ino: int) -> int:
        """Return the largest size in bytes that the inode's map can express."""
        flags = inodes.read(self.view, ino).flags
        geometry = self.geometry
        return geometry.max_extent_file_size if flags & EXT4_EXTENTS_FL else geometry.max_indirect_file_size

    def exceeds_map(self, ino: int, size: int) -> bool:
        """Return whether the inode's map cannot express a file of ``size`` bytes (EFBIG)."""
        return size > self._every_map and size > self.max_size(ino)

    def refresh(self, ino: int) -> None:
        """Reload the node, if there is one, after the inode's attributes have changed."""
        node = self.nodes.open.get(ino)
        if node is not None:
            node.reloaded(inodes.read(self.view, ino))

    def renumbered(self, ino: int, new: int, generation: int) -> None:
        """A handle has given an inode another number and generation; what DRAM holds by number follows."""
        self.nodes.renumbered(ino, new)
        self.lives.renumbered(ino, new, generation)
        self.notifier.renumbered(ino, new)

    def write_times(self) -> None:
        """Write waiting times into their inodes before the commit does it, because too many wait."""
        with self.handle(MAX_LAZY) as tx:
            self.nodes.write_times(tx)

    def settle(self) -> None:
        """Take over the appends that a client has made itself, and let it make no more; each operation begins so."""
        if self._journal is not None:
            self._journal.settle()

    def begin_steps(self) -> None:
        """Begin an operation in steps, which may hold inode numbers until its end."""
        self.settle()
        self.under_way += 1

    def resume_steps(self, due: bool) -> None:
        """Go on with an operation in steps after others have run; ``due``: its `sync_due` before."""
        self.sync_due = due or self.options.sync
        self.settle()

    def commit(self) -> None:
        """Make everything that returned durable."""
        if self._journal is not None:
            self.still_durable()
        if self._journal is not None and not self.read_only:
            self._journal.commit()
            self._last_commit = time.monotonic()

    def bound_commit(self) -> None:
        """Commit between two steps of a long operation if the running transaction has become large."""
        if self._journal is not None and not self.read_only and self._journal.pending >= MOST_PENDING:
            self.commit()

    def note_sync(self, inode: Inode) -> None:
        """Make the running operation durable when it returns if the changed inode's flag says so (chattr +S, +D)."""
        if inode.flags & (EXT4_SYNC_FL | EXT4_DIRSYNC_FL):
            self.sync_due = True

    def finish(self) -> None:
        """End an operation: make it durable if the mount or one of its inodes asks for that."""
        if self.sync_due:
            self.commit()
            self.sync_due = self.options.sync

    def still_durable(self) -> None:
        """Refuse to promise durability (EIO) after an abort of the journal: what was not committed is lost."""
        if self._journal is not None and self._journal.aborted:
            raise FsError(errno.EIO, "the journal was aborted")

    def tick(self) -> None:
        """Commit if the commit interval has passed; the program that runs the volume calls this periodically."""
        if self.heat is not None:
            self.heat.tick()
        if self._journal is None or self.read_only:
            return
        waiting = self._journal.dirty or self.nodes.lazy
        if waiting and time.monotonic() - self._last_commit >= self.options.commit_interval:
            self.commit()

    def is_busy(self, ino: int) -> bool:
        """Return whether the inode must outlive its last name."""
        lives = self.lives
        return ino in lives.pins or ino in lives.quarantine or self.nodes.is_open(ino)

    def check(self) -> None:
        """Compare all that DRAM holds of inodes with the pool; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        if self._journal is not None and self._journal.aborted:
            return
        self.lives.check(self.view, readable=not self.read_only)
        self.nodes.check(self.view)
        self.staging.check()
        assert all(self.nodes.is_open(ino) for ino in self.staging.by_ino)

    @property
    def interrupted(self) -> bool:
        """Whether an unexpected exception has interrupted a change."""
        return self._journal is not None and self._journal.interrupted

    def lost_memory(self) -> MissingMemory:
        """The error of an operation that met missing memory. What the caches took from there is dropped."""
        error = self.pool.faults.settle()
        self.forget_content()
        return error

    def finish_copy(self) -> None:
        """End a copy of files' data out of the pool: EIO if memory is missing. Holes of the pool's file are zeros."""
        if self.faults[0]:
            error = self.lost_memory()
            error.of_data = True
            if error.errno != errno.ENOSPC:
                raise error

    def forget_content(self) -> None:
        """Drop all that the caches hold of the pool: some of it may be zeros that the pool does not hold.

        If memory has become bad or good, clients must ask anew what they may touch.
        """
        self.view.caches.drop()
        self.view.forget_checks()
        self.nodes.drop_maps()
        bad = self.pool.bad.bytes
        if bad != self._bad_bytes:
            self._bad_bytes = bad
            self.notifier.bump_all_epochs()

    def abort(self, error: BaseException) -> None:
        """Stop the journal after an unexpected error: what is not committed never will be."""
        if self._journal is not None and not self.read_only:
            self._journal.abort(error)
        self.stop_changes()

    def disown(self, owner: str) -> None:
        """Stop storing in a pool that another program changes now, after a last word to clients.

        Args:
            owner: the other program, for the log.
        """
        log.critical(
            "%s has another user, through %s: nothing is stored any more; unmount both and run: daxfs check -f %s",
            self.pool.path,
            owner,
            self.pool.path,
        )
        if self._journal is not None:
            self.nodes.give_up_times()
            self._journal.abort(record=False)
        self.notifier.end_all_epochs()
        self.stop_changes()

    def stop_changes(self) -> None:
        """Become read-only, until the volume is unmounted; clients that may store must ask again."""
        self._allow_changes(False)
        self.notifier.bump_all_epochs()

    def _allow_changes(self, allowed: bool) -> None:
        self.read_only = not allowed
        self.nodes.writable = allowed

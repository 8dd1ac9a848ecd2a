"""Layer 4: the journal's interface for the layers above: handles, commit, close.

`Journal` owns the running transaction and decides when it ends. A `CommitWriter` writes each commit: the jbd2 log
(`daxfs.journal.log.Log`), or for pools without a journal a writer that has home copies only (`daxfs.journal.nolog`).
Recovery comes first: a `Journal` is opened on a log that `daxfs.journal.recovery.replay` has emptied. The module is
single-threaded, and nothing in it waits. Callers: the fs layer, and tests of the structures.

The states of a journal::

    open --handle()--> changing --end of with--> open (dirty) --commit()--> open (clean) --close()--> closed
     |                    `--exception: undone--> open
     `--abort(), or an error inside commit()--> aborted: no more handles (EROFS), nothing is written

docs/CRASH.md numbers the invariants and says what a power cut leaves at each step.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.journal.area import LogArea
from daxfs.journal.armed import Armed, CommitWord
from daxfs.journal.handle import REFUSALS, Handle
from daxfs.journal.log import Log
from daxfs.journal.logged import LoggedData
from daxfs.journal.nolog import NoLog
from daxfs.journal.statistics import Statistics
from daxfs.journal.tail import CACHE_LINE
from daxfs.journal.transaction import Transaction
from daxfs.journal.view import SUPERBLOCK_KEY, Verified, View
from daxfs.runs import ByteRange

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.caches import Caches
    from daxfs.pmem.pool import Pool

log = logging.getLogger("daxfs.journal")

USUAL_BLOCKS = 1024  # credits included; a commit of so many takes 15 to 30 ms
SIZE_CLASSES = 33  # powers of two up to the largest log, whose block numbers have 32 bits


class CommitWriter(Protocol):
    """What makes transactions durable.

    Attributes:
        limit: the most blocks that one transaction may have.
        revokes_per_block: block numbers in one revoke block.
        tail_moves: how often the log was full, so that its tail moved past all transactions but the last.
        before_home: called with a block that was passed to `store_later`, right before its store at home.
    """

    limit: int
    revokes_per_block: int
    tail_moves: int
    before_home: Callable[[memoryview], None]

    def prepare(self, blocks: int) -> None:
        """Make the buffers that a transaction of up to so many blocks needs, before it can't be undone any longer."""

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:
        """Make the transaction durable, together with all stores flushed before; return the log blocks it took.

        Afterwards the blocks may be copied home.
        """

    def after_checkpoint(self) -> None:
        """Accept that the home copies of the last commit were stored."""

    def store_later(self, number: int, content: memoryview) -> bool:
        """Accept a block of the last commit whose home copy may wait.

        Returns:
            True: the writer will store the block at home before the log needs its space. From now on only
            ``before_home`` may change ``content``. False: the caller stores the block now.
        """

    def store_waiting(self) -> None:
        """Store at home what waits, without a fence."""

    def empty(self) -> None:
        """Make everything durable at home, and leave the log empty."""

    def follow_size(self) -> None:
        """Use the pool's memory as it is now: the pool has another size."""

    def close(self) -> None:
        """Empty the log for good."""

    def record_error(self, number: int) -> None:
        """Store an errno (negative) in the journal for the next mount; 0 clears it."""


class Journal:
    """The running transaction and the log of one pool.

    Attributes:
        view: the newest state of the metadata.
        logged: the blocks of file data that the running transaction or the log holds.
        abort_hooks: called after an abort, which drops what handles have changed since the last commit.
        lacked: the missing memory that the hooks of a commit met last and did without; None: all was there.
        home_hooks: called after a commit, when its blocks are at home.
    """

    def __init__(
        self,
        pool: Pool,
        geometry: Geometry,
        writer: CommitWriter,
        caches: Caches | None = None,
        *,
        check_credits: bool = False,
    ) -> None:
        """Make a journal on a commit writer; callers use `open`."""
        self.pool = pool
        self.logged = LoggedData()
        self.abort_hooks: list[Callable[[], None]] = []
        self.lacked: MissingMemory | None = None
        self.home_hooks: list[Callable[[], None]] = []
        self._commit_hooks: list[tuple[Callable[[], object], Callable[[Handle], None]]] = []
        self._writer = writer
        self._transaction = Transaction()
        verified = Verified()
        self.view = View(pool, geometry, self._transaction.overlay, verified, caches)
        self._handle = Handle(
            pool,
            geometry,
            self._transaction,
            verified,
            self.view.caches,
            self.logged,
            revokes_per_block=writer.revokes_per_block,
            strict=check_credits,
        )
        self._limit = writer.limit
        self._before_handle: list[Callable[[], None]] = []
        self._armed: Armed | None = None
        self._room = self._usual  # -1 once there are no more handles, and while a call waits for the next one
        self._superblock_home = SUPERBLOCK_OFFSET // geometry.block_size
        self._closed = False
        self._aborted = False
        self._committing = False
        self._storing_home = False  # the log holds a transaction that is not at home
        self._blocks_home = self._blocks_logged = self._blocks_revoked = 0
        self._sizes: dict[int, int] = {}  # blocks of metadata -> the number of commits of that size

    @classmethod
    def open(
        cls,
        pool: Pool,
        geometry: Geometry,
        area: LogArea | None,
        caches: Caches | None = None,
        *,
        check_credits: bool = False,
    ) -> Journal:
        """Open the journal of a pool whose log is empty.

        Args:
            pool: writable.
            geometry: of the file system.
            area: the blocks of the journal's inode; None for a pool without a journal.
            caches: the caches of the volume's earlier view, if the volume is remounted.
            check_credits: raise AssertionError if a handle changes more blocks than it has credits (for tests).

        Raises:
            Corrupt: the journal's superblock is damaged, or the log still holds transactions.
            Unsupported: the journal uses features that can't be written.
        """
        writer: CommitWriter = NoLog(pool) if area is None else Log(pool, geometry, area)
        return cls(pool, geometry, writer, caches, check_credits=check_credits)

    def handle(self, credits: int, *, privileged: bool = True) -> Handle:
        """Begin a handle: the right to change up to ``credits`` blocks, as a context manager.

        If the running transaction has no room for that many blocks, it is committed first. So is one that would have
        more than `USUAL_BLOCKS`: a commit takes the longer, the more blocks it has, and others wait for it.

        Args:
            credits: the most blocks that the handle will edit or create.
            privileged: whether the operation may use reserved blocks.

        Raises:
            FsError: EROFS after an abort; ENOSPC if no transaction of this journal can hold that many blocks.
            RuntimeError: another handle is in use.
        """
        handle = self._handle
        tx = self._transaction
        if handle.active or len(tx.copies) + tx.reserved_credits + credits > self._room:
            self._make_room(credits)
        return handle.begin(credits, privileged)

    def add_commit_hook(self, hook: Callable[[Handle], None], due: Callable[[], object]) -> None:
        """Register a commit hook: a commit calls ``hook`` with a last handle, in the order of registration.

        Args:
            hook: makes the changes that the transaction still lacks. Handles reserve the credits for them
                (`Handle.reserve`).
            due: returns whether the hook has anything to do. A commit asks each hook in order, and calls the first one
                that is due and all hooks registered after it. So ``due`` need not consider what earlier hooks will
                change. The question saves the time of a handle that changes nothing.
        """
        self._commit_hooks.append((due, hook))

    def before_superblock_home(self, hook: Callable[[memoryview], None]) -> None:
        """Register ``hook`` to be called with the block of a committed superblock, right before its store at home.

        Args:
            hook: may change the content in place, and then seals it. The log does not contain these changes.
        """
        self._writer.before_home = hook

    def call_before_next_handle(self, hook: Callable[[], None]) -> None:
        """Have ``hook`` called once, before the next handle begins: it may use handles and commit.

        It runs between two handles, where nothing is half done. While no hook waits, a handle pays nothing for this.
        """
        self._before_handle.append(hook)
        if not (self._aborted or self._closed):
            self._room = -1

    def limit_transactions(self, blocks: int | None) -> None:
        """Let no transaction have more than ``blocks`` blocks, from the next handle on; None: as many as the log can
        take. A running transaction that is larger is committed then.
        """
        limit = self._writer.limit
        self._limit = limit if blocks is None else min(blocks, limit)
        if self._room != -1:
            self._room = self._usual

    @property
    def _usual(self) -> int:
        """Blocks that a transaction has at most, unless one handle needs more."""
        return min(self._limit, USUAL_BLOCKS)

    def checkpoint(self) -> None:
        """Commit, bring everything home and leave the log empty; handles may follow.

        Raises:
            FsError: as `commit`.
        """
        self.commit()
        self._committing = True
        try:
            self._writer.empty()
        except BaseException as error:
            self.abort(error)
            raise
        finally:
            self._committing = False

    def make_empty_log(self, area: LogArea) -> Log:
        """Make an empty log at other blocks, as many as the log has, durably; the log is empty (`checkpoint`).

        Returns:
            The new log, for `use_log`.
        """
        assert isinstance(self._writer, Log)
        self._writer.make_empty(area)
        return Log(self.pool, self.view.geometry, area)

    def use_log(self, new: Log) -> None:
        """Use a log that `make_empty_log` has made from now on; nothing has changed since."""
        old = self._writer
        assert isinstance(old, Log)
        new.before_home, new.tail_moves = old.before_home, old.tail_moves
        self._writer = new
        old.end()

    def commit(self) -> None:
        """Make the changes of all finished handles durable, and all earlier stores to the pool.

        Raises:
            FsError: EROFS after an abort. An error of a hook, a seal or the pool aborts the journal and is raised.
            MemoryError: there is no memory for a buffer; the running transaction goes on, unless this is an abort too.
            MissingMemory: ENOSPC: the pool's file has no room for what the hooks change; the transaction goes on too.
        """
        self._assert_usable()
        self.settle()
        self.pool.faults.check()  # A fault before this commit, which has changed nothing, must not end in an abort.
        tx = self._transaction
        self._committing = True
        complete = False
        try:
            self._writer.prepare(len(tx.copies) + tx.reserved_credits + 1)
            self._complete()
            complete = True
            self._commit()
        except BaseException as error:
            crowded = isinstance(error, MissingMemory) and error.errno == errno.ENOSPC
            if (isinstance(error, MemoryError) or crowded) and not complete:
                raise  # what the hooks have changed is undone
            self._handle.interrupted = self._handle.interrupted or not isinstance(error, REFUSALS)
            self.abort(error)
            raise
        finally:
            self._committing = False

    def arm(self, number: int, images: list[bytes], settled: Callable[[int], None]) -> list[CommitWord]:
        """Lay transactions ready in the log that a client commits by itself (`daxfs.journal.armed`).

        Args:
            number: the one block that they change.
            images: what each makes of it, one after the other, sealed.
            settled: called with the number of those that were fired, before anything else changes the pool.

        Returns:
            Their commit words: of the first of them, as many as the log has room for. None if anything waits for a
            commit, if the log has file data, or if something looks on at stores.
        """
        writer, pool = self._writer, self.pool
        if not isinstance(writer, Log) or self.dirty or self.logged or pool.hook is not None or pool.bad:
            return []
        words = writer.arm(number, images)
        if words:
            self._armed = Armed(number, images, settled)
            self.call_before_next_handle(self.settle)
        return words

    def settle(self) -> None:
        """Take over what clients have fired; from now on they can't fire what is left.

        Raises:
            FsError: as `commit`; the journal is aborted.
        """
        armed, writer = self._armed, self._writer
        if armed is None:
            return
        self._armed = None
        assert isinstance(writer, Log)
        try:
            fired = writer.settle()
            if fired:
                self._take_home(armed.number, armed.images[fired - 1])
                self._sizes[1] = self._sizes.get(1, 0) + fired
                self._blocks_logged += writer.blocks_needed(1) * fired
        except BaseException as error:
            self.abort(error)
            raise
        armed.settled(fired)

    def _take_home(self, number: int, content: bytes) -> None:
        """Store a committed block at home, and let its kept copy follow."""
        kept = self._transaction.recent.get(number)
        if kept is not None:
            kept[0][:] = content
        self.pool.block_store(number * self.view.block_size, content)
        self._blocks_home += 1

    def follow_size(self) -> None:
        """Read and change all of a file system or a pool whose size has changed."""
        self.view.follow_size()
        self._handle.follow_size()
        self._writer.follow_size()

    def fence(self) -> None:
        """Make all stores to the pool durable (file data written in place); the running transaction continues."""
        self.pool.fence()

    def holds(self, numbers: Iterable[int]) -> bool:
        """Return whether the running transaction has a copy of one of the blocks."""
        return not self._transaction.copies.keys().isdisjoint(numbers)

    def close(self) -> None:
        """Commit and leave an empty log; after an abort, leave the pool as it is. A second call does nothing."""
        if self._closed:
            return
        if not self._aborted:
            self.commit()
            self._committing = True
            self._writer.close()
        self._closed = True
        self._room = -1
        self.view.release()
        self._handle.release()

    def abort(self, error: BaseException | None = None, *, record: bool = True) -> None:
        """Refuse further changes, drop those that were not committed, and record the errno in the journal.

        Afterwards the pool holds the state of the last commit, and its log stays as it is for recovery. If the commit
        was being copied home, only the log holds all of it: views then go on reading its copies.

        Args:
            error: the cause; its errno is recorded, EIO if it has none.
            record: False: store nothing.
        """
        if self._aborted or self._closed:
            return
        with suppress(OSError, MemoryError):
            self.settle()
        if self.aborted:
            return  # that has failed, too
        self._aborted = True
        self._room = -1
        self._handle.detach()
        if error is not None:
            log.error("%s: the journal is aborted: %s", self.pool.path, error)
        if self._storing_home:
            self._transaction.freeze()
        else:
            self._transaction.clear()
        self.view.caches.drop()
        for hook in self.abort_hooks:
            hook()
        if record and not self._storing_home:  # while storing home, recovery needs the log: don't touch its superblock
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            with suppress(OSError):  # the pool itself may be what failed
                self._writer.record_error(-number)

    def clear_error(self) -> None:
        """Clear the errno that an earlier abort recorded, after the caller has handled it (`RecoveryReport.errno`)."""
        self._writer.record_error(0)

    @property
    def aborted(self) -> bool:
        """Whether the journal was aborted: there are no more handles until the pool is mounted again."""
        return self._aborted

    @property
    def interrupted(self) -> bool:
        """Whether a handle or a commit has ever raised an exception other than a refusal (`FsError`)."""
        return self._handle.interrupted

    @property
    def idle(self) -> bool:
        """Whether a handle may begin: none is in use, no commit runs, and the journal is open."""
        return not (self._handle.active or self._committing or self._aborted or self._closed)

    @property
    def dirty(self) -> bool:
        """Whether the running transaction has anything to write; commit hooks may add to it."""
        tx = self._transaction
        return bool(tx.copies or tx.frees or tx.revokes)

    @property
    def pending(self) -> int:
        """The number of changed blocks and freed runs in the running transaction, by which its commit takes longer."""
        return len(self._transaction.copies) + len(self._transaction.frees)

    @property
    def capacity(self) -> int:
        """Blocks that one transaction can hold, and so the most credits that a handle may request; -1: none."""
        return -1 if self._aborted or self._closed else self._limit

    def has_frees(self) -> bool:
        """Whether blocks become free with the next commit."""
        return bool(self._transaction.frees)

    @property
    def pending_free_blocks(self) -> int:
        """Blocks that become free with the next commit."""
        return sum(count for _, count in self._transaction.frees)

    def pending_frees_below(self, end: int) -> int:
        """Return how many of them lie below block ``end``; no run reaches past it."""
        return sum([count for start, count in self._transaction.frees if start < end])

    @property
    def stats(self) -> Statistics:
        """The counters since the journal was opened."""
        writer = self._writer if isinstance(self._writer, Log) else None
        sizes = [0] * SIZE_CLASSES
        for blocks, commits in self._sizes.items():
            sizes[blocks.bit_length()] += commits
        return Statistics(
            commits=sum(sizes),
            blocks=sum(blocks * commits for blocks, commits in self._sizes.items()),
            blocks_home=self._blocks_home,
            blocks_logged=self._blocks_logged,
            blocks_revoked=self._blocks_revoked,
            tail_moves=self._writer.tail_moves,
            rollbacks=self._handle.rollbacks,
            sizes=tuple(sizes),
            largest=max(self._sizes, default=0),
            running_blocks=len(self._transaction.copies),
            pending_free_blocks=self.pending_free_blocks,
            log_blocks=writer.blocks if writer else 0,
            log_blocks_used=writer.blocks_used if writer else 0,
        )

    def _assert_usable(self) -> None:
        if self._handle.active:
            raise RuntimeError("a handle is in use: end its with block first; handles don't nest")
        if self._aborted or self._closed:
            raise FsError(errno.EROFS, f"{self.pool.path}: the journal was {'closed' if self._closed else 'aborted'}")

    def _make_room(self, credits: int) -> None:
        self._assert_usable()
        if self._before_handle:
            hooks, self._before_handle = self._before_handle, []
            self._room = self._usual
            for hook in hooks:
                hook()
        tx = self._transaction
        used = len(tx.copies) + tx.reserved_credits
        if used + credits <= self._room or (not used and credits <= self._limit):
            return
        if credits > self._limit:
            raise FsError(
                errno.ENOSPC,
                f"{self.pool.path}: one operation needs {credits} blocks, a transaction of this journal holds "
                f"{self._limit} (make a larger journal: mke2fs -J size=)",
            )
        self.commit()

    def _complete(self) -> None:
        """Have the hooks make the changes that the transaction still lacks, and the seals its checksums.

        Memory that they find missing is known to be bad from then on, and nothing is stored yet: they run once more,
        without it. If they can't do without it, the volume can't either.
        """
        try:
            self._run_due_hooks()
        except MissingMemory as error:
            self.lacked = error
            self.view.caches.drop()
            self.view.forget_checks()
            self._run_due_hooks()

    def _commit(self) -> None:
        tx = self._transaction
        copies = tx.copies
        if not copies and not tx.revokes:
            tx.frees.clear()
            self.pool.fence()
            return
        writer, size = self._writer, self.view.block_size
        store = self.pool.block_store
        superblock = copies.pop(SUPERBLOCK_KEY, None)
        if superblock is not None:
            copies[self._superblock_home] = superblock
        metadata_blocks, moves = len(copies), writer.tail_moves
        hook = self.pool.hook
        if hook is not None:
            # Before the commit record: recovery, of whichever program, may then store the blocks at home.
            hook.before_all(ByteRange(number * size, (number + 1) * size) for number in copies)
        self._blocks_logged += writer.commit(copies, tx.revokes)
        self._storing_home = True
        if self.logged and writer.tail_moves != moves:
            self.logged.keep(copies)
        if superblock is not None and writer.store_later(self._superblock_home, superblock):
            tx.waiting = superblock.toreadonly()
            del copies[self._superblock_home]
            if tx.superblock_first:
                self._store_superblock(superblock)
        for number, content in copies.items():
            store(number * size, content)
        writer.after_checkpoint()
        self._storing_home = False
        self._sizes[metadata_blocks] = self._sizes.get(metadata_blocks, 0) + 1
        self._blocks_home += len(copies)
        self._blocks_revoked += len(tx.revokes)
        copies.pop(self._superblock_home, None)
        tx.renew(keep=not self.logged)
        for at_home in self.home_hooks:
            at_home()

    def _store_superblock(self, content: memoryview) -> None:
        """Make the superblock durable at home. One without a checksum goes there in two parts, its first line first.

        A reader can't tell that it is torn then. The first line has all counts: with these, and the rest old, the
        reader finds nothing wrong before its replay.
        """
        if not self.view.geometry.metadata_csum:
            begin = SUPERBLOCK_OFFSET % self.view.block_size
            place = self._superblock_home * self.view.block_size
            self.pool.write(place + begin, content[begin : begin + CACHE_LINE])
            self.pool.fence()
        self._writer.store_waiting()
        self.pool.fence()

    def _run_due_hooks(self) -> None:
        for at, (due, _) in enumerate(self._commit_hooks):
            if due():
                self._run_hooks(at)
                return
        self._transaction.run_seals()

    def _run_hooks(self, first: int) -> None:
        with self._handle.begin(self._transaction.reserved_credits, True) as last:
            last.unlimited()
            for _, hook in self._commit_hooks[first:]:
                hook(last)
            self._transaction.run_seals()  # in the handle, which undoes what the hooks did if a seal fails

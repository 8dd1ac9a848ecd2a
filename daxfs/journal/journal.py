"""Layer 4: the journal as the layers above know it: handles, commit, close.

`Journal` owns the running transaction and decides when it ends. A `CommitWriter` writes each commit: the jbd2 log
(`daxfs.journal.log.Log`), or home copies alone for pools without a journal (`NoLog`). Recovery comes first: a
`Journal` is opened on a log that `daxfs.journal.recovery.replay` has emptied. Single-threaded; nothing here waits.
Callers: the fs layer, which mounts, and tests of the structures.

The states of a journal::

    open --handle()--> changing --end of with--> open (dirty) --commit()--> open (clean) --close()--> closed
     |                    `--exception: undone--> open
     `--abort(), or an error inside commit()--> aborted: no more handles (EROFS), nothing is written any more

docs/CRASH.md numbers the invariants and says what a power cut leaves at each step.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.journal.area import LogArea
from daxfs.journal.log import Log, unchanged
from daxfs.journal.transaction import Handle, Transaction
from daxfs.journal.view import SUPERBLOCK_KEY, View

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.caches import Caches
    from daxfs.pmem.pool import Pool

UNLOGGED_LIMIT = 8192  # blocks in one transaction of a pool without a journal: bounds the DRAM
SIZE_CLASSES = 33  # powers of two up to what a log can have: its block numbers have 32 bits


class CommitWriter(Protocol):
    """Where transactions become durable.

    Attributes:
        limit: blocks that one transaction may have.
        revokes_per_block: block numbers in one revoke block.
        before_home: called with a block that `store_later` was offered, right before its store at home.
    """

    limit: int
    revokes_per_block: int
    before_home: Callable[[memoryview], None]

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:
        """Make the transaction durable, together with all stores flushed before; returns the log blocks it took.

        On return the blocks may be copied home.
        """

    def after_checkpoint(self) -> None:
        """The home copies of the last commit were stored."""

    def store_later(self, number: int, content: memoryview) -> bool:
        """Offer a block of the last commit whose copy home may wait; True: it is stored when the log needs it to be.

        From then on ``before_home`` alone may change ``content``.
        """

    def close(self) -> None:
        """Everything is durable at home; the log is empty."""

    def record_error(self, number: int) -> None:
        """Keep the errno (negative) for whoever mounts next; 0 clears it."""


class NoLog:
    """The commit writer of a pool without a journal: a commit is the home copies and a fence, not atomic."""

    def __init__(self, pool: Pool) -> None:
        self.limit = UNLOGGED_LIMIT
        self.revokes_per_block = UNLOGGED_LIMIT
        self.before_home: Callable[[memoryview], None] = unchanged
        self._pool = pool

    def commit(self, copies: Mapping[int, memoryview], revokes: Collection[int]) -> int:  # noqa: ARG002
        """File data first: metadata must not name blocks that are not filled yet."""
        self._pool.fence()
        return 0

    def after_checkpoint(self) -> None:
        """The home copies are all there is."""
        self._pool.fence()

    def store_later(self, number: int, content: memoryview) -> bool:  # noqa: ARG002
        """Nothing may wait: the caller stores the block at once."""
        self.before_home(content)
        return False

    def close(self) -> None:
        """Nothing to empty."""

    def record_error(self, number: int) -> None:
        """There is no place for it."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a journal did since it was opened.

    Attributes:
        commits: transactions made durable.
        blocks: of metadata in them.
        blocks_home: metadata blocks copied home.
        blocks_logged: blocks stored in the log, descriptors, revokes and commit records included.
        blocks_revoked: revoke records written.
        tail_moves: times the log was full.
        rollbacks: handles that were undone.
        sizes: commits by their blocks of metadata: ``sizes[n]`` had up to ``2**n - 1``, and more than those before.
        largest: blocks of metadata in the largest.
        running_blocks: changed by the transaction that runs.
        pending_free_blocks: that come back with the next commit.
        log_blocks: room of the log, 0 without one.
        log_blocks_used: how many of them hold transactions.
    """

    commits: int
    blocks: int
    blocks_home: int
    blocks_logged: int
    blocks_revoked: int
    tail_moves: int
    rollbacks: int
    sizes: tuple[int, ...]
    largest: int
    running_blocks: int
    pending_free_blocks: int
    log_blocks: int
    log_blocks_used: int


class Journal:
    """The running transaction and the log of one pool.

    Attributes:
        view: the newest state.
        abort_hooks: called after an abort, which gives up what handles have done since the last commit.
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
        """Use `open`."""
        self.pool = pool
        self.abort_hooks: list[Callable[[], None]] = []
        self._commit_hooks: list[tuple[Callable[[], object], Callable[[Handle], None]]] = []
        self._writer = writer
        self._transaction = Transaction()
        checked: set[int] = set()
        self.view = View(pool, geometry, self._transaction.overlay, checked, caches)
        self._handle = Handle(
            pool,
            geometry,
            self._transaction,
            checked,
            self.view.caches,
            revokes_per_block=writer.revokes_per_block,
            strict=check_credits,
        )
        self._room = writer.limit  # -1 once there are no more handles
        self._superblock_home = SUPERBLOCK_OFFSET // geometry.block_size
        self._closed = False
        self._aborted = False
        self._storing_home = False  # the log holds a transaction that is not at home
        self._blocks_home = self._blocks_logged = self._blocks_revoked = 0
        self._sizes: dict[int, int] = {}  # blocks of metadata -> how many commits had so many

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
        """The journal of a pool that needs no replay (any more).

        Args:
            pool: writable.
            geometry: the file system's shape.
            area: the blocks of the journal's inode; None for a pool without a journal.
            caches: those of the volume's view before, when it is remounted.
            check_credits: a handle that changes more blocks than it asked for is an AssertionError (for tests).

        Raises:
            Corrupt: the journal's superblock is damaged, or the log still holds transactions.
            Unsupported: the journal uses features that can't be written.
        """
        writer: CommitWriter = NoLog(pool) if area is None else Log(pool, geometry, area)
        return cls(pool, geometry, writer, caches, check_credits=check_credits)

    def handle(self, credits: int, *, privileged: bool = True) -> Handle:
        """The right to change up to ``credits`` blocks, as a context manager.

        If the running transaction has no room for them, it is committed first.

        Args:
            credits: blocks that will be edited or created, at most.
            privileged: the operation may use reserved blocks.

        Raises:
            FsError: EROFS after an abort; ENOSPC if no transaction of this journal can hold so many blocks.
            RuntimeError: another handle is in use.
        """
        handle = self._handle
        tx = self._transaction
        if handle.active or len(tx.copies) + tx.reserved_credits + credits > self._room:
            self._make_room(credits)
        return handle.begin(credits, privileged)

    def add_commit_hook(self, hook: Callable[[Handle], None], due: Callable[[], object]) -> None:
        """Have ``hook`` called with a last handle at the start of every commit, after those added before.

        Args:
            hook: changes what the transaction still lacks; credits for that are reserved by handles (`Handle.reserve`).
            due: whether it has anything to do, asked at each commit: a handle that changes nothing is not worth its
                time. It need not foresee what hooks before it leave to this one: all behind one that is due are called.
        """
        self._commit_hooks.append((due, hook))

    def before_superblock_home(self, hook: Callable[[memoryview], None]) -> None:
        """Have ``hook`` called with the block of a committed superblock right before it is stored at home.

        Args:
            hook: may change the content in place, and makes its checksum then. What it changes is not in the log.
        """
        self._writer.before_home = hook

    def commit(self) -> None:
        """Make every finished handle durable, and all stores to the pool before it.

        Raises:
            FsError: EROFS after an abort. Any error of a hook, a seal or the pool aborts the journal and comes out.
        """
        self._assert_usable()
        try:
            self._commit()
        except BaseException as error:
            self._handle.interrupted = self._handle.interrupted or not isinstance(error, FsError)
            self.abort(error)
            raise

    def fence(self) -> None:
        """Make all stores to the pool durable (file data written in place); the transaction runs on."""
        self.pool.fence()

    def close(self) -> None:
        """Commit and leave an empty log. After an abort: leave the pool as it is. May be called twice."""
        if self._closed:
            return
        if not self._aborted:
            self.commit()
            self._writer.close()
        self._closed = True
        self._room = -1
        self.view.release()
        self._handle.release()

    def abort(self, error: BaseException | None = None, *, record: bool = True) -> None:
        """Allow no more changes, drop those that were not committed, and record the errno in the journal.

        The pool then holds the state of the last commit; its log is left for recovery. Without ``record`` nothing is
        stored.
        """
        if self._aborted or self._closed:
            return
        self._aborted = True
        self._room = -1
        self._handle.detach()
        self._transaction.clear()
        self.view.caches.drop()
        for hook in self.abort_hooks:
            hook()
        if record and not self._storing_home:  # else the log is needed whole: nothing in its superblock is risked
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            with suppress(OSError):  # the pool itself may be what failed
                self._writer.record_error(-number)

    def clear_error(self) -> None:
        """The errno that an earlier abort left was taken note of (`RecoveryReport.errno`)."""
        self._writer.record_error(0)

    @property
    def aborted(self) -> bool:
        """No more handles until the pool is mounted again."""
        return self._aborted

    @property
    def interrupted(self) -> bool:
        """Whether an exception that is no refusal (`FsError`) came out of a handle or a commit, ever."""
        return self._handle.interrupted

    @property
    def dirty(self) -> bool:
        """Whether a commit has anything to write (hooks may have more)."""
        tx = self._transaction
        return bool(tx.copies or tx.frees or tx.revokes)

    @property
    def capacity(self) -> int:
        """Blocks that one transaction can hold: the most credits that a handle may ask for."""
        return self._room

    def has_frees(self) -> bool:
        """Whether blocks come back with the next commit."""
        return bool(self._transaction.frees)

    @property
    def pending_free_blocks(self) -> int:
        """Blocks that come back with the next commit."""
        return sum(count for _, count in self._transaction.frees)

    @property
    def stats(self) -> Statistics:
        """What was done so far."""
        log = self._writer if isinstance(self._writer, Log) else None
        sizes = [0] * SIZE_CLASSES
        for blocks, commits in self._sizes.items():
            sizes[blocks.bit_length()] += commits
        return Statistics(
            commits=sum(sizes),
            blocks=sum(blocks * commits for blocks, commits in self._sizes.items()),
            blocks_home=self._blocks_home,
            blocks_logged=self._blocks_logged,
            blocks_revoked=self._blocks_revoked,
            tail_moves=log.tail_moves if log else 0,
            rollbacks=self._handle.rollbacks,
            sizes=tuple(sizes),
            largest=max(self._sizes, default=0),
            running_blocks=len(self._transaction.copies),
            pending_free_blocks=self.pending_free_blocks,
            log_blocks=log.blocks if log else 0,
            log_blocks_used=log.blocks_used if log else 0,
        )

    def _assert_usable(self) -> None:
        if self._handle.active:
            raise RuntimeError("a handle is in use: end its with block first; handles don't nest")
        if self._aborted or self._closed:
            raise FsError(errno.EROFS, f"{self.pool.path}: the journal was {'closed' if self._closed else 'aborted'}")

    def _make_room(self, credits: int) -> None:
        self._assert_usable()
        if credits > self._room:
            raise FsError(
                errno.ENOSPC,
                f"{self.pool.path}: one operation needs {credits} blocks, a transaction of this journal holds "
                f"{self._room} (make a larger journal: mke2fs -J size=)",
            )
        self.commit()

    def _commit(self) -> None:
        tx = self._transaction
        for at, (due, _) in enumerate(self._commit_hooks):
            if due():
                self._run_hooks(at)
                break
        copies = tx.copies
        if not copies and not tx.revokes:
            tx.frees.clear()
            self.pool.fence()
            return
        tx.run_seals()
        writer, write, size = self._writer, self.pool.write, self.view.block_size
        superblock = copies.pop(SUPERBLOCK_KEY, None)
        if superblock is not None:
            copies[self._superblock_home] = superblock
        metadata_blocks = len(copies)
        self._blocks_logged += writer.commit(copies, tx.revokes)
        self._storing_home = True
        if superblock is not None and writer.store_later(self._superblock_home, superblock):
            tx.waiting = superblock.toreadonly()
            del copies[self._superblock_home]
        for number, content in copies.items():
            write(number * size, content)
        writer.after_checkpoint()
        self._storing_home = False
        self._sizes[metadata_blocks] = self._sizes.get(metadata_blocks, 0) + 1
        self._blocks_home += len(copies)
        self._blocks_revoked += len(tx.revokes)
        tx.clear()

    def _run_hooks(self, first: int) -> None:
        with self._handle.begin(self._transaction.reserved_credits, True) as last:
            last.unlimited()
            for _, hook in self._commit_hooks[first:]:
                hook(last)

"""Relocation: the blocks of a file move while programs use it, out of a part of the pool or to places of 2 MiB pages.

A *piece* of at most 2 MiB moves at a time, in one handle: blocks are allocated, get a copy of the content, and take the
place of the old ones in the file's map; the old ones become free with the commit. The copy is durable before that
commit's record (ordered mode), so a power cut leaves the old place or the new one, and the old blocks hold the content
until then. Unwritten blocks move without a copy. Nothing that stat(2) shows changes.

Which piece is next, and where it goes, is decided anew in each step by a plan (`Gathering`, `Leaving`). Between steps
everything may happen to the file; nobody is kept waiting.

Clients of direct access: one that only loads sees that the epoch has ended, and the old blocks wait for it as those of
a cut. A client that may store to the piece is asked to leave it (`daxfs.fs.grants.recall`); the piece moves when nobody
is left. What is mapped stays: a mapping never renews, and would show old content for good. So stay pieces of clients
that do not answer in time, and all that clients of an earlier mount may touch.

What moves is the data of regular files, those with chattr +j, immutable and nameless ones included. What the format
keeps for itself (the journal, reserved descriptor blocks, quotas), the stores of snapshots, whose places their copiers
know, and the inodes of `daxfs.fs.grants`, whose places clients know, are refused.

Source: ``fs/ext4/move_extent.c`` (EXT4_IOC_MOVE_EXT, of e4defrag). It swaps the blocks of two files, page by page under
the locks of both; here the target belongs to no file, so that no crash and no other program finds it in one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, EXT_UNWRITTEN_MAX_LEN
from daxfs.fs import badmemory, datalog, removal
from daxfs.fs.change import Change
from daxfs.fs.grants import waiting
from daxfs.fs.grants.recall import State
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.fs.types import BAD, FRAGMENTED, FULL, MAPPED, Caller, Relocation, Stayed
from daxfs.runs import BlockRun, ByteRange
from daxfs.structures import blocks, inodes, mapping
from daxfs.structures.blocksearch import CHUNK_BYTES
from daxfs.structures.destinations import NOTHING, Search
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import Holder
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.nodes import Node
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume

CREDITS = 64 + CREDITS_QUARANTINE
"""Blocks that moving one run may change: as an atomic write to new blocks."""
ENTRIES_PER_NODE = 80
"""Entries in a node of a map, at least: the node has 1 KiB, and a split leaves it half full."""
RUNS_PER_LOOK = 512
"""Runs of the file that a plan looks at in one step."""
MOST_RUNS = 128
"""Runs that one step moves: some 3 ms of processor time. What has more is put into runs of so many blocks first: that
copies it twice, but whoever waits for an answer waits for one step."""
MOST_NAMED = 8
"""Processes that are named for one part that stayed."""


class Piece:
    """Runs of a file that move together.

    Attributes:
        runs: in order, not empty.
        align: of their new place, in blocks.
        shortens: a part is welcome.
        length: mapped blocks.
    """

    __slots__ = ("align", "length", "runs", "shortens")

    def __init__(self, runs: list[Extent], align: int, shortens: bool) -> None:
        self.runs = runs
        self.align = align
        self.shortens = shortens
        self.length = sum([run.length for run in runs])

    @property
    def first(self) -> int:
        """The first logical block."""
        return self.runs[0].lblk

    @property
    def end(self) -> int:
        """The logical block after the last."""
        return self.runs[-1].lblk + self.runs[-1].length


class Outcome(Enum):
    """What became of a piece."""

    MOVED = "it lies elsewhere"
    STAYED = "it stays, and the caller is told"
    CHANGED = "the file, or the place, is no longer what was found: the plan looks again"


class Plan(Protocol):
    """What is to move."""

    avoid: BlockRun
    """Blocks of the pool that nothing moves to."""

    def next(self, volume: Volume, ino: int, lblk: int, stop: int) -> tuple[Piece | None, int]:
        """Return the first piece from block ``lblk`` of the file on, and where the next begins; None: look there."""


class Gathering:
    """Each 2 MiB of a file that are mapped as a whole go where one page maps them; what is less goes into one run."""

    avoid = NOTHING

    def next(self, volume: Volume, ino: int, lblk: int, stop: int) -> tuple[Piece | None, int]:
        """Return a piece, as `Plan`."""
        chunk = max(CHUNK_BYTES >> volume.block_bits, 1)
        lblk -= lblk % chunk
        inode = inodes.read(volume.view, ino)
        found = mapping.next_mapped(volume.view, inode, lblk)
        if found is None or found.lblk >= stop:
            return None, stop
        lblk = max(found.lblk - found.lblk % chunk, lblk)
        after = lblk + chunk
        runs = mapping.runs(volume.view, inode, lblk, after - 1, chunk)
        whole = sum(run.length for run in runs) == chunk
        if _follow(runs) and not (whole and runs[0].pblk % chunk):
            return None, after
        return Piece(runs, chunk if whole else 1, shortens=False), after


class Leaving:
    """What lies in some blocks of the pool goes elsewhere, in runs as long as there are."""

    def __init__(self, avoid: BlockRun) -> None:
        self.avoid = avoid

    def next(self, volume: Volume, ino: int, lblk: int, stop: int) -> tuple[Piece | None, int]:
        """Return a piece, as `Plan`."""
        chunk = max(CHUNK_BYTES >> volume.block_bits, 1)
        low, high = self.avoid.start, self.avoid.start + self.avoid.length
        inode = inodes.read(volume.view, ino)
        found: list[Extent] = []
        looked = mapping.runs(volume.view, inode, lblk, stop - 1, RUNS_PER_LOOK)
        for run in looked:
            begin, end = max(run.pblk, low), min(run.pblk + run.length, high)
            first = run.lblk + begin - run.pblk
            border = (found[0].lblk if found else first) // chunk * chunk + chunk
            if begin >= end or first >= border or (found and first != found[-1].lblk + found[-1].length):
                if found:
                    break
                continue
            length = min(end - begin, border - first)
            found.append(Extent(first, begin, length, run.unwritten))
            if begin + length < run.pblk + run.length:
                break
        if not found:
            return None, looked[-1].lblk + looked[-1].length if len(looked) == RUNS_PER_LOOK else stop
        piece = Piece(found, 1, shortens=True)
        if piece.length == chunk and found[0].pblk % chunk == 0 and _follow(found):
            piece = Piece(found, chunk, shortens=True)
        return piece, piece.end


def _follow(runs: list[Extent]) -> bool:
    """Return whether runs lie together in the pool."""
    return all(left.pblk + left.length == right.pblk for left, right in pairwise(runs))


def relocate(
    volume: Volume, table: Grants, ino: int, begin: int, end: int, plan: Plan, caller: Caller
) -> Steps[Relocation]:
    """Move what a plan wants of the bytes [begin, end) of a regular file, in steps of a piece.

    Raises:
        FsError: EINVAL: not a regular file, or one whose blocks are not to be moved; EROFS.
    """
    volume.writable()
    inode = inodes.read(volume.view, ino)
    if not inode.is_regular or not inodes.nameable(volume.view, ino) or ino in volume.lives.quarantine:
        raise FsError(errno.EINVAL, f"inode {ino}: its blocks are not a file's data")
    node = volume.nodes.opened(inode)
    try:
        return (yield from _Move(volume, table, node, plan, caller).run(begin, end))
    finally:
        volume.nodes.closed(node)
        removal.begin(volume, ino)


def find(volume: Volume, search: Search, length: int, align: int, *, shortens: bool) -> Steps[BlockRun | None]:
    """Find a place for some blocks, or for a part of them if it `shortens`; None: there is none."""
    wanted, first, more = length, align, True
    while True:
        search.begin(volume.view, length, align)
        while not search.ended:
            found = search.look(volume.view)
            if found is not None:
                return found
            yield
        if shortens and (align > 1 or length > 1):
            length, align = (length, 1) if align > 1 else (length // 2, 1)
        elif more and volume.reclaimers.reclaim():
            length, align, more = wanted, first, False
            yield
        else:
            return None


class _Move:
    """One relocation of one file."""

    def __init__(self, volume: Volume, table: Grants, node: Node, plan: Plan, caller: Caller) -> None:
        self.volume = volume
        self.table = table
        self.node = node
        self.plan = plan
        self.caller = caller
        self.moved = 0
        self.stayed: list[Stayed] = []
        first = mapping.next_mapped(volume.view, inodes.read(volume.view, node.ino), 0)
        self.search = Search(first.pblk if first else 0, plan.avoid)

    def run(self, begin: int, end: int) -> Steps[Relocation]:
        """Move pieces until none is left."""
        volume, bits = self.volume, self.volume.block_bits
        limit = inodes.read(volume.view, self.node.ino).geometry.max_extent_file_size
        lblk, stop = begin >> bits, (min(end, limit) + volume.block_size - 1) >> bits
        while lblk < stop:
            piece, after = self.plan.next(volume, self.node.ino, lblk, stop)
            if piece is not None:
                after = yield from self._move(piece, after)
            lblk = after
            if lblk < stop:
                yield
        return Relocation(self.moved, tuple(self.stayed))

    def _move(self, piece: Piece, after: int) -> Steps[int]:
        """Move a piece, or a part of it, or keep it where it is; return the block of the file at which to go on."""
        volume, whole = self.volume, piece
        if volume.tiers is not None and any(
            volume.tiers.holds((run.pblk + run.length << volume.block_bits) - 1) for run in piece.runs
        ):
            return after
        if volume.pool.bad and any(badmemory.overlaps(volume, run) for run in piece.runs):
            good = self._good(piece) if piece.shortens else 0
            if not good:
                end = piece.first + self._bad(piece) if piece.shortens else piece.end
                self._stay(piece.first, end, BAD)
                return max(end, after) if not piece.shortens else end
            piece = head(piece, good)
        few = self._runs_in_a_handle(piece)
        if few < len(piece.runs):
            runs = piece.runs[:few] if piece.shortens else _first_in_pieces(piece, few)
            if not runs:
                self._stay(whole.first, whole.end, FRAGMENTED)
                return after
            piece = Piece(runs, 1, piece.shortens)
        place = yield from find(volume, self.search, piece.length, piece.align, shortens=piece.shortens)
        if place is None:
            self._stay(whole.first, whole.end, FULL)
            return after
        if place.length < piece.length:
            piece = head(piece, place.length)
        moved = self.moved
        outcome = yield from self._replace_when_left(piece, place, piece if piece.shortens else whole)
        if few < len(whole.runs) and not piece.shortens:
            self.moved = moved  # it moves once more
        if outcome is Outcome.CHANGED:
            return whole.first
        if piece.shortens:
            return piece.end
        # What one step can't move was put into fewer runs first.
        return whole.first if outcome is Outcome.MOVED and few < len(whole.runs) else after

    def _stay(self, first: int, end: int, why: str, holders: Iterable[Holder] = ()) -> None:
        """Note that the blocks [first, end) of the file stay; parts that touch, for one reason, are one."""
        bits = self.volume.block_bits
        pids = tuple(sorted({holder.pid for holder in holders}))[:MOST_NAMED]
        offset, length = first << bits, end - first << bits
        if self.stayed:
            last = self.stayed[-1]
            if last.offset + last.length == offset and (last.why, last.pids) == (why, pids):
                self.stayed[-1] = last._replace(length=last.length + length)
                return
        self.stayed.append(Stayed(offset, length, why, pids))

    def _good(self, piece: Piece) -> int:
        """Return how many blocks at the beginning of a piece are not bad."""
        bits, good = self.volume.block_bits, 0
        for run in piece.runs:
            begin, end = run.pblk << bits, run.pblk + run.length << bits
            found = self.volume.pool.bad.first(begin, end)
            if found is not None:
                return good + (max(found[0] - begin, 0) >> bits)
            good += run.length
        return good

    def _bad(self, piece: Piece) -> int:
        """Return how many blocks at the beginning of a piece are bad, at least one."""
        bits, run = self.volume.block_bits, piece.runs[0]
        found = self.volume.pool.bad.first(run.pblk << bits, run.pblk + run.length << bits)
        assert found is not None
        return min((found[1] - 1 >> bits) + 1 - run.pblk, run.length)

    def _runs_in_a_handle(self, piece: Piece) -> int:
        """Return how many runs of a piece one step moves, and one transaction of the log can free."""
        few = min(len(piece.runs), MOST_RUNS)
        while few > 1 and self._credits(piece.runs[:few]) > self.volume.journal.capacity:
            few //= 2
        return few

    def _credits(self, runs: list[Extent]) -> int:
        """Return how many blocks the handle may change: nodes of the map, bitmaps and descriptors.

        Blocks that clients may touch are also inserted into the map of a quarantine inode.
        """
        volume = self.volume
        inode = inodes.read(volume.view, self.node.ino)
        nodes = mapping.nodes_within(volume.view, inode, [(runs[0].lblk, runs[-1].lblk + runs[-1].length - 1)])
        new = len(runs) // ENTRIES_PER_NODE + 1
        deferred = new if self.node.grants is not None else 0
        groups = min(len(runs), volume.geometry.groups_count)
        return CREDITS + 2 * (nodes + new) + deferred + 2 * groups

    def _replace_when_left(self, piece: Piece, place: BlockRun, told: Piece) -> Steps[Outcome]:
        """Move a piece when no client would go on with its old place; if one would, ``told`` is reported to stay."""
        table, ino, bits = self.table, self.node.ino, self.volume.block_bits
        grants = table.by_ino.get(ino)
        if table.stale:
            return self._stays_with(told, ())
        if grants is None:
            return self._replace(piece, place, told)
        if table.epochs.deferred >= waiting.limit(table):
            return self._stays_with(told, [holder for holder, _ in grants.each_holder()])
        old = [ByteRange(run.pblk << bits, run.pblk + run.length << bits) for run in piece.runs]
        staying = grants.staying(old)
        if not staying:
            return self._replace(piece, place, told)
        never = [holder for holder in staying if holder in grants.mapped or holder in grants.unrenewed]
        if never:
            return self._stays_with(told, never)
        with table.recalls.begin(ino, piece.first << bits, piece.end << bits) as recall:
            while staying and recall.state() is State.WAITING:
                yield
                staying = grants.staying(old) if table.by_ino.get(ino) is grants else []
            return self._stays_with(told, staying) if staying else self._replace(piece, place, told)

    def _stays_with(self, piece: Piece, holders: Iterable[Holder]) -> Outcome:
        self._stay(piece.first, piece.end, MAPPED, holders)
        return Outcome.STAYED

    def _replace(self, piece: Piece, place: BlockRun, told: Piece) -> Outcome:
        """Copy a piece to its place and give the file the new blocks, in one handle."""
        volume, node, bits = self.volume, self.node, self.volume.block_bits
        begin, end = piece.first << bits, piece.end << bits
        datalog.settle(volume, node.ino, begin, end)
        inode = inodes.read(volume.view, node.ino)
        if mapping.runs(volume.view, inode, piece.first, piece.end - 1, len(piece.runs) + 1) != piece.runs:
            return Outcome.CHANGED
        if volume.pool.hook is not None:
            volume.pool.hook.expect(piece.length << bits)
        try:
            moved = self._replace_at_once(piece, place)
        except MissingMemory as error:
            if not error.of_data:
                raise
            self._stay(told.first, told.end, BAD)
        except FsError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._stay(told.first, told.end, FULL)
        else:
            self.moved += piece.length << bits if moved else 0
            return Outcome.MOVED if moved else Outcome.CHANGED
        finally:
            node.moved(begin, end)
        return Outcome.STAYED

    def _replace_at_once(self, piece: Piece, place: BlockRun) -> bool:
        """Do it; False: the place is no longer free, and nothing has changed."""
        volume, bits, pool = self.volume, self.volume.block_bits, self.volume.pool
        with volume.handle(self._credits(piece.runs), self.caller) as tx:
            if not blocks.take_run(tx, BlockRun(place.start, piece.length)):
                return False
            with Change(volume, tx, self.node.ino, dated=False) as change:
                memory, target = pool.memory, place.start << bits
                for _, pblk, length, unwritten in piece.runs:
                    size = length << bits
                    if not unwritten:
                        pool.write(target, memory[pblk << bits : (pblk << bits) + size])
                    target += size
                volume.finish_copy()
                inodes.add_blocks(change.inode, piece.length, tx.geometry)
                change.move(piece.first, piece.end - 1, placed(piece.runs, place.start))
        return True


def placed(runs: list[Extent], at: int) -> list[Extent]:
    """Return runs as they lie from block ``at`` of the pool on, joined where the format can express that."""
    new: list[Extent] = []
    first, begin, length, state = -1, at, 0, False
    for lblk, _, count, unwritten in runs:
        most = EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN
        if lblk != first + length or unwritten != state or length + count > most:
            if length:
                new.append(Extent(first, begin, length, state))
            first, begin, length, state = lblk, begin + length, 0, unwritten
        length += count
    new.append(Extent(first, begin, length, state))
    return new


def head(piece: Piece, length: int) -> Piece:
    """Return the first ``length`` blocks of a piece."""
    runs: list[Extent] = []
    for run in piece.runs:
        if length <= 0:
            break
        runs.append(run._replace(length=min(run.length, length)))
        length -= run.length
    return Piece(runs, 1, piece.shortens)


def _first_in_pieces(piece: Piece, blocks_together: int) -> list[Extent]:
    """Return the first so many logical blocks of a piece that do not lie together, as runs; empty: all of them do."""
    runs: list[Extent] = []
    for run in piece.runs:
        begin, end = run.lblk, run.lblk + run.length
        while begin < end:
            border = begin - (begin - piece.first) % blocks_together + blocks_together
            if runs and runs[0].lblk < border - blocks_together:
                if not _follow(runs):
                    return runs
                runs = []
            stop = min(end, border)
            runs.append(Extent(begin, run.pblk + begin - run.lblk, stop - begin, run.unwritten))
            begin = stop
    return [] if _follow(runs) else runs

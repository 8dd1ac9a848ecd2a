"""The block allocator: allocates runs of blocks from the groups' bitmaps, and frees them at the commit.

`blocksearch` has the policy and finds the runs, `groupmaps` reads the bitmaps, and this module changes them. The
callers, the maps of files, directories and attributes of this layer, know what blocks are for. The fs layer registers
`apply_frees` with the journal. Sources: fs/ext4/mballoc.c and balloc.c.

Invariants:

B1. A freed block keeps its bit until `apply_frees` clears it at the commit. So no block is allocated twice in one
    transaction, and after a crash before the commit the block is still its old owner's, unchanged.
B2. A bitmap is used only after checks of its checksum, its number of free blocks and the bits of the groups' own
    metadata. It may become damaged later, so each run is compared with the metadata when it is taken. So nobody gets
    blocks that hold metadata.
B3. Bitmap, descriptor and superblock change in the same handle. They are sealed at the commit, in that order.
B4. A hint only says where to search first. The bitmap is read before a block is taken.
B5. The last free blocks of the pool are allocated as tree blocks only (`reserves`). So a store into blocks that a file
    has already can't fail because its map lacks room.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT
from daxfs.runs import BitRun, BlockRun
from daxfs.structures import bitmaps, blocksearch, groupmaps, groups, metadata_zone, reserves

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

Blocks = npt.NDArray[np.int64]

RESERVED_PER_CALL = 32
"""The credits for the commit after which a bounded removal of a file's blocks stops. A fragmented file's runs may each
lie in another group, whose bitmap and descriptor the commit changes."""


class GroupBound:
    """The groups that a handle takes blocks from, at most ``most``: each costs it two credits."""

    __slots__ = ("_groups", "_most")

    def __init__(self, most: int) -> None:
        self._groups: set[int] = set()
        self._most = most

    def add(self, tx: Handle, number: int) -> None:
        """Note that the handle has taken block ``number``; ENOSPC: from one group too many."""
        self._groups.add(tx.geometry.group_of_block(number))
        if len(self._groups) > self._most:
            raise FsError(errno.ENOSPC, f"{tx.pool.path}: the free blocks lie in too many groups")


# Looking


def free_runs(view: View, group: int, least: int, first: int = 0) -> Iterator[BlockRun]:
    """Yield the free runs of ``least`` blocks or more in a group that do not end before block ``first``, in order, as
    far as they may be taken (`confine`).

    Blocks freed in the running transaction are not included. The runs are valid until the next change.

    A group whose blocks are unusable has none.
    """
    if group >= view.geometry.groups_count or not groups.gives_blocks(view, group):
        return
    desc = groups.descriptor(view, group)
    if desc.free_blocks_count < least:
        return
    content = groupmaps.for_taking(view, group)
    if content is None:
        return
    low, bits = view.geometry.first_block(group), view.geometry.blocks_in_group(group)
    starts, lengths = bitmaps.free_runs(content, bits)
    passed = int((starts + lengths <= first - low).sum())
    for start, count in zip(starts[passed:].tolist(), lengths[passed:].tolist(), strict=True):
        if count >= least:
            yield BlockRun(low + start, count)


def is_free(view: View, number: int) -> bool:
    """Return whether the bitmap shows a block as free, be it bad or not; False if the bitmap lies in bad memory."""
    geometry = view.geometry
    group, bit = divmod(number - geometry.first_data_block, geometry.blocks_per_group)
    if not groupmaps.allows_search(view, group):
        return False
    return not bitmaps.test(groupmaps.stored(view, group, groups.descriptor(view, group)), bit)


def bitmap(view: View, group: int) -> memoryview:
    """Return the checked block bitmap of a group, as the format has it: bad memory is free or in use as any other.

    Raises:
        Corrupt: the bitmap or the descriptor is damaged.
    """
    return groupmaps.stored(view, group, groups.descriptor(view, group))


# Counters


def free_blocks(view: View) -> int:
    """Return the number of free blocks, reserved blocks included; blocks freed since the last commit don't count."""
    return view.superblock().free_blocks_count


def pending(tx: Handle) -> int:
    """Return the number of blocks freed in the running transaction: they become free with its commit."""
    return sum(count for _, count in tx.frees)


def correct_free_counts(tx: Handle) -> bool:
    """Set the superblock's free counts to the sums over the groups, and return whether they were wrong.

    They are wrong after a crash of the kernel's ext4, which writes them only at unmount. The mount calls this.
    """
    blocks, inodes = groups.totals(tx)
    sb = tx.superblock()
    if sb.free_blocks_count == blocks and sb.s_free_inodes_count == inodes:
        return False
    sb = tx.edit_superblock()
    sb.free_blocks_count = blocks
    sb.s_free_inodes_count = inodes
    return True


# Taking


def confine(view: View, end: int) -> None:
    """Have no block and no inode of a group taken from block ``end`` on, since the file system is to end there; 0: have
    all taken again. What lies there is freed as before.
    """
    groups.set_end(view, end)
    forget(view)


def forget(view: View) -> None:
    """Forget all hints: other blocks may be taken from now on, or there are other groups."""
    view.caches[blocksearch.Hints].forget()


def allocate(tx: Handle, goal: int, want: int, *, align: int = 1, tree: bool = False) -> BlockRun:
    """Allocate a run of blocks: two credits.

    Args:
        tx: the handle; only a privileged one may take reserved blocks.
        goal: the block to take if it is free, else the block to search near; out of range (0) means no preference.
        want: the number of blocks that the caller would like, at least 1.
        align: the alignment of the first block, in blocks: the run starts at a multiple if a whole free unit of that
            size is found. Requests of 2 MiB and more are aligned to 2 MiB in any case, unless the goal has room.
        tree: the blocks are for an extent tree, which may take the last ones (invariant B5).

    Returns:
        The run, of 1 to ``want`` blocks.

    Raises:
        FsError: ENOSPC: nothing has changed.
        Corrupt: a bitmap or descriptor contradicts the others.
    """
    return _allocate(tx, goal, want, 1, align, tree)[0]


def allocate_runs(tx: Handle, goal: int, want: int, most: int, *, align: int = 1) -> list[BlockRun]:
    """Allocate ``want`` blocks as at most ``most`` runs: two credits.

    If no free run is long enough, one search of one bitmap finds all runs: a caller that takes them one by one would
    search a fragmented pool anew for each.

    Args:
        tx: the handle.
        goal: as in `allocate`.
        want: as in `allocate`.
        most: the most runs, at least 1.
        align: as in `allocate`.

    Returns:
        The runs, of 1 to ``want`` blocks together. Several runs lie in one group, in ascending order.

    Raises:
        FsError: ENOSPC: nothing has changed.
        Corrupt: a bitmap or descriptor contradicts the others.
    """
    return _allocate(tx, goal, want, most, align, False)


def _allocate(tx: Handle, goal: int, want: int, most: int, align: int, tree: bool) -> list[BlockRun]:
    """Take what `blocksearch.search` finds; search once more after each group that proves to be unusable."""
    sb = tx.edit_superblock()
    met: Corrupt | None = None
    while True:
        unusable = groups.given_up(tx)
        try:
            return _take(tx, sb, blocksearch.search(tx, sb, goal, want, most, align, tree))
        except FsError as error:
            met = groups.attempt_again(tx, unusable, error, met)


def take(tx: Handle, number: int) -> bool:
    """Take one block, whichever it is: two credits. False: it is in use, or its group's bitmap can't be read."""
    if not is_free(tx, number):
        return False
    geometry = tx.geometry
    group, bit = divmod(number - geometry.first_data_block, geometry.blocks_per_group)
    _take(tx, tx.edit_superblock(), [BitRun(group, bit, 1)])
    return True


def take_run(tx: Handle, run: BlockRun) -> bool:
    """Take a run of blocks, which lies in one group, for a file's data: two credits.

    Returns:
        False: a block of it is in use, or no longer there.

    Raises:
        FsError: ENOSPC: not so many blocks may be taken (`reserves`).
    """
    geometry, sb = tx.geometry, tx.edit_superblock()
    room = sb.free_blocks_count - groups.free_on_storage(tx)
    if room - run.length < reserves.must_stay_free(geometry, sb, privileged=tx.privileged):
        raise FsError(errno.ENOSPC, "no block is free")
    return _take_free(tx, sb, run)


def take_on_storage(tx: Handle, run: BlockRun) -> bool:
    """Take a run of blocks of one group, on storage, for a file's data: two credits. False: a block of it is in use."""
    room = tx.caches[groups.OnStorage]
    room.drop()
    tx.on_rollback(room.drop)
    return _take_free(tx, tx.edit_superblock(), run)


def _take_free(tx: Handle, sb: Superblock, run: BlockRun) -> bool:
    geometry = tx.geometry
    group, bit = divmod(run.start - geometry.first_data_block, geometry.blocks_per_group)
    if run.start + run.length > geometry.blocks_count:  # the file system has become smaller since it was found
        return False
    desc = groups.descriptor(tx, group)
    if tx.pool.bad and not groupmaps.readable(tx, desc):
        return False
    if bitmaps.free_run(groupmaps.usable(tx, group, desc), bit, run.length) < run.length:
        return False
    _take(tx, sb, [BitRun(group, bit, run.length)])
    return True


def take_runs(tx: Handle, runs: list[BlockRun]) -> None:
    """Allocate blocks that `free_runs` has shown to be free in this handle: two credits for each of their groups."""
    sb = tx.edit_superblock()
    for group, pieces in _by_group(tx.geometry, sorted(runs)):
        listed = pieces if isinstance(pieces, list) else pieces.tolist()
        _take(tx, sb, [BitRun(group, bit, length) for bit, length in listed])


def _take(tx: Handle, sb: Superblock, found: list[BitRun]) -> list[BlockRun]:
    """Set the bits of free runs of one group, in ascending order, and correct the counters (invariants B2, B3).

    Raises:
        Corrupt: the bitmap or the counter of the group has become damaged: it is given up, and nothing has changed.
    """
    geometry = tx.geometry
    group, first, count = found[0]
    if len(found) > 1:
        count = sum(run.length for run in found)
    low = geometry.first_data_block + group * geometry.blocks_per_group
    for begin, width in groupmaps.metadata_in(tx, group):
        for _, bit, length in found:
            if low + bit < begin + width and begin < low + bit + length:
                raise _given_up(tx, group, groupmaps.metadata_free(group, begin))
    desc = groups.edit_descriptor(tx, group)
    free = desc.free_blocks_count - count
    if free < 0:
        counted = f"group {group}: {count} free blocks found, {free + count} counted"
        raise _given_up(tx, group, Corrupt(CorruptKind.GROUP_DESCRIPTOR_COUNTER, counted))
    if groups.blocks_uninit(geometry, desc):
        implied = groupmaps.implied(tx, group, desc)
        content = tx.create(desc.block_bitmap, groupmaps.seal, geometry, desc)
        content[:] = implied
        groupmaps.first_written(tx, group)
        desc.bg_flags &= ~EXT4_BG_BLOCK_UNINIT
    else:
        content = tx.edit(desc.block_bitmap, groupmaps.seal, geometry, desc)
    desc.free_blocks_count = free
    sb.free_blocks_count = max(sb.free_blocks_count - count, 0)
    if len(found) == 1:
        bitmaps.set_run(content, first, count)
        return [BlockRun(low + first, count)]
    runs = [(bit, length) for _, bit, length in found]
    bitmaps.invert(content, bitmaps.mask_of(bitmaps.gathered(runs)))
    return [BlockRun(low + bit, length) for bit, length in runs]


def _given_up(tx: Handle, group: int, error: Corrupt) -> Corrupt:
    groups.give_up_blocks(tx, group, error)
    return error


# Freeing


def free(tx: Handle, start: int, count: int, *, metadata: bool = False) -> None:
    """Free a run of blocks at the commit (invariant B1).

    The call needs no credits; it reserves those that the commit will need. Where the bitmap is damaged, or known to lie
    in bad memory, the blocks stay in use (`groupmaps.for_freeing`).

    Args:
        tx: the handle.
        start: the first block.
        count: the number of blocks.
        metadata: the blocks hold metadata: revoke them, so that no copy in the log is replayed over later content.

    Raises:
        Corrupt: the run is not in the file system, holds the groups' metadata, or is free already.
    """
    geometry = tx.geometry
    if count <= 0 or start <= geometry.first_data_block or start + count > geometry.blocks_count:
        raise Corrupt(CorruptKind.BLOCK_NUMBER, f"freeing {count} blocks from {start}, of {geometry.blocks_count}")
    for group, bit, length in pieces_of(geometry, start, count):
        content = groupmaps.for_freeing(tx, group)
        if content is None:
            continue
        if bitmaps.used_run(content, bit, length) < length:
            raise _free_already(group, [(bit, length)])
        for begin, width in groupmaps.metadata_in(tx, group):
            if begin < start + count and start < begin + width:
                raise Corrupt(
                    CorruptKind.BLOCK_NUMBER, f"freeing {count} blocks from {start}, where groups have their metadata"
                )
        tx.reserve(("block bitmap", group))
        tx.reserve(("descriptors", group // geometry.desc_per_block))
    if metadata:
        for number in range(start, start + count):
            tx.forget(number)
    tx.unlog_data(start, count)
    tx.frees.append(BlockRun(start, count))


def free_all(tx: Handle, runs: list[BlockRun], *, metadata: bool = False) -> None:
    """Free many runs of blocks as `free` does, with one look at each group's bitmap for all of them."""
    geometry = tx.geometry
    if tx.pool.bad or len(runs) < bitmaps.FEW_RUNS:
        for start, count in runs:
            free(tx, start, count, metadata=metadata)
        return
    starts, lengths = _columns(runs)
    ends = starts + lengths
    valid = (starts > geometry.first_data_block) & (lengths > 0) & (ends <= geometry.blocks_count)
    if not valid.all() or metadata_zone.first_overlap(tx, 0, starts, ends) is not None:
        for start, count in runs:  # one of these calls names the run that is wrong
            free(tx, start, count)
        return
    for group, pieces in _by_group(geometry, runs):
        content = groupmaps.for_freeing(tx, group)
        if content is None:
            continue
        if not bitmaps.holds(content, pieces):
            raise _free_already(group, pieces)
        tx.reserve(("block bitmap", group))
        tx.reserve(("descriptors", group // geometry.desc_per_block))
    if metadata:
        for start, count in runs:
            for number in range(start, start + count):
                tx.forget(number)
    if tx.logged:
        for start, count in runs:
            tx.unlog_data(start, count)
    tx.frees.extend(runs)


def apply_frees(tx: Handle) -> None:
    """Clear the bits of the blocks that the transaction freed; this is the last commit hook.

    Raises:
        Corrupt: a block was freed twice.
    """
    if not tx.frees:
        return
    geometry = tx.geometry
    hints = tx.caches[blocksearch.Hints]
    total = 0
    _refuse_overlaps(tx.frees)
    for group, pieces in _by_group(geometry, tx.frees):
        content = groupmaps.for_freeing(tx, group)
        if content is None:
            continue
        mask = bitmaps.mask_of(pieces)
        if int.from_bytes(content, "little") & mask != mask:
            raise _free_already(group, pieces)
        desc = groups.edit_descriptor(tx, group)
        bitmaps.invert(tx.edit(desc.block_bitmap, groupmaps.seal, geometry, desc), mask)
        count = mask.bit_count()
        desc.free_blocks_count += count
        total += count
        hints.freed(group)
    tx.caches[groups.OnStorage].drop()
    sb = tx.edit_superblock()
    sb.free_blocks_count = min(sb.free_blocks_count + total, geometry.blocks_count)


def _columns(runs: list[BlockRun]) -> tuple[Blocks, Blocks]:
    """Return the starts and the lengths of runs as arrays."""
    pairs = np.fromiter(chain.from_iterable(runs), np.int64, 2 * len(runs))
    return pairs[::2], pairs[1::2]


def _refuse_overlaps(runs: list[BlockRun]) -> None:
    """Raise Corrupt if two runs have a block in common."""
    if len(runs) < bitmaps.FEW_RUNS:
        end = 0
        for start, count in sorted(runs):
            if start < end:
                raise _freed_twice(start)
            end = start + count
        return
    starts, lengths = _columns(runs)
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + lengths)[order]
    twice = starts[1:] < ends[:-1]
    if twice.any():
        raise _freed_twice(int(starts[1:][twice][0]))


def _freed_twice(number: int) -> Corrupt:
    return Corrupt(CorruptKind.BLOCK_NUMBER, f"block {number} was freed twice")


def _by_group(geometry: Geometry, runs: list[BlockRun]) -> Iterable[tuple[int, bitmaps.Runs]]:
    """Return the pieces of runs of blocks in each group that they touch, in the runs' order."""
    if len(runs) >= bitmaps.FEW_RUNS:
        return _many_by_group(geometry, runs)
    found: dict[int, list[tuple[int, int]]] = {}
    for start, count in runs:
        for group, bit, length in pieces_of(geometry, start, count):
            found.setdefault(group, []).append((bit, length))
    return found.items()


def _many_by_group(geometry: Geometry, runs: list[BlockRun]) -> Iterator[tuple[int, bitmaps.Runs]]:
    starts, lengths = _columns(runs)
    size = geometry.blocks_per_group
    numbers, bits = np.divmod(starts - geometry.first_data_block, size)
    pieces = np.stack((bits, lengths), axis=1)
    cut = bits + lengths > size
    if cut.any():
        more = [piece for at in np.flatnonzero(cut).tolist() for piece in pieces_of(geometry, *runs[at])]
        rows = np.array(more, np.int64)
        numbers = np.concatenate((numbers[~cut], rows[:, 0]))
        pieces = np.concatenate((pieces[~cut], rows[:, 1:]))
    order = np.argsort(numbers, kind="stable")
    groups_found, begins = np.unique(numbers[order], return_index=True)
    for group, rows in zip(groups_found.tolist(), np.split(pieces[order], begins[1:]), strict=True):
        yield group, rows if len(rows) >= bitmaps.FEW_RUNS else [tuple(row) for row in rows.tolist()]


def pieces_of(geometry: Geometry, start: int, count: int) -> Iterator[BitRun]:
    """Yield the pieces of a run of blocks, cut at the borders of groups."""
    while count > 0:
        group, bit = divmod(start - geometry.first_data_block, geometry.blocks_per_group)
        length = min(count, geometry.blocks_per_group - bit)
        yield BitRun(group, bit, length)
        start += length
        count -= length


def _free_already(group: int, pieces: bitmaps.Runs) -> Corrupt:
    count = sum(length for _, length in pieces)
    return Corrupt(
        CorruptKind.BLOCK_BITMAP,
        f"group {group}: freeing {count} blocks from bit {pieces[0][0]} on, some of which are free",
    )

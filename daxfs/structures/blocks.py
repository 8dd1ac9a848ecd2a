"""The block allocator: allocates runs of blocks from the groups' bitmaps, and frees them at the commit.

The policy, in this order:

1. Take the goal (a file's next block) if it is free.
2. For a large request, take the first free run that starts on a 2 MiB boundary. For a small one, take the first fit
   among 2 MiB chunks that are partly in use, so that free chunks stay whole for large files.
3. Take the largest run that is found. A caller that accepts several runs (`allocate_runs`) gets, from the group of the
   largest run, all that are at least half as long.

The search examines a bounded number of groups: descriptors are scanned as arrays, and each pass opens at most
`GROUPS_EXAMINED` bitmaps. The callers, the maps of files, directories and attributes of this layer, know what blocks
are for. The fs layer registers `apply_frees` with the journal. Sources: fs/ext4/mballoc.c and balloc.c for the rules of
the format; the policy is daxfs's own.

Invariants:

B1. A freed block keeps its bit until `apply_frees` clears it at the commit. So no block is allocated twice in one
    transaction, and after a crash before the commit the block is still its old owner's, unchanged.
B2. A bitmap is used only after checks of its checksum, its number of free blocks and the bits of the groups' own
    metadata. It may become damaged later, so each run is compared with the metadata when it is taken. So nobody gets
    blocks that hold metadata.
B3. Bitmap, descriptor and superblock change in the same handle. They are sealed at the commit, in that order.
B4. A hint only says where to search first. The bitmap is read before a block is taken.
B5. The last free blocks of the pool are allocated as tree blocks only (`tree_reserve`). So a store into blocks that a
    file has already can't fail because its map lacks room.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from daxfs.errors import BadMemory, Corrupt, CorruptKind, FsError
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, GroupDescriptor
from daxfs.journal.caches import Cache
from daxfs.runs import BitRun, BlockRun
from daxfs.structures import bitmaps, groups, metadata_zone

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View

CHUNK_BYTES = 2 << 20
"""The bytes that a huge page maps; requests of this size start on a multiple of it."""

GROUPS_EXAMINED = 16
"""The most bitmaps that one pass of a search opens."""

Blocks = npt.NDArray[np.int64]
Request = tuple[int, int]
"""What is searched: the length of a run, and a number of blocks of which its first bit is a multiple."""

MAX_HINTS = 4096
"""The most groups for which hints are cached."""

MAX_PLACES = 8
"""The most kinds of requests for which a group's places are cached, and the most such groups: together 256 KiB."""

PLACES_EXAMINED = 16
"""The most cached places that one search looks at."""

RESERVED_PER_CALL = 32
"""The credits for the commit after which a bounded removal of a file's blocks stops. A fragmented file's runs may each
lie in another group, whose bitmap and descriptor the commit changes."""

TREE_RESERVE_SHARE = 50
MAX_TREE_RESERVE = 4096
"""The reserve for extent trees is one cluster in 50, at most 4,096 clusters."""


class _Hints(Cache):
    """The cache of one mounted pool: hints, and the places of metadata.

    Attributes:
        packing: group -> the bit after the last small allocation.
        recent: group -> the group that was used instead when it was full.
        no_chunk: groups without a free aligned chunk. Undoing the handle that took the last chunk removes the group
            again; the other hints need no undo (invariant B4).
        longest: group -> a length that no free run of the group exceeds. Blocks that become free remove the group, and
            so does undoing the handle that measured it.
        places: group -> request -> where the next requests of this kind may find room: a mask, and the bit that its
            lowest one stands for. A search finds all places of a bitmap at once, and takes one. Blocks that become free
            remove the group, since they may be better places.
        metadata: group -> `metadata_zone.in_group`; the places of metadata don't change while a pool is mounted.
    """

    __slots__ = ("longest", "metadata", "no_chunk", "packing", "places", "recent")

    def __init__(self) -> None:
        self.packing: dict[int, int] = {}
        self.recent: dict[int, int] = {}
        self.no_chunk: set[int] = set()
        self.longest: dict[int, int] = {}
        self.places: dict[int, dict[Request, tuple[int, int]]] = {}
        self.metadata: dict[int, list[BlockRun]] = {}

    def drop(self) -> None:
        """Forget which groups have no free chunk or no long run: blocks that were in use may be free again."""
        self.no_chunk.clear()
        self.longest.clear()
        self.places.clear()

    def no_run_exceeds(self, tx: Handle, group: int, length: int) -> None:
        """Note that no free run of the group is longer than ``length``, at least 1."""
        if len(self.longest) >= MAX_HINTS:
            self.longest.clear()
        self.longest[group] = length
        tx.on_rollback(partial(self.longest.pop, group, None))

    def keep_places(self, group: int, request: Request, mask: int, end: int) -> None:
        """Keep the places of ``mask`` that do not begin before bit ``end`` for further requests of this kind."""
        if len(self.places) >= MAX_PLACES and group not in self.places:
            self.places.clear()
        places = self.places.setdefault(group, {})
        if len(places) >= MAX_PLACES and request not in places:
            places.clear()
        places[request] = mask >> end, end

    def place(self, content: memoryview, group: int, request: Request) -> int:
        """Take the next of the kept places that is still free; -1: there is none."""
        places = self.places.get(group)
        kept = places.get(request) if places else None
        if not places or kept is None:
            return -1
        mask, low = kept
        length = request[0]
        for _ in range(PLACES_EXAMINED):
            if not mask:
                break
            start = low + bitmaps.lowest(mask)
            mask >>= start + length - low
            low = start + length
            if bitmaps.free_run(content, start, length) == length:
                places[request] = mask, low
                return start
        del places[request]
        return -1


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
    """Yield the free runs of ``least`` blocks or more in a group that do not end before block ``first``, in order.

    Blocks freed in the running transaction are not included. The runs are valid until the next change.

    Raises:
        Corrupt: the bitmap or the descriptor is damaged.
    """
    desc = groups.descriptor(view, group)
    if desc.free_blocks_count < least:
        return
    low, bits = view.geometry.first_block(group), view.geometry.blocks_in_group(group)
    starts, lengths = bitmaps.free_runs(_bitmap(view, group, desc), bits)
    passed = int((starts + lengths <= first - low).sum())
    for start, count in zip(starts[passed:].tolist(), lengths[passed:].tolist(), strict=True):
        if count >= least:
            yield BlockRun(low + start, count)


def is_free(view: View, number: int) -> bool:
    """Return whether the bitmap shows a block as free, be it bad or not; False if the bitmap lies in bad memory."""
    geometry = view.geometry
    group, bit = divmod(number - geometry.first_data_block, geometry.blocks_per_group)
    desc = groups.descriptor(view, group)
    return _readable(view, desc) and not bitmaps.test(_stored_bitmap(view, group, desc), bit)


def bitmap(view: View, group: int) -> memoryview:
    """Return the checked block bitmap of a group, as the format has it: bad memory is free or in use as any other.

    Raises:
        Corrupt: the bitmap or the descriptor is damaged.
    """
    return _stored_bitmap(view, group, groups.descriptor(view, group))


# Counters


def free_blocks(view: View) -> int:
    """Return the number of free blocks, reserved blocks included; blocks freed since the last commit don't count."""
    return view.superblock().free_blocks_count


def tree_reserve(geometry: Geometry) -> int:
    """Return how many blocks only extent trees may take (``ext4_calculate_resv_clusters`` in fs/ext4/super.c).

    Storing into preallocated blocks or removing a range from a file splits extents, which may need a tree block even on
    a full pool. A map without extents does not grow in these cases, so it needs no reserve.
    """
    if not geometry.has_extents:
        return 0
    clusters = geometry.blocks_count >> geometry.cluster_bits
    return min(clusters // TREE_RESERVE_SHARE, MAX_TREE_RESERVE) << geometry.cluster_bits


def must_stay_free(geometry: Geometry, sb: Superblock, *, privileged: bool) -> int:
    """Return how many blocks must stay free when data is allocated (``ext4_has_free_clusters`` in fs/ext4/balloc.c)."""
    return tree_reserve(geometry) + (0 if privileged else sb.reserved_blocks_count)


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
    sb = tx.edit_superblock()
    return _take(tx, sb, _find(tx, sb, goal, want, 1, align, tree))[0]


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
    sb = tx.edit_superblock()
    return _take(tx, sb, _find(tx, sb, goal, want, most, align, False))


def _find(tx: Handle, sb: Superblock, goal: int, want: int, most: int, align: int, tree: bool) -> list[BitRun]:
    """Find at most ``most`` free runs of one group, in ascending order, with the arguments of `allocate_runs`.

    Raises:
        FsError: ENOSPC.
    """
    geometry = tx.geometry
    room = sb.free_blocks_count
    if not tree:
        room -= must_stay_free(geometry, sb, privileged=tx.privileged)
    if room < want:
        if room <= 0:
            raise FsError(errno.ENOSPC, "no block is free")
        want = room
    origin = geometry.first_data_block
    if not origin <= goal < geometry.blocks_count:
        goal = origin
    group, bit = divmod(goal - origin, geometry.blocks_per_group)
    desc = groups.descriptor(tx, group)
    if tx.pool.bad and not _readable(tx, desc):
        return _search(tx, group, bit, want, align, most)
    content = _bitmap(tx, group, desc)
    if not content[bit >> 3] >> (bit & 7) & 1:
        limit = geometry.blocks_in_group(group) - bit
        if align > 1 or want >= CHUNK_BYTES >> geometry.block_bits:
            least = min(align if align > 1 else CHUNK_BYTES >> geometry.block_bits, limit)
            count = bitmaps.free_run(content, bit, min(max(want, least), limit))
            if count >= least and not goal % align:
                return [BitRun(group, bit, min(count, want))]
        else:
            return [BitRun(group, bit, bitmaps.free_run(content, bit, min(want, limit)))]
    return _search(tx, group, bit, want, align, most)


def take(tx: Handle, number: int) -> bool:
    """Take one block, whichever it is: two credits. False: it is in use, or its group's bitmap can't be read."""
    if not is_free(tx, number):
        return False
    geometry = tx.geometry
    group, bit = divmod(number - geometry.first_data_block, geometry.blocks_per_group)
    _take(tx, tx.edit_superblock(), [BitRun(group, bit, 1)])
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
        Corrupt: the bitmap or the counter of the group has become damaged; nothing has changed.
    """
    geometry = tx.geometry
    group, first, count = found[0]
    if len(found) > 1:
        count = sum(run.length for run in found)
    low = geometry.first_data_block + group * geometry.blocks_per_group
    for begin, width in _metadata(tx, group):
        for _, bit, length in found:
            if low + bit < begin + width and begin < low + bit + length:
                raise _metadata_free(group, begin)
    desc = groups.edit_descriptor(tx, group)
    free = desc.free_blocks_count - count
    if free < 0:
        raise Corrupt(
            CorruptKind.GROUP_DESCRIPTOR_COUNTER, f"group {group}: {count} free blocks found, {free + count} counted"
        )
    if groups.blocks_uninit(geometry, desc):
        implied = _implied_bitmap(tx, group, desc)
        content = tx.create(desc.block_bitmap, partial(_seal_bitmap, geometry, desc))
        content[:] = implied
        desc.bg_flags &= ~EXT4_BG_BLOCK_UNINIT
    else:
        content = tx.edit(desc.block_bitmap, partial(_seal_bitmap, geometry, desc))
    desc.free_blocks_count = free
    sb.free_blocks_count = max(sb.free_blocks_count - count, 0)
    if len(found) == 1:
        bitmaps.set_run(content, first, count)
        return [BlockRun(low + first, count)]
    runs = [(bit, length) for _, bit, length in found]
    bitmaps.invert(content, bitmaps.mask_of(bitmaps.gathered(runs)))
    return [BlockRun(low + bit, length) for bit, length in runs]


# Searching


def _search(tx: Handle, group: int, bit: int, want: int, align: int, most: int) -> list[BitRun]:
    """Find at most ``most`` runs of one group, in order, for a request whose goal is not free."""
    hints = tx.caches[_Hints]
    chunk = CHUNK_BYTES >> tx.geometry.block_bits
    one = None
    if align > 1:
        one = _aligned(tx, hints, group, bit, want, align)
    elif want >= chunk:
        one = _aligned(tx, hints, group, bit, want, chunk)
    one = one or _packed(tx, hints, group, bit, want)
    found = [one] if one else _largest(tx, hints, group, want, most)
    if not found:
        if tx.pool.bad and not _readable(tx, groups.descriptor(tx, group)):
            raise BadMemory(f"group {group}: its block bitmap lies in bad memory, and no other has room")
        raise FsError(errno.ENOSPC, "no block is free")
    if found[0].group != group:
        if len(hints.recent) >= MAX_HINTS:
            hints.recent.clear()
        hints.recent[group] = found[0].group
    return found


def _aligned(tx: Handle, hints: _Hints, group: int, bit: int, want: int, unit: int) -> BitRun | None:
    """Find a free run that starts at a multiple of ``unit`` blocks: of ``want`` blocks if there is one, else shorter.

    Every run found has at least one whole unit.
    """
    geometry = tx.geometry
    by_chunk = unit == CHUNK_BYTES >> geometry.block_bits
    near = _groups_with_run(tx, hints, group, unit)
    if by_chunk:
        near = (other for other in near if other not in hints.no_chunk)
    for other in islice(near, GROUPS_EXAMINED):
        content = _bitmap(tx, other, groups.descriptor(tx, other))
        bits = geometry.blocks_in_group(other)
        start = hints.place(content, other, (unit, unit)) if want <= unit else -1
        if start < 0:
            phase = -geometry.first_block(other) % unit
            starts = bitmaps.run_starts(bitmaps.free_mask(content, bits), unit) & _multiples(bits, unit, phase)
            if starts:
                start = _longest_units(starts, -(-want // unit), unit, bit if other == group else 0)
                hints.keep_places(other, (unit, unit), starts, start + unit)
        if start >= 0:
            return BitRun(other, start, bitmaps.free_run(content, start, min(want, bits - start)))
        if by_chunk:
            if len(hints.no_chunk) >= MAX_HINTS:
                hints.no_chunk.clear()
            hints.no_chunk.add(other)
            tx.on_rollback(partial(hints.no_chunk.discard, other))
    return None


def _longest_units(starts: int, units: int, unit: int, bit: int) -> int:
    """Return the start of ``units`` consecutive free units, or of half as many, and so on."""
    while units > 1:
        chains, covered = starts, 1
        while covered < units and chains:
            step = min(covered, units - covered)
            chains &= chains >> step * unit
            covered += step
        if chains:
            return bitmaps.lowest(chains, bit)
        units >>= 1
    return bitmaps.lowest(starts, bit)


def _packed(tx: Handle, hints: _Hints, group: int, bit: int, want: int) -> BitRun | None:
    """Find one run of ``want`` blocks, if possible without taking blocks of a chunk that is entirely free."""
    geometry = tx.geometry
    chunk = CHUNK_BYTES >> geometry.block_bits
    for other in islice(_groups_with_run(tx, hints, group, want), GROUPS_EXAMINED):
        content = _bitmap(tx, other, groups.descriptor(tx, other))
        bits = geometry.blocks_in_group(other)
        phase = -geometry.first_block(other) % chunk
        start = hints.packing.get(other, phase)
        rest = (phase - start) % chunk
        # If the cursor is at the start of a chunk, the chunk may be entirely free.
        if not (want <= rest and start + want <= bits and bitmaps.free_run(content, start, want) == want):
            start = hints.place(content, other, (want, 1))
            if start < 0:
                places = _places(content, bits, want, phase, chunk)
                start = bitmaps.lowest(places, bit if other == group else 0)
                if start >= 0:
                    hints.keep_places(other, (want, 1), places, start + want)
        if start >= 0:
            if len(hints.packing) >= MAX_HINTS:
                hints.packing.clear()
            hints.packing[other] = start + want
            return BitRun(other, start, want)
        if want > 1:
            hints.no_run_exceeds(tx, other, want - 1)
    return None


def _places(content: memoryview, bits: int, want: int, phase: int, chunk: int) -> int:
    """Return the starts of runs of ``want`` free bits in partly used chunks, else in any chunk, as a mask."""
    free = bitmaps.free_mask(content, bits)
    starts = bitmaps.run_starts(free, chunk) & _multiples(bits, chunk, phase)
    # Whole chunks don't overlap, so the sum of their masks is the union.
    partly = free & ~((starts << chunk) - starts)
    found = bitmaps.run_starts(partly, want)
    if found:
        return found
    return starts if starts and want <= chunk else bitmaps.run_starts(free, want)


def _largest(tx: Handle, hints: _Hints, group: int, want: int, most: int) -> list[BitRun]:
    """Find the largest run in the next groups that have free blocks; no run is found only if no block is free.

    If it is shorter than ``want``, up to ``most`` runs of its group are returned that are at least half as long. Runs
    of about one length leave the other groups' longer runs, and the group's shorter ones, to other requests.
    """
    best = longest = 0
    for other in islice(_groups_with(tx, hints, group, 1), GROUPS_EXAMINED):
        if hints.longest.get(other, longest + 1) > longest:
            length = _measure(tx, hints, other)
            if length > longest:
                best, longest = other, length
                if length >= want:
                    break
    if not longest:
        return []
    content = _bitmap(tx, best, groups.descriptor(tx, best))
    bits = tx.geometry.blocks_in_group(best)
    if longest >= want or most == 1:
        start = bitmaps.lowest(bitmaps.run_starts(bitmaps.free_mask(content, bits), longest))
        return [BitRun(best, start, min(longest, want))]
    starts, lengths = bitmaps.free_runs(content, bits)
    alike = np.flatnonzero(lengths * 2 >= longest)[:most]
    starts, lengths = starts[alike], lengths[alike]
    before = np.cumsum(lengths) - lengths
    needed = int(np.count_nonzero(before < want))
    lengths = np.minimum(lengths, want - before)
    return [BitRun(best, *run) for run in zip(starts[:needed].tolist(), lengths[:needed].tolist(), strict=True)]


def _measure(tx: Handle, hints: _Hints, group: int) -> int:
    """Return the length of the group's longest free run; 0 if there is none."""
    content = _bitmap(tx, group, groups.descriptor(tx, group))
    bits = tx.geometry.blocks_in_group(group)
    bound = hints.longest.get(group)
    if bound is not None and bitmaps.run_starts(bitmaps.free_mask(content, bits), bound):
        return bound
    _, length = bitmaps.longest_run(content, bits)
    if length:
        hints.no_run_exceeds(tx, group, length)
    return length


def _groups_with_run(tx: Handle, hints: _Hints, group: int, length: int) -> Iterator[int]:
    """Yield the groups of `_groups_with` that may have a free run of ``length`` blocks."""
    longest = hints.longest
    return (other for other in _groups_with(tx, hints, group, length) if longest.get(other, length) >= length)


def _groups_with(tx: Handle, hints: _Hints, group: int, least: int) -> Iterator[int]:
    """Yield the groups with ``least`` free blocks or more whose bitmap can be read, as `_roomy_groups`."""
    found = _roomy_groups(tx, hints, group, least)
    if not tx.pool.bad:
        return found
    return (other for other in found if _readable(tx, groups.descriptor(tx, other)))


def _roomy_groups(tx: Handle, hints: _Hints, group: int, least: int) -> Iterator[int]:
    """Yield the groups with ``least`` free blocks or more.

    ``group`` comes first, then the others in order from the one that was used last in its place, around to the start.
    """
    geometry = tx.geometry
    if groups.descriptor(tx, group).free_blocks_count >= least:
        yield group
    if geometry.groups_count == 1:
        return
    recent = hints.recent.get(group, group)
    # As a rule this one has room, and the arrays are not made.
    if recent != group and groups.descriptor(tx, recent).free_blocks_count >= least:
        yield recent
    index, slot = divmod(recent, geometry.desc_per_block)
    for step in range(geometry.desc_blocks + 1):
        found = groups.counts(tx, (index + step) % geometry.desc_blocks)
        roomy = np.flatnonzero(found.free_blocks >= least)
        # The first block of descriptors comes twice: at first after the slot, at last up to the slot.
        if not step:
            roomy = roomy[roomy > slot]
        elif step == geometry.desc_blocks:
            roomy = roomy[roomy < slot]
        for at in roomy.tolist():
            if found.first + at != group:
                yield found.first + at


@lru_cache(maxsize=64)
def _multiples(bits: int, align: int, phase: int) -> int:
    return bitmaps.multiples(bits, align, phase)


# Bitmaps


def _bitmap(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    """Return the checked block bitmap of a group, for reading; computed if the group's bitmap was never written.

    Blocks over bad memory count as in use.
    """
    content = _stored_bitmap(view, group, desc)
    return _without_bad(view, group, content) if view.pool.bad else content


def _stored_bitmap(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    if desc.bg_flags & EXT4_BG_BLOCK_UNINIT and groups.blocks_uninit(view.geometry, desc):
        return memoryview(_implied_bitmap(view, group, desc))
    return view.verified(desc.block_bitmap, partial(_check_bitmap, view, group, desc))


def _without_bad(view: View, group: int, content: memoryview) -> memoryview:
    geometry = view.geometry
    shift, first = geometry.block_bits, geometry.first_block(group)
    end = first + geometry.blocks_in_group(group)
    copy = memoryview(bytearray(content))
    for low, high in view.pool.bad.within(first << shift, end << shift):
        start = low >> shift
        bitmaps.set_run(copy, start - first, (high - 1 >> shift) + 1 - start)
    return copy


def _readable(view: View, desc: GroupDescriptor) -> bool:
    """Return whether the group's bitmap is not known to lie in bad memory."""
    begin = desc.block_bitmap << view.geometry.block_bits
    return view.pool.bad.first(begin, begin + view.geometry.block_size) is None


def _check_bitmap(view: View, group: int, desc: GroupDescriptor, content: memoryview) -> None:
    """Check a bitmap's checksum, its number of free blocks and the bits of metadata (invariant B2)."""
    geometry = view.geometry
    desc.verify_block_bitmap(content, group, geometry)
    low, bits = geometry.first_block(group), geometry.blocks_in_group(group)
    free = bitmaps.count_free(content, bits)
    if free != desc.free_blocks_count:
        raise Corrupt(CorruptKind.BLOCK_BITMAP, f"group {group}: {free} blocks free, {desc.free_blocks_count} counted")
    for start, count in groups.metadata_runs(view, group):
        if bitmaps.used_run(content, start - low, count) < count:
            raise _metadata_free(group, start)


def _metadata_free(group: int, start: int) -> Corrupt:
    return Corrupt(CorruptKind.BLOCK_BITMAP, f"group {group}: metadata in the blocks from {start} on is marked free")


def _implied_bitmap(view: View, group: int, desc: GroupDescriptor) -> bytearray:
    """Make the bitmap of a group whose blocks were never used: metadata and padding (``ext4_init_block_bitmap``)."""
    geometry = view.geometry
    low, bits = geometry.first_block(group), geometry.blocks_in_group(group)
    content = bytearray(geometry.block_size)
    bitmap = memoryview(content)
    for start, count in groups.metadata_runs(view, group):
        bitmaps.set_run(bitmap, start - low, count)
    free = bitmaps.count_free(bitmap, bits)
    if free != desc.free_blocks_count:
        raise Corrupt(
            CorruptKind.GROUP_DESCRIPTOR_COUNTER,
            f"group {group} was never used: {free} free, the descriptor says {desc.free_blocks_count}",
        )
    bitmaps.set_run(bitmap, bits, 8 * geometry.block_size - bits)
    return content


def _metadata(view: View, group: int) -> list[BlockRun]:
    """Return `metadata_zone.in_group` of a group, from the cache if it is there."""
    known = view.caches[_Hints].metadata
    runs = known.get(group)
    if runs is None:
        if len(known) >= MAX_HINTS:
            known.clear()
        runs = known[group] = metadata_zone.in_group(view, group)
    return runs


def _seal_bitmap(geometry: Geometry, desc: GroupDescriptor, content: memoryview) -> None:
    # The code that registered this seal has edited the descriptor, a copy of the transaction. Its own seal runs later.
    desc.seal_block_bitmap(content, geometry)


# Freeing


def free(tx: Handle, start: int, count: int, *, metadata: bool = False) -> None:
    """Free a run of blocks at the commit (invariant B1).

    The call needs no credits; it reserves those that the commit will need. Where the bitmap is known to lie in bad
    memory, the blocks stay in use: nobody would ever see them free, until e2fsck makes the bitmap anew.

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
    for group, bit, length in _pieces(geometry, start, count):
        desc = groups.descriptor(tx, group)
        if tx.pool.bad and not _readable(tx, desc):
            continue
        if bitmaps.used_run(_bitmap(tx, group, desc), bit, length) < length:
            raise _free_already(group, [(bit, length)])
        for begin, width in _metadata(tx, group):
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
        bitmap = _bitmap(tx, group, groups.descriptor(tx, group))
        if not bitmaps.holds(bitmap, pieces):
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
    hints = tx.caches[_Hints]
    total = 0
    _refuse_overlaps(tx.frees)
    for group, pieces in _by_group(geometry, tx.frees):
        if tx.pool.bad and not _readable(tx, groups.descriptor(tx, group)):
            continue
        mask = bitmaps.mask_of(pieces)
        if int.from_bytes(_bitmap(tx, group, groups.descriptor(tx, group)), "little") & mask != mask:
            raise _free_already(group, pieces)
        desc = groups.edit_descriptor(tx, group)
        bitmaps.invert(tx.edit(desc.block_bitmap, partial(_seal_bitmap, geometry, desc)), mask)
        count = mask.bit_count()
        desc.free_blocks_count += count
        total += count
        hints.no_chunk.discard(group)
        hints.longest.pop(group, None)
        hints.places.pop(group, None)
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
        for group, bit, length in _pieces(geometry, start, count):
            found.setdefault(group, []).append((bit, length))
    return found.items()


def _many_by_group(geometry: Geometry, runs: list[BlockRun]) -> Iterator[tuple[int, bitmaps.Runs]]:
    starts, lengths = _columns(runs)
    size = geometry.blocks_per_group
    numbers, bits = np.divmod(starts - geometry.first_data_block, size)
    pieces = np.stack((bits, lengths), axis=1)
    cut = bits + lengths > size
    if cut.any():
        more = [piece for at in np.flatnonzero(cut).tolist() for piece in _pieces(geometry, *runs[at])]
        rows = np.array(more, np.int64)
        numbers = np.concatenate((numbers[~cut], rows[:, 0]))
        pieces = np.concatenate((pieces[~cut], rows[:, 1:]))
    order = np.argsort(numbers, kind="stable")
    groups_found, begins = np.unique(numbers[order], return_index=True)
    for group, rows in zip(groups_found.tolist(), np.split(pieces[order], begins[1:]), strict=True):
        yield group, rows if len(rows) >= bitmaps.FEW_RUNS else [tuple(row) for row in rows.tolist()]


def _pieces(geometry: Geometry, start: int, count: int) -> Iterator[BitRun]:
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

"""Searches for free blocks: the policy of the allocator, and its hints.

The policy, in this order:

1. Take the goal (a file's next block) if it is free.
2. For a large request, take the first free run that starts on a 2 MiB boundary. For a small one, take the first fit
   among 2 MiB chunks that are partly in use, so that free chunks stay whole for large files.
3. Take the largest run that is found. A request that accepts several runs gets, from the group of the largest run, all
   that are at least half as long.

A search examines a bounded number of groups: descriptors are scanned as arrays, and each pass opens at most
`GROUPS_EXAMINED` bitmaps. A hint only says where to search first (invariant B4 of `blocks`). Nothing is taken here:
`daxfs.structures.blocks` calls `search` and takes what it finds. Source: the policy is daxfs's own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from daxfs.errors import BadMemory, FsError
from daxfs.journal.cache import Cache
from daxfs.runs import BitRun
from daxfs.structures import bitmaps, groupmaps, groups, reserves

if TYPE_CHECKING:
    from daxfs.ext4.superblock import Superblock
    from daxfs.journal.handle import Handle

CHUNK_BYTES = 2 << 20
"""The bytes that a huge page maps; requests of this size start on a multiple of it."""

GROUPS_EXAMINED = 16
"""The most bitmaps that one pass of a search opens."""

Request = tuple[int, int]
"""What is searched: the length of a run, and a number of blocks of which its first bit is a multiple."""

NONE: frozenset[int] = frozenset()
"""No groups."""

MAX_HINTS = 4096
"""The most groups for which hints are cached."""

MAX_PLACES = 8
"""The most kinds of requests for which a group's places are cached, and the most such groups: together 256 KiB."""

PLACES_EXAMINED = 16
"""The most cached places that one search looks at."""


class Hints(Cache):
    """The hints of one mounted pool.

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
    """

    __slots__ = ("longest", "no_chunk", "packing", "places", "recent")

    def __init__(self) -> None:
        self.packing: dict[int, int] = {}
        self.recent: dict[int, int] = {}
        self.no_chunk: set[int] = set()
        self.longest: dict[int, int] = {}
        self.places: dict[int, dict[Request, tuple[int, int]]] = {}

    def drop(self) -> None:
        """Forget which groups have no free chunk or no long run: blocks that were in use may be free again."""
        self.no_chunk.clear()
        self.longest.clear()
        self.places.clear()

    def freed(self, group: int) -> None:
        """Forget what is no longer so, since blocks of the group have become free."""
        self.no_chunk.discard(group)
        self.longest.pop(group, None)
        self.places.pop(group, None)

    def forget(self) -> None:
        """Forget everything: other blocks may be taken from now on, or there are other groups."""
        self.drop()
        self.packing.clear()
        self.recent.clear()

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


def search(tx: Handle, sb: Superblock, goal: int, want: int, most: int, align: int, tree: bool) -> list[BitRun]:
    """Find at most ``most`` free runs of one group, in ascending order, with the arguments of `allocate_runs`.

    Raises:
        FsError: ENOSPC.
    """
    geometry = tx.geometry
    room = sb.free_blocks_count - groups.free_on_storage(tx)
    if not tree:
        room -= reserves.must_stay_free(geometry, sb, privileged=tx.privileged)
    if room < want:
        if room <= 0:
            raise FsError(errno.ENOSPC, "no block is free")
        want = room
    origin = geometry.first_data_block
    if not origin <= goal < geometry.memory_blocks:
        goal = origin
    group, bit = divmod(goal - origin, geometry.blocks_per_group)
    if not groupmaps.allows_search(tx, group):
        return _elsewhere(tx, group, bit, want, align, most)
    content = groupmaps.newest(tx, group)
    if not content[bit >> 3] >> (bit & 7) & 1:
        limit = geometry.blocks_in_group(group) - bit
        if align > 1 or want >= CHUNK_BYTES >> geometry.block_bits:
            least = min(align if align > 1 else CHUNK_BYTES >> geometry.block_bits, limit)
            count = bitmaps.free_run(content, bit, min(max(want, least), limit))
            if count >= least and not goal % align:
                return [BitRun(group, bit, min(count, want))]
        else:
            return [BitRun(group, bit, bitmaps.free_run(content, bit, min(want, limit)))]
    return _elsewhere(tx, group, bit, want, align, most)


def _elsewhere(tx: Handle, group: int, bit: int, want: int, align: int, most: int) -> list[BitRun]:
    """Find at most ``most`` runs of one group, in order, for a request whose goal is not free."""
    hints = tx.caches[Hints]
    chunk = CHUNK_BYTES >> tx.geometry.block_bits
    one = None
    if align > 1:
        one = _aligned(tx, hints, group, bit, want, align)
    elif want >= chunk:
        one = _aligned(tx, hints, group, bit, want, chunk)
    one = one or _packed(tx, hints, group, bit, want)
    found = [one] if one else _largest(tx, hints, group, want, most)
    if not found:
        if groups.gives_blocks(tx, group) and not groupmaps.allows_search(tx, group):
            raise BadMemory(f"group {group}: its block bitmap lies in bad memory, and no other has room")
        raise FsError(errno.ENOSPC, "no block is free")
    if found[0].group != group:
        if len(hints.recent) >= MAX_HINTS:
            hints.recent.clear()
        hints.recent[group] = found[0].group
    return found


def _aligned(tx: Handle, hints: Hints, group: int, bit: int, want: int, unit: int) -> BitRun | None:
    """Find a free run that starts at a multiple of ``unit`` blocks: of ``want`` blocks if there is one, else shorter.

    Every run found has at least one whole unit.
    """
    geometry = tx.geometry
    by_chunk = unit == CHUNK_BYTES >> geometry.block_bits
    passed = hints.no_chunk if by_chunk else NONE
    for other in islice(_groups_with_run(tx, hints, group, unit, passed), GROUPS_EXAMINED):
        content = groupmaps.usable(tx, other, groups.descriptor(tx, other))
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


def _packed(tx: Handle, hints: Hints, group: int, bit: int, want: int) -> BitRun | None:
    """Find one run of ``want`` blocks, if possible without taking blocks of a chunk that is entirely free."""
    geometry = tx.geometry
    chunk = CHUNK_BYTES >> geometry.block_bits
    for other in islice(_groups_with_run(tx, hints, group, want), GROUPS_EXAMINED):
        content = groupmaps.usable(tx, other, groups.descriptor(tx, other))
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


def _largest(tx: Handle, hints: Hints, group: int, want: int, most: int) -> list[BitRun]:
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
    content = groupmaps.usable(tx, best, groups.descriptor(tx, best))
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


def _measure(tx: Handle, hints: Hints, group: int) -> int:
    """Return the length of the group's longest free run; 0 if there is none."""
    content = groupmaps.usable(tx, group, groups.descriptor(tx, group))
    bits = tx.geometry.blocks_in_group(group)
    bound = hints.longest.get(group)
    if bound is not None and bitmaps.run_starts(bitmaps.free_mask(content, bits), bound):
        return bound
    _, length = bitmaps.longest_run(content, bits)
    if length:
        hints.no_run_exceeds(tx, group, length)
    return length


def _groups_with_run(
    tx: Handle, hints: Hints, group: int, length: int, passed: AbstractSet[int] = NONE
) -> Iterator[int]:
    """Yield the groups of `_groups_with` that may have a free run of ``length`` blocks, without those of ``passed``."""
    longest = hints.longest
    for other in _groups_with(tx, hints, group, length):
        if longest.get(other, length) >= length and other not in passed:
            yield other


def _groups_with(tx: Handle, hints: Hints, group: int, least: int) -> Iterator[int]:
    """Yield the groups with ``least`` free blocks or more whose bitmap can be read, as `_roomy_groups`."""
    bad = tx.pool.bad
    for other in _roomy_groups(tx, hints, group, least):
        if not bad or groupmaps.allows_search(tx, other):
            yield other


def _roomy_groups(tx: Handle, hints: Hints, group: int, least: int) -> Iterator[int]:
    """Yield the groups with ``least`` free blocks or more.

    ``group`` comes first, then the others in order from the one that was used last in its place, around to the start.
    """
    geometry = tx.geometry
    if groups.gives_blocks(tx, group) and groups.descriptor(tx, group).free_blocks_count >= least:
        yield group
    if geometry.groups_count == 1:
        return
    recent = hints.recent.get(group, group)
    # As a rule this one has room, and the arrays are not made.
    if recent != group and groups.gives_blocks(tx, recent) and groups.descriptor(tx, recent).free_blocks_count >= least:
        yield recent
    index, slot = divmod(recent, geometry.desc_per_block)
    count = geometry.memory_groups
    for step in range(geometry.desc_blocks + 1):
        found = groups.counts(tx, (index + step) % geometry.desc_blocks)
        roomy = np.flatnonzero(found.free_blocks[: max(count - found.first, 0)] >= least)
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

"""The groups' block bitmaps: read them after their checks, compute those that were never written, seal them.

A bitmap is used only after checks of its checksum, its number of free blocks and the bits of the groups' own metadata
(invariant B2 of `blocks`). One that fails them makes the group's blocks unusable. Bad memory
(`daxfs.pmem.badblocks`) counts as in use for the allocator, and a bitmap may lie in it. The functions change nothing.
Callers: the allocator and its search. Source: fs/ext4/balloc.c.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, GroupDescriptor
from daxfs.journal.cache import Cache
from daxfs.structures import bitmaps, groups, metadata_zone
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.runs import BlockRun

MAX_GROUPS = 4096
"""The most groups for which the places of metadata are cached."""


class _Places(Cache):
    """What is known of the groups.

    Attributes:
        metadata: group -> `metadata_zone.in_group`; the places of metadata change only with the size.
        written: group -> the block of its bitmap, of groups whose bitmap was written before.
    """

    __slots__ = ("metadata", "written")

    def __init__(self) -> None:
        self.metadata: dict[int, list[BlockRun]] = {}
        self.written: dict[int, int] = {}

    def drop(self) -> None:
        """Forget which bitmaps were written: handles that wrote the first content of one may be undone."""
        self.written.clear()


def usable(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    """Return the checked block bitmap of a group, for reading; computed if the group's bitmap was never written.

    Blocks over bad memory, and those that are not to be taken (`groups.set_end`), count as in use.
    """
    return _takeable(view, group, stored(view, group, desc))


def newest(tx: Handle, group: int) -> memoryview:
    """Return the bitmap of a group as `usable` does; the descriptor is bound only if it must be read."""
    written = tx.caches[_Places].written
    number = written.get(group)
    if number is None:
        desc = groups.newest(tx, group)
        content = usable(tx, group, desc)
        if not groups.blocks_uninit(tx.geometry, desc):
            if len(written) >= MAX_GROUPS:
                written.clear()
            written[group] = desc.block_bitmap
        return content
    try:
        content = tx.verified(number, _check_group, tx, group)
    except Corrupt as error:
        groups.give_up_blocks(tx, group, error)
        raise
    return _takeable(tx, group, content)


def first_written(tx: Handle, group: int) -> None:
    """Note that the handle writes the first bitmap of a group: if it is undone, none was written."""
    tx.on_rollback(partial(tx.caches[_Places].written.pop, group, None))


def stored(view: View, group: int, desc: GroupDescriptor) -> memoryview:
    """Return the checked block bitmap of a group, as the format has it: bad memory is free or in use as any other.

    Raises:
        Corrupt: the group's blocks are unusable, now if they were not before.
    """
    groups.refuse_blocks(view, group)
    try:
        if desc.bg_flags & EXT4_BG_BLOCK_UNINIT and groups.blocks_uninit(view.geometry, desc):
            return memoryview(implied(view, group, desc))
        return view.verified(desc.block_bitmap, _check_bitmap, view, group, desc)
    except Corrupt as error:
        groups.give_up_blocks(view, group, error)
        raise


def for_freeing(view: View, group: int) -> memoryview | None:
    """Return the bitmap of a group with blocks over bad memory in use; None if it is damaged or lies in bad memory.

    Then the group's blocks stay in use: nobody would see them free, until e2fsck makes the bitmap anew.
    """
    if not groups.has_blocks(view, group):
        return None
    desc = groups.descriptor(view, group)
    if view.pool.bad and not readable(view, desc):
        return None
    try:
        content = stored(view, group, desc)
    except Corrupt as error:
        note(view, error)
        return None
    return _without_bad(view, group, content) if view.pool.bad else content


def for_taking(view: View, group: int) -> memoryview | None:
    """Return the bitmap of a group as `usable`; None: nothing can be taken from the group."""
    content = for_freeing(view, group) if groups.gives_blocks(view, group) else None
    return None if content is None else _before_end(view, group, content)


def forget(view: View) -> None:
    """Forget where the groups have their metadata: there are more groups, or a group is longer."""
    view.caches[_Places].metadata.clear()


def forget_all(view: View) -> None:
    """Forget all that is known of groups: some are no longer there."""
    forget(view)
    view.caches[_Places].drop()


def _takeable(view: View, group: int, content: memoryview) -> memoryview:
    """Return a bitmap in which what is not to be taken counts as in use."""
    if view.pool.bad:
        content = _without_bad(view, group, content)
    return _before_end(view, group, content)


def _before_end(view: View, group: int, content: memoryview) -> memoryview:
    """Return a bitmap in which blocks past the end of what may be taken count as in use."""
    end = groups.end_of_taking(view)
    if not end:
        return content
    geometry = view.geometry
    bits = geometry.blocks_in_group(group)
    past = min(geometry.first_block(group) + bits - end, bits)
    if past <= 0:
        return content
    copy = memoryview(bytearray(content))
    bitmaps.set_run(copy, bits - past, past)
    return copy


def _without_bad(view: View, group: int, content: memoryview) -> memoryview:
    geometry = view.geometry
    shift, first = geometry.block_bits, geometry.first_block(group)
    end = first + geometry.blocks_in_group(group)
    copy = memoryview(bytearray(content))
    for low, high in view.pool.bad.within(first << shift, end << shift):
        start = low >> shift
        bitmaps.set_run(copy, start - first, (high - 1 >> shift) + 1 - start)
    return copy


def allows_search(view: View, group: int) -> bool:
    """Whether the allocator may look for room in a group: it stays, and its bitmap is good, as far as is known."""
    return groups.gives_blocks(view, group) and (not view.pool.bad or readable(view, groups.descriptor(view, group)))


def readable(view: View, desc: GroupDescriptor) -> bool:
    """Return whether the group's bitmap is not known to lie in bad memory."""
    begin = desc.block_bitmap << view.geometry.block_bits
    return view.pool.bad.first(begin, begin + view.geometry.block_size) is None


def _check_group(view: View, group: int, content: memoryview) -> None:
    _check_bitmap(view, group, groups.descriptor(view, group), content)


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
            raise metadata_free(group, start)


def metadata_free(group: int, start: int) -> Corrupt:
    """Make the error of a bitmap that shows metadata as free."""
    return Corrupt(CorruptKind.BLOCK_BITMAP, f"group {group}: metadata in the blocks from {start} on is marked free")


def implied(view: View, group: int, desc: GroupDescriptor) -> bytearray:
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


def seal(geometry: Geometry, desc: GroupDescriptor, content: memoryview) -> None:
    """Set the checksum of a bitmap in its descriptor; a seal of `Handle.edit`.

    The code that registers it has edited the descriptor, a copy of the transaction, whose own seal runs later.
    """
    desc.seal_block_bitmap(content, geometry)


def metadata_in(view: View, group: int) -> list[BlockRun]:
    """Return `metadata_zone.in_group` of a group, from the cache if it is there."""
    known = view.caches[_Places].metadata
    runs = known.get(group)
    if runs is None:
        if len(known) >= MAX_GROUPS:
            known.clear()
        runs = known[group] = metadata_zone.in_group(view, group)
    return runs

"""Growth: a longer last group, new groups, their descriptors, and the backups of all that.

`extend` and `use_meta_bg` are one handle's work each, in which the file system changes whole or not at all: the
superblock, the geometry in DRAM and the groups change together, and are undone together. So a power cut leaves the old
size or the new one. The new groups are laid out as the kernel does it online, except that up to `BATCH` groups are
added at once also where no flexible group holds them together. What lies in the new blocks does not matter, except in
the inode tables of a format without checksums of descriptors: the caller zeroes those (`tables`).

Nothing here decides how far a file system may grow, maps memory, or commits. Caller: `daxfs.fs.moving.resizing`.
Source: fs/ext4/resize.c (``ext4_resize_fs``, ``ext4_alloc_group_tables``, ``add_new_gdb``, ``reserve_backup_gdb``,
``ext4_convert_meta_bg``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.features import Compat, Incompat, RoCompat
from daxfs.ext4.group import EXT4_BG_BLOCK_UNINIT, EXT4_BG_INODE_UNINIT
from daxfs.ext4.superblock import Superblock
from daxfs.runs import BlockRun
from daxfs.structures import bitmaps, blocks, groupmaps, groups, inode_bitmaps, inodes, metadata_zone
from daxfs.structures.blocksearch import Hints

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

BATCH = 16
"""The most groups that one handle adds; a flexible group has as many as a rule."""
RESIZE_INO = 7
_DOUBLE = slice(4 * 13, 4 * 14)
"""The only pointer of the resize inode, in ``i_block``: to its double indirect block."""
MOST_RUNS = 64
"""The most pieces in which the bitmaps of storage's groups may lie."""
SMALL_CREDITS = 8
"""The blocks that a handle changes beside bitmaps and reserved descriptor blocks."""


class Tables(NamedTuple):
    """The places of a new group's bitmaps and inode table."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int


def fitting(geometry: Geometry, blocks_count: int) -> int:
    """Return the size nearest below ``blocks_count`` that growth can make: a last group has room for its metadata.

    Raises:
        FsError: EFBIG: block or inode numbers would not fit into their fields.
    """
    first, per_group = geometry.first_data_block, geometry.blocks_per_group
    if blocks_count > 1 << 48:
        raise FsError(errno.EFBIG, "no ext4 has more than 2^48 blocks")
    if blocks_count >= 1 << 32 and not geometry.is_64bit:
        raise FsError(errno.EFBIG, "more than 2^32 blocks need the feature 64bit: unmount it and run: resize2fs -b")
    last = (blocks_count - 1 - first) // per_group
    if last >= geometry.groups_count:
        start = first + last * per_group
        least = geometry.base_blocks(last) + 2 + geometry.inode_blocks_per_group + 1
        if blocks_count <= start + least:
            blocks_count, last = start, last - 1
    if (last + 1) * geometry.inodes_per_group > 0xFFFFFFFF:
        raise FsError(errno.EFBIG, "the inodes of so many groups can't be numbered")
    return blocks_count


def batch_end(geometry: Geometry, blocks_count: int) -> int:
    """Return the size in blocks after the next handle, on the way to ``blocks_count``.

    Before new groups, the last one is filled up. A batch ends where a flexible group does, or a block of descriptors,
    so that at most one of these begins with it.
    """
    first, per_group = geometry.first_data_block, geometry.blocks_per_group
    full = geometry.first_block(geometry.groups_count)
    if geometry.blocks_count < full:
        return min(full, blocks_count)
    unit = min(BATCH, geometry.desc_per_block)
    return min(first + (geometry.groups_count // unit + 1) * unit * per_group, blocks_count)


def lacks_descriptors(geometry: Geometry) -> bool:
    """Return whether the next group needs a block of descriptors for which no block is reserved (`use_meta_bg`)."""
    return (
        not geometry.has_meta_bg
        and geometry.groups_count == geometry.desc_blocks * geometry.desc_per_block
        and not geometry.reserved_gdt_blocks
    )


def credits_of(geometry: Geometry, blocks_count: int) -> int:
    """Return the blocks that one `extend` on the way to ``blocks_count`` changes at most, beyond the superblock."""
    end = groups_in(geometry, blocks_count)
    reserves = geometry.backups(geometry.groups_count) != geometry.backups(end)
    count = min(end - geometry.groups_count, BATCH)
    return SMALL_CREDITS + 2 * count + (geometry.reserved_gdt_blocks if reserves else 0)


def extend(tx: Handle, blocks_count: int) -> None:
    """Make the file system larger, up to ``blocks_count``, a result of `batch_end`: `credits_of` credits.

    Raises:
        Corrupt: the last group or the resize inode is damaged; nothing has changed.
    """
    geometry = tx.geometry
    if geometry.blocks_count < geometry.first_block(geometry.groups_count):
        _lengthen_last_group(tx, blocks_count)
    else:
        _add_groups(tx, blocks_count, tables(geometry, blocks_count))


def credits_on_storage(geometry: Geometry, blocks_count: int) -> int:
    """Return the blocks that one `extend_on_storage` to ``blocks_count`` changes at most, beyond the superblock."""
    end = groups_in(geometry, blocks_count)
    batches = end // geometry.desc_per_block - geometry.groups_count // geometry.desc_per_block + 1
    reserves = geometry.backups(geometry.groups_count) != geometry.backups(end)
    return SMALL_CREDITS + 2 * (MOST_RUNS + batches) + (geometry.reserved_gdt_blocks if reserves else 0)


def room_for_descriptors(geometry: Geometry) -> int:
    """Return the size in blocks up to which descriptors have room in the memory."""
    blocks = geometry.desc_blocks if geometry.has_meta_bg else geometry.desc_blocks + geometry.reserved_gdt_blocks
    return geometry.first_data_block + blocks * geometry.desc_per_block * geometry.blocks_per_group


def extend_on_storage(tx: Handle, blocks_count: int) -> None:
    """Make the file system larger by whole groups of storage: `credits_on_storage` credits.

    The bitmaps of the new groups lie in memory. Their inode tables lie in the groups themselves, where nothing is ever
    stored: the descriptors say that they were never used (`keeps_unused_tables`), and daxfs takes no inode there.

    Args:
        tx: a privileged handle.
        blocks_count: up to `room_for_descriptors`; the present size and this one are whole groups.

    Raises:
        FsError: ENOSPC: the memory has no room for the bitmaps, or only in too many pieces; nothing has changed.
        Corrupt: as `extend`.
    """
    geometry = tx.geometry
    end = groups_in(geometry, blocks_count)
    numbers = _blocks_in_memory(tx, 2 * (end - geometry.groups_count))
    while (first := geometry.groups_count) < end:
        stop = min(first - first % geometry.desc_per_block + geometry.desc_per_block, end)
        places = [
            Tables(numbers.pop(), numbers.pop(), geometry.first_block(group) + geometry.base_blocks(group))
            for group in range(first, stop)
        ]
        _add_groups(tx, geometry.first_block(stop), places)


def _blocks_in_memory(tx: Handle, count: int) -> list[int]:
    """Take blocks for metadata, few runs of them."""
    found: list[int] = []
    for _ in range(MOST_RUNS):
        if len(found) < count:
            start, length = blocks.allocate(tx, 0, count - len(found))
            found += range(start, start + length)
    if len(found) < count:
        raise FsError(errno.ENOSPC, f"the memory has {count} blocks for bitmaps only in more than {MOST_RUNS} pieces")
    return found


def use_meta_bg(tx: Handle) -> None:
    """Put the descriptors of new groups into these groups (meta_bg) from now on: `SMALL_CREDITS` credits.

    The blocks that were reserved for descriptors are all in use, or there were none. The resize inode ends.
    """
    geometry = tx.geometry
    sb = tx.edit_superblock()
    if geometry.compat & Compat.resize_inode:
        inode, double = _resize_inode(tx)
        blocks.free(tx, double, 1, metadata=True)
        inode.block_area[_DOUBLE] = bytes(4)
        inodes.add_blocks(inode, -1, geometry)
    sb.s_feature_compat &= ~int(Compat.resize_inode)
    sb.s_feature_incompat |= Incompat.meta_bg
    sb.s_first_meta_bg = geometry.desc_blocks
    follow(tx, sb)


def tables(geometry: Geometry, blocks_count: int) -> list[Tables]:
    """Return where `extend` will put the bitmaps and tables of the groups that it adds; it depends on nothing else."""
    return _placed(geometry, geometry.groups_count, blocks_count)


def keeps_unused_tables(geometry: Geometry) -> bool:
    """Return whether inode tables need not be zeroed, since the descriptors say that they were never used."""
    return geometry.metadata_csum or geometry.gdt_csum


# One more piece of the last group


def _lengthen_last_group(tx: Handle, blocks_count: int) -> None:
    geometry = tx.geometry
    group = geometry.groups_count - 1
    desc = groups.edit_descriptor(tx, group)
    before, added = geometry.blocks_in_group(group), blocks_count - geometry.blocks_count
    uninit = groups.blocks_uninit(geometry, desc)
    groupmaps.stored(tx, group, desc)  # checked while it has its old length
    sb = tx.edit_superblock()
    _count(sb, geometry, added, 0, added, 0)
    follow(tx, sb)
    if not uninit:
        bitmaps.clear_run(tx.edit(desc.block_bitmap, groupmaps.seal, geometry, desc), before, added)
    desc.free_blocks_count += added
    tx.caches[Hints].freed(group)


# New groups


def _add_groups(tx: Handle, blocks_count: int, places: list[Tables]) -> None:
    geometry = tx.geometry
    first, size = geometry.groups_count, geometry.blocks_count
    end = groups_in(geometry, blocks_count)
    used = _used(geometry, first, places)
    sb = tx.edit_superblock()
    if first % geometry.desc_per_block:
        groups.edit_descriptor(tx, first - 1)  # the block of the new ones, checked while it has its old length
    elif not geometry.has_meta_bg:
        _take_reserved_block(tx, sb)
    taken = geometry.reserved_gdt_blocks - sb.s_reserved_gdt_blocks
    for group in range(first, end):
        if geometry.has_super(group) and sb.s_reserved_gdt_blocks:
            _reserve_backups(tx, sb, group, geometry.desc_blocks + taken)
    overhead = sum(geometry.base_blocks(group) + 2 + geometry.inode_blocks_per_group for group in range(first, end))
    inside = sum(length for runs in used for _, length in runs) + sum(map(geometry.base_blocks, range(first, end)))
    _count(sb, geometry, blocks_count - size, end - first, blocks_count - size - inside, overhead)
    follow(tx, sb)
    if not first % geometry.desc_per_block:
        tx.create(geometry.descriptor_position(first)[0])
    for group, place in enumerate(places, first):
        _make_group(tx, group, place, used[group - first])


def _make_group(tx: Handle, group: int, place: Tables, used: list[BlockRun]) -> None:
    """Make the descriptor of a group, and the bitmaps that can't be left out."""
    geometry = tx.geometry
    count = geometry.blocks_in_group(group)
    base = geometry.base_blocks(group)
    desc = groups.make_descriptor(tx, group)
    desc.block_bitmap, desc.inode_bitmap, desc.inode_table = place
    desc.free_blocks_count = count - base - sum(length for _, length in used)
    desc.free_inodes_count = geometry.inodes_per_group
    last = group == geometry.groups_count - 1
    checked = keeps_unused_tables(geometry)
    # The kernel computes an unwritten bitmap from the group's own tables alone (``ext4_init_block_bitmap``).
    own = sum(length for start, length in _runs_of(geometry, place) if geometry.group_of_block(start) == group)
    if checked and not last and own == sum(length for _, length in used):
        desc.bg_flags |= EXT4_BG_BLOCK_UNINIT
    else:
        content = tx.create(place.block_bitmap, groupmaps.seal, geometry, desc)
        bitmaps.set_run(content, 0, base)
        bitmaps.set_run(content, count, 8 * geometry.block_size - count)
        for start, length in used:
            bitmaps.set_run(content, start - geometry.first_block(group), length)
    if checked:
        desc.bg_flags |= EXT4_BG_INODE_UNINIT
        desc.itable_unused = geometry.inodes_per_group
    else:
        inode_bitmaps.make(tx, desc)


def _placed(geometry: Geometry, first: int, blocks_count: int) -> list[Tables]:
    """Place the tables of groups: those of a flexible group, or of its part that is new, lie together at its start."""
    end = groups_in(geometry, blocks_count)
    found: list[Tables] = []
    while first < end:
        stop = min(first - first % geometry.flex_bg_size + geometry.flex_bg_size, end)
        room = _Room(geometry, first, stop, blocks_count)
        count = stop - first
        block_bitmaps = [room.take(1) for _ in range(count)]
        inode_bitmaps = [room.take(1) for _ in range(count)]
        inode_tables = [room.take(geometry.inode_blocks_per_group) for _ in range(count)]
        found += map(Tables, block_bitmaps, inode_bitmaps, inode_tables)
        first = stop
    return found


class _Room:
    """The blocks of new groups from the first on, without those of superblocks and descriptors (``base_blocks``)."""

    def __init__(self, geometry: Geometry, first: int, stop: int, blocks_count: int) -> None:
        self._runs: list[BlockRun] = []
        for group in range(first, stop):
            begin = geometry.first_block(group)
            start = begin + geometry.base_blocks(group)
            end = min(begin + geometry.blocks_per_group, blocks_count)
            if self._runs and start == sum(self._runs[-1]):
                start = self._runs.pop().start
            self._runs.append(BlockRun(start, end - start))

    def take(self, count: int) -> int:
        """Take ``count`` blocks that lie together, after those that were taken before."""
        while self._runs:
            start, length = self._runs[0]
            if length >= count:
                self._runs[0] = BlockRun(start + count, length - count)
                return start
            del self._runs[0]
        raise FsError(errno.ENOSPC, "a new group has no room for its own inode table")


def _used(geometry: Geometry, first: int, places: list[Tables]) -> list[list[BlockRun]]:
    """Return for each new group the runs of its blocks that hold bitmaps and tables, its own or its neighbours'.

    Those in groups before the first new one were taken there.
    """
    found: list[list[BlockRun]] = [[] for _ in places]
    for place in places:
        for start, count in _runs_of(geometry, place):
            while count:
                group, bit = divmod(start - geometry.first_data_block, geometry.blocks_per_group)
                length = min(count, geometry.blocks_per_group - bit)
                if group >= first:
                    found[group - first].append(BlockRun(start, length))
                start, count = start + length, count - length
    return found


def _runs_of(geometry: Geometry, place: Tables) -> tuple[tuple[int, int], ...]:
    """Return the first block and the length of a group's bitmaps and inode table."""
    return (place[0], 1), (place[1], 1), (place[2], geometry.inode_blocks_per_group)


def groups_in(geometry: Geometry, blocks_count: int) -> int:
    """Return how many groups a file system of ``blocks_count`` blocks has."""
    return -(-(blocks_count - geometry.first_data_block) // geometry.blocks_per_group)


# The superblock, and what follows it in DRAM


def _count(sb: Superblock, geometry: Geometry, added: int, new_groups: int, free: int, overhead: int) -> None:
    """Add blocks and groups to the superblock's counters; the part of reserved blocks stays what it is."""
    sb.reserved_blocks_count += sb.reserved_blocks_count * added // geometry.blocks_count
    sb.blocks_count += added
    sb.free_blocks_count += free
    sb.s_inodes_count += new_groups * geometry.inodes_per_group
    sb.s_free_inodes_count += new_groups * geometry.inodes_per_group
    if sb.s_overhead_clusters:
        sb.s_overhead_clusters += overhead


def follow(tx: Handle, sb: Superblock) -> None:
    """Have the geometry follow the superblock, and what was derived from it; undone with the handle."""
    tx.on_rollback(partial(_forget, tx, tx.geometry.follow(sb)))
    _forget(tx)


def _forget(tx: Handle, *undo: Callable[[], None]) -> None:
    for function in undo:
        function()
    tx.follow_size()
    tx.caches[groups.OnStorage].drop()
    metadata_zone.forget(tx)
    groupmaps.forget(tx)


# Blocks that are reserved for descriptors: the resize inode


def _resize_inode(tx: Handle) -> tuple[Inode, int]:
    """Return the resize inode, for changing, and its double indirect block."""
    inode = inodes.edit(tx, RESIZE_INO)
    double = int.from_bytes(inode.block_area[_DOUBLE], "little")
    if not tx.geometry.first_data_block < double < tx.geometry.blocks_count:
        raise _damaged(f"its double indirect block is {double}")
    return inode, double


def _reserved_block(tx: Handle, double: int, index: int) -> int:
    """Return the block that is reserved for descriptor block ``index``; it is an indirect block of the resize inode."""
    geometry = tx.geometry
    expected = geometry.first_data_block + 1 + index
    found = tx.block(double).cast("I")[index % (geometry.block_size // 4)]
    if found != expected:
        raise _damaged(f"{found} is reserved for descriptors, expected {expected}")
    return expected


def _check_backups(tx: Handle, block: int, backups: list[int]) -> None:
    """Check that an indirect block names the same block of each group that has backups."""
    per_group = tx.geometry.blocks_per_group
    found = tx.block(block).cast("I")[: len(backups)].tolist()
    if found != [group * per_group + block for group in backups]:
        raise _damaged(f"block {block} does not name the blocks that are reserved for its backups")


def _take_reserved_block(tx: Handle, sb: Superblock) -> None:
    """Take the next descriptor block, and its backups, from the resize inode; in the bitmaps they stay in use."""
    geometry = tx.geometry
    inode, double = _resize_inode(tx)
    block = _reserved_block(tx, double, geometry.desc_blocks)
    backups = geometry.backups(geometry.groups_count)
    _check_backups(tx, block, backups)
    tx.edit(double).cast("I")[geometry.desc_blocks % (geometry.block_size // 4)] = 0
    inodes.add_blocks(inode, -1 - len(backups), geometry)
    sb.s_reserved_gdt_blocks -= 1


def _reserve_backups(tx: Handle, sb: Superblock, group: int, desc_blocks: int) -> None:
    """Reserve in a new group what is reserved in each group with backups."""
    geometry = tx.geometry
    inode, double = _resize_inode(tx)
    backups = geometry.backups(group)
    if len(backups) >= geometry.block_size // 4:
        raise FsError(errno.EFBIG, "the resize inode can't name the backups of so many groups")
    for index in range(desc_blocks, desc_blocks + sb.s_reserved_gdt_blocks):
        block = _reserved_block(tx, double, index)
        _check_backups(tx, block, backups)
        tx.edit(block).cast("I")[len(backups)] = group * geometry.blocks_per_group + block
    inodes.add_blocks(inode, sb.s_reserved_gdt_blocks, geometry)


def renew_resize_inode(tx: Handle, before: range) -> None:
    """Have the resize inode name what is reserved at the present size: two credits, and one for each reserved block.

    Args:
        tx: the handle, which has made the file system smaller.
        before: the indices of the descriptor blocks for which blocks were reserved until now.
    """
    geometry = tx.geometry
    inode, double = _resize_inode(tx)
    reserved = range(geometry.desc_blocks, geometry.desc_blocks + geometry.reserved_gdt_blocks)
    backups = geometry.backups(geometry.groups_count)
    entries = geometry.block_size // 4
    for index in before:
        _reserved_block(tx, double, index)
    pointers = tx.edit(double).cast("I")
    for index in before:
        pointers[index % entries] = 0
    for index in reserved:
        block = pointers[index % entries] = geometry.first_data_block + 1 + index
        named = [group * geometry.blocks_per_group + block for group in backups]
        if index not in before:
            tx.create(block)
        elif tx.block(block).cast("I")[: len(named) + 1].tolist() == [*named, 0]:
            continue
        names = tx.edit(block)
        names[:] = bytes(geometry.block_size)
        for at, number in enumerate(named):
            names.cast("I")[at] = number
    inode.blocks = 0
    inodes.add_blocks(inode, 1 + len(reserved) * (1 + len(backups)), geometry)


def _damaged(what: str) -> Corrupt:
    return Corrupt(CorruptKind.RESIZE_INODE, f"{what}; run: daxfs check -f")


# Backups


def backup_copies(view: View, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of all backups, with what is to be stored there, after growth from ``first`` groups on.

    These are all backups of the superblock, and those of the descriptor blocks that have descriptors of new groups.
    None are kept on the storage of a tiered pool. The content is that of the pool: all is committed, and so sealed.
    """
    geometry = view.geometry
    for group in geometry.backups(geometry.memory_groups):
        yield geometry.first_block(group), _superblock_for(view, group)
    for index in range(max(first - 1, 0) // geometry.desc_per_block, geometry.desc_blocks):
        source, _ = geometry.descriptor_position(index * geometry.desc_per_block)
        content = bytes(view.block(source))
        for number in _descriptor_backups(geometry, index):
            yield number, content


def _superblock_for(view: View, group: int) -> bytes:
    """Make the superblock's copy in a group: a clean one, since a backup is used without its log."""
    content = bytearray(view.block_size)
    content[: Superblock.SIZE] = view.superblock().buffer
    sb = Superblock(memoryview(content)[: Superblock.SIZE])
    sb.s_block_group_nr = group & 0xFFFF  # as the kernel and e2fsprogs do; from 9.5 TiB on it can't tell the group
    sb.s_feature_incompat &= ~int(Incompat.needs_recovery)
    sb.s_feature_ro_compat &= ~int(RoCompat.orphan_present)
    sb.seal()
    return bytes(content)


def _descriptor_backups(geometry: Geometry, index: int) -> Iterator[int]:
    if not geometry.has_meta_bg or index < geometry.first_meta_bg:
        end = geometry.first_meta_bg * geometry.desc_per_block  # groups of meta_bg have no room for these
        for group in geometry.backups(min(end, geometry.memory_groups)):
            yield geometry.first_block(group) + 1 + index
        return
    first = index * geometry.desc_per_block
    for group in (first + 1, first + geometry.desc_per_block - 1):
        if group < geometry.groups_count:
            yield geometry.first_block(group) + geometry.has_super(group)

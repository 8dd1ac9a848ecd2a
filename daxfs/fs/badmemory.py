"""Bad memory below the data of files (`daxfs.pmem.badblocks`): read up to it, write over it.

Nothing here runs while the pool's list is empty. Only the code that reads and writes data piece by piece asks: a file
with a bad block has no map in DRAM (`data.load_map`), which is what makes a read or an overwrite one copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import BadMemory
from daxfs.fs.change import Change
from daxfs.structures import badblocks, blocks, inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume
    from daxfs.structures.mapping import Extent

CREDITS_REPLACE = 128
"""Blocks that replacing one run may change: those of a cut and of a piece of a write."""
MOST_BLOCKS = 64
"""The most bad blocks that one step replaces."""
MOST_EXAMINED = 256
"""The most bad blocks that one call of `retire` examines; to list all of them takes some tens of milliseconds."""


def overlaps(volume: Volume, run: Extent) -> bool:
    """Return whether a run of blocks has bad memory."""
    bits = volume.block_bits
    return volume.pool.bad.first(run.pblk << bits, run.pblk + run.length << bits) is not None


def good_end(volume: Volume, begin: int, end: int, delta: int) -> int:
    """Return where the good memory ends that begins with byte ``begin`` of a file, ``end`` at most."""
    found = volume.pool.bad.first(begin + delta, end + delta)
    return end if found is None else max(found[0] - delta, begin)


def error(volume: Volume, node: Node, offset: int) -> BadMemory:
    """The error of a request that needs the bad memory at byte ``offset`` of a file."""
    found = BadMemory(f"{volume.pool.path}: inode {node.ino} has bad memory at offset {offset}")
    found.of_data = True
    return found


def make_writable(volume: Volume, node: Node, offset: int, data: memoryview, caller: Caller) -> int:
    """Prepare the next piece of a write; return how many bytes of ``data`` can be written at ``offset``, 1 at least.

    Bad blocks that the write replaces whole are rewritten through the device or the pool's file, which clears poison
    where the platform can. If it can't, the file gets new blocks in their place.

    Raises:
        BadMemory: the write begins in a bad block and does not replace all of it.
        FsError: ENOSPC, there is no block to replace a bad one.
    """
    end = offset + len(data)
    first = _first_bad(volume, node, offset, end)
    if first is None:
        return len(data)
    bits, size = volume.block_bits, volume.block_size
    begin = first.lblk << bits
    if begin > offset:
        return begin - offset
    if not first.unwritten:
        # What lies past EOF needs no content.
        whole = end if end >= node.size else end & -size
        if offset & size - 1 or whole <= begin:
            raise error(volume, node, offset)
        first = first._replace(length=min(first.length, whole - begin + size - 1 >> bits))
    stop = min(begin + (first.length << bits), end)
    content = bytearray(first.length << bits)
    content[offset - begin : stop - begin] = data[: stop - offset]
    if not volume.pool.rewrite(first.pblk << bits, content):
        _replace(volume, node, first, content, caller)
    else:
        volume.forget_content()
    return stop - offset


def _first_bad(volume: Volume, node: Node, offset: int, end: int) -> Extent | None:
    """Return the first blocks of the range that are bad, one run of up to `MOST_BLOCKS`."""
    bits = volume.block_bits
    inode = inodes.read(volume.view, node.ino)
    for run in mapping.walk(volume.view, inode, offset >> bits, end - 1 >> bits):
        for low, high in volume.pool.bad.within(run.pblk << bits, run.pblk + run.length << bits):
            skipped = (low >> bits) - run.pblk
            length = min((high - 1 >> bits) + 1 - (low >> bits), MOST_BLOCKS)
            return run._replace(lblk=run.lblk + skipped, pblk=run.pblk + skipped, length=length)
    return None


def _replace(volume: Volume, node: Node, run: Extent, content: bytearray, caller: Caller) -> None:
    """Give the file new blocks with ``content`` in the place of a bad run; the old ones become free, never used again.

    They are free for the format and in use for the allocator, until `retire` puts them on the bad-blocks inode's list.
    """
    bits = volume.block_bits
    with volume.handle(CREDITS_REPLACE, caller) as tx, Change(volume, tx, node.ino) as change:
        if not change.unmap(run.lblk, run.lblk + run.length - 1):
            raise error(volume, node, run.lblk << bits)
        done = 0
        while done < run.length:
            made = mapping.allocate(tx, change.inode, run.lblk + done, run.length - done)
            at = done << bits
            volume.pool.write(made.pblk << bits, memoryview(content)[at : at + (made.length << bits)])
            change.maps(made)
            done += made.length
    volume.forget_content()


def retire(volume: Volume) -> None:
    """Put free blocks over bad memory on the list of the bad-blocks inode: other programs leave them alone too then.

    Each call examines up to `MOST_EXAMINED` bad blocks, from where the last one ended. It is called periodically, since
    blocks become free at any time, and at both ends of a mount.
    """
    for examined, number in enumerate(_bad_blocks(volume, volume.next_bad_block)):
        if examined == MOST_EXAMINED:
            volume.next_bad_block = number
            return
        if blocks.is_free(volume.view, number):
            with volume.handle(badblocks.CREDITS) as tx:
                badblocks.add(tx, number)
    volume.next_bad_block = 0


def _bad_blocks(volume: Volume, first: int) -> Iterator[int]:
    """Yield the blocks of the file system that lie in bad memory, from ``first`` on."""
    bits, geometry = volume.block_bits, volume.geometry
    first = max(first, geometry.first_data_block) << bits
    for begin, end in volume.pool.bad.within(first, geometry.blocks_count << bits):
        yield from range(begin >> bits, (end - 1 >> bits) + 1)

"""Atomic writes: after a power cut a file holds all of a write or none of it, and readers never see a part.

The new content goes to new blocks, with what the write leaves of the first and the last block, and is flushed. The same
handle gives the file these blocks in the place of the old ones. So the commit that makes the new map durable makes the
write durable, and without it the old blocks still hold the old content (docs/ATOMIC.md). A refused write changes
nothing.

Source: pwritev2(2), RWF_ATOMIC, for the errors.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import badmemory, data
from daxfs.fs.change import Change
from daxfs.fs.notifiers import CREDITS_QUARANTINE
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.data import Buffer, OpenFile
    from daxfs.fs.volume import Volume

MOST_BYTES = 16 << 20
"""The longest atomic write."""
CREDITS = 64 + CREDITS_QUARANTINE
"""Blocks that replacing one run by one may change: as a cut and a piece of a write."""
ENTRIES_PER_NODE = 80
"""Entries in a node of a map, at least: the node has 1 KiB, and a split leaves it half full."""
MOST_GROUPS = 64
"""The most groups that the new blocks may come from."""


def write(volume: Volume, file: OpenFile, offset: int, content: Buffer, kill: bool | None = None) -> int:
    """Write all of ``content`` at ``offset`` (at EOF with O_APPEND), or nothing; return its length.

    Args:
        volume: of the file.
        file: open for writing.
        offset: in bytes.
        content: at most `MOST_BYTES`.
        kill: whether the write drops set-id bits (`data.takes_set_id`).

    Raises:
        FsError: EINVAL: longer than `MOST_BYTES`. EFBIG. ENOSPC: there is no room for a second copy of the blocks, or
            the old or the new ones lie in more pieces than one transaction holds. EBADF, EPERM, EROFS as for a write.
    """
    node = file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    if offset < 0 or len(content) > MOST_BYTES:
        raise FsError(errno.EINVAL)
    if file.append:
        offset = node.size
    end = offset + len(content)
    if end > volume.max_size(node.ino):
        raise FsError(errno.EFBIG)
    if not len(content):
        return 0
    volume.writable()
    if not node.plain:
        data.refuse_overwrite(volume, file, offset)
        data.drop_privileges(volume, node, file.caller, kill)
    if end > node.size:
        volume.notifier.end_preallocation(node.ino)
    if end > volume.large_file_from:
        volume.allow_large_files()
    try:
        volume.retrying(_replace, file, offset, memoryview(content))
    finally:
        node.moved(offset & -volume.block_size, end + -end % volume.block_size)
    return len(content)


def _replace(volume: Volume, file: OpenFile, offset: int, content: memoryview) -> None:
    """Give the file new blocks with the new content, in one handle."""
    node, bits = file.node, volume.block_bits
    end = offset + len(content)
    first, last = offset >> bits, end - 1 >> bits
    begin, stop = first << bits, last + 1 << bits
    head = _kept(volume, file, begin, offset)
    tail = _kept(volume, file, end, stop)
    count = last - first + 1
    with (
        volume.handle(_credits(volume, node.ino, first, last), file.caller) as tx,
        Change(volume, tx, node.ino) as change,
    ):
        inode = change.inode
        if offset > node.size:
            data.zero_tail(volume, tx, inode, node.size)
        change.unmap(first, last)
        store = volume.pool.write
        done = 0
        groups: set[int] = set()
        while done < count:
            lblk, want = first + done, count - done
            run = mapping.allocate(tx, inode, lblk, want, align=volume.alignment(lblk, want))
            groups.add(volume.geometry.group_of_block(run.pblk))
            if len(groups) > MOST_GROUPS:
                raise FsError(errno.ENOSPC, f"{volume.pool.path}: free blocks lie too scattered for an atomic write")
            change.maps(run)
            low, high = lblk << bits, lblk + run.length << bits
            delta = (run.pblk - lblk) << bits
            if low < offset:
                store(low + delta, head)
            store(max(low, offset) + delta, content[max(low - offset, 0) : high - offset])
            if high > end:
                store(end + delta, tail)
            done += run.length
        inode.size = max(inode.size, end)


def _kept(volume: Volume, file: OpenFile, begin: int, end: int) -> bytes:
    """Return the bytes [begin, end) of a block as they stay: zeros in holes, unwritten blocks and past EOF."""
    inside = max(min(end, file.node.size), begin)
    kept = data.gather(volume, file.node, begin, inside - begin) if inside > begin else b""
    if len(kept) < inside - begin:
        raise badmemory.error(volume, file.node, begin + len(kept))
    return kept + bytes(end - inside)


def _credits(volume: Volume, ino: int, first: int, last: int) -> int:
    """Return how many blocks the handle may change: nodes of the map before and after, bitmaps and descriptors."""
    inode = inodes.read(volume.view, ino)
    nodes = mapping.nodes_within(volume.view, inode, first, last) + (last - first) // ENTRIES_PER_NODE
    return CREDITS + 2 * nodes + 2 * min(MOST_GROUPS, volume.geometry.groups_count)

"""Appends that are made durable one by one: blocks past EOF, so that such an append changes no block but the inode's.

A program that writes a log appends a record and calls fsync(2), again and again. If each append allocates its block, it
changes the block bitmap, the group's descriptor and the superblock, and each commit logs all of them. So a file that is
used like this gets a *window*: unwritten blocks after EOF, allocated together. An append inside the window stores its
data there. Then the border between the written extent and the unwritten one moves, together with EOF.

Nobody is promised a window. Whatever else extends, cuts or shifts the file ends it (`end_preallocation`), as do the
last close, a lease, a full pool and an unmount: the blocks are freed. As long as there is one, the disk's orphan list
names the inode, so after a power cut recovery cuts the file to its size; the kernel's and e2fsck's do, too.

`data` calls `append` and `end_preallocation`; the layers above end windows. A file has a window or grants, never both.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError, MissingMemory
from daxfs.fs.change import Change
from daxfs.fs.filemap import UNWRITTEN
from daxfs.structures import mapping
from daxfs.structures.mapping import Extent

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Caller
    from daxfs.fs.volume import Volume

    Buffer = bytes | bytearray | memoryview

ENOUGH = 2
"""How often fsync(2) has found the file longer, before it gets a window."""
FULL = -1000
"""What counts for this after the pool was found full: an append without a window needs less."""
NEVER = -1 << 62
WINDOW_BYTES = 128 << 10
"""Bytes of a window: beginning one costs as much as an append without, and is shared by so many appends."""
CREDITS_APPEND = 32
"""Blocks that an append may change: the inode's, the leaf of its last extent, and what moves in a deep tree."""
CREDITS_BEGIN = 40
"""Blocks that a new window may change: those of an allocation, and the list of orphans."""
CREDITS_END = 96
"""Blocks that its end may change: those of a cut (`truncating.CREDITS_CUT`), and the list of orphans."""


def append(volume: Volume, node: Node, offset: int, content: Buffer, caller: Caller) -> int:
    """Append whole blocks at EOF, which is at ``offset``, inside the file's window; return their length in bytes.

    0: nothing was stored, because the file has no window and gets none.
    """
    end = offset + len(content)
    pool = volume.pool
    if (offset | end) & volume.block_size - 1 or node.grants is not None or pool.bad or pool.hook is not None:
        return 0
    if end > node.window and not _begin(volume, node, end, caller):
        return 0
    run = node.map.find(offset) if node.map is not None else None
    if run is None or run[3] != UNWRITTEN or run[1] < end:
        return 0
    place = offset + run[2]
    with volume.handle(CREDITS_APPEND, caller) as tx, Change(volume, tx, node.ino) as change:
        if not change.advance_eof(offset, end):
            bits = volume.block_bits
            written = Extent(offset >> bits, place >> bits, end - offset >> bits, False)
            mapping.mark_written(tx, change.inode, written.lblk, written.length)
            change.maps(written)
            change.inode.size = end
        pool.write(place, content)
    return len(content)


def _begin(volume: Volume, node: Node, end: int, caller: Caller) -> bool:
    """Begin a window, or make it longer, for an append that ends at ``end``; return whether it reaches that."""
    size, bits = node.size, volume.block_bits
    start = node.window or size
    stop = start + WINDOW_BYTES
    if end > stop or stop > volume.large_file_from or volume.exceeds_map(node.ino, stop):
        return False
    if volume.tiers is not None or volume.notifier.stale or node.map is None or node.map.reaches_past(start):
        return False
    lblk = start >> bits
    want, align = volume.grown(lblk, WINDOW_BYTES >> bits)
    try:
        with volume.handle(CREDITS_BEGIN, caller) as tx, Change(volume, tx, node.ino, dated=False) as change:
            if not change.inode.has_extents:  # nothing can be unwritten
                node.appends = NEVER
                return False
            run = mapping.allocate(tx, change.inode, lblk, want, unwritten=True, align=align)
            change.preallocates([run])
            volume.lives.being_cut(tx, node.ino)
    except FsError as error:
        if error.errno != errno.ENOSPC or isinstance(error, MissingMemory):
            raise
        node.appends = FULL
        return False
    node.window = run.lblk + run.length << bits
    return end <= node.window


def end(volume: Volume, node: Node) -> None:
    """End the file's window: its blocks become free with the next commit.

    Raises:
        FsError, MemoryError: as an operation on blocks; the file has its window still.
    """
    window = node.window
    forget(node)
    if volume.read_only:
        return
    first = node.size + volume.block_size - 1 >> volume.block_bits
    try:
        with volume.handle(CREDITS_END) as tx, Change(volume, tx, node.ino, dated=False) as change:
            change.unmap(first, None)
            volume.lives.cut(tx, node.ino)
    except BaseException:
        node.window = window
        raise


def forget(node: Node) -> None:
    """Append no longer inside the file's window, whose blocks somebody else frees: the orphan list names the file."""
    node.window, node.appends = 0, min(node.appends, 0)


def end_preallocation(volume: Volume, ino: int) -> None:
    """Free what clients and appends have past EOF, before an operation extends, cuts or shifts the file.

    Raises:
        FsError: as an operation on blocks.
    """
    volume.notifier.end_preallocation(ino)
    node = volume.nodes.open.get(ino)
    if node is not None and node.window:
        end(volume, node)


def with_windows(volume: Volume) -> list[Node]:
    """Return the nodes that have a window."""
    return [node for node in volume.nodes.open.values() if node.window]


def end_all(volume: Volume) -> bool:
    """End all windows, since the pool is full; return whether there was one (a reclaimer)."""
    found = with_windows(volume)
    for node in found:
        end(volume, node)
    return bool(found)

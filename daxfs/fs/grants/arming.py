"""Appends that a client makes part of its file, and durable, without a request: armed transactions.

A program that appends and calls fsync(2) for each record would ask the daemon each time. The answer to one such request
therefore arms further ones (`daxfs.journal.armed`): each makes the file longer by the same number of bytes again, out
of the blocks that the client was granted past EOF. The client stores its bytes there, and then fires: the record is
part of the file, and durable.

Nobody else sees a size that is not true: whatever the daemon is asked next, it takes over first what was fired, and
ends the rest (`settle`, called by each operation). For the kernel the file's attributes are out of date all the time,
so it asks. The holder is the only one of its file; another client has to ask before it becomes one.

`write_notifications.py` serves the appends that are reported.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from daxfs.fs import clock
from daxfs.pmem import atomics
from daxfs.structures import inodes, mapping
from daxfs.structures.inodes import Inode

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.volume import Volume
    from daxfs.journal.armed import CommitWord

MOST = 64
"""The most appends that are armed at once: each takes three blocks of the log."""


def arm(table: Grants, file: OpenFile, step: int, count: int) -> list[CommitWord]:
    """Arm up to ``count`` appends of ``step`` bytes by the extender, whose last append has just been made durable.

    Returns:
        Their commit words, in order; fewer or none where an append is more than to move EOF over blocks that the inode
        itself names.
    """
    volume, node = table.volume, file.node
    grants = table.by_ino[node.ino]
    if not atomics.AVAILABLE or step <= 0 or (node.size | step) & volume.block_size - 1:
        return []
    if grants.all_holders != 1 or not node.plain or volume.tiers is not None or volume.notifier.stale:
        return []
    if (
        volume.sync_due
        or node.ino in volume.staging.by_ino
        or node.size + step * min(count, MOST) > volume.large_file_from
    ):
        return []
    number, images = _images(volume, grants, step, min(count, MOST))
    settled = partial(_settled, volume, grants, node.size, step)
    words = volume.journal.arm(number, images, settled) if images else []
    volume.armed = bool(words)
    return words


def _images(volume: Volume, grants: InodeGrants, step: int, count: int) -> tuple[int, list[bytes]]:
    """Return the block that has the inode, and its content after each of the appends."""
    view, geometry, ino = volume.view, volume.geometry, grants.node.ino
    number, offset = inodes.position(view, ino)
    content = memoryview(bytearray(view.block(number)))
    inode = Inode(content, offset, geometry)
    inode.number = ino
    inode.set_changed(clock.now())
    images: list[bytes] = []
    size = inode.size
    while len(images) < count and grants.preallocated.covers(size, size + step):
        if not mapping.move_border_of_copy(inode, size >> volume.block_bits, step >> volume.block_bits):
            break
        size += step
        inode.size = size
        if geometry.metadata_csum:
            inode.seal(ino, geometry)
        images.append(bytes(content))
    return number, images


def _settled(volume: Volume, grants: InodeGrants, begin: int, step: int, fired: int) -> None:
    """Let the node and the grants follow the appends that were fired; the times are those of now."""
    volume.armed = False
    if not fired:
        return
    node, size = grants.node, begin + fired * step
    if node.map is not None and not node.map.move_border(begin, size):
        node.remapped()
    grants.preallocated.cut(0, size)
    grants.show_size(size)
    node.changed(size)
    node.overwritten()

"""Write notifications: a client says what it has stored, so times move and the file reaches what was stored past EOF.

`leasing.py` grants the memory, `parking.py` ends the grant when the file is made longer in another way. Programs that
append and synchronise say both in one request, so what is usual there has a short way: some blocks of the unwritten
run past EOF become the end of the written run before it.

Invariant: a block past EOF becomes readable only if it was granted to the grower and zeroed for that (`Lease.grown`).
What a client claims decides nothing: other blocks past EOF (fallocate with KEEP_SIZE) hold what was deleted there.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import data, ranges
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.leases import Lease
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Stored
    from daxfs.fs.volume import Volume


def stored(volume: Volume, file: OpenFile, told: Stored) -> int:
    """A client has stored: times move, and the file reaches ``told.size`` at least.

    Returns:
        How many changes the file has had (`Lease.changes`), this one included.

    Raises:
        FsError: EBADF, EROFS, EFBIG, ENOSPC; EINVAL: it holds no lease, or claims more than was granted to it past EOF;
            EAGAIN: the file no longer has the size ``told.base``, or somebody else has ended the growth. Nothing has
            changed after any of them but ENOSPC.
    """
    node = file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    lease = node.lease
    if lease is None or file not in lease.holders:
        raise FsError(errno.EINVAL, f"inode {node.ino}: this open file has no lease")
    size, base, durable, data_only, holder = told
    if size > node.size or base is not None:
        grower = lease.grower
        if base not in {None, node.size} or grower is None or grower[0] is not file:
            raise FsError(errno.EAGAIN)
        if holder is not None and grower[1] != holder:
            raise FsError(errno.EAGAIN)
        if size > node.size and not lease.grown.covers(node.size, size):
            number = errno.EINVAL if size <= volume.max_size(node.ino) else errno.EFBIG
            raise FsError(number, f"inode {node.ino}: bytes {node.size} to {size} were not granted")
        if not node.plain:
            data.drop_privileges(volume, node, file.caller)
        if size > volume.large_file_from:
            volume.allow_large_files()
    if size <= node.size:
        volume.touch_mtime(node)
    elif not lengthened(volume, node, lease, size):
        grow(volume, node, lease, size)
    if durable:
        data.fsync(volume, node.ino, data_only=data_only)
    return lease.changes


def lengthened(volume: Volume, node: Node, lease: Lease, size: int) -> bool:
    """`grow` where whole blocks change from one run of the file to the other; False: it is not so simple."""
    begin, mapped = node.size, node.map
    if mapped is None or (begin | size) & volume.block_size - 1:
        return False
    bits = volume.block_bits
    with volume.handle(ranges.CREDITS_STEP) as tx:
        inode = inodes.edit(tx, node.ino)
        if not mapping.move_border(tx, inode, begin >> bits, size - begin >> bits):
            return False
        inode.size = size
        ranges.finish(tx, inode)
    node.mtime = node.ctime = 0
    node.atime_due = not node.noatime
    if not mapped.move_border(begin, size):
        node.map = None
    lease.grown.cut(0, size)
    volume.resize(node, size)
    return True


def grow(volume: Volume, node: Node, lease: Lease, size: int) -> None:
    """The blocks past EOF become written up to ``size``, all of which was granted, and the file reaches it.

    The block that EOF is in is written: it was when its tail was granted.
    """
    bits = volume.block_bits
    if node.map is None:
        data.load_map(volume, node)
    begin, end = node.size + -node.size % volume.block_size, size + -size % volume.block_size
    filled = [
        mapping.Extent(low >> bits, low + delta >> bits, high - low >> bits, False)
        for at, to, delta, unwritten in (data.pieces(volume, node, begin, end) if begin < end else ())
        for low, high, _, _ in (lease.grown.within(at, to) if unwritten else ())
    ]
    try:
        for run in filled:
            volume.retrying(grow_step, node, run, min(run.lblk + run.length << bits, size))
        if node.size < size:
            volume.retrying(grow_step, node, None, size)
    finally:
        lease.grown.cut(0, node.size)


def grow_step(volume: Volume, node: Node, run: mapping.Extent | None, size: int) -> None:
    """Mark one run as written and move EOF, in one handle."""
    with volume.handle(ranges.CREDITS_STEP) as tx:
        inode = inodes.edit(tx, node.ino)
        if run is not None:
            mapping.mark_written(tx, inode, run.lblk, run.length)
        inode.size = size
        ranges.finish(tx, inode)
    volume.resize(node, size)
    ranges.note(volume, node, () if run is None else (run,))

"""Write notifications: a client reports its stores, so that times move and EOF moves to the end of what was stored.

`requests.py` grants the memory, and `table.py` ends the preallocation when another operation extends the file. Programs
that append and synchronise send both in one request, so the usual case has a fast path: blocks at the start of the
unwritten run past EOF become the end of the written run before it.

Invariant: a block past EOF becomes readable only if it was zeroed and granted to the extender
(`InodeGrants.preallocated`). What a client claims decides nothing: other blocks past EOF (fallocate with KEEP_SIZE)
hold deleted data.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import data, privileges, ranges
from daxfs.fs.change import Change
from daxfs.structures import mapping

if TYPE_CHECKING:
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.nodes import Node
    from daxfs.fs.openfile import OpenFile
    from daxfs.fs.types import WriteNotification
    from daxfs.fs.volume import Volume


def apply(table: Grants, file: OpenFile, claim: WriteNotification) -> int:
    """Apply a client's write notification: times move, and the file is at least ``claim.size`` bytes long.

    Returns:
        The count of changes of the file (`InodeGrants.changes`), this one included.

    Raises:
        FsError: EBADF, EROFS, EFBIG, ENOSPC; EINVAL, the open file holds no grant, or claims more than was granted past
            EOF; EAGAIN, the file size is no longer ``claim.base``, or another operation has ended the preallocation.
            Only after ENOSPC may something have changed.
    """
    volume, node = table.volume, file.node
    if not file.writable:
        raise FsError(errno.EBADF)
    volume.writable()
    grants = table.by_ino.get(node.ino)
    if grants is None or file not in grants.holders:
        raise FsError(errno.EINVAL, f"inode {node.ino}: this open file has no lease")
    size, base, durable, data_only, holder = claim
    if size > node.size or base is not None:
        extender = grants.extender
        if base not in {None, node.size} or extender is None or extender[0] is not file:
            raise FsError(errno.EAGAIN)
        if holder is not None and extender[1] != holder:
            raise FsError(errno.EAGAIN)
        if size > node.size and not grants.preallocated.covers(node.size, size):
            number = errno.EINVAL if size <= volume.max_size(node.ino) else errno.EFBIG
            raise FsError(number, f"inode {node.ino}: bytes {node.size} to {size} were not granted")
        if not node.unprivileged:
            privileges.drop_privileges(volume, node, file.caller)
        if size > volume.large_file_from:
            volume.allow_large_files()
    if size <= node.size:
        node.overwritten()
    elif not extend_fast(volume, node, grants, size):
        extend(volume, node, grants, size)
    if durable:
        data.fsync(volume, node.ino, data_only=data_only)
    return grants.changes


def extend_fast(volume: Volume, node: Node, grants: InodeGrants, size: int) -> bool:
    """Extend the file if EOF moves by whole blocks over one unwritten run; False: nothing has changed."""
    begin = node.size
    if node.map is None or (begin | size) & volume.block_size - 1:
        return False
    with volume.handle(ranges.CREDITS_STEP) as tx, Change(volume, tx, node.ino) as change:
        if not change.advance_eof(begin, size):
            change.dated = False
            return False
    grants.preallocated.cut(0, size)
    return True


def extend(volume: Volume, node: Node, grants: InodeGrants, size: int) -> None:
    """Mark the blocks from EOF to ``size`` as written and move EOF there. All of these bytes were granted.

    The block that EOF is in is written already: it was when its tail was granted.
    """
    bits = volume.block_bits
    if node.map is None:
        data.load_map(volume, node)
    begin, end = node.size + -node.size % volume.block_size, size + -size % volume.block_size
    filled = [
        mapping.Extent(low >> bits, low + delta >> bits, high - low >> bits, False)
        for at, to, delta, unwritten in (data.pieces(volume, node, begin, end) if begin < end else ())
        for low, high, _, _ in (grants.preallocated.within(at, to) if unwritten else ())
    ]
    try:
        for run in filled:
            volume.retrying(extend_step, node, run, min(run.lblk + run.length << bits, size))
        if node.size < size:
            volume.retrying(extend_step, node, None, size)
    finally:
        grants.preallocated.cut(0, node.size)


def extend_step(volume: Volume, node: Node, run: mapping.Extent | None, size: int) -> None:
    """Mark one run as written and move EOF, in one handle."""
    with volume.handle(ranges.CREDITS_STEP) as tx, Change(volume, tx, node.ino) as change:
        if run is not None:
            mapping.mark_written(tx, change.inode, run.lblk, run.length)
            change.maps(run)
        change.inode.size = size

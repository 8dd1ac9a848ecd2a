"""Write notifications: a client says what it has stored, so times move and the file reaches what was stored past EOF.

`requests.py` grants the memory, `table.py` ends the growth when the file is made longer in another way. Programs that
append and synchronise say both in one request, so what is usual there has a short way: some blocks of the unwritten
run past EOF become the end of the written run before it.

Invariant: a block past EOF becomes readable only if it was granted to the grower and zeroed for that
(`InodeGrants.growth`). What a client claims decides nothing: other blocks past EOF (fallocate with KEEP_SIZE) hold what
was deleted there.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import data, ranges
from daxfs.fs.change import Change
from daxfs.structures import mapping

if TYPE_CHECKING:
    from daxfs.fs.data import OpenFile
    from daxfs.fs.grants.inode_grants import InodeGrants
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.nodes import Node
    from daxfs.fs.types import Stored
    from daxfs.fs.volume import Volume


def stored(table: Grants, file: OpenFile, claim: Stored) -> int:
    """A client has stored: times move, and the file reaches ``claim.size`` at least.

    Returns:
        How many changes the file has had (`InodeGrants.changes`), this one included.

    Raises:
        FsError: EBADF, EROFS, EFBIG, ENOSPC; EINVAL: it holds no grant, or claims more than was granted to it past EOF;
            EAGAIN: the file no longer has the size ``claim.base``, or somebody else has ended the growth. Nothing has
            changed after any of them but ENOSPC.
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
        grower = grants.grower
        if base not in {None, node.size} or grower is None or grower[0] is not file:
            raise FsError(errno.EAGAIN)
        if holder is not None and grower[1] != holder:
            raise FsError(errno.EAGAIN)
        if size > node.size and not grants.growth.covers(node.size, size):
            number = errno.EINVAL if size <= volume.max_size(node.ino) else errno.EFBIG
            raise FsError(number, f"inode {node.ino}: bytes {node.size} to {size} were not granted")
        if not node.plain:
            data.drop_privileges(volume, node, file.caller)
        if size > volume.large_file_from:
            volume.allow_large_files()
    if size <= node.size:
        node.overwritten()
    elif not advanced(volume, node, grants, size):
        grow(volume, node, grants, size)
    if durable:
        data.fsync(volume, node.ino, data_only=data_only)
    return grants.changes


def advanced(volume: Volume, node: Node, grants: InodeGrants, size: int) -> bool:
    """`grow` where whole blocks change from one run of the file to the other; False: it is not so simple."""
    begin = node.size
    if node.map is None or (begin | size) & volume.block_size - 1:
        return False
    with volume.handle(ranges.CREDITS_STEP) as tx, Change(volume, tx, node.ino) as change:
        if not change.advances(begin, size):
            change.dated = False
            return False
    grants.growth.cut(0, size)
    return True


def grow(volume: Volume, node: Node, grants: InodeGrants, size: int) -> None:
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
        for low, high, _, _ in (grants.growth.within(at, to) if unwritten else ())
    ]
    try:
        for run in filled:
            volume.retrying(grow_step, node, run, min(run.lblk + run.length << bits, size))
        if node.size < size:
            volume.retrying(grow_step, node, None, size)
    finally:
        grants.growth.cut(0, node.size)


def grow_step(volume: Volume, node: Node, run: mapping.Extent | None, size: int) -> None:
    """Mark one run as written and move EOF, in one handle."""
    with volume.handle(ranges.CREDITS_STEP) as tx, Change(volume, tx, node.ino) as change:
        if run is not None:
            mapping.mark_written(tx, change.inode, run.lblk, run.length)
            change.maps(run)
        change.inode.size = size

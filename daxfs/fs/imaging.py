"""Images of snapshots: the pool as it was, as a file system of its own that is unmounted and clean.

`pieces` yields what the image holds: all blocks that were in use, without the log's, whose superblock says that it is
empty, and without the stores of older snapshots. All else is a hole. `clean` then frees, in the image, what was open
without a name or waited for clients, and removes the names of those stores. So ``e2fsck -fn`` finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots.past import PastView, needed_at
from daxfs.fs.types import Options
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool
    from daxfs.snapshots.reading import Chain


def pieces(pool: Pool, chain: Chain) -> Iterator[tuple[int, bytes]]:
    """Yield the offsets and contents of an image's chunks that are no holes, in order.

    Raises:
        Corrupt: the snapshot's metadata is damaged.
        NotAStore: a store is.
    """
    view = PastView(pool, chain)
    bits = chain.chunk_bits
    flags = np.unpackbits(np.frombuffer(needed_at(view), np.uint8), bitorder="little")
    flags[SUPERBLOCK_OFFSET >> bits] = 1
    log = inodes.read(view, view.superblock().s_journal_inum)
    flags[mapping.lookup(view, log, 0).pblk << view.geometry.block_bits >> bits] = 1
    for number in np.flatnonzero(flags).tolist():
        yield number << bits, chain.chunk(number)


def clean(image: str | os.PathLike[str] | Pool) -> None:
    """Make an image of a snapshot one of a file system that nobody uses and that has no snapshots itself."""
    with FileSystem.open(image, Options(atime="noatime")) as fs:
        for snapshot in fs.list_snapshots():
            fs.delete_snapshot(snapshot.name)

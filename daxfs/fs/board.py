"""The board: what clients look at before they use what they were told, one cache line of the pool for each leased file.

A slot says which epoch it is and how long the file is (struct daxfs_slot in direct/daxfs.h). The slots lie in blocks of
a nameless inode, so that they are where a client has access anyway, and recovery frees them. They are never logged: a
crash ends what they are about. `leasing.py` takes and gives slots, `leases.py` writes the words that change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs import parking
from daxfs.fs.leases import ENDED
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume

SLOT_BYTES = 64
CREDITS_BOARD = 24
FAR = 64
"""Blocks from the end of the pool, where the first block of slots is looked for."""


class Board:
    """The slots of one volume, all made from blocks of one inode, ``ino`` (0: none yet)."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.ino = 0
        self._free: list[int] = []

    def take(self) -> int:
        """A slot: its pool offset; ENOSPC when there is none and no block for more."""
        if not self._free:
            self._volume.retrying(lambda _: self._grow())
        return self._free.pop()

    def give(self, slot: int) -> None:
        """The slot is for another inode from now on; who looks at it late finds that nothing holds any more."""
        self._volume.pool.store_word(slot, ENDED, 8)
        self._free.append(slot)

    def _grow(self) -> None:
        volume = self._volume
        bits = volume.block_bits
        with volume.handle(CREDITS_BOARD) as tx:
            inode = inodes.edit(tx, self.ino) if self.ino else parking.new_keeper(tx)
            # Far from where files are being written, whose blocks should stay together.
            run = mapping.allocate(tx, inode, inode.size >> bits, 1, goal=volume.geometry.blocks_count - FAR)
            inode.size += 1 << bits
            begin = run.pblk << bits
            volume.pool.zero(begin, 1 << bits)
            parking.keep(volume, inode.number)
        self.ino = inode.number
        self._free.extend(range(begin, begin + (1 << bits), SLOT_BYTES))

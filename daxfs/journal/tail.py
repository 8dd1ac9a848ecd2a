"""Layer 4: store the changing words of the journal superblock so that its checksum is wrong as briefly as possible.

Memory stores aligned 8-byte words atomically, and nothing larger. ``s_sequence`` and ``s_start`` (0x18, 0x1C) share one
word, but ``s_checksum`` (0xFC) lies three cache lines away, and the kernel and e2fsck refuse a journal whose checksum
is wrong. CRC-32C is linear over GF(2), which gives two ways around that; `JournalSuperblockWriter` uses both:

- To begin the log anew (`restart`) any block of the log will do as ``s_start``, since every transaction in it is
  home. For each of them exactly one ``s_sequence`` leaves the checksum as it is. The pair that skips fewest sequence
  numbers is stored, in one atomic word. A log of n blocks skips about 2**32 / n numbers; they wrap. To mark the log
  empty (`empty`) is the same with ``s_start`` 0, for which there is one number.
- To keep an errno (`write`), the values are given. Then ``h_sequence`` (0x08), which the checksum covers and nobody
  reads in a superblock, absorbs the difference: one cache line is written instead of two, in two words.

Used by `log` and `recovery` alone. Journals without checksums v2 or v3 need none of this: there one word is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from daxfs.ext4.checksum import crc32c
from daxfs.ext4.jbd2 import SUPERBLOCK_SIZE, JournalSuperblock

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool

    Words = np.ndarray[tuple[int], np.dtype[np.uint32]]

_H_SEQUENCE = 0x08
_S_SEQUENCE = 0x18
_S_START = 0x1C
_S_ERRNO = 0x20
_S_FEATURE_INCOMPAT = 0x28
_S_CHECKSUM = 0xFC
CACHE_LINE = 64
_M = 0xFFFFFFFF
_FEW = 64
"""Numbers that `_ascending` sorts first, about."""


class JournalSuperblockWriter:
    """The writer of one journal's superblock, which begins at byte ``offset`` of the pool.

    Attributes:
        superblock: the fields as they are stored now.
    """

    def __init__(self, pool: Pool, offset: int, superblock: JournalSuperblock) -> None:
        """Make the writer of a superblock that was verified."""
        self.superblock = superblock
        self._pool = pool
        self._offset = offset
        self._image = bytearray(pool.memory[offset : offset + SUPERBLOCK_SIZE])

    def rewrite(self, superblock: JournalSuperblock) -> None:
        """Store all fields durably, features included; allowed only while the log is empty.

        A feature says whether the checksum is valid. So the word of features is stored last if the journal gains
        checksums, and first if it loses them: then the checksum is right whenever it is valid. If the journal has
        checksums before and after, the checksum is wrong in between.
        """
        pool, features = self._pool, slice(_S_FEATURE_INCOMPAT, _S_FEATURE_INCOMPAT + 8)
        image = bytearray(superblock.pack())
        word = int.from_bytes(image[features], "little")
        self._image = image[:]
        self.superblock = JournalSuperblock.unpack(image)
        if not self.superblock.has_checksum:
            pool.store_word(self._offset + _S_FEATURE_INCOMPAT, word, 8)
            pool.fence()
        image[features] = pool.memory[self._offset :][features]
        pool.write(self._offset, image)
        pool.fence()
        pool.store_word(self._offset + _S_FEATURE_INCOMPAT, word, 8)
        pool.fence()

    def restart(self, sequence: int, end: int, is_stale: Callable[[int, int], bool]) -> tuple[int, int]:
        """Begin the log anew, by one atomic store without a fence.

        Args:
            sequence: the lowest number that was never used.
            end: the block after the log's last.
            is_stale: ``is_stale(position, sequence)`` returns whether the block at a log position looks like a block of
                the transaction of that number.

        Returns:
            (sequence, position): the number of the next transaction, and where it has to begin.
        """
        first = self.superblock.s_first
        if self.superblock.has_checksum:
            sequence, start = self._unchanged_checksum(sequence, end, is_stale)
        else:
            start = next(at for at in range(first, end) if not is_stale(at, sequence))
        self._move(sequence, start)
        return sequence, start

    def empty(self, sequence: int) -> None:
        """Mark the log empty, by one atomic store without a fence.

        Args:
            sequence: the new ``s_sequence`` of a journal without checksum. With a checksum, ``s_sequence`` becomes the
                only number that leaves the checksum unchanged. So numbers of an earlier mount come again; `restart`
                avoids the blocks that bear them.
        """
        if self.superblock.has_checksum:
            sequence = int(self._balanced(np.zeros(1, np.uint32))[0])
        self._move(sequence, 0)

    def write(self, *, errno: int) -> None:
        """Store ``s_errno`` and the word that keeps the checksum right, in one cache line, without a fence."""
        self._put(_S_ERRNO, errno)
        if self.superblock.has_checksum:
            stored = int.from_bytes(self._image[_S_CHECKSUM : _S_CHECKSUM + 4], "big")
            difference = self._checksum() ^ stored
            absorbed = int.from_bytes(self._image[_H_SEQUENCE : _H_SEQUENCE + 4], "big")
            self._put(_H_SEQUENCE, absorbed ^ _apply(_inverse(_H_SEQUENCE), difference))
        self._pool.write(self._offset, memoryview(self._image)[:CACHE_LINE])
        self.superblock = JournalSuperblock.unpack(self._image)

    def _move(self, sequence: int, start: int) -> None:
        self._put(_S_SEQUENCE, sequence)
        self._put(_S_START, start)
        word = int.from_bytes(self._image[_S_SEQUENCE : _S_SEQUENCE + 8], "little")
        self._pool.store_word(self._offset + _S_SEQUENCE, word, 8)
        self.superblock = self.superblock._replace(s_sequence=sequence, s_start=start)

    def _put(self, at: int, value: int) -> None:
        self._image[at : at + 4] = (value & _M).to_bytes(4, "big")

    def _checksum(self) -> int:
        image = bytearray(self._image)
        image[_S_CHECKSUM : _S_CHECKSUM + 4] = bytes(4)
        return crc32c(_M, image)

    def _unchanged_checksum(self, sequence: int, end: int, is_stale: Callable[[int, int], bool]) -> tuple[int, int]:
        """Return the nearest (sequence, start) above ``sequence`` that leaves the checksum unchanged."""
        starts = np.arange(self.superblock.s_first, end, dtype=np.uint32)
        sequences = self._balanced(starts)
        skipped = sequences - np.uint32(sequence)  # modulo 2**32
        for at in _ascending(skipped):
            found, start = int(sequences[at]), int(starts[at])
            if found and not is_stale(start, found):
                return found, start
        nearest = int(np.argmin(skipped))
        return int(sequences[nearest]), int(starts[nearest])

    def _balanced(self, starts: Words) -> Words:
        """Return, for each value of ``s_start``, the ``s_sequence`` that leaves the checksum unchanged."""
        old = self.superblock
        changed = starts ^ np.uint32(old.s_start)
        balanced = np.array([old.s_sequence], np.uint32)  # for each change of the lowest bits, none of them at first
        inverse = _inverse(_S_SEQUENCE)
        for bit in range(int(changed.max()).bit_length()):
            balance = np.uint32(_apply(inverse, _columns(_S_START)[bit]))
            balanced = np.concatenate((balanced, balanced ^ balance))
        found: Words = balanced[changed]
        return found


def _ascending(values: Words) -> Iterator[int]:
    """Yield the indexes of values in ascending order; the first few cost no sort of all values, which spread evenly."""
    bound = np.uint32(min(_FEW * (_M + 1) // len(values), _M))
    for part in (np.flatnonzero(values < bound), np.flatnonzero(values >= bound)):
        yield from part[np.argsort(values[part], kind="stable")].tolist()


@cache
def _columns(field: int) -> tuple[int, ...]:
    """Return the contribution of each bit of a 32-bit big-endian field to the checksum, from bit 0 up."""
    found = []
    for bit in range(32):
        image = bytearray(SUPERBLOCK_SIZE)
        image[field : field + 4] = (1 << bit).to_bytes(4, "big")
        found.append(crc32c(0, image))
    return tuple(found)


@cache
def _inverse(field: int) -> tuple[int, ...]:
    """Return the inverse of `_columns`: for each bit of the checksum, the change of the field that flips only this bit.

    The inverse exists: the zeros after a 32-bit word multiply it by a power of x, which is invertible modulo the CRC's
    polynomial.
    """
    rows = [(image, 1 << bit) for bit, image in enumerate(_columns(field))]
    for bit in range(32):
        pivot = next(at for at in range(bit, 32) if rows[at][0] >> bit & 1)
        rows[bit], rows[pivot] = rows[pivot], rows[bit]
        image, source = rows[bit]
        for at in range(32):
            if at != bit and rows[at][0] >> bit & 1:
                rows[at] = rows[at][0] ^ image, rows[at][1] ^ source
    return tuple(source for _, source in rows)


def _apply(columns: tuple[int, ...], value: int) -> int:
    result = 0
    for bit, column in enumerate(columns):
        if value >> bit & 1:
            result ^= column
    return result

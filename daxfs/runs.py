"""Runs of blocks and ranges of bytes: one type for each unit.

All layers use them; nothing here knows a pool or a format.

The blocks of a file, with where they lie in the pool, are `daxfs.ext4.extent.Extent`. The same in bytes is
`daxfs.protocol.GrantedExtent` where clients are told it, and `daxfs.fs.filemap.Run` in the cache that reads use.
"""

from __future__ import annotations

from typing import NamedTuple


class BlockRun(NamedTuple):
    """``length`` contiguous blocks of the pool, from block ``start`` on."""

    start: int
    length: int


class BitRun(NamedTuple):
    """``length`` contiguous bits of the bitmap of ``group``, from bit ``bit`` on: blocks counted within their group."""

    group: int
    bit: int
    length: int


class ByteRange(NamedTuple):
    """The bytes [begin, end) of a file or of the pool."""

    begin: int
    end: int

"""The feature flag ``needs_recovery`` in the pool's own superblock: raised before the log is used, lowered after.

The flag can't go through the log: a log that holds something while the flag is clear makes ``e2fsck -p`` stop, since it
may be left from long ago. So, as in the kernel (ext4_load_journal and ext4_put_super in fs/ext4/super.c), the flag is
stored at home while the log is empty, and so is the superblock's checksum. Flag and checksum lie in different cache
lines. A power cut between the two leaves the *torn flag*: a superblock that has its right checksum again when the flag
is inverted, beside an empty log. `mend` finds and mends it. `mounting.py` alone calls this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.ext4.features import Incompat
from daxfs.ext4.superblock import CHECKSUM_AT, INCOMPAT_AT, SUPERBLOCK_OFFSET, Superblock

if TYPE_CHECKING:
    from daxfs.pmem.pool import Pool


def store(pool: Pool, *, raised: bool) -> None:
    """Set or clear the flag, durably. The log is empty and holds no change of the superblock."""
    sb = _copy(pool)
    flags = _with_flag(sb.s_feature_incompat, raised=raised)
    if flags == sb.s_feature_incompat:
        return
    sb.s_feature_incompat = flags
    sb.seal()
    pool.store_word(SUPERBLOCK_OFFSET + INCOMPAT_AT, flags)
    pool.store_word(SUPERBLOCK_OFFSET + CHECKSUM_AT, sb.s_checksum)
    pool.fence()


def mend(pool: Pool) -> bool:
    """Give a torn flag the value that its checksum is right for, by one aligned word; return whether it was torn."""
    sb = _copy(pool)
    if not sb.is_torn():
        return False
    sb.s_feature_incompat ^= Incompat.needs_recovery
    if sb.is_torn():
        return False
    pool.store_word(SUPERBLOCK_OFFSET + INCOMPAT_AT, sb.s_feature_incompat)
    pool.fence()
    return True


def _copy(pool: Pool) -> Superblock:
    return Superblock(memoryview(bytearray(pool.memory[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE])))


def _with_flag(flags: int, *, raised: bool) -> int:
    return flags | Incompat.needs_recovery if raised else flags & ~int(Incompat.needs_recovery)

"""Settings that tune2fs stores into the superblock of a mounted pool, from outside the mount.

The superblock of a mounted pool changes in the log; the home copy is overwritten when the log is full or is emptied. A
mount changes none of `SETTINGS` itself, so what the home superblock says of them is always newest. `keep` copies them
into each superblock that is about to be stored at home. `take_over` brings them into the log, periodically and at the
end of the mount; from then on they survive a power cut too. The label is the exception: after it was set through the
mount (`daxfs.fs.label`), the mount's label is the newest. A home superblock that can't be read has nothing to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume

log = logging.getLogger("daxfs.fs")

SETTINGS = (
    "s_max_mnt_count",
    "s_checkinterval",
    "s_lastcheck",
    "s_lastcheck_hi",
    "s_default_mount_opts",
    "s_errors",
    "s_def_resuid",
    "s_def_resgid",
)
"""Fields that a mount never changes and that it obeys from the next mount on."""

LABEL = "s_volume_name"


def keep(volume: Volume, content: memoryview) -> None:
    """Prepare a superblock for its store at home.

    Args:
        volume: the mounted pool.
        content: the block that holds the superblock.
    """
    ours = Superblock(content, SUPERBLOCK_OFFSET & (volume.block_size - 1))
    home = _home(volume)
    if home is not None and (changed := _differences(volume, ours, home)):
        _copy(volume, changed, home, ours)
        ours.seal()


def take_over(volume: Volume) -> None:
    """Make the settings that were stored from outside part of the running transaction."""
    journal = volume.journal
    if journal.aborted:
        return
    home = _home(volume)
    if home is not None and (changed := _differences(volume, volume.view.superblock(), home)):
        with journal.handle(1) as tx:
            _copy(volume, changed, home, tx.edit_superblock())


def _home(volume: Volume) -> Superblock | None:
    """Return a copy of the superblock at home; None if its memory is missing."""
    content = volume.superblock_buffer
    content[:] = volume.memory[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE]
    if volume.faults[0]:
        volume.lost_memory()
        return None
    return Superblock(memoryview(content))


def _differences(volume: Volume, ours: Superblock, home: Superblock) -> list[str]:
    """Return the settings that are newer at home; none of a torn superblock, into which tune2fs is storing just now."""
    names = SETTINGS if volume.label_was_set else (*SETTINGS, LABEL)
    changed = [name for name in names if getattr(ours, name) != getattr(home, name)]
    return [] if changed and home.is_torn() else changed


def _copy(volume: Volume, names: list[str], home: Superblock, ours: Superblock) -> None:
    for name in names:
        setattr(ours, name, getattr(home, name))
    log.info("%s: changed from outside while mounted, and kept: %s", volume.pool.path, ", ".join(names))

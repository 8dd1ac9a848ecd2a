"""The label of the file system, read and changed while it is mounted (FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL).

A new label goes through the log, into the superblock and into each of its backups, and is durable when the call
returns. A pool with more backups than one transaction holds gets them in several; a power cut between them leaves a
backup with the old label, which e2fsck accepts.

Source: ``ext4_ioctl_setlabel`` and ``ext4_update_backup_sb`` in fs/ext4/ioctl.c.
"""

from __future__ import annotations

import errno

from daxfs.errors import FsError
from daxfs.ext4.superblock import Superblock
from daxfs.fs.types import Caller
from daxfs.fs.volume import Volume

LABEL_MAX = 16
"""Bytes of s_volume_name (EXT4_LABEL_MAX)."""


def get_label(volume: Volume) -> bytes:
    """Return the label, without padding; at most 16 bytes."""
    return volume.view.superblock().s_volume_name.partition(b"\0")[0]


def set_label(volume: Volume, label: bytes, caller: Caller) -> None:
    """Change the label, durably.

    Raises:
        FsError: EPERM, not the superuser; EINVAL, more than 16 bytes or a zero byte inside; EROFS.
    """
    if caller.uid:
        raise FsError(errno.EPERM)
    if len(label) > LABEL_MAX or b"\0" in label:
        raise FsError(errno.EINVAL)
    field = label.ljust(LABEL_MAX, b"\0")
    geometry = volume.geometry
    for group in filter(geometry.has_super, range(1, geometry.memory_groups)):
        block = geometry.first_block(group)
        with volume.handle(1) as tx:
            if Superblock(tx.block(block)[: Superblock.SIZE]).is_torn():
                continue  # a damaged backup stays as it is, for e2fsck
            backup = Superblock(tx.edit(block)[: Superblock.SIZE])
            backup.s_volume_name = field
            backup.seal()
    with volume.handle(1) as tx:  # the last one: it decides which label the file system has
        tx.edit_superblock().s_volume_name = field
    volume.label_was_set = True
    volume.commit()

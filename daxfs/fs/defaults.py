"""The settings of a mount that the superblock decides unless the mount options do.

New files take the group of their directory if ``s_default_mount_opts`` has EXT4_DEFM_BSDGROUPS. The reserved blocks
are for the superuser, the user ``s_def_resuid`` and the group ``s_def_resgid``. ``s_errors`` says what an error of
metadata does to the volume (`daxfs.fs.damage`). The other bits of ``s_default_mount_opts`` ask for what daxfs does on
every mount or on none (docs/FORMAT.md lists them).

Source: ``ext4_set_def_opts`` and ``__ext4_fill_super`` in fs/ext4/super.c, ``ext4_has_free_clusters`` in
fs/ext4/balloc.c.
"""

from __future__ import annotations

from typing import NamedTuple

from daxfs.ext4.superblock import EXT4_DEFM_BSDGROUPS, EXT4_ERRORS_CONTINUE, Superblock
from daxfs.fs.types import Options

CONTINUE, REMOUNT_RO = "continue", "remount-ro"
"""What an error of metadata does to a volume: it goes on, or it becomes read-only."""


class Defaults(NamedTuple):
    """The settings in force on a mount.

    Attributes:
        group_of_directory: new files take their directory's group; otherwise that of their maker, or of a set-group-ID
            directory.
        reserve_uid: the user that may take reserved blocks, beside the superuser.
        reserve_gid: the group that may take reserved blocks; 0: no group.
        errors: `CONTINUE` or `REMOUNT_RO`; as in ext4 all values of ``s_errors`` but one are the latter.
    """

    group_of_directory: bool
    reserve_uid: int
    reserve_gid: int
    errors: str


def in_force(sb: Superblock, options: Options) -> Defaults:
    """Return the settings: from the mount options if they say something, else from the superblock."""
    return Defaults(
        bool(sb.s_default_mount_opts & EXT4_DEFM_BSDGROUPS) if options.grpid is None else options.grpid,
        sb.s_def_resuid if options.resuid is None else options.resuid,
        sb.s_def_resgid if options.resgid is None else options.resgid,
        options.errors or (CONTINUE if sb.s_errors == EXT4_ERRORS_CONTINUE else REMOUNT_RO),
    )

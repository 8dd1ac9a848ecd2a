"""Layer 3: feature flags under the names that e2fsprogs prints, and the sets that daxfs supports.

A pool with an unsupported incompat feature can't be mounted. An unsupported ro_compat feature allows a read-only mount.
Compat features never matter to a reader. The caller decides; this module has only the sets and the names.
Source: lib/e2p/feature.c, fs/ext4/ext4.h.

``~`` of an IntFlag drops unknown bits. So clear bits of a superblock with ``~int(...)``.
"""

from __future__ import annotations

from enum import IntFlag


class Compat(IntFlag):
    """s_feature_compat."""

    dir_prealloc = 0x0001
    imagic_inodes = 0x0002
    has_journal = 0x0004
    ext_attr = 0x0008
    resize_inode = 0x0010
    dir_index = 0x0020
    lazy_bg = 0x0040
    snapshot_bitmap = 0x0100
    sparse_super2 = 0x0200
    fast_commit = 0x0400
    stable_inodes = 0x0800
    orphan_file = 0x1000


class Incompat(IntFlag):
    """s_feature_incompat; e2fsprogs prints ``bit64`` as 64bit."""

    compression = 0x0001
    filetype = 0x0002
    needs_recovery = 0x0004
    journal_dev = 0x0008
    meta_bg = 0x0010
    extent = 0x0040
    bit64 = 0x0080
    mmp = 0x0100
    flex_bg = 0x0200
    ea_inode = 0x0400
    dirdata = 0x1000
    metadata_csum_seed = 0x2000
    large_dir = 0x4000
    inline_data = 0x8000
    encrypt = 0x10000
    casefold = 0x20000


RESTORING = 1 << 31
"""A bit of s_feature_incompat that no ext4 has: a restore of a snapshot is under way (`daxfs.fs.restoring`)."""


class RoCompat(IntFlag):
    """s_feature_ro_compat; e2fsprogs prints ``read_only`` as read-only."""

    sparse_super = 0x0001
    large_file = 0x0002
    btree_dir = 0x0004
    huge_file = 0x0008
    uninit_bg = 0x0010
    dir_nlink = 0x0020
    extra_isize = 0x0040
    snapshot = 0x0080
    quota = 0x0100
    bigalloc = 0x0200
    metadata_csum = 0x0400
    replica = 0x0800
    read_only = 0x1000
    project = 0x2000
    shared_blocks = 0x4000
    verity = 0x8000
    orphan_present = 0x10000


SUPPORTED_INCOMPAT = (
    Incompat.filetype
    | Incompat.needs_recovery
    | Incompat.meta_bg
    | Incompat.extent
    | Incompat.bit64
    | Incompat.flex_bg
    | Incompat.metadata_csum_seed
    | Incompat.large_dir
)

SUPPORTED_RO_COMPAT = (
    RoCompat.sparse_super
    | RoCompat.large_file
    | RoCompat.huge_file
    | RoCompat.uninit_bg
    | RoCompat.dir_nlink
    | RoCompat.extra_isize
    | RoCompat.metadata_csum
    | RoCompat.project
    | RoCompat.orphan_present
)

_PRINTED = {"bit64": "64bit", "read_only": "read-only"}
_LETTERS: dict[type[IntFlag], str] = {Compat: "C", Incompat: "I", RoCompat: "R"}


def names(flags: IntFlag) -> tuple[str, ...]:
    """Return the names of the features in ``flags``, lowest bit first; an unknown bit has a name like FEATURE_I18."""
    kind = type(flags)
    found = []
    for bit in range(flags.bit_length()):
        if flags & 1 << bit:
            name = kind(1 << bit).name
            found.append(_PRINTED.get(name, name) if name else f"FEATURE_{_LETTERS[kind]}{bit}")
    return tuple(found)


def unsupported_incompat(s_feature_incompat: int) -> tuple[str, ...]:
    """Return the names of the incompat features for which daxfs refuses any mount."""
    return names(Incompat(s_feature_incompat & ~int(SUPPORTED_INCOMPAT)))


def unsupported_ro_compat(s_feature_ro_compat: int) -> tuple[str, ...]:
    """Return the names of the ro_compat features with which daxfs mounts read-only."""
    return names(RoCompat(s_feature_ro_compat & ~int(SUPPORTED_RO_COMPAT)))

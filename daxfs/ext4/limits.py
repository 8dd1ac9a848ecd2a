"""Layer 3: the numbers ext4 allows at most.

Constants only, each with the kernel's name for it. Any layer above may read them.
"""

from __future__ import annotations

EXT4_NAME_LEN = 255  # bytes in one directory entry's name
EXT4_LINK_MAX = 65000  # i_links_count; a directory beyond it (dir_nlink) counts 1

EXT_MAX_BLOCKS = 0xFFFFFFFF  # first logical block an extent-mapped file can NOT have

FAST_SYMLINK_MAX = 59  # a target of up to 59 bytes (and its NUL) lives in i_block
PATH_MAX = 4096

XATTR_SIZE_MAX = 65536  # the VFS refuses larger values (E2BIG)
XATTR_NAME_MAX = 255
EXT4_XATTR_REFCOUNT_MAX = 1024  # inodes that may share one attribute block

EXT4_HTREE_LEVEL_COMPAT = 2  # levels of a directory index, without and with large_dir
EXT4_HTREE_LEVEL = 3

EXT4_MAX_ORPHAN_FILE_BLOCKS = 512


def symlink_max(block_size: int) -> int:
    """The longest symlink target in bytes: one block with its NUL, and never more than ``PATH_MAX``."""
    return min(block_size, PATH_MAX) - 1

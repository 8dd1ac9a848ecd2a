"""Layer 3: the limits of ext4.

The constants have the kernel's names. Any layer above may read them.
"""

from __future__ import annotations

EXT4_NAME_LEN = 255  # bytes in one directory entry's name
EXT4_LINK_MAX = 65000  # i_links_count; a directory with more (dir_nlink) has a count of 1

EXT_MAX_BLOCKS = 0xFFFFFFFF  # the first logical block that an extent-mapped file can NOT have

FAST_SYMLINK_MAX = 59  # a target of up to 59 bytes (and its NUL) lies in i_block
PATH_MAX = 4096

XATTR_SIZE_MAX = 65536  # the VFS refuses larger values (E2BIG)
XATTR_NAME_MAX = 255
EXT4_XATTR_REFCOUNT_MAX = 1024  # inodes that may share one attribute block

EXT4_HTREE_LEVEL_COMPAT = 2  # levels of a directory index, without and with large_dir
EXT4_HTREE_LEVEL = 3

EXT4_MAX_ORPHAN_FILE_BLOCKS = 512


def symlink_max(block_size: int) -> int:
    """Return the length of the longest symlink target, in bytes: with its NUL it fits into a block and ``PATH_MAX``."""
    return min(block_size, PATH_MAX) - 1

"""Layer 0: every error that daxfs raises on purpose.

There are four kinds, one for each party that can repair the cause. The core raises them. The FUSE sessions translate
them into an errno, the command line into one line and an exit code. This module imports nothing of daxfs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable
from enum import StrEnum
from typing import Any


class FsError(OSError):
    """An operation was refused with a POSIX error number; nothing is wrong with the pool.

    It is an ``OSError``, so a program that uses daxfs as a library needs no new ``except``.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(number, message or os.strerror(number))


class OnStorage(FsError):
    """An operation needs data that lies on storage, and has changed nothing (EAGAIN).

    It is not for callers of `FileSystem`, unless they have asked for it (`FileSystem.leave_storage_to`): they run the
    steps that ``bring`` returns, then the operation again.
    """

    def __init__(self, bring: Callable[[], Generator[Any, None, None]]) -> None:
        super().__init__(errno.EAGAIN, "the data lies on storage")
        self.bring = bring


class MetadataOnStorage(FsError):
    """A change needs a block of metadata that another program has put on storage, and that found no place in memory."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


class CorruptKind(StrEnum):
    """What contradicts the format: one member for each kind of check.

    The value is the text that users see, and the text that ``s_last_error_func`` records. Callers of `Corrupt` pass a
    member and never a text of their own. docs/FORMAT.md says what to do about each.
    """

    # The pool and its superblock
    POOL_SIZE = "pool size"
    SUPERBLOCK_MAGIC = "superblock magic"
    SUPERBLOCK_CHECKSUM = "superblock checksum"
    SUPERBLOCK_CHECKSUM_TYPE = "superblock checksum type"
    SUPERBLOCK_REVISION = "superblock revision"
    SUPERBLOCK_HASH_VERSION = "superblock hash version"
    SUPERBLOCK_BLOCK_SIZE = "superblock block size"
    SUPERBLOCK_BLOCK_COUNT = "superblock block count"
    SUPERBLOCK_BLOCKS_PER_GROUP = "superblock blocks per group"
    SUPERBLOCK_CLUSTER_SIZE = "superblock cluster size"
    SUPERBLOCK_CLUSTERS_PER_GROUP = "superblock clusters per group"
    SUPERBLOCK_DESCRIPTOR_BLOCKS = "superblock descriptor blocks"
    SUPERBLOCK_DESCRIPTOR_SIZE = "superblock descriptor size"
    SUPERBLOCK_FIRST_DATA_BLOCK = "superblock first data block"
    SUPERBLOCK_FIRST_INODE = "superblock first inode"
    SUPERBLOCK_FIRST_META_GROUP = "superblock first meta group"
    SUPERBLOCK_FLEX_GROUP_SIZE = "superblock flex group size"
    SUPERBLOCK_INODE_COUNT = "superblock inode count"
    SUPERBLOCK_INODE_SIZE = "superblock inode size"
    SUPERBLOCK_INODE_TABLE = "superblock inode table"
    SUPERBLOCK_INODES_PER_GROUP = "superblock inodes per group"
    SUPERBLOCK_RESERVED_GDT_BLOCKS = "superblock reserved GDT blocks"

    # Groups and their bitmaps
    GROUP_NUMBER = "group number"
    GROUP_DESCRIPTOR_BLOCK_NUMBER = "group descriptor block number"
    GROUP_DESCRIPTOR_CHECKSUM = "group descriptor checksum"
    GROUP_DESCRIPTOR_COUNTER = "group descriptor counter"
    BLOCK_BITMAP = "block bitmap"
    BLOCK_BITMAP_CHECKSUM = "block bitmap checksum"
    INODE_BITMAP = "inode bitmap"
    INODE_BITMAP_CHECKSUM = "inode bitmap checksum"

    # Inodes
    INODE_NUMBER = "inode number"
    INODE_CHECKSUM = "inode checksum"
    INODE_EXTRA_SIZE = "inode extra size"
    INODE_FLAGS = "inode flags"
    INODE_MODE = "inode mode"
    INODE_SIZE = "inode size"
    INODE_BLOCK_COUNT = "inode block count"
    INODE_XATTR_BLOCK = "inode xattr block"
    SYMBOLIC_LINK_WITHOUT_ITS_BLOCK = "symbolic link without its block"

    # Maps of files
    BLOCK_NUMBER = "block number"
    BLOCK_POINTER = "block pointer"
    BLOCK_POINTERS = "block pointers"
    EXTENT_HEADER = "extent header"
    EXTENT_INDEX = "extent index"
    EXTENT_ENTRIES = "extent entries"
    EXTENT_TREE = "extent tree"
    EXTENT_BLOCK_CHECKSUM = "extent block checksum"

    # Directories
    DIRECTORY_SIZE = "directory size"
    DIRECTORY_BLOCK = "directory block"
    DIRECTORY_BLOCK_CHECKSUM = "directory block checksum"
    DIRECTORY_BLOCK_WITHOUT_CHECKSUM_TAIL = "directory block without checksum tail"
    DIRECTORY_ENTRY = "directory entry"
    DIRECTORY_ENTRY_OF_A_RESERVED_INODE = "directory entry of a reserved inode"
    DIRECTORY_HASH_VERSION = "directory hash version"
    DIRECTORY_INDEX = "directory index"
    DIRECTORY_INDEX_CHECKSUM = "directory index checksum"
    DIRECTORY_INDEX_ROOT = "directory index root"
    DIRECTORY_LEAF = "directory leaf"
    DIRECTORIES_FORM_A_LOOP = "directories form a loop"

    # Growth
    RESIZE_INODE = "resize inode"

    # Extended attributes
    EXTENDED_ATTRIBUTES = "extended attributes"
    ATTRIBUTE_BLOCK = "attribute block"
    ATTRIBUTE_BLOCK_CHECKSUM = "attribute block checksum"
    ACCESS_CONTROL_LIST = "access control list"

    # The orphan list and the orphan file
    ORPHAN_LIST = "orphan list"
    ORPHAN_INODE = "orphan inode"
    ORPHAN_FILE = "orphan file"
    ORPHAN_FILE_BLOCK = "orphan file block"
    ORPHAN_FILE_BLOCK_CHECKSUM = "orphan file block checksum"

    # The journal
    JOURNAL = "journal"
    JOURNAL_INODE = "journal inode"
    JOURNAL_INODE_HAS_A_HOLE = "journal inode has a hole"
    JOURNAL_INODE_WITHOUT_BLOCKS = "journal inode without blocks"
    JOURNAL_TOO_SHORT = "journal too short"
    JOURNAL_NOT_EMPTY = "journal not empty"
    JOURNAL_SUPERBLOCK = "journal superblock"
    JOURNAL_SUPERBLOCK_CHECKSUM = "journal superblock checksum"
    JOURNAL_BLOCK_NUMBER = "journal block number"
    JOURNAL_BLOCK_CHECKSUM = "journal block checksum"
    JOURNAL_DESCRIPTOR_CHECKSUM = "journal descriptor checksum"
    JOURNAL_COMMIT_CHECKSUM = "journal commit checksum"
    JOURNAL_REVOKE_BLOCK = "journal revoke block"
    FAST_COMMIT = "fast commit"


class Corrupt(FsError):
    """The pool's content contradicts the format (EUCLEAN).

    Attributes:
        kind: what contradicts the format.
        where: the structure in which it was found.
    """

    def __init__(self, kind: CorruptKind, where: str) -> None:
        super().__init__(errno.EUCLEAN, f"{kind}: {where}")
        self.kind = kind
        self.where = where


class MissingMemory(FsError):
    """A load or a store met memory of the pool that is not there.

    EIO: the medium failed, or the pool's file was cut. ENOSPC: the file has a hole that its file system can't fill.

    Attributes:
        offset: where in the pool the memory is missing, in bytes; None: not known.
        of_data: it holds data of a file. Otherwise it holds metadata, as far as is known.
        in_change: an operation that changes the volume needed it.
    """

    def __init__(self, number: int, message: str = "", offset: int | None = None) -> None:
        super().__init__(number, message)
        self.offset = offset
        self.of_data = False
        self.in_change = False

    @property
    def stops_change(self) -> bool:
        """Whether a change failed because its metadata is missing; what lacks only room in a file system is not."""
        return self.errno == errno.EIO and self.in_change and not self.of_data


class BadMemory(MissingMemory):
    """A request needs memory of the pool that is known to be bad (EIO); nothing was touched."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


class Unsupported(FsError):
    """The pool uses features that this version of daxfs does not know; ``features`` holds their e2fsprogs names."""

    def __init__(self, features: Iterable[str]) -> None:
        self.features = tuple(features)
        super().__init__(errno.EOPNOTSUPP, "unsupported features: " + " ".join(self.features))


class UserError(Exception):
    """An error that the user can repair.

    The message is one line that names the thing and the repair. ``code`` is the exit code of the program.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class PoolError(UserError):
    """The pool can't be opened as memory: it is missing, too small or in use, or can't be accessed or flushed."""

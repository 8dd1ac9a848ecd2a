"""Directories: names and what they refer to.

The facade over both kinds: linear ones (`linear`) and those with an index (`htree`), whose blocks have the same entries
(`dirblocks`); `dirlist` lists them. The fs layer calls what is here and nothing below it. Link counts, times and what
POSIX says about names are its matter: here names are bytes that are, or are not, in a directory.

A name is looked for once: `find` returns its `Place`, which `insert`, `replace` and `remove` take.

Functions that take a ``tx`` change the directory, which must come from ``inodes.edit`` of the same handle. One that
raises leaves things half done: the handle's rollback, which the error causes, undoes them.

Sources: ``fs/ext4/namei.c``, ``fs/ext4/dir.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import dirent
from daxfs.ext4 import htree as format_
from daxfs.ext4.inode import EXT4_INDEX_FL, FT_DIR, FT_MAX, FT_UNKNOWN
from daxfs.ext4.limits import EXT4_NAME_LEN
from daxfs.structures import dirblocks, dirlist, htree, linear
from daxfs.structures.dirhints import Entry, Hints

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

__all__ = [
    "Entry",
    "Place",
    "create",
    "entries",
    "find",
    "insert",
    "is_empty",
    "parent",
    "remove",
    "replace",
    "set_parent",
]


@dataclass(slots=True, eq=False)
class Place:
    """Where a name is in a directory, or would be.

    It is good, as its ``directory`` is, until the end of the handle it was found in, and stays good whatever that
    handle does: where entries have moved meanwhile, the name is looked for again.

    Attributes:
        directory: the inode of the directory.
        name: the name.
        ino: what it refers to, 0 if there is no such name.
        file_type: of that, ``FT_*``.
        block: the physical block of the entry. If there is none: of the block that it belongs into, 0 if there are
            several.
        offset: of the entry in the block, -1 if there is none.
        moves: ``Hints.moves`` when this was found.
    """

    directory: Inode
    name: bytes
    ino: int
    file_type: int
    block: int
    offset: int
    moves: int


# Reading


def find(view: View, directory: Inode, name: bytes) -> Place:
    """Look for a name, "." and ".." included.

    Raises:
        Corrupt: a block that the search comes through is damaged, or the entry's inode number is.
    """
    moves = view.caches[Hints].moves
    number, offset = _locate(view, directory, name)
    if offset < 0:
        return Place(directory, name, 0, FT_UNKNOWN, number, offset, moves)
    start = view.block(number)[offset : offset + dirent.HEADER_SIZE]
    ino = int.from_bytes(start[:4], "little")
    if not 0 < ino <= view.geometry.inodes_count:
        raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{dirblocks.where(directory, number)}: inode {ino}")
    file_type = start[7] if view.geometry.has_filetype else FT_UNKNOWN
    return Place(directory, name, ino, file_type if file_type < FT_MAX else FT_UNKNOWN, number, offset, moves)


def _locate(view: View, directory: Inode, name: bytes) -> tuple[int, int]:
    """The block and offset of a `Place`."""
    if not directory.size or not 0 < len(name) <= EXT4_NAME_LEN:
        return 0, -1
    if name in (b".", b".."):
        number, _, offset = dirblocks.dots(view, directory)
        return number, (0 if name == b"." else offset)
    if dirblocks.is_indexed(view, directory):
        return htree.locate(view, directory, name)
    return linear.locate(view, directory, name)


def entries(view: View, directory: Inode, cookie: int = 0) -> Iterator[Entry]:
    """The entries strictly behind ``cookie``, lazily and in portions; valid until the next change.

    A listing that goes on from the cookie of the last entry it took reports every entry that was there all the time
    once, whatever was added, removed or renamed meanwhile, and also if an index was made of the directory.

    Args:
        view: what to read.
        directory: the directory.
        cookie: 0 for all of it, or that of an entry that was listed. Any other number up to 2^64 does no harm.

    Raises:
        Corrupt: when the listing comes to a damaged block.
    """
    return dirlist.entries(view, directory, cookie)


def is_empty(view: View, directory: Inode) -> bool:
    """Whether there is nothing but "." and ".." (``ext4_empty_dir``); every block is looked at.

    Raises:
        Corrupt: a block is damaged.
    """
    blocks = dirblocks.count(view, directory)
    if not blocks:
        return True
    limit = dirblocks.limit_of(view.geometry)
    number, content, dotdot = dirblocks.dots(view, directory)
    start = dotdot + (content.cast("I")[dotdot // 4 + 1] & 0xFFFF)
    if start < limit and dirblocks.live(directory, number, bytes(content), start, limit)[0]:
        return False
    for lblk in range(1, blocks):
        number = dirblocks.number_of(view, directory, lblk)
        content = dirblocks.any_block(view, directory, number)
        # Where the kinds look alike, without checksums, an index block is an entry that is not in use.
        if format_.is_node(content.cast("I")):
            continue
        if dirblocks.live(directory, number, bytes(content), 0, limit)[0]:
            return False
    return True


def parent(view: View, directory: Inode) -> int:
    """The inode number that ".." refers to.

    Raises:
        Corrupt: there is no "..", or no such inode.
    """
    number, content, offset = dirblocks.dots(view, directory)
    return dirlist.checked_ino(view, directory, number, content.cast("I")[offset // 4])


# Changing


def create(tx: Handle, directory: Inode, parent_ino: int) -> None:
    """Give a new directory, whose map is empty, its first block with "." and ".."."""
    file_type = FT_DIR if tx.geometry.has_filetype else FT_UNKNOWN
    _, number, block = dirblocks.append(tx, directory)
    dot = dirent.pack_entry(directory.number, 12, b".", file_type).ljust(12, b"\0")
    dirblocks.fill(tx, number, block, [dot, dirent.pack_entry(parent_ino, 0, b"..", file_type)])


def insert(tx: Handle, place: Place, ino: int, file_type: int) -> None:
    """Add a name.

    Args:
        tx: the handle; a name takes about 3 credits, one that makes an index grow up to 12.
        place: of a name of 1 to 255 bytes that is not there.
        ino: what it refers to.
        file_type: ``FT_*``; not stored without the filetype feature.

    Raises:
        FsError: EEXIST: it is there. ENOSPC: no block is free, or the directory's index is full.
        Corrupt: a block is damaged.
    """
    directory, name = place.directory, place.name
    if place.ino:
        raise FsError(errno.EEXIST, f"inode {directory.number} has an entry {name!r}")
    if not 0 < len(name) <= EXT4_NAME_LEN:
        raise ValueError(f"a name of {len(name)} bytes")
    if directory.words[8] & EXT4_INDEX_FL and not tx.geometry.has_dir_index:
        # Nobody keeps the index right, so it must not be believed when the feature is on again.
        directory.flags &= ~EXT4_INDEX_FL
    leaf = place.block if place.moves == tx.caches[Hints].moves else 0
    if not leaf or not dirblocks.place(tx, directory, leaf, name, ino, file_type):
        if dirblocks.is_indexed(tx, directory):
            htree.insert(tx, directory, name, ino, file_type)
        else:
            _insert_linear(tx, directory, name, ino, file_type)
    dirlist.amend(tx, directory, name, Entry(name, ino, file_type if tx.geometry.has_filetype else FT_UNKNOWN, 0))


def _insert_linear(tx: Handle, directory: Inode, name: bytes, ino: int, file_type: int) -> None:
    if linear.place(tx, directory, name, ino, file_type):
        return
    if tx.geometry.has_dir_index and dirblocks.count(tx, directory) == 1:
        htree.convert(tx, directory)
        htree.insert(tx, directory, name, ino, file_type)
    else:
        linear.append(tx, directory, name, ino, file_type)


def _entry(tx: Handle, place: Place) -> tuple[int, int]:
    """The block and offset of an entry that must be there, looked for again where entries have moved."""
    if place.offset >= 0 and place.moves == tx.caches[Hints].moves:
        return place.block, place.offset
    number, offset = _locate(tx, place.directory, place.name)
    if offset < 0:
        raise FsError(errno.ENOENT, f"inode {place.directory.number} has no entry {place.name!r}")
    return number, offset


def remove(tx: Handle, place: Place) -> None:
    """Take away a name that is there. Blocks that this leaves empty stay, as ext4 leaves them.

    Raises:
        FsError: ENOENT: it is not there.
        Corrupt: a block is damaged.
    """
    number, offset = _entry(tx, place)
    dirblocks.take(tx, place.directory, number, offset)
    dirlist.amend(tx, place.directory, place.name, None)


def replace(tx: Handle, place: Place, ino: int, file_type: int) -> None:
    """Make a name that is there refer to another inode. Raises as `remove`."""
    number, offset = _entry(tx, place)
    directory, name = place.directory, place.name
    file_type = file_type if tx.geometry.has_filetype else FT_UNKNOWN
    block = dirblocks.writable(tx, directory, number)
    block[offset : offset + 4] = ino.to_bytes(4, "little")
    block[offset + 7] = file_type
    dirlist.amend(tx, directory, name, Entry(name, ino, file_type, 0))


def set_parent(tx: Handle, directory: Inode, ino: int) -> None:
    """Make ".." refer to ``ino``. Raises Corrupt when there is no ".."."""
    number, _, offset = dirblocks.dots(tx, directory)
    dirblocks.writable(tx, directory, number)[offset : offset + 4] = ino.to_bytes(4, "little")

"""Directories: names and the inodes that they refer to.

This is the facade over both kinds of directories, linear ones (`linear`) and indexed ones (`htree`). Their blocks have
the same entries (`dirblocks`), and `dirlist` lists them. The fs layer calls only this module. It handles link counts,
times and the rules of POSIX for names; here a name is a string of bytes that is, or is not, in a directory.

A name is searched once: `find` returns its `Place`, which `insert`, `replace` and `remove` take.

Functions that take a ``tx`` change the directory, which must come from ``inodes.edit`` of the same handle. A function
that raises may have made part of its changes; the error makes the handle roll them back.

Sources: ``fs/ext4/namei.c``, ``fs/ext4/dir.c``.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import dirent
from daxfs.ext4 import htree as format_
from daxfs.ext4.inode import EXT4_INDEX_FL, FT_DIR, FT_MAX, FT_UNKNOWN
from daxfs.ext4.limits import EXT4_NAME_LEN
from daxfs.journal.cache import Cache
from daxfs.structures import dirblocks, dirlist, htree, inodes, linear, salvage
from daxfs.structures.dirhints import Absence, Entry, Hints, Listing

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

__all__ = [
    "Entry",
    "Listing",
    "Place",
    "Watched",
    "create",
    "entries",
    "find",
    "ino_of",
    "insert",
    "is_empty",
    "parent",
    "portion",
    "remove",
    "replace",
    "set_parent",
]


class Place:
    """The place of a name in a directory, or the place where the name would be.

    A place is valid, like its ``directory``, until the end of the handle in which it was found, whatever that handle
    changes: if entries have moved since, the name is searched again.

    Attributes:
        directory: the inode of the directory.
        name: the name.
        ino: the inode that the name refers to; 0 if there is no such name.
        file_type: the type of that inode, ``FT_*``.
        block: the physical block of the entry. If there is no entry: the block to which it belongs, or 0 if several
            blocks are possible.
        offset: the offset of the entry in the block; -1 if there is no entry.
        moves: ``Hints.moves`` at the time of the search.
    """

    __slots__ = ("block", "directory", "file_type", "ino", "moves", "name", "offset")

    def __init__(
        self, directory: Inode, name: bytes, ino: int, file_type: int, block: int, offset: int, moves: int
    ) -> None:
        self.directory = directory
        self.name = name
        self.ino = ino
        self.file_type = file_type
        self.block = block
        self.offset = offset
        self.moves = moves


class Watched(Cache):
    """Directories in which somebody searches for names in several steps, and in which no name was made meanwhile."""

    __slots__ = ("_watches",)

    def __init__(self) -> None:
        self._watches: dict[int, object] = {}

    def begin(self, ino: int) -> object:
        """Begin to watch a directory; return the watch. It ends an earlier one."""
        watch = self._watches[ino] = object()
        return watch

    def lasts(self, ino: int, watch: object) -> bool:
        """Whether no name was made in the directory since the watch began."""
        return self._watches.get(ino) is watch

    def end(self, ino: int, watch: object) -> None:
        """End a watch."""
        if self.lasts(ino, watch):
            del self._watches[ino]

    def name_made(self, ino: int) -> None:
        """End the watch of a directory that gets a name."""
        if self._watches:
            self._watches.pop(ino, None)


# Reading


def read_inode(view: View, ino: int) -> Inode:
    """Return a directory's inode (ENOTDIR)."""
    directory = inodes.read(view, ino)
    if not stat.S_ISDIR(directory.mode):
        raise FsError(errno.ENOTDIR)
    return directory


def find(view: View, directory: Inode, name: bytes) -> Place:
    """Search a name, "." and ".." included.

    A damaged block does not hide the names in others.

    Raises:
        Corrupt: the name was not found, but a damaged block may have it; or the entry's inode number is out of range.
    """
    moves = view.caches[Hints].moves
    number, offset = _locate(view, directory, name)
    if offset < 0:
        return Place(directory, name, 0, FT_UNKNOWN, number, offset, moves)
    ino, file_type = _refers_to(view, directory, number, offset)
    return Place(directory, name, ino, file_type, number, offset, moves)


def ino_of(view: View, directory: Inode, name: bytes) -> int:
    """Return the inode that a name refers to, or 0: `find` for readers, who need no place. Raises as `find`."""
    number, offset = _locate(view, directory, name)
    return 0 if offset < 0 else _refers_to(view, directory, number, offset)[0]


def _refers_to(view: View, directory: Inode, number: int, offset: int) -> tuple[int, int]:
    """Return the inode number and the file type of an entry."""
    ino, _, _, file_type = dirent.ENTRY.unpack_from(view.block(number), offset)
    if not 0 < ino <= view.geometry.inodes_count:
        raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{dirblocks.where(directory, number)}: inode {ino}")
    return ino, file_type if view.geometry.has_filetype and file_type < FT_MAX else FT_UNKNOWN


def _locate(view: View, directory: Inode, name: bytes) -> tuple[int, int]:
    """Return the block and offset of a name, as a `Place` has them."""
    if not directory.size or not 0 < len(name) <= EXT4_NAME_LEN:
        return 0, -1
    if name in (b".", b".."):
        number, _, offset = dirblocks.dots(view, directory)
        return number, (0 if name == b"." else offset)
    hints, key = view.caches[Hints], (directory.number, directory.words[25])
    absence = hints.absence
    if absence is not None and absence.name == name and absence.moves == hints.moves and absence.key == key:
        return absence.block, -1
    try:
        if dirblocks.is_indexed(view, directory):
            number, offset = htree.locate(view, directory, name)
        else:
            number, offset = linear.locate(view, directory, name)
    except Corrupt as error:
        return salvage.locate(view, directory, name, error)
    if offset < 0:
        hints.absence = Absence(name, key, hints.moves, number)
    return number, offset


def entries(view: View, directory: Inode, cookie: int = 0) -> Iterator[Entry]:
    """Yield the entries strictly after ``cookie``, reading lazily; the iterator is valid until the next change.

    A reader may continue from the cookie of the last entry that it took. Then it gets each entry that was present all
    the time exactly once, whatever was added, removed or renamed in between, and also if the directory became an
    indexed one.

    Args:
        view: what to read.
        directory: the directory.
        cookie: 0 for all entries, or the cookie of a listed entry. Any other number up to 2^64 does no harm.

    What is damaged is left out and noted.
    """
    return dirlist.entries(view, directory, cookie)


def portion(view: View, directory: Inode, cookie: int = 0) -> tuple[Listing, int | None]:
    """Return the first entries after ``cookie``, as `entries` does, out of a few blocks of the directory.

    Returns:
        Some hundred entries, or fewer; none at all if these blocks have none. And the cookie after which the next
        portion begins; None: this was the last one.
    """
    return dirlist.portion(view, directory, cookie)


def is_empty(view: View, directory: Inode, first: int = 0, end: int | None = None) -> bool:
    """Whether the directory has only "." and ".." (``ext4_empty_dir``) in its blocks from ``first`` up to ``end``.

    By default these are all blocks. The function reads each of them.

    Raises:
        Corrupt: a block is damaged.
    """
    blocks = dirblocks.count(view, directory)
    if not blocks:
        return True
    limit = dirblocks.limit_of(view.geometry)
    if not first:
        number, content, dotdot = dirblocks.dots(view, directory)
        start = dotdot + (content.cast("I")[dotdot // 4 + 1] & 0xFFFF)
        if start < limit and dirblocks.live(directory, number, bytes(content), start, limit).offsets:
            return False
    for lblk in range(max(first, 1), blocks if end is None else min(end, blocks)):
        number = dirblocks.number_of(view, directory, lblk)
        content = dirblocks.any_block(view, directory, number)
        # Without checksums the kinds look alike: an index block is a block with one unused entry.
        if format_.is_node(content.cast("I")):
            continue
        if dirblocks.live(directory, number, bytes(content), 0, limit).offsets:
            return False
    return True


def parent(view: View, directory: Inode) -> int:
    """Return the inode number that ".." refers to.

    Raises:
        Corrupt: there is no "..", or its inode number is out of range.
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
        tx: the handle; a name takes about 3 credits, up to 12 if the index needs more blocks.
        place: the place of a name of 1 to 255 bytes that is not in the directory.
        ino: the inode that the name shall refer to.
        file_type: ``FT_*``; not stored without the filetype feature.

    Raises:
        FsError: EEXIST: the name is there. ENOSPC: no block is free, or the directory's index is full.
        Corrupt: a block is damaged.
    """
    directory, name = place.directory, place.name
    if place.ino:
        raise FsError(errno.EEXIST, f"inode {directory.number} has an entry {name!r}")
    if not 0 < len(name) <= EXT4_NAME_LEN:
        raise ValueError(f"a name of {len(name)} bytes")
    if directory.words[8] & EXT4_INDEX_FL and not tx.geometry.has_dir_index:
        # Without the feature the index is not updated, so it must not be used when the feature is on again.
        directory.flags &= ~EXT4_INDEX_FL
    tx.caches[Watched].name_made(directory.number)
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
    """Return the block and offset of an entry that must exist; search it again if entries have moved."""
    if place.offset >= 0 and place.moves == tx.caches[Hints].moves:
        return place.block, place.offset
    number, offset = _locate(tx, place.directory, place.name)
    if offset < 0:
        raise FsError(errno.ENOENT, f"inode {place.directory.number} has no entry {place.name!r}")
    return number, offset


def remove(tx: Handle, place: Place) -> None:
    """Remove a name. Blocks that become empty stay in the directory, as in ext4.

    Raises:
        FsError: ENOENT: the name is not in the directory.
        Corrupt: a block is damaged.
    """
    number, offset = _entry(tx, place)
    dirblocks.take(tx, place.directory, number, offset)
    dirlist.amend(tx, place.directory, place.name, None)


def replace(tx: Handle, place: Place, ino: int, file_type: int) -> None:
    """Make an existing name refer to another inode. Raises as `remove`."""
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

"""What is sound of a damaged directory, for readers.

The other modules of directories raise Corrupt where a directory contradicts the format. Readers then come here: every
block that is mapped, and whose checksum is right, is followed entry by entry up to the first length that is impossible,
as the kernel does. Entries with an impossible name or inode number are left out. The index is not used at all. Nobody
changes what is found here without the checks of `dirblocks`. Callers: `directories` for names, `dirlist` for listings;
they note the damage. Blocks in unwritten extents are read: nobody allocates them for directories, so the flag is the
damage.

Sources: ``fs/ext4/dir.c`` (``ext4_readdir``), ``fs/ext4/namei.c`` (``__ext4_find_entry``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError, OnStorage
from daxfs.ext4 import dirent
from daxfs.ext4 import htree as format_
from daxfs.journal.cache import Cache
from daxfs.structures import dirblocks, mapping
from daxfs.structures.dirhints import Hints
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

MOST_NAMES = 100_000
"""The most names that are found in a damaged directory; they take 20 MiB of memory."""
MOST_DAMAGED = 1024
"""The most directories of which it is remembered that they are damaged."""
MOST_GAPS = 1024
"""The most holes and damaged parts of a map that a reader passes: a damaged size claims any number of them."""


class Damaged(Cache):
    """Directories of which a listing has met damage: from then on all listings read what is sound of them.

    So a reader who goes on with a listing finds the names that its first part was made of.
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: set[tuple[int, int]] = set()

    def holds(self, key: tuple[int, int]) -> bool:
        """Whether this directory (inode number and generation) is damaged."""
        return key in self._keys

    def add(self, key: tuple[int, int]) -> None:
        """Remember a damaged directory."""
        if len(self._keys) >= MOST_DAMAGED:
            self._keys.clear()
        self._keys.add(key)


def count(view: View, directory: Inode) -> int:
    """Return how many blocks a directory with an impossible size may have: those that ``i_blocks`` counts, or a few."""
    claimed = -(-directory.size // view.block_size)
    return min(claimed, max(directory.blocks * dirblocks.SECTOR // view.block_size, dirblocks.FEW_BLOCKS))


def blocks_of(view: View, directory: Inode) -> Iterator[int]:
    """Yield the physical blocks of a directory, without its holes and damaged parts."""
    lblk, end, gaps = 0, count(view, directory), 0
    budget = view.geometry.blocks_count  # no directory has more, so a map that names blocks twice ends
    while lblk < end and gaps < MOST_GAPS and budget > 0:
        try:
            extent = mapping.lookup(view, directory, lblk)
        except Corrupt:
            lblk += 1
            gaps += 1
            continue
        except OnStorage:
            raise
        except FsError:
            return  # past the last block that a map can express
        length = max(min(extent.length, end - lblk), 1)
        if extent.pblk:
            budget -= length
            yield from range(extent.pblk, extent.pblk + length)
        else:
            gaps += 1
        lblk += length


def block(view: View, directory: Inode, lblk: int) -> dirblocks.UsedEntries:
    """Return the sound entries of logical block ``lblk``, which may be a hole or damaged."""
    try:
        extent = mapping.lookup(view, directory, lblk)
    except OnStorage:
        raise
    except FsError:
        return _nothing()
    if not extent.pblk:
        return _nothing()
    return entries(view, directory, extent.pblk)


def entries(view: View, directory: Inode, number: int) -> dirblocks.UsedEntries:
    """Return the sound entries of a physical block, without "." and ".."; none if its checksum is wrong."""
    try:
        content = dirblocks.any_block(view, directory, number)
    except Corrupt:
        return _nothing()
    w = content.cast("I")
    if format_.is_node(w) or format_.is_root(w):
        return _nothing()
    data = bytes(content)
    limit = dirblocks.limit_of(view.geometry)
    inodes_count = view.geometry.inodes_count
    found = _nothing()
    offset = 0
    while offset <= limit - dirent.MIN_REC_LEN:
        ino, rec_len, length, file_type = dirent.ENTRY.unpack_from(data, offset)
        end = offset + rec_len
        if rec_len < dirent.MIN_REC_LEN or rec_len & 3 or end > limit or (ino and offset + 8 + length > end):
            break
        name = data[offset + 8 : offset + 8 + length]
        if 0 < ino <= inodes_count and name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name:
            found.offsets.append(offset)
            found.names.append(name)
            found.inos.append(ino)
            found.file_types.append(file_type)
        offset = end
    return found


def locate(view: View, directory: Inode, name: bytes, error: Corrupt) -> tuple[int, int]:
    """Search a name in all blocks, after a search has met ``error``; return its block and its offset there.

    Raises:
        Corrupt: ``error``: no sound entry has this name, but a damaged one may.
    """
    found = _places(view, directory).get(name)
    if found is None:
        raise error
    note(view, error)
    return found


class _Places(Cache):
    """Where the sound entries of the directory are that was searched last: a search of each name reads all blocks.

    Attributes:
        key: the directory, its size, and ``Hints.moves`` at that time; None: no directory.
        places: name -> physical block and offset.
    """

    __slots__ = ("key", "places")

    def __init__(self) -> None:
        self.key: tuple[int, int, int, int] | None = None
        self.places: dict[bytes, tuple[int, int]] = {}

    def drop(self) -> None:
        """Forget the directory."""
        self.key = None
        self.places = {}


def _places(view: View, directory: Inode) -> dict[bytes, tuple[int, int]]:
    """Return where the sound entries of a directory are: the first `MOST_NAMES` of them."""
    known = view.caches[_Places]
    key = (directory.number, directory.generation, directory.size, view.caches[Hints].moves)
    if known.key != key:
        known.places = {}
        for number in blocks_of(view, directory):
            used = entries(view, directory, number)
            for name, offset in zip(used.names, used.offsets, strict=True):
                known.places.setdefault(name, (number, offset))
            if len(known.places) >= MOST_NAMES:
                break
        known.key = key
    return known.places


def _nothing() -> dirblocks.UsedEntries:
    return dirblocks.UsedEntries([], [], [], [])

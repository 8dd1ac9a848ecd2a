"""The cache of directories in DRAM: hints that save time, and the cookies of colliding names in listings.

Only ``pins`` is needed for correctness (see `dirlist`). Nothing survives an unmount, and everything is bounded. The
hints of a pool are ``view.caches[Hints]``. They are valid under these rules, which the callers, the modules of
directories, keep:

1. A directory's blocks stay where they are as long as its inode number and generation stay. Code that moves one of them
   (`dirblocks.move`) calls `forget_place`, and `forget_entries` for both places.
2. Code that changes a block's entries updates ``tails``, ``rooms`` and ``starts``, increments ``moves`` when entries
   move or go, drops ``absence`` when one is added, and updates the listing in ``chunks`` (`dirlist.amend`) or removes
   it.
3. Code that is about to change a block calls `changing` in the same handle first: a rollback then drops all hints.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from daxfs.ext4 import dirent
from daxfs.journal.cache import Cache

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle

MAX_MAPPED = 1 << 16
"""The most blocks whose place is cached, over all directories."""
MAX_TAILS = 1 << 14
"""The most blocks whose last entry is cached."""
MAX_STARTS = 1 << 11
"""The most blocks whose entries' offsets are cached; each takes some 400 bytes."""
MAX_CHUNKS = 16
"""The most directories that have a piece of a listing cached."""
MAX_PINS = 1 << 13
"""The most names whose cookie is cached because another name has the same hash."""

Key = tuple[int, int]
"""A directory: inode number and generation."""


class Absence(NamedTuple):
    """A name that was searched and is not in a directory: the kernel looks a name up before it makes it.

    Attributes:
        name: the name.
        key: the directory.
        moves: `Hints.moves` at the time of the search.
        block: the block to which the name belongs (`directories.Place.block`).
    """

    name: bytes
    key: Key
    moves: int
    block: int


class Entry(NamedTuple):
    """One name of a directory. ``cookie``: a listing continues after it; 0: the entry does not come from a listing."""

    name: bytes
    ino: int
    file_type: int
    cookie: int


class Listing:
    """Names of a directory in the order of a listing, in columns: a name costs no object but its bytes.

    Attributes:
        names: the names.
        inos: the inode number of each.
        file_types: the file type of each.
        cookies: the cookie of each.
    """

    __slots__ = ("cookies", "file_types", "inos", "names")

    def __init__(self, names: list[bytes], inos: list[int], file_types: list[int], cookies: list[int]) -> None:
        self.names = names
        self.inos = inos
        self.file_types = file_types
        self.cookies = cookies

    def __len__(self) -> int:
        return len(self.names)

    def entries(self) -> list[Entry]:
        """Return the names as entries."""
        rows = zip(self.names, self.inos, self.file_types, self.cookies, strict=True)
        return [Entry(name, ino, file_type, cookie) for name, ino, file_type, cookie in rows]

    def part(self, first: int, stop: int) -> Listing:
        """Return the names from the index ``first`` up to ``stop``."""
        return Listing(
            self.names[first:stop], self.inos[first:stop], self.file_types[first:stop], self.cookies[first:stop]
        )

    def append(self, more: Listing) -> None:
        """Append the names of another listing."""
        self.names += more.names
        self.inos += more.inos
        self.file_types += more.file_types
        self.cookies += more.cookies

    def put(self, index: int, entry: Entry) -> None:
        """Insert an entry."""
        self.names.insert(index, entry.name)
        self.inos.insert(index, entry.ino)
        self.file_types.insert(index, entry.file_type)
        self.cookies.insert(index, entry.cookie)

    def remove(self, index: int) -> None:
        """Remove an entry."""
        del self.names[index], self.inos[index], self.file_types[index], self.cookies[index]


class Chunk:
    """All entries of one directory with a cookie in [``low``, ``end``), in order.

    Attributes:
        low: the lowest cookie of the range.
        end: the cookie after the range; None: the range extends to the end of the directory.
        version: the version of the hash from which the cookies are made.
        listing: the entries.
    """

    __slots__ = ("end", "listing", "low", "version")

    def __init__(self, low: int, end: int | None, version: int, listing: Listing) -> None:
        self.low = low
        self.end = end
        self.version = version
        self.listing = listing

    def names_after(self, cookie: int) -> int:
        """Return how many names there are after ``cookie``."""
        return len(self.listing) - bisect_right(self.listing.cookies, cookie)

    def follow(self, cookie: int, more: Chunk) -> None:
        """Hold the names after ``cookie`` and those of ``more``, whose range begins at ``end`` or before."""
        assert self.end is not None
        kept, new = self.listing, more.listing
        kept = kept.part(bisect_right(kept.cookies, cookie), len(kept))
        kept.append(new.part(bisect_left(new.cookies, self.end), len(new)))
        self.low, self.end, self.listing = cookie + 1, more.end, kept


class Hints(Cache):
    """The hints of one pool.

    Attributes:
        maps: directory -> logical block -> physical block.
        mapped: the number of blocks in ``maps``.
        tails: physical block -> offset of its last entry.
        rooms: physical block -> the size of its largest gap, or more.
        starts: physical block -> the offsets of its first entries, as far as they were followed (`dirent.Starts`).
        moves: how often entries of any directory have moved or gone. A place that was found at a lower count may hold
            another entry now.
        absence: the name that was searched last without success; None: an entry was added since.
        chunks: directory -> the piece of the directory that was listed last.
        pins: directory -> name -> cookie, for names that share their hash with others.
        pinned: the number of names in ``pins``.
    """

    __slots__ = ("absence", "chunks", "mapped", "maps", "moves", "pinned", "pins", "rooms", "starts", "tails")

    def __init__(self) -> None:
        self.maps: dict[Key, dict[int, int]] = {}
        self.mapped = 0
        self.tails: dict[int, int] = {}
        self.rooms: dict[int, int] = {}
        self.starts: dict[int, dirent.Starts] = {}
        self.moves = 0
        self.absence: Absence | None = None
        self.chunks: dict[Key, Chunk] = {}
        self.pins: dict[Key, dict[bytes, int]] = {}
        self.pinned = 0

    def drop(self) -> None:
        """Forget everything but the pins: readers of a listing continue from cookies that depend on them."""
        self.maps.clear()
        self.mapped = 0
        self.tails.clear()
        self.rooms.clear()
        self.starts.clear()
        self.moves += 1
        self.chunks.clear()

    def changing(self, tx: Handle) -> None:
        """Drop all hints if ``tx``, which is about to change blocks of directories, is undone (rule 3)."""
        tx.on_rollback(self.drop)

    def put_map(self, key: Key, lblk: int, pblk: int) -> None:
        """Remember where a block is."""
        if self.mapped >= MAX_MAPPED:
            self.maps.clear()
            self.mapped = 0
        self.maps.setdefault(key, {})[lblk] = pblk
        self.mapped += 1

    def forget_place(self, key: Key, lblk: int) -> None:
        """Forget where a block is, because it moves; places of entries in it no longer hold."""
        known = self.maps.get(key)
        if known is not None and known.pop(lblk, 0):
            self.mapped -= 1
        self.moves += 1

    def put_tail(self, number: int, offset: int) -> None:
        """Remember where the last entry of a block begins."""
        tails = self.tails
        if len(tails) >= MAX_TAILS:
            tails.clear()
        tails[number] = offset

    def put_room(self, number: int, largest: int) -> None:
        """Remember how large the largest gap of a block is."""
        rooms = self.rooms
        if len(rooms) >= MAX_TAILS:
            rooms.clear()
        rooms[number] = largest

    def starts_of(self, number: int) -> dirent.Starts:
        """Return what is known of the offsets of a block's entries; whoever follows them adds what is passed."""
        starts = self.starts.get(number)
        if starts is None:
            if len(self.starts) >= MAX_STARTS:
                self.starts.clear()
            starts = self.starts[number] = dirent.new_starts()
        return starts

    def forget_entries(self, number: int) -> None:
        """Forget what is known of a block's entries: all of them are new."""
        self.tails.pop(number, None)
        self.rooms.pop(number, None)
        self.starts.pop(number, None)

    def put_chunk(self, key: Key, chunk: Chunk) -> None:
        """Remember a piece of a listing."""
        chunks = self.chunks
        if len(chunks) >= MAX_CHUNKS and key not in chunks:
            del chunks[next(iter(chunks))]
        chunks[key] = chunk

    def pin(self, key: Key, name: bytes, cookie: int) -> None:
        """Remember the cookie of a name."""
        if self.pinned >= MAX_PINS:
            self.pins.clear()
            self.pinned = 0
        names = self.pins.setdefault(key, {})
        if name not in names:
            self.pinned += 1
        names[name] = cookie

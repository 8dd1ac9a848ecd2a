"""What directories remember in DRAM: hints that save time, and the places of colliding names in listings.

Nothing here is needed for correctness but `pins` (see `dirlist`), nothing survives an unmount, and everything is
bounded. The hints of a pool are ``view.caches[Hints]``; they hold under these rules, kept by the modules of
directories, the only callers:

1. A directory's blocks stay where they are as long as its inode number and generation do. Whoever moves them (a tool
   that shrinks a pool, say) calls `drop`.
2. Whoever changes a block's entries keeps ``tails`` and ``rooms`` right, counts in ``moves`` when entries move or go,
   and keeps the listing in ``chunks`` right (`dirlist.amend`) or takes it away.
3. Whoever is about to change a block has called `changing` in the same handle: if that is undone, all hints go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from daxfs.journal.caches import Cache

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle

MAX_MAPPED = 1 << 16
"""Blocks whose place is remembered, of all directories together."""
MAX_TAILS = 1 << 14
"""Blocks whose last entry is remembered."""
MAX_CHUNKS = 16
"""Directories that have a piece of a listing remembered."""
MAX_PINS = 1 << 13
"""Names whose cookie is remembered because their hash is not theirs alone."""

Key = tuple[int, int]
"""A directory: inode number and generation."""


class Entry(NamedTuple):
    """One name of a directory. ``cookie`` is the place behind it in a listing (0 when it was not found by one)."""

    name: bytes
    ino: int
    file_type: int
    cookie: int


class Chunk:
    """All entries of one directory with a cookie in [``low``, ``end``), in order.

    Attributes:
        low: see above.
        end: see above; None for the rest of the directory.
        version: of the hash that the cookies are made with.
        cookies: those of ``entries``.
        entries: the entries.
    """

    __slots__ = ("cookies", "end", "entries", "low", "version")

    def __init__(self, low: int, end: int | None, version: int) -> None:
        self.low = low
        self.end = end
        self.version = version
        self.cookies: list[int] = []
        self.entries: list[Entry] = []


class Hints(Cache):
    """What is remembered of one pool.

    Attributes:
        maps: directory -> logical block -> physical block; ``mapped`` blocks in all.
        tails: physical block -> offset of its last entry.
        rooms: physical block -> no gap in it is larger than this.
        moves: how often entries, of whatever directory, have moved or gone: a place that was found before the last time
            may be another's now.
        chunks: directory -> the piece of it that was listed last.
        pins: directory -> name -> cookie, for names whose hash is not theirs alone; ``pinned`` names in all.
    """

    __slots__ = ("chunks", "mapped", "maps", "moves", "pinned", "pins", "rooms", "tails")

    def __init__(self) -> None:
        self.maps: dict[Key, dict[int, int]] = {}
        self.mapped = 0
        self.tails: dict[int, int] = {}
        self.rooms: dict[int, int] = {}
        self.moves = 0
        self.chunks: dict[Key, Chunk] = {}
        self.pins: dict[Key, dict[bytes, int]] = {}
        self.pinned = 0

    def drop(self) -> None:
        """Forget everything but the pins, which what listings have told their readers depends on."""
        self.maps.clear()
        self.mapped = 0
        self.tails.clear()
        self.rooms.clear()
        self.moves += 1
        self.chunks.clear()

    def changing(self, tx: Handle) -> None:
        """Blocks of directories are changed with ``tx`` (rule 3)."""
        tx.on_rollback(self.drop)

    def put_map(self, key: Key, lblk: int, pblk: int) -> None:
        """Remember where a block is."""
        if self.mapped >= MAX_MAPPED:
            self.maps.clear()
            self.mapped = 0
        self.maps.setdefault(key, {})[lblk] = pblk
        self.mapped += 1

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

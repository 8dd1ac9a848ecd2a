"""List a directory: yield all entries in an order that changes of the directory do not disturb.

If the file system has dir_index, indexed directories and directories of one block (which may become indexed ones) are
listed in the order of hashes. The position of a name, its cookie, is made from its hash, so it depends on nothing else
in the directory. Other directories are listed in the order of offsets: there an entry never moves. ext4 does the same.

A cookie is (major >> 1) << 32 | minor: 63 bits. The legacy hash has no minor; another hash of the name replaces it.
The cookie of "." is 1, that of ".." is 2. Names whose 63 bits are equal get consecutive cookies, which stay cached
(pinned) as long as the pool is open, so that a reader who stops between two such names finds the rest at its place.

Entries are read in chunks of a few leaves, which are hashed together: the more, the less each costs. The last chunk of
each directory is cached, so that a caller who takes entries in small portions does not pay for each of them. A reader
who comes near the end of a chunk gets a larger one next, after what is left of the old one: no portion is small. One
who begins anywhere else (seekdir(3)) gets one leaf. Only `directories` calls this module.

Sources: ``fs/ext4/dir.c`` (``ext4_readdir``, ``ext4_dx_readdir``, ``is_dx_dir``, ``hash2pos``), ``fs/ext4/namei.c``
(``ext4_htree_fill_tree``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from mypy_extensions import i64

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4.hash import (
    HALF_MD4_UNSIGNED,
    HTREE_EOF,
    LEGACY,
    LEGACY_UNSIGNED,
    Seed,
    dirhash,
    effective_version,
)
from daxfs.ext4.inode import FT_DIR, FT_MAX, FT_UNKNOWN
from daxfs.structures import dirblocks, htree, salvage
from daxfs.structures.dirhints import Chunk, Entry, Hints, Listing
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

COOKIE_DOT = 1
COOKIE_DOTDOT = 2
_COOKIE_FIRST = 3
COOKIE_EOF = (HTREE_EOF << 32) | 0xFFFFFFFF
"""The end of every listing: all cookies are below it."""

FIRST_NAMES = 400
"""About how many names the first chunk of a directory has."""
MOST_NAMES = 800
"""About how many names a chunk has at most; reading them takes about a millisecond."""
FEW_LEFT = 400
"""If fewer names are left of a chunk, the next one is read too."""
NAMES_PER_LEAF = 50
"""A chunk of so many names ends after this number of leaves, also if they have fewer."""
MOST_SALVAGED = 50_000
"""About how many names of a damaged directory a chunk has."""
_MINOR_MAX = 0xFFFEFFFF
"""The highest minor in a cookie; the values above it leave room for the cookies of colliding names."""


def entries(view: View, directory: Inode, cookie: int) -> Iterator[Entry]:
    """Yield the entries strictly after ``cookie``, as `daxfs.structures.directories.entries` describes."""
    following: int | None = cookie
    while following is not None:
        found, following = portion(view, directory, following)
        yield from found.entries()


def portion(view: View, directory: Inode, cookie: int) -> tuple[Listing, int | None]:
    """Return the first entries after ``cookie``, as `daxfs.structures.directories.portion` describes."""
    try:
        blocks = dirblocks.count(view, directory)
    except Corrupt as error:
        note(view, error)
        blocks = salvage.count(view, directory)
    if not blocks:
        return Listing([], [], [], []), None
    whole = True
    try:
        number, content, dotdot = dirblocks.dots(view, directory)
        ino = checked_ino(view, directory, number, content.cast("I")[dotdot // 4])
    except Corrupt as error:
        note(view, error)
        whole, dotdot, ino = False, COOKIE_DOTDOT, directory.number
    if is_hashed(view, directory, blocks):
        found, following = _by_hash(view, directory, max(cookie, COOKIE_DOTDOT))
    else:
        found, following = _by_offset(view, directory, max(cookie, dotdot), blocks, whole)
    if cookie < COOKIE_DOTDOT:
        found.put(0, Entry(b"..", ino, FT_DIR, COOKIE_DOTDOT))
        if cookie < COOKIE_DOT:
            found.put(0, Entry(b".", directory.number, FT_DIR, COOKIE_DOT))
    return found, following


def is_hashed(view: View, directory: Inode, blocks: int) -> bool:
    """Whether the directory is listed by hash (``is_dx_dir``)."""
    return view.geometry.has_dir_index and (blocks == 1 or dirblocks.is_indexed(view, directory))


def checked_ino(view: View, directory: Inode, number: int, ino: int) -> int:
    """Return an entry's inode number after a check that it is in range."""
    if 0 < ino <= view.geometry.inodes_count:
        return ino
    raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{dirblocks.where(directory, number)}: inode {ino}")


def _by_offset(view: View, directory: Inode, cookie: int, stop: int, whole: bool) -> tuple[Listing, int | None]:
    """Return entries by their offsets, as `portion`: of ``stop`` blocks, the first of which may be damaged (``whole``).

    An entry in the place of "." has the cookie after that of "..".
    """
    bits = view.geometry.block_bits
    first = cookie + 1 >> bits
    names: list[bytes] = []
    inos: list[int] = []
    types: list[int] = []
    places: list[int] = []
    following: int | None = None
    for lblk in range(first, stop):
        start = lblk << bits
        if len(names) >= FIRST_NAMES or lblk - first >= FIRST_NAMES // NAMES_PER_LEAF:
            following = start - 1
            break
        used = _entries_of(view, directory, lblk, whole or lblk > 0)
        names += used.names
        inos += used.inos
        types += used.file_types
        places += [max(start + offset, _COOKIE_FIRST) for offset in used.offsets]
    found = Listing(names, inos, types, places)
    return found.part(bisect_right(places, cookie), len(names)), following


def _entries_of(view: View, directory: Inode, lblk: int, whole: bool) -> dirblocks.UsedEntries:
    """Return the entries of a logical block, with known file types; those that are sound if it is damaged."""
    if whole:
        try:
            number = dirblocks.number_of(view, directory, lblk)
            data = bytes(dirblocks.entries_block(view, directory, number))
            used = dirblocks.live(directory, number, data, 0, dirblocks.limit_of(view.geometry))
            return used._replace(file_types=_checked_types(view, directory, number, used))
        except Corrupt as error:
            note(view, error)
    used = salvage.block(view, directory, lblk)
    return used._replace(file_types=_checked_types(view, directory, lblk, used))


def _checked_types(view: View, directory: Inode, number: int, used: dirblocks.UsedEntries) -> list[int]:
    """Return the known file types of a block's entries, after a check that their inode numbers are in range."""
    if not used.inos:
        return []
    checked_ino(view, directory, number, max(used.inos))
    if not view.geometry.has_filetype:
        return [FT_UNKNOWN] * len(used.inos)
    if max(used.file_types) < FT_MAX:
        return used.file_types
    return [file_type if file_type < FT_MAX else FT_UNKNOWN for file_type in used.file_types]


# In the order of hashes


def _by_hash(view: View, directory: Inode, cookie: int) -> tuple[Listing, int | None]:
    if cookie >= COOKIE_EOF:
        return Listing([], [], [], []), None
    key = (directory.number, directory.words[25])
    hints = view.caches[Hints]
    chunk = hints.chunks.get(key)
    if chunk is None or cookie + 1 < chunk.low or (chunk.end is not None and cookie + 1 >= chunk.end):
        chunk = _sound_chunk(view, directory, cookie, chunk)
        hints.put_chunk(key, chunk)
    elif chunk.end is not None and chunk.names_after(cookie) < FEW_LEFT:
        chunk.follow(cookie, _sound_chunk(view, directory, chunk.end - 1, chunk))
    found = chunk.listing
    part = found.part(bisect_right(found.cookies, cookie), len(found))
    return part, None if chunk.end is None else chunk.end - 1


def _sound_chunk(view: View, directory: Inode, cookie: int, before: Chunk | None) -> Chunk:
    """Return the entries after ``cookie``: those that are sound if the directory is damaged."""
    damaged = view.caches[salvage.Damaged]
    key = (directory.number, directory.words[25])
    if not damaged.holds(key):
        try:
            return _read_chunk(view, directory, cookie + 1, _names_wanted(before, cookie))
        except Corrupt as error:
            note(view, error)
            damaged.add(key)
    return _salvaged_chunk(view, directory, cookie + 1)


def _names_wanted(before: Chunk | None, cookie: int) -> int:
    """Return how many names the chunk after ``cookie`` shall have; ``before``: the one that was read last."""
    if cookie < _COOKIE_FIRST:
        return FIRST_NAMES
    return MOST_NAMES if before is not None and before.end == cookie + 1 else 1


def _read_chunk(view: View, directory: Inode, cookie: int, wanted: int) -> Chunk:
    """Return the entries around ``cookie``: those of the only block, or of its leaf and some leaves after it."""
    if dirblocks.is_indexed(view, directory):
        return _read_leaves(view, directory, cookie, wanted)
    number, content, dotdot = dirblocks.dots(view, directory)
    data = bytes(content)
    start = dotdot + int.from_bytes(data[dotdot + 4 : dotdot + 6], "little")
    used = dirblocks.live(directory, number, data, start, dirblocks.limit_of(view.geometry))
    types = _checked_types(view, directory, number, used)
    version = effective_version(view.geometry.hash_version, view.geometry.hash_unsigned)
    cookies = _cookies(view, version, used.names)
    return _chunk(view, directory, (0, None), version, cookies, used.names, used.inos, types)


def _read_leaves(view: View, directory: Inode, cookie: int, wanted: int) -> Chunk:
    """Return the entries of the leaf for ``cookie`` and of some leaves after it, ``wanted`` entries or a few more.

    A chunk holds all names in its range. So if names with one hash fill several leaves, they are read completely if
    ``cookie`` has that hash; otherwise they are left to the next chunk.
    """
    root, w, version = htree.root(view, directory)
    path, number = htree.descend(view, directory, root, w, cookie >> 32 << 1)
    low = (htree.first_hash(path) + 1 >> 1) << 32
    limit = dirblocks.limit_of(view.geometry)
    names: list[bytes] = []
    inos: list[int] = []
    types: list[int] = []
    cookies: list[int] = []
    for visited in range(1, dirblocks.count(view, directory)):
        data = bytes(dirblocks.entries_block(view, directory, number))
        used = dirblocks.live(directory, number, data, 0, limit)
        bound = htree.following(path)
        if used.names:
            hashed = _cookies(view, version, used.names)
            _check_range(directory, number, hashed, htree.first_hash(path) & ~1, 1 << 32 if bound is None else bound)
            cookies += hashed
            names += used.names
            inos += used.inos
            types += _checked_types(view, directory, number, used)
        end = None if bound is None else bound >> 1 << 32
        if end is None or (end > cookie and (len(names) >= wanted or visited * NAMES_PER_LEAF >= wanted)):
            return _chunk(view, directory, (low, end), version, cookies, names, inos, types)
        number = htree.advance(view, directory, path)
    raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"inode {directory.number}: more leaves than blocks")


def _salvaged_chunk(view: View, directory: Inode, cookie: int) -> Chunk:
    """Return the sound entries of a damaged directory in the order of hashes: from ``cookie`` on, the first ones.

    All blocks are read for each chunk, since the index does not say where a hash is.
    """
    version = effective_version(view.geometry.hash_version, view.geometry.hash_unsigned)
    if dirblocks.is_indexed(view, directory):
        with suppress(Corrupt):
            version = htree.root(view, directory)[2]
    names: list[bytes] = []
    inos: list[int] = []
    types: list[int] = []
    end: int | None = None
    for number in salvage.blocks_of(view, directory):
        used = salvage.entries(view, directory, number)
        names += used.names
        inos += used.inos
        types += _checked_types(view, directory, number, used)
        if len(names) >= 2 * MOST_SALVAGED:
            cookies = _cookies(view, version, names)
            wanted = sorted([place for place in cookies if place >= cookie])
            if len(wanted) > MOST_SALVAGED and wanted[0] < wanted[MOST_SALVAGED]:
                end = wanted[MOST_SALVAGED]
            bound = COOKIE_EOF if end is None else end
            kept = [i for i, place in enumerate(cookies) if cookie <= place < bound]
            names, inos, types = [names[i] for i in kept], [inos[i] for i in kept], [types[i] for i in kept]
    return _chunk(view, directory, (cookie, end), version, _cookies(view, version, names), names, inos, types)


def _check_range(directory: Inode, number: int, cookies: list[int], low: int, bound: int) -> None:
    """Check that the names of a leaf, whose cookies are given, have hashes that belong to the leaf."""
    least, most = min(cookies) >> 32 << 1, max(cookies) >> 32 << 1
    if least < low or most >= bound:
        where = dirblocks.where(directory, number)
        raise Corrupt(
            CorruptKind.DIRECTORY_LEAF, f"{where}: hashes {least:#x}..{most:#x}, expected {low:#x}..{bound:#x}"
        )


def _cookies(view: View, version: int, names: list[bytes]) -> list[int]:
    """Return the cookie of each name."""
    seed = view.geometry.hash_seed
    return [_cookie(version, seed, name) for name in names]


def _cookie(version: int, seed: Seed, name: bytes) -> i64:
    """Return the cookie of one name."""
    major, minor = dirhash(name, version, seed)
    if version in (LEGACY, LEGACY_UNSIGNED):
        _, minor = dirhash(name, HALF_MD4_UNSIGNED, seed)
    high: i64 = major
    low: i64 = min(minor, _MINOR_MAX)
    place = (high << 31) + low
    return place if place >= _COOKIE_FIRST else _COOKIE_FIRST


def _chunk(
    view: View,
    directory: Inode,
    bounds: tuple[int, int | None],
    version: int,
    cookies: list[int],
    names: list[bytes],
    inos: list[int],
    types: list[int],
) -> Chunk:
    """Return a chunk of the entries whose cookies are in ``bounds``."""
    low, end = bounds
    chosen = _order(cookies)
    ranked = [cookies[i] for i in chosen]
    first = bisect_left(ranked, low)
    stop = len(ranked) if end is None else bisect_left(ranked, end)
    if first or stop < len(ranked):
        ranked, chosen = ranked[first:stop], chosen[first:stop]
    hints = view.caches[Hints]
    if (directory.number, directory.words[25]) in hints.pins or not _rises(ranked):
        ranked, chosen = _separate_cookies(view, directory, hints, ranked, chosen, names)
    listing = Listing([names[i] for i in chosen], [inos[i] for i in chosen], [types[i] for i in chosen], ranked)
    return Chunk(low, end, version, listing)


def _order(cookies: list[int]) -> list[int]:
    """Return the indices of cookies in the order of the cookies.

    Floating-point numbers are compared several times as fast as integers of 63 bits, of which they lack the last bits.
    """
    about = [float(cookie) for cookie in cookies]
    chosen = sorted(range(len(cookies)), key=about.__getitem__)
    if _rises([cookies[i] for i in chosen]):
        return chosen
    return sorted(range(len(cookies)), key=cookies.__getitem__)


def _rises(cookies: list[int]) -> bool:
    """Whether each cookie is larger than the one before it."""
    before: i64 = -1
    for cookie in cookies:
        this: i64 = cookie
        if this <= before:
            return False
        before = this
    return True


def _separate_cookies(
    view: View, directory: Inode, hints: Hints, ranked: list[int], chosen: list[int], names: list[bytes]
) -> tuple[list[int], list[int]]:
    """Give names that share a cookie different ones, and return (cookies, order); pinned names keep their cookie.

    The second entry of a name is left out and noted.
    """
    key = (directory.number, directory.words[25])
    pins = hints.pins.get(key, {})
    taken: dict[int, int] = {}
    unplaced: list[tuple[int, int]] = []
    known: set[bytes] = set()
    for cookie, i in zip(ranked, chosen, strict=True):
        pinned = pins.get(names[i])
        if pinned is None:
            unplaced.append((cookie, i))
        elif names[i] in known:
            note(view, _named_twice(directory, names[i]))
        else:
            known.add(names[i])
            taken[pinned] = i
    after: dict[int, int] = {}
    for cookie, i in sorted(unplaced, key=lambda row: (row[0], names[row[1]])):
        if names[i] in known:
            note(view, _named_twice(directory, names[i]))
            continue
        known.add(names[i])
        place = cookie
        if cookie in taken:
            hints.pin(key, names[taken[cookie]], cookie)
            place = after.get(cookie, cookie) + 1
            while place in taken:
                place += 1
            after[cookie] = place
            hints.pin(key, names[i], place)
        taken[place] = i
    cookies = sorted(taken)
    return cookies, [taken[cookie] for cookie in cookies]


def _named_twice(directory: Inode, name: bytes) -> Corrupt:
    return Corrupt(CorruptKind.DIRECTORY_ENTRY, f"inode {directory.number}: {name!r} has two entries")


# Updates of the cached chunk


def amend(view: View, directory: Inode, name: bytes, entry: Entry | None) -> None:
    """Update the cached chunk after a change: ``name`` has ``entry`` now, or was removed (None)."""
    hints = view.caches[Hints]
    key = (directory.number, directory.words[25])
    chunk = hints.chunks.get(key)
    if chunk is None:
        return
    cookie = _cookie(chunk.version, view.geometry.hash_seed, name)
    if cookie < chunk.low or (chunk.end is not None and cookie >= chunk.end):
        return
    listing = chunk.listing
    at = bisect_left(listing.cookies, cookie)
    there = at < len(listing) and listing.cookies[at] == cookie
    known = there and listing.names[at] == name
    if key in hints.pins or (there and not known):
        if there:
            # A reader who has read up to here must not get that name again after the new one.
            hints.pin(key, listing.names[at], cookie)
        del hints.chunks[key]
        return
    if known:
        listing.remove(at)
    if entry is not None:
        listing.put(at, entry._replace(cookie=cookie))

"""When data moves by itself: the memory is almost full, or an operation needs room, or data of storage (docs/TIERS.md).

`make_room` demotes files and pieces of files, the coldest first (`Candidate`), until the memory has room again. It
looks at some thousand inodes at a time, from where it has ended before, since the oldest of many files is old enough.
What `daxfs.fs.tiers.moves` does not move stays, and so do files that belong in memory (`placement`). A session calls it
in the background while the memory is `crowded`, so that few requests ever meet a full memory; those that do wait for it
(`waits_for_room`) as for data on storage.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import Corrupt, FsError, MetadataOnStorage, MissingMemory
from daxfs.fs import removal
from daxfs.fs.nodes import END
from daxfs.fs.tiers import moves, placement
from daxfs.fs.tiers.heat import bytes_of
from daxfs.fs.tiers.storagecache import Search
from daxfs.runs import ByteRange, joined, subtract
from daxfs.structures import groups, inode_bitmaps, inodes, reserves
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume

LOOK = 4096
"""Inodes that are compared at a time."""
COLD = 0
"""The uses of what was not used for a minute at least."""
ANY = 1 << 62


class NoRoom(FsError):
    """The memory is full (ENOSPC), and nothing can be done about it."""


class Part(NamedTuple):
    """The bytes [begin, end) of a file."""

    ino: int
    begin: int
    end: int


NOTHING = Part(0, 0, 0)


class Candidate(NamedTuple):
    """A piece of a file that may go down, or what was not used for a minute of a file; they sort, the coldest first.

    Attributes:
        anywhere: it does not belong on storage.
        uses: of the piece, in the last minute or two.
        used: when the file was used last, in nanoseconds since 1970.
        less: the size of the file, negative: of equals the largest goes first.
        ino: the file.
        piece: its number; -1: all pieces of the file without uses.
        warm: the pieces of the file with uses.
    """

    anywhere: bool
    uses: int
    used: int
    less: int
    ino: int
    piece: int
    warm: tuple[int, ...]


def crowded(volume: Volume) -> bool:
    """Return whether more of the memory is in use than the high watermark, and something can be done about it."""
    cache = volume.tiers
    if cache is None or not cache.usable or volume.read_only or not groups.free_on_storage(volume.view):
        return False
    return free_memory(volume) * 100 < volume.geometry.memory_blocks * (100 - volume.options.tier_high)


def waits_for_room(volume: Volume, error: FsError) -> bool:
    """Return whether an operation that has ended with ``error`` may find room after `make_room`."""
    return error.errno == errno.ENOSPC and not isinstance(error, (MissingMemory, NoRoom)) and crowded(volume)


def free_memory(volume: Volume) -> int:
    """Return how many blocks of memory ordinary users may take, those included that the next commit frees."""
    superblock = volume.view.superblock()
    free = superblock.free_blocks_count - groups.free_on_storage(volume.view) + volume.pending_frees_in_memory()
    return free - reserves.must_stay_free(volume.geometry, superblock, privileged=False)


def free_when_low(volume: Volume) -> int:
    """Return how many blocks of memory are free while as much is in use as the low watermark says."""
    return volume.geometry.memory_blocks * (100 - volume.options.tier_low) // 100


def attach(volume: Volume) -> None:
    """Let a volume read and write the storage of its pool, if it has some, and operations have its data brought."""
    moves.attach(volume)
    if volume.tiers is not None:
        volume.tiers.promote = partial(_bring, volume)


def _bring(volume: Volume, ino: int, begin: int, end: int) -> Steps[None]:
    """Promote what an operation needs of a file; where the memory is full, other files go down first.

    Others may take the room that was made, so it is made again as long as something goes down.

    Raises:
        NoRoom: it does not fit into the memory.
        FsError: as `tiers.promote`.
    """
    while True:
        cache, _ = moves.counted(volume)
        lowered = cache.lowered
        if not (yield from moves.promote(volume, ino, begin, end)).stayed:
            return
        if crowded(volume):
            yield from make_room(volume, Part(ino, begin, end))
        elif cache.lowered == lowered:
            raise NoRoom(errno.ENOSPC, f"{volume.pool.path}: the memory has no room for what lies on storage")


def make_room(volume: Volume, needed: Part = NOTHING) -> Steps[None]:
    """Demote the coldest until less of the memory is in use than the low watermark, but not what is ``needed``.

    What was used in the last minute goes only if nothing else is left. In a session that searches already, this waits
    for the end of that search, and goes on with what is left to do.

    Raises:
        NoRoom: nothing has gone down meanwhile, whoever tried, and nothing can be demoted.
        FsError: EIO, the storage has failed.
    """
    cache, _ = moves.counted(volume)
    lowered = cache.lowered
    while cache.parks and cache.search is not None:
        yield cache.search
    search = cache.search = Search()
    try:
        yield from _demote_coldest(volume, needed)
    finally:
        search.due = True
        if cache.search is search:
            cache.search = None
    if cache.lowered == lowered and free_memory(volume) < free_when_low(volume):
        raise NoRoom(errno.ENOSPC, f"{volume.pool.path}: the memory is full, and nothing in it can go to storage")


def _demote_coldest(volume: Volume, needed: Part) -> Steps[None]:
    """Do what `make_room` says, if there is something to demote."""
    goal = free_when_low(volume)
    for most in (COLD, ANY):
        looked, count = 0, volume.geometry.groups_count
        while looked < count and free_memory(volume) < goal:
            found, seen = yield from candidates(volume, count - looked)
            looked += seen
            for candidate in found:
                if candidate.uses > most or free_memory(volume) >= goal:
                    break
                yield from demote(volume, candidate, goal, needed)
    if volume.pending_frees():
        volume.commit()


def candidates(volume: Volume, most: int) -> Steps[tuple[list[Candidate], int]]:
    """Return what may go down of the files of the next groups, up to ``most``, the coldest first, and how many."""
    _, heat = moves.counted(volume)
    warm = heat.warm()
    found: list[Candidate] = []
    seen = looked = 0
    while looked < most and seen < LOOK:
        seen += _look(volume, warm, found)
        looked += 1
        yield
    found.sort()
    return found, looked


def demote(volume: Volume, candidate: Candidate, goal: int, needed: Part = NOTHING) -> Steps[int]:
    """Demote a candidate, but not what is ``needed``, until ``goal`` blocks of memory are free.

    Returns:
        How many bytes have moved.
    """
    moved = 0
    if may_go(volume, candidate.ino):
        whole, stay = bytes_of(candidate.piece), []
        if candidate.piece < 0:
            whole, stay = ByteRange(0, END), [bytes_of(piece) for piece in candidate.warm]
        if candidate.ino == needed.ino:
            stay.append(ByteRange(needed.begin, needed.end))
        for begin, end in subtract([whole], list(joined(stay))):
            if free_memory(volume) >= goal:
                break
            try:
                moved += yield from _demote(volume, Part(candidate.ino, begin, end), goal)
            except Corrupt as error:  # a damaged file stays, and keeps no other from going
                note(volume.view, error)
                break
    yield
    return moved


def _demote(volume: Volume, part: Part, goal: int) -> Steps[int]:
    """Demote a part of a file as `demote`; 0: its map can't change, or has no room for what it needs."""
    try:
        done = yield from moves.demote(volume, *part, lambda: free_memory(volume) >= goal)
    except MetadataOnStorage:
        return 0
    except FsError as error:
        if error.errno != errno.ENOSPC or isinstance(error, MissingMemory):
            raise
        return 0
    return done.moved


def _look(volume: Volume, warm: dict[int, dict[int, int]], found: list[Candidate]) -> int:
    """Add the candidates of the next group; return how many inodes were looked at."""
    (cache, heat), view = moves.counted(volume), volume.view
    group = cache.hand % volume.geometry.groups_count
    cache.hand = group + 1
    numbers = inode_bitmaps.in_use_of(view, group)
    for ino in numbers:
        if not may_go(volume, ino):
            continue
        inode, place = inodes.read(view, ino), place_of(volume, ino)
        if place in (placement.MEMORY, None):
            continue
        node = volume.nodes.open.get(ino)
        waiting = 0 if node is None else max(node.atime, node.mtime)
        used = max(inode.atime_ns, inode.mtime_ns, waiting, heat.last_use(ino))
        anywhere, pieces = place != placement.STORAGE, warm.get(ino, {})
        whole = Candidate(anywhere, COLD, used, -inode.size, ino, -1, tuple(sorted(pieces)))
        found.append(whole)
        for piece, uses in pieces.items():
            found.append(whole._replace(uses=uses if anywhere else COLD, piece=piece))
    return len(numbers)


def may_go(volume: Volume, ino: int) -> bool:
    """Return whether an inode is a file with data that no client uses."""
    node = volume.nodes.open.get(ino)
    return has_data(volume, ino) and (node is None or node.grants is None)


def place_of(volume: Volume, ino: int) -> bytes | None:
    """Return where the data of a file belongs; None: its attributes are damaged, and it stays where it is."""
    try:
        return placement.of(volume.view, inodes.read(volume.view, ino))
    except FsError:
        return None


def has_data(volume: Volume, ino: int) -> bool:
    """Return whether an inode is a file of the tree with data."""
    if (
        not inodes.nameable(volume.view, ino)
        or ino in volume.lives.quarantine
        or not inode_bitmaps.in_use(volume.view, ino)
    ):
        return False
    try:
        inode = inodes.read(volume.view, ino)
    except FsError:
        return False
    return inode.is_regular and removal.holds_blocks(inode)

"""When data moves by itself: the memory is almost full, or an operation needs room, or data of storage (docs/TIERS.md).

`make_room` demotes whole files, those first that belong on storage (`placement`), then those that were used longest
ago, until the memory has room again. Files that belong in memory stay. It looks at some thousand inodes at a time, from
where it has ended before, since the oldest of many files is old enough. What `daxfs.fs.tiers` does not move stays. A
session calls it in the background while the memory is `crowded`, so that few requests ever meet a full memory; those
that do wait for it (`waits_for_room`) as for data on storage.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError, MissingMemory
from daxfs.fs import placement, removal, tiers
from daxfs.fs.nodes import END
from daxfs.structures import groups, inode_bitmaps, inodes, reserves

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume

LOOK = 4096
"""Inodes that are compared at a time."""


class NoRoom(FsError):
    """The memory is full (ENOSPC), and nothing can be done about it."""


class _Candidate(NamedTuple):
    """A file that may go down; they sort by where they belong, the time of their last use, then the largest first."""

    anywhere: bool
    used: int
    less: int
    ino: int


def crowded(volume: Volume) -> bool:
    """Return whether more of the memory is in use than the high watermark, and something can be done about it."""
    cache = volume.tiers
    if cache is None or not cache.usable or volume.read_only or not groups.free_on_storage(volume.view):
        return False
    return _free(volume) * 100 < volume.geometry.memory_blocks * (100 - volume.options.tier_high)


def waits_for_room(volume: Volume, error: FsError) -> bool:
    """Return whether an operation that has ended with ``error`` may find room after `make_room`."""
    return error.errno == errno.ENOSPC and not isinstance(error, (MissingMemory, NoRoom)) and crowded(volume)


def _free(volume: Volume) -> int:
    """Return how many blocks of memory ordinary users may take, those included that the next commit frees."""
    superblock = volume.view.superblock()
    free = superblock.free_blocks_count - groups.free_on_storage(volume.view) + volume.pending_frees()
    return free - reserves.must_stay_free(volume.geometry, superblock, privileged=False)


def attach(volume: Volume) -> None:
    """Let a volume read and write the storage of its pool, if it has some, and operations have its data brought."""
    tiers.attach(volume)
    if volume.tiers is not None:
        volume.tiers.promote = partial(_bring, volume)


def _bring(volume: Volume, ino: int, begin: int, end: int) -> Steps[None]:
    """Promote what an operation needs of a file; where the memory is full, other files go down first.

    Raises:
        NoRoom: it does not fit into the memory.
        FsError: as `tiers.promote`.
    """
    done = yield from tiers.promote(volume, ino, begin, end)
    if done.stayed and crowded(volume):
        yield from make_room(volume, ino)
        done = yield from tiers.promote(volume, ino, begin, end)
    if done.stayed:
        raise NoRoom(errno.ENOSPC, f"{volume.pool.path}: the memory has no room for what lies on storage")


def make_room(volume: Volume, needed: int = 0) -> Steps[None]:
    """Demote files until less of the memory is in use than the low watermark, but for the file ``needed``.

    Raises:
        NoRoom: nothing can be demoted.
        FsError: EIO, the storage has failed.
    """
    goal = volume.geometry.memory_blocks * (100 - volume.options.tier_low) // 100
    moved = 0
    looked, count = 0, volume.geometry.groups_count
    while looked < count and _free(volume) < goal:
        found: list[_Candidate] = []
        seen = 0
        while looked < count and seen < LOOK:
            seen += _look(volume, found)
            looked += 1
            yield
        for candidate in sorted(found):
            if _free(volume) >= goal:
                break
            if candidate.ino != needed and _may_go(volume, candidate.ino):
                moved += (yield from tiers.demote(volume, candidate.ino, 0, END)).moved
            yield
    if volume.pending_frees():
        volume.commit()
    if not moved and _free(volume) < goal:
        raise NoRoom(errno.ENOSPC, f"{volume.pool.path}: the memory is full, and nothing in it can go to storage")


def _look(volume: Volume, found: list[_Candidate]) -> int:
    """Add the files of the next group; return how many inodes were looked at."""
    cache, view = volume.tiers, volume.view
    assert cache is not None
    group = cache.hand % volume.geometry.groups_count
    cache.hand = group + 1
    numbers = inode_bitmaps.in_use_of(view, group)
    for ino in numbers:
        if _may_go(volume, ino):
            inode = inodes.read(view, ino)
            place = placement.of(view, inode)
            if place == placement.MEMORY:
                continue
            node = volume.nodes.open.get(ino)
            waiting = 0 if node is None else max(node.atime, node.mtime)
            used = max(inode.atime_ns, inode.mtime_ns, waiting)
            found.append(_Candidate(place != placement.STORAGE, used, -inode.size, ino))
    return len(numbers)


def _may_go(volume: Volume, ino: int) -> bool:
    """Return whether an inode is a file with data that no client uses."""
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
    node = volume.nodes.open.get(ino)
    return inode.is_regular and removal.holds_blocks(inode) and (node is None or node.grants is None)

"""Inodes of groups that go get numbers in groups that stay, one inode in each handle.

The number of an inode is in its directory entries, in ``.`` of a directory and in ``..`` of its subdirectories, in the
list of orphans, and it is part of the seed of all checksums of what belongs to the inode. The new generation is chosen
so that the seed stays (`same_seed`), so no other block changes: the slot is copied, the entries and dots name the new
number, and the old slot is free. What DRAM holds by number follows when the handle has succeeded
(`Volume.renumbered`): open files, locks, grants and waiting times stay what they are, and what the kernel knows stays
known by its old number (`daxfs.fs.moving.aliases`). When that is forgotten, a file handle with the old number is stale
(ESTALE), as one of a removed file.

Operations in steps hold numbers between two steps. So an inode is renumbered while no other operation is under way, and
keeps its number if there is no such moment within `PATIENCE_SECONDS`. What keeps its number is named with the reason,
as a directory whose subdirectories do not fit into one transaction. A scan of all directories finds the names; what has
changed since is seen in the handle, and left to the next round. Caller: `daxfs.fs.moving.shrinking`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daxfs.ext4.checksum import crc32c
from daxfs.fs.moving import naming
from daxfs.fs.moving.naming import DOTS
from daxfs.fs.types import ROOT_INO
from daxfs.structures import dirblocks, directories, inode_allocation, inode_bitmaps, inodes, orphans, shrinkage

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

CREDITS = 16
"""Blocks that a new number changes beside names and subdirectories, of which each takes two."""
ENTRIES_PER_STEP = 256
"""Entries of a directory that a step looks at for subdirectories."""
PATIENCE_SECONDS = 10.0
"""How long the inodes wait for a moment in which no other operation is under way, since there was one."""
FIXED = "the format has its number elsewhere"
HELD = "it holds blocks that programs with direct access may look at"
ENDING = "it is being cut or freed"
STAGED = "a batch of writes to it has begun"
RECALLED = "its memory is being taken back from programs"
BUSY = "other operations are under way all the time"
CHANGED = "its names have changed meanwhile"
LARGE = "its names and subdirectories do not fit into one transaction"


def renumber(volume: Volume, grants: Grants, target: int) -> Steps[dict[int, str]]:
    """Renumber the inodes that lie past the new end ``target``, in blocks.

    Nothing is taken past it (`blocks.confine`).

    Args:
        volume: the mounted pool.
        grants: those of the volume.
        target: the new end.

    Returns:
        The inodes that keep their numbers, and why.

    Raises:
        FsError: ENOSPC, no inode is free; and as a commit.
    """
    numbers = list(shrinkage.inodes_past(volume.view, target))
    stayed: dict[int, str] = {}
    if not numbers:
        return stayed
    names = yield from naming.names(volume, set(numbers))
    new: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    for ino in numbers:
        children = yield from _subdirectories(volume, ino)
        while volume.under_way > 1 and time.monotonic() < deadline:  # this operation is one
            yield
        if volume.under_way == 1:
            deadline = time.monotonic() + PATIENCE_SECONDS
        if inode_bitmaps.in_use(volume.view, ino):
            mine = [(new.get(parent, parent), name) for parent, name in names.get(ino, [])]
            children = [new.get(child, child) for child in children]
            why = _why_not(volume, grants, ino) or _one(volume, ino, mine, children, new)
            if why:
                stayed[ino] = why
        yield
    return stayed


def same_seed(geometry: Geometry, old: int, generation: int, new: int) -> int:
    """Return the generation with which another inode number has the same checksum seed.

    The seed is CRC-32C over the number and then the generation (`Geometry.inode_seed`). Before the last four bytes the
    states of two numbers differ in known bits, and flipping the same bits of these bytes makes up for it.
    """
    return generation ^ _state(geometry, old) ^ _state(geometry, new)


def _state(geometry: Geometry, ino: int) -> int:
    return crc32c(geometry.csum_seed, ino.to_bytes(4, "little"))


def _subdirectories(volume: Volume, ino: int) -> Steps[list[int]]:
    """Find the subdirectories of an inode, some entries in each step; it need not be a directory, or be in use."""
    view = volume.view
    found: list[int] = []
    if not (inodes.nameable(view, ino) and inode_bitmaps.in_use(view, ino) and inodes.read(view, ino).is_dir):
        return found
    cookie = 0
    while True:
        looked = 0
        for entry in directories.entries(view, inodes.read(view, ino), cookie):
            cookie = entry.cookie
            looked += 1
            if entry.name not in DOTS and inodes.read(view, entry.ino).is_dir:
                found.append(entry.ino)
            if looked == ENTRIES_PER_STEP:
                break
        if looked < ENTRIES_PER_STEP:
            return found
        yield
        if not (inode_bitmaps.in_use(view, ino) and inodes.read(view, ino).is_dir):
            return found


def _why_not(volume: Volume, grants: Grants, ino: int) -> str:
    """Return why an inode's number can't change now, or an empty string."""
    lives = volume.lives
    if not inodes.nameable(volume.view, ino):
        return FIXED
    if ino in lives.quarantine:
        return HELD
    if ino in lives.ending or (ino in lives.listed and ino not in lives.nameless):
        return ENDING
    if ino in volume.staging.by_ino:
        return STAGED
    if grants.recalls.runs(ino):
        return RECALLED
    return BUSY if volume.under_way > 1 else ""


def _one(volume: Volume, ino: int, names: list[tuple[int, bytes]], children: list[int], new: dict[int, int]) -> str:
    """Renumber an inode; return why not, or an empty string."""
    inode = inodes.read(volume.view, ino)
    if len(names) != (min(inode.links_count, 1) if inode.is_dir else inode.links_count):
        return CHANGED
    credits = CREDITS + 2 * (len(names) + len(children))
    if credits > volume.journal.capacity or (inode.is_dir and inode.links_count == 1):
        return LARGE
    with volume.handle(credits) as tx:
        if not _still(tx, ino, names, children):
            return CHANGED
        made = _move(tx, ino, names, children, listed=ino in volume.lives.listed)
    new[ino] = made.number
    volume.renumbered(ino, made.number, made.i_generation)
    volume.bound_commit()
    return ""


def _still(tx: Handle, ino: int, names: list[tuple[int, bytes]], children: list[int]) -> bool:
    """Whether these are the names of an inode, and all its subdirectories, as many as its links say."""
    inode = inodes.read(tx, ino)
    for parent, name in names:
        if directories.ino_of(tx, directories.read_inode(tx, parent), name) != ino:
            return False
    for child in children:
        if not inode_bitmaps.in_use(tx, child):
            return False
        found = inodes.read(tx, child)
        if not found.is_dir or not found.links_count or directories.parent(tx, found) != ino:
            return False
    return not inode.is_dir or not inode.links_count or inode.links_count == 2 + len(set(children))


def _move(tx: Handle, ino: int, names: list[tuple[int, bytes]], children: list[int], *, listed: bool) -> Inode:
    """Give an inode a new number; return the inode that it is now."""
    geometry = tx.geometry
    if listed:
        orphans.remove(tx, ino)
    old = inodes.edit(tx, ino)
    made = inode_allocation.allocate(tx, inodes.read(tx, names[0][0] if names else ROOT_INO), old.i_mode)
    generation = old.i_generation
    made.buffer[:] = old.buffer
    if geometry.metadata_csum:
        made.i_generation = same_seed(geometry, ino, generation, made.number)
    if old.is_dir:
        number, _, _ = dirblocks.dots(tx, old)
        dirblocks.writable(tx, made, number)[:4] = made.number.to_bytes(4, "little")
        for child in children:
            directories.set_parent(tx, inodes.edit(tx, child), made.number)
    for parent, name in names:
        place = directories.find(tx, inodes.edit(tx, parent), name)
        directories.replace(tx, place, made.number, place.file_type)
    inode_allocation.free(tx, old)
    freed_at = old.i_dtime
    old.buffer[:] = bytes(geometry.inode_size)
    old.i_generation, old.i_dtime = generation, freed_at
    if listed:
        orphans.add(tx, made.number)
    return made

"""Inodes of groups that go get numbers in groups that stay, one inode in each handle.

The number of an inode is in its directory entries, in ``.`` of a directory and in ``..`` of its subdirectories, and it
is part of the seed of all checksums of what belongs to the inode. The new generation is chosen so that the seed stays
(`same_seed`), so no other block changes: the slot is copied, the entries and dots name the new number, and the old slot
is free. A file handle with the old number is stale (ESTALE), as one of a removed file.

Only inodes that nobody uses are renumbered: no program has them open, and the kernel does not remember them. Others are
named with the reason, as those whose names do not fit into one transaction. A scan of all directories finds the names;
what has changed since is seen in the handle, and left to the next round. Caller: `daxfs.fs.shrinking`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.errors import Corrupt
from daxfs.ext4.checksum import crc32c
from daxfs.structures import dirblocks, directories, inodes, shrinkage
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.journal.transaction import Handle

CREDITS = 16
"""Blocks that a new number changes beside names and subdirectories, of which each takes two."""
DOTS = (b".", b"..")
IN_USE = "programs or the kernel use it; the kernel forgets what nobody has open: sysctl vm.drop_caches=2"
CHANGED = "its names have changed meanwhile"
LARGE = "its names and subdirectories do not fit into one transaction"

Names = dict[int, list[tuple[int, bytes]]]
"""Inode -> its names, each with the directory."""


def renumber(volume: Volume, target: int) -> Steps[dict[int, str]]:
    """Renumber the inodes that lie past the new end ``target``, in blocks.

    Nothing is taken past it (`blocks.confine`).

    Returns:
        The inodes that keep their numbers, and why.

    Raises:
        FsError: ENOSPC, no inode is free; and as a commit.
    """
    numbers = list(shrinkage.inodes_past(volume.view, target))
    stayed: dict[int, str] = {}
    if not numbers:
        return stayed
    names = yield from _names(volume, set(numbers))
    new: dict[int, int] = {}
    for ino in numbers:
        if inodes.in_use(volume.view, ino):
            why = _one(volume, ino, [(new.get(parent, parent), name) for parent, name in names.get(ino, [])], new)
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


def _names(volume: Volume, wanted: set[int]) -> Steps[Names]:
    """Find the names of inodes, a directory in each step."""
    found: Names = {}
    view = volume.view
    for group in range(volume.geometry.groups_count):
        for number in inodes.in_use_of(view, group):
            if not inodes.nameable(view, number) or not inodes.in_use(view, number):
                continue
            inode = inodes.read(view, number)
            if not inode.is_dir or not inode.links_count:
                continue
            try:
                for entry in directories.entries(view, inode):
                    if entry.ino in wanted and entry.name not in DOTS:
                        found.setdefault(entry.ino, []).append((number, entry.name))
            except Corrupt as error:
                note(view, error)
            yield
    return found


def _one(volume: Volume, ino: int, names: list[tuple[int, bytes]], new: dict[int, int]) -> str:
    """Renumber an inode; return why not, or an empty string."""
    view, lives = volume.view, volume.lives
    if volume.is_busy(ino) or ino in volume.nodes.open or ino in lives.nameless or ino in lives.listed:
        return IN_USE
    if ino in volume.nodes.in_log.owners or not inodes.nameable(view, ino):
        return IN_USE
    inode = inodes.read(view, ino)
    children: list[int] = []
    if inode.is_dir:
        children = [
            entry.ino
            for entry in directories.entries(view, inode)
            if entry.name not in DOTS and inodes.read(view, entry.ino).is_dir
        ]
    if len(names) != (1 if inode.is_dir else inode.links_count):
        return CHANGED
    credits = CREDITS + 2 * (len(names) + len(children))
    if credits > volume.journal.capacity:
        return LARGE
    with volume.handle(credits) as tx:
        for parent, name in names:
            if directories.ino_of(tx, directories.read_inode(tx, parent), name) != ino:
                return CHANGED
        new[ino] = _move(tx, ino, names, children)
    volume.bound_commit()
    return ""


def _move(tx: Handle, ino: int, names: list[tuple[int, bytes]], children: list[int]) -> int:
    """Give an inode a new number; return it."""
    geometry = tx.geometry
    old = inodes.edit(tx, ino)
    made = inodes.allocate(tx, inodes.read(tx, names[0][0]), old.i_mode)
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
    inodes.free(tx, old)
    freed_at = old.i_dtime
    old.buffer[:] = bytes(geometry.inode_size)
    old.i_generation, old.i_dtime = generation, freed_at
    return made.number

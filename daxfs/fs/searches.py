"""Searches in steps, for removing and renaming: is a directory empty, does it lie below another?

An operation on names is one handle. If it needs a search that takes longer than a step, the handle is undone before it
has changed anything (`NeedsSearch`), `searching` makes the search step by step, and the operation runs again with what
the search has found (`Searches`). Other requests are answered in between. So what was found must still hold: a
directory that got a name is searched again, and the kernel holds the locks of renames between directories.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.fs.steps import Steps
from daxfs.fs.volume import Volume
from daxfs.structures import directories
from daxfs.structures.directories import Watched
from daxfs.structures.inodes import Inode

LEVELS_PER_STEP = 256
BLOCKS_PER_STEP = 64
"""Blocks of a directory that one step searches for names."""
LINKS_WITHOUT_SUBDIRECTORIES = 2

R = TypeVar("R")


@dataclass
class Searches:
    """What searches in steps have found, for the operation that needs it.

    Attributes:
        apart: pairs (directory, destination) of which `climb` has found that the second is not below the first.
        empty: the watches (`directories.Watched`) of directories in which `look_through` has found no name.
    """

    apart: set[tuple[int, int]] = field(default_factory=set)
    empty: dict[int, object] = field(default_factory=dict)


class NeedsSearch(FsError):
    """An operation needs a search that takes several steps; nothing has changed.

    Attributes:
        search: makes the search, and adds what it has found to the `Searches`; or fails as the operation does.
    """

    def __init__(self, search: Callable[[], Steps[None]]) -> None:
        super().__init__(errno.EAGAIN, "a search takes several steps")
        self.search = search


def searching(volume: Volume, operation: Callable[[Searches], R]) -> Steps[R]:
    """Run an operation in one handle, after the searches that it needs."""
    searches = Searches()
    try:
        while True:
            try:
                return operation(searches)
            except NeedsSearch as needed:
                search = needed.search
            yield from search()
    finally:
        for ino, watch in searches.empty.items():
            volume.view.caches[Watched].end(ino, watch)


def refuse_names_in(volume: Volume, victim: Inode, searches: Searches) -> None:
    """Refuse to remove a directory that has names (ENOTEMPTY).

    Raises:
        NeedsSearch: the directory has more than `BLOCKS_PER_STEP` blocks.
    """
    number, watched = victim.number, volume.view.caches[Watched]
    if number in searches.empty and watched.lasts(number, searches.empty[number]):
        return

    def search() -> Steps[None]:
        searches.empty[number] = watched.begin(number)
        return look_through(volume, number)

    for _ in look_through(volume, number):
        raise NeedsSearch(search)


def look_through(volume: Volume, ino: int) -> Steps[None]:
    """Search a directory for names (ENOTEMPTY)."""
    first, directory = 0, directories.read_inode(volume.view, ino)
    while directories.is_empty(volume.view, directory, first, first + BLOCKS_PER_STEP):
        first += BLOCKS_PER_STEP
        if first << volume.geometry.block_bits >= directory.size:
            return
        yield
        directory = directories.read_inode(volume.view, ino)
    raise FsError(errno.ENOTEMPTY)


def refuse_loop(volume: Volume, moved: Inode, destination: int, searches: Searches) -> None:
    """Refuse to move a directory below itself (EINVAL), by a walk of up to `LEVELS_PER_STEP` up from the destination.

    Nothing is below a directory that has no subdirectories, which its link count shows.

    Raises:
        NeedsSearch: the walk takes more levels.
    """
    number = moved.number
    if number == destination:
        raise FsError(errno.EINVAL)
    if moved.links_count == LINKS_WITHOUT_SUBDIRECTORIES or (number, destination) in searches.apart:
        return
    for _ in climb(volume, number, destination, searches):
        raise NeedsSearch(lambda: climb(volume, number, destination, searches))


def climb(volume: Volume, moved: int, destination: int, searches: Searches) -> Steps[None]:
    """Walk up from ``destination`` to the root; EINVAL if ``moved`` is on the way."""
    current = destination
    seen = set()
    while current not in seen:
        if current == moved:
            raise FsError(errno.EINVAL)
        seen.add(current)
        above = directories.parent(volume.view, directories.read_inode(volume.view, current))
        if above == current:
            searches.apart.add((moved, destination))
            return
        current = above
        if len(seen) % LEVELS_PER_STEP == 0:
            yield
    raise Corrupt(CorruptKind.DIRECTORIES_FORM_A_LOOP, f"inode {destination}")

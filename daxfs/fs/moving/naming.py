"""Names of inodes, for whoever changes their numbers, and for messages about what stays where it is.

ext4 has no map from inodes to their names, so a look at all directories finds them, in steps. Between two steps names
may change. Nothing here changes anything, and what is damaged is noted and left out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt
from daxfs.fs.types import ROOT_INO
from daxfs.structures import directories, inode_bitmaps, inodes
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.structures.dirhints import Entry

DOTS = (b".", b"..")
INODES_PER_STEP = 64
MOST_LEVELS = 64
"""The most directories that a path names; those before them are left out."""
MOST_SHOWN = 200
"""The most characters of a path that are shown: its end."""

Names = dict[int, list[tuple[int, bytes]]]
"""Inode -> its names, each with the directory."""


def names(volume: Volume, wanted: Collection[int]) -> Steps[Names]:
    """Find the names of inodes, some entries of a directory in each step."""
    found: Names = {}
    for group in range(volume.geometry.groups_count):
        for at, number in enumerate(inode_bitmaps.in_use_of(volume.view, group)):
            if at % INODES_PER_STEP == 0:
                yield
            if not inodes.nameable(volume.view, number):
                continue
            cookie: int | None = 0
            while cookie is not None:
                listing, cookie = _portion(volume, number, cookie)
                for entry in listing:
                    if entry.ino in wanted and entry.name not in DOTS:
                        found.setdefault(entry.ino, []).append((number, entry.name))
                if listing:
                    yield
    return found


def _portion(volume: Volume, ino: int, cookie: int) -> tuple[list[Entry], int | None]:
    """Return some entries of a directory (`directories.portion`); none of what is none, or was removed meanwhile."""
    view = volume.view
    try:
        if inode_bitmaps.in_use(view, ino):
            inode = inodes.read(view, ino)
            if inode.is_dir and inode.links_count:
                listing, following = directories.portion(view, inode, cookie)
                return list(listing.entries()), following
    except Corrupt as error:
        note(view, error)
    return [], None


def shown(volume: Volume, wanted: Collection[int]) -> Steps[dict[int, str]]:
    """Return how messages name inodes: by a path from the pool's root and the number, or by the number alone.

    A long path is shown without its beginning. An inode with several names has one of them; one without a name, or in a
    directory that was renamed or removed meanwhile, has none.
    """
    texts = {ino: f"inode {ino}" for ino in wanted}
    if wanted:
        for ino, places in (yield from names(volume, wanted)).items():
            folder, name = places[0]
            above = yield from _path(volume, folder)
            if above is not None:
                path = b"/".join((above, name)).decode(errors="backslashreplace")
                short = path if len(path) <= MOST_SHOWN else f"...{path[-MOST_SHOWN:]}"
                texts[ino] = f"{short} (inode {ino})"
    return texts


def _path(volume: Volume, ino: int) -> Steps[bytes | None]:
    """Return the path of a directory, a level in each step or more, without a slash at its end; None: it has none."""
    parts: list[bytes] = []
    while ino != ROOT_INO and len(parts) < MOST_LEVELS:
        above = next((entry.ino for entry in _portion(volume, ino, 0)[0] if entry.name == b".."), 0)
        name, cookie = b"", 0 if above else None
        while cookie is not None and not name:
            listing, cookie = _portion(volume, above, cookie)
            name = next((entry.name for entry in listing if entry.ino == ino and entry.name not in DOTS), b"")
            yield
        if not name:
            return None
        parts.append(name)
        ino = above
    return b"/".join((b"" if ino == ROOT_INO else b"...", *reversed(parts)))

"""``daxfs badblocks``: list the bad memory of a pool, and what lies there.

The ranges are those that the kernel lists of the device, and with a mount also those that its daemon has met. Each
block is looked up in the layout of the groups, in the maps of all inodes, and in the bitmaps; the bad blocks themselves
are not read. Paths are searched from the root, for those inodes alone that have bad blocks.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from daxfs.errors import BadMemory, FsError
from daxfs.ext4.inode import EXT4_ROOT_INO, FT_DIR, FT_UNKNOWN
from daxfs.fs import removal
from daxfs.pmem.badblocks import BadRanges
from daxfs.structures import badblocks, blocks, directories, groups, inode_bitmaps, inodes, mapping
from daxfs.tools import stats
from daxfs.tools.info import pool_of
from daxfs.tools.printing import printable
from daxfs.tools.reading import Reading, reading
from daxfs.tools.sizes import format_size
from daxfs.tools.watchedview import WatchedView

FOUND = 1
"""The exit code if there is bad memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bad bytes of the pool that belong to one owner.

    Attributes:
        offset: in the pool, in bytes.
        length: in bytes.
        kind: ``data``, ``directory``, ``journal``, ``map``, ``attributes``; the name of a group's metadata; or, where
            no file has the blocks, ``free``, ``bad-blocks inode``, or that they are in use.
        ino: the inode; 0: none.
        path: of the inode, from the pool's root; "": unknown, or no inode.
        file_offset: where the bytes lie in the file, if they are its data or a directory's; else -1.
    """

    offset: int
    length: int
    kind: str
    ino: int = 0
    path: str = ""
    file_offset: int = -1


@dataclass(frozen=True, slots=True)
class Report:
    """The bad memory of a pool."""

    pool: str
    mountpoint: str
    bytes: int
    places: list[Place]


class _View(WatchedView):
    """A view that touches no bad block, and notes which ones it was asked for."""

    __slots__ = ()

    def note(self, number: int) -> None:
        """Note a bad block, and refuse to read it."""
        start = number * self.block_size
        if self.pool.bad.first(start, start + self.block_size) is not None:
            super().note(number)
            raise BadMemory(f"block {number} lies in bad memory")


def examine(place: str) -> Report:
    """List the bad memory of a pool, by its path or its mountpoint.

    Raises:
        UserError: there is no such pool or mount, or its daemon keeps no statistics.
        FsError: the pool has no readable ext4.
    """
    path, mountpoint = pool_of(place)
    met: list[list[int]] = []
    if mountpoint:
        with stats.opened(mountpoint) as (descriptor, _):
            with suppress(OSError):
                os.fsync(descriptor)  # commits: the pool is read beside the daemon
            met = stats.ask(descriptor, mountpoint).bad
    with reading(path) as found:
        bad = found.pool.bad
        for begin, end in met:
            bad.add(begin, end)
        found.pool.faults.avoid()
        return Report(path, mountpoint, bad.bytes, _Search(found).places() if bad else [])


class _Search:
    """The search for the owners of all bad memory of a pool."""

    def __init__(self, found: Reading) -> None:
        self._bits = found.geometry.block_bits
        self._geometry = found.geometry
        self._superblock = found.superblock
        self._view = _View(found.pool, found.geometry)
        self._left = BadRanges(found.pool.size, found.pool.bad)
        self._found: list[Place] = []

    def places(self) -> list[Place]:
        """Return all bad bytes with their owners, in order."""
        try:
            self._layout()
            self._inodes()
            self._rest()
            paths = self._paths({place.ino for place in self._found if place.ino})
        finally:
            self._view.release()
        named = [replace(place, path=paths.get(place.ino, "")) for place in self._found]
        return sorted(named, key=lambda place: place.offset)

    def _take(self, kind: str, start: int, count: int, ino: int = 0, lblk: int = -1) -> None:
        """Note the owner of what is bad among ``count`` blocks, if it has none yet."""
        first, bits = start << self._bits, self._bits
        for begin, end in list(self._left.within(first, first + (count << bits))):
            offset = (lblk << bits) + begin - first if lblk >= 0 else -1
            self._found.append(Place(begin, end - begin, kind, ino, "", offset))
            self._left.take_out(begin, end)

    def _layout(self) -> None:
        """Look at what belongs to the groups. The superblock itself is good, or the pool can't be read."""
        geometry = self._geometry
        if geometry.first_data_block:
            self._take("boot block", 0, geometry.first_data_block)
        for group in range(geometry.groups_count):
            self._take("superblock copy or group descriptors", geometry.first_block(group), geometry.base_blocks(group))
            with suppress(FsError):
                desc = groups.descriptor(self._view, group)
                self._take("block bitmap", desc.block_bitmap, 1)
                self._take("inode bitmap", desc.inode_bitmap, 1)
                self._take("inode table", desc.inode_table, geometry.inode_blocks_per_group)

    def _inodes(self) -> None:
        with suppress(FsError):
            for run in badblocks.listed(self._view):
                self._take("bad-blocks inode", run.pblk, run.length)
        journal = self._superblock.s_journal_inum
        for ino in range(EXT4_ROOT_INO, self._geometry.inodes_count + 1):
            if not self._left:
                return
            with suppress(FsError):
                if ino == journal or inode_bitmaps.in_use(self._view, ino):
                    self._inode(ino, "journal" if ino == journal else "data")

    def _inode(self, ino: int, kind: str) -> None:
        view = self._view
        view.asked.clear()
        inode = inodes.read(view, ino)
        if inode.is_dir:
            kind = "directory"
        try:
            if inode.file_acl:
                self._take("attributes", inode.file_acl, 1, ino)
            for run in mapping.walk(view, inode) if removal.holds_blocks(inode) else ():
                self._take(kind, run.pblk, run.length, ino, run.lblk)
        finally:
            for number in view.asked:
                self._take("map", number, 1, ino)

    def _rest(self) -> None:
        """Look at what no inode has."""
        bits, geometry = self._bits, self._geometry
        for begin, end in list(self._left):
            for number in range(begin >> bits, (end - 1 >> bits) + 1):
                free = number >= geometry.blocks_count
                with suppress(FsError):
                    free = free or blocks.is_free(self._view, number)
                self._take("free" if free else "in use, perhaps by the map of a file", number, 1)

    def _paths(self, wanted: set[int]) -> dict[int, str]:
        """Return the paths of inodes, from the root; an inode with several names has one of them."""
        paths: dict[int, str] = {EXT4_ROOT_INO: "/"} if EXT4_ROOT_INO in wanted else {}
        waiting, seen = [(EXT4_ROOT_INO, "")], {EXT4_ROOT_INO}
        while waiting and paths.keys() != wanted:
            ino, above = waiting.pop()
            with suppress(FsError):
                inode = inodes.read(self._view, ino)
                for entry in directories.entries(self._view, inode) if inode.is_dir else ():
                    path = f"{above}/{os.fsdecode(entry.name)}"
                    if entry.name in (b".", b"..") or entry.ino in seen:
                        continue
                    if entry.ino in wanted:
                        paths.setdefault(entry.ino, path)
                    if entry.file_type in (FT_DIR, FT_UNKNOWN):
                        seen.add(entry.ino)
                        waiting.append((entry.ino, path))
        return paths


def show(place: str, *, as_json: bool = False) -> int:
    """Print the bad memory of a pool; return the exit code."""
    report = examine(place)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    return FOUND if report.bytes else 0


def _print(report: Report) -> None:
    if not report.bytes:
        print(f"{report.pool}: no bad memory is known")
        return
    files = {place.ino for place in report.places if place.ino}
    print(f"{report.pool}: {format_size(report.bytes)} of bad memory, in {len(files)} files")
    print(f"{'pool offset':>16} {'length':>10}  what")
    for place in report.places:
        text = place.kind
        if place.ino:
            text += f" of {printable(place.path) or 'a file without a path'} (inode {place.ino})"
        if place.file_offset >= 0:
            text += f", at offset {place.file_offset}"
        print(f"{place.offset:>16} {place.length:>10}  {text}")

"""The stores of snapshots as files: ``/.daxfs/snapshots/NAME``.

A store is a regular file of root's, immutable and not dumped, whose extents are written although most of its blocks
hold what they held before: nobody but root reads it, and the table says which chunks have content. Its blocks are whole
snapshot chunks of the pool that no snapshot needs, so that storing to them needs no copy. Callers: the modules of this
package.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import FsError
from daxfs.ext4.extent import EXT_INIT_MAX_LEN, Extent
from daxfs.ext4.inode import EXT4_IMMUTABLE_FL, EXT4_NODUMP_FL, file_type_of_mode
from daxfs.fs import clock, names
from daxfs.fs.types import ROOT_INO, Caller
from daxfs.runs import BlockRun
from daxfs.snapshots.format import SMALLEST_CHUNK, NotAStore
from daxfs.snapshots.store import ChunkRun
from daxfs.structures import bitmaps, blocks, directories, inodes, mapping, reserves

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

FOLDERS = (b".daxfs", b"snapshots")
MOST_RUNS, MOST_GROUPS, MOST_BLOCKS = 64, 8, 1 << 15
"""The most runs, groups of the runs, and blocks by which a store grows at once; see `Reach`."""
RESERVED_AT_ONCE = 1 << 20
"""Bytes at the beginning of new runs for which a pool's file gets blocks at once; `Store` sees to the others."""
RUNS_PER_NODE = 40
"""Runs that a node of a map has at least when many were inserted in order; a node and its bitmap are two blocks."""
CREDITS_RUNS = 2 * MOST_GROUPS + 24
"""Bitmaps and descriptors of the groups, and nodes of the map."""
CREDITS_NEW = (1 + len(FOLDERS)) * names.CREDITS_CREATE + CREDITS_RUNS


class Reach(NamedTuple):
    """How much one handle may give to a store: blocks, the runs they lie in, and the groups of the runs."""

    blocks: int
    runs: int
    groups: int

    @classmethod
    def of(cls, view: View, chunks: int = 0) -> Reach:
        """Return the usual reach, or that for a store that must have more chunks than this at once."""
        geometry = view.geometry
        beyond = max((chunks << chunk_bits(view) - geometry.block_bits) - MOST_BLOCKS, 0)
        groups = -(-beyond // geometry.blocks_per_group)
        return cls(MOST_BLOCKS + beyond, MOST_RUNS + 8 * groups, MOST_GROUPS + 2 * groups)

    @property
    def credits(self) -> int:
        """What this reach costs beyond the usual `CREDITS_RUNS`: bitmaps, descriptors, and nodes of the map."""
        return 2 * (self.groups - MOST_GROUPS) + (self.runs - MOST_RUNS) // RUNS_PER_NODE


def chunk_bits(view: View) -> int:
    """Return the size of snapshot chunks: a block, at least 4 KiB, as the number of bits of an offset in it."""
    return max(view.geometry.block_bits, SMALLEST_CHUNK.bit_length() - 1)


def folder(view: View) -> Inode | None:
    """Return the directory of the stores; None if there is none."""
    path = folders(view)
    return path[-1] if len(path) == len(FOLDERS) else None


def folders(view: View) -> list[Inode]:
    """Return the directories on the way to the stores below the root, as many as there are."""
    path: list[Inode] = []
    inode = inodes.read(view, ROOT_INO)
    for name in FOLDERS:
        place = directories.find(view, inode, name)
        if not place.ino or not inodes.nameable(view, place.ino):
            break
        inode = inodes.read(view, place.ino)
        if not stat.S_ISDIR(inode.mode):
            break
        path.append(inode)
    return path


def make_folder(volume: Volume, tx: Handle) -> int:
    """Return the inode number of the directory of the stores, which the handle makes if there is none.

    Raises:
        FsError: ENOTDIR, a file is in its place; EACCES, it is not root's, so its owner could move it; ENOSPC.
    """
    number = ROOT_INO
    for name in FOLDERS:
        parent = inodes.edit(tx, number)
        place = directories.find(tx, parent, name)
        if not place.ino:
            number = _make_directory(volume, tx, parent, place)
        else:
            number = place.ino
            inode = inodes.read(tx, number)
            if not stat.S_ISDIR(inode.mode):
                raise FsError(errno.ENOTDIR, f"{name.decode()} is in the place of the directory of snapshots")
            if inode.uid:
                raise FsError(errno.EACCES, f"{name.decode()}, the directory of snapshots, is not root's")
    return number


def _make_directory(volume: Volume, tx: Handle, parent: Inode, place: directories.Place) -> int:
    now = clock.now()
    made, _ = names.new_inode(volume, tx, parent, stat.S_IFDIR | 0o700, Caller(), now)
    made.mode = stat.S_IFDIR | 0o700
    mapping.new_inode_map(tx, made)
    directories.create(tx, made, parent.number)
    made.links_count = 2
    names.add_link_for_subdirectory(volume, parent)
    directories.insert(tx, place, made.number, file_type_of_mode(made.mode))
    parent.set_changed(now)
    return made.number


def is_store(inode: Inode) -> bool:
    """Whether an inode may be a store: immutable, root's, and with one name. No user can make such a file."""
    return (
        stat.S_ISREG(inode.mode) and bool(inode.flags & EXT4_IMMUTABLE_FL) and inode.uid == 0 and inode.links_count == 1
    )


def found(view: View) -> Iterator[tuple[bytes, Inode]]:
    """Yield the names and inodes of what may be stores; valid until the next change."""
    return (each for each in named(view) if is_store(each[1]))


def is_named(view: View, directory: Inode, name: bytes) -> bool:
    """Whether a file in the directory of the stores has this name, be it a store or not."""
    place = directories.find(view, directory, name)
    if not place.ino or name in (b".", b"..") or not inodes.nameable(view, place.ino):
        return False
    return stat.S_ISREG(inodes.read(view, place.ino).mode)


def named(view: View) -> Iterator[tuple[bytes, Inode]]:
    """Yield the names and inodes of all files where stores are; valid until the next change."""
    directory = folder(view)
    if directory is None:
        return
    for entry in list(directories.entries(view, directory)):
        if entry.name not in (b".", b"..") and inodes.nameable(view, entry.ino):
            inode = inodes.read(view, entry.ino)
            if stat.S_ISREG(inode.mode):
                yield bytes(entry.name), inode


def runs_of(view: View, inode: Inode) -> list[ChunkRun]:
    """Return where the chunks of a store lie.

    Raises:
        NotAStore: the file has holes, or blocks that are no whole chunks.
    """
    ratio = 1 << chunk_bits(view) - view.geometry.block_bits
    made: list[ChunkRun] = []
    expected = 0
    for extent in _merged(mapping.walk(view, inode)):
        if extent.lblk != expected or extent.unwritten or extent.pblk % ratio or extent.length % ratio:
            raise NotAStore("the store of a snapshot has holes, or blocks that are no whole chunks")
        made.append(ChunkRun(extent.pblk // ratio, extent.length // ratio))
        expected += extent.length
    return made


def _merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Join extents that follow each other in the file and in the pool."""
    last: Extent | None = None
    for extent in extents:
        if (
            last is not None
            and extent.pblk == last.pblk + last.length
            and extent.lblk == last.lblk + last.length
            and extent.unwritten == last.unwritten
        ):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def create(
    volume: Volume, tx: Handle, parent: int, name: bytes, chunks: int, needed: bytearray, created_ns: int
) -> Inode:
    """Make a store of ``chunks`` chunks, in a handle with `CREDITS_NEW` and the credits of its `Reach`.

    Args:
        volume: the volume.
        tx: the handle.
        parent: the directory of the stores.
        name: of the snapshot.
        chunks: how many it gets.
        needed: the chunks of the pool that it must not take.
        created_ns: when it is made, not before any other store.

    Raises:
        FsError: EEXIST; ENOSPC, there are not so many chunks that nobody needs.
    """
    directory = inodes.edit(tx, parent)
    place = directories.find(tx, directory, name)
    if place.ino:
        raise FsError(errno.EEXIST, f"there is a snapshot {name.decode(errors='replace')} already")
    inode, _ = names.new_inode(volume, tx, directory, stat.S_IFREG | 0o600, Caller(), created_ns)
    inode.mode = stat.S_IFREG | 0o600
    mapping.new_inode_map(tx, inode)
    if extend(volume, tx, inode, chunks, needed, Reach.of(tx, chunks)) < chunks:
        raise FsError(errno.ENOSPC, "the pool has no room for the store of a snapshot")
    inode.flags |= EXT4_IMMUTABLE_FL | EXT4_NODUMP_FL
    inode.links_count = 1
    directories.insert(tx, place, inode.number, file_type_of_mode(inode.mode))
    directory.set_changed(clock.now())
    return inode


def extend(volume: Volume, tx: Handle, inode: Inode, chunks: int, needed: bytearray, reach: Reach | None = None) -> int:
    """Give a store up to ``chunks`` more chunks that nobody needs; return how many.

    It costs `CREDITS_RUNS`, and the credits of ``reach``.
    """
    reach = reach or Reach.of(tx)
    ratio = 1 << chunk_bits(tx) - tx.geometry.block_bits
    spare = blocks.free_blocks(tx) - reserves.must_stay_free(tx.geometry, tx.superblock(), privileged=True)
    most = min(chunks, reach.blocks // ratio, max(spare, 0) // ratio)
    chosen = _choose(tx, most, ratio, needed, reach)
    taken = [BlockRun(start * ratio, length * ratio) for start, length in chosen]
    if not taken:
        return 0
    blocks.take_runs(tx, taken)
    bits = tx.geometry.block_bits
    volume.pool.make_room(taken[0].start << bits, min(taken[0].length << bits, RESERVED_AT_ONCE))
    lblk = inode.size >> tx.geometry.block_bits
    for start, length in taken:
        for at in range(0, length, EXT_INIT_MAX_LEN):
            part = min(EXT_INIT_MAX_LEN, length - at)
            mapping.insert(tx, inode, Extent(lblk, start + at, part, False))
            lblk += part
        inodes.add_blocks(inode, length, tx.geometry)
    inode.size = lblk << tx.geometry.block_bits
    return sum(length for _, length in chosen)


def _choose(tx: Handle, most: int, ratio: int, needed: bytearray, reach: Reach) -> list[ChunkRun]:
    """Find free chunks that nobody needs, from the end of the pool on: long runs first in each group."""
    chosen: list[ChunkRun] = []
    groups = 0
    for group in range(tx.geometry.groups_count - 1, -1, -1):
        if most <= 0 or len(chosen) == reach.runs or groups == reach.groups:
            break
        runs = list(_unneeded(tx, group, ratio, needed))
        groups += bool(runs)
        for start, length in sorted(runs, key=lambda run: -run.length)[: reach.runs - len(chosen)]:
            length = min(length, most)
            most -= length
            chosen.append(ChunkRun(start, length))
            if not most:
                break
    return sorted(chosen)


def _unneeded(tx: Handle, group: int, ratio: int, needed: bytearray) -> Iterator[ChunkRun]:
    bitmap = memoryview(needed)
    for start, count in blocks.free_runs(tx, group, ratio):
        first, end = -(-start // ratio), (start + count) // ratio
        while first < end:
            length = bitmaps.free_run(bitmap, first, end - first)
            if length:
                yield ChunkRun(first, length)
                first += length
            else:
                first += bitmaps.used_run(bitmap, first, end - first)

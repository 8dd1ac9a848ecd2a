"""Make a transaction of the fast commits that a power cut left, so that the log's replay includes them.

A fast commit says what was done: names made and removed, ranges of files mapped and unmapped, inodes changed. Here this
is done again, by the structures' own functions, in one handle on the state of the last transaction. The handle's blocks
are then committed to the log (`daxfs.journal.continued`). So a power cut finds the fast commits or the transaction, and
what can't be done leaves the fast commits to e2fsck. Nothing here knows a volume; `mounting.recover` calls `store`.

What fast commits leave out follows from what they say: bitmaps, counters and the blocks of extent trees; blocks of
directories, and their times, which are those of the names' inodes; the links of directories.

Where the kernel's replay or e2fsck's loses something, this one does not (docs/CRASH.md has the list).

Source: fs/ext4/fast_commit.c.
"""

from __future__ import annotations

import errno
import stat
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.extent import Extent
from daxfs.ext4.fast_commit import AddRange, Change, DelRange, InodeImage, NameChange, Tag
from daxfs.ext4.inode import BLOCK_AREA, EXT4_EXTENTS_FL, EXT4_INDEX_FL, file_type_of_mode
from daxfs.ext4.limits import EXT4_LINK_MAX
from daxfs.fs import removal
from daxfs.journal.continued import ContinuedLog
from daxfs.journal.journal import Journal
from daxfs.runs import BlockRun, ByteRange, joined, subtract
from daxfs.structures import blocks, directories, inode_allocation, inode_bitmaps, inodes, mapping, orphans, xattrs
from daxfs.structures.inodes import Inode

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.area import LogArea
    from daxfs.journal.fast_scan import FastCommits
    from daxfs.journal.handle import Handle
    from daxfs.pmem.pool import Pool


NO_SUBDIRECTORIES = 2
"""The links of a directory without subdirectories."""


def store(pool: Pool, geometry: Geometry, area: LogArea, fast: FastCommits) -> None:
    """Commit to the log what the fast commits say; the log's own transactions are at home already.

    Raises:
        Corrupt: they contradict the pool or each other. The log and the fast commits are unchanged.
        FsError: ENOSPC: the log has no room.
        Unsupported: as `ContinuedLog`.
    """
    writer = ContinuedLog(pool, geometry, area, fast)
    journal = Journal(pool, geometry, writer)
    journal.add_commit_hook(blocks.apply_frees, journal.has_frees)
    try:
        with journal.handle(journal.capacity) as tx:
            _replay(tx, fast.changes)
        journal.commit()
    except BaseException:
        journal.abort(record=False)
        raise
    finally:
        journal.close()
        writer.close()


def _replay(tx: Handle, changes: tuple[Change, ...]) -> None:
    """Make all changes; what no file of the pool can be, such as a range past the last block, is damage too."""
    try:
        _Replay(tx, changes).run()
    except FsError as error:
        if error.errno in (errno.EFBIG, errno.EOPNOTSUPP):
            raise Corrupt(CorruptKind.FAST_COMMIT, str(error.strerror)) from None
        raise


class _Replay:
    """The replay of changes, in their order, through one handle."""

    def __init__(self, tx: Handle, changes: tuple[Change, ...]) -> None:
        self._tx = tx
        self._changes = changes
        self._bits = tx.geometry.block_bits
        self._images: defaultdict[int, deque[InodeImage]] = defaultdict(deque)
        for change in changes:
            if isinstance(change, InodeImage):
                self._images[change.ino].append(change)
        self._orphans = set(orphans.survey(tx).found)
        self._nameless = {ino for ino in self._orphans if not inodes.read(tx, ino).links_count}
        self._named: list[tuple[int, int]] = []  # directories whose names were changed, and the names' inodes
        self._files: set[int] = set()  # whose maps were changed
        self._taken: list[ByteRange] = []  # the blocks of ranges that were free
        self._mapped: list[ByteRange] = []  # those that were mapped anew
        self._links: dict[int, int] = {}  # the names of each inode that was changed, as far as the changes tell
        self._fresh: set[int] = set()  # inodes that were made, and have no name yet

    def run(self) -> None:
        """Make all changes, then what follows from them."""
        self._take_ranges()
        for change in self._changes:
            if isinstance(change, InodeImage):
                self._images[change.ino].popleft()
                self._apply_image(change)
            elif isinstance(change, AddRange):
                self._map(change)
            elif isinstance(change, DelRange):
                inode = self._file(change.ino)
                if inode is not None:
                    mapping.remove(self._tx, inode, change.lblk, change.last)
            elif change.tag == Tag.UNLINK:
                self._unlink(change)
            else:
                self._link(change)
        self._finish()

    # Inodes

    def _find(self, ino: int) -> Inode | None:
        """Return an inode that is in use, for changing; None: it is not.

        One whose record is still to come is made now: a file that was made without a name gets it before its record.
        """
        tx = self._tx
        if not inodes.nameable(tx, ino):
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is reserved")
        images = self._images[ino]
        if images and (not inode_bitmaps.in_use(tx, ino) or self._is_another(images[0])):
            self._apply_image(images[0])
        if not inode_bitmaps.in_use(tx, ino):
            return None
        inode = inodes.edit(tx, ino)
        self._links.setdefault(ino, inode.links_count)
        return inode

    def _is_another(self, image: InodeImage) -> bool:
        """Whether the inode in use, which has no names, was freed before the record's one got its number."""
        inode = inodes.read(self._tx, image.ino)
        _, links, generation = _facts(image)
        nameless = not self._links.get(image.ino, inode.links_count)
        return bool(links) and nameless and inode.generation != generation

    def _apply_image(self, image: InodeImage) -> None:
        """Give an inode what the record says, all but its map: that follows from the ranges."""
        tx, ino, raw = self._tx, image.ino, image.raw
        mode, links, _ = _facts(image)
        if not inodes.nameable(tx, ino):
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is reserved")
        used = inode_bitmaps.in_use(tx, ino)
        if used and self._is_another(image):
            self._free(inodes.edit(tx, ino))
            used = False
        if used:
            self._change(inodes.edit(tx, ino), raw)
        elif links:
            self._make(inode_allocation.take(tx, ino, mode), raw)
        else:
            return
        if not used or not stat.S_ISDIR(mode):
            self._links[ino] = links

    def _free(self, inode: Inode) -> None:
        tx, ino = self._tx, inode.number
        if ino in self._orphans:
            orphans.remove(tx, ino)
            self._orphans.discard(ino)
            self._nameless.discard(ino)
        if removal.holds_blocks(inode):
            mapping.remove(tx, inode, 0, None, metadata=not inode.is_regular)
        xattrs.drop(tx, inode)
        inode_allocation.free(tx, inode)

    def _make(self, inode: Inode, raw: bytes) -> None:
        """Fill a slot of zeros."""
        tx, ino = self._tx, inode.number
        inode.fill(raw)
        if removal.holds_blocks(inode):
            inode.block_area[:] = bytes(len(inode.block_area))
            if inode.flags & EXT4_EXTENTS_FL:
                mapping.new_inode_map(tx, inode)
        inode.i_dtime = 0
        inode.blocks = 0
        if inode.is_dir:
            inode.size = 0
            inode.flags &= ~EXT4_INDEX_FL
        self._verify(inode)
        if inode.file_acl:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is new and has a block of attributes")
        self._fresh.add(ino)

    def _change(self, inode: Inode, raw: bytes) -> None:
        ino = inode.number
        old = bytes(inode.buffer)
        size, count, acl, flags = inode.size, inode.blocks, inode.file_acl, inode.flags
        links, generation = inode.links_count, inode.generation
        mapped = removal.holds_blocks(inode)
        inode.fill(raw)
        if inode.mode >> 12 != old[1] >> 4 or removal.holds_blocks(inode) != mapped:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} has another type")
        if inode.file_acl != acl or (mapped and (inode.flags ^ flags) & EXT4_EXTENTS_FL):
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} has other attributes, or another kind of map")
        if inode.generation != generation and self._tx.geometry.metadata_csum:
            # The checksums of its blocks are made with the generation, so the kernel does not change it either.
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is another one, but has names")
        if mapped:
            inode.block_area[:] = old[BLOCK_AREA]
        inode.blocks = count
        inode.i_dtime = int.from_bytes(old[0x14:0x18], "little")
        if inode.is_dir:
            inode.size = size
            inode.links_count = links
            inode.flags = inode.flags & ~EXT4_INDEX_FL | flags & EXT4_INDEX_FL
        self._verify(inode)

    def _verify(self, inode: Inode) -> None:
        """Check what an image says as if it had been read from the pool."""
        geometry = self._tx.geometry
        inode.seal(inode.number, geometry)
        inode.verify(inode.number, geometry)

    # Names

    def _directory(self, ino: int) -> Inode:
        directory = self._find(ino)
        if directory is None or not directory.is_dir:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is no directory")
        return directory

    def _link(self, change: NameChange) -> None:
        """Make a name, and with CREAT the directory that it names."""
        tx, ino = self._tx, change.ino
        if change.name in (b".", b"..") or b"/" in change.name or b"\0" in change.name:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} gets the name {change.name!r}")
        directory, inode = self._directory(change.parent), self._find(ino)
        if inode is None:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} gets a name and is not in use")
        place = directories.find(tx, directory, change.name)
        if place.ino:
            if place.ino != ino:
                raise Corrupt(CorruptKind.FAST_COMMIT, f"{change.name!r} in {change.parent} is inode {place.ino}")
            return
        if inode.is_dir:
            if inode.size:
                raise Corrupt(CorruptKind.FAST_COMMIT, f"directory {ino} gets a second name")
            inode.links_count = 0  # as long as it has no block
            directories.create(tx, inode, directory.number)
        directories.insert(tx, place, ino, file_type_of_mode(inode.mode))
        self._fresh.discard(ino)
        self._named.append((directory.number, ino))
        if inode.is_dir:
            self._links[ino] = NO_SUBDIRECTORIES
            self._links[directory.number] = self._one_more(self._links[directory.number])
        else:
            self._links[ino] = self._links[ino] + 1 if change.tag == Tag.LINK else 1

    def _unlink(self, change: NameChange) -> None:
        """Remove a name. An inode that was made and freed within one fast commit was never in use."""
        tx, ino = self._tx, change.ino
        if not inode_bitmaps.in_use(tx, ino):
            return
        directory, inode = self._directory(change.parent), self._find(ino)
        place = directories.find(tx, directory, change.name)
        if inode is None or place.ino != ino:
            return
        directories.remove(tx, place)
        self._named.append((directory.number, ino))
        if inode.is_dir:
            self._links[ino] = 0
            if self._links[directory.number] > NO_SUBDIRECTORIES:
                self._links[directory.number] -= 1
        else:
            self._links[ino] = max(self._links[ino] - 1, 0)

    def _one_more(self, links: int) -> int:
        """Return the links of a directory with one more subdirectory; 1 means "too many to count"."""
        return 1 if links == 1 or links >= EXT4_LINK_MAX else links + 1

    # Maps

    def _file(self, ino: int) -> Inode | None:
        """Return a file whose map is changed; None: the inode is not in use, because it was freed later."""
        inode = self._find(ino)
        if inode is None:
            return None
        if not inode.is_regular:
            raise Corrupt(CorruptKind.FAST_COMMIT, f"inode {ino} is no file with a map")
        self._files.add(ino)
        return inode

    def _map(self, change: AddRange) -> None:
        """Give a file an extent, in the place of what it has there."""
        tx, geometry, new = self._tx, self._tx.geometry, change.extent
        inode = self._file(change.ino)
        if inode is None:
            return
        last = new.lblk + new.length - 1
        for lblk, pblk, length, unwritten in list(mapping.walk(tx, inode, new.lblk, last)):
            if pblk != new.pblk + lblk - new.lblk:
                mapping.remove(tx, inode, lblk, lblk + length - 1)
            elif unwritten != new.unwritten:
                (mapping.mark_unwritten if new.unwritten else mapping.mark_written)(tx, inode, lblk, length)
        begin = new.lblk
        kept = list(mapping.walk(tx, inode, new.lblk, last))
        for end, following in [(extent.lblk, extent.lblk + extent.length) for extent in kept] + [(last + 1, 0)]:
            if begin < end:
                start = new.pblk + begin - new.lblk
                mapping.insert(tx, inode, Extent(begin, start, end - begin, new.unwritten))
                inodes.add_blocks(inode, end - begin, geometry)
                self._mapped.append(self._bytes(start, end - begin))
            begin = following

    def _bytes(self, start: int, length: int) -> ByteRange:
        return ByteRange(start << self._bits, start + length << self._bits)

    def _take_ranges(self) -> None:
        """Take the free blocks of all ranges, so that nothing else is given them: trees and directories need blocks."""
        tx, geometry = self._tx, self._tx.geometry
        ranges = [change.extent for change in self._changes if isinstance(change, AddRange)]
        runs: list[BlockRun] = []
        for begin, end in joined(self._bytes(extent.pblk, extent.length) for extent in ranges):
            first, after = begin >> self._bits, end >> self._bits
            if first <= geometry.first_data_block or after > geometry.blocks_count:
                raise Corrupt(CorruptKind.FAST_COMMIT, f"blocks {first} to {after - 1} are not in the file system")
            for group in range(geometry.group_of_block(first), geometry.group_of_block(after - 1) + 1):
                for start, length in blocks.free_runs(tx, group, 1, first):
                    if start >= after:
                        break
                    low, high = max(start, first), min(start + length, after)
                    runs.append(BlockRun(low, high - low))
        if runs:
            blocks.take_runs(tx, runs)
        self._taken = [self._bytes(*run) for run in runs]

    # What follows

    def _finish(self) -> None:
        """Store what is known when all changes are made."""
        tx = self._tx
        for parent, ino in self._named:
            directory, inode = inodes.edit(tx, parent), inodes.edit(tx, ino)
            directory.mtime_ns = directory.ctime_ns = max(directory.ctime_ns, inode.ctime_ns)
        for ino, links in self._links.items():
            inode = inodes.edit(tx, ino)
            inode.links_count = 0 if ino in self._fresh else links
            if removal.holds_blocks(inode):
                mapping.normalize_tail(tx, inode)
            if not inode.links_count and ino not in self._orphans:
                self._abandon(inode)
            elif inode.links_count and ino in self._nameless:
                orphans.remove(tx, ino)
        self._settle()

    def _abandon(self, inode: Inode) -> None:
        """Make an inode without names an orphan: the mount frees it."""
        if inode.is_dir and not directories.is_empty(self._tx, inode):
            raise Corrupt(CorruptKind.FAST_COMMIT, f"directory {inode.number} is removed and has names")
        orphans.add(self._tx, inode.number)

    def _settle(self) -> None:
        """Free the blocks that no file has in the end, and only those.

        Raises:
            Corrupt: a file gets blocks that are another's, or metadata.
        """
        tx = self._tx
        used = joined(
            self._bytes(extent.pblk, extent.length)
            for ino in self._files
            if inode_bitmaps.in_use(tx, ino)
            for extent in mapping.walk(tx, inodes.read(tx, ino))
        )
        freed = list(joined([*(self._bytes(*run) for run in tx.frees), *self._taken]))
        for begin, end in subtract(joined(self._mapped), freed):
            raise Corrupt(
                CorruptKind.FAST_COMMIT, f"blocks {begin >> self._bits} to {(end >> self._bits) - 1} are in use already"
            )
        tx.frees[:] = [
            BlockRun(begin >> self._bits, end - begin >> self._bits) for begin, end in subtract(freed, list(used))
        ]


def _facts(image: InodeImage) -> tuple[int, int, int]:
    """Return the mode, the number of names and the generation in a record."""
    mode, links, generation = (image.raw[at : at + size] for at, size in ((0x00, 2), (0x1A, 2), (0x64, 4)))
    return int.from_bytes(mode, "little"), int.from_bytes(links, "little"), int.from_bytes(generation, "little")

"""What an inode owns beside a file's data leaves a part of the pool: metadata moves through the log.

These are the blocks of a directory, the block of a long symbolic link, the blocks that a map itself consists of (nodes
of an extent tree, indirect blocks), and the block of extended attributes. `vacate` moves a regular file's data first
(`relocation`), then these; `vacate_structure` moves neither data nor attributes.

A block of metadata moves in one handle: the new block gets the content as a copy of the transaction, what refers to it
gets the new number, and the old block is freed and revoked. So the content is in the log before anything names its new
place, and replay stores no older content over what the old block holds later (C9). Checksums stay as they are, since
their seeds are the inode's number and generation; only that of an attribute block has the block's number in it. What is
cached by the block's number is forgotten (`dirhints`).

A block of attributes that several inodes share moves with the first of them; the others follow when their turn comes
(`Shared`), and those that never come keep the old block. Values in inodes of their own (ea_inode) are on no mounted
pool. Blocks whose content is damaged stay, and the damage is noted as for any reader.

Each step moves few blocks, and begins with a look at what there is: between two steps everything may change.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError
from daxfs.fs import badmemory, removal
from daxfs.fs.moving import relocation
from daxfs.fs.moving.relocation import Leaving, Piece, head, placed
from daxfs.fs.nodes import END
from daxfs.fs.tiers import moves
from daxfs.fs.types import ATTRIBUTES, BAD, CONTENT, DAMAGED, FULL, MAP, Caller, Relocation, Stayed
from daxfs.runs import BlockRun
from daxfs.structures import blocks, dirblocks, inode_bitmaps, inodes, mapping, xattrs
from daxfs.structures.destinations import Search
from daxfs.structures.extent_tree import MAX_BLOCKS
from daxfs.structures.mapping import Extent
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

CREDITS = 32
"""Blocks that a handle may change beside those that move: inode, bitmap, descriptor, and what a map's change takes."""
BLOCKS_PER_HANDLE = 32
LOOKS = 64
"""Leaves of a map that a step looks at."""
MOST_SHARED = 1024


class Shared:
    """Blocks of attributes that several inodes shared and that have moved: who has moved one first, by its old number.

    That inode's reference proves that a block still holds attributes, whatever happened meanwhile.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def moved(self, number: int, ino: int) -> None:
        """Note that an inode has moved a block that others refer to."""
        if len(self._first) >= MOST_SHARED:
            self._first.clear()
        self._first[number] = ino

    def follow(self, tx: Handle, inode: Inode) -> bool:
        """Have the inode refer to the block that its own has moved to, if that holds the same attributes still."""
        first = self._first.get(inode.file_acl)
        if first is None or not inode_bitmaps.in_use(tx, first):
            return False
        return xattrs.share(tx, inode, inodes.read(tx, first))


def vacate(
    volume: Volume,
    table: Grants,
    ino: int,
    begin: int,
    end: int,
    avoid: BlockRun,
    caller: Caller,
    shared: Shared | None = None,
) -> Steps[Relocation]:
    """Move what an inode has in the blocks ``avoid`` of the pool out of there.

    Args:
        volume: the mounted pool.
        table: the grants of the mount.
        ino: any inode that a directory may name.
        begin: first byte of the part of the content to work on, and of the map's part for it.
        end: the byte after the last.
        avoid: blocks of the pool.
        caller: reserved blocks are for privileged ones.
        shared: what other inodes of the same pass have moved.

    Raises:
        FsError: EINVAL: an inode whose blocks are not to be moved; EROFS.
    """
    volume.writable()
    inode = inodes.read(volume.view, ino)
    if not inodes.nameable(volume.view, ino) or ino in volume.lives.quarantine:
        raise FsError(errno.EINVAL, f"inode {ino}: its blocks have their places for good")
    node = volume.nodes.opened(inode)
    try:
        done = Relocation(0, ())
        if inode.is_regular:
            if volume.tiers is not None and volume.tiers.holds((avoid.start + avoid.length << volume.block_bits) - 1):
                left = yield from moves.leave(volume, ino, begin, end, avoid)
                done = Relocation(left.moved, (Stayed(begin, left.stayed, FULL),) if left.stayed else ())
            rest = yield from relocation.relocate(volume, table, ino, begin, end, Leaving(avoid), caller)
            done = Relocation(done.moved + rest.moved, done.stayed + rest.stayed)
        rest = yield from _Move(volume, ino, avoid, caller, shared or Shared()).run(begin, end)
        return Relocation(done.moved + rest.moved, done.stayed + rest.stayed, rest.metadata)
    finally:
        volume.nodes.closed(node)
        removal.begin(volume, ino)


def vacate_structure(volume: Volume, ino: int, avoid: BlockRun, caller: Caller) -> Steps[Relocation]:
    """Move an inode's map, and the content of a directory or symbolic link, out of a part of the pool, in steps.

    A regular file's data and attributes stay. Raises FsError as `vacate`.
    """
    return _Move(volume, ino, avoid, caller, Shared()).structure(0, END)


class _Move:
    """The move of one inode's metadata."""

    def __init__(self, volume: Volume, ino: int, avoid: BlockRun, caller: Caller, shared: Shared) -> None:
        self.volume = volume
        self.ino = ino
        self.avoid = avoid
        self.caller = caller
        self.shared = shared
        self.moved = 0
        self.metadata = 0
        self.stayed: list[Stayed] = []
        geometry = volume.geometry
        self.search = Search(geometry.first_block(geometry.group_of_inode(ino)), avoid)

    def run(self, begin: int, end: int) -> Steps[Relocation]:
        """Move all of it."""
        yield from self.structure(begin, end)
        yield from self._attributes()
        return Relocation(self.moved, tuple(self.stayed), self.metadata)

    def structure(self, begin: int, end: int) -> Steps[Relocation]:
        """Move all but the attributes. The map goes first: on storage it can't change, when what it maps moves."""
        volume, bits = self.volume, self.volume.block_bits
        inode = inodes.read(volume.view, self.ino)
        lblk, stop = begin >> bits, min(end + volume.block_size - 1 >> bits, MAX_BLOCKS)
        if removal.holds_blocks(inode):
            yield from self._map(lblk, stop)
            if not inode.is_regular:
                yield from self._content(lblk, stop)
        return Relocation(self.moved, tuple(self.stayed), self.metadata)

    def _stay(self, first: int, end: int, why: str, part: str) -> None:
        bits = self.volume.block_bits
        self.stayed.append(Stayed(first << bits, end - first << bits, why, (), part))

    # The blocks of directories and symbolic links

    def _content(self, lblk: int, stop: int) -> Steps[None]:
        plan = Leaving(self.avoid)
        while lblk < stop:
            piece, lblk = plan.next(self.volume, self.ino, lblk, stop)
            if piece is not None:
                lblk = yield from self._move_content(head(piece, BLOCKS_PER_HANDLE))
            if lblk < stop:
                yield

    def _move_content(self, piece: Piece) -> Steps[int]:
        """Move blocks, or keep them where they are; return the block of the directory at which to go on."""
        volume = self.volume
        if volume.pool.bad and any(badmemory.overlaps(volume, run) for run in piece.runs):
            piece = head(piece, 1)
            if badmemory.overlaps(volume, piece.runs[0]):
                self._stay(piece.first, piece.end, BAD, CONTENT)
                return piece.end
        place = yield from relocation.find(volume, self.search, piece.length, 1, shortens=True)
        if place is None:
            self._stay(piece.first, piece.end, FULL, CONTENT)
            return piece.end
        piece = head(piece, place.length)
        inode = inodes.read(volume.view, self.ino)
        if mapping.runs(volume.view, inode, piece.first, piece.end - 1, len(piece.runs) + 1) != piece.runs:
            return piece.first
        try:
            if not self._replace(piece, place):
                return piece.first
        except Corrupt as error:
            if piece.length > 1:
                return (yield from self._move_content(head(piece, 1)))
            note(volume.view, error)
            self._stay(piece.first, piece.end, DAMAGED, CONTENT)
        except FsError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._stay(piece.first, piece.end, FULL, CONTENT)
        else:
            self.moved += piece.length << volume.block_bits
        return piece.end

    def _replace(self, piece: Piece, place: BlockRun) -> bool:
        """Do it; False: the place is no longer free, and nothing has changed."""
        volume = self.volume
        inode = inodes.read(volume.view, self.ino)
        nodes = mapping.nodes_within(volume.view, inode, [(piece.first, piece.end - 1)])
        with volume.handle(CREDITS + piece.length + 2 * (nodes + len(piece.runs)), self.caller) as tx:
            if not blocks.take_run(tx, BlockRun(place.start, piece.length)):
                return False
            inode = inodes.edit(tx, self.ino)
            target = place.start
            for lblk, pblk, length, _ in piece.runs:
                for at in range(length):
                    if inode.is_dir:
                        dirblocks.move(tx, inode, lblk + at, pblk + at, target)
                    else:
                        tx.create(target)[:] = tx.block(pblk + at)
                    target += 1
            inodes.add_blocks(inode, piece.length, tx.geometry)
            mapping.replace(tx, inode, piece.first, piece.end - 1, placed(piece.runs, place.start), metadata=True)
        return True

    # The blocks of the map

    def _map(self, lblk: int, stop: int) -> Steps[None]:
        while lblk < stop:
            try:
                inode = inodes.read(self.volume.view, self.ino)
                found, after = mapping.own_blocks(self.volume.view, inode, lblk, self.avoid, LOOKS)
            except Corrupt as error:
                note(self.volume.view, error)
                self._stay(lblk, stop, DAMAGED, MAP)
                return
            while found:
                done = yield from self._move_nodes(found)
                found = found[done:]
            lblk = after
            if lblk < stop:
                yield

    def _move_nodes(self, found: list[tuple[int, int]]) -> Steps[int]:
        """Move the first of some blocks of the map (the first logical block below each, and its number).

        Returns:
            How many have moved, or stay.
        """
        volume = self.volume
        count = min(len(found), BLOCKS_PER_HANDLE)
        place = yield from relocation.find(volume, self.search, count, 1, shortens=True)
        if place is not None:
            try:
                moved = 0
                with volume.handle(CREDITS + 4 * place.length, self.caller) as tx:
                    if not blocks.take_run(tx, place):
                        return 0
                    inode = inodes.edit(tx, self.ino)
                    for at, (lblk, number) in enumerate(found[: place.length]):
                        if mapping.move_own(tx, inode, lblk, number, place.start + at):
                            moved += 1
                        else:
                            blocks.free(tx, place.start + at, 1)
            except FsError as error:
                if error.errno != errno.ENOSPC:
                    raise
            else:
                self.metadata += moved << volume.block_bits
                return place.length
        for lblk, _ in found[:count]:
            self._stay(lblk, lblk + 1, FULL, MAP)
        return count

    # The block of attributes

    def _attributes(self) -> Steps[None]:
        volume, bits = self.volume, self.volume.block_bits
        low, high = self.avoid.start, self.avoid.start + self.avoid.length
        while (number := inodes.read(volume.view, self.ino).file_acl) and low <= number < high:
            if volume.pool.bad and badmemory.overlaps(volume, Extent(0, number, 1, False)):
                self._stay(0, 1, BAD, ATTRIBUTES)
                return
            place = yield from relocation.find(volume, self.search, 1, 1, shortens=False)
            try:
                if place is not None and self._move_attributes(number, place):
                    self.metadata += 1 << bits
                    return
            except Corrupt as error:
                note(volume.view, error)
                self._stay(0, 1, DAMAGED, ATTRIBUTES)
                return
            except FsError as error:
                if error.errno != errno.ENOSPC:
                    raise
                place = None
            if place is None:
                self._stay(0, 1, FULL, ATTRIBUTES)
                return
            yield

    def _move_attributes(self, number: int, place: BlockRun) -> bool:
        """Do it; False: the block is another one, or the place is no longer free."""
        with self.volume.handle(CREDITS, self.caller) as tx:
            inode = inodes.edit(tx, self.ino)
            if inode.file_acl != number:
                return False
            if self.shared.follow(tx, inode):
                return True
            if not blocks.take_run(tx, place):
                return False
            if xattrs.move(tx, inode, place.start):
                self.shared.moved(number, self.ino)
        return True

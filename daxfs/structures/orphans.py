"""Orphans on the disk: inodes that recovery must free (no links) or truncate to their size (links left).

ext4 has two forms: a list through ``i_dtime`` that begins in the superblock (``s_last_orphan``), and the orphan file
(feature orphan_file), which is used first, as long as it has room. Only the fs layer calls this module, and it
processes the orphans. Sources: fs/ext4/orphan.c, Documentation/filesystems/ext4/orphan.rst.

A mount takes a `survey`, which goes on past damage. Where an inode of the list is damaged, its pointer to the next one
is believed if that one can only be an orphan. (``ext4_orphan_cleanup`` ends there, and the next mount empties the list;
``release_orphan_inodes`` of e2fsck empties it, and the other passes find the inodes without links.)
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from daxfs.errors import Corrupt, CorruptKind, FsError, MissingMemory
from daxfs.ext4 import orphan
from daxfs.ext4.limits import EXT4_MAX_ORPHAN_FILE_BLOCKS
from daxfs.journal.cache import Cache
from daxfs.structures import inode_bitmaps, inodes, mapping
from daxfs.structures.noted import note

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

MAX_PLACES = 4096
"""The most orphans whose place in the file is cached; others are searched."""


class _File:
    """The orphan file of one mounted pool.

    Attributes:
        blocks: the physical block of each logical one.
        seed: the seed of the blocks' checksums.
        places: inode -> (logical block, slot), a hint.
        roomy: the logical block in which the search for room begins, a hint.
    """

    __slots__ = ("blocks", "places", "roomy", "seed")

    def __init__(self, blocks: list[int], seed: int) -> None:
        self.blocks = blocks
        self.seed = seed
        self.places: dict[int, tuple[int, int]] = {}
        self.roomy = 0


class _Known(Cache):
    """The cache of one pool's orphans. Hints are compared with the pool, so they need no undo.

    Attributes:
        file: the orphan file, once it was read.
        unusable: the orphan file is damaged: the list is used instead.
        before: listed inode -> the inode before it, a hint. The list is linked in one direction, and open files without
            names are closed in any order. The hints are bounded by the number of such files, of which the layers above
            keep a record in any case.
    """

    __slots__ = ("before", "file", "unusable")

    def __init__(self) -> None:
        self.file: _File | None = None
        self.unusable = False
        self.before: dict[int, int] = {}


def add(tx: Handle, ino: int) -> None:
    """Make ``ino``, which is not an orphan yet, an orphan, so that recovery processes it: one credit.

    Raises:
        Corrupt: the number is out of range, or the orphan file is damaged.
    """
    tx.geometry.group_of_inode(ino)
    file = _file(tx)
    if file is None or not _add_to_file(tx, file, ino):
        sb = tx.edit_superblock()
        first = sb.s_last_orphan
        inodes.edit(tx, ino).i_dtime = first
        sb.s_last_orphan = ino
        if first:
            tx.caches[_Known].before[first] = ino


def remove(tx: Handle, ino: int) -> None:
    """Remove ``ino`` from the orphans: one credit in the file, two in the list, which also sets ``i_dtime`` to 0.

    Raises:
        Corrupt: ``ino`` is not an orphan, or the list or file is damaged.
    """
    file = _file(tx)
    if file is None or not _remove_from_file(tx, file, ino):
        _remove_from_list(tx, ino)


def listing(view: View) -> Iterator[int]:
    """Yield each orphan once: those of the file, then those of the list, the youngest first.

    Raises:
        Corrupt: the list or file is damaged, or names an inode that is reserved or free.
    """
    seen: set[int] = set()
    file = _file(view)
    if file is not None:
        for index in range(len(file.blocks)):
            slots = _slots(view, file, index)
            for slot in np.flatnonzero(slots).tolist():
                ino = int(slots[slot])
                if ino not in seen:
                    seen.add(ino)
                    _remember(file, ino, index, slot)
                    yield _checked_orphan(view, ino)
    listed: set[int] = set()
    ino = view.superblock().s_last_orphan
    while ino:
        if ino in listed:
            raise Corrupt(CorruptKind.ORPHAN_LIST, f"inode {ino} is in the list twice")
        listed.add(ino)
        # Read the next one first: the caller may remove each inode when it is yielded.
        following = _orphan(view, ino).i_dtime
        if ino not in seen:
            yield ino
        ino = following


def _orphan(view: View, ino: int) -> inodes.Inode:
    """Return an orphan, for reading.

    Raises:
        Corrupt: it is reserved or free, or its slot is damaged.
    """
    try:
        return inodes.read(view, _checked_orphan(view, ino))
    except FsError as error:
        if error.errno != errno.ESTALE:
            raise
        raise Corrupt(CorruptKind.ORPHAN_INODE, f"{ino} was never used") from None


def _checked_orphan(view: View, ino: int) -> int:
    geometry = view.geometry
    if not geometry.first_ino <= ino <= geometry.inodes_count:
        raise Corrupt(CorruptKind.ORPHAN_INODE, f"{ino} is not in {geometry.first_ino}..{geometry.inodes_count}")
    if not inode_bitmaps.in_use(view, ino):
        raise Corrupt(CorruptKind.ORPHAN_INODE, f"{ino} is free")
    return ino


# The survey of a mount


class Survey:
    """The orphans of a pool, as far as they can be read.

    Attributes:
        found: the orphans: those of the file, then those of the list, the youngest first.
        relinked: inode of the list (0: the superblock) -> the inode that is to follow it, past damaged ones.
        cleared: places of the file (logical block, slot) that name inodes which are no orphans, or are damaged.
        met: the damage.
        whole: every entry was read. False: memory is missing, or a block of the file is damaged.
    """

    __slots__ = ("cleared", "found", "met", "relinked", "whole")

    def __init__(self) -> None:
        self.found: dict[int, None] = {}
        self.relinked: dict[int, int] = {}
        self.cleared: list[tuple[int, int]] = []
        self.met: list[Corrupt | MissingMemory] = []
        self.whole = True


def survey(view: View) -> Survey:
    """Read what can be read of the list and the file. `relink` and `clear` then remove from them what is damaged."""
    result = Survey()
    file: _File | None = None
    try:
        with view.pool.faults.checked():
            file = _file(view)
    except MissingMemory as error:
        result.met.append(error)
    if file is not None:
        for index in range(len(file.blocks)):
            _survey_block(view, result, file, index)
    elif view.geometry.has_orphan_file:
        result.whole = False
    _survey_list(view, result)
    return result


def _survey_block(view: View, result: Survey, file: _File, index: int) -> None:
    try:
        with view.pool.faults.checked():
            entries: list[int] = _slots(view, file, index).tolist()
    except (Corrupt, MissingMemory) as error:
        result.met.append(error)
        result.whole = False
        return
    for slot, ino in enumerate(entries):
        if not ino or ino in result.found:
            continue
        try:
            with view.pool.faults.checked():
                _orphan(view, ino)
        except Corrupt as error:
            result.met.append(error)
            result.cleared.append((index, slot))
            continue
        except MissingMemory as error:
            result.met.append(error)  # the entry stays: the memory may be there again
        _remember(file, ino, index, slot)
        result.found[ino] = None


def _survey_list(view: View, result: Survey) -> None:
    listed: set[int] = set()
    before, ino = 0, view.superblock().s_last_orphan
    while ino:
        try:
            with view.pool.faults.checked():
                if ino in listed:
                    raise Corrupt(CorruptKind.ORPHAN_LIST, f"inode {ino} is in the list twice")
                following = _orphan(view, ino).i_dtime
        except Corrupt as error:
            result.met.append(error)
            following = 0 if ino in listed else _presumed_next(view, ino)
            result.relinked[before] = following
        except MissingMemory as error:
            result.met.append(error)
            result.whole = False
            return
        else:
            before = ino
            result.found[ino] = None
        listed.add(ino)
        ino = following


def _presumed_next(view: View, ino: int) -> int:
    """Return the inode that follows a damaged one of the list; 0: it is not known.

    Only an inode without links, or a named one whose ``i_dtime`` is a pointer too, is on the list: no file that is in
    use is freed or cut because of a damaged pointer.
    """
    try:
        with view.pool.faults.checked():
            number, offset = inodes.position(view, ino)
            following = inodes.Inode(view.block(number), offset, view.geometry).i_dtime
            found = _orphan(view, following)
    except (Corrupt, MissingMemory):
        return 0
    return 0 if found.links_count and not found.i_dtime else following


def relink(tx: Handle, before: int, following: int) -> None:
    """Have the list go on with ``following`` behind ``before`` (0: begin with it), as `Survey.relinked`: one credit."""
    if before:
        inodes.edit(tx, before).i_dtime = following
    else:
        tx.edit_superblock().s_last_orphan = following
    tx.caches[_Known].before.clear()


def clear(tx: Handle, index: int, slot: int) -> None:
    """Remove an entry of the file, as `Survey.cleared`: one credit."""
    file = _file(tx)
    assert file is not None
    _store(tx, file, index, slot, 0)


# The list


def _remove_from_list(tx: Handle, ino: int) -> None:
    sb = tx.edit_superblock()
    inode = inodes.edit(tx, ino)
    following = inode.i_dtime
    hints = tx.caches[_Known].before
    if sb.s_last_orphan == ino:
        sb.s_last_orphan = following
        hints.pop(following, None)
    else:
        before = _before(tx, ino)
        inodes.edit(tx, before).i_dtime = following
        if following:
            hints[following] = before
    hints.pop(ino, None)
    inode.i_dtime = 0


def _before(view: View, ino: int) -> int:
    """Return the listed inode whose successor is ``ino``."""
    hint = view.caches[_Known].before.get(ino, 0)
    if hint and inode_bitmaps.in_use(view, hint) and inodes.read(view, hint).i_dtime == ino:
        return hint
    seen: set[int] = set()
    at = view.superblock().s_last_orphan
    while at and at not in seen:
        seen.add(at)
        following = _orphan(view, at).i_dtime
        if following == ino:
            return at
        at = following
    raise Corrupt(CorruptKind.ORPHAN_LIST, f"inode {ino} is not in the list")


# The file


def _file(view: View) -> _File | None:
    """Return the orphan file, or None: without the feature, or if it is damaged."""
    if not view.geometry.has_orphan_file:
        return None
    known = view.caches[_Known]
    if known.file is None and not known.unusable:
        try:
            known.file = _read_file(view)
        except Corrupt as error:
            note(view, error)
            known.unusable = True
    return known.file


def _read_file(view: View) -> _File:
    geometry = view.geometry
    ino = view.superblock().s_orphan_file_inum
    inode = inodes.read(view, ino)
    count = inode.size >> geometry.block_bits
    if not inode.is_regular or not 0 < count <= EXT4_MAX_ORPHAN_FILE_BLOCKS:
        raise Corrupt(CorruptKind.ORPHAN_FILE, f"inode {ino} has mode {inode.mode:o} and {count} blocks")
    blocks: list[int] = []
    for extent in mapping.walk(view, inode, 0, count - 1):
        if extent.lblk != len(blocks) or extent.unwritten:
            break
        blocks.extend(range(extent.pblk, extent.pblk + extent.length))
    if len(blocks) != count:
        raise Corrupt(CorruptKind.ORPHAN_FILE, f"inode {ino} has a hole at block {len(blocks)} of {count}")
    return _File(blocks, geometry.inode_seed(ino, inode.i_generation))


def _check(geometry: Geometry, seed: int, number: int, content: memoryview) -> None:
    where = f"block {number}"
    if geometry.metadata_csum:
        orphan.verify_block(content, seed, number, where)
    else:
        orphan.verify_magic(content, where)


def _seal(seed: int, number: int, content: memoryview) -> None:
    orphan.seal_block(content, seed, number)


def _slots(view: View, file: _File, index: int) -> npt.NDArray[np.uint32]:
    """Return the inode numbers of one block; 0 marks a free slot."""
    geometry, number = view.geometry, file.blocks[index]
    content = view.verified(number, _check, geometry, file.seed, number)
    return np.frombuffer(content, "<u4", orphan.inodes_per_block(geometry.block_size))


def _usable_slots(view: View, file: _File, index: int) -> npt.NDArray[np.uint32] | None:
    """As `_slots`; None: the block is damaged, and the others are used."""
    try:
        return _slots(view, file, index)
    except Corrupt as error:
        note(view, error)
        return None


def _store(tx: Handle, file: _File, index: int, slot: int, ino: int) -> None:
    number = file.blocks[index]
    seal = _seal if tx.geometry.metadata_csum else None
    orphan.words(tx.edit(number, seal, file.seed, number))[slot] = ino


def _remember(file: _File, ino: int, index: int, slot: int) -> None:
    if len(file.places) >= MAX_PLACES:
        file.places.clear()
    file.places[ino] = index, slot


def _add_to_file(tx: Handle, file: _File, ino: int) -> bool:
    """Add an orphan to the file; return whether there was room."""
    count = len(file.blocks)
    for step in range(count):
        index = (file.roomy + step) % count
        slots = _usable_slots(tx, file, index)
        if slots is None:
            continue
        empty = slots == 0
        slot = int(empty.argmax())
        if empty[slot]:
            file.roomy = index
            _store(tx, file, index, slot, ino)
            _remember(file, ino, index, slot)
            return True
    return False


def _remove_from_file(tx: Handle, file: _File, ino: int) -> bool:
    """Remove an orphan from the file; return whether it was there."""
    place = file.places.pop(ino, None)
    if place is not None and _slots(tx, file, place[0])[place[1]] == ino:
        _store(tx, file, *place, 0)
        return True
    for index in range(len(file.blocks)):
        slots = _usable_slots(tx, file, index)
        found = [] if slots is None else np.flatnonzero(slots == ino).tolist()
        if found:
            _store(tx, file, index, found[0], 0)
            return True
    return False

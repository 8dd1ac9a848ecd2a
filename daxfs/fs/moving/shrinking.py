"""Shrinking of a file system that is in use: what lies past the new end moves, then the end does.

`shrink` makes it smaller. From its beginning nothing is taken past the new end (`blocks.confine`), and the files that
have blocks there move theirs (`daxfs.fs.moving.evacuation`) while programs use them. When nothing is left there, one
handle changes the figures (`daxfs.structures.shrinkage`), the backups follow, and the pool's file is cut. So a power
cut leaves the old size, or the new one with a file that may still be longer; a shrink that ends early, by an error or
an interruption, leaves the old size and files that lie elsewhere.

Inodes of groups that go get other numbers (`daxfs.fs.moving.renumbering`), whoever uses them, and the journal moves
(`daxfs.fs.moving.logmoving`). What can't move is named in the error: memory that programs map, bad memory, directories
with very many subdirectories.

Bitmaps and inode tables of groups that stay keep their places. mke2fs puts those of a flexible group into its first
group, before the `shrinkage.SPARE` blocks of a last group; only larger flexible groups than the usual 16 (-G 64) reach
past an end. Moving a table would take a transaction of all its blocks, for a size next to which there are others: such
a size is refused with the next one.

Snapshots must not exist, as for growth (`daxfs.fs.moving.resizing`). Callers: the facade.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fs import removal
from daxfs.fs.moving import evacuation, logmoving, naming, renumbering, resizing
from daxfs.fs.tiers import members
from daxfs.fs.types import REASONS_TO_STAY, Caller, Resized, Stayed
from daxfs.runs import BlockRun
from daxfs.structures import blocks, shrinkage

if TYPE_CHECKING:
    from daxfs.fs.grants.table import Grants
    from daxfs.fs.steps import Steps
    from daxfs.fs.volume import Volume

ROUNDS = 3
"""How often all files are looked at: programs may make files, and free blocks, meanwhile."""
CUT_BYTES = 32 << 20
"""Bytes of the pool's file that a step cuts: some 5 ms of a tmpfs."""
MOST_NAMED = 4
"""Things in the way that an error names."""
SUPERUSER = Caller()


def shrink(volume: Volume, grants: Grants, keeps_store: Callable[[int], bool], wanted: int) -> Steps[Resized]:
    """Make the file system smaller, and the pool's file with it. It can be shortened: EINTR, and nothing has changed.

    Args:
        volume: the mounted pool.
        grants: those of the volume.
        keeps_store: whether an inode is the store of a snapshot.
        wanted: the size in blocks, at most the present one. With the present one, only the file is cut.

    Returns:
        The sizes in blocks. A last group that would have hardly more than its own metadata is left out.

    Raises:
        FsError: EROFS; EBUSY, it is being resized, or something can't move, which is named; EUCLEAN, damage was met
            before; EOPNOTSUPP, there are snapshots; EINVAL, what is in use has no room; ENOSPC, there is no room left,
            or the journal is too small. The size has not changed then.
    """
    volume.writable()
    with resizing.exclusively(volume):
        resizing.refuse_damage(volume)
        geometry = volume.geometry
        before = geometry.blocks_count
        target = before if wanted == before else shrinkage.fitting(geometry, wanted)
        volume.new_end = target
        try:
            if target < before:
                yield from _shrink(volume, grants, keeps_store, target)
            volume.journal.checkpoint()  # no block past the end is in the log, and tools see the superblock
        finally:
            volume.new_end = 0
        if not volume.pool.storages:
            yield from _cut_file(volume)
        return Resized(before, geometry.blocks_count)


def _shrink(volume: Volume, grants: Grants, keeps_store: Callable[[int], bool], target: int) -> Steps[None]:
    """Have all that is in the way move, and change the size."""
    resizing.refuse_snapshots(volume)
    volume.commit()  # what was freed is free
    _refuse_too_small(volume, target)
    with _confined(volume, target):
        yield from _vacate(volume, grants, keeps_store, target)
        resizing.refuse_snapshots(volume)
        _cut(volume, target)


def minimum(volume: Volume) -> int:
    """Return the smallest size in blocks that `shrink` accepts; it may still meet something that can't move.

    Raises:
        FsError: EBUSY, EUCLEAN as `shrink`.
    """
    resizing.refuse_another(volume)
    resizing.refuse_damage(volume)
    if not volume.read_only:
        volume.commit()
    least, storages = shrinkage.minimum(volume.view), volume.pool.storages
    if storages:
        least = max(least, (storages[-1].place.begin >> volume.block_bits) + volume.geometry.blocks_per_group)
    return least


def left_to_move(volume: Volume) -> int:
    """Return about how many blocks a shrink that runs has still to move, by the counters; 0 if none runs."""
    geometry = volume.geometry
    if not volume.new_end:
        return 0
    return int(shrinkage.used_by_files(volume.view)[shrinkage.groups_past(geometry, volume.new_end).start :].sum())


def _refuse_too_small(volume: Volume, target: int) -> None:
    view = volume.view
    group = shrinkage.displaced(view, target)
    if group is not None:
        raise FsError(
            errno.EINVAL,
            f"group {group} stays and has bitmaps or inodes from block {target} on, which do not move; "
            f"{shrinkage.undisplaced(view, target)} blocks have room for them",
        )
    least = shrinkage.minimum(view)
    if target < least:
        raise FsError(errno.EINVAL, f"{target} blocks are fewer than the {least} that are needed for what is in use")
    needed = shrinkage.credits_of(view, target)
    if needed > volume.journal.capacity:
        raise resizing.journal_too_small(volume, needed)


@contextmanager
def _confined(volume: Volume, target: int) -> Iterator[None]:
    """Have no block and no inode past a new end taken."""
    blocks.confine(volume.view, target)
    try:
        yield
    finally:
        blocks.confine(volume.view, 0)


def _vacate(volume: Volume, grants: Grants, keeps_store: Callable[[int], bool], target: int) -> Steps[None]:
    """Have all that lies past the new end move.

    Raises:
        FsError: EBUSY: something is left there.
    """
    yield from grants.vacate_page(target)
    yield from logmoving.move(volume, target)
    place = BlockRun(target, volume.geometry.blocks_count - target)
    stayed: dict[int, tuple[Stayed, ...]] = {}
    kept: dict[int, str] = {}
    for _ in range(ROUNDS):
        grants.free_retired()
        yield from removal.freeing(volume)
        volume.commit()
        kept = yield from renumbering.renumber(volume, grants, target)
        volume.commit()
        if not kept and not any(shrinkage.used_past(volume.view, target)):
            break
        stayed = (yield from evacuation.evacuate(volume, grants, keeps_store, place, SUPERUSER)).stayed
    yield from _refuse_left(volume, grants, target, stayed, kept)


def _refuse_left(
    volume: Volume, grants: Grants, target: int, stayed: dict[int, tuple[Stayed, ...]], kept: dict[int, str]
) -> Steps[None]:
    """Refuse to cut if something is left past the new end, and name it.

    Raises:
        FsError: EBUSY.
    """
    bits, view = volume.block_bits, volume.view
    left = sum(run.length for run in shrinkage.used_past(view, target)) << bits
    numbers = list(islice(shrinkage.inodes_past(view, target), MOST_NAMED + 1))
    if not left and not numbers:
        return
    things: list[str] = []
    area = volume.log_area
    if area is not None and any(start + length > target for start, length in area.runs):
        stayed.pop(view.superblock().s_journal_inum, None)
        things.append("the journal")
    some = dict(islice(stayed.items(), MOST_NAMED + 1))
    names = yield from naming.shown(volume, {*some, *numbers})
    for ino, parts in some.items():
        things += [_named(names[ino], part) for part in parts]
    if grants.by_ino:
        pids = {holder.pid for each in grants.by_ino.values() for holder, _ in each.each_holder()}
        things.append(f"what programs with direct access may look at (process {' '.join(map(str, sorted(pids)))})")
    things += [f"{names[ino]} of the groups that go ({kept.get(ino, 'it is new')})" for ino in numbers]
    if not things:
        things.append(f"{left} bytes of what does not move")
    raise FsError(errno.EBUSY, f"past the new end stay {_listed(things)}")


def _named(name: str, part: Stayed) -> str:
    whose = f", process {' '.join(map(str, part.pids))}" if part.pids else ""
    return f"{part.length} bytes of {name} at {part.offset} ({REASONS_TO_STAY[part.why]}{whose})"


def _listed(things: list[str]) -> str:
    """Return some of the things as one text."""
    return ", ".join(things[:MOST_NAMED]) + (" and others" if len(things) > MOST_NAMED else "")


def _cut_file(volume: Volume) -> Steps[None]:
    """Cut the pool's file after its file system, a piece in each step; a device stays as it is.

    The system frees the memory of a tmpfs page by page: 6 GiB take a second. The size has changed, so that nothing can
    be shortened any more.
    """
    pool, end = volume.pool, volume.geometry.blocks_count << volume.block_bits
    while True:
        size = pool.size
        length = max(size - CUT_BYTES, end)
        pool.shorten(length)
        volume.follow_size()
        if length == end or pool.size == size:
            return
        try:
            yield
        except FsError as error:
            if error.errno != errno.EINTR:
                raise


def _cut(volume: Volume, target: int) -> None:
    """Change the size, durably; nothing else happens meanwhile."""
    view = volume.view
    volume.journal.checkpoint()
    backups = volume.geometry.backup_groups
    storages = volume.pool.storages
    kept = members.until(members.records_of(view), target << volume.block_bits) if storages else ()
    with volume.handle(shrinkage.credits_of(view, target)) as tx:
        shrinkage.cut(tx, target)
    resizing.commit_size(volume)
    if storages:
        volume.journal.checkpoint()
        members.name(volume, kept)
        members.change(volume, storages[: len(kept)], target << volume.block_bits)
    volume.next_bad_block = 0
    moved = volume.geometry.backup_groups != backups
    resizing.store_backups(volume, 0 if moved else volume.geometry.groups_count)

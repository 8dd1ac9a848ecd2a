"""Restoring: an unmounted pool becomes again what a snapshot shows. It may be interrupted anywhere and repeated.

`restore` is the whole of it. The steps, and what a power cut between them leaves:

1. The *plan* is stored in blocks of the empty log: where the stores lie whose copies are needed, and the name. A cut
   leaves a pool as it was: nobody reads an empty log.
2. The feature word of the superblock gets the bit `RESTORING`, which no other program knows, so that none mounts or
   checks the pool; daxfs says what to do. Then the superblock says where the plan is. A cut between the two leaves a
   pool of which nothing has changed, and the bit is taken back.
3. All copies go to their places, those of the oldest store first. The stores themselves are not overwritten: their
   blocks are none that the snapshot needs. So after a cut this step begins again. The superblock is stored with the bit
   and the place of the plan.
4. The plan says that all copies are made. From here on the stores are free blocks. What is left of snapshots that were
   deleted since gets a header that says so (`catalogue.GONE`), and the log is cleared: its old transactions have
   numbers that will be used again. After a cut this step begins again.
5. The bit is taken away, by one word; the checksum beside it is the right one for that already. The pool is the
   snapshot.
6. An ordinary mount and unmount frees what had no name, and removes what is left of deleted snapshots.

The snapshot and all newer ones are not part of the tree that it shows, so they are gone after step 5. Older ones stay.
"""

from __future__ import annotations

import errno
import json
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daxfs.errors import FsError
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.features import RESTORING
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import CHECKSUM_AT, INCOMPAT_AT, SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots import catalogue, files, past
from daxfs.fs.types import Options
from daxfs.journal.view import PoolView
from daxfs.runs import BlockRun
from daxfs.snapshots.format import Header, NotAStore, chunks_of
from daxfs.snapshots.reading import Chain
from daxfs.snapshots.store import ChunkRun, Store

if TYPE_CHECKING:
    from daxfs.fs.snapshots.catalogue import Kept
    from daxfs.journal.area import LogArea
    from daxfs.pmem.pool import Pool

PLAN_AT = 0x3F0
"""Where the superblock, in words that ext4 reserves, has the number of the plan's first block while a restore runs."""
_HEAD = struct.Struct("<8sIIII")  # magic, copies are made, checksum, length of the text, blocks that hold it
_MAGIC = b"daxfsRST"
_MADE_AT = 8
_M = 0xFFFFFFFF


class Plan(NamedTuple):
    """What a restore needs to be repeated.

    Attributes:
        name: of the snapshot.
        bits: a snapshot chunk is ``1 << bits`` bytes.
        stores: the runs of the snapshot's store and of all newer ones, in the order of their making.
        gone: the first chunks of the stores that the snapshot's tree names, and that are not whole any more.
        log: the runs of the log's blocks.
        mounts: the values of `catalogue.RECORD_FIELDS` in the restored superblock; empty: its own.
    """

    name: str
    bits: int
    stores: list[list[ChunkRun]]
    gone: list[int]
    log: list[BlockRun]
    mounts: list[int]


def interrupted(pool: Pool) -> str | None:
    """Return the name of the snapshot that a restore had begun to restore; None: none had."""
    if not mounting.read_superblock(pool).s_feature_incompat & RESTORING:
        return None
    found = _read_plan(pool)
    return found[0].name if found is not None else None


def restore(pool: Pool, name: bytes, *, force: bool = False) -> list[bytes]:
    """Make the pool what a snapshot shows; return the names of the snapshots that are gone, its own the first.

    Args:
        pool: open for writing and not mounted.
        name: of the snapshot; if a restore was interrupted, of the one that it had begun to restore.
        force: delete newer snapshots, and older ones that can't be kept.

    Raises:
        FsError: ENOENT, there is no such snapshot; EINVAL, it is lost; EEXIST, snapshots would be lost and ``force``
            was not given; EBUSY, the restore of another one must be finished first; others, as `FileSystem.open`. The
            tree is unchanged, except for EIO and ENOSPC of the pool's memory, after which a restore must be repeated.
    """
    text = name.decode(errors="surrogateescape")
    if mounting.read_superblock(pool).s_feature_incompat & RESTORING:
        begun = interrupted(pool)
        if begun not in (None, text):
            raise FsError(errno.EBUSY, f"the restore of {begun} was interrupted and must be finished first")
        finish(pool)
        if begun is not None:
            clean(pool)
            return [name]
    clean(pool)
    gone = begin(pool, name, force=force)
    finish(pool)
    clean(pool)
    return gone


def begin(pool: Pool, name: bytes, *, force: bool = False) -> list[bytes]:
    """Do the first two steps on a pool that was unmounted; return and raise as `restore`."""
    geometry = Geometry.of(mounting.read_superblock(pool))
    view = PoolView(pool, geometry)
    try:
        kept = _valid(pool, view, name)
        at = next(at for at, each in enumerate(kept) if each.name == name)
        chain = Chain(pool, [each.store for each in kept[at:]])
        shown = past.PastView(pool, chain)
        whole, broken = _older(shown, kept[:at])
        area = mounting.log_area(view, view.superblock())
        plan = Plan(
            name=name.decode(errors="surrogateescape"),
            bits=chain.chunk_bits,
            stores=[list(each.store.runs) for each in kept[at:]],
            gone=broken,
            log=list(area.runs),
            mounts=_mounts(shown),
        )
    finally:
        view.release()
    lost = [each.name for each in (*kept[at + 1 :], *kept[:at]) if each.name not in whole]
    if lost and not force:
        listed = ", ".join(each.decode(errors="replace") for each in lost)
        raise FsError(errno.EEXIST, f"these snapshots would be deleted: {listed}")
    _set_flag(pool, _store_plan(pool, geometry, area, plan))
    return [name, *lost]


def finish(pool: Pool) -> None:
    """Do the steps from the third on, or what is left of them. A restore that has changed nothing is taken back."""
    found = _read_plan(pool)
    if found is not None:
        plan, head, made = found
        bits = _block_bits(pool)
        if not made:
            _copy_back(pool, plan)
            pool.store_word((head << bits) + _MADE_AT, 1)
            pool.fence()
        for chunk in plan.gone:
            _mark_gone(pool, plan, chunk)
        _clear_log(pool, plan, bits, _blocks_of_plan(pool, head))
        pool.fence()
    _clear_flag(pool)


def clean(pool: Pool) -> None:
    """Mount and unmount: what a power cut or a restore left is cleaned up."""
    volume = mounting.mount(pool, Options(atime="noatime"))
    try:
        fs = FileSystem(volume)
        for snapshot in fs.list_snapshots():
            if snapshot.lost == catalogue.REASONS[catalogue.GONE]:
                fs.delete_snapshot(snapshot.name)
    finally:
        mounting.unmount(volume)
        pool.hook_stores(None)


# What is to be restored


def _valid(pool: Pool, view: PoolView, name: bytes) -> list[Kept]:
    """Return the valid snapshots, the one of this name among them."""
    verdicts = catalogue.judged(pool, view)
    for kept, reason in verdicts:
        if kept.name == name and reason:
            raise FsError(errno.EINVAL, f"the snapshot is not valid: {catalogue.REASONS[reason]}")
    found = [kept for kept, reason in verdicts if not reason]
    if not any(kept.name == name for kept in found):
        raise FsError(errno.ENOENT, f"there is no valid snapshot {name.decode(errors='replace')}")
    return found


def _older(shown: past.PastView, kept: list[Kept]) -> tuple[set[bytes], list[int]]:
    """Return the names of the older snapshots that stay, and the first chunks of all other stores in the tree.

    A store stays what it is if it still lies where the snapshot's tree says. One that has grown since, for what a
    deleted snapshot had copied, does not; and the blocks of one that was deleted may hold anything.
    """
    now = {each.name: tuple(each.store.runs) for each in kept}
    whole: set[bytes] = set()
    broken: list[int] = []
    for name, inode in files.found(shown):
        try:
            runs = tuple(files.runs_of(shown, inode))
        except NotAStore:
            continue
        if now.get(name) == runs:
            whole.add(name)
        elif runs:
            broken.append(runs[0].start)
    return whole, broken


def _mounts(shown: past.PastView) -> list[int]:
    """Return the record of mounts that older snapshots compare with the superblock."""
    directory = files.folder(shown)
    return catalogue.fields_of(catalogue.recorded(shown, directory.number)) if directory is not None else []


# The plan


def _store_plan(pool: Pool, geometry: Geometry, area: LogArea, plan: Plan) -> int:
    """Store the plan in the log's last blocks that no copy goes to; return its first block. The caller fences."""
    size, shift = geometry.block_size, plan.bits - geometry.block_bits
    text = json.dumps(plan._asdict()).encode()
    count = -(-len(text) // size)
    taken = {area.physical(0) >> shift}
    for store in _stores(pool, plan):
        taken.update(store.table()[0].tolist())
    free = (area.physical(at) for at in range(area.blocks - 1, 0, -1))
    numbers = list(islice((number for number in free if number >> shift not in taken), count + 1))
    if len(numbers) <= count or _HEAD.size + 8 * count > size:
        raise FsError(errno.ENOSPC, "the log has no room for the plan of a restore")
    head, *blocks = numbers
    places = struct.pack(f"<{count}Q", *blocks)
    for at, number in enumerate(blocks):
        pool.write(number * size, text[at * size : (at + 1) * size])
    checksum = crc32c(_M, places + text)
    pool.write(head * size, _HEAD.pack(_MAGIC, 0, checksum, len(text), count) + places)
    return head


def _read_plan(pool: Pool) -> tuple[Plan, int, bool] | None:
    """Return the plan, its first block, and whether its copies are made; None: the superblock names none."""
    size = 1 << _block_bits(pool)
    head = int.from_bytes(pool.memory[SUPERBLOCK_OFFSET + PLAN_AT : SUPERBLOCK_OFFSET + PLAN_AT + 8], "little")
    if not head or (head + 1) * size > pool.size:
        return None
    magic, made, checksum, length, count = _HEAD.unpack_from(pool.memory, head * size)
    if magic != _MAGIC or _HEAD.size + 8 * count > size:
        return None
    blocks = _blocks_of_plan(pool, head)[1:]
    text = b"".join(bytes(pool.memory[number * size : (number + 1) * size]) for number in blocks)[:length]
    if crc32c(_M, struct.pack(f"<{count}Q", *blocks) + text) != checksum:
        return None
    given: dict[str, Any] = json.loads(text)
    given["stores"] = [[ChunkRun(*run) for run in store] for store in given["stores"]]
    given["log"] = [BlockRun(*run) for run in given["log"]]
    return Plan(**given), head, bool(made)


def _blocks_of_plan(pool: Pool, head: int) -> list[int]:
    size = 1 << _block_bits(pool)
    *_, count = _HEAD.unpack_from(pool.memory, head * size)
    return [head, *struct.unpack_from(f"<{count}Q", pool.memory, head * size + _HEAD.size)]


# The superblock


def _block_bits(pool: Pool) -> int:
    """Return the size of blocks as the superblock has it, also while it has the bit."""
    return 10 + mounting.read_superblock(pool).s_log_block_size


def _set_flag(pool: Pool, head: int) -> None:
    """Set the bit, durably, and then the place of the plan, which is durable by then."""
    sb = mounting.read_superblock(pool)
    sb.s_feature_incompat |= RESTORING
    pool.store_word(SUPERBLOCK_OFFSET + INCOMPAT_AT, sb.s_feature_incompat)
    pool.fence()
    sb.buffer[PLAN_AT : PLAN_AT + 8] = head.to_bytes(8, "little")
    sb.seal()
    pool.store_word(SUPERBLOCK_OFFSET + CHECKSUM_AT, sb.s_checksum)
    pool.store_word(SUPERBLOCK_OFFSET + PLAN_AT, head, 8)
    pool.fence()


def _clear_flag(pool: Pool) -> None:
    """Take the bit away, by one word, when the checksum without it is durable."""
    sb = mounting.read_superblock(pool)
    sb.s_feature_incompat &= ~RESTORING
    sb.buffer[PLAN_AT : PLAN_AT + 8] = bytes(8)
    sb.seal()
    pool.store_word(SUPERBLOCK_OFFSET + PLAN_AT, 0, 8)
    pool.store_word(SUPERBLOCK_OFFSET + CHECKSUM_AT, sb.s_checksum)
    pool.fence()
    pool.store_word(SUPERBLOCK_OFFSET + INCOMPAT_AT, sb.s_feature_incompat)
    pool.fence()


def _restored_superblock(pool: Pool, plan: Plan, content: bytes) -> bytes:
    """Return the chunk of the superblock as it is stored while the restore goes on."""
    chunk = bytearray(content)
    at = SUPERBLOCK_OFFSET & (1 << plan.bits) - 1
    sb = Superblock(memoryview(chunk)[at : at + Superblock.SIZE])
    for name, value in zip(catalogue.RECORD_FIELDS, plan.mounts, strict=False):
        setattr(sb, name, value)
    sb.s_feature_incompat |= RESTORING
    sb.buffer[PLAN_AT : PLAN_AT + 8] = mounting.read_superblock(pool).buffer[PLAN_AT : PLAN_AT + 8]
    sb.seal()
    return bytes(chunk)


# The copies


def _stores(pool: Pool, plan: Plan) -> list[Store]:
    made = [Store(pool, plan.bits, runs) for runs in plan.stores]
    for store in made:
        store.open()
    return made


def _copy_back(pool: Pool, plan: Plan) -> None:
    """Store every copy in its place, durably: of each chunk that of the oldest store which has one."""
    store_block, done = pool.block_store, np.zeros(chunks_of(pool.size, plan.bits), bool)
    special = SUPERBLOCK_OFFSET >> plan.bits
    superblock = b""
    for store in _stores(pool, plan):
        old, new = (column.astype(np.int64) for column in store.table())
        wanted = ~done[old]
        done[old] = True
        for chunk, place in zip(old[wanted].tolist(), new[wanted].tolist(), strict=True):
            start = chunk << plan.bits
            content = bytes(store.content(place)[: pool.size - start])
            if chunk == special:
                superblock = content
                continue
            pool.make_room(start, len(content))
            store_block(start, content)
    pool.fence()
    store_block(special << plan.bits, _restored_superblock(pool, plan, superblock))
    pool.fence()


def _mark_gone(pool: Pool, plan: Plan, chunk: int) -> None:
    """Give a store that is no longer whole a header that says so."""
    origin = chunks_of(pool.size, plan.bits)
    pool.write(chunk << plan.bits, Header(False, catalogue.GONE, plan.bits, 0, 0, origin, bytes(16)).pack())


def _clear_log(pool: Pool, plan: Plan, bits: int, but: list[int]) -> None:
    """Clear all blocks of the log except for its superblock and for the plan."""
    kept = sorted({plan.log[0].start, *but})
    for start, length in plan.log:
        first = start
        for number in (*(each for each in kept if start <= each < start + length), start + length):
            if first < number:
                pool.make_room(first << bits, number - first << bits)
                pool.zero(first << bits, number - first << bits)
            first = number + 1

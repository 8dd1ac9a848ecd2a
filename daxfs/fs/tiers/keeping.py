"""What a session does about memory and storage in the background: each piece where it belongs (docs/TIERS.md).

`keep` makes room if the memory is almost full. It moves files to where their attribute says (`placement`). And it
promotes pieces on storage that were read twice within a minute, those first that were used most. While more of the
memory is in use than the low watermark, a piece comes up only in the place of others that were used clearly less. All
that comes up for reads is bounded by `BYTES_PER_SECOND`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from daxfs.fs.nodes import END
from daxfs.fs.tiers import moves, placement, policy
from daxfs.fs.tiers.heat import PIECE, bytes_of
from daxfs.fs.tiers.policy import Candidate, free_memory, free_when_low
from daxfs.structures import inodes

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.tiers.storagecache import StorageCache
    from daxfs.fs.volume import Volume

BYTES_PER_SECOND = 128 << 20
"""What comes up for reads; half of it may come up at once."""
STUCK_SECONDS = 10.0
"""How long nobody looks for room after none was found; requests that find none look themselves."""


def due(volume: Volume) -> bool:
    """Return whether `keep` has something to do."""
    cache = volume.tiers
    if cache is None or not cache.usable or volume.read_only:
        return False
    if cache.misplaced or cache.rising:
        return True
    return policy.crowded(volume) and monotonic() >= cache.stuck_until


def keep(volume: Volume) -> Steps[None]:
    """Make room, move files to where they belong, bring up what is read.

    Raises:
        FsError: EIO, the storage has failed; EOPNOTSUPP, it has left.
    """
    cache, _ = moves.counted(volume)
    if policy.crowded(volume) and monotonic() >= cache.stuck_until:
        try:
            yield from policy.make_room(volume)
        except policy.NoRoom:
            cache.stuck_until = monotonic() + STUCK_SECONDS
    yield from _place(volume)
    yield from _raise(volume)


def _place(volume: Volume) -> Steps[None]:
    """Move those files to where their attribute says that were written to, read from storage, or given it."""
    cache, _ = moves.counted(volume)
    misplaced, cache.misplaced = cache.misplaced, {}
    for ino in misplaced:
        if policy.may_go(volume, ino):
            place = policy.place_of(volume, ino)
            if place == placement.STORAGE:
                # What is still being written would come back at once; closing the file brings it here again.
                end = inodes.read(volume.view, ino).size & -PIECE if volume.nodes.is_open(ino) else END
                yield from moves.demote(volume, ino, 0, end)
            elif place == placement.MEMORY:
                yield from moves.promote(volume, ino, 0, END, lambda: policy.crowded(volume))
        yield


def _raise(volume: Volume) -> Steps[None]:
    """Promote pieces that were read from storage, as the module says."""
    cache, heat = moves.counted(volume)
    rising, cache.rising = cache.rising, {}
    hot = sorted((heat.uses(ino, piece), ino, piece) for ino, piece in rising)
    colder: list[Candidate] | None = None
    need = PIECE >> volume.block_bits
    while hot:
        if not _allowed(cache):
            cache.rising = {(ino, piece): None for _, ino, piece in hot} | cache.rising
            break
        uses, ino, piece = hot.pop()
        if _may_rise(volume, ino):
            goal = min(free_memory(volume), free_when_low(volume)) + need
            if free_memory(volume) < goal and colder is None:
                colder, _ = yield from policy.candidates(volume, volume.geometry.groups_count)
                colder.reverse()
            while free_memory(volume) < goal and colder and _is_colder(colder[-1], uses):
                if not (yield from policy.demote(volume, colder[-1], goal)):
                    colder.pop()
            if free_memory(volume) < goal:
                break
            done = yield from moves.promote(volume, ino, *bytes_of(piece))
            cache.allowance -= done.moved
        yield


def _may_rise(volume: Volume, ino: int) -> bool:
    """Return whether an inode is a file whose data may lie in memory."""
    places = (placement.AUTO, placement.MEMORY)
    return policy.has_data(volume, ino) and policy.place_of(volume, ino) in places


def _is_colder(candidate: Candidate, uses: int) -> bool:
    """Return whether a candidate was used so much less than something else that changing their places pays."""
    return not candidate.anywhere or candidate.uses * 5 < uses * 4


def _allowed(cache: StorageCache) -> bool:
    """Return whether more may come up now."""
    now = monotonic()
    gained = int((now - cache.allowed_at) * BYTES_PER_SECOND)
    cache.allowance = min(cache.allowance + gained, BYTES_PER_SECOND // 2)
    cache.allowed_at = now
    return cache.allowance > 0

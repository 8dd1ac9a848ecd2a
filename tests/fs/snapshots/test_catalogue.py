"""Which snapshots a pool has: the same for a mount and for a pool that nobody has mounted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crash_rig import image
from snapshot_rig import keeper, unmounted
from tree_rig import QUIET

from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.snapshots import catalogue
from daxfs.fs.types import Options
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.snapshots.format import REASON_AT, VALID_AT
from support import wait_a_tick

NAMES = [b"a", b"b", b"c"]


def with_snapshots() -> tuple[bytearray, list[int]]:
    """An unmounted pool with three snapshots, and where their stores begin."""
    fs = FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)
    for name in NAMES:
        fs.create_snapshot(name)
        fs.tree.write_bytes("f", name * 3000)
        wait_a_tick()  # of two snapshots of one time the one without a header counts as the newer one
    places = [each.store.runs[0].start << each.store.bits for each in keeper(fs).kept]
    return unmounted(fs), places


def reasons(pool: bytearray) -> list[tuple[bytes, str]]:
    """What the catalogue says, and a read-only mount."""
    with FileSystem.open(MemoryPool(bytearray(pool)), Options(read_only=True, atime="noatime")) as fs:
        found = fs.list_snapshots()
        view = PoolView(fs.volume.pool, fs.volume.geometry)
        assert found == catalogue.listing(view, catalogue.judged(fs.volume.pool, view))
    return [(each.name, each.lost) for each in found]


def nothing(_pool: bytearray, _places: list[int]) -> None:
    """Leave it as it is."""


def foreign(pool: bytearray, _places: list[int]) -> None:
    """Count a mount, as another program does."""
    sb = Superblock(memoryview(pool)[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE])
    sb.s_mnt_count += 1
    sb.seal()


def invalid(pool: bytearray, places: list[int]) -> None:
    """Mark the middle one as one that was lost."""
    pool[places[1] + VALID_AT] = 0
    pool[places[1] + REASON_AT] = catalogue.FULL


def damaged(pool: bytearray, places: list[int]) -> None:
    """Destroy the header of the middle one."""
    pool[places[1] : places[1] + 4096] = bytes(4096)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (nothing, {b"a": 0, b"b": 0, b"c": 0}),
        (foreign, {b"a": catalogue.FOREIGN, b"b": catalogue.FOREIGN, b"c": catalogue.FOREIGN}),
        (invalid, {b"a": catalogue.OLDER, b"b": catalogue.FULL, b"c": 0}),
        (damaged, {b"b": catalogue.DAMAGED, b"a": catalogue.OLDER, b"c": 0}),
    ],
)
def test_a_snapshot_is_believed_or_there_is_a_reason(
    change: Callable[[bytearray, list[int]], None], expected: dict[bytes, int]
) -> None:
    pool, places = with_snapshots()
    change(pool, places)
    assert reasons(pool) == [(name, catalogue.REASONS[reason]) for name, reason in expected.items()]


def test_a_reason_that_nobody_gives_counts_as_damage() -> None:
    pool, stores = with_snapshots()
    pool[stores[0] + VALID_AT : stores[0] + VALID_AT + 4] = bytes(4)
    pool[stores[0] + REASON_AT : stores[0] + REASON_AT + 8] = (1 << 28).to_bytes(8, "little")
    with FileSystem.open(MemoryPool(pool), QUIET) as fs:
        lost = [each.lost for each in fs.list_snapshots()]
    assert catalogue.REASONS[catalogue.DAMAGED] in lost

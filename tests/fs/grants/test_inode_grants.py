"""The grants of one file: changes that end an epoch, and changes that are counted."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import count

import pytest
from crash_rig import image
from explorer.disk import Disk
from failing.seams import FailingPool, Trigger
from lease_rig import (
    RENEW,
    STORE,
    check,
    client,
    make,
    sparse,
    truncate,
)
from range_rig import COLLAPSE, PUNCH, ZERO
from tree_rig import QUIET

from daxfs.errors import MissingMemory
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants import inode_grants
from daxfs.fs.grants.inode_grants import Holder, InodeGrants
from daxfs.fs.openfile import OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.protocol import ENDED, ENTRY

BLOCK = 4096


def test_an_answer_ends(fs: FileSystem) -> None:
    """A change that makes an answer wrong begins an epoch; any other change does not."""
    held = sparse(fs)
    bystander = client(fs, b"g", b"x" * BLOCK)
    bystander.ask()

    def still_holds(action: Callable[[], object]) -> bool:
        held.ask(flags=RENEW)
        action()
        check(fs, [held, bystander])
        assert bystander.current
        return bool(held.current)

    ino, size = held.file.ino, 5 * BLOCK + 2000
    assert still_holds(lambda: fs.write(held.file, 0, b"z" * 5000))
    assert still_holds(lambda: fs.write(held.file, size, b"z" * 5000))
    assert still_holds(lambda: truncate(fs, ino, 10 * BLOCK))
    assert still_holds(lambda: fs.fallocate(held.file, ZERO, BLOCK, BLOCK))
    assert still_holds(lambda: fs.setattr(ino, SetAttributes(mode=0o600)))
    assert still_holds(fs.sync)
    assert not still_holds(lambda: fs.write(held.file, 4 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.write(held.file, 3 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.fallocate(held.file, PUNCH, BLOCK, BLOCK))
    assert not still_holds(lambda: fs.fallocate(held.file, COLLAPSE, 0, BLOCK))
    assert not still_holds(lambda: truncate(fs, ino, 5))


OpenFs = Callable[..., FileSystem]


def test_each_change_is_counted(fs: FileSystem) -> None:
    """A client whose stores were made durable sees that the file has changed since."""
    held = client(fs, content=b"x" * BLOCK)
    held.ask(0, BLOCK, STORE)
    grants = fs.grants.by_ino[held.file.ino]
    for change in (
        lambda: fs.write(held.file, 0, b"y"),
        lambda: fs.write(held.file, BLOCK, b"y"),
        lambda: fs.link(held.file.ino, ROOT_INO, b"link"),
        lambda: fs.unlink(ROOT_INO, b"link"),
    ):
        before = grants.changes
        change()
        assert grants.changes > before
    held.close()


def held(fs: FileSystem) -> tuple[InodeGrants, OpenFile, OpenFile]:
    """Return grants without a holder, and two open files of the inode."""
    one = make(fs, b"f", b"x" * 100)
    other = fs.open_file(one.ino)
    fs.grants.page.ensure()
    return InodeGrants(fs.volume, one.node, fs.grants.page.allocate(), count(5)), one, other


def entry(fs: FileSystem, grants: InodeGrants) -> tuple[int, ...]:
    """Return the status entry: epoch, size, inode number, changes."""
    return ENTRY.unpack(fs.volume.pool.memory[grants.entry : grants.entry + ENTRY.size])


def test_the_entry_shows_what_happens_to_the_inode(memory_fs: FileSystem) -> None:
    grants, file, _ = held(memory_fs)
    assert entry(memory_fs, grants) == (5, 100, file.ino, 0)
    grants.bump_version()
    assert entry(memory_fs, grants) == (5, 100, file.ino, 1)
    grants.set_size(70)
    assert entry(memory_fs, grants) == (5, 70, file.ino, 2)
    grants.bump_epoch()
    assert entry(memory_fs, grants) == (6, 70, file.ino, 3)
    grants.end_epochs()
    assert entry(memory_fs, grants) == (ENDED, 70, file.ino, 4)


def test_without_an_entry_nothing_is_stored(memory_fs: FileSystem) -> None:
    """A read-only mount has no status page."""
    file = make(memory_fs, b"f", b"x" * 100)
    before = memory_fs.volume.pool.image()  # type: ignore[attr-defined]
    grants = InodeGrants(memory_fs.volume, file.node, 0, count(5))
    grants.bump_version()
    grants.set_size(70)
    grants.bump_epoch()
    grants.end_epochs()
    assert (grants.epoch, grants.changes) == (0, 0)
    assert memory_fs.volume.pool.image() == before  # type: ignore[attr-defined]


def test_holders_belong_to_open_files(memory_fs: FileSystem) -> None:
    grants, one, other = held(memory_fs)
    assert grants.held_since() == ENDED
    grants.add_holder(one, 1)
    grants.bump_epoch()
    grants.add_holder(one, 2)
    grants.add_holder(other, 1)
    assert (grants.all_holders, grants.held_since()) == (3, 5)
    assert list(grants.each_holder()) == [(Holder(one, 1), 5), (Holder(one, 2), 6), (Holder(other, 1), 6)]
    assert grants.remove_holder(one, 1) == 1
    assert grants.remove_holder(one, 1) == 0
    assert grants.held_since() == 6
    assert grants.remove_holder(one) == 1
    assert (grants.remove_holder(other), grants.holders) == (1, {})


def test_the_extender_goes_with_its_holder(memory_fs: FileSystem) -> None:
    grants, one, other = held(memory_fs)
    for number in (1, 2):
        grants.add_holder(one, number)
    grants.add_holder(other, 1)
    grants.extender = (one, 1)
    grants.remove_holder(other)
    grants.remove_holder(one, 2)
    assert grants.extender == (one, 1)
    grants.remove_holder(one, 1)
    assert grants.extender is None


def test_what_is_mapped_through_the_kernel_goes_with_its_holder(memory_fs: FileSystem) -> None:
    grants, one, other = held(memory_fs)
    grants.map_through_kernel(one, 1, 0, BLOCK)
    epoch = grants.epoch
    grants.map_through_kernel(other, 1, BLOCK, 3 * BLOCK)
    assert grants.epoch > epoch, "what others know of these bytes is not true"
    assert grants.kernel_mapped.covers(0, 3 * BLOCK)
    grants.remove_holder(one)
    assert list(grants.kernel_mapped.gaps(0, 3 * BLOCK)) == [(0, BLOCK)]
    grants.remove_holder(other)
    assert not grants.kernel_mapped.runs


def test_of_too_many_pieces_all_between_them_counts_as_granted(
    memory_fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inode_grants, "MAX_GRANTED", 3)
    grants, _, _ = held(memory_fs)
    for number in range(3):
        grants.grant(2 * number * BLOCK, (2 * number + 1) * BLOCK)
    assert len(grants.granted.runs) == 3
    grants.grant(8 * BLOCK, 9 * BLOCK)
    assert grants.granted.covers(0, 9 * BLOCK)


def test_moved_bytes_are_not_preallocated(memory_fs: FileSystem) -> None:
    grants, _, _ = held(memory_fs)
    grants.preallocated.put(0, 4 * BLOCK, 0, False)
    grants.invalidate_range(BLOCK, 2 * BLOCK)
    assert list(grants.preallocated.gaps(0, 4 * BLOCK)) == [(BLOCK, 2 * BLOCK)]
    assert grants.epoch == 6


def test_a_change_succeeds_although_its_entry_has_no_memory(
    memory_fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that look at the entry meet the missing memory, too. The entry is not used again."""
    fs, pool = memory_fs, memory_fs.volume.pool
    held = client(fs, content=b"x" * BLOCK)
    answer = held.ask(0, BLOCK, STORE)

    def missing(*_: object) -> None:
        raise MissingMemory(errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "store_word", missing)
        truncate(fs, held.file.ino, 0)
        assert fs.getattr(held.file.ino).size == held.file.node.size == 0
        fs.check()
        held.close()
    assert client(fs, b"g", b"x").ask().entry != answer.entry


def test_a_fault_that_is_pending_ends_no_epoch() -> None:
    """Neither in the status entry nor in DRAM: if one of them ended, clients would take each answer for an old one."""
    fs = FileSystem.open(FailingPool(Disk(image("4k"), BLOCK), "", Trigger()), QUIET)
    held = client(fs, b"leased", b"x" * BLOCK)
    held.ask(0, BLOCK, STORE)
    grants = held.file.node.grants
    assert grants is not None
    fs.volume.faults[0] = 1
    with pytest.raises(MissingMemory):
        grants.bump_epoch()
    fs.check()
    check(fs, [held])
    fs.close()

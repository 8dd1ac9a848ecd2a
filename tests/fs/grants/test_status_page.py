"""The token that a lease request quotes: nothing is granted without it, and only the pool's own memory shows it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from lease_rig import (
    EXTEND,
    FAR,
    MAP,
    NOTHING,
    RENEW,
    ROOM,
    STORE,
    Client,
    SharedPool,
    client,
    entry_of,
    fill_up,
    make,
    sparse,
    token,
    truncate,
)
from range_rig import refused
from resizing_rig import MIB, grown
from tree_rig import QUIET

from daxfs.errors import FsError, MissingMemory
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.grants.status_page import StatusPage
from daxfs.fs.steps import finish
from daxfs.fs.types import Caller, LeaseRequest, Options
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import blocks
from support import fsck, mke2fs, write_image

OpenFs = Callable[..., FileSystem]


@pytest.fixture
def image(tmp_path: Path) -> bytearray:
    """A small pool."""
    return bytearray(mke2fs(tmp_path / "image", "-b", "4096", "-N", "64", "-J", "size=4", size="10M").read_bytes())


@pytest.fixture
def fs(image: bytearray) -> FileSystem:
    return FileSystem.open(MemoryPool(image), QUIET)


@pytest.mark.parametrize("quoted", [b"", bytes(16), b"x" * 16], ids=repr)
@pytest.mark.parametrize("flags", [NOTHING, STORE | EXTEND, MAP, RENEW], ids=repr)
def test_nothing_is_granted_without_it(fs: FileSystem, quoted: bytes, flags: int) -> None:
    held = client(fs, content=b"x" * 5000)
    for _ in range(2):
        with refused(errno.EOPNOTSUPP):
            fs.lease(held.file, LeaseRequest(1, 0, 4096, flags, ROOM, quoted))
        assert held.file.node.grants is None
        assert fs.statistics().leases == 0
        token(fs)


def test_a_holder_is_not_dropped_without_it(fs: FileSystem) -> None:
    """Otherwise a process that was passed the open file could free blocks that its owner still uses."""
    held = client(fs, content=b"x" * 5000)
    held.ask()
    with refused(errno.EOPNOTSUPP):
        fs.lease(held.file, LeaseRequest(held.holder, 0, 0, RENEW, ROOM, bytes(16)))
    assert fs.statistics().leases == 1


def test_no_block_is_taken_before_somebody_asks(fs: FileSystem) -> None:
    make(fs, b"f", b"x")
    assert fs.grants.page.ino == 0
    token(fs)
    assert fs.grants.page.ino


def test_each_mount_has_another(image: bytearray) -> None:
    found = set()
    for crash in (True, False, True):
        fs = FileSystem.open(MemoryPool(image), QUIET)
        found.add(token(fs))
        client(fs, b"f%d" % len(found), b"x").ask()
        if not crash:
            fs.close()
    assert len(found) == 3


def test_an_orderly_unmount_erases_it(image: bytearray, tmp_path: Path) -> None:
    fs = FileSystem.open(MemoryPool(image), QUIET)
    held = client(fs, content=b"x" * 5000)
    held.ask()
    secret = token(fs)
    fs.end_mount()
    fs.release(held.file)
    fs.close()
    assert secret not in image
    write_image(tmp_path / "pool", image)
    fsck(tmp_path / "pool")


def test_a_remount_erases_it_and_makes_another(fs: FileSystem, image: bytearray) -> None:
    held = client(fs, content=b"x" * 5000)
    held.ask()
    old = token(fs)
    held.renew()
    fs.remount(Options(read_only=True))
    assert old not in image
    assert held.ask().entry == 0
    held.renew()
    fs.remount(Options())
    with refused(errno.EOPNOTSUPP):
        fs.lease(held.file, LeaseRequest(1, 0, 1, NOTHING, ROOM, old))
    assert token(fs) != old
    assert held.ask().entry


def test_it_lies_in_one_place_and_in_no_log(image: bytearray) -> None:
    """Commits, power cuts and replays make no copy of it."""
    pool = SharedPool(image)
    fs = FileSystem.open(pool, QUIET)
    secret = token(fs)
    held = client(fs, content=b"x" * 50_000)
    held.ask(0, FAR, STORE)
    truncate(fs, held.file.ino, 0)
    fs.sync()
    for left in pool.crash_images(random.Random(1), start=len(pool.events), prefixes=2, subsets=2):
        assert bytes(left.image).count(secret) == 1
        with FileSystem.open(MemoryPool(bytearray(left.image)), QUIET) as again:
            assert token(again) != secret


def test_no_file_shows_it(fs: FileSystem) -> None:
    """The token's inode has no name, and can't be opened by its number."""
    secret = token(fs)
    with refused(errno.ESTALE):
        fs.by_number(fs.grants.page.ino)
    with pytest.raises(FsError) as error:
        fs.lease(make(fs, b"f", b"x"), LeaseRequest(1, 0, 1, NOTHING, ROOM, bytes(16)))
    assert secret.hex() not in repr(error.value)
    fs.close()


def test_a_freed_token_proves_nothing(image: bytearray) -> None:
    """The block of a token that a crash left may become any file's: the token then opens nothing."""
    fs = FileSystem.open(MemoryPool(image), QUIET)
    old = token(fs)
    fs = FileSystem.open(MemoryPool(image), QUIET)
    token(fs)
    with refused(errno.EOPNOTSUPP):
        fs.lease(make(fs, b"f", b"x"), LeaseRequest(1, 0, 1, NOTHING, ROOM, old))


def test_a_read_only_mount_has_none_and_needs_none(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="16M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("f", b"content")
    with FileSystem.open(path, Options(read_only=True)) as fs:
        assert fs.pool_identity().token == 0
        held = Client(fs, fs.open_file(fs.tree.resolve("f")))
        assert held.ask().entry == 0
    fsck(path)


def test_it_is_where_the_pool_identity_says(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    place = fs.pool_identity().token
    assert place
    assert bytes(fs.volume.pool.memory[place : place + 16]) == token(fs)
    answer = client(fs, content=b"x").ask()
    assert answer.entry != place
    assert answer.entry // 4096 == place // 4096


def test_a_full_pool_has_no_room_for_it(open_fs: OpenFs) -> None:
    """The request is refused for now, and granted when there is space."""
    fs = open_fs(size="16M")
    eater = make(fs, b"eater")
    with refused(errno.ENOSPC):
        while True:
            fs.write(eater, fs.getattr(eater.ino).size, bytes(1 << 16))
    with refused(errno.ENOSPC):
        while True:
            fs.write(eater, fs.getattr(eater.ino).size, bytes(1))
    with refused(errno.ENOSPC):
        fs.pool_identity()
    truncate(fs, eater.ino, 0)
    assert fs.pool_identity().token


def test_a_file_without_read_permission_needs_it_too(fs: FileSystem) -> None:
    file = fs.open_file(make(fs, b"f", b"x").ino, os.O_WRONLY, Caller(1000, 1000))
    with refused(errno.EOPNOTSUPP):
        fs.lease(file, LeaseRequest(1, 0, 1, STORE, ROOM, b""))
    assert fs.lookup(ROOT_INO, b"f").size == 1


BLOCK = 4096


def test_an_entry_shows_epoch_size_and_inode(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    held = sparse(fs)
    answer = held.ask()
    assert entry_of(fs, answer.entry) == (answer.epoch, answer.size, held.file.ino)
    fs.write(held.file, answer.size, b"more")
    assert entry_of(fs, answer.entry) == (answer.epoch, answer.size + 4, held.file.ino)
    other = client(fs, b"g", b"x").ask()
    assert other.entry != answer.entry
    assert other.epoch != answer.epoch


def test_entries_are_used_again(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    held = [client(fs, b"f%d" % number, b"x") for number in range(100)]
    slots = [one.ask().entry for one in held]
    assert len(set(slots)) == 100
    assert len({address // BLOCK for address in slots}) == 2
    for one in held:
        one.close()
    assert {client(fs, b"g%d" % number, b"x").ask().entry for number in range(100)} == set(slots)


def test_a_full_pool_has_no_room_for_the_page(open_fs: OpenFs) -> None:
    fs = open_fs(size="16M")
    held = client(fs, content=b"x")
    fill_up(fs, 0)
    assert fs.statfs().available == 0
    with refused(errno.ENOSPC):
        held.ask()
    assert held.file.node.grants is None
    assert bytes(fs.read(held.file, 0, 5)) == b"x"


def test_a_token_that_could_not_be_stored_is_made_again(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    held = client(fs, content=b"x" * 5000)

    def missing(*_: object) -> None:
        raise MissingMemory(errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(fs.volume.pool, "write", missing)
        with refused(errno.EIO):
            fs.grants.page.ensure()
    assert not fs.grants.page.ino
    assert held.ask().entry


def in_the_tail(path: Path) -> tuple[FileSystem, list[Client]]:
    """A pool whose status page lies past its middle, with two clients that read entries."""
    fs = FileSystem.open(grown(path), QUIET)
    clients = [client(fs, name, b"x" * 5000) for name in (b"one", b"two")]
    with fs.volume.handle(200) as tx:  # somebody has all that is free in the first groups
        taken = [run for group in range(45) for run in blocks.free_runs(tx, group, 1)]
        blocks.take_runs(tx, taken)
    for each in clients:
        each.ask()
    with fs.volume.handle(200) as tx:
        blocks.free_all(tx, taken)
    fs.sync()
    assert fs.grants.page.token > 40 * MIB
    return fs, clients


def test_entries_in_the_tail_of_a_shrink(tmp_path: Path) -> None:
    """Clients that look get new entries; who does not is named, and the shrink succeeds when it has looked or ended."""
    path = tmp_path / "pool"
    fs, clients = in_the_tail(path)
    one, two = clients
    secret, old = token(fs), [each.ask() for each in clients]
    steps = fs.steps.resize(40 * MIB // 4096)
    next(steps)
    assert all(entry_of(fs, before.entry).epoch != before.epoch for before in old), "clients see that they must ask"
    one.renew()
    now = one.ask()
    assert now.entry < 40 * MIB
    assert entry_of(fs, now.entry).epoch == now.epoch
    with pytest.raises(FsError, match=r"past the new end stay"):
        finish(steps)
    assert token(fs) == secret
    fs.check()
    two.renew()
    two.ask()
    one.renew()
    one.ask()
    assert fs.resize(40 * MIB // 4096).blocks == 40 * MIB // 4096
    fs.check()
    assert token(fs) == secret
    for each in clients:
        each.close()
    fs.check()
    fs.close()
    fsck(path)


def test_a_page_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as it is, and so do the entries."""
    path = tmp_path / "pool"
    fs, clients = in_the_tail(path)
    before = clients[0].ask()

    def full(_: StatusPage) -> None:
        raise FsError(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(StatusPage, "_add_block", full)
        with refused(errno.ENOSPC):
            fs.resize(40 * MIB // 4096)
    fs.check()
    assert entry_of(fs, before.entry).epoch == before.epoch
    for each in clients:
        each.close()
    fs.close()
    fsck(path)

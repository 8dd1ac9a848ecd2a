"""The kernel and e2fsck put metadata on storage; a mount brings it into memory, and reads it there if it must."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from foreign_rig import FOLDERS, by_kernel, fill_memory, litter, on_storage, unmarked
from in_memory import tmp_path
from kernel_rig import LOG_FLUSH, kernel_mount, shut_down
from tier_rig import GROUP, OPTIONS, Members, tiered
from tree_rig import QUIET, Tree, kernel_tree, pool_tree, same

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import homecoming, policy
from daxfs.fs.volume import Volume
from daxfs.pmem.storage import CONTENT, Storage
from daxfs.tools.mkfs import make_pool
from support import fsck, run

__all__ = ["tiered", "tmp_path"]

READING = replace(QUIET, read_only=True)


@pytest.fixture
def foreign(tiered: Members) -> tuple[Members, Tree]:
    """A pool to which the kernel has written while its memory was full."""
    fill_memory(tiered)
    with by_kernel(tiered) as place:
        tree = litter(place)
    with FileSystem.open(tiered.pool, READING) as fs:
        before = on_storage(fs)
    assert all(before[kind] for kind in ("map", "directory", "link", "attributes")), before
    return tiered, tree


def change_everything(fs: FileSystem) -> None:
    """Change directories, maps and attributes of what `litter` has made."""
    for number in range(FOLDERS):
        fs.tree.write_bytes(f"/d{number}/new", b"new" * 2000)
        fs.tree.unlink(f"/d{number}/{0:060}")
        fs.tree.unlink(f"/d{number}/link")
        with fs.tree.open(f"/d{number}/fragmented", "r+b") as file:
            file.truncate(8192 * 5)
        for name in ("attributes", "shared"):
            fs.removexattr(fs.tree.resolve(f"/d{number}/{name}"), b"user.long")
    fs.volume.check()


def test_a_mount_brings_all_of_it_into_memory(foreign: tuple[Members, Tree], caplog: pytest.LogCaptureFixture) -> None:
    pool, tree = foreign
    with FileSystem.open(pool.pool, READING) as fs:
        before = on_storage(fs)
        same(unmarked(pool_tree(fs)), tree)
    with caplog.at_level(logging.INFO), FileSystem.open(pool.pool, QUIET) as fs:
        assert not any(on_storage(fs).values())
        same(unmarked(pool_tree(fs)), tree)
    pool.check()
    assert f"{sum(before.values())} blocks of metadata have moved" in caplog.text
    with FileSystem.open(pool.pool, QUIET) as fs:
        change_everything(fs)
    pool.check()


def test_only_what_another_program_has_written_to_is_looked_through(
    foreign: tuple[Members, Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = foreign
    looks = []
    real = homecoming._Pass.run
    monkeypatch.setattr(homecoming._Pass, "run", lambda self: looks.append(self) or real(self))
    for _ in range(3):
        with FileSystem.open(pool.pool) as fs:
            fs.tree.write_bytes("/new", b"new")
    begun = len(looks)
    assert begun
    if not (child := os.fork()):
        fs = FileSystem.open(pool.pool)
        fs.tree.write_bytes("/new", b"newer")
        fs.sync()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with FileSystem.open(pool.pool) as fs:
        assert fs.tree.read_bytes("/new") == b"newer"
    assert len(looks) == begun, "after a crash too"
    run("e2fsck", "-fyD", whole := pool.join())
    pool.split(whole)
    with FileSystem.open(pool.pool):
        assert len(looks) > begun
    pool.check()


def test_a_log_of_the_kernel_is_replayed_to_storage(tiered: Members) -> None:
    fill_memory(tiered)
    whole = tiered.join()
    with kernel_mount(whole, "noatime") as place:
        tree = litter(place)
        shut_down(place, LOG_FLUSH)
    tiered.split(whole)
    with FileSystem.open(tiered.pool, QUIET) as fs:
        same(unmarked(pool_tree(fs)), tree)
        assert not any(on_storage(fs).values())
        change_everything(fs)
    tiered.check()


def test_what_finds_no_room_is_read_where_it_lies_until_there_is_some(
    foreign: tuple[Members, Tree], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool, tree = foreign

    def no_room(_: Volume) -> Steps[None]:
        yield
        raise policy.NoRoom(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "make_room", no_room)
        with FileSystem.open(pool.pool, QUIET) as fs:
            assert any(on_storage(fs).values())
            same(unmarked(pool_tree(fs)), tree)
            for name in fs.tree.listdir("/"):
                if name.startswith(b"filler"):
                    fs.tree.unlink(b"/" + name)
            with pytest.raises(FsError, match="which is metadata, lies on storage") as caught:
                change_everything(fs)
            assert caught.value.errno == errno.EIO
            assert not fs.volume.read_only
    assert "stays on storage" in caplog.text
    pool.check()
    with FileSystem.open(pool.pool, QUIET) as fs:
        assert not any(on_storage(fs).values())
    pool.check()


def test_a_member_that_fails_costs_what_it_has(foreign: tuple[Members, Tree], monkeypatch: pytest.MonkeyPatch) -> None:
    pool, tree = foreign

    def fails(*_: object) -> bytes:
        raise FsError(errno.EIO, "the test lets it fail")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read", fails)
        with FileSystem.open(pool.pool, QUIET) as fs:
            fs.tree.write_bytes("/new", b"new")
            with pytest.raises(FsError, match="the test lets it fail"):
                pool_tree(fs)
            assert not fs.volume.read_only
    with FileSystem.open(pool.pool, QUIET) as fs:
        assert not any(on_storage(fs).values())
        assert pool_tree(fs).keys() == {*tree, b"new"}
    pool.check()


def test_inodes_in_groups_of_storage_get_their_table_in_memory(tmp_path: Path) -> None:
    pool = Members(tmp_path / "pool", tmp_path / "slow")
    make_pool(pool.pool, 4 * GROUP, OPTIONS, sparse=True)
    with pool.storage.open("wb") as file:
        file.truncate(48 * GROUP + CONTENT)
    with FileSystem.open(pool.pool) as fs:
        fs.add_storage(str(pool.storage))
    with by_kernel(pool) as place:
        for number in range(40):  # the kernel spreads them over flexible groups
            (place / f"d{number}").mkdir()
            (place / f"d{number}" / "file").write_bytes(b"content")
        run("sync", "-f", place)
        tree = unmarked(kernel_tree(place))
    with FileSystem.open(pool.pool, READING) as fs:
        assert on_storage(fs)["table"] > 10
        same(unmarked(pool_tree(fs)), tree)
        assert fs.statfs().files_free >= 0
    with FileSystem.open(pool.pool, QUIET) as fs:
        assert not any(on_storage(fs).values())
        same(unmarked(pool_tree(fs)), tree)
        for number in range(40):
            fs.tree.write_bytes(f"/d{number}/new", b"new")
            fs.tree.unlink(f"/d{number}/file")
        fs.volume.check()
    pool.check()
    with FileSystem.open(pool.pool, QUIET) as fs:
        for number in range(40):
            fs.tree.unlink(f"/d{number}/new")
            fs.tree.rmdir(f"/d{number}")
        fs.remove_storage(str(pool.storage))
    fsck(pool.pool)

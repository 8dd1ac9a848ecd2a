"""The end of inodes: an inode without a name is freed when it is no longer busy."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage_rig import flip, superblock
from tree_rig import QUIET

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import extent
from daxfs.ext4.features import Incompat
from daxfs.fs import mounting, removal
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, SetAttributes
from daxfs.journal.handle import Handle
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.structures import inodes, mapping, orphans
from support import fsck, mke2fs, run


def test_what_frees_an_inode_frees_all_of_it(memory_fs: FileSystem) -> None:
    """Blocks, attribute block and inode are freed; a symbolic link's text and a device number are no map of blocks."""
    fs = memory_fs
    fs.sync()
    before = fs.statfs()
    made = {
        b"file": fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600).ino,
        b"device": fs.mknod(ROOT_INO, b"device", stat.S_IFCHR | 0o600, os.makedev(1, 3)).ino,
        b"short": fs.symlink(ROOT_INO, b"short", b"x" * 59).ino,
        b"long": fs.symlink(ROOT_INO, b"long", b"x" * 1000).ino,
    }
    fs.tree.write_bytes("/file", b"x" * 100_000)
    fs.setxattr(made[b"file"], b"user.x", b"y" * 2000)
    view = fs.volume.view
    kinds = {name: removal.holds_blocks(inodes.read(view, ino)) for name, ino in made.items()}
    assert kinds == {b"file": True, b"device": False, b"short": False, b"long": True}
    for name in made:
        fs.unlink(ROOT_INO, name)
    fs.sync()
    assert (fs.statfs().free, fs.statfs().files_free) == (before.free, before.files_free)
    for ino in made.values():
        assert inodes.read(view, ino).i_dtime


def test_an_inode_without_blocks_goes_in_the_handle_that_takes_its_name(memory_fs: FileSystem) -> None:
    """Nothing is noted for the orphan list; a file with another name, or with blocks, goes as before."""
    fs, volume = memory_fs, memory_fs.volume
    handles = 0

    def count() -> None:
        nonlocal handles
        handles += 1
        volume.journal.call_before_next_handle(count)

    fs.sync()
    volume.journal.call_before_next_handle(count)
    before = fs.statfs().files_free
    for name, size, taken in ((b"empty", 0, 1), (b"full", 5000, 2)):
        made = fs.mknod(ROOT_INO, name, 0o600)
        if size:
            fs.tree.write_bytes(b"/" + name, bytes(size))
        handles = 0
        fs.unlink(ROOT_INO, name)
        assert handles == taken
        assert inodes.read(volume.view, made.ino).i_dtime
        assert fs.statfs().files_free == before
        assert not volume.lives.nameless
    made = fs.mknod(ROOT_INO, b"one", 0o600)
    fs.link(made.ino, ROOT_INO, b"two")
    fs.unlink(ROOT_INO, b"one")
    assert fs.getattr(made.ino).nlink == 1
    fs.unlink(ROOT_INO, b"two")
    assert fs.statfs().files_free == before
    fs.check()


def test_an_inode_waits_while_it_is_busy(memory_fs: FileSystem) -> None:
    """`collect` leaves an inode that is open or pinned, or whose volume can't be changed; later it is freed."""
    fs = memory_fs
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    fs.pin(made)
    fs.unlink(ROOT_INO, b"f")
    volume = fs.volume
    for _ in range(2):
        removal.collect(volume, made.ino)
        assert volume.lives.nameless == {made.ino}
        if file.node.opens:
            fs.release(file)
    fs.unpin(made.ino)
    assert not volume.lives.nameless


@pytest.mark.parametrize("nameless", [True, False])
def test_recovery_ends_what_is_on_the_orphan_list(
    small_image: bytes, nameless: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A file without a name is freed; a file whose cut was interrupted is cut to its size."""
    content = bytearray(small_image)
    fs = FileSystem.open(MemoryPool(content), QUIET)
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"x" * 100_000)
    if nameless:
        fs.unlink(ROOT_INO, b"f")
    else:
        with fs.volume.handle(8) as tx:
            inode = inodes.edit(tx, made.ino)
            inode.size = 5000
            fs.volume.lives.being_cut(tx, made.ino)
    fs.sync()
    with caplog.at_level(logging.INFO, "daxfs.fs"), FileSystem.open(MemoryPool(bytes(content)), QUIET) as again:
        assert not again.volume.lives.listed
        if nameless:
            assert again.tree.listdir() == [b"lost+found"]
        else:
            assert again.getattr(made.ino).blocks == 16
            assert again.tree.read_bytes("/f") == b"x" * 5000
    assert "1 orphaned inodes cleaned" in caplog.messages


@pytest.mark.interpreted
def test_a_large_file_is_freed_in_steps(memory_fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each handle the tree is valid, and the orphan list has the inode until the last one."""
    fs = memory_fs
    monkeypatch.setattr(removal, "BLOCKS_PER_STEP", 1)
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    for block in range(0, 40, 2):
        fs.write(file, block * 4096, b"x" * 4096)
    fs.unlink(ROOT_INO, b"f")
    fs.sync()
    steps: list[int] = []
    handle = fs.volume.handle

    def watched(credits: int) -> Handle:
        inode = inodes.read(fs.volume.view, made.ino)
        steps.append(sum(run.length for run in mapping.walk(fs.volume.view, inode)))
        assert list(orphans.listing(fs.volume.view)) == [made.ino]
        return handle(credits)

    monkeypatch.setattr(fs.volume, "handle", watched)
    fs.release(file)
    monkeypatch.undo()
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) > 3
    assert not list(orphans.listing(fs.volume.view))


@pytest.mark.crash
def test_an_open_file_without_a_name_lives_until_closed(fs: FileSystem) -> None:
    before = fs.statfs()
    file, made = fs.create(ROOT_INO, b"f", 0o600)
    fs.write(file, 0, b"x" * 100_000)
    fs.unlink(ROOT_INO, b"f")
    assert fs.getattr(made.ino).nlink == 0
    assert bytes(fs.read(file, 99_990, 100)) == b"x" * 10
    fs.sync()
    fs.release(file)
    after = fs.statfs()
    assert (after.free, after.files_free) == (before.free, before.files_free)


@pytest.mark.crash
def test_a_pinned_inode_without_a_name_lives_until_forgotten(fs: FileSystem) -> None:
    made = fs.mknod(ROOT_INO, b"f", 0o600)
    fs.pin(made)
    fs.pin(made)
    fs.unlink(ROOT_INO, b"f")
    fs.unpin(made.ino)
    assert fs.getattr(made.ino).nlink == 0
    free = fs.statfs().files_free
    fs.unpin(made.ino)
    assert fs.statfs().files_free == free + 1


@pytest.mark.interpreted
def test_files_cut_in_steps_leave_the_list(open_fs: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncate that failed between its handles stays listed, once, until the inode is freed."""
    monkeypatch.setattr("daxfs.fs.truncating.BLOCKS_PER_CUT", 1)
    fs = open_fs(size="16M")
    file, _ = fs.create(ROOT_INO, b"f", 0o600)
    for begin in range(0, 12, 4):
        fs.write(file, begin * 4096, b"." * 8192)
    remove, count = mapping.remove, 0

    def fail(*arguments: object, **options: object) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            raise FsError(errno.EIO)
        return remove(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mapping, "remove", fail)
    with pytest.raises(FsError):
        fs.setattr(file.ino, SetAttributes(size=0))
    monkeypatch.setattr(mapping, "remove", remove)
    assert fs.volume.lives.listed == {file.ino}
    fs.unlink(ROOT_INO, b"f")
    fs.sync()
    fs.check()
    fs.release(file)
    assert not fs.volume.lives.listed
    with pytest.raises(FsError) as caught:
        fs.by_number(file.ino)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.interpreted
def test_a_removal_for_which_memory_runs_out_has_succeeded(
    memory_fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inode is freed later, at the latest by the unmount."""
    fs = memory_fs
    fs.tree.write_bytes("/file", b"content")
    ino = fs.lookup(ROOT_INO, b"file").ino

    def exhausted(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(removal, "free_step", exhausted)
        fs.unlink(ROOT_INO, b"file")
    assert ino in fs.volume.lives.nameless
    removal.free_nameless(fs.volume)
    assert ino not in fs.volume.lives.nameless


# The end of an inode that meets damage

FORMATS = {
    "list": ("-b", "1024"),
    "orphan file": ("-b", "1024", "-O", "orphan_file"),
    "no journal": ("-b", "1024", "-O", "^has_journal"),
}
PIECES = 600
"""More than one step frees, in several leaves of the tree."""


class Damaged:
    """A pool with a file in pieces, the first leaf of whose tree is damaged, and others without damage."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = mke2fs(path, *options, size="16M")
        with FileSystem.open(self.path, QUIET) as fs:
            file, made = fs.create(ROOT_INO, b"pieces", 0o600)
            for number in range(PIECES):
                fs.write(file, number * 2048, b"x")
            fs.release(file)
            for name in ("/one", "/two"):
                fs.tree.write_bytes(name, b"x" * 50_000)
            self.ino = made.ino
            view, number = fs.volume.view, 0
            words = inodes.read(view, made.ino).block_area.cast("I")
            while extent.depth(words):
                _, number = extent.indexes(words)[0]
                words = view.block(number).cast("I")
            self.leaf = number * view.block_size

    def orphaned(self) -> None:
        """Leave the pool as a kill does: all three files are open and have no names."""
        with FileSystem.open(self.path, QUIET) as fs:
            opened = [fs.tree.open(name) for name in ("/one", "/pieces", "/two")]
            for name in (b"one", b"pieces", b"two"):
                fs.unlink(ROOT_INO, name)
            fs.sync()
            killed = self.path.read_bytes()
            for file in opened:
                file.close()
        self.path.write_bytes(killed)
        with open_pool(self.path) as pool:
            mounting.recover_in_place(pool)

    def damage(self) -> None:
        flip(self.path, self.leaf + 8)

    def repair(self) -> None:
        """``e2fsck -fy`` mends everything: what was given up is free then."""
        run("e2fsck", "-fy", self.path, code=1)
        fsck(self.path)
        assert f"Inode: {self.ino}" not in run("debugfs", "-R", f"testi <{self.ino}>", self.path)
        assert "not in use" in run("debugfs", "-R", f"testi <{self.ino}>", self.path)


@pytest.fixture(params=FORMATS)
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> Damaged:
    return Damaged(tmp_path / "pool", *FORMATS[request.param])


def said_of(caplog: pytest.LogCaptureFixture, ino: int) -> list[str]:
    return [text for text in caplog.messages if text.startswith(f"inode {ino} ")]


@pytest.mark.parametrize("errors", ["continue", "remount-ro"])
def test_what_meets_damage_is_left_to_e2fsck(broken: Damaged, errors: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unlink succeeds, what earlier steps have freed is free, and nobody meets the damage again."""
    broken.damage()
    with FileSystem.open(broken.path, replace(QUIET, errors=errors)) as fs:
        before = fs.statfs().free
        fs.unlink(ROOT_INO, b"pieces")
        fs.check()
        assert fs.read_only == (errors == "remount-ro")
        assert not fs.volume.lives.unfinished
        if not fs.read_only:
            fs.sync()
            assert fs.statfs().free > before + PIECES // 3, "what the first step has freed"
            fs.tree.write_bytes("/later", b"x")
    assert len(said_of(caplog, broken.ino)) == 1
    assert "is left to e2fsck" in said_of(caplog, broken.ino)[0]
    caplog.clear()
    sb = superblock(broken.path)
    assert (sb.s_last_orphan, sb.s_error_count) == (0, 1)
    assert not sb.s_feature_incompat & Incompat.needs_recovery
    with FileSystem.open(broken.path, QUIET) as fs:
        assert not fs.read_only
        assert fs.metadata_errors().count == 1
    assert not caplog.messages
    broken.repair()


@pytest.mark.parametrize("errors", ["continue", "remount-ro"])
def test_a_mount_ends_the_other_orphans(broken: Damaged, errors: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whether they come before or behind the one whose end meets damage."""
    broken.orphaned()
    broken.damage()
    with caplog.at_level(logging.INFO), FileSystem.open(broken.path, replace(QUIET, errors=errors)) as fs:
        fs.check()
        assert not list(orphans.listing(fs.volume.view))
        assert fs.read_only == (errors == "remount-ro")
    assert "2 orphaned inodes cleaned" in caplog.messages
    assert len(said_of(caplog, broken.ino)) == 1
    with FileSystem.open(broken.path, QUIET) as fs:
        assert not fs.read_only
        assert fs.metadata_errors().count == 1
    broken.repair()


@pytest.mark.parametrize("errors", ["continue", "remount-ro"])
def test_a_cut_that_meets_damage_leaves_no_orphan(broken: Damaged, errors: str) -> None:
    """The caller gets the error. The size is the new one, as in ext4, and blocks before the damage are left past it."""
    broken.damage()
    with FileSystem.open(broken.path, replace(QUIET, errors=errors)) as fs:
        with pytest.raises(Corrupt):
            fs.setattr(broken.ino, SetAttributes(size=0))
        fs.check()
        assert not fs.volume.lives.unfinished
        assert fs.getattr(broken.ino).size == 0
    with FileSystem.open(broken.path, QUIET) as fs:
        assert not fs.read_only
        assert not list(orphans.listing(fs.volume.view))
    run("e2fsck", "-fy", broken.path, code=1)
    fsck(broken.path)


def test_a_cut_that_a_mount_goes_on_with_meets_damage(broken: Damaged, caplog: pytest.LogCaptureFixture) -> None:
    with FileSystem.open(broken.path, QUIET) as fs:
        with fs.volume.handle(8) as tx:
            inodes.edit(tx, broken.ino).size = 0
            fs.volume.lives.being_cut(tx, broken.ino)
        fs.sync()
        killed = broken.path.read_bytes()
    broken.path.write_bytes(killed)
    with open_pool(broken.path) as opened:
        mounting.recover_in_place(opened)
    broken.damage()
    for times in (1, 0):
        caplog.clear()
        with FileSystem.open(broken.path, replace(QUIET, errors="continue")) as fs:
            assert not list(orphans.listing(fs.volume.view))
        assert len(said_of(caplog, broken.ino)) == times
    run("e2fsck", "-fy", broken.path, code=1)
    fsck(broken.path)

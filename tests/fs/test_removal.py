"""The end of inodes: an inode without a name is freed when it is no longer busy."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable

import pytest
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs import removal
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, SetAttributes
from daxfs.journal.transaction import Handle
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes, mapping, orphans


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
    monkeypatch.setattr("daxfs.fs.data.BLOCKS_PER_CUT", 1)
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
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600).ino

    def exhausted(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(removal, "free_step", exhausted)
        fs.unlink(ROOT_INO, b"file")
    assert ino in fs.volume.lives.nameless
    removal.free_nameless(fs.volume)
    assert ino not in fs.volume.lives.nameless

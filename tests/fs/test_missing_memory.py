"""Missing memory below one file, directory, table or log: that operation fails with EIO, and the rest goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from damage_rig import place_of
from poison_rig import Poison, PoisonRig

from daxfs.errors import FsError, MissingMemory
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.fs.volume import Volume
from daxfs.pmem.opening import open_pool
from support import fsck, mke2fs, tmpfs

CONTENT = random.Random(1).randbytes(300_000)
FORMATS = {"default": (), "no-csum": ("-O", "^metadata_csum,^metadata_csum_seed"), "no-journal": ("-O", "^has_journal")}


class Rig(PoisonRig):
    """A poisoned pool without periodic commits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Options(commit_interval=1e9))

    def fresh(self) -> None:
        """Have everything read from the pool once more."""
        self.fs.sync()
        self.fs.volume.forget_content()

    def fails(self, operation: Callable[..., object], *arguments: object) -> None:
        """The operation fails with EIO, as often as it is tried; nothing of the volume is given up."""
        for _ in range(2):
            with pytest.raises(MissingMemory) as failed:
                operation(*arguments)
            assert failed.value.errno == errno.EIO
        assert not self.fs.read_only
        assert self.fs.volume.faults[0] == 0
        assert self.fs.tree.read_bytes("/other") == CONTENT
        self.fs.tree.write_bytes("/made meanwhile", CONTENT)
        self.fs.tree.unlink("/made meanwhile")
        self.fs.sync()

    def close(self) -> None:
        self.poison.close()
        self.fs.close()
        self.pool.close()


@pytest.fixture(params=FORMATS)
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    path = mke2fs(tmp_path / "pool", "-b", "4096", *FORMATS[request.param], size="32M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/other", CONTENT)
        fs.tree.write_bytes("/file", CONTENT)
        fs.tree.mkdir("/folder")
        for number in range(40):
            fs.tree.write_bytes(f"/folder/{number}", b"x" * 5000)
    made = Rig(path)
    yield made
    made.close()
    fsck(path)
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/other") == CONTENT


def test_data_is_read(rig: Rig) -> None:
    rig.poison.add(rig.data("/file") + 8192)
    rig.fails(rig.fs.tree.read_bytes, "/file")
    with rig.fs.tree.open("/file") as file:
        assert file.view(0, 8192) == CONTENT[:8192], "the pages before it"
    rig.poison.mend()
    assert rig.fs.tree.read_bytes("/file") == CONTENT


def test_data_in_pieces_is_read(rig: Rig) -> None:
    with rig.fs.tree.open("/file", "r+b") as file:
        rig.fs.fallocate(file._file, 3, 4096, 4096)
    rig.poison.add(rig.data("/file") + 8192)
    rig.fails(rig.fs.tree.read_bytes, "/file")


def test_data_is_written(rig: Rig) -> None:
    rig.poison.add(rig.data("/file") + 8192)
    with rig.fs.tree.open("/file", "r+b") as file:
        for _ in range(2):
            file.seek(8192)
            with pytest.raises(MissingMemory):
                file.write(b"new" * 1000)
        file.seek(0)
        file.write(b"at the beginning")
    assert not rig.fs.read_only
    rig.fs.sync()
    rig.poison.mend()
    assert rig.fs.tree.read_bytes("/file") == b"at the beginning" + CONTENT[16:]


def test_data_is_copied(rig: Rig) -> None:
    rig.poison.add(rig.data("/file") + 8192)
    with (
        rig.fs.tree.open("/file") as source,
        rig.fs.tree.open("/copy", "wb") as target,
        pytest.raises(MissingMemory),
    ):
        rig.fs.copy_range(source._file, 0, target._file, 0, len(CONTENT))
    assert not rig.fs.read_only
    rig.fs.tree.unlink("/copy")


def test_a_fault_before_a_commit_does_not_abort_the_journal(rig: Rig) -> None:
    """A view that `read` returned is touched after the operation has ended; then the file is synced."""
    with rig.fs.tree.open("/file") as file:
        rig.fs.tree.write_bytes("/new", CONTENT)
        rig.poison.add(rig.data("/file") + 8192)
        bytes(file.view(8192, 4096))
        with pytest.raises(MissingMemory):
            rig.fs.fsync(file._file.ino)
        assert not rig.fs.volume.journal.aborted
        rig.fs.fsync(file._file.ino)
    rig.poison.mend()
    assert rig.fs.tree.read_bytes("/new") == CONTENT


def test_an_inode_is_read(rig: Rig) -> None:
    place = rig.inode("/folder/20")
    rig.fresh()
    rig.poison.add(place)
    rig.fails(rig.fs.tree.stat, "/folder/20")
    rig.poison.mend()
    assert rig.fs.tree.read_bytes("/folder/20") == b"x" * 5000


def test_an_inode_is_changed(rig: Rig) -> None:
    place = rig.inode("/folder/20")
    ino = rig.fs.tree.stat("/folder").ino
    rig.fresh()
    rig.poison.add(place)
    rig.fails(rig.fs.unlink, ino, b"20")
    rig.poison.mend()
    rig.fs.tree.unlink("/folder/20")


def test_a_directory_is_read_and_changed(rig: Rig) -> None:
    place = rig.data("/folder")
    ino = rig.fs.tree.stat("/folder").ino
    rig.fresh()
    rig.poison.add(place)
    rig.fails(rig.fs.tree.listdir, "/folder")
    rig.fails(rig.fs.lookup, ino, b"20")
    rig.fails(rig.fs.mkdir, ino, b"new", 0o755)
    rig.poison.mend()
    assert len(rig.fs.tree.listdir("/folder")) == 40


@pytest.mark.parametrize("which", [0, 1], ids=["blocks", "inodes"])
def test_a_bitmap(rig: Rig, which: int) -> None:
    """Zeros in its place would say that everything is free; only the checksum tells, where there is one."""
    place = place_of(rig.path, ("Block bitmap", "Inode bitmap")[which])
    rig.fresh()
    rig.poison.add(place)
    rig.fresh()
    name = "/new"
    for _ in range(2):
        with pytest.raises(FsError) as failed:
            rig.fs.tree.write_bytes(name, CONTENT) if which == 0 else rig.fs.tree.mkdir(name)
        assert failed.value.errno == errno.EIO
    assert not rig.fs.read_only
    rig.poison.mend()
    rig.fs.tree.write_bytes("/new", CONTENT)
    assert rig.fs.tree.read_bytes("/file") == CONTENT


def test_the_log_while_it_is_written(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="32M")
    made = Rig(path)
    made.fs.tree.write_bytes("/other", CONTENT)
    made.fs.sync()
    area = made.fs.volume.log_area
    assert area is not None
    for block in range(1, area.blocks):
        made.poison.add(area.physical(block) << made.fs.volume.block_bits)
    made.fs.tree.write_bytes("/lost", b"x")
    with pytest.raises(FsError) as failed:
        made.fs.sync()
    assert failed.value.errno == errno.EIO
    assert made.fs.volume.journal.aborted
    assert made.fs.tree.read_bytes("/other") == CONTENT
    with pytest.raises(FsError) as failed:
        made.fs.tree.mkdir("/refused")
    assert failed.value.errno == errno.EROFS
    made.close()
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/other") == CONTENT
        assert "lost" not in fs.tree.listdir("/")
    fsck(path)


def test_the_superblock_while_it_is_mounted(tmp_path: Path) -> None:
    """Commits go on; at the end everything is in the log, if not at home."""
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    made = Rig(path)
    made.fs.volume.adopt(Options(commit_interval=0))
    made.poison.add(SUPERBLOCK_OFFSET)
    commits = made.fs.volume.journal.stats.commits
    made.fs.tree.write_bytes("/by tick", CONTENT)
    made.fs.tick()
    assert made.fs.volume.journal.stats.commits > commits
    made.fs.tree.write_bytes("/at the end", CONTENT)
    with suppress(FsError):
        made.fs.close()
    made.poison.close()
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/by tick") == CONTENT
        assert fs.tree.read_bytes("/at the end") == CONTENT
    fsck(path)


@pytest.mark.parametrize("within_handle", [False, True])
@pytest.mark.interpreted
def test_an_interrupted_operation(rig: Rig, monkeypatch: pytest.MonkeyPatch, within_handle: bool) -> None:
    """KeyboardInterrupt after a fault stays what it is, and no later operation fails because of that fault."""
    place = rig.data("/file")

    def interrupt(volume: Volume, *_: object) -> None:
        if within_handle:
            with volume.handle(1) as tx:
                tx.edit_superblock().s_mnt_count += 1
                bytes(rig.pool.memory[place : place + 8])
                raise KeyboardInterrupt
        bytes(rig.pool.memory[place : place + 8])
        raise KeyboardInterrupt

    before = rig.fs.volume.view.superblock().s_mnt_count
    rig.poison.add(place)
    with monkeypatch.context() as patch:
        patch.setattr("daxfs.fs.attributes.statfs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rig.fs.statfs()
    assert rig.fs.volume.faults[0] == 0
    assert rig.fs.volume.view.superblock().s_mnt_count == before
    rig.fs.tree.mkdir("/new")


def test_the_inode_of_an_open_file_that_is_overwritten(rig: Rig) -> None:
    """The commit can't write its times. Nobody else's changes are lost because of that."""
    with rig.overwritten_without_its_inode("/folder/20", CONTENT):
        pass
    assert rig.fs.tree.read_bytes("/meanwhile") == CONTENT
    assert rig.fs.tree.read_bytes("/folder/20")[:3] == b"new"


@pytest.mark.parametrize("fails_at", range(1, 10))
def test_missing_memory_in_the_middle_of_an_allocation(rig: Rig, fails_at: int) -> None:
    """A run was allocated, and so was the block that the tree grows by, when that block's reservation failed."""
    calls = 0

    def reserve(_offset: int, _length: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise MissingMemory(errno.ENOSPC)

    with rig.fs.tree.open("/sparse", "wb") as file:
        for block in (0, 2, 4):  # an inode holds four extents
            file.seek(block * 4096)
            file.write(b"x" * 4096)
        rig.fs.sync()
        rig.pool.reserve = reserve
        with suppress(MissingMemory):
            rig.fs.fallocate(file._file, 0, 0, 12 * 4096)
        rig.pool.reserve = None


def crashed(path: Path) -> int:
    """Make a pool whose log holds transactions; return the pool's offset of the log's second block."""
    copy = path.with_name("running")
    mke2fs(copy, size="32M")
    with FileSystem.open(copy, Options(commit_interval=1e9)) as fs:
        fs.tree.write_bytes("/other", CONTENT)
        fs.sync()
        area = fs.volume.log_area
        assert area is not None
        path.write_bytes(copy.read_bytes())
        return area.physical(1) << fs.volume.block_bits


@pytest.mark.parametrize("place", ["log", "superblock"])
def test_a_mount(tmp_path: Path, place: str) -> None:
    """It is refused, and the pool stays as it is: a transaction that can't be read is not the end of the log."""
    path = tmp_path / "pool"
    first = crashed(path)
    before = path.read_bytes()
    with open_pool(path) as pool:
        poison = Poison(pool)
        poison.add(first if place == "log" else SUPERBLOCK_OFFSET)
        for _ in range(2):
            with pytest.raises(MissingMemory) as failed:
                FileSystem.open(pool)
            assert failed.value.errno == errno.EIO
        poison.close()
        assert bytes(pool.memory) == before
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/other") == CONTENT
    fsck(path)


def test_a_pool_that_is_cut(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="32M")
    fs = FileSystem.open(path)
    fs.tree.write_bytes("/file", CONTENT)
    fs.sync()
    os.truncate(path, 64 << 10)
    for operation, argument in ((fs.tree.read_bytes, "/file"), (fs.tree.mkdir, "/new"), (fs.tree.listdir, "/")):
        with pytest.raises(FsError) as failed:
            operation(argument)  # type: ignore[operator]
        assert failed.value.errno == errno.EIO
    with pytest.raises(FsError):
        fs.close()


@pytest.mark.parametrize("options", [(), ("-O", "^has_journal")], ids=["journal", "no-journal"])
def test_a_full_file_system_below(tmp_path: Path, options: tuple[str, ...]) -> None:
    """What was written stays whole; names and sizes too; and the pool mounts while there is no room."""
    with tmpfs(tmp_path, "size=24m"):
        path = mke2fs(tmp_path / "pool", *options, size="256M")
        made: list[str] = []
        with FileSystem.open(path) as fs:
            for number in range(200):
                try:
                    fs.tree.write_bytes(f"/{number}", CONTENT)
                except FsError as error:
                    assert error.errno == errno.ENOSPC
                    break
                made.append(f"/{number}")
            assert len(made) >= 10
            assert not fs.read_only
            fs.tree.unlink(made.pop())
        fsck(path)
        for read_only in (True, False):
            with FileSystem.open(path, Options(read_only=read_only)) as fs:
                assert all(fs.tree.read_bytes(name) == CONTENT for name in made)
        fsck(path)

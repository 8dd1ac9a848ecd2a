"""Bad memory below files: EIO for its bytes alone, a way out for those who write all of it, and nobody gets it anew."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage_rig import place_of
from lease_rig import KERNEL, MAP, MEMORY, NOTHING, WRITE, client, kinds
from poison_rig import Poison

from daxfs.errors import BadMemory, FsError, MissingMemory
from daxfs.fs import badmemory
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.journal.log import Log
from daxfs.pmem import opening
from daxfs.pmem.mapped import MappedPool
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.structures import badblocks
from support import fsck, mke2fs, run

PAGE = 4096
CONTENT = random.Random(2).randbytes(40 * PAGE + 100)
NEW = random.Random(3).randbytes(40 * PAGE + 100)
FORMATS = {
    "4k": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "no-extents": ("-b", "4096", "-O", "^extent,^64bit"),
}


class Rig:
    """A pool with two files; ``mends``: whether a whole page that is stored by pwrite(2) is good again."""

    def __init__(self, path: Path, *, mends: bool) -> None:
        self.path = path
        self.pool: Pool = open_pool(path)
        self.fs = FileSystem.open(self.pool, Options(commit_interval=1e9))
        if not mends:
            self.pool.rewrite = lambda _offset, _data: False  # type: ignore[method-assign]

    def place(self, path: str, offset: int) -> int:
        """The pool's offset of a byte of a file."""
        bits = self.fs.volume.block_bits
        for each in self.fs.describe(self.fs.tree.stat(path).ino):
            if each.lblk << bits <= offset < each.lblk + each.length << bits:
                return (each.pblk << bits) + offset - (each.lblk << bits)
        raise AssertionError(f"{path} has no block at {offset}")

    def spoil(self, begin: int, pages: int = 1) -> None:
        """Make pages of the pool bad, as if the kernel had listed them."""
        self.pool.bad.add(begin, begin + pages * PAGE)
        self.pool.faults.avoid()
        self.fs.volume.forget_content()

    def listed(self) -> list[int]:
        """The blocks that the bad-blocks inode has."""
        return [each.pblk + at for each in badblocks.listed(self.fs.volume.view) for at in range(each.length)]

    def close(self) -> None:
        self.fs.close()
        self.pool.close()


@pytest.fixture(params=FORMATS)
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    made = mke2fs(tmp_path / "pool", *FORMATS[request.param], size="32M")
    with FileSystem.open(made) as fs:
        fs.tree.write_bytes("/file", CONTENT)
        fs.tree.write_bytes("/other", CONTENT)
    return made


@pytest.fixture(params=[True, False], ids=["mends", "replaces"])
def rig(path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(path, mends=request.param)
    yield made
    made.close()
    fsck(path)
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/other") == CONTENT


def test_a_read_ends_before_bad_memory_and_fails_in_it(rig: Rig) -> None:
    rig.spoil(rig.place("/file", 8 * PAGE))
    with rig.fs.tree.open("/file") as file:
        for _ in range(2):
            assert bytes(rig.fs.read(file._file, 5 * PAGE + 7, 10 * PAGE)) == CONTENT[5 * PAGE + 7 : 8 * PAGE]
            for offset in (8 * PAGE, 9 * PAGE - 1):
                with pytest.raises(MissingMemory, match=f"inode {file._file.ino} has bad memory at offset") as failed:
                    rig.fs.read(file._file, offset, 10)
                assert failed.value.errno == errno.EIO
            assert bytes(rig.fs.read(file._file, 9 * PAGE, 1 << 20)) == CONTENT[9 * PAGE :]
    assert rig.pool.faults.total == 0, "nothing was touched"


def test_the_page_cache_of_the_kernel_gets_all_or_nothing(path: Path) -> None:
    """It takes fewer bytes than it asked for as the end of the file."""
    rig = Rig(path, mends=False)
    rig.spoil(rig.place("/file", 8 * PAGE))
    with rig.fs.tree.open("/file") as file:
        file._file.node.dax = False
        with pytest.raises(MissingMemory):
            rig.fs.read(file._file, 5 * PAGE, 10 * PAGE)
        assert bytes(rig.fs.read(file._file, 5 * PAGE, 3 * PAGE)) == CONTENT[5 * PAGE : 8 * PAGE]
    rig.close()


def test_whole_blocks_are_written_over_bad_memory(rig: Rig) -> None:
    before = rig.place("/file", 8 * PAGE)
    rig.spoil(before)
    with rig.fs.tree.open("/file", "r+b") as file:
        assert rig.fs.write(file._file, 6 * PAGE, NEW[6 * PAGE : 12 * PAGE]) == 6 * PAGE
    wanted = CONTENT[: 6 * PAGE] + NEW[6 * PAGE : 12 * PAGE] + CONTENT[12 * PAGE :]
    assert rig.fs.tree.read_bytes("/file") == wanted
    mended = not rig.pool.bad
    assert (rig.place("/file", 8 * PAGE) == before) == mended
    rig.fs.sync()
    assert rig.pool.faults.total == 0


def test_blocks_that_replace_bad_ones_are_filled_before_a_commit_can_come(rig: Rig) -> None:
    rig.spoil(rig.place("/file", 8 * PAGE))
    with rig.fs.tree.open("/file", "r+b") as file:
        opened = file._file
        data = memoryview(NEW)[:PAGE]
        assert badmemory.make_writable(rig.fs.volume, opened.node, 8 * PAGE, data, opened.caller) == PAGE
        place = rig.place("/file", 8 * PAGE)
        assert bytes(rig.pool.memory[place : place + PAGE]) == NEW[:PAGE]


def test_a_whole_file_is_written_over_bad_memory_at_its_end(rig: Rig) -> None:
    rig.spoil(rig.place("/file", 40 * PAGE))
    with rig.fs.tree.open("/file", "r+b") as file:
        assert rig.fs.write(file._file, 0, NEW) == len(NEW)
    assert rig.fs.tree.read_bytes("/file") == NEW


def test_a_part_of_a_block_is_not_written_over_bad_memory(rig: Rig) -> None:
    """The rest of the block is unknown. What lies before it is written, as the kernel does (a short count)."""
    rig.spoil(rig.place("/file", 8 * PAGE))
    with rig.fs.tree.open("/file", "r+b") as file:
        for offset, size in ((8 * PAGE, 100), (8 * PAGE + 100, PAGE), (9 * PAGE - 100, 50)):
            with pytest.raises(MissingMemory):
                rig.fs.write(file._file, offset, NEW[:size])
        assert rig.fs.write(file._file, 7 * PAGE, NEW[: PAGE + 100]) == PAGE
        assert rig.fs.write(file._file, 9 * PAGE, NEW[:100]) == 100
    assert not rig.fs.read_only
    with rig.fs.tree.open("/file") as file:
        assert bytes(rig.fs.read(file._file, 7 * PAGE, PAGE)) == NEW[:PAGE]
        assert bytes(rig.fs.read(file._file, 9 * PAGE, PAGE)) == NEW[:100] + CONTENT[9 * PAGE + 100 : 10 * PAGE]


def test_bad_memory_is_never_given_out(path: Path) -> None:
    rig = Rig(path, mends=False)
    bad = rig.place("/file", 8 * PAGE)
    rig.spoil(bad, 3)
    rig.fs.tree.unlink("/file")
    rig.fs.sync()
    free = (20 << 20) // len(CONTENT)
    for number in range(free):
        rig.fs.tree.write_bytes(f"/{number}", CONTENT)
    bits = rig.fs.volume.block_bits
    for number in range(free):
        for each in rig.fs.describe(rig.fs.tree.stat(f"/{number}").ino):
            assert each.pblk + each.length << bits <= bad or each.pblk << bits >= bad + 3 * PAGE
    with rig.fs.tree.open("/last", "wb") as file:
        failed = 0
        while not failed:
            try:
                rig.fs.write(file._file, file._file.size, CONTENT)
            except FsError as error:
                failed = error.errno or 0
    assert failed == errno.ENOSPC
    assert rig.pool.faults.total == 0
    rig.close()
    fsck(path)


def test_a_copy_leaves_the_target_as_it_is_where_the_source_is_bad(rig: Rig) -> None:
    rig.spoil(rig.place("/file", 8 * PAGE))
    rig.fs.tree.write_bytes("/copy", NEW)
    with rig.fs.tree.open("/file") as source, rig.fs.tree.open("/copy", "r+b") as target:
        assert rig.fs.copy_range(source._file, 0, target._file, 0, len(CONTENT)) == 8 * PAGE
        with pytest.raises(MissingMemory):
            rig.fs.copy_range(source._file, 8 * PAGE, target._file, 8 * PAGE, PAGE)
    assert rig.fs.tree.read_bytes("/copy") == CONTENT[: 8 * PAGE] + NEW[8 * PAGE :]


def listed_by_dumpe2fs(path: Path) -> list[int]:
    return [int(word) for word in run("dumpe2fs", "-b", path).splitlines() if word.isdigit()]


def test_free_bad_blocks_go_to_the_bad_blocks_inode(path: Path) -> None:
    """Also those that become free later; what was on the list stays; 30 blocks need an index block."""
    rig = Rig(path, mends=False)
    bits = rig.fs.volume.block_bits
    per_page = PAGE >> bits
    unused, used = (22 << 20), rig.place("/file", 14 * PAGE)
    rig.spoil(unused, 30)
    rig.spoil(used, 2)
    rig.fs.tick()
    rig.fs.sync()
    listed = rig.listed()
    assert listed == list(range(unused >> bits, (unused >> bits) + 30 * per_page))
    rig.fs.tree.unlink("/file")
    rig.fs.sync()
    rig.fs.tick()
    rig.fs.check()
    rig.fs.sync()
    listed = rig.listed()
    assert set(range(used >> bits, (used >> bits) + 2 * per_page)) <= set(listed)
    assert rig.pool.faults.total == 0
    rig.close()
    fsck(path)
    assert listed_by_dumpe2fs(path) == sorted(listed)
    with FileSystem.open(path) as fs:
        assert len(listed) == sum(each.length for each in badblocks.listed(fs.volume.view))


def test_many_bad_blocks_are_listed_in_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    monkeypatch.setattr(badmemory, "MOST_EXAMINED", 7)
    rig = Rig(path, mends=False)
    rig.spoil(5000 * PAGE, 10)
    rig.spoil(6000 * PAGE, 9)
    for number in (7, 14, 19, 19):
        rig.fs.tick()
        assert len(rig.listed()) == number
    rig.fs.tree.write_bytes("/file", CONTENT)
    rig.close()
    fsck(path)


def test_they_are_listed_at_the_ends_of_a_mount_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", CONTENT)
        used = fs.describe(fs.tree.stat("/file").ino)[0].pblk
    monkeypatch.setattr(opening, "listed", lambda *_: [(6000 * PAGE, 6001 * PAGE), (used * PAGE, used * PAGE + 1)])
    monkeypatch.setattr(MappedPool, "rewrite", lambda *_: False)
    with FileSystem.open(path) as fs:
        assert [each.pblk for each in badblocks.listed(fs.volume.view)] == [6000]
        fs.tree.write_bytes("/file", NEW)
    assert listed_by_dumpe2fs(path) == sorted([used, 6000])
    fsck(path)


def test_blocks_that_mke2fs_has_listed_are_kept(tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("5000\n5001\n6000\n")
    path = mke2fs(tmp_path / "pool", "-b", "4096", "-l", str(known), size="32M")
    rig = Rig(path, mends=False)
    rig.spoil(7000 * PAGE)
    rig.fs.tick()
    rig.close()
    fsck(path)
    assert listed_by_dumpe2fs(path) == [5000, 5001, 6000, 7000]


def test_inodes_over_bad_memory_are_not_given_out(path: Path) -> None:
    rig = Rig(path, mends=False)
    rig.fs.sync()
    rig.spoil(place_of(path, "Inode table") + PAGE)  # 16 inodes, of which some are free
    for number in range(100):
        rig.fs.tree.write_bytes(f"/{number}", b"x")
    assert len(rig.fs.tree.listdir("/")) >= 100
    assert rig.pool.faults.total == 0
    rig.close()
    fsck(path)


def test_a_group_whose_bitmap_is_bad_gives_no_blocks(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", "-O", "^flex_bg", size="256M")
    rig = Rig(path, mends=False)
    rig.fs.tree.write_bytes("/other", CONTENT)
    rig.fs.sync()
    group = 32768 * PAGE
    place = place_of(path, "Block bitmap")
    rig.spoil(place)
    rig.fs.tree.write_bytes("/file", CONTENT)
    assert all(each.pblk * PAGE > group for each in rig.fs.describe(rig.fs.tree.stat("/file").ino))
    rig.fs.sync()
    assert rig.pool.faults.total == 0
    rig.fs.tree.unlink("/other")
    rig.close()
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/file") == CONTENT
    assert rig.pool.faults.total == 0
    run("e2fsck", "-fy", path, code=1)  # the blocks of /other stayed in use
    fsck(path)


def test_a_file_is_removed_whose_blocks_cannot_be_freed(tmp_path: Path) -> None:
    """The fault comes after the name is gone: the inode stays on the orphan list, and the end of the mount frees it."""
    path = mke2fs(tmp_path / "pool", "-b", "4096", "-O", "^flex_bg", size="256M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", CONTENT)
        fs.tree.write_bytes("/other", CONTENT)
    rig = Rig(path, mends=False)
    poison = Poison(rig.pool)
    poison.add(place_of(path, "Block bitmap"))
    rig.fs.tree.unlink("/file")
    assert b"file" not in rig.fs.tree.listdir("/")
    assert not rig.fs.read_only
    rig.fs.tree.write_bytes("/new", CONTENT)
    rig.fs.sync()
    rig.fs.close()
    poison.close()
    run("e2fsck", "-fy", path, code=1)  # the blocks of /file stayed in use
    with FileSystem.open(path) as fs:
        assert sorted(fs.tree.listdir("/")) == [b"lost+found", b"new", b"other"]


@pytest.mark.parametrize("where", ["superblock", "journal"])
def test_a_mount_names_what_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/other", CONTENT)
        area = fs.volume.log_area
        assert area is not None
        log = area.physical(3) * PAGE
    before = path.read_bytes()
    monkeypatch.setattr(opening, "listed", lambda *_: [(0 if where == "superblock" else log, PAGE + log)])
    wanted = "the superblock lies in bad memory" if where == "superblock" else "in its journal, lies in bad memory"
    monkeypatch.setattr(MappedPool, "rewrite", lambda *_: False)
    with pytest.raises(BadMemory, match=wanted):
        FileSystem.open(path)
    assert path.read_bytes() == before
    if where == "journal":
        with FileSystem.open(path, Options(read_only=True)) as fs:
            assert fs.tree.read_bytes("/other") == CONTENT
        monkeypatch.undo()
        monkeypatch.setattr(opening, "listed", lambda *_: [(log, PAGE + log)])
        with FileSystem.open(path) as fs:
            assert not fs.volume.pool.bad, "an empty log has no content that could be lost"
    fsck(path)


def test_a_journal_that_needs_replay_and_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mke2fs(tmp_path / "running", "-b", "4096", size="32M")
    crashed = tmp_path / "pool"
    with FileSystem.open(path, Options(commit_interval=1e9)) as fs:
        fs.tree.write_bytes("/other", CONTENT)
        fs.sync()
        area = fs.volume.log_area
        assert area is not None
        writer = fs.volume.journal._writer
        assert isinstance(writer, Log)
        log = area.physical(writer._tail.superblock.s_start) * PAGE
        crashed.write_bytes(path.read_bytes())
    before = crashed.read_bytes()
    monkeypatch.setattr(opening, "listed", lambda *_: [(log, PAGE + log)])
    for _ in range(2):
        with pytest.raises(BadMemory, match=f"needs replay, but its block {log // PAGE} lies in bad memory"):
            FileSystem.open(crashed)
    assert crashed.read_bytes() == before


def test_clients_are_not_granted_bad_memory(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    rig = Rig(path, mends=False)
    holder = client(rig.fs, b"file", CONTENT)
    assert kinds(holder.ask_all(0, 40 * PAGE)) == [(MEMORY, 0, 40 * PAGE)]
    assert holder.current
    place = rig.place("/file", 8 * PAGE)
    rig.spoil(place, 2)
    assert not holder.current, "clients ask again"
    for flags in (NOTHING, WRITE, MAP):
        assert kinds(holder.ask_all(0, 40 * PAGE, flags)) == [
            (MEMORY, 0, 8 * PAGE),
            (KERNEL, 8 * PAGE, 2 * PAGE),
            (MEMORY, 10 * PAGE, 30 * PAGE),
        ]
    holder.close()
    rig.close()

"""Block-mapped files, compared with a dict model, debugfs and e2fsck; and the errors for hostile pointers."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from map_rig import FIRST_INO, MapRig, check_search, count_blocks, debugfs_map, make_image, spread

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import Superblock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import SetAttributes
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inodes, mapping
from daxfs.structures.mapping import Extent
from support import fsck, mke2fs

Rigs = Callable[..., MapRig]
PER = 256  # pointers in an index block of 1 KiB
AREAS = (0, 12, 12 + PER, 12 + PER + PER**2)
END = 12 + PER + PER**2 + PER**3


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """Make rigs; after the test each is closed, compared with debugfs and checked by e2fsck."""
    made: list[MapRig] = []

    def make(*options: str, size: str = "16M") -> MapRig:
        path = make_image(tmp_path / f"pool{len(made)}", *(options or ("-b", "1024")), size=size)
        made.append(MapRig(path, extent_mapped=False))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.mark.parametrize("options", [("-b", "1024"), ("-b", "4096"), ("-b", "1024", "-O", "^flex_bg,^metadata_csum")])
def test_reads_what_mke2fs_wrote(tmp_path: Path, options: tuple[str, ...]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "plain").write_bytes(b"p" * 600_000)
    with (files / "sparse").open("wb") as file:
        for at in (0, 5, 300, 301, 400, 900, 70_000):
            file.seek(at * 4096)
            file.write(b"s" * 4096)
    path = mke2fs(tmp_path / "pool", "-O", "^extent,^64bit", "-d", str(files), *options)
    pool = MemoryPool(path.read_bytes())
    view = PoolView(pool, Geometry.of(Superblock(pool.memory[1024:2048])))
    for ino in (12, 13):
        inode = inodes.read(view, ino)
        model = debugfs_map(path, ino)
        assert spread(mapping.walk(view, inode)) == model
        assert count_blocks(view, inode) == inode.blocks * 512 // view.block_size
        for lblk in [*range(500), *(n + k for n in model for k in (-1, 0, 1) if n + k >= 0)]:
            found = mapping.lookup(view, inode, lblk)
            assert (found.lblk, found.pblk) == (lblk, model.get(lblk, (0, False))[0])
            following = mapping.next_mapped(view, inode, lblk)
            later = min((n for n in model if n >= lblk), default=None)
            assert (following and following.lblk) == later
            check_search(view, inode, lblk, model)


def test_each_area_is_written_read_and_cut(rigs: Rigs) -> None:
    rig = rigs()
    edges = [n for area in (*AREAS[1:], END) for n in (area - 2, area - 1)] + [*AREAS, AREAS[3] + PER**2]
    for lblk in edges:
        rig.allocate(lblk)
    rig.check()
    for lblk in edges:
        for near in (lblk - 1, lblk, lblk + 1):
            if 0 <= near < END:
                rig.check_lookup(near)
    rig.commit_consistent()
    fsck(rig.path)
    assert debugfs_map(rig.path, rig.ino) == rig.model
    rig.remove(AREAS[3] + 1, AREAS[3] + PER**2)
    rig.check()
    rig.remove(AREAS[2] + 1, None)
    rig.check()
    rig.remove(AREAS[1], None)
    rig.check()
    rig.remove(0, None)
    assert rig.inode.blocks == 0


def test_appends_are_contiguous_but_for_index_blocks(rigs: Rigs) -> None:
    rig = rigs()
    lblk = 0
    while lblk < 1000:
        lblk += rig.allocate(lblk, 64).length
    assert len(mapping.runs(rig.view, rig.inode)) <= 8
    rig.check()


def test_removal_stops_at_its_limit_and_goes_on(rigs: Rigs) -> None:
    rig = rigs()
    for lblk in range(0, 1200, 2):
        rig.allocate(lblk)
    assert rig.remove(100, 999, limit=50) >= 9
    rig.check()
    rig.commit_consistent()
    fsck(rig.path)
    assert rig.remove(1, None, limit=7) > 20
    assert list(rig.model) == [0]


def test_inserting_across_index_blocks(rigs: Rigs) -> None:
    rig = rigs()
    source = rig.allocate(5000, 200)
    length = source.length
    assert length > 100
    with rig.change() as (
        tx,
        inode,
    ):  # clear the pointers as a removal does, but free nothing, so that the blocks can be moved
        for at in range(length):
            path = mapping.indirect._route(tx, 5000 + at)
            number = mapping.indirect._reach(tx, inode, path, 0)
            mapping.indirect._writable(tx, inode, number)[path[-1]] = 0
        mapping.insert(tx, inode, Extent(5, source.pblk, length, False))
        with pytest.raises(FsError, match="is mapped"):
            mapping.insert(tx, inode, Extent(6, source.pblk, 1, False))
        assert mapping.remove(tx, inode, 200, None)
    rig.model = {5 + at: (source.pblk + at, False) for at in range(length)}


def test_what_there_is_not(rigs: Rigs) -> None:
    rig = rigs()
    with rig.change() as (tx, inode):
        for call, number in (
            (lambda: mapping.allocate(tx, inode, 3, 1, unwritten=True), errno.EOPNOTSUPP),
            (lambda: mapping.insert(tx, inode, Extent(3, 9000, 1, True)), errno.EOPNOTSUPP),
            (lambda: mapping.insert(tx, inode, Extent(3, 1 << 32, 1, False)), errno.EFBIG),
            (lambda: mapping.allocate(tx, inode, END, 1), errno.EFBIG),
            (lambda: mapping.lookup(tx, inode, END), errno.EFBIG),
        ):
            with pytest.raises(FsError) as caught:
                call()
            assert caught.value.errno == number
    assert mapping.next_mapped(rig.view, rig.inode, END + 5) is None
    rig.allocate(7)
    with pytest.raises(FsError) as caught:
        rig.allocate(7)
    assert caught.value.errno == errno.EEXIST
    rig.mark_written(7, 1)


def test_a_full_pool_changes_nothing(rigs: Rigs) -> None:
    rig = rigs("-b", "1024", "-m", "0", size="8M")

    def fill() -> None:
        lblk = 0
        while True:
            lblk += rig.allocate(lblk, 100).length

    with pytest.raises(FsError) as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    rig.check()
    rig.remove(0, 3)
    rig.journal.commit()  # freed blocks can be used again after the commit
    rig.allocate(2)


# Hostile pointers


def hostile(tmp_path: Path, damage: Callable[[memoryview, memoryview, int], None]) -> PoolView:
    """Make the pool of a file with 600 blocks, and apply ``damage``.

    ``damage`` gets the pointers in the inode, those in the indirect block, and the first block of the inode table.
    """
    rig = MapRig(make_image(tmp_path / "pool", "-b", "1024", "-O", "^metadata_csum"), extent_mapped=False)
    lblk = 0
    while lblk < 600:
        lblk += rig.allocate(lblk, 600 - lblk).length
    rig.commit_consistent()
    number, offset = inodes.position(rig.view, rig.ino)
    rig.journal.close()
    content = bytearray(rig.pool.memory)
    rig.pool.close()
    start = number * 1024 + offset + 0x28
    top = memoryview(content)[start : start + 60].cast("I")
    single = memoryview(content)[top[12] * 1024 : top[12] * 1024 + 1024].cast("I")
    damage(top, single, int.from_bytes(content[2048 + 8 : 2048 + 12], "little"))
    return PoolView(MemoryPool(content), rig.geometry)


@pytest.mark.parametrize("where", ["top", "single"])
@pytest.mark.parametrize("value", ["outside", "largest", "metadata"])
def test_wild_pointers_are_refused(tmp_path: Path, where: str, value: str) -> None:
    def damage(top: memoryview, single: memoryview, table: int) -> None:
        pointer = {"outside": 16 * 1024, "largest": 0xFFFFFFFF, "metadata": table + 1}[value]
        (top if where == "top" else single)[5] = pointer

    view = hostile(tmp_path, damage)
    inode = inodes.read(view, FIRST_INO)
    bad = 5 if where == "top" else 17
    for call in (lambda: list(mapping.walk(view, inode)), lambda: mapping.lookup(view, inode, bad)):
        with pytest.raises(Corrupt, match=f"inode {FIRST_INO}"):
            call()
    assert mapping.lookup(view, inode, bad - 1).pblk, "the pointers beside a wrong one can be read"
    assert mapping.lookup(view, inode, bad + 1).pblk


def test_index_blocks_that_point_to_themselves_end(tmp_path: Path) -> None:
    def damage(top: memoryview, single: memoryview, table: int) -> None:  # noqa: ARG001
        for at in range(len(single)):
            single[at] = top[12]
        top[14] = top[12]

    view = hostile(tmp_path, damage)
    inode = inodes.read(view, FIRST_INO)
    for call in (lambda: list(mapping.walk(view, inode)), lambda: mapping.runs(view, inode, limit=1 << 20)):
        with pytest.raises(Corrupt, match=f"inode {FIRST_INO}"):
            call()


def test_a_hole_may_be_longer_than_the_pool(pool: Callable[..., Path]) -> None:
    """Blocks are checked against the end of the pool; the length of a hole is not."""
    path = pool("-t", "ext2", "-b", "4096", "-N", "32", size="4M")
    with FileSystem.open(path) as fs:
        file, _ = fs.create(2, b"f", 0o600)
        fs.setattr(file.ino, SetAttributes(size=4 << 20))
        for block in (12, 20):
            assert fs.write(file, block * 4096, bytes([block]) * 4096) == 4096
        assert fs.read(file, 20 * 4096, 10) == bytes([20]) * 10
        fs.release(file)
    fsck(path)


def test_a_full_pool_of_small_blocks_says_so(pool: Callable[..., Path]) -> None:
    path = pool("-t", "ext2", "-b", "1024", "-N", "32", size="1M")
    with FileSystem.open(path) as fs:
        file, _ = fs.create(2, b"f", 0o600)
        fs.setattr(file.ino, SetAttributes(size=8 << 20))
        places = iter(range(0, 8 << 20, 2048))
        with pytest.raises(FsError) as refused:
            deque(fs.write(file, place, b"x" * 1024) for place in places)
        assert refused.value.errno == errno.ENOSPC
        fs.release(file)
    fsck(path)

"""Shrinking of file systems in use, in every format: what e2fsck, resize2fs and the kernel say of the result."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from resizing_rig import KIB, LARGE, MIB, SMALL, SPECIAL, counts, grown, made, refused

from daxfs.errors import FsError
from daxfs.ext4.group import GroupDescriptor
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.moving import shrinking
from daxfs.fs.steps import finish, interruption
from daxfs.fs.types import Options
from daxfs.journal.view import View
from daxfs.runs import ByteRange
from daxfs.structures import blocks, groupmaps, inodes, shrinkage
from support import fsck, mke2fs, run, write_image

__all__ = ["tmp_path"]

PASSED = re.compile(r"Last |Mount|Lifetime|Filesystem state|Checksum:|Journal ")
"""Lines of dumpe2fs that differ by the time, and by mounts."""


def layout(path: Path) -> list[str]:
    """What dumpe2fs shows of the superblock and of all groups."""
    return [line for line in run("dumpe2fs", path).splitlines() if not PASSED.match(line)]


def check_shrinking(path: Path, *options: str) -> None:
    """Shrink an empty pool in some calls; each leaves what resize2fs makes of an unmounted copy."""
    grown(path, *options)
    twin = Path(shutil.copy(path, path.with_name("twin")))
    for size in (72 * MIB, 40 * MIB + 300 * KIB, 20 * MIB + 12 * KIB):
        with FileSystem.open(path) as fs:
            block_size = fs.statfs().block_size
            expected = shrinkage.fitting(fs.volume.geometry, size // block_size)
            assert fs.resize(size // block_size).blocks == expected
            fs.check()
        assert path.stat().st_size == expected * block_size
        fsck(path)
        run("resize2fs", "-f", twin, f"{size // KIB}K")
        assert layout(path) == layout(twin)
    with FileSystem.open(path) as fs:  # what is known of groups holds of the new ones
        fs.tree.write_bytes("/large", b"x" * (5 * MIB))
        for number in range(100):
            fs.tree.mkdir(f"/{number}")
        fs.check()
        fs.resize(LARGE // block_size)
        fs.tree.write_bytes("/larger", b"y" * (30 * MIB))
        for number in range(100):
            fs.tree.rmdir(f"/{number}")
        fs.check()
        assert fs.tree.read_bytes("/large") == b"x" * (5 * MIB)
    fsck(path)


def test_every_format_shrinks(any_format: tuple[str, ...], tmp_path: Path) -> None:
    check_shrinking(tmp_path / "pool", *any_format)


@pytest.mark.parametrize("name", SPECIAL)
def test_every_layout_of_groups_shrinks(name: str, tmp_path: Path) -> None:
    check_shrinking(tmp_path / "pool", *SPECIAL[name])


def test_what_growth_made(tmp_path: Path) -> None:
    """In place or past the blocks that were reserved for descriptors (meta_bg)."""
    path = made(tmp_path / "pool", "-E", f"resize={70 * MIB // 4096}")
    with FileSystem.open(path) as fs:
        fs.resize(256 * 150)
    assert "meta_bg" in run("dumpe2fs", "-h", path)
    for groups in (140, 129, 60):
        with FileSystem.open(path) as fs:
            assert fs.resize(256 * groups).blocks == 256 * groups
            fs.check()
        fsck(path)
    assert "meta_bg" not in run("dumpe2fs", "-h", path)


@contextmanager
def used(path: Path) -> Iterator[FileSystem]:
    """A pool with files in its last three quarters, of which the first quarter is free."""
    grown(path)
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/first", b"f" * (20 * MIB))
        chance = random.Random(1)
        for number in range(30):
            fs.tree.write_bytes(f"/{number}", chance.randbytes(number * 30_000))
        fs.tree.write_bytes("/last", chance.randbytes(12 * MIB))
        fs.tree.unlink("/first")
        fs.setxattr(fs.tree.stat("/last").ino, b"user.long", b"v" * 3000)
        yield fs


def contents(fs: FileSystem) -> dict[str, bytes]:
    return {name: fs.tree.read_bytes(f"/{name}") for name in (*map(str, range(30)), "last")}


def test_files_move(tmp_path: Path) -> None:
    """While programs make and remove others; the kernel mounts the result."""
    path = tmp_path / "pool"
    with used(path) as fs:
        before = contents(fs)
        target = 40 * MIB // 4096
        assert any(shrinkage.used_past(fs.volume.view, target))
        made_meanwhile = 0
        steps = fs.steps.resize(target)
        while next(steps, "ended") is None:
            assert fs.left_to_move >= 0
            fs.tree.write_bytes(f"/new {made_meanwhile % 7}", bytes(100_000))
            runs = fs.describe(fs.tree.stat(f"/new {made_meanwhile % 7}").ino)
            assert all(run.pblk + run.length <= target for run in runs), "nothing is taken past the new end"
            made_meanwhile += 1
        assert made_meanwhile > 10
        fs.check()
        assert contents(fs) == before
        assert fs.statfs().free > 0
    assert path.stat().st_size == 40 * MIB
    fsck(path)
    with kernel_mount(path) as place:
        assert (place / "last").read_bytes() == before["last"]
    fsck(path)


def test_an_interrupted_shrink_changes_no_size(tmp_path: Path) -> None:
    """Everything can be taken again, and the same shrink succeeds later."""
    path = tmp_path / "pool"
    with used(path) as fs:
        before, size = contents(fs), fs.size
        steps = fs.steps.resize(40 * MIB // 4096)
        for _ in range(5):
            next(steps)
        assert refused(fs, 40 * MIB // 4096) == "EBUSY"
        steps.close()
        assert (fs.size, fs.left_to_move) == (size, 0)
        fs.tree.write_bytes("/all of it", b"a" * (45 * MIB))
        fs.tree.unlink("/all of it")
        fs.check()
        assert fs.resize(40 * MIB // 4096).blocks == 40 * MIB // 4096
        assert contents(fs) == before
    fsck(path)


def test_the_file_of_a_shrink_that_was_cut_off(tmp_path: Path) -> None:
    """The size was changed and the file was not: the same call cuts it."""
    path = grown(tmp_path / "pool")
    run("truncate", "-s", LARGE + MIB, path)
    with FileSystem.open(path) as fs:
        assert fs.resize(LARGE // 4096) == (LARGE // 4096, LARGE // 4096)
    assert path.stat().st_size == LARGE
    fsck(path)


def test_the_minimum(tmp_path: Path) -> None:
    """Less is refused with it, and it is enough."""
    path = tmp_path / "pool"
    with used(path) as fs:
        before, least = contents(fs), fs.minimum_size()
        with pytest.raises(FsError, match=f"fewer than the {least} that are needed"):
            fs.resize(least - 1)
        assert refused(fs, 10) == "EINVAL"
        assert fs.resize(least).blocks == least
        assert fs.minimum_size() <= least
        fs.check()
        assert contents(fs) == before
    fsck(path)


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    path = grown(tmp_path / "pool")
    target = 40 * MIB // 4096
    with FileSystem.open(path) as fs:
        fs.create_snapshot(b"monday")
        with pytest.raises(FsError, match="monday"):
            fs.resize(target)
        fs.delete_snapshot(b"monday")
        with fs.volume.handle(1) as tx:
            tx.edit_superblock().s_state |= 2
        assert refused(fs, target) == "EUCLEAN"
        with fs.volume.handle(1) as tx:
            tx.edit_superblock().s_state &= ~2
        assert fs.size == LARGE // 4096
    assert path.stat().st_size == LARGE
    with FileSystem.open(path, Options(read_only=True)) as fs:
        assert refused(fs, target) == "EROFS"
    fsck(path)


def test_what_can_not_move_is_named(tmp_path: Path) -> None:
    """An inode of a group that goes; and the pool stays as it is."""
    path = grown(tmp_path / "pool")
    target = 40 * MIB // 4096
    with FileSystem.open(path) as fs:
        for number in range(60):
            fs.tree.mkdir(f"/{number}")
            fs.tree.write_bytes(f"/{number}/file", b"f")
        past = [ino for ino in shrinkage.inodes_past(fs.volume.view, target) if fs.getattr(ino).mode >> 12 == 8]
        batch = fs.batch(fs.open_file(past[0], os.O_RDWR))
        with pytest.raises(FsError, match=f"/file .inode {past[0]}. of the groups that go .a batch"):
            fs.resize(target)
        batch.abort()
        fs.tree.write_bytes("/more", b"m" * (60 * MIB))
        fs.check()
        assert fs.size == LARGE // 4096
    fsck(path)


@pytest.mark.parametrize("wanted", [40 * 256, 40 * 256 + 130, 41 * 256 - 1])
def test_nothing_is_taken_past_the_new_end(wanted: int, tmp_path: Path) -> None:
    """A full pool has nothing there, wherever in a group the end is, and all of it can be taken afterwards."""
    path = grown(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        end = shrinkage.fitting(fs.volume.geometry, wanted)
        for number in range(100):
            fs.tree.mkdir(f"/{number}")
        fs.sync()
        before = list(shrinkage.used_past(fs.volume.view, end)), list(shrinkage.inodes_past(fs.volume.view, end))
        assert all(before)
        blocks.confine(fs.volume.view, end)
        for number in range(100):
            fs.tree.write_bytes(f"/{number}/file", b"f")
            fs.tree.mkdir(f"/new {number}")
        with pytest.raises(FsError, match="no block is free"):
            fs.tree.write_bytes("/full", bytes(LARGE))
        assert list(shrinkage.used_past(fs.volume.view, end)) == before[0]
        assert list(shrinkage.inodes_past(fs.volume.view, end)) == before[1]
        assert fs.tree.stat("/full").size > 25 * MIB
        blocks.confine(fs.volume.view, 0)
        fs.tree.write_bytes("/full", bytes(60 * MIB))
        fs.check()
    fsck(path)


def test_metadata_of_a_group_that_stays(tmp_path: Path) -> None:
    """An end among the bitmaps and tables of flexible groups is refused by name, with a size that works."""
    path = made(tmp_path / "pool", "-G", "64", size="160M")
    with FileSystem.open(path) as fs:
        view = fs.volume.view
        ends = {end: shrinkage.displaced(view, end) for end in range(256 * 64 + 60, 256 * 67, 10)}
        end, group = next((end, group) for end, group in ends.items() if group is not None)
        with pytest.raises(FsError, match=f"group {group} stays and has .* from block {end} on") as caught:
            fs.resize(end)
        assert caught.value.errno == errno.EINVAL
        least = int(re.search(r"(\d+) blocks have room", str(caught.value))[1])  # type: ignore[index]
        assert end < least < end + 256
        assert shrinkage.displaced(view, least - 1) is not None or shrinkage.fitting(view.geometry, least - 1) < end
        assert fs.resize(least).blocks <= least
        fs.check()
    fsck(path)


def test_the_file_is_cut_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are served meanwhile, as the file system has its new size; an interruption comes too late."""
    monkeypatch.setattr(shrinking, "CUT_BYTES", 3 * MIB)
    path = grown(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        steps, lengths = fs.steps.resize(40 * MIB // 4096), list[int]()
        next(steps)
        while True:
            if fs.size == 40 * MIB // 4096:
                assert fs.left_to_move == 0
                assert refused(fs, 30 * MIB // 4096) == "EBUSY"
                lengths.append(path.stat().st_size)
                fs.tree.write_bytes(f"/{len(lengths)}", bytes(MIB))
            try:
                if len(lengths) == 2:
                    steps.throw(interruption())
                else:
                    next(steps)
            except StopIteration as end:
                assert end.value.blocks == 40 * MIB // 4096
                break
        assert lengths == list(range(LARGE - 3 * MIB, 40 * MIB, -3 * MIB))
        fs.check()
    assert path.stat().st_size == 40 * MIB
    fsck(path)


def test_inode_tables_lie_elsewhere_afterwards(tmp_path: Path) -> None:
    """Groups that come again have theirs beside other metadata than before: what was known of places is forgotten."""
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path) as fs:
        for number in range(300):
            fs.tree.mkdir(f"/{number}")
        view = fs.volume.view
        ino = 62 * view.geometry.inodes_per_group + 1
        before = inodes.position(view, ino)
        for number in range(300):
            fs.tree.rmdir(f"/{number}")
        fs.resize(60 * 256)
        fs.resize(80 * 256)
        assert inodes.position(view, ino) != before
        for number in range(300):
            fs.tree.mkdir(f"/{number}")
        fs.check()
    fsck(path)


def test_a_size_between_two_groups(tmp_path: Path) -> None:
    """A last group that would have hardly more than its metadata is left out, as resize2fs does."""
    path = grown(tmp_path / "pool")
    with FileSystem.open(path) as fs:
        assert fs.resize(256 * 40 + 20).blocks == 256 * 40
        assert fs.resize(256 * 30 + 100).blocks == 256 * 30 + 100
    fsck(path)
    assert counts(path)["Block count"] == 256 * 30 + 100


def test_a_damaged_resize_inode(tmp_path: Path) -> None:
    """A handle that fails is undone, and so is what follows the superblock in DRAM."""
    path = grown(tmp_path / "pool")
    run("debugfs", "-w", "-R", "set_inode_field <7> block[DIND] 8", path)
    with FileSystem.open(path) as fs:
        before = fs.statfs()
        with pytest.raises(FsError, match="resize inode"):
            fs.resize(SMALL // 4096)
        assert fs.statfs() == before
        assert fs.size == LARGE // 4096
        fs.tree.write_bytes("/more", b"m" * (60 * MIB))
        fs.check()


def test_steps_are_those_of_one_piece(tmp_path: Path) -> None:
    """Others are answered while files move."""
    with used(tmp_path / "pool") as fs:
        steps = fs.steps.resize(40 * MIB // 4096)
        assert sum(1 for _ in iter(lambda: next(steps, 1), 1)) > 15
        assert finish(fs.steps.resize(fs.size)).blocks == 40 * MIB // 4096


def expect_counters_of_files(fs: FileSystem) -> None:
    """The counters show where files are, as the bitmaps do."""
    geometry, view = fs.volume.geometry, fs.volume.view
    expected = [
        sum(run.length for run in shrinkage.used_past(view, geometry.first_block(group), group + 1))
        for group in range(geometry.groups_count)
    ]
    assert shrinkage.used_by_files(view).tolist() == expected
    assert sum(expected) > 100


def test_counters_show_where_files_are(any_format: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever holds the groups' own metadata; and after growth and shrinking too."""
    path = grown(tmp_path / "pool", *any_format)
    with FileSystem.open(path) as fs:
        for size in (0, 70 * MIB, 44 * MIB + 64 * KIB, 90 * MIB):
            if size:
                fs.resize(size // fs.volume.block_size)
            for number in range(30):
                fs.tree.write_bytes(f"/{number}", bytes(number * 40_000))
                fs.tree.symlink("t" * 500, f"/link {size} {number}")
            fs.sync()
            expect_counters_of_files(fs)
    fsck(path)


@pytest.mark.parametrize("options", [(), ("-G", "64"), ("-O", "^flex_bg"), ("-O", "sparse_super2,^resize_inode")])
def test_tables_that_reach_into_the_next_group(options: tuple[str, ...], tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", "-b", "4096", "-g", "256", "-i", "3000", "-J", "size=4", *options, size="80M")
    with FileSystem.open(path) as fs:
        fs.resize(256 * 150)
        fs.tree.write_bytes("/file", bytes(10 * MIB))
        fs.sync()
        expect_counters_of_files(fs)
    fsck(path)


@pytest.mark.interpreted
def test_no_step_looks_at_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large file system that is nearly empty; the progress bar's question looks at no bitmap."""
    path = made(tmp_path / "pool", "-E", "resize=2000000")
    with FileSystem.open(path) as fs:
        fs.resize(256 * 1000)
        fs.tree.write_bytes("/f", bytes(8 * MIB))
        looked = [0]
        checked = groupmaps.stored

        def stored(view: View, group: int, desc: GroupDescriptor) -> memoryview:
            looked[-1] += 1
            return checked(view, group, desc)

        monkeypatch.setattr(groupmaps, "stored", stored)
        for _ in fs.steps.resize(256 * 200):
            before = looked[-1]
            assert fs.left_to_move >= 0
            assert looked[-1] == before
            looked.append(0)
        assert sum(looked)
        assert max(looked) < 100
        looked.append(0)
        for _ in fs.steps.evacuate(ByteRange(4096, fs.size << 12)):
            looked.append(0)
        assert max(looked) < 100
        monkeypatch.undo()
        fs.check()
    fsck(path)


def test_a_descriptor_that_names_a_place_outside(tmp_path: Path) -> None:
    """It is damage, and not counted anywhere."""
    path = grown(tmp_path / "pool", "-O", "^metadata_csum,^64bit,^uninit_bg")
    content = bytearray(path.read_bytes())
    table = slice(4096 + 32 * 70 + 8, 4096 + 32 * 70 + 12)
    content[table] = b"\xf0\xff\xff\xff"
    write_image(path, content)
    with FileSystem.open(path) as fs:
        assert fs.minimum_size() < fs.size
        assert refused(fs, 40 * MIB // 4096) == "EUCLEAN"
        assert fs.size == LARGE // 4096

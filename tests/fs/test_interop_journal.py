"""Journals that the kernel or daxfs left: the kernel, e2fsck and daxfs replay them to equal trees."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import LOG_FLUSH, NO_LOG_FLUSH, copy, kernel_mount, needs_recovery, shut_down, sync
from recorder import RecordingPool
from tree_rig import QUIET, KernelSide, PoolSide, Tree, kernel_tree, mingle, plant, pool_tree, portable, same, timeless

from daxfs.fs import truncating
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import SetAttributes
from daxfs.pmem.memory import MemoryPool
from support import fsck, tool, write_image

MakePool = Callable[..., Path]

journalled_formats = pytest.mark.parametrize(
    "any_format", ["default", "block1k", "no-csum", "no-64bit", "orphan-file"], indirect=True
)


class Crash(BaseException):
    """Stands for the power cut in the middle of an operation."""


HARMLESS = (
    "count wrong",  # in the superblock, which the kernel writes when it unmounts
    "orphan_present is set but orphan file is clean",
    r"Orphan file .* is not clean",  # after its orphans were cleared
)


def e2fsck_replays(pool: Path) -> None:
    """Check that ``e2fsck -fy`` finds nothing to repair but journal and orphans."""
    command = [tool("e2fsck"), "-fy", "-E", "no_optimize_extents", pool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    complaints = re.findall(r"(.*)(?:\n|  )[A-Z][a-z]+\? yes", done.stdout)
    assert not [line for line in complaints if not any(re.search(known, line) for known in HARMLESS)], done.stdout
    assert done.stdout.count("? yes") == len(complaints)


def kernel_replays(pool: Path) -> None:
    with kernel_mount(pool):
        pass


def daxfs_replays(pool: Path) -> None:
    FileSystem.open(pool).close()


REPLAYS: dict[str, Callable[[Path], None]] = {
    "kernel": kernel_replays,
    "e2fsck": e2fsck_replays,
    "daxfs": daxfs_replays,
}


def free_counts(pool: Path) -> list[str]:
    """Return the numbers of free blocks and inodes, in all and by group."""
    told = subprocess.run([tool("dumpe2fs"), pool], capture_output=True, text=True, timeout=30, check=True).stdout
    return re.findall(r"^Free (?:blocks|inodes): +\d+|\d+ free blocks, \d+ free inodes", told, re.M)


def without_changes(tree: Tree) -> Tree:
    """Return a tree without what may differ after a truncate was finished."""
    return {path: facts._replace(mtime_ns=0, ctime_ns=0, blocks=0) for path, facts in tree.items()}


def replayed(dirty: Path, *, truncates: bool = False) -> Tree:
    """Replay copies of a dirty pool in all ways; check that trees and free counts are equal and e2fsck finds nothing.

    Each implementation finishes ``truncates`` differently: the kernel sets times, daxfs keeps fewer blocks for the map.
    """
    assert needs_recovery(dirty)
    found: dict[str, tuple[Tree, list[str]]] = {}
    for name, replay in REPLAYS.items():
        pool = copy(dirty, name)
        replay(pool)
        assert not needs_recovery(pool), name
        fsck(pool)
        with kernel_mount(pool, "ro") as root:
            tree, counts = kernel_tree(root), free_counts(pool)
        found[name] = (without_changes(tree), []) if truncates else (tree, counts)
        pool.unlink()
    for name in ("e2fsck", "daxfs"):
        same(found[name][0], found["kernel"][0])
        assert found[name][1] == found["kernel"][1], f"free counts after {name}"
    return found["kernel"][0]


# The kernel's journals


@journalled_formats
@pytest.mark.parametrize("how", [LOG_FLUSH, NO_LOG_FLUSH], ids=["committed", "cut"])
def test_a_log_of_the_kernel(pool: MakePool, any_format: tuple[str, ...], how: int) -> None:
    path = pool("-b", "4096", *any_format, size="96M")
    with kernel_mount(path) as root:
        side = KernelSide(root)
        plant(side, 1024 if "1024" in any_format else 4096)
        sync(root)
        mingle(side, random.Random(1), {}, 150)
        with (root / "synced").open("wb") as file:
            file.write(b"synced" * 1000)
            os.fsync(file.fileno())
        mingle(side, random.Random(2), {}, 150)
        shut_down(root, how)
    tree = replayed(path)
    assert tree[b"synced"].size == 6000
    assert b"times/9" in tree


@journalled_formats
def test_orphans_of_the_kernel(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format)
    with kernel_mount(path) as root:
        opened = []
        for number in range(20):
            descriptor = os.open(root / str(number), os.O_RDWR | os.O_CREAT)
            for piece in range(number):
                os.pwrite(descriptor, b"x" * 1024, piece * 16384)
            if number % 3 == 0:
                os.setxattr(descriptor, "user.x", b"x" * 500)
            opened.append(descriptor)
        sync(root)
        for number in range(0, 20, 2):
            os.unlink(root / str(number))
        os.pwrite(opened[1], b"makes the journal commit", 0)
        os.fsync(opened[1])
        shut_down(root, NO_LOG_FLUSH)
        for descriptor in opened:
            os.close(descriptor)
    tree = replayed(path)
    assert set(tree) - {b"", b"lost+found"} == {b"%d" % number for number in range(1, 20, 2)}


def test_revokes_of_the_kernel(pool: MakePool) -> None:
    """Blocks of directories become a file's: the directories' old content in the log must not be replayed over it."""
    path = pool("-b", "1024", size="16M")
    with kernel_mount(path) as root:
        content = directories_become_data(KernelSide(root), lambda: sync(root))
        shut_down(root, NO_LOG_FLUSH)
    assert replayed(path)[b"data"].size == len(content)
    daxfs_replays(path)
    with FileSystem.open(path, QUIET) as fs:
        assert fs.tree.read_bytes("/data") == content


def directories_become_data(side: KernelSide | PoolSide, durable: Callable[[], None]) -> bytes:
    """Make directories, remove them, and fill the pool with a file, each step durable."""
    names = [b"d%d" % number for number in range(200)]
    side.mknod(b"target", 0o100644)
    for name in names:
        side.mkdir(name)
        for number in range(20):
            side.link(b"target", name + b"/" + b"n" * 60 + b"%d" % number)
    durable()
    for name in names:
        for number in range(20):
            side.unlink(name + b"/" + b"n" * 60 + b"%d" % number)
        side.rmdir(name)
    durable()
    content = bytearray()
    chance = random.Random(9)
    try:
        while True:
            piece = chance.randbytes(1024)
            side.write(b"data", len(content), piece)
            content += piece
    except OSError as error:
        assert error.errno == errno.ENOSPC
    assert len(content) > 5 << 20
    durable()
    return bytes(content)


# Journals of daxfs


@journalled_formats
def test_a_log_of_daxfs(pool: MakePool, any_format: tuple[str, ...]) -> None:
    """The pool is copied between two commits: what was synced is there, later changes are not required."""
    path = pool("-b", "4096", *any_format, size="96M")
    with FileSystem.open(path, QUIET) as fs:
        side = PoolSide(fs)
        plant(side, 1024 if "1024" in any_format else 4096)
        fs.sync()
        synced = pool_tree(fs)
        mingle(side, random.Random(1), {}, 150)
        first = replayed(copy(path, "unsynced"))
        fs.sync()
        second = replayed(copy(path, "synced"))
        assert set(synced) <= set(first)
        same(timeless(second), timeless(pool_tree(fs)))
    fsck(path)


@pytest.mark.parametrize("any_format", ["default", "block1k", "orphan-file"], indirect=True)
def test_power_cuts_within_commits_of_daxfs(pool: MakePool, any_format: tuple[str, ...], tmp_path: Path) -> None:
    """All three recover each image of a cut commit to the same tree."""
    recorder = RecordingPool(pool("-b", "4096", *any_format, size="16M").read_bytes())
    fs = FileSystem.open(recorder, QUIET)
    fs.sync()
    begin = len(recorder.events)
    side = PoolSide(fs)
    for turn in range(4):
        mingle(side, random.Random(turn), {}, 40 + turn)
        fs.sync()
    chance = random.Random(3)
    images = list(recorder.crash_images(chance, start=begin, prefixes=1, subsets=1))
    for number, cut in enumerate(chance.sample(images, 8)):
        path = tmp_path / f"cut{number}"
        write_image(path, cut.image)
        try:
            replayed(path)
        except AssertionError as error:
            raise AssertionError(f"cut at event {cut.position}, {cut.choice}") from error
        path.unlink()
    fs.close()


def test_replay_may_be_cut_and_repeated(pool: MakePool) -> None:
    """After a power cut while daxfs replays and cleans orphans, the next mount finds the same tree."""
    path = pool("-b", "1024", size="16M")
    with kernel_mount(path) as root:
        sync(root)
        mingle(KernelSide(root), random.Random(1), {}, 100)
        with (root / "gone").open("wb") as file:
            file.write(b"x" * 1_000_000)
            os.fsync(file.fileno())
            (root / "gone").unlink()
            shut_down(root, LOG_FLUSH)
    recorder = RecordingPool(path.read_bytes())
    with FileSystem.open(recorder, QUIET) as fs:
        expected = portable(pool_tree(fs))
    images = list(recorder.crash_images(random.Random(4), prefixes=1, subsets=3))
    assert len(images) > 10
    for cut in images[:: max(len(images) // 40, 1)]:
        with FileSystem.open(MemoryPool(cut.image), QUIET) as fs:
            same(portable(pool_tree(fs)), expected)


CHILD = """
import random, sys
sys.path[:0] = {path!r}
from tree_rig import QUIET, PoolSide, mingle, pool_tree
from daxfs.fs.filesystem import FileSystem
fs = FileSystem.open({pool!r})
for turn in range(1000):
    above = b"%d" % turn
    side = PoolSide(fs)
    side.mkdir(above)
    mingle(side, random.Random(turn), {{}}, 60)
    fs.sync()
    print(turn, flush=True)
"""


@pytest.mark.parametrize("turns", [1, 4, 9])
def test_a_killed_daxfs(pool: MakePool, turns: int) -> None:
    path = pool("-b", "4096")
    script = CHILD.format(path=[p for p in sys.path if p], pool=str(path))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        for turn in range(turns):
            assert child.stdout.readline() == f"{turn}\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
    tree = replayed(path)
    assert {b"%d" % turn for turn in range(turns)} <= set(tree)


def test_revokes_of_daxfs(pool: MakePool) -> None:
    path = pool("-b", "1024", size="16M")
    with FileSystem.open(path, QUIET) as fs:
        content = directories_become_data(PoolSide(fs), fs.sync)
        dirty = copy(path, "dirty")
    assert replayed(dirty)[b"data"].size == len(content)
    daxfs_replays(dirty)
    with kernel_mount(dirty, "ro") as root:
        assert (root / "data").read_bytes() == content


@journalled_formats
def test_orphans_of_daxfs(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format)
    with FileSystem.open(path, QUIET) as fs:
        opened = []
        for number in range(20):
            file, made = fs.create(ROOT_INO, b"%d" % number, 0o644)
            for piece in range(number * 5):
                fs.write(file, piece * 16384, b"x" * 1024)
            if number % 3 == 0:
                fs.setxattr(made.ino, b"user.x", b"x" * 500)
            opened.append(file)
        for number in range(0, 20, 2):
            fs.unlink(ROOT_INO, b"%d" % number)
        fs.pin(fs.mkdir(ROOT_INO, b"dir", 0o755))
        fs.rmdir(ROOT_INO, b"dir")
        fs.sync()
        dirty = copy(path, "dirty")
        for file in opened[10:]:
            fs.release(file)
        fs.sync()
        later = copy(path, "later")
    names = {b"%d" % number for number in range(1, 20, 2)}
    for left in (dirty, later):
        assert set(replayed(left)) - {b"", b"lost+found"} == names
    fsck(path)


@journalled_formats
@pytest.mark.interpreted
def test_a_cut_truncate_is_finished(
    pool: MakePool, any_format: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new size is durable and most blocks are still there: the orphan list names the file."""
    path = pool("-b", "4096", *any_format)
    with FileSystem.open(path, QUIET) as fs:
        file, made = fs.create(ROOT_INO, b"f", 0o644)
        for piece in range(300):
            fs.write(file, piece * 8192, b"%04d" % piece * 1024)

        def cut(*_: object) -> None:
            fs.sync()
            raise Crash

        monkeypatch.setattr(truncating, "cut_step", cut)
        with pytest.raises(Crash):
            fs.setattr(made.ino, SetAttributes(size=10_000))
        monkeypatch.undo()
        dirty = copy(path, "dirty")
        fs.abort(Crash())
    found = replayed(dirty, truncates=True)[b"f"]
    assert found.size == 10_000
    assert found.blocks <= 24

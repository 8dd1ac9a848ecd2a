"""Fast commits that the kernel left or that were made by hand: daxfs recovers what was durable, and all agree."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fast_commit_rig
import pytest
from fast_commit_rig import FastCommits
from kernel_rig import NO_LOG_FLUSH, copy, kernel_mount, shut_down, sync
from recorder import RecordingPool
from tree_rig import QUIET, Tree, kernel_tree, pool_tree, portable, same, timeless

from daxfs.errors import Corrupt
from daxfs.ext4.extent import Extent
from daxfs.ext4.geometry import Geometry
from daxfs.fs import fast_replay, mounting
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.journal import recovery
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from support import fsck, mke2fs, run, tool

MakePool = Callable[..., Path]
BLOCK = 4096

# What the kernel left


def write(path: Path, content: bytes, offset: int = 0) -> None:
    """Write to a file that may be new, and make it durable."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fallocate(path: Path, *options: str) -> None:
    run("fallocate", *options, path)
    write(path, b"durable")


def sound_changes(root: Path) -> None:
    """What the kernel replays to what it was."""
    for number in range(3):
        write(root / f"made{number}", b"m" * 5000)
    for number in range(8):
        write(root / "old", b"o" * BLOCK, number * 3 * BLOCK)
    os.link(root / "old", root / "linked")
    os.unlink(root / "gone")
    os.rename(root / "renamed", root / "d/moved")
    os.rename(root / "over", root / "target")
    os.chmod(root / "old", 0o4600)
    os.chown(root / "old", 5, 70_000)
    os.truncate(root / "cut", 20_000)
    write(root / "last", b"l")
    fallocate(root / "cut", "-o", "40960", "-l", "1M")
    write(root / "cut", b"f" * BLOCK, 81_920)
    fallocate(root / "cut", "-p", "-o", "4096", "-l", "8192")


def unsound_changes(root: Path) -> None:
    """What the kernel's own replay gets wrong: counts of links and blocks, and a nameless file that got a name."""
    os.mkdir(root / "d/new")
    write(root / "d/new/file", b"f" * 6000)
    os.mkdir(root / "d/new/below")
    os.rmdir(root / "empty")
    descriptor = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(descriptor, b"nameless" * 1000)
    run("sh", "-c", f"ln -L /proc/{os.getpid()}/fd/{descriptor} {root}/linked")
    os.fsync(descriptor)
    os.close(descriptor)


def open_and_nameless(root: Path) -> None:
    """With this record the kernel refuses to mount: the inode has no names."""
    descriptor = os.open(root / "old", os.O_RDWR)
    os.unlink(root / "old")
    os.write(descriptor, b"n" * 100)
    os.fsync(descriptor)
    os.close(descriptor)
    write(root / "last", b"l")


def number_used_again(root: Path) -> None:
    """A file is removed, and a new one gets its inode: e2fsck gives it the old one's blocks."""
    os.unlink(root / "old")
    write(root / "new", b"n" * 5000)
    write(root / "gone", b"g", 9000)


@pytest.mark.parametrize(
    "change", [sound_changes, unsound_changes, open_and_nameless, number_used_again], ids=lambda change: change.__name__
)
def test_what_the_kernel_left(pool: MakePool, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture) -> None:
    """After a power cut the tree is the one that the kernel showed."""
    caplog.set_level("INFO")
    path = pool("-b", "4096", "-O", "fast_commit")
    with kernel_mount(path, "commit=600") as root:
        for name in ("old", "gone", "renamed", "over", "target", "cut"):
            (root / name).write_bytes(name.encode() * 20_000)
        (root / "d").mkdir()
        (root / "empty").mkdir()
        sync(root)
        change(root)
        # Where the kernel could not express a change, it has made a full commit, and nothing waits. The next is fast.
        write(root / "second last", b"2")
        write(root / "very last", b"1")
        shown = timeless(kernel_tree(root))
        shut_down(root, NO_LOG_FLUSH)
    kernels = copy(path, "kernels")
    FileSystem.open(path, QUIET).close()
    assert "fast commits are replayed" in caplog.text
    fsck(path)
    with kernel_mount(path, "ro") as root:
        same(timeless(kernel_tree(root)), shown)
    if change is sound_changes:
        with kernel_mount(kernels) as root:
            same(timeless(kernel_tree(root)), shown)


class History:
    """Random changes of files and names by the kernel, many of them followed by an fsync."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.made = 0

    def all(self, *, directories: bool) -> list[Path]:
        found = [path for path in self.root.rglob("*") if path.name != "lost+found" and not path.is_symlink()]
        return sorted(path for path in found if path.is_dir() == directories)

    def new(self) -> Path:
        self.made += 1
        above = self.chance.choice([self.root, *self.all(directories=True)])
        return above / (f"{self.made}-" + "n" * self.chance.randrange(100))

    def step(self, *, fast: bool) -> None:
        """Change something; with ``fast`` what the kernel expresses in fast commits."""
        chance, files = self.chance, self.all(directories=False)
        what = chance.randrange(12)
        if what == 0:
            self.new().mkdir()
        elif what == 1:
            empty = [path for path in self.all(directories=True) if not any(path.iterdir())]
            if empty:
                chance.choice(empty).rmdir()
        elif what < 5 or not files:
            write(self.new(), chance.randbytes(chance.randrange(20_000)))
        elif what == 5:
            os.link(chance.choice(files), self.new())
        elif what == 6:
            chance.choice(files).unlink()
        elif what == 7:
            os.rename(chance.choice(files), self.new() if chance.random() < 0.7 else chance.choice(files))
        elif what == 8:
            os.truncate(chance.choice(files), chance.randrange(60_000))
        elif what == 9:
            start, length = chance.randrange(100_000), chance.randrange(1, 50_000)
            how = chance.choice(([], ["-p", "-n"], ["-n"]) if fast else (["-z"], ["-z", "-n"]))
            run("fallocate", *how, "-o", str(start), "-l", str(length), chance.choice(files))
        else:
            write(chance.choice(files), chance.randbytes(chance.randrange(1, 9000)), chance.randrange(150_000))

    def settle(self) -> None:
        """Make everything durable without a full commit, as far as the kernel can."""
        for path in self.all(directories=False):
            write(path, b"")


HISTORIES = ["default", "block1k", "inode128", "no-csum", "no-64bit", "orphan-file"]


def check_history(path: Path, seed: int, steps: int) -> int:
    """Cut the power after a history; return how many fast commits were recovered to what the kernel had shown."""
    with kernel_mount(path, "commit=600") as root:
        history = History(root, seed)
        for number in range(2 * steps):
            history.step(fast=number >= steps)
        history.settle()
        write(root / "last", b"l")
        write(root / "last", b"L")
        shown = timeless(kernel_tree(root))
        shut_down(root, NO_LOG_FLUSH)
    with open_pool(path) as pool:
        sb = mounting.read_superblock(pool)
        geometry = Geometry.of(sb)
        view = mounting.TornView(pool, geometry)
        report = recovery.replay(pool, geometry, mounting.log_area(view, sb))
        view.release()
    FileSystem.open(path, QUIET).close()
    fsck(path)
    with kernel_mount(path, "ro") as root:
        same(timeless(kernel_tree(root)), shown)
    return report.fast.count if report.fast else 0


@pytest.mark.parametrize("any_format", ["default", "block1k", "inode128"], indirect=True)
def test_a_random_history_of_the_kernel(pool: MakePool, any_format: tuple[str, ...]) -> None:
    options = any_format if "-b" in any_format else ("-b", "4096", *any_format)
    assert check_history(pool(*options, "-O", "fast_commit"), 1, 15)


@pytest.mark.full
@pytest.mark.parametrize("any_format", HISTORIES, indirect=True)
def test_random_histories_of_the_kernel(pool: MakePool, any_format: tuple[str, ...]) -> None:
    options = any_format if "-b" in any_format else ("-b", "4096", *any_format)
    found = [check_history(pool(*options, "-O", "fast_commit"), seed, 40) for seed in range(2, 12)]
    assert sum(found) > 30


# Areas made by hand


class Made(NamedTuple):
    """A clean pool to which fast commits are added, and what they need of it."""

    path: Path
    file: int
    other: int
    directory: int
    new: int
    free: int

    def slot(self, ino: int, **fields: int) -> bytes:
        """The record of an inode with other fields, of which the offset is given as ``at_XX``."""
        raw = bytearray(fast_commit_rig.slot_of(self.path, ino))
        for name, value in fields.items():
            at, size = AT[name]
            raw[at : at + size] = value.to_bytes(size, "little")
        return bytes(raw)


AT = {
    "mode": (0x00, 2),
    "uid": (0x02, 2),
    "size": (0x04, 4),
    "links": (0x1A, 2),
    "flags": (0x20, 4),
    "generation": (0x64, 4),
    "file_acl": (0x68, 4),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make the pool once: a file of four blocks, another one, a directory with a name."""
    path = mke2fs(tmp_path_factory.mktemp("fast") / "pool", "-b", "4096", "-O", "fast_commit", size="16M")
    with FileSystem.open(path, QUIET) as fs:
        fs.tree.write_bytes("/file", b"f" * 4 * BLOCK)
        fs.tree.write_bytes("/other", b"o" * 100)
        fs.tree.mkdir("/directory")
        fs.tree.write_bytes("/directory/inside", b"i")
        numbers = [fs.tree.resolve(name) for name in ("/file", "/other", "/directory")]
        new = fs.tree.resolve("/directory/inside") + 1
    return Made(path, *numbers, new, fast_commit_rig.extents_of(path, numbers[0])[0].pblk + 1000)


@pytest.fixture
def made(base: Made, tmp_path: Path) -> Made:
    """Return a copy of the pool for one test."""
    path = tmp_path / "pool"
    path.write_bytes(base.path.read_bytes())
    return base._replace(path=path)


def record_append(made: Made, log: FastCommits) -> None:
    log.add_range(made.file, 4, made.free, 3).inode(made.file, made.slot(made.file, size=7 * BLOCK - 5))


def record_unwritten(made: Made, log: FastCommits) -> None:
    log.add_range(made.file, 9, made.free, 2, unwritten=True).inode(made.file, made.slot(made.file, size=12 * BLOCK))


def record_other_blocks(made: Made, log: FastCommits) -> None:
    log.add_range(made.file, 1, made.free, 2)


def record_cut(made: Made, log: FastCommits) -> None:
    log.del_range(made.file, 2, 2).inode(made.file, made.slot(made.file, size=2 * BLOCK))


def record_hole(made: Made, log: FastCommits) -> None:
    log.del_range(made.file, 1, 2).inode(made.file, made.slot(made.file))


def record_create(made: Made, log: FastCommits) -> None:
    raw = made.slot(made.file, size=5000, generation=7)
    log.inode(made.new, raw).add_range(made.new, 0, made.free, 2).creat(made.directory, made.new, b"new")
    log.inode(made.new, raw)


def record_link(made: Made, log: FastCommits) -> None:
    log.link(ROOT_INO, made.file, b"second").inode(made.file, made.slot(made.file, links=2))


def record_unlink(made: Made, log: FastCommits) -> None:
    log.link(ROOT_INO, made.file, b"second").inode(made.file, made.slot(made.file, links=2)).tail()
    log.unlink(ROOT_INO, made.file, b"file").inode(made.file, made.slot(made.file))


def record_rename(made: Made, log: FastCommits) -> None:
    log.link(ROOT_INO, made.file, b"renamed").unlink(ROOT_INO, made.file, b"file")
    log.inode(made.file, made.slot(made.file))


def record_inode(made: Made, log: FastCommits) -> None:
    log.inode(made.other, made.slot(made.other, mode=stat.S_IFREG | 0o2751, uid=77))


def record_pads(made: Made, log: FastCommits) -> None:
    for number in range(60):
        log.inode(made.other, made.slot(made.other, uid=number))
    assert len(log.content) > 2 * BLOCK


KINDS = {name.removeprefix("record_"): kind for name, kind in sorted(globals().items()) if name.startswith("record_")}


@pytest.mark.parametrize("kind", KINDS)
def test_all_agree(made: Made, kind: str) -> None:
    """Replayed by daxfs, the kernel and e2fsck, a kind of record gives the same tree, which is another than before."""
    with kernel_mount(made.path, "ro") as root:
        before = timeless(kernel_tree(root))
    log = FastCommits(BLOCK)
    KINDS[kind](made, log)
    fast_commit_rig.store(made.path, log.tail().content)
    trees: dict[str, Tree] = {}
    for who in ("daxfs", "kernel", "e2fsck"):
        path = copy(made.path, who)
        if who == "daxfs":
            FileSystem.open(path, QUIET).close()
        elif who == "kernel":
            with kernel_mount(path):
                pass
        else:
            subprocess.run([tool("e2fsck"), "-fy", path], capture_output=True, timeout=60, check=False)
        fsck(path)
        with kernel_mount(path, "ro") as root:
            trees[who] = timeless(kernel_tree(root))
        path.unlink()
    same(trees["daxfs"], trees["kernel"])
    same(trees["daxfs"], trees["e2fsck"])
    assert trees["daxfs"] != before


# Torn, and contradicting


def recovered(image: bytes) -> Tree:
    """Return the tree after recovery from an image."""
    with FileSystem.open(MemoryPool(image), QUIET) as fs:
        return portable(pool_tree(fs))


def two_commits(made: Made) -> tuple[FastCommits, list[Tree]]:
    """Return an area with two fast commits, and the trees after the first one and after both."""
    log = FastCommits(BLOCK)
    record_rename(made, log)
    log.tail()
    record_create(made, log)
    log.tail()
    trees = []
    for end in log.ends:
        path = copy(made.path, "whole")
        fast_commit_rig.store(path, bytes(log.content[:end]))
        trees.append(recovered(path.read_bytes()))
    assert trees[0] != trees[1]
    return log, trees


def test_a_torn_commit_ends_the_replay(made: Made) -> None:
    """Whatever is stored of the last commit, in order or not, the one before it is there, and nothing of the last."""
    log, (first, both) = two_commits(made)
    begin = log.ends[0]
    used = begin + len(bytes(log.content[begin:]).rstrip(b"\0"))
    chance = random.Random(1)
    for at in chance.sample(range(begin, used), 6):
        torn = bytearray(log.content)
        torn[at:] = bytes(len(torn) - at)
        path = copy(made.path, "torn")
        fast_commit_rig.store(path, bytes(torn))
        same(recovered(path.read_bytes()), first if torn != log.content else both)


CONTRADICTIONS: dict[str, Callable[[Made, FastCommits], object]] = {
    "inode 8 is reserved": lambda made, log: log.inode(8, made.slot(made.file)),
    "inode 1 is reserved": lambda _made, log: log.link(ROOT_INO, 1, b"x"),
    "is not in use": lambda made, log: log.link(ROOT_INO, made.new, b"x"),
    "is no directory": lambda made, log: log.link(made.file, made.other, b"x"),
    "b'other' in 2 is inode": lambda made, log: log.link(ROOT_INO, made.file, b"other"),
    "is no file with a map": lambda made, log: log.add_range(made.directory, 1, made.free, 1),
    "has another type": lambda made, log: log.inode(made.file, made.slot(made.file, mode=stat.S_IFIFO | 0o600)),
    "has other attributes": lambda made, log: log.inode(made.file, made.slot(made.file, file_acl=made.free)),
    "another kind of map": lambda made, log: log.inode(made.file, made.slot(made.file, flags=0)),
    "has a block of attributes": lambda made, log: log.inode(
        made.new, made.slot(made.file, file_acl=made.free, generation=9)
    ),
    "are in use already": lambda made, log: log.add_range(
        made.file, 9, fast_commit_rig.extents_of(made.path, made.other)[0].pblk, 1
    ),
    "are not in the file system": lambda made, log: log.add_range(made.file, 9, 1 << 40, 1),
    "is another one, but has names": lambda made, log: log.inode(made.file, made.slot(made.file, generation=9)),
    "gets a second name": lambda made, log: log.link(ROOT_INO, made.directory, b"second"),
    "gets the name b'..'": lambda made, log: log.link(ROOT_INO, made.file, b".."),
    "gets the name b'a/b'": lambda made, log: log.link(ROOT_INO, made.file, b"a/b"),
    "is removed and has names": lambda made, log: log.unlink(ROOT_INO, made.directory, b"directory"),
    "is past the last block that a file can have": lambda made, log: log.add_range(made.file, 0xFFFFFFFE, made.free, 5),
    "an extent without blocks": lambda made, log: log.add_range(made.file, 9, made.free, 0),
    "a range without blocks": lambda made, log: log.del_range(made.file, 9, 0),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_what_contradicts_the_pool_is_refused(made: Made, message: str) -> None:
    """The pool is not mounted, and stays as it is for others."""
    log = FastCommits(BLOCK)
    CONTRADICTIONS[message](made, log)
    fast_commit_rig.store(made.path, log.tail().content)
    before = made.path.read_bytes()
    with pytest.raises(Corrupt, match=message):
        FileSystem.open(made.path, QUIET)
    assert made.path.read_bytes() == before


def test_links_of_a_directory_follow_from_the_names(made: Made) -> None:
    """What its record says of them is not believed: in the kernel's replay, too, they may differ from the names."""
    log = FastCommits(BLOCK).inode(made.directory, made.slot(made.directory, links=7, uid=77))
    fast_commit_rig.store(made.path, log.tail().content)
    with FileSystem.open(made.path, QUIET) as fs:
        found = fs.getattr(made.directory)
        assert (found.nlink, found.uid) == (2, 77)
    fsck(made.path)


def test_blocks_of_other_files_may_come_with_their_end(made: Made) -> None:
    """What one file has given up may be another's, whichever is logged first."""
    given = fast_commit_rig.extents_of(made.path, made.file)[0].pblk + 2
    for first in (True, False):
        log = FastCommits(BLOCK)
        if first:
            log.add_range(made.other, 1, given, 2)
        log.del_range(made.file, 2, 2).inode(made.file, made.slot(made.file, size=2 * BLOCK))
        if not first:
            log.add_range(made.other, 1, given, 2)
        log.inode(made.other, made.slot(made.other, size=3 * BLOCK))
        path = copy(made.path, f"moved{first}")
        fast_commit_rig.store(path, log.tail().content)
        with FileSystem.open(path, QUIET) as fs:
            assert fs.tree.read_bytes("/other") == b"o" * 100 + bytes(BLOCK - 100) + b"f" * 2 * BLOCK
            assert fs.tree.read_bytes("/file") == b"f" * 2 * BLOCK
        fsck(path)


def test_a_range_that_nobody_keeps_is_free_again(made: Made) -> None:
    log = FastCommits(BLOCK)
    log.add_range(made.file, 9, made.free, 5).del_range(made.file, 9, 3).add_range(made.file, 9, made.free + 50, 1)
    log.inode(made.file, made.slot(made.file, size=14 * BLOCK))
    log.inode(made.new, made.slot(made.file, generation=9))  # gets no name
    fast_commit_rig.store(made.path, log.tail().content)
    FileSystem.open(made.path, QUIET).close()
    fsck(made.path)
    start = fast_commit_rig.extents_of(made.path, made.file)[0].pblk
    assert fast_commit_rig.extents_of(made.path, made.file) == [
        Extent(0, start, 4, False),
        Extent(9, made.free + 50, 1, False),
        Extent(12, made.free + 3, 2, False),
    ]


def test_symbolic_links_and_devices(made: Made) -> None:
    """The record has what lies in the inode in the place of a map."""
    link = bytearray(made.slot(made.file, mode=stat.S_IFLNK | 0o777, size=6, flags=0, generation=5))
    link[0x28:0x64] = b"target".ljust(60, b"\0")
    device = bytearray(made.slot(made.file, mode=stat.S_IFCHR | 0o600, size=0, flags=0, generation=6))
    device[0x28:0x64] = (os.makedev(1, 3)).to_bytes(4, "little").ljust(60, b"\0")
    log = FastCommits(BLOCK)
    log.inode(made.new, bytes(link)).creat(ROOT_INO, made.new, b"link")
    log.inode(made.new + 1, bytes(device)).creat(ROOT_INO, made.new + 1, b"device")
    fast_commit_rig.store(made.path, log.tail().content)
    FileSystem.open(made.path, QUIET).close()
    fsck(made.path)
    with kernel_mount(made.path, "ro") as root:
        assert os.readlink(root / "link") == "target"
        assert os.lstat(root / "device").st_rdev == os.makedev(1, 3)


def test_the_recovery_may_be_cut_and_repeated(made: Made) -> None:
    """At each store the pool has the fast commits or the transaction that took their place."""
    log, (_, both) = two_commits(made)
    fast_commit_rig.store(made.path, log.content)
    recorder = RecordingPool(made.path.read_bytes())
    FileSystem.open(recorder, QUIET).close()
    chance = random.Random(4)
    images = list(recorder.crash_images(chance, prefixes=8, subsets=8))
    for cut in chance.sample(images, 12):
        same(recovered(cut.image), both)


def test_the_transaction_has_no_fast_commits_behind_it(made: Made) -> None:
    """e2fsck does not replay a log that is followed by those of an earlier transaction."""
    log, (_, both) = two_commits(made)
    fast_commit_rig.store(made.path, log.content)
    with open_pool(made.path) as pool:
        sb = mounting.read_superblock(pool)
        geometry = Geometry.of(sb)
        view = mounting.TornView(pool, geometry)
        area = mounting.log_area(view, sb)
        report = recovery.replay(pool, geometry, area)
        assert report.fast is not None
        fast_replay.store(pool, geometry, area, report.fast)
        view.release()
    done = subprocess.run([tool("e2fsck"), "-fy", made.path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1)
    assert "while recovering journal" not in done.stderr
    same(recovered(made.path.read_bytes()), both)


def test_a_log_without_room(made: Made) -> None:
    """The transaction needs more than is left of the log: nothing is changed, and e2fsck is named."""
    log = FastCommits(BLOCK)
    record_create(made, log)
    fast_commit_rig.store(made.path, log.tail().content)
    fast_commit_rig.shorten(made.path, 6)
    before = made.path.read_bytes()
    with pytest.raises(OSError, match="no room for what its fast commits say; run: daxfs check -y") as error:
        FileSystem.open(made.path, QUIET)
    assert error.value.errno == errno.ENOSPC
    assert made.path.read_bytes() == before

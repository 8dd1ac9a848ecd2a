"""Attributes: times, owners, modes, xattrs and ACLs; where POSIX leaves a choice, the kernel's ext4 decides."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from explorer.disk import Disk
from failing.seams import FailingPool, Trigger
from kernel_rig import kernel_mount
from tree_rig import (
    NAMED_ACL,
    PLAIN_ACL,
    QUIET,
    SECOND,
    TIMES,
    KernelSide,
    PoolSide,
    kernel_tree,
    pool_tree,
    portable,
    same,
    timeless,
    wire,
)

from daxfs.errors import FsError, MissingMemory
from daxfs.fs import clock
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, SetAttributes
from support import fsck

OpenFs = Callable[..., FileSystem]
MakePool = Callable[..., Path]

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
USER = Caller(uid=1000, gid=1000)


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


@pytest.fixture
def ino(fs: FileSystem) -> int:
    """Return the number of a regular file."""
    return fs.mknod(ROOT_INO, b"f", 0o644).ino


# Times


def test_times_are_kept_to_the_nanosecond(open_fs: OpenFs) -> None:
    fs = open_fs("-b", "4096")
    ino = fs.mknod(ROOT_INO, b"f", 0o644).ino
    for atime, mtime in itertools.product(TIMES, TIMES):
        found = fs.setattr(ino, SetAttributes(atime_ns=atime, mtime_ns=mtime))
        assert (found.atime_ns, found.mtime_ns) == (atime, mtime)
    fs.sync()
    assert fs.getattr(ino).atime_ns == TIMES[-1]


@pytest.mark.crash
def test_one_time_alone_leaves_the_other(fs: FileSystem, ino: int) -> None:
    fs.setattr(ino, SetAttributes(atime_ns=1, mtime_ns=2))
    fs.setattr(ino, SetAttributes(atime_ns=3))
    fs.setattr(ino, SetAttributes(mtime_ns=4, ctime_ns=5))
    assert fs.getattr(ino)[8:11] == (3, 4, 5)


@pytest.mark.crash
def test_every_change_moves_ctime(fs: FileSystem, ino: int) -> None:
    born = fs.getattr(ino).crtime_ns
    changes: list[Callable[[], object]] = [
        lambda: fs.setattr(ino, SetAttributes(mode=0o600)),
        lambda: fs.setattr(ino, SetAttributes(uid=1)),
        lambda: fs.setattr(ino, SetAttributes(size=100)),
        lambda: fs.setattr(ino, SetAttributes(atime_ns=0)),
        lambda: fs.setxattr(ino, b"user.x", b""),
        lambda: fs.removexattr(ino, b"user.x"),
        lambda: fs.setxattr(ino, ACCESS, wire(NAMED_ACL)),
        lambda: fs.link(ino, ROOT_INO, b"more"),
        lambda: fs.rename(ROOT_INO, b"more", ROOT_INO, b"less"),
        lambda: fs.unlink(ROOT_INO, b"less"),
    ]
    for change in changes:
        before = clock.now()
        change()
        assert before <= fs.getattr(ino).ctime_ns <= clock.now()
    assert fs.getattr(ino).crtime_ns == born


@pytest.mark.parametrize("any_format", ["default", "inode128"], indirect=True)
def test_times_out_of_range_end_where_the_kernels_do(pool: MakePool, any_format: tuple[str, ...]) -> None:
    extremes = [*TIMES, *(sign * (SECOND << shift) + 7 for sign in (1, -1) for shift in (31, 32, 33, 34, 35, 40))]
    ours, theirs = pool("-b", "4096", *any_format), pool("-b", "4096", *any_format)

    def apply(side: KernelSide | PoolSide) -> None:
        for number, moment in enumerate(extremes):
            side.write(b"%02d" % number, 0, b"")
            side.utime(b"%02d" % number, moment, -moment)
        side.utime(b"", 0, 0)

    with FileSystem.open(ours, QUIET) as fs:
        apply(PoolSide(fs))
    with kernel_mount(theirs) as root:
        apply(KernelSide(root))
    with kernel_mount(theirs, "ro") as root:
        same(portable(pool_tree(ours)), portable(kernel_tree(root)))
    fsck(ours)


# Owners and modes


@pytest.mark.crash
def test_a_new_owner_takes_no_set_id_bits(fs: FileSystem, ino: int) -> None:
    for changes in (SetAttributes(uid=5), SetAttributes(gid=6), SetAttributes(uid=7, gid=8)):
        fs.setattr(ino, SetAttributes(mode=0o6755))
        found = fs.setattr(ino, changes, USER)
        assert found.mode & 0o7777 == 0o755
    assert (found.uid, found.gid) == (7, 8)
    directory = fs.mkdir(ROOT_INO, b"d", 0o2755).ino
    assert fs.setattr(directory, SetAttributes(gid=6)).mode & 0o7777 == 0o2755


@pytest.mark.crash
def test_set_gid_that_means_locking_stays_with_a_new_owner(fs: FileSystem, ino: int) -> None:
    fs.setattr(ino, SetAttributes(mode=0o2644))
    assert fs.setattr(ino, SetAttributes(uid=5)).mode & 0o7777 == 0o2644


@pytest.mark.crash
def test_large_owners(fs: FileSystem, ino: int) -> None:
    found = fs.setattr(ino, SetAttributes(uid=0xFFFFFFFE, gid=65536))
    assert (found.uid, found.gid) == (0xFFFFFFFE, 65536)


@pytest.mark.crash
def test_the_type_can_not_be_changed(fs: FileSystem, ino: int) -> None:
    fs.setattr(ino, SetAttributes(mode=stat.S_IFDIR | 0o777))
    assert fs.getattr(ino).mode == stat.S_IFREG | 0o777


@pytest.mark.crash
def test_everything_at_once(fs: FileSystem, ino: int) -> None:
    found = fs.setattr(ino, SetAttributes(0o4711, 1, 2, 3000, 4, 5, 6))
    assert found.mode == stat.S_IFREG | 0o4711
    assert (found.uid, found.gid, found.size) == (1, 2, 3000)
    assert found[8:11] == (4, 5, 6)


# Extended attributes


@pytest.mark.crash
def test_create_and_replace(fs: FileSystem, ino: int) -> None:
    with refused(errno.ENODATA):
        fs.setxattr(ino, b"user.x", b"1", REPLACE)
    fs.setxattr(ino, b"user.x", b"1", CREATE)
    with refused(errno.EEXIST):
        fs.setxattr(ino, b"user.x", b"2", CREATE)
    assert fs.getxattr(ino, b"user.x") == b"1"
    fs.setxattr(ino, b"user.x", b"3", REPLACE)
    fs.setxattr(ino, b"user.x", b"4")
    assert fs.getxattr(ino, b"user.x") == b"4"
    fs.removexattr(ino, b"user.x")
    for missing in (fs.removexattr, fs.getxattr):
        with refused(errno.ENODATA):
            missing(ino, b"user.x")


@pytest.mark.crash
def test_names_that_are_refused(fs: FileSystem, ino: int) -> None:
    for name, number in (
        (b"other.x", errno.EOPNOTSUPP),
        (b"noprefix", errno.EOPNOTSUPP),
        (b"user.", errno.EINVAL),
        (b"user." + b"n" * 251, errno.ERANGE),
    ):
        with refused(number):
            fs.setxattr(ino, name, b"")
    longest = b"user." + b"n" * 250
    fs.setxattr(ino, longest, b"long")
    assert fs.listxattr(ino) == [longest]


@pytest.mark.crash
def test_user_attributes_stand_on_files_and_directories_alone(fs: FileSystem) -> None:
    made = [
        fs.symlink(ROOT_INO, b"link", b"target").ino,
        fs.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o666).ino,
        fs.mknod(ROOT_INO, b"socket", stat.S_IFSOCK | 0o666).ino,
        fs.mknod(ROOT_INO, b"char", stat.S_IFCHR | 0o666, os.makedev(1, 3)).ino,
        fs.mknod(ROOT_INO, b"block", stat.S_IFBLK | 0o666, os.makedev(8, 1)).ino,
    ]
    for ino in made:
        with refused(errno.EPERM):
            fs.setxattr(ino, b"user.x", b"1")
        with refused(errno.ENODATA):
            fs.getxattr(ino, b"user.x")
        for name in (b"trusted.x", b"security.x"):
            fs.setxattr(ino, name, b"1")
            assert fs.getxattr(ino, name) == b"1"
    directory = fs.mkdir(ROOT_INO, b"d", 0o755).ino
    fs.setxattr(directory, b"user.x", b"1")
    assert fs.listxattr(directory) == [b"user.x"]


@pytest.mark.parametrize("any_format", ["default", "block1k", "inode128", "no-csum"], indirect=True)
def test_sizes_up_to_the_last_byte(open_fs: OpenFs, any_format: tuple[str, ...]) -> None:
    fs = open_fs("-b", "4096", *any_format)
    ino = fs.mknod(ROOT_INO, b"f", 0o644).ino
    fs.setxattr(ino, b"user.stays", b"s" * 30)
    largest = 0
    for size in range(fs.volume.block_size + 300):
        value = bytes([size & 0xFF]) * size
        try:
            fs.setxattr(ino, b"user.x", value)
        except FsError as error:
            assert error.errno == errno.ENOSPC
            break
        largest = size
        assert fs.getxattr(ino, b"user.x") == value
    assert fs.volume.block_size - 150 < largest < fs.volume.block_size
    assert len(fs.getxattr(ino, b"user.x")) == largest, "a refused change changed something"
    assert fs.getxattr(ino, b"user.stays") == b"s" * 30
    with refused(errno.E2BIG):
        fs.setxattr(ino, b"user.x", b"x" * 65537)
    with refused(errno.ENOSPC):
        fs.setxattr(ino, b"user.x", b"x" * 65536)
    fs.setxattr(ino, b"user.x", b"small again")
    free = fs.statfs().free
    fs.removexattr(ino, b"user.x")
    assert sorted(fs.listxattr(ino)) == [b"user.stays"]
    assert fs.statfs().free >= free


@pytest.mark.parametrize("any_format", ["default", "block1k", "inode128"], indirect=True)
def test_random_changes_equal_a_dict_and_the_kernels(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool("-b", "4096", *any_format)
    chance = random.Random(11)
    model: dict[int, dict[bytes, bytes]] = {}
    keys = [family + b"n" * length for family in (b"user.", b"trusted.", b"security.") for length in (1, 7, 30)]
    with FileSystem.open(path, QUIET) as fs:
        inodes = [fs.mknod(ROOT_INO, b"%d" % number, 0o644).ino for number in range(6)]
        for turn in range(600):
            ino, name = chance.choice(inodes), chance.choice(keys)
            held = model.setdefault(ino, {})
            value = bytes([chance.choice((1, 2))]) * chance.choice((0, 1, 20, 60, 90, 250, 500))
            if chance.random() < 0.25:
                if name in held:
                    fs.removexattr(ino, name)
                    del held[name]
                else:
                    with refused(errno.ENODATA):
                        fs.removexattr(ino, name)
            else:
                try:
                    fs.setxattr(ino, name, value)
                    held[name] = value
                except FsError as error:
                    assert error.errno == errno.ENOSPC
                    assert sum(map(len, held.values())) + len(value) > 450
            assert {key: fs.getxattr(ino, key) for key in fs.listxattr(ino)} == held
            if turn % 100 == 0:
                fs.sync()
    fsck(path)
    with kernel_mount(path, "ro") as root:
        for number, ino in enumerate(inodes):
            there = root / str(number)
            found = {os.fsencode(key): os.getxattr(there, key) for key in os.listxattr(there)}
            assert found == model.get(ino, {})


def test_attributes_go_with_their_inode(open_fs: OpenFs) -> None:
    fs = open_fs("-b", "4096")
    before = fs.statfs()
    for number in range(20):
        ino = fs.mknod(ROOT_INO, b"%d" % number, 0o644).ino
        fs.setxattr(ino, b"user.big", b"%d" % (number // 2) * 1000)
    for number in range(20):
        fs.unlink(ROOT_INO, b"%d" % number)
    fs.sync()
    after = fs.statfs()
    assert (after.free, after.files_free) == (before.free, before.files_free)


# ACLs


@pytest.mark.crash
def test_an_acl_and_the_mode_say_the_same(fs: FileSystem, ino: int) -> None:
    fs.setxattr(ino, ACCESS, wire(NAMED_ACL))
    assert fs.getattr(ino).mode & 0o777 == 0o751
    assert fs.getxattr(ino, ACCESS) == wire(NAMED_ACL)
    assert fs.listxattr(ino) == [ACCESS]
    fs.setattr(ino, SetAttributes(mode=0o640))
    expected = ((1, 6), (2, 5, 1000), (2, 6, 70_000), (4, 5), (8, 4, 80_000), (16, 4), (32, 0))
    assert fs.getxattr(ino, ACCESS) == wire(expected)
    fs.removexattr(ino, ACCESS)
    assert fs.listxattr(ino) == []
    assert fs.getattr(ino).mode & 0o777 == 0o640


@pytest.mark.crash
def test_an_acl_that_the_mode_says_as_well_is_not_stored(fs: FileSystem, ino: int) -> None:
    fs.setxattr(ino, ACCESS, wire(PLAIN_ACL))
    assert fs.getattr(ino).mode & 0o777 == 0o640
    assert fs.listxattr(ino) == []
    with refused(errno.ENODATA):
        fs.getxattr(ino, ACCESS)


@pytest.mark.crash
def test_acls_that_are_refused(fs: FileSystem, ino: int) -> None:
    with refused(errno.EACCES):
        fs.setxattr(ino, DEFAULT, wire(NAMED_ACL))
    link = fs.symlink(ROOT_INO, b"l", b"t").ino
    with refused(errno.EOPNOTSUPP):
        fs.setxattr(link, ACCESS, wire(NAMED_ACL))
    for broken in (
        b"",
        b"\2\0\0",
        wire(NAMED_ACL)[:-1],
        wire(((1, 7), (4, 7))),
        wire(((1, 7), (2, 7, 5), (4, 7), (32, 7))),
        wire(((4, 7), (1, 7), (32, 7))),
        wire(((1, 9), (4, 7), (32, 7))),
    ):
        with refused(errno.EINVAL):
            fs.setxattr(ino, ACCESS, broken)
    with refused(errno.EOPNOTSUPP):
        fs.setxattr(ino, ACCESS, b"\1" + wire(NAMED_ACL)[1:])
    assert fs.getattr(ino).mode & 0o777 == 0o644
    assert fs.listxattr(ino) == []


@pytest.mark.crash
def test_a_default_acl_is_handed_down(fs: FileSystem) -> None:
    heir = fs.mkdir(ROOT_INO, b"heir", 0o755).ino
    fs.setxattr(heir, DEFAULT, wire(NAMED_ACL))
    assert fs.getattr(heir).mode & 0o777 == 0o755
    masked = Caller(umask=0o077)
    file = fs.mknod(heir, b"f", 0o640, 0, masked)
    assert file.mode & 0o777 == 0o640
    assert fs.getxattr(file.ino, ACCESS) == wire(
        ((1, 6), (2, 5, 1000), (2, 6, 70_000), (4, 5), (8, 4, 80_000), (16, 4), (32, 0))
    )
    below = fs.mkdir(heir, b"d", 0o777, masked)
    assert below.mode & 0o777 == 0o751
    assert fs.getxattr(below.ino, DEFAULT) == fs.getxattr(below.ino, ACCESS) == wire(NAMED_ACL)
    link = fs.symlink(heir, b"l", b"target")
    assert fs.listxattr(link.ino) == []
    fs.removexattr(heir, DEFAULT)
    assert fs.mknod(heir, b"g", 0o666, 0, masked).mode & 0o777 == 0o600


def random_acl(chance: random.Random) -> bytes:
    """Return a valid ACL of up to four named entries."""
    entries: list[tuple[int, ...]] = [(1, chance.randrange(8))]
    users = sorted(chance.sample((1, 500, 1000, 70_000), chance.randrange(3)))
    groups = sorted(chance.sample((1, 500, 1000, 80_000), chance.randrange(3)))
    entries += [(2, chance.randrange(8), user) for user in users]
    entries.append((4, chance.randrange(8)))
    entries += [(8, chance.randrange(8), group) for group in groups]
    if users or groups or chance.random() < 0.3:
        entries.append((16, chance.randrange(8)))
    entries.append((32, chance.randrange(8)))
    return wire(tuple(entries))


def acl_changes(side: KernelSide | PoolSide) -> None:
    """Make random changes of ACLs and modes, the same ones for every file system."""
    chance = random.Random(13)
    names = [b""]
    directories = [b""]
    for turn in range(250):
        what = chance.randrange(6)
        if what < 2:
            name = os.path.join(chance.choice(directories), b"%d" % turn)
            names.append(name)
            if what:
                side.mkdir(name)
                directories.append(name)
            else:
                side.mknod(name, stat.S_IFREG | chance.randrange(0o1000))
        elif what == 2:
            side.setxattr(chance.choice(names), ACCESS, random_acl(chance))
        elif what == 3:
            side.setxattr(chance.choice(directories), DEFAULT, random_acl(chance))
        elif what == 4:
            side.chmod(chance.choice(names), chance.randrange(0o10000))
        else:
            side.chown(chance.choice(names), chance.choice((0, 500, 1000)), chance.choice((0, 500, 1000)))


def test_acls_and_modes_end_as_with_the_kernel(pool: MakePool) -> None:
    ours, theirs = pool("-b", "4096"), pool("-b", "4096")
    with FileSystem.open(ours, QUIET) as fs:
        acl_changes(PoolSide(fs))
        found = timeless(pool_tree(fs))
    fsck(ours)
    with kernel_mount(theirs) as root:
        acl_changes(KernelSide(root))
        same(found, timeless(kernel_tree(root)))


# Access


def asked_of_the_kernel(root: Path, caller: Caller, names: list[str]) -> list[bool]:
    """Return access(2)'s answers to a process with these ids, for each name and each mask."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(caller.groups))
            os.setgid(caller.gid)
            os.setuid(caller.uid)
            answers = [os.access(root / name, mask) for name in names for mask in range(1, 8)]
            os.write(writer, json.dumps(answers).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(told))


def test_access_is_granted_as_by_the_kernel(pool: MakePool) -> None:
    path = pool("-b", "4096")
    chance = random.Random(17)
    names = [f"f{number}" for number in range(150)]
    with FileSystem.open(path, QUIET) as fs:
        for name in names:
            ino = fs.mknod(ROOT_INO, name.encode(), chance.randrange(0o1000)).ino
            fs.setattr(ino, SetAttributes(uid=chance.choice((0, 500, 1000)), gid=chance.choice((0, 500, 1000))))
            if chance.random() < 0.6:
                fs.setxattr(ino, ACCESS, random_acl(chance))
    callers = [
        Caller(uid, gid, groups=frozenset(groups))
        for uid in (0, 1, 500, 1000, 70_000)
        for gid, groups in ((0, ()), (500, ()), (1000, (1,)), (99, (500, 80_000)))
    ]
    with kernel_mount(path) as root:
        expected = [asked_of_the_kernel(root, caller, names) for caller in callers]
    with FileSystem.open(path, QUIET) as fs:
        found = [
            [fs.access(fs.tree.resolve(name), mask, caller) for name in names for mask in range(1, 8)]
            for caller in callers
        ]
    for caller, mine, theirs in zip(callers, found, expected, strict=True):
        wrong = [
            (name, mask)
            for (name, mask), one, other in zip(itertools.product(names, range(1, 8)), mine, theirs, strict=True)
            if one != other
        ]
        assert not wrong, f"{caller}: {wrong[:5]}"
    assert any(map(any, expected))
    assert not all(map(all, expected))


def test_a_change_of_mode_that_met_missing_memory(small_image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is undone, and writes need not look for the bits that it would have set."""
    pool = FailingPool(Disk(small_image, 4096), "", Trigger())
    with FileSystem.open(pool, QUIET) as fs:
        file, made = fs.create(ROOT_INO, b"f", 0o600)
        now = clock.now

        def lose() -> int:
            pool.faults.pending[0] += 1  # type: ignore[index]
            return now()

        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", lose)
            with pytest.raises(MissingMemory):
                fs.setattr(made.ino, SetAttributes(mode=0o4700))
        assert fs.getattr(made.ino).mode & 0o7777 == 0o600
        assert file.node.unprivileged

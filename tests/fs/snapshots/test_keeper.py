"""Snapshots of a mounted pool: each image is the tree at its making, whatever happens later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_rig import FORMATS, OPERATIONS, PLAIN, Workbench, image
from kernel_rig import kernel_mount, loop_device
from lease_rig import Client
from range_rig import refused
from snapshot_rig import after_power_loss, differences, keeper, remounted, tree, unmounted
from tree_rig import QUIET

from daxfs.errors import MissingMemory
from daxfs.fs import mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.grants import storing
from daxfs.fs.snapshots import catalogue, files
from daxfs.fs.snapshots import keeper as keepers
from daxfs.fs.steps import Steps, finish, interruption
from daxfs.fs.types import ROOT_INO, MappedFile, NewSnapshot, Options
from daxfs.pmem.memory import MemoryPool
from daxfs.protocol import Flag
from daxfs.snapshots import format as layout
from daxfs.snapshots.store import Store
from daxfs.structures import inodes, mapping
from support import HANG_SECONDS, fsck, mke2fs, run, wait_a_tick, write_image


@pytest.fixture(params=FORMATS)
def fs(request: pytest.FixtureRequest) -> FileSystem:
    return mounted(request.param)


def mounted(name: str) -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image(name))), QUIET)


def new_image(folder: Path, megabytes: int) -> bytearray:
    """A new file system."""
    path = folder / "new"
    path.write_bytes(bytes(megabytes << 20))
    run("mke2fs", "-q", "-t", "ext4", "-b", "4096", str(path))
    return bytearray(path.read_bytes())


def busy(fs: FileSystem, *names: str) -> None:
    bench = Workbench(fs)
    for name in names:
        OPERATIONS[name](bench)


def test_each_snapshot_of_a_chain_shows_its_own_tree(fs: FileSystem, tmp_path: Path) -> None:
    seen = {}
    for number, names in enumerate(
        (("overwrite", "unlink"), ("write new", "punch", "rename"), ("truncate at hole", "mkdir"), ("write new in d",))
    ):
        name = b"%d" % number
        seen[name] = tree(fs)
        fs.create_snapshot(name)
        busy(fs, *names)
        fs.sync()
    for name, expected in seen.items():
        assert not differences(fs, name, expected, tmp_path), name
    fs.check()
    again = remounted(fs)
    assert [snapshot.name for snapshot in again.list_snapshots()] == list(seen)
    busy(again, "split leaf", "set dir xattr")
    for name, expected in seen.items():
        assert not differences(again, name, expected, tmp_path), name
    path = tmp_path / "pool"
    path.write_bytes(unmounted(again))
    fsck(path)


@pytest.mark.parametrize("gone", range(3))
def test_a_deletion_leaves_the_other_snapshots_whole(fs: FileSystem, gone: int, tmp_path: Path) -> None:
    seen = {}
    for number in range(3):
        name = b"%d" % number
        seen[name] = tree(fs)
        fs.create_snapshot(name)
        busy(fs, ("overwrite", "unlink", "write new")[number])
    del seen[b"%d" % gone]
    fs.delete_snapshot(b"%d" % gone)
    assert [snapshot.name for snapshot in fs.list_snapshots()] == list(seen)
    busy(fs, "overwrite and append", "unlink big", "write new in d")
    fs = after_power_loss(fs)
    busy(fs, "append", "truncate up a hole")
    for name, expected in seen.items():
        assert not differences(fs, name, expected, tmp_path), name
    fs.check()


def test_a_store_grows_while_programs_only_overwrite(tmp_path: Path) -> None:
    fs = FileSystem.open(MemoryPool(new_image(tmp_path, 48)), QUIET)
    fs.tree.write_bytes("/file", os.urandom(12 << 20))
    expected = tree(fs)
    fs.create_snapshot(b"s")
    room = keeper(fs).kept[0].store.capacity
    assert room < 12 << 20 >> 12, "the store must grow"
    with fs.tree.open("/file", "r+b") as file:
        for _ in range(12 << 8):
            file.write(bytes(4096))
            copier = keeper(fs).copier
            assert copier is not None
            assert copier.store.room >= copier.reserve
    assert [snapshot.lost for snapshot in fs.list_snapshots()] == [""]
    assert not differences(fs, b"s", expected, tmp_path)


def test_without_snapshots_nothing_is_left(tmp_path: Path) -> None:
    fs = mounted("4k")
    free = fs.statfs().free
    fs.create_snapshot(b"first")
    assert fs.statfs().free < free - 100
    fs.delete_snapshot(b"first")
    assert fs.volume.pool.hook is None
    assert fs.list_snapshots() == []
    fs.sync()
    assert fs.statfs().free >= free - 2, "two directories stay"
    assert keeper(fs).copier is None
    path = tmp_path / "pool"
    path.write_bytes(unmounted(fs))
    fsck(path)


def test_what_is_open_without_a_name_is_not_in_the_image(tmp_path: Path) -> None:
    fs = mounted("4k")
    bench = Workbench(fs)
    bench.hold("big")
    bench.nameless(9000)
    expected = tree(fs)
    fs.create_snapshot(b"s")
    assert not differences(fs, b"s", expected, tmp_path)
    bench.let_go()


def test_a_store_is_protected() -> None:
    fs = mounted("4k")
    fs.create_snapshot(b"s")
    ino = fs.tree.resolve(".daxfs/snapshots/s")
    facts = fs.getattr(ino)
    assert (facts.mode, facts.uid) == (0o100600, 0)
    assert fs.getattr(fs.tree.resolve(".daxfs")).mode == 0o40700
    with refused(errno.EPERM):
        fs.open_file(ino, os.O_RDWR)
    with refused(errno.EPERM):
        fs.unlink(*fs.tree.parent(".daxfs/snapshots/s"))
    assert not any(extent.unwritten for extent in fs.describe(ino))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, errno.EINVAL) for name in (b"a/b", b"", b".", b"..")),
        (b"n" * 256, errno.ENAMETOOLONG),
        (b"taken", errno.EEXIST),
    ],
)
def test_bad_names_are_refused(name: bytes, number: int) -> None:
    fs = mounted("4k")
    fs.create_snapshot(b"taken")
    before = fs.list_snapshots()
    with refused(number):
        fs.create_snapshot(name)
    assert fs.list_snapshots() == before
    fs.check()


def test_what_is_not_there_is_refused() -> None:
    fs = mounted("4k")
    for call in (fs.delete_snapshot, fs.open_snapshot):
        with refused(errno.ENOENT):
            call(b"none")
    fs.create_snapshot(b"one")
    for call in (fs.delete_snapshot, fs.open_snapshot):
        with refused(errno.ENOENT):
            call(b"none")


def test_a_pool_that_can_not_have_snapshots_is_refused() -> None:
    with refused(errno.EOPNOTSUPP):
        mounted(next(iter(PLAIN))).create_snapshot(b"s")
    read_only = FileSystem.open(MemoryPool(image("4k")), Options(read_only=True))
    with refused(errno.EROFS):
        read_only.create_snapshot(b"s")
    with refused(errno.EROFS):
        read_only.delete_snapshot(b"s")
    assert read_only.list_snapshots() == []


def test_a_full_pool_is_refused_whole(tmp_path: Path) -> None:
    fs = mounted("4k")
    busy(fs, "fill")
    before = tree(fs)
    with refused(errno.ENOSPC):
        fs.create_snapshot(b"s")
    assert fs.list_snapshots() == []
    assert fs.volume.pool.hook is None
    assert tree(fs) == before
    fs.check()
    path = tmp_path / "pool"
    path.write_bytes(unmounted(fs))
    fsck(path)


def test_a_store_grows_with_what_is_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keepers, "LEAST_RESERVE", 20)
    monkeypatch.setattr(keepers, "RESERVE_SHARE", 1 << 20)
    fs = mounted("4k")
    fs.tree.write_bytes("data", os.urandom(1 << 20))
    expected = tree(fs)
    size = fs.create_snapshot(b"s").snapshot.size
    file = fs.open_file(fs.tree.resolve("data"), os.O_RDWR)
    for at in range(0, 1 << 20, 16384):
        fs.write(file, at, os.urandom(16384))
    busy(fs, "write new", "mkdir", "unlink big")
    fs.release(file)
    (found,) = fs.list_snapshots()
    assert found.lost == ""
    assert found.size > size + (1 << 19)
    assert found.copied >= 1 << 20
    fs = after_power_loss(fs)
    assert not differences(fs, b"s", expected, tmp_path)


def test_a_write_larger_than_the_store_makes_room_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keepers, "LEAST_RESERVE", 20)
    monkeypatch.setattr(keepers, "RESERVE_SHARE", 1 << 20)
    fs = mounted("4k")
    fs.tree.write_bytes("data", os.urandom(1 << 20))
    expected = tree(fs)
    fs.create_snapshot(b"s")
    file = fs.open_file(fs.tree.resolve("data"), os.O_RDWR)
    assert fs.write(file, 0, os.urandom(1 << 20)) == 1 << 20
    fs.release(file)
    assert not differences(fs, b"s", expected, tmp_path)


def test_a_store_that_grows_for_a_write_has_room_for_all_of_it(fs: FileSystem, tmp_path: Path) -> None:
    """The growth copies blocks itself: bitmaps, for example."""
    busy(fs, "unlink big")
    fs.tree.write_bytes("data", os.urandom(400_000))
    expected = tree(fs)
    fs.create_snapshot(b"s")
    with fs.tree.open("data", "r+b") as file:
        file.write(os.urandom(400_000))
    assert [found.lost for found in fs.list_snapshots()] == [""]
    assert not differences(fs, b"s", expected, tmp_path)


@pytest.mark.parametrize("again", [remounted, after_power_loss])
def test_in_a_full_pool_the_snapshots_are_lost_and_not_the_write(again: Callable[[FileSystem], FileSystem]) -> None:
    fs = mounted("4k")
    fs.create_snapshot(b"older")
    fs.tree.write_bytes("data", bytes(2 << 20))
    fs.create_snapshot(b"newer")
    busy(fs, "fill")
    content = os.urandom(2 << 20)
    file = fs.open_file(fs.tree.resolve("data"), os.O_RDWR)
    assert fs.write(file, 0, content) == len(content)
    assert bytes(fs.read(file, 0, len(content))) == content
    fs.release(file)
    fs.sync()
    for at in range(2):
        mount = again(fs) if at else fs
        assert [found.lost for found in mount.list_snapshots()] == [catalogue.REASONS[catalogue.FULL]] * 2
        assert mount.volume.pool.hook is None
        with refused(errno.EINVAL):
            mount.open_snapshot(b"older")
    for name in (b"older", b"newer"):
        mount.delete_snapshot(name)
    assert mount.list_snapshots() == []
    mount.check()


def test_a_new_snapshot_after_a_lost_one_is_whole(tmp_path: Path) -> None:
    fs = mounted("4k")
    fs.create_snapshot(b"lost")
    keeper(fs)._lost(True)
    expected = tree(fs)
    fs.create_snapshot(b"kept")
    busy(fs, "overwrite")
    fs = remounted(fs)
    assert [(found.name, bool(found.lost)) for found in fs.list_snapshots()] == [(b"lost", True), (b"kept", False)]
    assert not differences(fs, b"kept", expected, tmp_path)


def test_older_snapshots_are_lost_with_a_newer_one_that_is() -> None:
    fs = mounted("4k")
    for name in (b"1", b"2", b"3"):
        fs.create_snapshot(name)
    keeper(fs).kept[1].store.invalidate(catalogue.MISSING)
    fs = after_power_loss(fs)
    assert [bool(found.lost) for found in fs.list_snapshots()] == [True, True, False]


def test_older_snapshots_are_lost_with_a_newer_one_whose_store_is_damaged() -> None:
    fs = mounted("4k")
    for name in (b"1", b"2", b"3"):
        fs.create_snapshot(name)
        wait_a_tick()
    place = keeper(fs).kept[1].store.runs[0].start << 12
    fs.volume.pool.unhooked.zero(place, 4096)
    fs = after_power_loss(fs)
    assert [bool(found.lost) for found in fs.list_snapshots()] == [True, True, False]
    fs.delete_snapshot(b"2")
    fs.check()


def test_a_deletion_keeps_what_it_overwrites_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The older store grows into a group whose bitmap was not overwritten before: the deleted one has it then."""
    monkeypatch.setattr(keepers, "LEAST_RESERVE", 40)
    monkeypatch.setattr(keepers, "MERGED_AT_ONCE", 1 << 20)
    monkeypatch.setattr(keepers, "RESERVE_SHARE", 1 << 20)
    path = tmp_path / "new"
    options = ("-b", "1024", "-g", "4096", "-N", "64", "-O", "^flex_bg,^resize_inode", "-J", "size=1")
    fs = FileSystem.open(MemoryPool(bytearray(mke2fs(path, *options, size="16M").read_bytes())), QUIET)
    fs.tree.write_bytes("data", os.urandom(3 << 20))
    expected = tree(fs)
    fs.create_snapshot(b"older")
    fs.create_snapshot(b"newer")
    for at in range(0, 3 << 20, 1 << 19):
        with fs.tree.open("data", "r+b") as file:
            file.seek(at)
            file.write(os.urandom(1 << 19))
    fs.sync()
    fs.delete_snapshot(b"newer")
    assert [(found.name, found.lost) for found in fs.list_snapshots()] == [(b"older", "")]
    assert not differences(fs, b"older", expected, tmp_path)


def test_what_another_program_stores_before_a_replay_is_noticed(tmp_path: Path) -> None:
    """The log has a superblock too: its replay overwrites the one that the other program has written."""
    fs = mounted("4k")
    fs.create_snapshot(b"s")
    busy(fs, "unlink")
    fs.volume.commit()
    path = tmp_path / "pool"
    write_image(path, fs.volume.pool.memory)
    fs = FileSystem.open(MemoryPool(path.read_bytes()), QUIET)
    assert fs.list_snapshots()[0].lost == ""
    run("debugfs", "-w", "-R", "write /proc/version new", path)
    for options in (Options(read_only=True, atime="noatime"), QUIET):
        with FileSystem.open(path, options) as again:
            assert again.list_snapshots()[0].lost == catalogue.REASONS[catalogue.FOREIGN]


def test_a_replay_by_a_read_only_mount_of_the_kernel_is_noticed(tmp_path: Path) -> None:
    """It frees what had no name, too, and does not note the time."""
    fs = mounted("4k")
    fs.create_snapshot(b"s")
    bench = Workbench(fs)
    bench.hold("big")
    fs.volume.commit()
    path = tmp_path / "pool"
    write_image(path, fs.volume.pool.memory)
    with loop_device(path) as device:
        place = tmp_path / "place"
        place.mkdir()
        run("mount", "-t", "ext4", "-o", "ro", device, place, limit=HANG_SECONDS)
        run("umount", place, limit=HANG_SECONDS)
    with FileSystem.open(path, QUIET) as again:
        assert again.list_snapshots()[0].lost == catalogue.REASONS[catalogue.FOREIGN]


@pytest.mark.parametrize("command", [("debugfs", "-w", "-R", "rm /g"), ("e2fsck", "-fy"), ("tune2fs", "-L", "x")])
def test_snapshots_are_lost_when_another_program_changes_the_pool(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superblock has seconds: the other program comes within the same one, and counts no mount."""
    monkeypatch.setattr(mounting.time, "time", lambda: 1_600_000_000.5)
    monkeypatch.setenv("E2FSPROGS_FAKE_TIME", "1600000000")
    fs = mounted("4k")
    fs.create_snapshot(b"s")
    path = tmp_path / "pool"
    path.write_bytes(unmounted(fs))
    run("dumpe2fs", "-h", path)
    unchanged = FileSystem.open(MemoryPool(path.read_bytes()), QUIET)
    assert unchanged.list_snapshots()[0].lost == ""
    run(*command, path)
    fs = FileSystem.open(MemoryPool(path.read_bytes()), QUIET)
    assert fs.list_snapshots()[0].lost == catalogue.REASONS[catalogue.FOREIGN]
    assert fs.volume.pool.hook is None
    fs.delete_snapshot(b"s")
    fs.check()


def test_snapshots_are_lost_when_the_kernel_has_mounted_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    write_image(path, image("4k"))
    for options, lost in (((), ""), (("ro",), ""), (("rw",), catalogue.REASONS[catalogue.FOREIGN])):
        with FileSystem.open(path, QUIET) as fs:
            if not fs.list_snapshots():
                fs.create_snapshot(b"s")
        if options:
            with kernel_mount(path, *options) as place:
                if options == ("rw",):
                    (place / "g").write_bytes(b"kernel")
        with FileSystem.open(path, QUIET) as fs:
            assert fs.list_snapshots()[0].lost == lost, options


def test_a_remount_goes_on(tmp_path: Path) -> None:
    fs = mounted("4k")
    expected = tree(fs)
    fs.create_snapshot(b"s")
    fs.remount(Options(read_only=True, atime="noatime"))
    fs.remount(QUIET)
    busy(fs, "overwrite", "unlink")
    assert not differences(fs, b"s", expected, tmp_path)


def test_trimming_leaves_what_a_snapshot_needs(tmp_path: Path) -> None:
    fs = mounted("4k")
    expected = tree(fs)
    fs.create_snapshot(b"s")
    busy(fs, "unlink big", "unlink")
    fs.sync()
    copied = fs.list_snapshots()[0].copied
    assert fs.trim() > 0
    assert fs.list_snapshots()[0].copied == copied
    assert not differences(fs, b"s", expected, tmp_path)


def test_what_a_client_may_store_to_is_copied_before_it_may(tmp_path: Path) -> None:
    """Stores of clients reach the pool without the daemon: here they go around the hook."""
    fs = mounted("4k")
    early, late, reader = clients_of(fs, "big", "f", "d/x")
    places = [early.ask(0, 4096, Flag.WRITE).pieces[0].pool_offset]
    reader.ask(0, 2048)
    expected = tree(fs)
    made = fs.create_snapshot(b"s")
    assert (made.snapshot.mapped, made.snapshot.skipped) == (4096, 0)
    assert made.files == (MappedFile(early.file.ino, 0, 4096),)
    assert not early.current, "its epoch has ended: it renews in its next operation"
    places.append(late.ask(0, 3000, Flag.WRITE).pieces[0].pool_offset)
    for place in places:
        fs.volume.pool.unhooked.write(place, os.urandom(3000))
    assert not differences(fs, b"s", expected, tmp_path)
    copied = fs.list_snapshots()[0].copied
    reader.ask(0, 2048, Flag.WRITE)
    assert fs.list_snapshots()[0].copied == copied + 4096, "what was granted for reading only is copied later"


def clients_of(fs: FileSystem, *names: str) -> list[Client]:
    return [Client(fs, fs.open_file(fs.tree.resolve(name), os.O_RDWR)) for name in names]


def test_what_clients_have_renewed_is_not_copied_at_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "WAIT_SECONDS", HANG_SECONDS)
    fs = mounted("4k")
    busy, sleeper = clients_of(fs, "big", "f")
    busy.ask(0, 20_000, Flag.WRITE)
    sleeper.ask(0, 3000, Flag.WRITE)
    expected = tree(fs)
    steps = fs.steps.create_snapshot(b"s")
    next(steps)
    busy.renew()
    monkeypatch.setattr(storing, "WAIT_SECONDS", 0.0)
    sleeper.renew()
    sleeper.ask(0, 3000, Flag.WRITE)
    made = finish(steps)
    assert made.snapshot.mapped == 4096
    assert [each.ino for each in made.files] == [sleeper.file.ino]
    for piece in busy.ask(0, 20_000, Flag.WRITE).pieces:
        fs.volume.pool.unhooked.write(piece.pool_offset, os.urandom(piece.length))
    assert not differences(fs, b"s", expected, tmp_path)
    statistics = fs.statistics()
    assert (statistics.snapshots, statistics.snapshot_mapped) == (1, 4096)
    assert statistics.snapshot_copied >= 4096
    again = remounted(fs)
    assert [(found.mapped, found.skipped) for found in again.list_snapshots()] == [(4096, 0)]


def test_mapped_files_can_be_left_out(tmp_path: Path) -> None:
    fs = mounted("4k")
    one, other = clients_of(fs, "big", "f")
    place = one.ask(0, 8192, Flag.WRITE).pieces[0].pool_offset
    other.ask(0, 3000, Flag.WRITE)
    expected = tree(fs)
    made = fs.create_snapshot(b"s", skip_mapped=True)
    assert (made.snapshot.mapped, made.snapshot.skipped) == (0, 8192 + 4096)
    assert [(each.ino, each.size) for each in made.files] == [(one.file.ino, 8192), (other.file.ino, 4096)]
    fs.volume.pool.unhooked.write(place, b"later")
    busy(fs, "unlink", "write new")
    assert differences(fs, b"s", expected, tmp_path) == [f"content of inode {one.file.ino}"]
    again = after_power_loss(fs)
    assert [(found.mapped, found.skipped) for found in again.list_snapshots()] == [(0, 8192 + 4096)]


def test_a_wait_for_clients_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "WAIT_SECONDS", HANG_SECONDS)
    fs = mounted("4k")
    (one,) = clients_of(fs, "big")
    one.ask(0, 8192, Flag.WRITE)
    steps = fs.steps.create_snapshot(b"s")
    next(steps)
    with refused(errno.EBUSY):
        fs.create_snapshot(b"t")
    with refused(errno.EINTR):
        steps.throw(interruption())
    assert fs.list_snapshots() == []
    one.renew()
    fs.create_snapshot(b"s")
    fs.check()


def test_what_clients_may_store_to_is_copied_in_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Others go on between two steps. A making that ends early leaves nothing behind, and older snapshots whole."""
    monkeypatch.setattr(keepers, "MAPPED_AT_ONCE", 1)
    monkeypatch.setattr(storing, "WAIT_SECONDS", 0)
    fs = mounted("4k")
    first = tree(fs)
    fs.create_snapshot(b"older")
    (one,) = clients_of(fs, "big")
    place = one.ask(0, 8192, Flag.WRITE).pieces[0].pool_offset

    def begun() -> Steps[NewSnapshot]:
        steps = fs.steps.create_snapshot(b"s")
        while [found.skipped for found in fs.list_snapshots()] != [0, 8192]:
            next(steps)
        return steps

    steps = begun()
    busy(fs, "write new", "overwrite", "overwrite moved")
    with refused(errno.EINTR):
        steps.throw(interruption())
        finish(steps)
    assert [found.name for found in fs.list_snapshots()] == [b"older"]
    assert not differences(fs, b"older", first, tmp_path)
    expected = tree(fs)
    steps = begun()
    busy(fs, "unlink", "append")
    assert finish(steps).snapshot.mapped == 8192
    fs.volume.pool.unhooked.write(place, os.urandom(4096))
    assert [(found.mapped, found.skipped) for found in fs.list_snapshots()] == [(0, 0), (8192, 0)]
    assert not differences(fs, b"s", expected, tmp_path)


def test_more_can_be_mapped_than_a_store_grows_by_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "MOST_BLOCKS", 100)
    monkeypatch.setattr(
        files.Reach, "__new__", lambda cls, blocks=100, runs=64, groups=8: tuple.__new__(cls, (blocks, runs, groups))
    )
    fs = mounted("4k")
    fs.tree.write_bytes("data", os.urandom(1 << 20))
    (one,) = clients_of(fs, "data")
    place = one.ask(0, 1 << 20, Flag.WRITE).pieces[0].pool_offset
    expected = tree(fs)
    assert fs.create_snapshot(b"s").snapshot.mapped == 1 << 20
    fs.volume.pool.unhooked.write(place, os.urandom(4096))
    assert not differences(fs, b"s", expected, tmp_path)


@pytest.mark.parametrize("what", ["create", "append"])
def test_missing_memory_of_a_new_store_leaves_nothing_behind(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fs = mounted("4k")
    expected = tree(fs)
    fs.create_snapshot(b"older")
    busy(fs, "overwrite", "mkdir")
    (one,) = clients_of(fs, "big")
    one.ask(0, 8192, Flag.WRITE)
    before = tree(fs), fs.statfs().free

    def missing(*_: object) -> None:
        raise MissingMemory(errno.EIO)

    with monkeypatch.context() as patches:
        patches.setattr(Store, what, missing)
        with pytest.raises(MissingMemory):
            fs.create_snapshot(b"s")
    assert [(found.name, found.lost) for found in fs.list_snapshots()] == [(b"older", "")]
    assert (tree(fs), fs.statfs().free) == before
    one.close()
    busy(fs, "unlink")
    assert not differences(fs, b"older", expected, tmp_path)
    fs.create_snapshot(b"s")
    fs.check()
    path = tmp_path / "pool"
    path.write_bytes(unmounted(fs))
    fsck(path)


def test_while_a_deletion_is_in_steps_nothing_else_changes_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepers, "MERGED_AT_ONCE", 1)
    fs = mounted("4k")
    fs.create_snapshot(b"1")
    fs.create_snapshot(b"2")
    busy(fs, "overwrite", "overwrite moved", "overwrite and append", "unlink")
    fs.sync()
    steps = fs.steps.delete_snapshot(b"2")
    next(steps)
    for call in (fs.create_snapshot, fs.delete_snapshot):
        with refused(errno.EBUSY):
            call(b"3")
    busy(fs, "truncate to nothing")
    for _ in steps:
        pass
    assert [found.name for found in fs.list_snapshots()] == [b"1"]
    fs.check()


def test_a_damaged_root_directory_costs_the_snapshots_and_not_the_mount() -> None:
    fs = mounted("1k")
    fs.create_snapshot(b"one")
    block = mapping.lookup(fs.volume.view, inodes.read(fs.volume.view, ROOT_INO), 0).pblk
    place = (block + 1 << fs.volume.block_bits) - 1
    content = unmounted(fs)
    content[place] ^= 1
    damaged = FileSystem.open(MemoryPool(content), QUIET)
    assert not keeper(damaged).kept
    content = unmounted(damaged)
    content[place] ^= 1
    mended = FileSystem.open(MemoryPool(content), QUIET)
    assert [snapshot.lost for snapshot in mended.list_snapshots()] == [catalogue.REASONS[catalogue.FOREIGN]]


def test_a_mount_tells_readers_which_store_takes_the_copies() -> None:
    """A power cut in the middle of a deletion leaves a store that seems about to go."""
    fs = mounted("4k")
    for name in (b"a", b"b", b"c"):
        fs.create_snapshot(name)
        assert fs.open_snapshot(b"a").settled
    newest = fs.open_snapshot(b"a")
    fs.delete_snapshot(b"b")
    assert not newest.unchanged
    assert fs.open_snapshot(b"a").settled
    middle = fs.open_snapshot(b"a")
    fs.delete_snapshot(b"c")
    assert not middle.unchanged
    assert fs.open_snapshot(b"a").settled
    fs.create_snapshot(b"d")
    keeper(fs).kept[1].store.set_role(layout.LEAVING)
    assert not fs.open_snapshot(b"a").settled
    fs = after_power_loss(fs)
    assert fs.open_snapshot(b"a").settled


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("gone", [b"0", b"1"])
def test_a_deletion_for_which_memory_is_missing(fails_at: int, gone: bytes, tmp_path: Path) -> None:
    """A store's header can't be changed: both snapshots stay as they were, and go on copying."""
    fs = mounted("4k")
    seen = {}
    for name, operation in ((b"0", "overwrite"), (b"1", "write new")):
        seen[name] = tree(fs)
        fs.create_snapshot(name)
        busy(fs, operation)
    pool = fs.volume.pool
    plain, calls = pool.unhooked, 0

    def store_word(offset: int, value: int, size: int = 4) -> None:
        nonlocal calls
        calls += pool.unhooked is not plain
        if calls == fails_at:
            raise MissingMemory(errno.EIO)
        plain.store_word(offset, value, size)

    fs.sync()
    pool.unhooked = plain._replace(store_word=store_word)
    with pytest.raises(MissingMemory):
        fs.delete_snapshot(gone)
    pool.unhooked = plain
    assert [snapshot.name for snapshot in fs.list_snapshots()] == list(seen)
    busy(fs, "overwrite and append", "unlink big")
    for name, expected in seen.items():
        assert not differences(fs, name, expected, tmp_path), name
    fs.check()

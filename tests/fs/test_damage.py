"""Metadata that can't be used: what is recorded, and whether the volume goes on, by ``errors=``."""

from __future__ import annotations

import errno
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from damage_rig import flip, place_of, poke, superblock
from poison_rig import Poison, PoisonRig

from daxfs.errors import Corrupt, CorruptKind, FsError, MissingMemory
from daxfs.ext4.features import Incompat
from daxfs.ext4.superblock import EXT4_ERROR_FS, EXT4_VALID_FS
from daxfs.fs import damage, mounting
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.pmem.opening import open_pool
from daxfs.structures import blocks, inode_bitmaps, inodes, orphans
from support import fsck, mke2fs, run

CONTENT = random.Random(1).randbytes(300_000)
STOPS = Options(commit_interval=1e9, errors="remount-ro")
GOES_ON = replace(STOPS, errors="continue")


class Rig(PoisonRig):
    """A poisoned pool that a test may close before its end."""

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self.open = True

    def spoil(self, place: int) -> None:
        """The memory there is missing from now on; everything is read from the pool once more."""
        self.fs.sync()
        self.poison.add(place)
        self.fs.volume.forget_content()

    def close(self) -> None:
        """Unmount; a second call does nothing."""
        if self.open:
            self.open = False
            self.poison.close()
            self.fs.close()
            self.pool.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pool with a file, a folder of 40 files, a file in pieces, and another file."""
    made = mke2fs(tmp_path / "pool", "-b", "4096", size="32M")
    with FileSystem.open(made) as fs:
        fs.tree.write_bytes("/file", CONTENT)
        fs.tree.mkdir("/folder")
        for number in range(40):
            fs.tree.write_bytes(f"/folder/{number}", b"x" * 5000)
        with fs.tree.open("/pieces", "wb") as file:
            for block in range(0, 40, 2):
                file.seek(block * 4096)
                file.write(b"x" * 4096)
        fs.tree.write_bytes("/other", CONTENT)
    return made


@pytest.fixture(params=[STOPS, GOES_ON], ids=lambda options: options.errors)
def rig(path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(path, request.param)
    yield made
    made.close()


def stops(rig: Rig) -> bool:
    return rig.fs.options.errors == "remount-ro"


def refused(rig: Rig) -> int:
    """The errno of a change, 0 if it succeeds."""
    try:
        rig.fs.setattr(rig.fs.tree.stat("/other").ino, SetAttributes(mode=0o600))
    except FsError as error:
        assert error.errno
        return error.errno
    return 0


NEEDS_BAD_METADATA = {
    "inode table": (lambda rig: rig.inode("/folder/20"), lambda rig, folder: rig.fs.unlink(folder, b"20")),
    "directory": (lambda rig: rig.data("/folder"), lambda rig, folder: rig.fs.mkdir(folder, b"new", 0o755)),
    "block bitmap": (
        lambda rig: place_of(rig.path, "Block bitmap"),
        lambda rig, _: rig.fs.tree.write_bytes("/new", CONTENT),
    ),
    "inode bitmap": (lambda rig: place_of(rig.path, "Inode bitmap"), lambda rig, _: rig.fs.tree.mkdir("/new")),
}


@pytest.mark.parametrize("case", NEEDS_BAD_METADATA)
def test_a_change_that_needs_missing_metadata(rig: Rig, case: str, caplog: pytest.LogCaptureFixture) -> None:
    find, change = NEEDS_BAD_METADATA[case]
    folder = rig.fs.tree.stat("/folder").ino
    place = find(rig)
    rig.spoil(place)
    rig.fs.setattr(rig.fs.tree.stat("/other").ino, SetAttributes(mode=0o640))
    with pytest.raises(MissingMemory) as failed:
        change(rig, folder)
    assert failed.value.errno == errno.EIO
    assert rig.fs.read_only == stops(rig)
    assert refused(rig) == (errno.EROFS if stops(rig) else 0)
    assert rig.fs.tree.read_bytes("/other") == CONTENT
    said = [each.getMessage() for each in caplog.records if "check -y" in each.getMessage()]
    assert len(said) == 1
    wanted = "read-only from now on" if stops(rig) else "goes on (errors=continue)"
    assert wanted in said[0]
    assert "a change that needs it was undone" in said[0]
    found = rig.fs.metadata_errors()
    assert found.stopped == stops(rig)
    assert (found.count, found.behaviour) == (1, rig.fs.options.errors)
    assert found.first == found.last
    assert found.first
    assert found.first.where == "missing memory"
    assert found.first.block in (place >> 12, 0)
    if stops(rig):
        crashed = rig.path.with_name("crashed")
        crashed.write_bytes(rig.path.read_bytes())
        with FileSystem.open(crashed) as fs:
            assert fs.tree.stat("/other").mode & 0o777 == 0o640, "what was complete before is committed"
            assert fs.metadata_errors().count == 1
    rig.poison.mend()
    rig.close()
    sb = superblock(rig.path)
    assert sb.s_state & EXT4_ERROR_FS
    assert sb.s_error_count == 1


def test_e2fsck_clears_the_record(path: Path) -> None:
    rig = Rig(path, STOPS)
    rig.spoil(place_of(path, "Inode bitmap"))
    with pytest.raises(MissingMemory):
        rig.fs.tree.mkdir("/new")
    rig.close()
    assert "contains a file system with errors, check forced" in run("e2fsck", "-p", path)
    sb = superblock(path)
    assert (sb.s_state, sb.s_error_count, sb.first_error, sb.last_error) == (EXT4_VALID_FS, 0, None, None)
    fsck(path)


def test_a_reader_that_meets_missing_metadata_changes_nothing(rig: Rig) -> None:
    for place in (rig.inode("/folder/20"), rig.data("/folder")):
        rig.spoil(place)
    folder = rig.fs.tree.stat("/folder").ino
    for operation, *arguments in (
        (rig.fs.tree.listdir, "/folder"),
        (rig.fs.tree.read_bytes, "/folder/20"),
        (rig.fs.lookup, folder, b"20"),
    ):
        with pytest.raises(MissingMemory):
            operation(*arguments)  # type: ignore[operator]
    assert not rig.fs.read_only
    assert rig.fs.metadata_errors().count == 0
    assert refused(rig) == 0


def test_missing_data_is_no_error_of_metadata(rig: Rig) -> None:
    """Whole and partial overwrites, extending writes, copies, atomic writes and punched holes."""
    place = rig.data("/file", 2)
    fs = rig.fs
    fs.setattr(fs.tree.stat("/file").ino, SetAttributes(size=3 * 4096 - 100))
    with fs.tree.open("/file", "r+b") as file, fs.tree.open("/copy", "wb") as copy:
        opened = file._file
        changes = (
            lambda: fs.write(opened, 2 * 4096 + 5, b"x"),
            lambda: fs.write(opened, 2 * 4096 + 5, b"x", atomic=True),
            lambda: fs.copy_range(opened, 2 * 4096, copy._file, 0, 4000),
            lambda: fs.fallocate(opened, 3, 2 * 4096 + 5, 100),
            lambda: fs.write(opened, 3 * 4096, b"x" * 4096),
        )
        for change in changes:
            for once in (True, False):  # the first time the pool does not know of the bad memory
                fs.sync()
                rig.pool.bad.take_out(place, place + 4096)
                rig.poison.add(place)
                fs.volume.forget_content()
                if not once:
                    rig.pool.bad.add(place, place + 4096)
                with pytest.raises(MissingMemory):
                    change()
                assert not fs.read_only
                assert fs.metadata_errors().count == 0
                assert fs.volume.faults[0] == 0
                rig.pool.bad.take_out(place, place + 4096)
                rig.poison.mend()


def test_missing_data_of_fragments_that_are_copied(path: Path) -> None:
    """They are gathered before they are stored."""
    rig = Rig(path, STOPS)
    with rig.fs.tree.open("/file", "r+b") as file, rig.fs.tree.open("/copy", "wb") as copy:
        rig.fs.fallocate(file._file, 0x20, 4096, 4096)  # FALLOC_FL_INSERT_RANGE
        file.seek(4096)
        file.write(b"x" * 4096)
        rig.poison.add(rig.data("/file", 1))
        with pytest.raises(MissingMemory):
            rig.fs.copy_range(file._file, 0, copy._file, 0, 16384)
        assert not rig.fs.read_only
    rig.close()
    fsck(path)


@pytest.mark.parametrize("slowly", [False, True])
def test_a_view_that_was_lent_is_no_error_of_the_next_change(path: Path, slowly: bool) -> None:
    rig = Rig(path, STOPS)
    with rig.fs.tree.open("/file") as file, rig.fs.tree.open("/other", "r+b") as other:
        lent = file.view(8192, 4096)
        other.write(b"x")
        rig.poison.add(rig.data("/file", 2))
        bytes(lent)
        with pytest.raises(MissingMemory):
            rig.fs.write(other._file, len(CONTENT) if slowly else 0, b"x")
        rig.poison.add_once(rig.data("/file", 2))
        bytes(lent)
        with pytest.raises(MissingMemory):
            rig.fs.mkdir(ROOT_INO, b"new", 0o755)
        assert not rig.fs.read_only
        lent.release()
    rig.close()


@pytest.fixture
def node(path: Path) -> int:
    """The pool's offset of an extent block of the file /pieces."""
    found = re.search(r"\(ETB0\):(\d+)", run("debugfs", "-R", "stat /pieces", path))
    assert found
    return int(found[1]) << 12


def test_a_file_whose_end_needs_missing_metadata(rig: Rig, node: int) -> None:
    """The name is gone before; the inode stays on the orphan list."""
    rig.spoil(node)
    with pytest.raises(MissingMemory):
        rig.fs.tree.read_bytes("/pieces")
    assert not rig.fs.read_only
    rig.fs.tree.unlink("/pieces")
    assert b"pieces" not in rig.fs.tree.listdir("/")
    assert rig.fs.read_only == stops(rig)
    assert rig.fs.tree.read_bytes("/other") == CONTENT
    rig.close()
    run("e2fsck", "-fy", rig.path, code=1 if stops(rig) else 0)  # the end of a mount that goes on frees it


@pytest.mark.parametrize("options", [STOPS, GOES_ON], ids=["remount-ro", "continue"])
def test_a_mount_whose_orphans_need_missing_metadata(path: Path, node: int, options: Options) -> None:
    """It succeeds, and so does unmounting, whether the volume may be changed or not."""
    rig = Rig(path, options)
    with rig.fs.tree.open("/pieces") as file:
        rig.fs.tree.unlink("/pieces")
        rig.fs.sync()
        crashed = path.read_bytes()
        assert file.read(1) == b"x"
    rig.close()
    path.write_bytes(crashed)
    with open_pool(path) as pool:
        poison = Poison(pool)
        poison.add(node)
        fs = FileSystem.open(pool, options)
        assert fs.read_only == (options is STOPS)
        assert fs.metadata_errors().count == 1
        assert fs.tree.read_bytes("/other") == CONTENT
        poison.close()
        fs.close()
    run("e2fsck", "-fy", path, code=1 if options is STOPS else 0)


def test_what_a_commit_does_without_is_reported(path: Path) -> None:
    """The times of an open file whose inode is gone are lost; the tick says so."""
    rig = Rig(path, STOPS)
    with rig.overwritten_without_its_inode("/folder/20", CONTENT):
        rig.fs.tick()
        assert rig.fs.read_only
    rig.close()
    with FileSystem.open(path) as fs:
        assert fs.tree.read_bytes("/meanwhile") == CONTENT
        assert fs.tree.read_bytes("/folder/20")[:3] == b"new"
        assert fs.metadata_errors().count == 1


def test_errors_are_counted_over_mounts(path: Path) -> None:
    for mounts in (1, 2):
        with FileSystem.open(path, GOES_ON) as fs:
            damage.report(fs.volume, Corrupt(CorruptKind.INODE_NUMBER, "nowhere"))
            damage.report(fs.volume, Corrupt(CorruptKind.ORPHAN_LIST, "nowhere"))
            found = fs.metadata_errors()
            assert found.count == 2 * mounts
            assert (found.first and found.first.where, found.last and found.last.where) == (
                "inode number",
                "orphan list",
            )
    fsck(path)


@pytest.mark.parametrize(
    ("stored", "option", "found"),
    [
        ("continue", None, "continue"),
        ("remount-ro", None, "remount-ro"),
        ("panic", None, "remount-ro"),
        ("continue", "remount-ro", "remount-ro"),
        ("remount-ro", "continue", "continue"),
        ("panic", "continue", "continue"),
    ],
)
def test_the_option_overrides_the_superblock(
    path: Path, stored: str, option: str | None, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    run("tune2fs", "-e", stored, path)
    caplog.set_level(logging.WARNING)
    with FileSystem.open(path, Options(errors=option)) as fs:
        assert fs.metadata_errors().behaviour == found
        fs.remount(replace(fs.options, errors="continue"))
        assert fs.metadata_errors().behaviour == "continue"
    warned = any("errors=panic of its superblock means remount-ro" in each.getMessage() for each in caplog.records)
    assert warned == (stored == "panic" and option is None)
    fsck(path)


def test_a_full_file_system_below_is_no_error_of_metadata(path: Path) -> None:
    rig = Rig(path, STOPS)

    def reserve(_offset: int, _length: int) -> None:
        raise MissingMemory(errno.ENOSPC)

    rig.pool.reserve = reserve
    with pytest.raises(MissingMemory):
        rig.fs.mkdir(ROOT_INO, b"new", 0o755)
    rig.pool.reserve = None
    assert not rig.fs.read_only
    rig.close()
    fsck(path)


def test_an_error_that_can_not_be_recorded(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log of the pool is gone too: nothing of the running transaction is durable, and the volume stops anyway."""
    rig = Rig(path, GOES_ON)
    area = rig.fs.volume.log_area
    assert area is not None
    for block in range(1, area.blocks):
        rig.poison.add(area.physical(block) << rig.fs.volume.block_bits)
    rig.fs.tree.write_bytes("/lost", b"x")
    with pytest.raises(FsError):
        rig.fs.sync()
    damage.report(rig.fs.volume, Corrupt(CorruptKind.INODE_NUMBER, "nowhere"))
    assert rig.fs.read_only
    assert any("could not be recorded" in each.getMessage() for each in caplog.records)
    rig.close()
    with FileSystem.open(path) as fs:
        assert "lost" not in fs.tree.listdir("/")
    fsck(path)


# Damage that begins while the pool is mounted


def checked(rig: Rig) -> Rig:
    """Have the mount check the bitmaps of the first group, which it does once."""
    rig.fs.sync()
    assert blocks.is_free(rig.fs.volume.view, 1) is inode_bitmaps.in_use(rig.fs.volume.view, 999) is False
    return rig


def test_no_file_gets_blocks_of_metadata(rig: Rig) -> None:
    """The kernel compares each allocation with the metadata too (``ext4_mb_mark_diskspace_used``)."""
    poke(checked(rig).path, place_of(rig.path, "Block bitmap"), bytes(4096))
    with pytest.raises(Corrupt, match="metadata in the blocks from 0 on is marked free"):
        rig.fs.tree.write_bytes("/new", bytes([0xA5]) * (8 << 20))
    assert rig.fs.read_only == stops(rig)
    assert bytes([0xA5]) * 4096 not in rig.path.read_bytes()


def test_no_file_gets_the_journals_blocks(rig: Rig) -> None:
    area = rig.fs.volume.log_area
    assert area is not None
    log = range(area.physical(0), area.physical(0) + 64)
    place = place_of(rig.path, "Block bitmap")
    bitmap = bytearray(b"\xff" * 4096)
    for block in log:
        bitmap[block >> 3] &= ~(1 << (block & 7))
    poke(checked(rig).path, place, bytes(bitmap))
    with pytest.raises(Corrupt, match="is marked free"):
        rig.fs.tree.write_bytes("/new", CONTENT)


@pytest.mark.parametrize("kept", [0, 10], ids=["reserved", "named"])
def test_no_file_gets_an_inode_in_use(rig: Rig, kept: int) -> None:
    """``kept``: how many inodes are still marked as in use."""
    poke(checked(rig).path, place_of(rig.path, "Inode bitmap"), ((1 << kept) - 1).to_bytes(4096, "little"))
    with pytest.raises(Corrupt, match="has links" if kept else "a reserved inode is marked free"):
        rig.fs.tree.write_bytes("/new", CONTENT)
    assert rig.fs.read_only == stops(rig)
    assert rig.fs.tree.read_bytes("/other") == CONTENT
    assert rig.fs.tree.listdir("/")


def freed_twice(rig: Rig, name: str) -> None:
    """Mark a block of a file free, behind the mount's back."""
    block = rig.data(name) >> 12
    byte = place_of(rig.path, "Block bitmap") + (block >> 3)
    poke(rig.path, byte, bytes([rig.path.read_bytes()[byte] & ~(1 << (block & 7))]))


def test_the_last_name_of_a_file_whose_blocks_are_damaged(rig: Rig) -> None:
    """Unlink succeeds, and so does the end of the mount: what was complete is committed, and the file stays listed."""
    freed_twice(checked(rig), "/other")
    rig.fs.tree.unlink("/other")
    assert rig.fs.metadata_errors().count == 1
    assert rig.fs.read_only == stops(rig)
    if not stops(rig):
        rig.fs.tree.write_bytes("/late", CONTENT)
    rig.close()
    run("e2fsck", "-fy", rig.path, code=1)
    with FileSystem.open(rig.path) as fs:
        assert b"other" not in fs.tree.listdir("/")
        assert stops(rig) or fs.tree.read_bytes("/late") == CONTENT
    fsck(rig.path)


def test_damage_that_the_end_of_the_mount_meets_first(rig: Rig) -> None:
    freed_twice(checked(rig), "/other")
    lent = rig.fs.tree.open("/other")
    rig.fs.tree.unlink("/other")
    rig.fs.tree.write_bytes("/late", CONTENT)
    rig.close()
    del lent
    with open_pool(rig.path) as pool:
        mounting.recover_in_place(pool)
    assert superblock(rig.path).s_error_count == 1
    assert superblock(rig.path).s_state & EXT4_ERROR_FS
    run("e2fsck", "-fy", rig.path, code=1)
    with FileSystem.open(rig.path) as fs:
        assert fs.tree.read_bytes("/late") == CONTENT


@pytest.mark.parametrize("options", [STOPS, GOES_ON], ids=["remount-ro", "continue"])
@pytest.mark.parametrize("damaged", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_mount_with_a_damaged_orphan(path: Path, options: Options, damaged: int) -> None:
    """It leaves the list, and stays in use until e2fsck has run; the others are freed, and no later mount meets it."""
    found = crashed_with_orphans(path)
    flip(path, slot_place(path, found[damaged]) + 0x10)
    with FileSystem.open(path, options) as fs:
        assert fs.metadata_errors().count == 1
        assert fs.read_only == (options is STOPS)
        assert fs.tree.read_bytes("/other") == CONTENT
        assert [inode_bitmaps.in_use(fs.volume.view, ino) for ino in found] == [
            number == damaged for number in range(3)
        ]
        assert not list(orphans.listing(fs.volume.view))
        assert not fs.volume.lives.unfinished
    assert not superblock(path).s_feature_incompat & Incompat.needs_recovery
    with FileSystem.open(path, STOPS) as fs:
        assert not fs.read_only
        assert fs.metadata_errors().count == 1
    run("e2fsck", "-fy", path, code=1)
    fsck(path)


def test_a_mount_with_an_orphan_that_was_never_used(path: Path) -> None:
    """Its slot is blank, so nobody knows what follows: the list ends there, and the rest is left to e2fsck."""
    found = crashed_with_orphans(path)
    poke(path, slot_place(path, found[1]), bytes(256))
    with FileSystem.open(path, GOES_ON) as fs:
        assert fs.metadata_errors().count == 1
        assert [inode_bitmaps.in_use(fs.volume.view, ino) for ino in found] == [False, True, True]
        assert not list(orphans.listing(fs.volume.view))
        file, _ = fs.tmpfile(ROOT_INO, 0o600)
        fs.sync()
        fs.release(file)
    run("e2fsck", "-fy", path, code=1)
    fsck(path)


def crashed_with_orphans(path: Path) -> list[int]:
    """Leave the pool as a kill does with three open files without names; return them in the order of the list."""
    names = [f"/folder/{number}" for number in range(3)]
    with FileSystem.open(path) as fs:
        found = sorted((fs.tree.stat(name).ino for name in names), reverse=True)
        opened = [fs.tree.open(name) for name in names]
        for name in names:
            fs.tree.unlink(name)
        fs.sync()
        crashed = path.read_bytes()
        for file in opened:
            file.close()
    path.write_bytes(crashed)
    with open_pool(path) as pool:
        mounting.recover_in_place(pool)
    return found


def slot_place(path: Path, ino: int) -> int:
    """Return the pool's offset of an inode's slot."""
    place = re.search(r"block (\d+), offset 0x([0-9a-f]+)", run("debugfs", "-R", f"imap <{ino}>", path))
    assert place
    return (int(place[1]) << 12) + int(place[2], 16)


# What stops no change


def spoiled(path: Path, place: int) -> Path:
    flip(path, place)
    return path


def test_a_damaged_inode_bitmap_is_no_matter_for_blocks(path: Path) -> None:
    spoiled(path, place_of(path, "Inode bitmap") + 100)
    with FileSystem.open(path, STOPS) as fs:
        with pytest.raises(Corrupt, match="inode bitmap checksum"):
            inode_bitmaps.in_use(fs.volume.view, 12)
        free = fs.statfs().free
        with fs.tree.open("/other", "r+b") as file:
            file.seek(0, 2)
            file.write(b"x" * 100_000)
        fs.sync()
        assert fs.statfs().free < free
        fs.tree.unlink("/file")
        fs.sync()
        assert fs.statfs().free > free, "its blocks are free, its number stays in use"
        assert not fs.read_only
        with pytest.raises(FsError) as full:
            fs.tree.mkdir("/new")
        assert full.value.errno == errno.ENOSPC
    run("e2fsck", "-fy", path, code=1)
    fsck(path)


def test_a_damaged_block_bitmap_is_no_matter_for_inodes(path: Path) -> None:
    spoiled(path, place_of(path, "Block bitmap") + 500)
    with FileSystem.open(path, STOPS) as fs:
        with pytest.raises(Corrupt, match="block bitmap checksum"):
            blocks.bitmap(fs.volume.view, 0)
        fs.mknod(ROOT_INO, b"empty", 0o100600)
        fs.tree.unlink("/folder/20")
        assert not fs.read_only
        with pytest.raises(FsError) as full:
            fs.tree.mkdir("/new")
        assert full.value.errno == errno.ENOSPC
    run("e2fsck", "-fy", path, code=1)
    fsck(path)


def test_what_a_reader_meets_stops_nobody(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """One bad inode is one error, recorded and logged once, whatever ``errors=`` says. A change counts."""
    place = rig.inode("/folder/20")
    folder = rig.fs.tree.stat("/folder").ino
    rig.fs.sync()
    flip(rig.path, place + 0x10)
    rig.fs.volume.forget_content()
    for _ in range(3):
        with pytest.raises(Corrupt):
            rig.fs.tree.stat("/folder/20")
        with pytest.raises(Corrupt):
            rig.fs.tree.read_bytes("/folder/20")
    assert not rig.fs.read_only
    assert refused(rig) == 0
    assert rig.fs.metadata_errors().count == 1
    assert sum("the volume goes on without it" in text for text in caplog.messages) == 1
    with pytest.raises(Corrupt):
        rig.fs.unlink(folder, b"20")
    assert rig.fs.read_only == stops(rig)
    assert rig.fs.metadata_errors().count == 2


def test_a_name_of_a_file_without_links(path: Path) -> None:
    """As after a link count that was too small. What is stored there would be lost; a read-only mount shows it."""
    with FileSystem.open(path, GOES_ON) as fs:
        ino = fs.tree.stat("/file").ino
        fs.link(ino, ROOT_INO, b"second")
        with fs.volume.handle(1) as tx:
            inodes.edit(tx, ino).links_count = 1
        fs.unlink(ROOT_INO, b"file")
        with pytest.raises(Corrupt, match="has no links"):
            fs.tree.stat("/second")
        assert not fs.read_only
    with FileSystem.open(path, Options(read_only=True)) as fs:
        assert fs.tree.stat("/second").nlink == 0
    run("e2fsck", "-fy", path, code=1)
    fsck(path)

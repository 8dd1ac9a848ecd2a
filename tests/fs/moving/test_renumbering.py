"""Inodes get other numbers: the tree stays what it is, whoever uses it, and old file handles are stale."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from lease_rig import STORE, Client
from resizing_rig import MIB, made
from tree_rig import QUIET, Tree, walk

from daxfs.errors import FsError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.moving import renumbering
from daxfs.fs.steps import finish
from daxfs.fs.types import SetAttributes
from daxfs.protocol import ENTRY, StatusEntry
from daxfs.structures import shrinkage
from support import fsck

__all__ = ["tmp_path"]

TARGET = 40 * MIB


def filled(fs: FileSystem) -> None:
    """Directories all over the pool, with files of all kinds, names of both kinds of directories, and hard links."""
    for number in range(20):
        fs.tree.mkdir(f"/d{number}")
        fs.tree.mkdir(f"/d{number}/sub")
        fs.tree.write_bytes(f"/d{number}/file", bytes([number]) * (number * 700))
        fs.tree.symlink("f" * 10 * number or "x", f"/d{number}/link")
        ino = fs.tree.stat(f"/d{number}/file").ino
        fs.link(ino, fs.tree.stat(f"/d{number // 2}").ino, b"hard %d" % number)
        fs.setxattr(ino, b"user.name", b"v" * (number * 20))
        fs.setattr(ino, SetAttributes(mode=0o100600 | number))
    for number in range(60):
        fs.tree.write_bytes(f"/d5/{number:0120}", b"")


def tree(fs: FileSystem) -> Tree:
    """All that can be seen of the tree but the numbers, and the blocks of maps."""

    def shown(content: object) -> object:
        return sorted(str(entry[0]) for entry in content) if isinstance(content, tuple) else content

    return {
        path: found._replace(ino=0, blocks=0, content=shown(found.content) if found.mode >> 12 == 4 else found.content)
        for path, found in walk(fs).items()
    }


def past(fs: FileSystem) -> list[int]:
    return list(shrinkage.inodes_past(fs.volume.view, TARGET // fs.statfs().block_size))


def test_the_tree_stays(any_format: tuple[str, ...], tmp_path: Path) -> None:
    path = made(tmp_path / "pool", *any_format, size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        fs.sync()
        numbers = past(fs)
        assert len(numbers) > 10
        handles = [(ino, fs.generation(ino)) for ino in numbers]
        before = tree(fs)
        geometry = fs.volume.geometry
        journal_moves = geometry.has_extents and geometry.flex_bg_size > 1
        size = TARGET if journal_moves or not geometry.has_journal else 60 * MIB
        fs.resize(size // fs.statfs().block_size)
        fs.check()
        assert tree(fs) == before
        if size == TARGET:
            for ino, _ in handles:
                with pytest.raises(FsError):
                    fs.generation(ino)
    fsck(path)
    with FileSystem.open(path, QUIET) as fs:
        assert tree(fs) == before
        for number in range(20):
            fs.tree.rename(f"/d{number}/sub", f"/d{number}/other")
            fs.tree.rmdir(f"/d{number}/other")
            fs.tree.unlink(f"/d{number}/link")
    fsck(path)
    with kernel_mount(path) as place:
        assert (place / "d9" / "file").read_bytes() == bytes([9]) * 6300
    fsck(path)


@pytest.mark.parametrize("options", [(), ("-O", "orphan_file"), ("-O", "^metadata_csum,^64bit,^extent")])
def test_what_is_in_use(options: tuple[str, ...], tmp_path: Path) -> None:
    """Open files with and without names, a removed directory that is open, times that wait; and a power cut after."""
    path = made(tmp_path / "pool", *options, size="80M")
    target = (TARGET if "extent" not in " ".join(options) else 60 * MIB) // 4096
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        inos = set(shrinkage.inodes_past(fs.volume.view, target))
        places = [number for number in range(20) if fs.tree.stat(f"/d{number}").ino in inos]
        place = places[0]
        directory = fs.opendir(fs.tree.stat(f"/d{place}/sub").ino)
        fs.tree.rmdir(f"/d{place}/sub")
        files = {name: fs.open_file(fs.tree.stat(name).ino, os.O_RDWR) for name in (f"/d{n}/file" for n in places)}
        for name, file in files.items():
            fs.write(file, 1, b"before" + name.encode())
        nameless, _ = fs.tmpfile(fs.tree.stat(f"/d{place}").ino, 0o600)
        gone = files.pop(f"/d{place}/file")
        for parent, name in ((f"/d{place}", b"file"), (f"/d{place // 2}", b"hard %d" % place)):
            fs.unlink(fs.tree.stat(parent).ino, name)
        fs.sync()
        fs.write(gone, 0, b"lasts")  # its times wait for the commit
        before = tree(fs)
        assert fs.resize(target).blocks == target
        fs.check()
        assert tree(fs) == before
        assert not {each.ino for each in (directory, gone, nameless, *files.values())} & inos
        assert bytes(fs.read(gone, 0, 5)) == b"lasts"
        for name, file in files.items():
            assert file.ino == fs.tree.stat(name).ino
            assert bytes(fs.read(file, 1, 6)) == b"before"
            fs.write(file, 1, b"after!")
            assert fs.tree.read_bytes(name)[1:7] == b"after!"
        fs.sync()
        shutil.copy(path, path.with_name("cut"))
        for file in (gone, nameless, *files.values()):
            fs.release(file)
        fs.releasedir(directory)
        fs.check()
        assert fs.statistics().nameless == 0
    fsck(path)
    with FileSystem.open(path.with_name("cut"), QUIET) as fs:
        assert fs.statistics().nameless == 0
        fs.check()
    fsck(path.with_name("cut"))


def test_what_is_known_outside(tmp_path: Path) -> None:
    """It has its old number until it is forgotten, through a second shrink too, and nothing new gets that number."""
    random.seed(1)  # the groups of directories are random: with these some have to move twice
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        found = {ino: fs.getattr(ino) for ino in list(shrinkage.inodes_past(fs.volume.view, 64 * MIB // 4096))[::2]}
        for each in (*found.values(), *found.values()):
            fs.pin(each)
        fs.resize(64 * MIB // 4096)
        known = fs.pins.aliases
        assert known.numbers == found.keys()
        fs.resize(80 * MIB // 4096)
        for number in range(60):
            fs.tree.mkdir(f"/new{number}")
            assert fs.tree.stat(f"/new{number}").ino not in found, "programs know another file by this number"
        target = TARGET // 4096
        again = set(shrinkage.inodes_past(fs.volume.view, target))
        assert any(known.inside(ino, before.generation) in again for ino, before in found.items())
        fs.resize(target)
        fs.check()
        for ino, before in found.items():
            inside = known.inside(ino, before.generation)
            assert inside is not None
            now = fs.getattr(inside)
            assert (now.mode, now.size, now.crtime_ns) == (before.mode, before.size, before.crtime_ns)
            with pytest.raises(FsError):
                fs.by_number(ino)
            fs.unpin(inside)
            assert known.shown(inside) == ino
            fs.unpin(inside)
            assert known.shown(inside) == inside
        assert not fs.pins
        assert not known
        fs.check()
    fsck(path)


def test_clients_and_locked_files(tmp_path: Path) -> None:
    """What a client was granted of a renumbered file stays its own; immutable and append-only files move as others."""
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        first, second, third = [ino for ino in past(fs) if fs.getattr(ino).mode >> 12 == 8 and fs.getattr(ino).size][:3]
        fs.set_flags(second, fs.get_flags(second) | EXT4_IMMUTABLE_FL)
        fs.set_flags(third, fs.get_flags(third) | EXT4_APPEND_FL)
        before, holder = tree(fs), Client(fs, fs.open_file(first, os.O_RDWR))
        answer = holder.ask(flags=STORE)
        assert StatusEntry.unpack(fs.volume.pool.memory[answer.entry : answer.entry + ENTRY.size]).ino == first
        for _ in fs.steps.resize(TARGET // 4096):
            fs.grants.check()
            if not holder.current:
                holder.renew()
                with suppress(FsError):  # it is being recalled
                    holder.ask(flags=STORE)
        fs.check()
        assert holder.file.ino != first
        assert tree(fs) == before
        holder.renew()
        holder.ask(flags=STORE)
        holder.store(0, b"stored by itself")
        assert bytes(fs.read(holder.file, 0, 16)) == b"stored by itself"
        fs.check()
        holder.close()
    fsck(path)


def test_more_subdirectories_than_a_transaction_has_room_for(tmp_path: Path) -> None:
    """The directory is named, and the pool stays; with fewer it gets its number."""
    path = made(tmp_path / "pool", "-b", "1024", "-N", "2048", "-J", "size=1", size="40M")
    with FileSystem.open(path, QUIET) as fs:
        target = 30 * MIB // 1024
        parent = ""
        while not parent or fs.tree.stat(parent).ino not in set(shrinkage.inodes_past(fs.volume.view, target)):
            parent = f"{parent or '/'}n"
            fs.tree.mkdir(parent)
        count = fs.volume.journal.capacity // 2
        for number in range(count):
            fs.tree.mkdir(f"{parent}/{number}")
        ino, before = fs.tree.stat(parent).ino, tree(fs)
        with pytest.raises(FsError, match=f"stay {parent} .inode {ino}. of the groups that go .its names and subdir"):
            fs.resize(target)
        assert tree(fs) == before
        assert fs.size == 40 * MIB // 1024
        for number in range(20, count):
            fs.tree.rmdir(f"{parent}/{number}")
        assert fs.resize(target).blocks == target
        fs.check()
    fsck(path)


def test_operations_under_way(tmp_path: Path) -> None:
    """They hold numbers between two steps; who waits too long names them."""
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        first = past(fs)[0]
        other = fs.steps.fallocate(fs.open_file(fs.tree.stat("/d1/file").ino, os.O_RDWR), 0, 0, 12 * MIB)
        next(other)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(renumbering, "PATIENCE_SECONDS", 0.0)
            with pytest.raises(FsError, match=f"/d.* .inode {first}. of the groups that go .other operations"):
                fs.resize(TARGET // 4096)
        assert past(fs)
        finish(other)
        fs.resize(TARGET // 4096)
        fs.check()
    fsck(path)


def test_a_seed_stays(tmp_path: Path) -> None:
    with FileSystem.open(made(tmp_path / "pool"), QUIET) as fs:
        geometry: Geometry = fs.volume.geometry
        for old, new, generation in ((17, 400, 0), (2_000_000_000, 12, 0xFFFFFFFF), (5, 5, 77)):
            other = renumbering.same_seed(geometry, old, generation, new)
            assert geometry.inode_seed(new, other) == geometry.inode_seed(old, generation)


def test_nobody_waits_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other operations that go on and on cost all inodes together one wait."""
    path = made(tmp_path / "pool", size="80M")
    with FileSystem.open(path, QUIET) as fs:
        filled(fs)
        assert len(past(fs)) > 20
        other = fs.steps.fallocate(fs.open_file(fs.tree.stat("/d1/file").ino, os.O_RDWR), 0, 0, 12 * MIB)
        next(other)
        moments = count(0, 0.5)
        monkeypatch.setattr(renumbering.time, "monotonic", lambda: next(moments))
        monkeypatch.setattr(fs.volume, "under_way", 2)
        assert finish(renumbering.renumber(fs.volume, fs.grants, TARGET // 4096)).keys() == set(past(fs))
        assert next(moments) < renumbering.PATIENCE_SECONDS + len(past(fs))
        monkeypatch.undo()
        finish(other)
        fs.check()
    fsck(path)

"""Set-id bits and file capabilities: which change drops them, compared with the kernel's ext4."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Caller, SetAttributes
from support import fsck

MakePool = Callable[..., Path]

USER = Caller(uid=1000, gid=1000)
OTHER = Caller(uid=2000, gid=2000)
CAPABILITY = b"security.capability"
VALUE = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, VFS_CAP_REVISION_2

SET_ID_MODES = (0o4755, 0o2755, 0o6755, 0o2644, 0o6644, 0o4644, 0o755)


@pytest.fixture
def ino(fs: FileSystem) -> int:
    """Return the number of a file of 1000:1000 with some content."""
    fs.tree.write_bytes("/f", b"c" * 10_000)
    made = fs.tree.resolve("/f")
    fs.setattr(made, SetAttributes(uid=1000, gid=1000))
    return made


def modes_after(fs: FileSystem, ino: int, change: Callable[[], object]) -> list[int]:
    """Return what each mode becomes."""
    found = []
    for mode in SET_ID_MODES:
        fs.setattr(ino, SetAttributes(mode=mode))
        change()
        found.append(fs.getattr(ino).mode & 0o7777)
    return found


STRANGER = [0o755, 0o755, 0o755, 0o644, 0o644, 0o644, 0o755]
MEMBER = [0o755, 0o755, 0o755, 0o2644, 0o2644, 0o644, 0o755]
KEPT = list(SET_ID_MODES)


@pytest.mark.parametrize(
    ("caller", "kill", "expected"),
    [
        (Caller(), None, KEPT),
        (USER, None, MEMBER),
        (OTHER, None, STRANGER),
        (Caller(), True, MEMBER),
        (USER, True, MEMBER),
        (OTHER, True, STRANGER),
        (Caller(), False, KEPT),
        (USER, False, KEPT),
        (OTHER, False, KEPT),
    ],
)
def test_writes_cuts_and_opens(
    fs: FileSystem, ino: int, caller: Caller, kill: bool | None, expected: list[int]
) -> None:
    file = fs.open_file(ino, os.O_RDWR, caller)
    for offset in (0, 9_999):  # in place, and one that makes the file longer
        assert modes_after(fs, ino, lambda at=offset: fs.write(file, at, b"xy", kill)) == expected  # type: ignore[misc]
    for size in (100, 100, 20_000):
        cut = SetAttributes(size=size, kill_privileges=kill)
        assert modes_after(fs, ino, lambda to=cut: fs.setattr(ino, to, caller)) == expected  # type: ignore[misc]
    cut_open = os.O_WRONLY | os.O_TRUNC
    assert modes_after(fs, ino, lambda: fs.release(fs.open_file(ino, cut_open, caller, kill))) == expected
    assert modes_after(fs, ino, lambda: fs.release(fs.open_file(ino, os.O_RDWR, caller, True))) == KEPT
    fs.release(file)


def test_a_change_by_somebody_who_did_not_open_the_file(fs: FileSystem, ino: int) -> None:
    """FUSE names the writer. The next change counts as the opener's again."""
    file = fs.open_file(ino, os.O_RDWR)
    source = fs.create(ROOT_INO, b"source", 0o644)[0]
    fs.write(source, 0, b"content")
    assert modes_after(fs, ino, lambda: fs.write(file, 0, b"xy", None, OTHER)) == STRANGER
    assert modes_after(fs, ino, lambda: fs.write(file, 0, b"xy")) == KEPT
    assert modes_after(fs, ino, lambda: fs.fallocate(file, 0, 0, 10, OTHER)) == STRANGER
    assert modes_after(fs, ino, lambda: fs.fallocate(file, 0, 0, 10)) == KEPT
    assert modes_after(fs, ino, lambda: fs.copy_range(source, 0, file, 0, 7, USER)) == MEMBER
    assert modes_after(fs, ino, lambda: fs.copy_range(source, 0, file, 0, 7)) == KEPT
    fs.release(source)
    fs.release(file)


def test_a_new_owner_takes_them_whatever_is_said_of_the_size(fs: FileSystem, ino: int) -> None:
    changes = SetAttributes(gid=3000, kill_privileges=False)
    assert modes_after(fs, ino, lambda: fs.setattr(ino, changes, OTHER))[0] == 0o755


def test_a_write_of_nothing_changes_nothing(fs: FileSystem, ino: int) -> None:
    fs.setxattr(ino, CAPABILITY, VALUE)
    file = fs.open_file(ino, os.O_RDWR, USER)
    before = fs.getattr(ino)
    assert fs.write(file, 0, b"", True) == 0
    assert fs.write(file, 50_000, b"", True) == 0
    assert fs.getattr(ino) == before
    assert fs.getxattr(ino, CAPABILITY) == VALUE
    fs.release(file)


# Capabilities


@pytest.mark.parametrize("kill", [None, True, False])
@pytest.mark.parametrize("beside", [0, 900], ids=["in the inode", "in a block"])
def test_a_capability_goes_with_every_change_of_content_or_owner(
    fs: FileSystem, ino: int, kill: bool | None, beside: int
) -> None:
    fs.setxattr(ino, b"user.stays", b"s" * beside)
    file = fs.open_file(ino, os.O_RDWR)
    changes: list[Callable[[], object]] = [
        lambda: fs.write(file, 0, b"x", kill),
        lambda: fs.write(file, 100_000, b"x", kill),
        lambda: fs.setattr(ino, SetAttributes(size=5, kill_privileges=kill)),
        lambda: fs.setattr(ino, SetAttributes(size=5, kill_privileges=kill)),
        lambda: fs.release(fs.open_file(ino, os.O_WRONLY | os.O_TRUNC, USER, kill)),
        lambda: fs.setattr(ino, SetAttributes(uid=5, kill_privileges=kill)),
        lambda: fs.setattr(ino, SetAttributes(gid=6, mode=0o644, kill_privileges=kill)),
    ]
    for change in changes:
        fs.setxattr(ino, CAPABILITY, VALUE)
        assert not file.keeps_privileges
        change()
        assert fs.listxattr(ino) == [b"user.stays"]
    for harmless in (
        lambda: fs.setattr(ino, SetAttributes(mode=0o700)),
        lambda: fs.setattr(ino, SetAttributes(mtime_ns=5)),
        lambda: fs.release(fs.open_file(ino, os.O_RDWR)),
    ):
        fs.setxattr(ino, CAPABILITY, VALUE)
        harmless()
        assert fs.getxattr(ino, CAPABILITY) == VALUE
    fs.release(file)


def test_a_directory_keeps_what_means_nothing_there(fs: FileSystem) -> None:
    directory = fs.mkdir(ROOT_INO, b"d", 0o2755).ino
    fs.setxattr(directory, CAPABILITY, VALUE)
    fs.setattr(directory, SetAttributes(uid=5, gid=6))
    assert fs.getxattr(directory, CAPABILITY) == VALUE


def test_other_attributes_cost_one_look(fs: FileSystem, ino: int) -> None:
    fs.setxattr(ino, b"user.x", b"1")
    file = fs.open_file(ino, os.O_RDWR, USER)
    assert not file.keeps_privileges
    fs.write(file, 0, b"x")
    assert file.keeps_privileges
    fs.setxattr(ino, CAPABILITY, VALUE)
    fs.write(file, 0, b"x")
    assert fs.listxattr(ino) == [b"user.x"]
    fs.release(file)
    fs.removexattr(ino, b"user.x")
    file = fs.open_file(ino, os.O_RDWR, USER)
    assert file.keeps_privileges
    fs.release(file)


def test_the_kernel_drops_the_same(pool: MakePool) -> None:
    """Root writes, cuts and changes owners on both file systems."""
    path = pool("-b", "4096")

    def kernel(root: Path, mode: int) -> list[tuple[int, bool]]:
        found = []
        place = root / "f"

        def note(change: Callable[[], object]) -> None:
            place.write_bytes(b"content")
            os.chmod(place, mode)
            os.setxattr(place, CAPABILITY, VALUE)
            change()
            found.append((place.stat().st_mode & 0o7777, CAPABILITY.decode() in os.listxattr(place)))
            os.chown(place, 0, 0)

        def put() -> None:
            with open(place, "r+b", buffering=0) as file:
                file.write(b"x")

        note(put)
        note(lambda: os.truncate(place, 3))
        note(lambda: place.write_bytes(b""))
        note(lambda: os.chown(place, 5, -1))
        note(lambda: os.chown(place, -1, 5))
        note(lambda: os.chmod(place, mode))
        return found

    def ours(fs: FileSystem, mode: int) -> list[tuple[int, bool]]:
        found = []

        def note(change: Callable[[int], object]) -> None:
            fs.tree.write_bytes("/g", b"content")
            ino = fs.tree.resolve("/g")
            fs.setattr(ino, SetAttributes(mode=mode))
            fs.setxattr(ino, CAPABILITY, VALUE)
            change(ino)
            found.append((fs.getattr(ino).mode & 0o7777, CAPABILITY in fs.listxattr(ino)))
            fs.setattr(ino, SetAttributes(uid=0, gid=0))

        def put(ino: int) -> None:
            file = fs.open_file(ino, os.O_RDWR)
            fs.write(file, 0, b"x")
            fs.release(file)

        note(put)
        note(lambda ino: fs.setattr(ino, SetAttributes(size=3)))
        note(lambda _: fs.tree.write_bytes("/g", b""))
        note(lambda ino: fs.setattr(ino, SetAttributes(uid=5)))
        note(lambda ino: fs.setattr(ino, SetAttributes(gid=5)))
        note(lambda ino: fs.setattr(ino, SetAttributes(mode=mode)))
        return found

    with kernel_mount(path) as root:
        expected = [kernel(root, mode) for mode in SET_ID_MODES]
    with FileSystem.open(path) as fs:
        assert [ours(fs, mode) for mode in SET_ID_MODES] == expected
    fsck(path)


@pytest.mark.crash
def test_writing_takes_set_id_bits_from_other_users_files(fs: FileSystem) -> None:
    user = Caller(uid=1000, gid=1000)
    ino = fs.mknod(ROOT_INO, b"f", 0o6777).ino
    root = fs.open_file(ino, os.O_RDWR)
    fs.write(root, 0, b"by root")
    assert fs.getattr(ino).mode & 0o7777 == 0o6777
    file = fs.open_file(ino, os.O_RDWR, user)
    fs.write(file, 0, b"by a user")
    assert fs.getattr(ino).mode & 0o7777 == 0o777
    fs.setattr(ino, SetAttributes(mode=0o6777))
    fs.setattr(ino, SetAttributes(size=1), user)
    assert fs.getattr(ino).mode & 0o7777 == 0o777
    fs.release(file)
    fs.release(root)


@pytest.mark.crash
def test_set_gid_without_group_execute_is_locking_and_stays_for_members(fs: FileSystem) -> None:
    ino = fs.mknod(ROOT_INO, b"f", 0o2767, caller=Caller(uid=1, gid=1000)).ino
    for user, stays in (
        (Caller(uid=1000, gid=1000), True),
        (Caller(uid=1000, gid=7, groups=frozenset({1000})), True),
        (Caller(uid=0, gid=0), True),
        (Caller(uid=1000, gid=7), False),
    ):
        file = fs.open_file(ino, os.O_RDWR, user)
        fs.write(file, 0, b"x")
        fs.setattr(ino, SetAttributes(size=1), user)
        assert bool(fs.getattr(ino).mode & stat.S_ISGID) == stays
        fs.release(file)

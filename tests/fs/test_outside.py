"""What tune2fs stores into a mounted pool from outside is kept, and is in the log from the next tick on.

The test stores as tune2fs does on a pool that it knows is mounted. tune2fs does not know it of a pool that is only open
in a library: there it would replay the journal (docs/TROUBLESHOOTING.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import ROOT_INO, Options
from support import fsck

LABEL = b"outside".ljust(16, b"\0")
SETTINGS: list[tuple[str, int | bytes]] = [
    ("s_max_mnt_count", 77),
    ("s_checkinterval", 432000),
    ("s_lastcheck", 12345),
    ("s_lastcheck_hi", 1),
    ("s_errors", 2),
    ("s_default_mount_opts", 4),
    ("s_def_resuid", 5),
    ("s_def_resgid", 6),
    ("s_volume_name", LABEL),
]
LAYOUTS = [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "^metadata_csum"), ("-b", "4096", "-O", "^has_journal")]


def superblock(path: Path) -> Superblock:
    return Superblock(memoryview(bytearray(path.read_bytes()[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE])))


def store(path: Path, *settings: tuple[str, int | bytes], torn: bool = False) -> None:
    """Change fields of the superblock at home."""
    sb = superblock(path)
    for field, value in settings:
        setattr(sb, field, value)
    if not torn:
        sb.seal()
    with path.open("r+b") as file:
        file.seek(SUPERBLOCK_OFFSET)
        file.write(sb.buffer)


def settings_at_home(path: Path) -> list[tuple[str, int | bytes]]:
    sb = superblock(path)
    return [(field, getattr(sb, field)) for field, _ in SETTINGS]


def assert_kept(path: Path) -> None:
    assert settings_at_home(path) == SETTINGS
    fsck(path)


def change(fs: FileSystem, name: bytes) -> None:
    """Make a commit that changes the superblock."""
    fs.mkdir(ROOT_INO, name, 0o755)
    fs.volume.commit()


def begin_log_anew(fs: FileSystem) -> None:
    moves = fs.volume.journal.stats.tail_moves
    count = 0
    while fs.volume.journal.stats.tail_moves == moves:
        change(fs, b"%d" % count)
        fs.rmdir(ROOT_INO, b"%d" % count)
        count += 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout[-1])
def test_settings_are_kept_when_the_mount_ends(pool: Callable[..., Path], layout: tuple[str, ...]) -> None:
    path = pool(*layout, size="16M")
    with FileSystem.open(path) as fs:
        change(fs, b"first")
        store(path, *SETTINGS)
        change(fs, b"second")
    assert_kept(path)


def test_settings_are_kept_when_the_log_begins_anew(pool: Callable[..., Path]) -> None:
    path = pool("-b", "1024", size="16M")
    with FileSystem.open(path) as fs:
        for _ in range(3):
            store(path, *SETTINGS)
            begin_log_anew(fs)
            assert settings_at_home(path) == SETTINGS
    assert_kept(path)


def test_a_setting_that_is_changed_back_is_back(pool: Callable[..., Path]) -> None:
    path = pool("-b", "1024", size="16M")
    before = superblock(path).s_max_mnt_count
    with FileSystem.open(path, Options(commit_interval=0.0)) as fs:
        for value in (77, before):
            store(path, ("s_max_mnt_count", value))
            fs.tick()
            begin_log_anew(fs)
            assert superblock(path).s_max_mnt_count == value
    assert superblock(path).s_max_mnt_count == before
    fsck(path)


def test_settings_are_kept_by_a_remount(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        store(path, *SETTINGS)
        fs.remount(Options(read_only=True))
        assert_kept(path)
        fs.remount(Options())
        change(fs, b"d")
    assert_kept(path)


def test_settings_survive_a_power_cut_after_a_tick(pool: Callable[..., Path], tmp_path: Path) -> None:
    path, cut = pool("-b", "4096", size="16M"), tmp_path / "cut"
    with FileSystem.open(path, Options(commit_interval=0.0)) as fs:
        store(path, *SETTINGS)
        fs.tick()
        assert not fs.volume.journal.dirty
        cut.write_bytes(path.read_bytes())
        commits = fs.volume.journal.stats.commits
        fs.tick()
        assert fs.volume.journal.stats.commits == commits
    with FileSystem.open(cut):
        pass
    assert_kept(cut)


@pytest.mark.parametrize("anew", [False, True])
def test_the_mounts_own_label_wins(pool: Callable[..., Path], *, anew: bool) -> None:
    path = pool("-b", "1024", size="16M")
    with FileSystem.open(path) as fs:
        store(path, ("s_volume_name", LABEL))
        fs.set_label(b"inside")
        if anew:
            begin_log_anew(fs)
            assert superblock(path).label == "inside"
    assert superblock(path).label == "inside"
    fsck(path)


def test_a_torn_store_is_not_believed(pool: Callable[..., Path]) -> None:
    path = pool("-b", "4096", "-O", "metadata_csum", size="16M")
    with FileSystem.open(path, Options(commit_interval=0.0)) as fs:
        store(path, ("s_volume_name", LABEL), torn=True)
        fs.tick()
        change(fs, b"d")
    assert superblock(path).label == ""
    fsck(path)

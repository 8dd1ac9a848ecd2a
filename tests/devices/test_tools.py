"""The tools on each kind of persistent memory: check, export, import, info; read(2) of a devdax device fails."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest
from device_rig import DEVDAX, KINDS, MIB, POOL_MIB, checked, daxfs, mkfs, mounted
from mount_rig import Mounted, mountpoint

from daxfs.pmem.opening import open_pool
from daxfs.tools import exporting as _loaded_before_the_fork  # noqa: F401
from daxfs.tools import importing as _importing  # noqa: F401
from daxfs.tools import mappedcheck as _mappedcheck  # noqa: F401
from support import fsck, run

CONTENT = os.urandom(MIB)
SEEN = {"fsdax": "block", "sector": "block", "ext4-dax": "fsdax", "xfs-dax": "fsdax"}
"""How daxfs names a kind: a namespace of mode fsdax is a block device, and a file on a dax mount is fsdax."""


def filled(ground: Path, *options: str) -> Path:
    """Make a pool with a file."""
    pool = mkfs(ground, *options)
    with mounted(pool) as mount:
        (mount.place / "file").write_bytes(CONTENT)
    return pool


def holds_the_file(pool: Path) -> None:
    with mounted(pool, "ro") as mount:
        assert (mount.place / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("ground", DEVDAX, indirect=True)
def test_check_repairs_a_device_that_cannot_be_read(ground: Path) -> None:
    pool = filled(ground, "-F")
    descriptor = os.open(pool, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument") as refused:
        os.pread(descriptor, 4096, 0)
    os.close(descriptor)
    assert refused.value.errno == errno.EINVAL
    assert f"{pool}: clean" in daxfs("check", "-p", pool)
    with open_pool(pool) as opened:
        before = bytes(opened.memory[: 64 * MIB])
        (free,) = struct.unpack_from("<H", opened.memory, 4096 + 12)  # bg_free_blocks_count_lo of group 0
        opened.write(4096 + 12, struct.pack("<H", free ^ 0x55))
        opened.fence()
    assert "Fix? no" in daxfs("check", "-f", "-n", pool, code=4)
    assert "FILE SYSTEM WAS MODIFIED" in daxfs("check", "-f", "-y", pool, code=1)
    daxfs("check", "-f", "-n", pool)
    checked(pool)
    with open_pool(pool, read_only=True) as opened:
        after = bytes(opened.memory[: 64 * MIB])
    assert after[8192:] == before[8192:], "nothing else was changed"
    holds_the_file(pool)


@pytest.mark.parametrize("ground", [*DEVDAX, "ext4-dax"], indirect=True)
def test_a_copy_and_back(ground: Path, tmp_path: Path) -> None:
    if ground.exists():  # a device, with what tests before have left in blocks that are free now
        with open_pool(ground) as opened:
            opened.zero(0, opened.size)
            opened.fence()
    pool = filled(ground, "-F")
    copy, second = tmp_path / "copy", tmp_path / "second"
    daxfs("export", pool, copy)
    fsck(copy)
    assert copy.stat().st_blocks * 512 < 64 * MIB
    assert run("debugfs", "-R", "stat /file", copy).count(f"Size: {len(CONTENT)}")
    with open_pool(pool) as opened:
        opened.write(300 * 4096, os.urandom(MIB))
        opened.fence()
    assert "holds an ext2, ext3 or ext4 file system" in daxfs("import", copy, pool, code=1)
    assert " copied to " in daxfs("import", "--force", copy, pool)
    daxfs("check", "-f", "-n", pool)
    daxfs("export", pool, second)
    run("cmp", copy, second)
    holds_the_file(pool)


def test_from_device_to_device(devices: dict[str, Path], tmp_path: Path) -> None:
    small, large = devices["devdax-4K"], devices["devdax-2M"]
    filled(small, "-F")
    assert "the file system in it keeps its size" in daxfs("import", "--force", small, large)
    daxfs("check", "-f", "-n", large)
    assert "less than" in daxfs("import", "--force", large, small, code=1)
    with mounted(large) as mount:
        assert (mount.place / "file").read_bytes() == CONTENT
        for arguments, code in (
            (("check", "-n", large), 8),
            (("export", large, tmp_path / "copy"), 32),
            (("import", "--force", small, large), 32),
        ):
            assert "in use" in daxfs(*arguments, code=code)


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_mkfs_and_info_name_the_same_kind(ground: Path, kind: str) -> None:
    seen = SEEN.get(kind, "devdax")
    size = ("--size", f"{POOL_MIB}M") if seen == "fsdax" else ()
    assert f" ext4 on {seen}, " in daxfs("mkfs", ground, *size, "-F")
    told = json.loads(daxfs("info", "--json", ground))
    align = 2 * MIB if kind == "devdax-2M" else 4096
    persistence = "msync" if seen == "block" else "libpmem"
    assert (told["kind"], told["alignment"], told["persistence"]) == (seen, align, persistence)


@pytest.mark.parametrize("ground", ["ext4-dax"], indirect=True)
def test_info_of_a_pool_that_was_not_unmounted(ground: Path) -> None:
    """It is recovered in a private mapping, which has another kind of persistence than the pool."""
    pool = mkfs(ground)
    with mountpoint() as place:
        mount = Mounted(pool, place)
        (place / "file").write_bytes(b"content")
        mount.daemon.kill()
        mount.down()
    found = json.loads(daxfs("info", "--json", pool))
    assert found["state"].startswith("not unmounted")
    assert (found["kind"], found["persistence"]) == ("fsdax", "libpmem")

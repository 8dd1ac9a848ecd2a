"""What kind of memory a path is, by sysfs and procfs trees made for the test; and who uses it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daxfs.errors import PoolError
from daxfs.pmem import exclusive, kinds
from daxfs.pmem.opening import open_pool
from support import mke2fs, run


def mount_table(path: Path, *, filesystem: str, root: Path) -> str:
    device = os.stat(path).st_dev
    table = root / "mountinfo"
    number = f"{os.major(device)}:{os.minor(device)}"
    table.write_text(
        "bad line\n22 27 0:9999 / /proc rw shared:1 - proc proc rw\n"
        f"23 27 {number} / /a\\040b rw,relatime shared:1 master:2 - {filesystem} /dev/pm\\134em rw\n"
    )
    return str(table)


def char_tree(root: Path, bus: str, **attributes: str) -> str:
    device = os.stat("/dev/zero").st_rdev
    folder = root / "dev" / "char" / f"{os.major(device)}:{os.minor(device)}"
    folder.mkdir(parents=True)
    (root / bus).mkdir()
    (folder / "subsystem").symlink_to(root / bus)
    for name, text in attributes.items():
        (folder / name).write_text(text)
    return str(root)


def test_mount_table(tmp_path: Path) -> None:
    table = mount_table(tmp_path, filesystem="ext4", root=tmp_path)
    mounts = kinds.read_mounts(table)
    assert [mount.filesystem for mount in mounts] == ["proc", "ext4"]
    assert (mounts[1].mountpoint, mounts[1].source) == ("/a b", "/dev/pm\\em")
    assert kinds.read_mounts(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("filesystem", "kind"), [("ext4", "file"), ("tmpfs", "tmpfs"), ("hugetlbfs", "tmpfs"), ("overlay", "file")]
)
def test_files(tmp_path: Path, filesystem: str, kind: str) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(3 << 20))
    target = kinds.identify(str(path), mountinfo=mount_table(path, filesystem=filesystem, root=tmp_path))
    assert (target.kind, target.size, target.filesystem) == (kind, 3 << 20, filesystem)


@pytest.mark.parametrize(
    ("size", "align", "usable", "unit"),
    [
        ("8388608", "2097152", 8 << 20, 2 << 20),
        ("8388607", "2097152", 6 << 20, 2 << 20),
        ("3221225472", "1073741824", 3 << 30, 1 << 30),
        ("8388608", "4096", 8 << 20, 4096),
        ("8388608", "", 8 << 20, 2 << 20),
    ],
)
def test_devdax(tmp_path: Path, size: str, align: str, usable: int, unit: int) -> None:
    target = kinds.identify("/dev/zero", sysfs=char_tree(tmp_path / "sys", "dax", size=size, align=align))
    assert (target.kind, target.size, target.align, target.exact_size) == ("devdax", usable, unit, int(size))


@pytest.mark.parametrize(
    ("size", "align", "text"),
    [
        ("1048576", "2097152", "too few"),
        ("0", "2097152", "too few"),
        ("lots", "2097152", "too few"),
        ("-4194304", "2097152", "too few"),
        ("8388608", "3000000", "expected a power of two"),
        ("8388608", "512", "expected a power of two"),
    ],
)
def test_bad_devdax(tmp_path: Path, size: str, align: str, text: str) -> None:
    sysfs = char_tree(tmp_path / "sys", "dax", size=size, align=align)
    with pytest.raises(PoolError, match=text):
        kinds.identify("/dev/zero", sysfs=sysfs)


def test_other_character_devices(tmp_path: Path) -> None:
    for sysfs in (char_tree(tmp_path / "sys", "mem", size="8388608"), str(tmp_path / "none")):
        with pytest.raises(PoolError, match="no /dev/dax device"):
            kinds.identify("/dev/zero", sysfs=sysfs)


def fake_loop(root: Path, backing: str, *, autoclear: str, mountpoint: str = "") -> tuple[str, str]:
    """A sysfs and a procfs with one loop device."""
    loop = root / "sys" / "block" / "loop7" / "loop"
    loop.mkdir(parents=True)
    (root / "sys" / "block" / "sda").mkdir()
    (loop / "backing_file").write_text(backing + "\n")
    (loop / "autoclear").write_text(autoclear + "\n")
    (loop.parent / "dev").write_text("7:7\n")
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    line = f"30 1 7:7 / {mountpoint} rw - ext4 /dev/loop7 rw\n" if mountpoint else ""
    (proc / "mountinfo").write_text(line)
    return str(root / "sys"), str(root / "proc")


@pytest.mark.parametrize(
    ("autoclear", "mountpoint", "text"),
    [
        ("1", "/mnt/x", "it is mounted on /mnt/x through /dev/loop7; umount /mnt/x"),
        ("0", "", "attached to /dev/loop7; losetup -d"),
        ("1", "", "attached to /dev/loop7; losetup -d"),
    ],
)
def test_loop_is_refused(tmp_path: Path, autoclear: str, mountpoint: str, text: str) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 20))
    (tmp_path / "alias").symlink_to(path)
    sysfs, proc = fake_loop(tmp_path, str(tmp_path / "alias"), autoclear=autoclear, mountpoint=mountpoint)
    target = kinds.identify(str(path))
    with pytest.raises(PoolError, match=text):
        exclusive.claim(target, sysfs=sysfs, proc=proc)
    (Path(sysfs) / "block" / "loop7" / "loop" / "backing_file").write_text("/elsewhere\n")
    os.close(exclusive.claim(target, sysfs=sysfs, proc=proc))


def test_mounted_elsewhere_by_daxfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 20))
    status = path.stat()
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "77").mkdir()
    (proc / "77" / "comm").write_text("daxfs\n")
    (proc / "self" / "mountinfo").write_text(f"30 1 0:50 / /mnt/p rw - fuse.daxfs {os.path.realpath(path)} rw\n")
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    (proc / "locks").write_text(
        f"1: POSIX  ADVISORY  WRITE 3 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 77 {place} 0 EOF\n"
    )
    target = kinds.identify(str(path))
    holder = exclusive.claim(target)
    try:
        with pytest.raises(PoolError, match=r"process 77 \(daxfs\), has it mounted on /mnt/p; daxfs umount /mnt/p"):
            exclusive.claim(target, proc=str(proc))
    finally:
        os.close(holder)


def test_real_loop_device(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="4M")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    device = run("losetup", "-f", "--show", path, limit=20).strip()
    try:
        with pytest.raises(PoolError, match=rf"attached to {device}; losetup -d {device}"):
            open_pool(path)
        run("mount", device, mountpoint, limit=20)
        try:
            with pytest.raises(
                PoolError, match=rf"it is mounted on {mountpoint} through {device}; umount {mountpoint}"
            ):
                open_pool(path)
            with pytest.raises(PoolError, match=rf"{device} is in use: it is mounted on {mountpoint}; umount"):
                open_pool(device)
        finally:
            run("umount", mountpoint, limit=20)
        with open_pool(device) as pool:
            assert (pool.kind, pool.size, pool.persistence) == ("block", 4 << 20, "msync")
            pool.write(3 << 20, b"through the loop")
            pool.fence()
            with pytest.raises(PoolError, match="in use"):
                open_pool(device)
    finally:
        run("losetup", "-d", device, limit=20)
    with open_pool(path) as pool:
        assert bytes(pool.memory[3 << 20 : (3 << 20) + 16]) == b"through the loop"


def test_pool_is_free_right_after_the_kernel_unmounts(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "pool", size="4M")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    run("mount", "-o", "loop", path, mountpoint, limit=20)
    try:
        with pytest.raises(PoolError, match=f"mounted on {mountpoint}"):
            open_pool(path)
    finally:
        run("umount", mountpoint, limit=20)
    open_pool(path).close()

"""The size of the file system that statfs(2) tells is the kernel's, whatever ``s_overhead_clusters`` says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import kernel_mount

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from support import fsck, run

FORMATS = {
    "4k": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "no-extents": ("-b", "4096", "-O", "^extent,^64bit"),
    "no-flex": ("-b", "1024", "-O", "^flex_bg"),
    "meta-bg": ("-b", "1024", "-O", "meta_bg,^resize_inode"),
    "sparse-super2": ("-b", "1024", "-O", "sparse_super2"),
    "no-sparse-super": ("-b", "1024", "-O", "^sparse_super,^resize_inode"),
    "no-journal": ("-b", "4096", "-O", "^has_journal"),
    "bigalloc": ("-b", "4096", "-O", "bigalloc", "-C", "16384"),
    "bigalloc-1k": ("-b", "1024", "-O", "bigalloc", "-C", "8192"),
}


@pytest.mark.parametrize("value", [0, 77])
@pytest.mark.parametrize("options", FORMATS.values(), ids=list(FORMATS))
def test_statfs_tells_the_kernels_size(pool: Callable[..., Path], options: tuple[str, ...], value: int) -> None:
    path = pool(*options, size="64M")
    run("debugfs", "-w", "-R", f"set_super_value overhead_clusters {value}", path)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        told = fs.statfs()
    with kernel_mount(path, "ro") as root:
        expected = os.statvfs(root)
    assert (told.blocks, told.free, told.available) == (expected.f_blocks, expected.f_bfree, expected.f_bavail)
    fsck(path)

"""Mappings of files in a pool that can be mapped in units of 2 MiB only (devdax; here hugetlbfs, which has such rules).

Wherever a part of a unit is mapped, unmapped or protected alone, the kernel maps it, and all mappings of these bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import daxfs
from coarse_programs import PROGRAMS, SIZES, python_maps, python_maps_parts, shown_directly
from mount_rig import SESSIONS, Mounted, mounted
from preloaded_actors import run_python
from test_preload_maps import HELPERS

from daxfs import direct
from support import run

PAGES = Path("/proc/sys/vm/nr_hugepages")
POOL_PAGES = 64
UNIT = 2 << 20


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Let the system have that many more huge pages for a while."""
    before = int(PAGES.read_text())
    PAGES.write_text(str(before + count))
    try:
        assert int(PAGES.read_text()) >= before + count, "no memory for huge pages"
        yield
    finally:
        PAGES.write_text(str(before))


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount of a pool in hugetlbfs."""
    place = tmp_path_factory.mktemp("huge")
    with huge_pages(POOL_PAGES):
        run("mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "daxfs-test", place)
        try:
            daxfs("mkfs", place / "pool", "--size", f"{2 * POOL_PAGES}M")
            with mounted(place / "pool", *SESSIONS["kernel"]) as mount:
                yield mount
        finally:
            run("umount", "-l", place)


@pytest.mark.parametrize("program", PROGRAMS)
def test_below_the_library(mount: Mounted, program: str) -> None:
    run_python(HELPERS + PROGRAMS[program], mount.place, mount.pool.resolve())


@pytest.mark.parametrize("size", SIZES)
def test_a_mapping_of_python(mount: Mounted, size: int) -> None:
    python_maps(mount, size)


def test_parts_of_units_are_mapped_as_units(mount: Mounted) -> None:
    python_maps_parts(mount)


def test_units_that_the_kernel_maps_for_one_mapping_are_mapped_so_for_all(mount: Mounted) -> None:
    path = mount.place / "left"
    content = os.urandom(2 * UNIT)
    path.write_bytes(content)
    with direct.map(path, access="rw") as whole:
        whole.view[:3] = b"one"
        run_python(KERNEL_MAPS, path)
        assert shown_directly(mount, whole.view)
        with direct.map(path, access="rw") as other:
            other.view[:3] = b"two"
            assert whole.view[:3] == b"two"
            whole.view[5:8] = b"six"
            assert other.view[:8] == b"two" + content[3:5] + b"six"


KERNEL_MAPS = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapping:
    assert mapping[:3] == b"one"
"""

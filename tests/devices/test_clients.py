"""Direct access on each kind of memory: `daxfs.direct` and `daxfs exec` read, write and map what FUSE sees."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_rig import KINDS, MIB, checked, mkfs, mounted, said
from mount_rig import Mounted

from daxfs import direct
from daxfs.tools import exec as preload
from support import tool

SIZES = (1, 5000, 700_000, 2 * MIB, 3 * MIB + 5)


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_daxfs_direct(ground: Path, kind: str) -> None:
    pool = mkfs(ground)
    with mounted(pool) as mount:
        said(lambda: use_direct(mount.place, direct_maps=kind != "devdax-2M"))
        for size in SIZES:
            found = (mount.place / f"file{size}").read_bytes()
            assert found[:size] == bytes([size % 251]) * size
            assert found[size:] == b"appended"
    checked(pool)


def use_direct(place: Path, *, direct_maps: bool) -> None:
    """Write, read, map, map in parts and append, in a process of its own.

    Memory that maps in units of 2 MiB maps other lengths through the kernel: ``direct_maps`` is False there.
    """
    for size in SIZES:
        path = place / f"file{size}"
        path.write_bytes(bytes(size))
        with direct.open(path, "r+b") as file:
            assert file.direct, file.why
            assert file.pwrite(0, bytes([size % 251]) * size) == size
            assert file.pread(0, size) == bytes([size % 251]) * size
            file.flush()
            with direct.map(file, access="rw") as mapping:
                assert mapping.direct or not direct_maps, mapping.why
                assert bytes(mapping.view[-1:]) == bytes([size % 251])
                mapping.view[0] = 7
                mapping.flush()
            assert file.pread(0, 1) == b"\7"
            if size > MIB:
                with direct.map(file, offset=4096, length=MIB, access="rw") as part:
                    part.view[:3] = b"abc"
                assert file.pread(4096, 3) == b"abc"
                file.pwrite(4096, bytes([size % 251]) * 3)
            file.pwrite(0, bytes([size % 251]))
            file.pwrite(size, b"appended")


@pytest.fixture
def mount(ground: Path) -> Iterator[Mounted]:
    """A new pool of a kind, mounted; clean at the end."""
    pool = mkfs(ground)
    with mounted(pool) as mount:
        yield mount
    checked(pool)


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_dd_below_exec(mount: Mounted) -> None:
    data = os.urandom(3 * MIB + 5)
    for options in ("bs=4096", "bs=1M"):
        target = mount.place / options
        command = [tool("dd"), f"of={target}", options, "conv=fsync", "status=none"]
        subprocess.run(command, input=data, env=preload.environment(os.environ), check=True, timeout=120)
        assert target.read_bytes() == data
        command = [tool("dd"), f"if={target}", options, "status=none"]
        found = subprocess.run(
            command, stdout=subprocess.PIPE, env=preload.environment(os.environ), check=True, timeout=120
        )
        assert found.stdout == data


@pytest.mark.parametrize("ground", ["devdax-2M"], indirect=True)
def test_a_mapping_has_huge_pages(mount: Mounted) -> None:
    (mount.place / "file").write_bytes(bytes(8 * MIB))

    def touch() -> None:
        with direct.open(mount.place / "file", "r+b") as file, direct.map(file, access="rw") as mapping:
            assert mapping.direct, mapping.why
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for offset in range(0, 8 * MIB, 4096):
                mapping.view[offset] = 1
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            assert faults < 64, faults  # 4 of 2 MiB and some of the interpreter's, or 2048 of 4 KiB

    said(touch)

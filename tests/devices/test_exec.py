"""Programs below `daxfs exec` on persistent memory: mappings in whole and in parts, and how the pool is mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
from coarse_programs import PROGRAMS, SIZES, python_maps, python_maps_parts
from device_rig import DEVDAX, KINDS, MIB, checked, mkfs, mounted
from mount_rig import Mounted, mountpoint
from preload_rig import compile_program, said
from preloaded_actors import run_python
from test_preload_maps import HELPERS

from daxfs.tools.exec import library

LIMIT = 400.0
"""Seconds for a program that starts an interpreter in the guest."""

FINE = """
content = os.urandom(5 * MIB)
fd = make("fine", 5 * MIB, content)
whole, part = map(fd, 5 * MIB), map(fd, PAGE, PAGE)
private = map(fd, PAGE, 4 * MIB, flags=PRIVATE)
assert direct(whole) and direct(part) and get(whole, 5 * MIB) == content
put(part, b"part"), put(whole + 4 * MIB, b"whole")
assert get(whole + PAGE, 4) == b"part" == os.pread(fd, 4, PAGE)
assert get(private, 5) in (b"whole", content[4 * MIB:4 * MIB + 5])
put(private, b"mine")
assert get(whole + 4 * MIB, 5) == b"whole"
unmap(whole + MIB, PAGE)
assert dies(lambda: get(whole + MIB, 1)) == "SIGSEGV"
checked(libc.mprotect(whole + 2 * MIB, PAGE, R))
assert dies(lambda: put(whole + 2 * MIB, b"x")) == "SIGSEGV"
child = os.fork()
if not child:
    put(whole + 3 * MIB, b"child")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0 and os.pread(fd, 5, 3 * MIB) == b"child"
checked(libc.msync(whole, MIB, 4))
"""
SYNC = """
fd = make("sync", 70_000)
for _ in range(4):
    os.pwrite(fd, b"stored", 5), os.pread(fd, 10, 0)
mapped, name = [], ""
for line in open("/proc/self/smaps"):
    name = line if "-" in line.split()[0] else name
    if line.startswith("VmFlags:") and POOL in name and "wr" in line.split():
        mapped.append("sf" in line.split())
assert mapped and all(mapped), mapped
"""


EACH = """
for program in {programs}:
    child = os.fork()
    if not child:
        exec(program)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
"""


def below(mount: Path, pool: Path, *programs: str) -> None:
    """Run each program in a fork of one interpreter."""
    run_python(HELPERS + EACH.format(programs=programs), mount, pool.resolve(), limit=LIMIT)


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_mappings(ground: Path, kind: str) -> None:
    pool = mkfs(ground)
    with mounted(pool) as mount:
        below(mount.place, pool, *(PROGRAMS.values() if kind == "devdax-2M" else [FINE]))
    checked(pool)


@pytest.mark.parametrize("ground", ["ext4-dax", "xfs-dax"], indirect=True)
def test_a_file_with_dax_is_mapped_synchronously(ground: Path) -> None:
    """Else stores may lie in blocks that the host file system has not committed yet."""
    pool = mkfs(ground, "--sparse")
    with mounted(pool) as mount:
        below(mount.place, pool, SYNC)


@pytest.mark.parametrize("ground", DEVDAX, indirect=True)
def test_mappings_of_python(ground: Path) -> None:
    pool = mkfs(ground)
    with mounted(pool) as mount:
        for size in SIZES[1::2]:
            python_maps(mount, size)
        python_maps_parts(mount)
    checked(pool)


@pytest.mark.parametrize("ground", ["ext4-dax"], indirect=True)
def test_a_pool_of_cache_lines_is_cut_below_a_program(ground: Path, tmp_path: Path) -> None:
    program = compile_program("missing", tmp_path / "missing")
    pool = mkfs(ground)
    with mountpoint() as place:
        mount = Mounted(pool, place, (f"log={tmp_path / 'log'}",))
        try:
            for path in (place / "file", tmp_path / "plain"):
                path.write_bytes(bytes(MIB))
            assert said(library(), program, place / "file", pool, tmp_path / "plain") == "good\n"
            assert mount.daemon.poll() is None
        finally:
            mount.down()

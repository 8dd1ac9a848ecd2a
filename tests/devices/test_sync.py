"""Persistence by cache lines: MAP_SYNC for pool files on dax, and no msync(2) there and on /dev/dax."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from device_rig import DEVDAX, KINDS, daxfs, mkfs, mounted

from support import tool

BY_CACHE_LINES = (*DEVDAX, "ext4-dax", "xfs-dax")
SYNCHRONISING = "msync,fsync,fdatasync,sync_file_range"


def flags_of_mapping(pid: int, path: Path) -> list[set[str]]:
    """VmFlags of each mapping of a file in a process (proc(5), smaps)."""
    found = []
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(f" {path}")
        elif inside and line.startswith("VmFlags:"):
            found.append(set(line.split()[1:]))
    return found


@pytest.mark.parametrize("ground", ["ext4-dax", "xfs-dax"], indirect=True)
def test_a_pool_file_is_mapped_with_map_sync(ground: Path) -> None:
    """A /dev/dax device needs no MAP_SYNC: it has no metadata."""
    pool = mkfs(ground)
    with mounted(pool) as mount:
        mappings = flags_of_mapping(mount.daemon.pid, pool)
        assert mappings
        assert all("sf" in flags for flags in mappings), mappings


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_an_fsync_of_a_program_is_a_system_call_of_the_daemon_only_with_a_page_cache(
    ground: Path, kind: str, tmp_path: Path
) -> None:
    pool = mkfs(ground)
    log = tmp_path / "calls"
    with mounted(pool) as mount:
        with (mount.place / "file").open("wb", buffering=0) as file:
            file.write(b"before")
            tracer = subprocess.Popen(
                [tool("strace"), "-f", "-e", f"trace={SYNCHRONISING}", "-o", log, "-p", str(mount.daemon.pid)],
                stderr=subprocess.DEVNULL,
            )
            try:
                end = time.monotonic() + 60
                while "TracerPid:\t0" in Path(f"/proc/{mount.daemon.pid}/status").read_text():
                    assert time.monotonic() < end
                    time.sleep(0.1)
                for _ in range(3):
                    file.write(os.urandom(5000))
                    os.fsync(file.fileno())
            finally:
                tracer.terminate()
                tracer.wait()
        calls = re.findall(rf"\b({SYNCHRONISING.replace(',', '|')})\(", log.read_text())
        assert bool(calls) == (kind not in BY_CACHE_LINES), calls


@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_info_names_the_kind_and_the_persistence(ground: Path, kind: str) -> None:
    shown = dict(line.split(":", 1) for line in daxfs("info", mkfs(ground)).splitlines() if ":" in line)
    expected = "devdax" if kind in DEVDAX else "fsdax" if kind in BY_CACHE_LINES else "block"
    assert shown["kind"].split()[0] == expected
    assert shown["persistence"].split()[0] == ("libpmem" if kind in BY_CACHE_LINES else "msync")

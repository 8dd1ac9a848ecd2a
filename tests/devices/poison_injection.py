"""Poison in emulated persistent memory: the kernel is told of a memory failure at a physical address (mce-inject).

The page must not be mapped yet, so a pool is poisoned while it is not mounted. Poison can't be cleared in the guest, so
each test takes other memory.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

from support import run

INJECT = Path("/sys/kernel/debug/mce-inject")
PAGE = 4096
SECTOR = 512
UNCORRECTED = 0xBD000000000000C0  # IA32_MCi_STATUS: valid, uncorrected, enabled, MISCV, ADDRV, action required
PAGE_GRANULAR = 0x8C  # IA32_MCi_MISC: physical address, low 12 bits unknown


def poison(path: Path, offset: int) -> None:
    """Poison the page at a byte offset of a device, or of a file on a host file system with dax."""
    address = physical(path, offset)
    for name, value in (
        ("flags", "sw"),
        ("cpu", "0"),
        ("status", hex(UNCORRECTED)),
        ("addr", hex(address)),
        ("misc", hex(PAGE_GRANULAR)),
        ("bank", "1"),
    ):
        (INJECT / name).write_text(value + "\n")
    end = time.monotonic() + 60
    while not is_listed(path, address):  # the kernel handles the memory failure in its own time
        assert time.monotonic() < end, "the kernel does not list the bad block"
        time.sleep(0.1)


def physical(path: Path, offset: int) -> int:
    """Return the physical address of a byte of a device or file."""
    status = path.stat()
    if stat.S_ISCHR(status.st_mode):
        return _resource(Path("/sys/dev/char") / _numbers(status.st_rdev)) + offset
    if stat.S_ISBLK(status.st_mode):
        return _resource(Path("/sys/dev/block") / _numbers(status.st_rdev) / "device") + offset
    block = offset // PAGE
    for line in run("filefrag", "-v", f"-b{PAGE}", path).splitlines():
        if found := re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line):
            first, last, start = map(int, found.groups())
            if first <= block <= last:
                device = Path("/sys/dev/block") / _numbers(status.st_dev) / "device"
                return _resource(device) + (start + block - first) * PAGE + offset % PAGE
    raise AssertionError(f"{path} has no block at {offset}")


def is_listed(path: Path, address: int) -> bool:
    """Whether a physical address is on the kernel's list of the device, or of the device that holds the file."""
    status = path.stat()
    if stat.S_ISCHR(status.st_mode):
        region = Path("/sys/bus/nd/devices/region0")
        first, listed = _resource(region), region / "badblocks"
    else:
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        disk = Path("/sys/dev/block") / _numbers(number)
        first, listed = _resource(disk / "device"), disk / "badblocks"
    sector = (address - first) // SECTOR
    ranges = (map(int, line.split()) for line in listed.read_text().splitlines())
    return any(begin <= sector < begin + length for begin, length in ranges)


def _resource(device: Path) -> int:
    return int((device / "resource").read_text(), 16)


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"

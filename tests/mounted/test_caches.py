"""What the kernel's page cache shows is what the file holds: beside asynchronous direct writes, for each ``dax=``.

The first test has the steps of xfstests' generic/451 (aio-dio-cycle-write).
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aio_rig import Writer
from mount_rig import mounted

SIZE = 655_360
CYCLES_SECONDS = 1.5
READERS = 2
PATTERNS = (0x55, 0xAA)


def read_all(path: Path) -> bytes:
    """By read(2), through whatever cache the open gives."""
    with open(path, "rb", buffering=0) as file:
        return file.read(SIZE)


def load_all(path: Path) -> bytes:
    """By a shared mapping of its own."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ) as mapping:
        return mapping[:]


WAYS = {"read": read_all, "mapping": load_all}


@contextmanager
def readers(path: Path, look: Callable[[Path], bytes]) -> Iterator[None]:
    """Processes that look at the whole file again and again."""
    children = []
    for _ in range(READERS):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    look(path)
            finally:
                os._exit(1)
        children.append(child)
    try:
        yield
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


@pytest.mark.parametrize("piece", [4096, 65_536])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dax", ["always", "inode", "never"])
def test_cached_pages_beside_asynchronous_direct_writes(
    pool: Callable[..., Path], dax: str, way: str, piece: int
) -> None:
    """generic/451: when io_getevents(2) has reported the writes, nobody sees the content before them."""
    with mounted(pool("-b", "4096"), f"dax={dax}") as mount:
        path = mount.place / "file"
        path.write_bytes(bytes(SIZE))
        look = WAYS[way]
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            with readers(path, look), Writer(descriptor, SIZE, piece) as writer:
                cycles, end = 0, time.monotonic() + CYCLES_SECONDS
                while time.monotonic() < end:
                    pattern = PATTERNS[cycles % 2]
                    writer.memory[:] = bytes([pattern]) * SIZE
                    writer.write()
                    found = look(path)
                    stale = [at for at in range(0, SIZE, 4096) if found[at] != pattern]
                    assert not stale, f"cycle {cycles}: {len(stale)} of {SIZE // 4096} pages are old, from {stale[0]}"
                    cycles += 1
        finally:
            os.close(descriptor)

"""Addresses of buffers, compared with those of ctypes; and what a client of direct access imports."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import pytest

from daxfs.pmem.address import address_of


@pytest.mark.parametrize("offset", [0, 1, 4096])
@pytest.mark.parametrize("kind", ["mapping", "bytearray"])
def test_the_address_is_that_of_the_first_byte(kind: str, offset: int) -> None:
    store = mmap.mmap(-1, 8192) if kind == "mapping" else bytearray(8192)
    view = memoryview(store)[offset:]
    expected = ctypes.addressof(ctypes.c_char.from_buffer(store)) + offset
    assert address_of(view) == address_of(view.toreadonly()) == expected
    assert ctypes.string_at(address_of(view), 4) == bytes(4)


def test_the_mapping_can_be_closed() -> None:
    mapping = mmap.mmap(-1, 4096)
    with memoryview(mapping) as view:
        for _ in range(3):
            address_of(view)
    mapping.close()


def test_a_client_starts_without_numpy() -> None:
    script = "import sys, daxfs.direct, daxfs.pmem.pool; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0

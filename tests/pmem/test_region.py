"""The reserved addresses of a pool, and the regions in them."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.pmem import opening
from daxfs.pmem.address import address_of
from daxfs.pmem.opening import MAP_SYNC, open_pool
from daxfs.pmem.region import HUGE, ROOM, AddressRange, Region

PAGE = mmap.PAGESIZE
RW = mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[int]]:
    """Two files of four pages each: a's and b's."""
    descriptors = []
    for letter in "ab":
        path = tmp_path / letter
        path.write_bytes(letter.encode() * 4 * PAGE)
        descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def mapped(descriptor: int) -> AddressRange:
    addresses = AddressRange(4 * PAGE)
    addresses.map(4 * PAGE, descriptor, protection=RW, flags=mmap.MAP_SHARED)
    return addresses


def is_mapped(address: int) -> bool:
    """Return whether /proc/self/maps names a mapping at an address."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return True
    return False


def test_a_region_is_the_file(opened: list[int]) -> None:
    addresses = mapped(opened[0])
    view = addresses.view()
    assert (len(view), view.format, view.readonly, bytes(view[:2])) == (4 * PAGE, "B", False, b"aa")
    view[PAGE] = ord("x")
    addresses.flush(PAGE, 1)
    assert os.pread(opened[0], 2, PAGE) == b"xa"


def test_a_second_region_continues_the_first(opened: list[int]) -> None:
    addresses = mapped(opened[0])
    before = addresses.view()
    region = addresses.map(2 * PAGE, opened[1], protection=RW, flags=mmap.MAP_SHARED, file_offset=PAGE)
    after = addresses.view()
    assert (region.offset, region.end, addresses.length) == (4 * PAGE, 6 * PAGE, 6 * PAGE)
    assert bytes(after[4 * PAGE - 1 : 4 * PAGE + 1]) == b"ab"
    assert address_of(before) == address_of(after), "memory has moved"
    after[4 * PAGE] = ord("x")
    assert os.pread(opened[1], 1, PAGE) == b"x"
    assert addresses.region_at(4 * PAGE - 1).descriptor == opened[0]
    assert addresses.region_at(4 * PAGE).descriptor == opened[1]


def test_pages_are_mapped_again_in_place_over_the_border_of_regions(opened: list[int]) -> None:
    addresses = mapped(opened[0])
    addresses.map(4 * PAGE, opened[1], protection=RW, flags=mmap.MAP_SHARED)
    view = addresses.view()
    with open("/dev/zero", "r+b") as zeros:
        other = AddressRange(2 * PAGE)
        other.begin = addresses.begin + 3 * PAGE
        other.map(2 * PAGE, zeros.fileno(), protection=RW, flags=mmap.MAP_PRIVATE)
    assert bytes(view[3 * PAGE : 5 * PAGE]) == bytes(2 * PAGE)
    addresses.remap(3 * PAGE, 2 * PAGE)
    assert bytes(view[3 * PAGE : 5 * PAGE]) == b"a" * PAGE + b"b" * PAGE


def test_a_region_without_room_changes_nothing(opened: list[int]) -> None:
    addresses = mapped(opened[0])
    with pytest.raises(OSError, match="memory") as caught:
        addresses.map(addresses.room, opened[1], protection=RW, flags=mmap.MAP_SHARED)
    assert caught.value.errno == errno.ENOMEM
    assert (addresses.length, bytes(addresses.view()[-1:])) == (4 * PAGE, b"a")


def test_a_refused_mapping_leaves_the_addresses_reserved(opened: list[int]) -> None:
    """A file system that has no MAP_SYNC refuses after the kernel has unmapped what was there (ext4_file_mmap)."""
    addresses = AddressRange(4 * PAGE)
    with pytest.raises(OSError, match=r"\[Errno 95\]"):
        addresses.map(4 * PAGE, opened[0], protection=RW, flags=MAP_SYNC)
    assert is_mapped(addresses.begin)
    assert is_mapped(addresses.begin + 4 * PAGE - 1)


def test_an_open_pool_has_its_addresses_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that was opened while its addresses had a hole took away a library that was loaded there meanwhile."""
    tried: list[int] = []

    class Watched(AddressRange):
        def map(self, length: int, descriptor: int, *, protection: int, flags: int, file_offset: int = 0) -> Region:
            tried.append(flags)
            return super().map(length, descriptor, protection=protection, flags=flags, file_offset=file_offset)

    monkeypatch.setattr(opening, "AddressRange", Watched)
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 20))
    with open_pool(path) as pool:
        assert tried == [MAP_SYNC if pool.kind == "fsdax" else mmap.MAP_SHARED]


def test_read_only(opened: list[int]) -> None:
    addresses = AddressRange(PAGE)
    addresses.map(PAGE, opened[0], protection=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    with pytest.raises(TypeError):
        addresses.view()[0] = 0


@pytest.mark.parametrize("unit", [PAGE, HUGE, 1 << 30])
def test_alignment(unit: int) -> None:
    addresses = AddressRange(PAGE, unit)
    assert addresses.begin % max(unit, HUGE) == 0
    assert addresses.room >= ROOM


def test_the_memory_ends_with_the_last_view(opened: list[int]) -> None:
    addresses = mapped(opened[0])
    begin, ended = addresses.begin, []
    addresses.at_end(ended.append, "ended")
    view = addresses.view()
    piece = view[PAGE : PAGE + 2]
    addresses.close()
    assert addresses.closed
    del view
    gc.collect()
    assert is_mapped(begin)
    assert (bytes(piece), ended) == (b"aa", [])
    del piece
    gc.collect()
    assert ended == ["ended"]
    assert not is_mapped(begin)
    for use in (addresses.view, lambda: addresses.at_end(print)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_dropped_pool_leaves_nothing_mapped(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 20))
    pool = open_pool(path)
    begin = address_of(pool.memory)
    assert is_mapped(begin)
    del pool
    gc.collect()
    assert not is_mapped(begin)


def in_child(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


STORE_AFTER_THE_END = """
import ctypes, sys
from daxfs.pmem.address import address_of
from daxfs.pmem.opening import open_pool
pool = open_pool(sys.argv[1])
ctypes.memset(address_of(pool.memory) + pool.size - 1, 1, 1)
print("inside", flush=True)
ctypes.memset(address_of(pool.memory) + pool.size, 1, 1)
"""


def test_a_store_past_the_end_of_the_pool_meets_the_guard(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(bytes(2 * HUGE))
    done = in_child(STORE_AFTER_THE_END, str(path))
    assert (done.stdout, done.returncode) == ("inside\n", -signal.SIGSEGV)


OPEN_WITH_LIMIT = """
import resource, sys
from daxfs.errors import PoolError
from daxfs.pmem.opening import open_pool
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    pool = open_pool(sys.argv[1])
    pool.write(0, b"x")
    print("opened", pool._addresses.room < 1 << 30)
except PoolError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("spare", "expected"),
    [(256 << 20, "opened True\n"), (32 << 20, "raise the limit (ulimit -v)")],
    ids=["some", "too few"],
)
def test_a_process_with_few_addresses(tmp_path: Path, spare: int, expected: str) -> None:
    path = tmp_path / "pool"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    done = in_child(OPEN_WITH_LIMIT, str(path), str(spare))
    assert expected in done.stdout, done.stderr
    assert not done.stderr

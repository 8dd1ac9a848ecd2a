"""The list of bad ranges: what sysfs says of a device, what faults add, and that nobody touches what is on it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from poison_rig import PAGE, Poison

from daxfs.errors import MissingMemory
from daxfs.pmem import kinds, opening
from daxfs.pmem.badblocks import BadRanges, listed
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool

SIZE = 1 << 20
HALF = SIZE // 2


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    with open_pool(path) as opened:
        yield opened


def test_ranges_are_whole_pages_in_order_and_within_the_pool() -> None:
    bad = BadRanges(10 * PAGE)
    assert not bad
    for begin, end in ((5 * PAGE + 7, 5 * PAGE + 8), (PAGE, 2 * PAGE), (4 * PAGE - 1, 4 * PAGE), (9 * PAGE, 99 * PAGE)):
        bad.add(begin, end)
    assert [(begin // PAGE, end // PAGE) for begin, end in bad] == [(1, 2), (3, 4), (5, 6), (9, 10)]
    assert bad.bytes == 4 * PAGE
    bad.add(4 * PAGE, 4 * PAGE + 1)
    assert [(begin // PAGE, end // PAGE) for begin, end in bad] == [(1, 2), (3, 6), (9, 10)]
    bad.take_out(4 * PAGE, 5 * PAGE)
    assert [(begin // PAGE, end // PAGE) for begin, end in bad] == [(1, 2), (3, 4), (5, 6), (9, 10)]
    bad.add(20 * PAGE, 21 * PAGE)
    assert bad.bytes == 4 * PAGE


@pytest.mark.parametrize(
    ("begin", "end", "first", "within"),
    [
        (0, 1, None, []),
        (1, 2, (1, 3), [(1, 2)]),
        (2, 6, (1, 3), [(2, 3), (5, 6)]),
        (3, 5, None, []),
        (0, 10, (1, 3), [(1, 3), (5, 6)]),
        (6, 10, None, []),
    ],
)
def test_questions(begin: int, end: int, first: tuple[int, int] | None, within: list[tuple[int, int]]) -> None:
    bad = BadRanges(10 * PAGE)
    bad.add(PAGE, 3 * PAGE)
    bad.add(5 * PAGE, 6 * PAGE)
    found = bad.first(begin * PAGE, end * PAGE)
    assert found == (None if first is None else (first[0] * PAGE, first[1] * PAGE))
    assert list(bad.within(begin * PAGE, end * PAGE)) == [(low * PAGE, high * PAGE) for low, high in within]


def target(tmp_path: Path, kind: str) -> kinds.Target:
    path = tmp_path / "pool"
    path.write_bytes(bytes(SIZE))
    return replace(kinds.identify(str(path)), kind=kind, device="259:1")


def tree(root: Path, **files: str) -> str:
    """Make a sysfs; ``link`` names the folder that /dev/.../259:1 points to."""
    link = files.pop("link")
    for name, text in files.items():
        place = root / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for kind in ("block", "char"):
        (root / "dev" / kind).mkdir(parents=True)
        (root / "dev" / kind / "259:1").symlink_to(root / link)
    return str(root)


def test_the_list_of_a_disk(tmp_path: Path) -> None:
    sysfs = tree(tmp_path / "sys", link="pmem0", pmem0__badblocks="8 8\n100 1\nnoise\n99999999 8\n")
    assert listed(target(tmp_path, kinds.BLOCK), sysfs) == [(4096, 8192), (51200, 51712)]


def test_a_partition_is_a_part_of_its_disk(tmp_path: Path) -> None:
    sysfs = tree(
        tmp_path / "sys",
        link="pmem0/pmem0p1",
        pmem0__badblocks="0 8\n2040 16\n2064 8\n",
        pmem0__pmem0p1__partition="1\n",
        pmem0__pmem0p1__start="2048\n",
    )
    assert listed(target(tmp_path, kinds.BLOCK), sysfs) == [(0, 4096), (8192, 12288)]


DEVICE = "region0/dax0.1/dax/dax0.1"
REGION = {
    "region0__badblocks": "0 8\n8200 8\n",
    "region0__resource": "0x240000000\n",
    "region0__dax0.1__dax__dax0.1__resource": "0x240400000\n",
    "region0__dax0.1__dax__dax0.1__size": "1\n",
}
"""A device in a region; both say at which physical address they begin."""


def test_the_list_of_a_region_counts_from_its_first_byte(tmp_path: Path) -> None:
    sysfs = tree(tmp_path / "sys", link=DEVICE, **REGION)
    assert listed(target(tmp_path, kinds.DEVDAX), sysfs) == [(4096, 8192)]


@pytest.mark.parametrize("missing", [name for name in REGION if not name.endswith("size")])
def test_without_addresses_there_is_no_list(tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in REGION.items() if name != missing}
    sysfs = tree(tmp_path / "sys", link=DEVICE, **files)
    assert listed(target(tmp_path, kinds.DEVDAX), sysfs) == []


def test_the_list_of_the_device_below_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system says where on the device the file lies; this one has three extents, of which one has no place."""
    pool = target(tmp_path, kinds.FILE)
    device = pool.status.st_dev
    place = tmp_path / "sys" / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"
    place.mkdir(parents=True)
    (place / "badblocks").write_text("100 8\n1000 8\n2004 8\n")
    extents = [(0, 90 * 512, 20 * 512, 0), (20 * 512, 2000 * 512, 8 * 512, 0), (28 * 512, 1000 * 512, 8 * 512, 4)]

    def fiemap(_file: object, request: int, answer: bytearray) -> int:
        assert request == 0xC020660B
        start, _, _, _, room, _ = struct.unpack_from("=QQIIII", answer)
        assert room
        left = [extent for extent in extents if extent[0] >= start][:2]
        struct.pack_into("=I", answer, 20, len(left))
        for number, (logical, physical, length, flags) in enumerate(left):
            last = logical == extents[-1][0]
            struct.pack_into("=QQQ16xI", answer, 32 + 56 * number, logical, physical, length, flags | last)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", fiemap)
    assert listed(pool, str(tmp_path / "sys")) == [(10 * 512, 18 * 512), (24 * 512, 28 * 512)]


def test_a_file_whose_place_nobody_tells(tmp_path: Path) -> None:
    pool = target(tmp_path, kinds.FILE)
    assert listed(pool, str(tmp_path / "sys")) == []


def test_a_plain_file_has_no_list(tmp_path: Path) -> None:
    assert listed(kinds.identify(str(target(tmp_path, kinds.FILE).path))) == []


def test_what_is_listed_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's loads and stores fail; so does the kernel's copy for writev(2); the neighbours are as ever."""
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    monkeypatch.setattr(opening, "listed", lambda _target, _sysfs: [(HALF + 512, HALF + 1024)])
    with open_pool(path) as pool:
        assert list(pool.bad) == [(HALF, HALF + PAGE)]
        for _ in range(2):
            assert bytes(pool.memory[HALF : HALF + 8]) == bytes(8)
            assert pool.faults.settle().errno == errno.EIO
            with pytest.raises(MissingMemory):
                pool.write(HALF - 8, b"y" * 16)
        reader, writer = os.pipe()
        with pytest.raises(OSError, match="Bad address"):
            os.writev(writer, [pool.memory[HALF : HALF + 8]])
        os.close(reader)
        os.close(writer)
        assert bytes(pool.memory[HALF + PAGE : HALF + PAGE + 8]) == b"x" * 8
        pool.write(HALF + PAGE, b"z")
    with path.open("rb") as file:
        file.seek(HALF)
        assert file.read(PAGE) == b"x" * PAGE, "the page itself is as it was"


def test_a_fault_joins_the_list_until_it_is_mended(pool: Pool) -> None:
    poison = Poison(pool)
    poison.add(HALF)
    with pytest.raises(MissingMemory):
        pool.write(HALF, b"y")
    assert list(pool.bad) == [(HALF, HALF + PAGE)]
    poison._pages.clear()  # the medium is good again, which nobody knows
    with pytest.raises(MissingMemory):
        pool.write(HALF, b"y")
    assert not pool.rewrite(HALF, b"y"), "a part of a page"
    assert pool.rewrite(HALF, b"y" * PAGE)
    assert not pool.bad
    assert bytes(pool.memory[HALF - 1 : HALF + PAGE + 1]) == b"x" + b"y" * PAGE + b"x"
    poison.close()


def test_a_page_that_cannot_be_mended_stays_on_the_list(pool: Pool) -> None:
    poison = Poison(pool)
    poison.add(HALF)
    with pytest.raises(MissingMemory):
        pool.write(HALF, b"y")
    forgive = pool.faults.forgive

    def forgive_and_fail(begin: int, end: int) -> None:
        forgive(begin, end)
        poison.add(begin)

    pool.faults.forgive = forgive_and_fail  # type: ignore[method-assign]
    assert not pool.rewrite(HALF, b"y" * PAGE)
    assert list(pool.bad) == [(HALF, HALF + PAGE)]
    pool.faults.forgive = forgive  # type: ignore[method-assign]
    poison.close()


def test_a_huge_page_that_cannot_be_had_is_not_bad(pool: Pool) -> None:
    """hugetlbfs tells nobody about holes; a file there is mapped in units of its huge page."""
    poison = Poison(pool)
    poison._faults._unit = 2 << 20
    poison.add(HALF)
    with pytest.raises(MissingMemory):
        pool.write(HALF, b"y")
    assert not pool.bad
    poison.close()


def test_a_pool_that_was_cut_has_no_bad_memory(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * SIZE)
    with open_pool(path) as pool:
        os.truncate(path, HALF)
        with pytest.raises(MissingMemory):
            pool.write(HALF, b"y" * PAGE)
        assert not pool.bad
        assert not pool.rewrite(HALF, b"y" * PAGE)
    assert path.stat().st_size == HALF

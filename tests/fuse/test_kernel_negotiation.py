"""INIT with kernels of all ages: the exact bytes of the answer, and the log's lines about missing features."""

from __future__ import annotations

import errno
import logging
import mmap
import struct
from pathlib import Path

import pytest
from fake_core import FakeCore
from message_rig import ALL, HEADER, Rig, pack, size_of, unpack

from daxfs.fuse.kernel import negotiation
from daxfs.fuse.kernel.abi import Init, Opcode
from daxfs.fuse.mountoptions import MountOptions
from daxfs.fuse.options import parse

ACCEPTED = {
    "ASYNC_READ": 0,
    "ATOMIC_O_TRUNC": 3,
    "EXPORT_SUPPORT": 4,
    "BIG_WRITES": 5,
    "DONT_MASK": 6,
    "DO_READDIRPLUS": 13,
    "READDIRPLUS_AUTO": 14,
    "ASYNC_DIO": 15,
    "PARALLEL_DIROPS": 18,
    "POSIX_ACL": 20,
    "ABORT_ERROR": 21,
    "MAX_PAGES": 22,
    "CACHE_SYMLINKS": 23,
    "NO_OPENDIR_SUPPORT": 24,
    "EXPLICIT_INVAL_DATA": 25,
    "HANDLE_KILLPRIV_V2": 28,
    "SETXATTR_EXT": 29,
    "INIT_EXT": 30,
    "CREATE_SUPP_GROUP": 34,
    "DIRECT_IO_ALLOW_MMAP": 36,
    "HAS_SYNCFS": 43,
}
"""Accepted flags with their bits. Not accepted: locks, which the kernel handles, the writeback cache, and splicing."""
WANTED = sum(1 << bit for bit in ACCEPTED.values())
INIT_EXT = 1 << 30
FIRST_WORD = 0xFFFFFFFF

LOSSES = {
    "DIRECT_IO_ALLOW_MMAP": "no shared mappings",
    "HANDLE_KILLPRIV_V2": "by the opener's rights",
    "SETXATTR_EXT": "keeps the set-group-id bit",
    "CREATE_SUPP_GROUP": "supplementary groups are unknown",
    "POSIX_ACL": "no POSIX ACLs",
}

OLDEST = 0x03FFFFFB & ~(1 << 26)
"""The flags of Linux 5.4: every bit up to EXPLICIT_INVAL_DATA (25) except FILE_OPS (2)."""
KERNELS = [
    pytest.param(31, OLDEST, 16, set(LOSSES) - {"POSIX_ACL"}, id="5.4"),
    pytest.param(33, OLDEST | 1 << 28, 16, {"DIRECT_IO_ALLOW_MMAP", "SETXATTR_EXT", "CREATE_SUPP_GROUP"}, id="5.12"),
    pytest.param(34, OLDEST | 3 << 28, 16, {"DIRECT_IO_ALLOW_MMAP", "CREATE_SUPP_GROUP"}, id="5.15"),
    pytest.param(36, OLDEST | 7 << 28 | 3 << 32, 64, {"DIRECT_IO_ALLOW_MMAP", "CREATE_SUPP_GROUP"}, id="5.17"),
    pytest.param(37, OLDEST | 7 << 28 | 3 << 32, 64, {"DIRECT_IO_ALLOW_MMAP", "CREATE_SUPP_GROUP"}, id="6.1"),
    pytest.param(38, OLDEST | 7 << 28 | 15 << 32, 64, {"DIRECT_IO_ALLOW_MMAP"}, id="6.3"),
    pytest.param(39, OLDEST | 7 << 28 | 31 << 32, 64, set(), id="6.6"),
    pytest.param(40, OLDEST | 7 << 28 | 255 << 32, 64, set(), id="6.9"),
    pytest.param(45, OLDEST | 7 << 28 | 2047 << 32, 64, set(), id="6.18"),
    pytest.param(46, (1 << 64) - 1, 64, set(), id="newer"),
    pytest.param(1000, (1 << 64) - 1, 128, set(), id="much-newer"),
]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Rig:
    """Return a connection before INIT, on a system that allows 100 pages."""
    (tmp_path / "limit").write_text("100\n")
    monkeypatch.setattr(negotiation, "MAX_PAGES_LIMIT", tmp_path / "limit")
    caplog.set_level(logging.INFO, "daxfs.fuse")
    return Rig(FakeCore())


def offer(flags: int, minor: int = 46, major: int = 7, length: int = 64, readahead: int = 131072) -> bytes:
    """Return the body of an INIT with this number of bytes."""
    body = pack(
        "init_in", major=major, minor=minor, max_readahead=readahead, flags=flags & FIRST_WORD, flags2=flags >> 32
    )
    return body.ljust(length, b"\0")[:length]


def expected(flags: int, minor: int, pages: int = 100, readahead: int = 131072) -> bytes:
    """Return the answer that accepts these flags."""
    return pack(
        "init_out", major=7, minor=minor, max_readahead=readahead, flags=flags & FIRST_WORD, flags2=flags >> 32,
        max_background=64, congestion_threshold=48, max_write=pages * mmap.PAGESIZE, time_gran=1, max_pages=pages,
    )  # fmt: skip


@pytest.mark.parametrize(("minor", "offered", "length", "lost"), KERNELS)
def test_kernels(
    rig: Rig, caplog: pytest.LogCaptureFixture, minor: int, offered: int, length: int, lost: set[str]
) -> None:
    flags = offered & WANTED
    assert rig.done(Opcode.INIT, 0, offer(offered, minor, length=length)) == expected(flags, min(minor, 45))
    agreed = rig.connection.agreement
    assert (agreed.minor, int(agreed.flags), agreed.max_write) == (min(minor, 45), flags, 100 * mmap.PAGESIZE)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == len(lost) + (minor < 46)
    assert any("sync(2)" in line for line in warnings) is (minor < 46)
    for name in lost:
        assert any(LOSSES[name] in line for line in warnings), name
    assert f"FUSE 7.{min(minor, 45)}, requests of {100 * mmap.PAGESIZE >> 10} KiB" in caplog.text


@pytest.mark.parametrize("minor", [31, 38, 45])
def test_bit_43_is_another_flag_before_the_protocol_that_gives_it_a_meaning(rig: Rig, minor: int) -> None:
    """Patch series for famfs, iomap and splicing use the bit, and accepting it would enable their features."""
    assert rig.done(Opcode.INIT, 0, offer((1 << 64) - 1, minor)) == expected(WANTED & ~(1 << 43), minor)
    assert not rig.connection.agreement.has(Init.HAS_SYNCFS)


@pytest.mark.parametrize("bit", range(64))
def test_each_flag_is_accepted_only_if_it_is_wanted_and_offered(rig: Rig, bit: int) -> None:
    flag = 1 << bit
    pages = 100 if bit == ACCEPTED["MAX_PAGES"] else 32
    assert rig.done(Opcode.INIT, 0, offer(flag | INIT_EXT)) == expected((flag | INIT_EXT) & WANTED, 45, pages)
    without = (1 << 64) - 1 & ~flag
    answer = unpack("init_out", rig.done(Opcode.INIT, 0, offer(without)))
    if flag == INIT_EXT:
        assert (answer.flags, answer.flags2) == (WANTED & FIRST_WORD & ~INIT_EXT, 0), "the second word is not read"
    else:
        assert answer.flags | answer.flags2 << 32 == WANTED & ~flag


@pytest.mark.parametrize(("name", "line"), LOSSES.items())
def test_what_is_missing_is_said_once(rig: Rig, caplog: pytest.LogCaptureFixture, name: str, line: str) -> None:
    rig.init(ALL & ~Init[name], minor=46)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line in text for text in said] == [True]


def test_the_second_word_of_a_short_init_is_not_there(rig: Rig) -> None:
    """Bytes after a short INIT belong to an older message."""
    for length in (16, 20, 63):
        body = offer((1 << 64) - 1, length=length)
        assert rig.done(Opcode.INIT, 0, body) == expected(WANTED & FIRST_WORD, 45)


@pytest.mark.parametrize("readahead", [0, 1, 1 << 20, 0xFFFFFFFF])
def test_readahead_is_the_kernels_choice(rig: Rig, readahead: int) -> None:
    assert rig.done(Opcode.INIT, 0, offer(ALL, readahead=readahead)) == expected(WANTED, 45, readahead=readahead)


def test_links_whose_targets_the_kernel_may_not_keep() -> None:
    """With strictatime every readlink(2) updates the access time, so the daemon must see every one."""
    rig = Rig(FakeCore(), options=MountOptions(atime="strictatime"))
    assert not rig.init().flags & 1 << ACCEPTED["CACHE_SYMLINKS"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("dax=always", True),
        ("dax=inode", False),
        ("dax=never", False),
        ("dax=never,strictatime", True),
        ("dax=inode,noatime", False),
    ],
)
def test_direct_writes_are_asynchronous_only_where_no_file_is_cached(given: str, taken: bool) -> None:
    """Pages that are read during such a write would stay old (docs/FUSE.md, Caches)."""
    rig = Rig(FakeCore(), options=parse([given]))
    assert bool(rig.init().flags & 1 << ACCEPTED["ASYNC_DIO"]) is taken


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (8, 31), (100, 0)])
def test_a_newer_major_version_is_told_ours_and_asks_again(rig: Rig, major: int, minor: int) -> None:
    answer = rig.done(Opcode.INIT, 0, offer(ALL, minor, major))
    assert answer == pack("init_out", major=7, minor=45)
    assert rig.connection.agreement.minor == 0, "nothing is agreed yet"
    assert rig.done(Opcode.INIT, 0, offer(ALL, 46)) == expected(WANTED, 45)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99), (0, 0)])
def test_older_kernels_are_refused_by_name(rig: Rig, caplog: pytest.LogCaptureFixture, major: int, minor: int) -> None:
    assert rig.refused(Opcode.INIT, 0, offer(OLDEST, minor, major, length=16)) == errno.EPROTO
    assert f"FUSE {major}.{minor}, daxfs needs 7.31" in caplog.text
    assert rig.connection.agreement.minor == 0


def test_what_was_agreed_decides_how_messages_are_read(rig: Rig) -> None:
    value = b"user.name\0value"
    rig.init(ALL & ~Init.SETXATTR_EXT)
    assert rig.done(Opcode.SETXATTR, body=struct.pack("=II", 5, 0) + value) == b""
    rig.init(ALL)
    assert rig.done(Opcode.SETXATTR, body=struct.pack("=IIII", 5, 0, 0, 0) + value) == b""
    assert rig.core.inodes[2].xattrs == {b"user.name": b"value"}


def test_the_second_word_counts_only_if_the_kernel_reads_it() -> None:
    agreed, answer = negotiation.agree(7, 45, 0, (1 << 64) - 1 & ~INIT_EXT, Init(WANTED))
    assert int(agreed.flags) == unpack("init_out", answer).flags == WANTED & FIRST_WORD & ~INIT_EXT
    assert unpack("init_out", answer).flags2 == 0


# The size of requests


@pytest.mark.parametrize(
    ("text", "pages"),
    [("256", 256), ("1", 1), ("0", 1), ("4096\n", 4096), ("65535", 4096), ("-1", 1), ("many", 256), ("", 256)],
)
def test_pages_are_what_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, pages: int
) -> None:
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(negotiation, "MAX_PAGES_LIMIT", tmp_path / "limit")
    assert negotiation.most_pages() == pages
    _, answer = negotiation.agree(7, 45, 0, ALL, negotiation.WANTED)
    found = unpack("init_out", answer)
    assert (found.max_pages, found.max_write) == (pages, pages * mmap.PAGESIZE)
    # The least buffer that the kernel accepts (fuse_dev_do_read in fs/fuse/dev.c), and the largest request.
    assert negotiation.buffer_size() >= max(8192, HEADER + size_of("write_in") + found.max_write)


def test_a_system_without_that_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(negotiation, "MAX_PAGES_LIMIT", tmp_path / "missing")
    assert negotiation.most_pages() == 256


def test_a_kernel_with_a_fixed_number_of_pages(rig: Rig) -> None:
    answer = unpack("init_out", rig.done(Opcode.INIT, 0, offer(ALL & ~Init.MAX_PAGES)))
    assert (answer.max_pages, answer.max_write) == (32, 32 * mmap.PAGESIZE)

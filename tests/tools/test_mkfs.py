"""Pools made by `make_pool`, checked by e2fsck and dumpe2fs."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from daxfs.errors import PoolError, UserError
from daxfs.pmem import kinds
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.runs import ByteRange, subtract
from daxfs.tools import mkfs
from daxfs.tools.imagecopy import copy_image, used_ranges
from daxfs.tools.mkfs import Report, make_pool
from daxfs.tools.sizes import format_size, parse_size
from support import fsck, run

MIB = 1 << 20


def header(pool: Path) -> dict[str, str]:
    """Return the output of dumpe2fs -h as a dictionary."""
    pairs = (line.partition(":") for line in run("dumpe2fs", "-h", pool).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def journal_mib(fields: dict[str, str]) -> int:
    match = re.fullmatch(r"([0-9]+)([kM])", fields["Total journal size"])
    assert match
    return int(match[1]) // (1024 if match[2] == "k" else 1)


def made(pool: Path, size: int, *options: str) -> dict[str, str]:
    report = make_pool(pool, size, options, sparse=True)
    assert isinstance(report, Report)
    fsck(pool)
    assert report.seconds < 5
    return header(pool)


@pytest.mark.parametrize(("size", "journal"), [(16, 4), (64, 4), (1024, 16), (4096, 64), (65536, 128)])
def test_defaults(tmp_path: Path, size: int, journal: int) -> None:
    pool = tmp_path / "pool"
    fields = made(pool, size * MIB)
    assert fields["Block size"] == "4096"
    assert fields["Block count"] == str(size * 256)
    assert fields["RAID stride"] == fields["RAID stripe width"] == "512"
    assert fields["Errors behavior"] == "Remount read-only"
    assert journal_mib(fields) == journal
    assert {"has_journal", "extent", "metadata_csum", "64bit"} <= set(fields["Filesystem features"].split())
    assert stat.S_IMODE(pool.stat().st_mode) == 0o600
    assert pool.stat().st_size == size * MIB
    assert pool.stat().st_blocks * 512 < 8 * MIB, "the pool is sparse"
    # Groups with a zero inode table are marked, or the kernel would fill the holes after a mount.
    flags = re.findall(r"^Group .*\[(.*)\]$", run("dumpe2fs", pool), re.MULTILINE)
    assert all("ITABLE_ZEROED" in flag for flag in flags)


def test_a_tebibyte_in_five_seconds_of_the_processor(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    start = sum(os.times()[:4])
    report = make_pool(pool, 1 << 40, sparse=True)
    assert sum(os.times()[:4]) - start < 5
    assert report.size == 1 << 40
    assert pool.stat().st_blocks * 512 < 64 * MIB
    assert header(pool)["Block count"] == str(1 << 28)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-e", "continue"), {"Errors behavior": "Continue"}),
        (("-b", "1024"), {"Block size": "1024", "RAID stride": "2048"}),
        (("-b2048", "-I", "128"), {"Block size": "2048", "RAID stride": "1024", "Inode size": "128"}),
        (("-E", "stride=16"), {"RAID stride": "16", "RAID stripe width": "512"}),
        (("-E", "stripe-width=32,hash_seed=7e3b2a4c-1111-4222-8333-944445555666"), {"RAID stripe width": "32"}),
        (("-E", "stride=16", "-E", "stripe_width=64"), {"RAID stride": "16", "RAID stripe width": "64"}),
        (("-L", "name", "-m", "0"), {"Filesystem volume name": "name", "Reserved block count": "0"}),
        (("-J", "size=8"), {"Total journal size": "8M"}),
        (("-t", "ext3"), {"Total journal size": "4096k"}),
        (("-E", "root_owner=12:34"), {}),
        (("-E", "nodiscard"), {"RAID stride": "512"}),
        (("-O", "^metadata_csum,uninit_bg", "-v"), {"RAID stride": "512"}),
        (("-O", "^flex_bg,^64bit,^resize_inode"), {"RAID stride": "512"}),
    ],
)
def test_user_options_win(tmp_path: Path, options: tuple[str, ...], expected: dict[str, str]) -> None:
    pool = tmp_path / "pool"
    fields = made(pool, 64 * MIB, *options)
    assert {key: fields[key].replace("4M", "4096k") for key in expected} == expected
    if "root_owner=12:34" in options:
        assert re.search(r"User: +12 +Group: +34", run("debugfs", "-R", "stat /", pool))


@pytest.mark.parametrize("options", [("-O", "^has_journal"), ("-t", "ext2"), ("-O", "none,extent,filetype")])
def test_no_journal(tmp_path: Path, options: tuple[str, ...]) -> None:
    fields = made(tmp_path / "pool", 64 * MIB, *options)
    assert "has_journal" not in fields["Filesystem features"]
    fields = made(tmp_path / "tiny", 4 * MIB)
    assert "has_journal" not in fields["Filesystem features"], "mke2fs puts no journal in a tiny pool"


def test_not_root_owns_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 567)
    made(tmp_path / "pool", 64 * MIB)
    assert re.search(r"User: +1234 +Group: +567", run("debugfs", "-R", "stat /", tmp_path / "pool"))


def test_existing_file_of_garbage(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.write_bytes(random.Random(1).randbytes(16 * MIB))
    fields = made(pool, 24 * MIB)
    assert fields["Block count"] == str(24 * 256)
    pool.write_bytes(random.Random(2).randbytes(16 * MIB))
    report = make_pool(pool, None, ["-K"])
    assert "lazy_itable_init=0" in " ".join(report.command)
    fsck(pool)


def test_file_system_is_not_overwritten(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, 16 * MIB)
    before = pool.read_bytes()
    for size in (None, 32 * MIB):
        with pytest.raises(UserError, match=r"holds an ext2, ext3 or ext4 file system; to overwrite it add -F"):
            make_pool(pool, size)
    assert pool.read_bytes() == before
    assert header(pool)["Filesystem UUID"] != made(pool, 16 * MIB, "-F")["Filesystem UUID"]
    other = tmp_path / "swap"
    other.write_bytes(bytes(4086) + b"SWAPSPACE2" + bytes(MIB))
    with pytest.raises(UserError, match="holds swap space"):
        make_pool(other)


def test_pool_in_use_is_refused_even_by_force(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, 16 * MIB)
    code = (
        "import sys; from daxfs.pmem.opening import open_pool\n"
        "pool = open_pool(sys.argv[1]); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(pool)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(PoolError, match="in use"):
            make_pool(pool, None, ["-F"])
        other.communicate(b"\n", timeout=20)
    fsck(pool)


@pytest.mark.parametrize(
    ("size", "options", "text"),
    [
        (None, (), "does not exist; give its size"),
        (64 * MIB, ("-Q",), "mke2fs does not know this option: option -Q not recognized"),
        (64 * MIB, ("-O", "warp_drive"), "Invalid filesystem option set: warp_drive"),
        (64 * MIB, ("-b", "1000"), "invalid block size - 1000"),
        (64 * MIB, ("-E", "warp=9"), "Bad option"),
        (64 * MIB, ("12345",), "unexpected argument '12345'; give the size with --size"),
        (8192, (), r"could not make a file system on .*/pool: "),
        (1 << 62, (), "its file system allows less"),
    ],
)
def test_refusals(tmp_path: Path, size: int | None, options: tuple[str, ...], text: str) -> None:
    pool = tmp_path / "pool"
    with pytest.raises(UserError, match=text) as caught:
        make_pool(pool, size, options)
    assert "\n" not in str(caught.value)
    assert not pool.exists(), "what was made for nothing is removed"


def test_refusal_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for content in (b"precious" * MIB, b""):
        pool.write_bytes(content)
        with pytest.raises(UserError, match="warp_drive"):
            make_pool(pool, 4 * MIB, ["-O", "warp_drive"])
        assert pool.read_bytes() == content


def test_bad_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PoolError, match="is a directory"):
        make_pool(tmp_path, MIB)
    with pytest.raises(PoolError, match="does not exist"):
        make_pool(tmp_path / "no" / "where", MIB)
    (tmp_path / "empty").touch()
    with pytest.raises(PoolError, match="is empty"):
        make_pool(tmp_path / "empty")
    monkeypatch.setattr("daxfs.tools.e2fsprogs.shutil.which", lambda *_, **__: None)
    with pytest.raises(UserError, match="mke2fs is not installed; apt install e2fsprogs") as caught:
        make_pool(tmp_path / "pool", 64 * MIB)
    assert caught.value.code == 69


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    report = make_pool(tmp_path / "pool", 64 * MIB, ["-n"])
    assert "16384 4k blocks" in report.output
    assert list(tmp_path.iterdir()) == []


def test_populated(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    made(tmp_path / "pool", 64 * MIB, "-d", str(tree))
    assert "content" in run("debugfs", "-R", "cat /file", tmp_path / "pool")


def test_block_device(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xa5" * (16 * MIB))
    device = run("losetup", "-f", "--show", backing, limit=20).strip()
    try:
        with pytest.raises(UserError, match="has 16 MiB, less than the 32 MiB asked for"):
            make_pool(device, 32 * MIB)
        report = make_pool(device)
        assert (report.kind, report.size) == ("block", 16 * MIB)
        assert "lazy_journal_init=0" in " ".join(report.command)
        fsck(Path(device))
        assert make_pool(device, 8 * MIB, ["-F"]).size == 8 * MIB
        assert header(Path(device))["Block count"] == str(8 * 256)
        open_pool(device).close()
    finally:
        run("losetup", "-d", device, limit=20)


@pytest.mark.parametrize("options", [(), ("-b", "1024"), ("-b", "1024", "-O", "^flex_bg"), ("-O", "^has_journal")])
def test_mapped_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    """On a devdax device full of old bytes, all used blocks must equal those of the image, including holes."""
    size = 64 * MIB
    memory = bytearray(b"\xa5" * size)
    target = kinds.Target("/dev/zero", "devdax", size, size, kinds.HUGE_PAGE, "1:2", "", os.stat(tmp_path))
    monkeypatch.setattr(mkfs.kinds, "identify", lambda _: target)
    monkeypatch.setattr(mkfs, "open_pool", lambda _: MemoryPool(memory, path="/dev/zero"))
    steps: list[tuple[str, int, int]] = []
    report = make_pool("/dev/zero", None, options, lambda *step: steps.append(step), trust_owner=True)
    assert (report.kind, report.size) == ("devdax", size)
    assert report.zeroed > 0
    assert {step[0] for step in steps} == {"zeroing", "copying"}
    assert all(done <= total for _, done, total in steps)
    pool = tmp_path / "result"
    pool.write_bytes(memory)
    fsck(pool)
    free = list(subtract([ByteRange(0, size)], used_ranges(str(pool))))
    assert free
    for first, end in free:
        inner = memory[first + 4096 : end - 4096]  # the image's data has the granularity of the host's pages
        assert inner.count(0xA5) == len(inner), "free blocks are not touched"
    used = sum(end - first for first, end in used_ranges(str(pool)))
    assert used <= report.copied + report.zeroed
    with pytest.raises(UserError, match=r"/dev/zero holds an ext2, ext3 or ext4"):
        make_pool("/dev/zero", trust_owner=True)
    with pytest.raises(UserError, match=r"on /dev/zero: Invalid filesystem option set"):
        make_pool("/dev/zero", None, ["-F", "-O", "warp_drive"], trust_owner=True)


def test_copy_cut_short_is_no_file_system(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_pool(image, 16 * MIB)
    pool = MemoryPool(image.read_bytes())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_image(str(image), pool, stop)
    assert not any(pool.memory[:4096])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1K", 1024),
        ("512M", 512 * MIB),
        ("1g", 1 << 30),
        ("1TiB", 1 << 40),
        ("1.5G", 3 << 29),
        (" 2 MiB ", 2 * MIB),
        ("1MB", 10**6),
        ("100B", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1X", "0", "0.3", "1.1.1K", "9E9", "8E", "1e9", "\u0661K", "1KBB", "iB"]
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UserError, match="write it as"):
        parse_size(text)


def test_format_size() -> None:
    shown = [format_size(size) for size in (1, 1023, 1024, 3 << 29, 1 << 40, 1 << 62)]
    assert shown == ["1 bytes", "1023 bytes", "1 KiB", "1.5 GiB", "1 TiB", "4 EiB"]

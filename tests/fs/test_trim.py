"""FITRIM: free memory goes back to the system, and nothing else; the kernel's ext4 trims as much."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_rig import noise
from kernel_rig import kernel_mount
from recorder import RecordingPool
from tree_rig import QUIET, furnish, pool_tree, same

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool
from daxfs.structures import blocks
from support import fsck, write_image

MakePool = Callable[..., Path]

FITRIM = 0xC0185879
WHOLE = (0, (1 << 64) - 1, 0)


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def litter(fs: FileSystem) -> dict[str, bytes]:
    """Fill free blocks with old bytes, in runs of all lengths between used blocks; return what is used."""
    size = fs.volume.block_size
    chance = random.Random(3)
    kept = {}
    for number in range(60):
        fs.tree.write_bytes(f"/{number}", noise(chance.randrange(1, 40) * size, number))
    fs.tree.write_bytes("/large", noise(min(9 << 20, fs.statfs().available * size // 2), 99))
    for number in range(60):
        if number % 3:
            fs.tree.unlink(f"/{number}")
        else:
            kept[f"/{number}"] = fs.tree.read_bytes(f"/{number}")
    fs.tree.unlink("/large")
    return kept


def taken(path: Path) -> int:
    """Return how many bytes the pool's file takes on its file system."""
    return path.stat().st_blocks * 512


def free_bytes(fs: FileSystem) -> list[bytes]:
    """Return the bytes in the free runs that contain a whole page."""
    bits = fs.volume.block_bits
    return [
        bytes(fs.volume.pool.memory[start << bits : start + count << bits])
        for group in range(fs.volume.geometry.groups_count)
        for start, count in blocks.free_runs(fs.volume.view, group, max(4096 >> bits, 1))
    ]


def test_on_every_format(pool: MakePool, any_format: tuple[str, ...]) -> None:
    path = pool(*(any_format if "-b" in any_format else ("-b", "4096", *any_format)))
    with FileSystem.open(path, QUIET) as fs:
        kept = litter(fs)
        fs.sync()
        before = taken(path)  # not later: on a tmpfs a look at a hole takes a page
        assert any(any(content) for content in free_bytes(fs))
        trimmed = fs.trim()
        after = taken(path)
        assert sum(map(len, free_bytes(fs))) == trimmed
        assert not any(any(content) for content in free_bytes(fs))
        assert before - after > 8 << 20
        assert fs.statfs().free * fs.volume.block_size >= trimmed
        assert fs.trim() == trimmed
        for name, content in kept.items():
            assert fs.tree.read_bytes(name) == content
        fs.tree.write_bytes("/new", noise(1 << 20, 1))
        index = 0 if "^extent" not in str(any_format) else fs.volume.block_size
        assert fs.trim() == trimmed - (1 << 20) - index
    fsck(path)
    with FileSystem.open(path, QUIET) as fs:
        assert fs.tree.read_bytes("/new") == noise(1 << 20, 1)


def test_the_tree_stays(pool: MakePool) -> None:
    path = pool("-b", "1024")
    with FileSystem.open(path, QUIET) as fs:
        furnish(fs)
        before = pool_tree(fs)
        assert fs.trim() > 0
        same(pool_tree(fs), before)
    fsck(path)
    same(pool_tree(path), before)


def test_what_was_just_freed_is_committed_first(pool: MakePool) -> None:
    with FileSystem.open(pool("-b", "4096"), QUIET) as fs:
        least = fs.trim()
        fs.tree.write_bytes("/f", noise(4 << 20, 1))
        fs.sync()
        assert fs.trim() == least - (4 << 20)
        fs.tree.unlink("/f")
        assert fs.volume.pending_frees()
        assert fs.trim() == least
        assert not fs.volume.pending_frees()


def test_an_open_file_without_a_name_keeps_its_blocks(pool: MakePool) -> None:
    with FileSystem.open(pool("-b", "4096"), QUIET) as fs:
        file, _ = fs.tmpfile(ROOT_INO, 0o600)
        fs.write(file, 0, noise(1 << 20, 1))
        fs.trim()
        assert bytes(fs.read(file, 0, 1 << 20)) == noise(1 << 20, 1)
        fs.release(file)


def test_parts_make_the_whole(pool: MakePool) -> None:
    path = pool("-b", "1024")
    with FileSystem.open(path, QUIET) as fs:
        litter(fs)
        whole = fs.trim()
        step = 5 << 20
        parts = [fs.trim(start, step, 0) for start in range(0, 64 << 20, step)]
        assert abs(sum(parts) - whole) < len(parts) * 4096, "runs of less than a page, where the parts meet"
        assert 0 < min(parts[2:]) <= max(parts) <= step


QUESTIONS = [
    WHOLE,
    (0, (1 << 64) - 1, 65536),
    (0, (1 << 64) - 1, 1 << 20),
    (5 << 20, 1 << 40, 0),
    ((5 << 20) + 1000, 1 << 40, 8192),
    (63 << 20, 1 << 40, 0),
    (0, 4096, 0),
    (0, 1024, 0),
    (0, 4095, 0),
    (64 << 20, 4096, 0),
    ((64 << 20) - 1, 4096, 0),
    (0, 1 << 30, 1 << 27),
    (0, 1 << 30, (1 << 27) + 4096),
]
"""Up to the end: the kernel (6.18) goes on to the end of a free run that begins in the range."""


@pytest.mark.parametrize("block_size", ["4096", "1024"])
def test_the_kernel_trims_as_much(pool: MakePool, block_size: str) -> None:
    path = pool("-b", block_size)
    with FileSystem.open(path, QUIET) as fs:
        litter(fs)
        fs.sync()

    def ours(fs: FileSystem, question: tuple[int, int, int]) -> int | str:
        try:
            return fs.trim(*question)
        except FsError as error:
            return errno.errorcode[error.errno or 0]

    def theirs(question: tuple[int, int, int]) -> int | str:
        # Mounted for each anew, since the kernel remembers what it has trimmed.
        with kernel_mount(path) as root:
            descriptor = os.open(root, os.O_RDONLY)
            try:
                answer = fcntl.ioctl(descriptor, FITRIM, struct.pack("<3Q", *question))
                return int(struct.unpack("<3Q", answer)[1])
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            finally:
                os.close(descriptor)

    expected = [theirs(question) for question in QUESTIONS]
    with FileSystem.open(path, QUIET) as fs:
        assert [ours(fs, question) for question in QUESTIONS] == expected
    assert "EINVAL" in expected
    fsck(path)


def test_where_it_can_not_be_done(pool: MakePool) -> None:
    path = pool("-b", "4096")
    with FileSystem.open(path, Options(read_only=True)) as fs, refused(errno.EROFS):
        fs.trim()

    class Stubborn(MemoryPool):
        discard = Pool.discard

    with FileSystem.open(Stubborn(path.read_bytes())) as fs, refused(errno.EOPNOTSUPP):
        fs.trim()


def test_a_cut_during_a_trim(pool: MakePool, tmp_path: Path) -> None:
    """Some of the discarded ranges may be lost, but nothing that has a name."""
    path = pool("-b", "1024", "-J", "size=1", size="4M")
    with FileSystem.open(path, QUIET) as fs:
        for number in range(6):
            fs.tree.write_bytes(f"/{number}", noise(50_000, number))
    recorder = RecordingPool(bytearray(path.read_bytes()))
    fs = FileSystem.open(recorder, QUIET)
    fs.tree.unlink("/0")
    fs.tree.unlink("/3")
    started = len(recorder.events)
    assert fs.trim() > 100_000
    fs.tree.write_bytes("/new", noise(150_000, 7))
    fs.sync()
    rng = random.Random(5)
    images = 0
    for left in recorder.crash_images(rng, start=started, prefixes=4, subsets=6):
        with FileSystem.open(MemoryPool(left.image), QUIET) as again:
            for number in (1, 2, 4, 5):
                assert again.tree.read_bytes(f"/{number}") == noise(50_000, number)
            if b"0" in again.tree.listdir("/"):
                assert again.tree.read_bytes("/0") == noise(50_000, 0)
        write_image(tmp_path / "left", left.image)
        fsck(tmp_path / "left")
        images += 1
    assert images > 20

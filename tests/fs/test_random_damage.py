"""Random damage: whatever bytes of the metadata are changed, only named errors result, within a bounded time."""

from __future__ import annotations

import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_rig import copy
from tree_rig import PoolSide, furnish, mingle

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inode_bitmaps, inodes, mapping

MakePool = Callable[..., Path]

SUPERBLOCK = 1024
WORDS = [word.to_bytes(4, "little") for word in (0, 1, 2, 11, 12, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xF30A, 1 << 16)]
GOES_ON, STOPS = Options(errors="continue"), Options(errors="remount-ro")
TRIAL_LIMIT = 10.0
"""Seconds that one walk of a damaged pool may take, on a busy machine."""


def metadata_blocks(fs: FileSystem) -> list[int]:
    """Return every block that holds metadata other than zeros, without the log."""
    view, geometry = fs.volume.view, fs.volume.geometry
    data: set[int] = set()
    log = [8] if geometry.has_journal else []
    for ino in (*log, *range(geometry.first_ino, geometry.inodes_count + 1)):
        if not inode_bitmaps.in_use(view, ino):
            continue
        inode = inodes.read(view, ino)
        if stat.S_ISREG(inode.mode):
            for run in mapping.walk(view, inode):
                data.update(range(run.pblk, run.pblk + run.length))
    memory = fs.volume.pool.memory
    size = fs.volume.block_size
    first = SUPERBLOCK // size
    return [
        block
        for block in range(first, geometry.blocks_count)
        if block not in data and bytes(memory[block * size : block * size + size]).strip(b"\0")
    ]


def bounded_walk(fs: FileSystem) -> None:
    """Read everything that can be reached, once; errors that report damage are right."""
    seen: set[int] = set()
    todo = [ROOT_INO]
    while todo:
        ino = todo.pop()
        if ino in seen:
            continue
        seen.add(ino)
        for look in (fs.getattr, fs.describe, fs.readlink, fs.listxattr, fs.generation):
            tolerate(lambda look=look, ino=ino: look(ino))
        for name in tolerate(lambda ino=ino: fs.listxattr(ino)) or ():
            tolerate(lambda ino=ino, name=name: fs.getxattr(ino, name))
        tolerate(lambda ino=ino: read_ends(fs, ino))
        names = tolerate(lambda ino=ino: listing(fs, ino)) or []
        for name, child in names:
            tolerate(lambda ino=ino, name=name: fs.lookup(ino, name))
            todo.append(child)


def tolerate(action: Callable[[], object]) -> object:
    """Suppress the errors that daxfs raises on purpose."""
    try:
        return action()
    except OSError:
        return None


def read_ends(fs: FileSystem, ino: int) -> None:
    file = fs.open_file(ino)
    try:
        size = fs.getattr(ino).size
        for offset in (0, size // 2, max(size - 70_000, 0)):
            bytes(fs.read(file, offset, 70_000))
    finally:
        fs.release(file)


def listing(fs: FileSystem, ino: int) -> list[tuple[bytes, int]]:
    directory = fs.opendir(ino)
    try:
        return [(entry.name, entry.ino) for entry in fs.readdir(directory)]
    finally:
        fs.releasedir(directory)


def change_everything(fs: FileSystem, chance: random.Random) -> None:
    """Make every kind of change, whatever results."""
    inos = [ino for _, ino in tolerate(lambda: listing(fs, ROOT_INO)) or []]
    names = [name for name, _ in tolerate(lambda: listing(fs, ROOT_INO)) or []]
    for number in range(6):
        tolerate(lambda number=number: fs.mkdir(ROOT_INO, b"dir%d" % number, 0o755))
        tolerate(lambda number=number: fs.tree.write_bytes(b"new%d" % number, b"x" * 20_000))
    for ino in inos:
        tolerate(lambda ino=ino: fs.setxattr(ino, b"user.new", b"x" * 200))
        tolerate(lambda ino=ino: fs.setattr(ino, SetAttributes(size=chance.randrange(100_000))))
        tolerate(lambda ino=ino: fs.setattr(ino, SetAttributes(mode=0o600)))
        tolerate(lambda ino=ino: fs.mknod(ino, b"inside", 0o644))
        tolerate(lambda ino=ino: fs.link(ino, ROOT_INO, b"link%d" % ino))
    for name in names:
        tolerate(lambda name=name: fs.rename(ROOT_INO, name, ROOT_INO, name + b"-moved"))
    for name in names:
        tolerate(lambda name=name: fs.unlink(ROOT_INO, name + b"-moved"))
        tolerate(lambda name=name: fs.rmdir(ROOT_INO, name + b"-moved"))
    tolerate(fs.sync)


def shake(image: bytes, blocks: list[int], block_size: int, trials: range) -> None:
    """Flip bytes of metadata, then walk and change everything."""
    for seed in trials:
        chance = random.Random(seed)
        damaged = bytearray(image)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            place = chance.choice(blocks) * block_size
            if chance.random() < 0.3:
                at = place + chance.randrange(0, block_size, 4)
                damaged[at : at + 4] = chance.choice(WORDS)
            else:
                at = place + chance.randrange(block_size)
                damaged[at] = chance.choice((damaged[at] ^ 1 << chance.randrange(8), 0, 0xFF, chance.randrange(256)))
        started = time.process_time()
        try:
            with FileSystem.open(MemoryPool(damaged), GOES_ON if seed % 2 else STOPS) as fs:
                bounded_walk(fs)
                change_everything(fs, chance)
        except OSError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        assert time.process_time() - started < TRIAL_LIMIT, f"seed {seed} took too long"


FUZZED = {
    "csum": ("-b", "1024"),
    "no-csum": ("-b", "1024", "-O", "^metadata_csum"),
    "no-csum-no-journal": ("-b", "1024", "-O", "^metadata_csum,^has_journal"),
    "no-extents": ("-b", "1024", "-O", "^metadata_csum,^extent,^64bit,^has_journal", "-I", "128"),
    "orphan-file": ("-b", "1024", "-O", "^metadata_csum,orphan_file"),
}


def fuzzed(pool: MakePool, options: tuple[str, ...], trials: range) -> None:
    path = pool(*options, size="4M" if "no-journal" in str(options) or "^has_journal" in str(options) else "8M")
    with FileSystem.open(path) as fs:
        furnish(fs)
        mingle(PoolSide(fs), random.Random(1), {}, 60)
    with FileSystem.open(path, Options(read_only=True)) as fs:
        blocks, size = metadata_blocks(fs), fs.volume.block_size
    image = path.read_bytes()
    shake(image, blocks, size, trials)


@pytest.mark.parametrize("options", FUZZED.values(), ids=list(FUZZED))
def test_random_damage_ends_in_named_errors(pool: MakePool, options: tuple[str, ...]) -> None:
    fuzzed(pool, options, range(60))


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", FUZZED.values(), ids=list(FUZZED))
def test_much_random_damage_ends_in_named_errors(pool: MakePool, options: tuple[str, ...]) -> None:
    fuzzed(pool, options, range(1000, 9000))


@pytest.mark.parametrize("options", [FUZZED["csum"], FUZZED["no-csum"]], ids=["csum", "no-csum"])
def test_random_damage_of_a_dirty_log(pool: MakePool, options: tuple[str, ...]) -> None:
    path = pool(*options, size="8M")
    with FileSystem.open(path) as fs:
        furnish(fs)
        fs.sync()
        mingle(PoolSide(fs), random.Random(1), {}, 60)
        fs.sync()
        image = copy(path, "dirty").read_bytes()
        view = fs.volume.view
        log = [
            block
            for run in mapping.walk(view, inodes.read(view, 8))
            for block in range(run.pblk, run.pblk + run.length)
        ]
    log = [block for block in log if image[block * 1024 : block * 1024 + 1024].strip(b"\0")]
    shake(image, log[:200], 1024, range(60))

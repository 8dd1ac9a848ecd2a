"""One trial of the fuzzer: mount a mutated image, read and change all that can be reached, and judge what happened.

A trial makes some 900 operations (200 on the pool with fast commits, where many mounts are refused).
"""

from __future__ import annotations

import errno
import random
import resource
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from daxfs.errors import FsError, PoolError
from daxfs.fs import imaging
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options, SetAttributes
from daxfs.pmem.memory import MemoryPool
from fuzz.mutations import Mutator, Places
from support import HANG_SECONDS, tool

CPU_SECONDS = 2.0
"""Processor time after which a trial counts as a hang; one takes a fifth of a second, interpreted."""
MEMORY = 300 << 20
KEEPS_DATA = frozenset(("directory", "directory index", "attributes", "orphan file", "snapshot"))
"""Damage that does not touch maps of files: what no operation was about keeps its content."""
MOST_INODES = 400
EVERY = (
    *(Options(errors="continue"), Options(errors="remount-ro")),
    *(Options(read_only=True), Options(read_only=True, replay=False)),
)
REPAIRED = (0, 1, 2, 3)
"""Exit codes of e2fsck after which the file system is sound."""


class Hang(BaseException):
    """The trial has used its processor time; no handler of the file system may catch this."""


class Finding(NamedTuple):
    """What is wrong with daxfs."""

    seed: int
    kinds: tuple[str, ...]
    what: str


def trial(seed: int, image: bytes, places: Places, folder: Path | None = None) -> Finding | None:
    """Mutate the image by ``seed`` and use it; with a ``folder``, e2fsck judges what is left."""
    chance = random.Random(seed)
    mutator = Mutator(image, places, chance)
    kinds = tuple(mutator.mutate() for _ in range(chance.choice((1, 1, 1, 2, 4))))
    content = mutator.content
    damaged = bytes(content)
    options = EVERY[chance.randrange(len(EVERY))]
    touched: set[int] = set()
    stage, storage = places.stage, bytes(mutator.storage)
    pool = MemoryPool(content) if stage is None else stage.put(content, storage)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    try:
        with deadline():
            mounted = use(pool, options, chance, touched)
    except Hang:
        return Finding(seed, kinds, "no end: " + traceback.format_exc(limit=-6))
    except Exception:
        return Finding(seed, kinds, traceback.format_exc(limit=-8))
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before > MEMORY:
        return Finding(seed, kinds, "too much memory")
    left = storage
    if stage is not None:
        content[:], left = stage.members.pool.read_bytes(), stage.members.storage.read_bytes()
        if left != storage and (not mounted or options.read_only):
            return Finding(seed, kinds, "the storage was changed")
    what = misplaced(damaged, content, options, mounted, places, kinds, touched)
    if what:
        return Finding(seed, kinds, what)
    if mounted and folder is not None:  # e2fsck, too, refuses what is no ext4 any more
        path = folder / f"fuzzed-{seed}"
        after = bytes(content)
        if stage is not None:
            after, damaged = stage.joined(after, left), stage.joined(damaged, storage)
        what = judged(path, after)
        if what and not judged(path, damaged):  # what e2fsck can't repair without daxfs is not daxfs's
            return Finding(seed, kinds, what)
    return None


def misplaced(
    damaged: bytes,
    content: bytearray,
    options: Options,
    mounted: bool,
    places: Places,
    kinds: tuple[str, ...],
    touched: set[int],
) -> str:
    """Return where something was stored that should not be; the empty string: nowhere."""
    if not mounted and not places.recovers and damaged != content:
        return "a pool that was refused was changed"
    if options.replay or not options.read_only:
        size = places.geometry.block_size
        if KEEPS_DATA.issuperset(kinds):
            for ino, blocks in places.data.items():
                for number in blocks if ino not in touched else ():
                    if damaged[number * size : number * size + size] != content[number * size : number * size + size]:
                        return f"block {number} of inode {ino} was changed, which no operation was about"
    elif damaged != content:
        return "a read-only mount without replay changed the pool"
    return ""


@contextmanager
def deadline() -> Iterator[None]:
    """Raise Hang after `CPU_SECONDS` of processor time."""

    def expired(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def use(pool: MemoryPool | Path, options: Options, chance: random.Random, touched: set[int]) -> bool:
    """Mount, read, change, read, unmount; errors that daxfs raises on purpose are right. False: nothing was mounted.

    ``touched`` gets the inodes that operations were about.
    """
    try:
        fs = FileSystem.open(pool, options)
    except (FsError, PoolError):
        return False
    try:
        found = read_all(fs)
        tolerate(lambda: read_snapshots(fs))
        if not fs.read_only:
            change(fs, found, chance, touched)
            read_all(fs)
            tolerate(lambda: change_snapshots(fs, chance))
    finally:
        tolerate(fs.close)
    return True


def tolerate(action: Callable[[], object]) -> object:
    """Do something that may meet damage."""
    try:
        return action()
    except FsError as error:
        assert error.errno in errno.errorcode, error
        return None


def read_all(fs: FileSystem) -> list[tuple[int, bytes, int]]:
    """Read everything that can be reached, once; return the names (directory, name, inode)."""
    found: list[tuple[int, bytes, int]] = []
    seen: set[int] = set()
    todo = [ROOT_INO]
    tolerate(fs.statfs)
    while todo and len(seen) < MOST_INODES:
        ino = todo.pop()
        if ino in seen:
            continue
        seen.add(ino)
        for look in (fs.getattr, fs.describe, fs.readlink, fs.generation, fs.by_number):
            tolerate(lambda look=look, ino=ino: look(ino))
        for name in tolerate(lambda ino=ino: fs.listxattr(ino)) or ():
            tolerate(lambda ino=ino, name=name: fs.getxattr(ino, name))
        tolerate(lambda ino=ino: read_ends(fs, ino))
        for name, child in (tolerate(lambda ino=ino: listing(fs, ino)) or [])[:MOST_INODES]:
            if name not in (b".", b".."):
                tolerate(lambda ino=ino, name=name: fs.lookup(ino, name))
                found.append((ino, name, child))
                todo.append(child)
        tolerate(lambda ino=ino: fs.lookup(ino, b"absent"))
    return found


def read_ends(fs: FileSystem, ino: int) -> None:
    """Read the beginning, the middle and the end of a file."""
    file = fs.open_file(ino)
    try:
        size = fs.getattr(ino).size
        for offset in {0, size // 2, max(size - 70_000, 0)}:
            tolerate(lambda offset=offset: bytes(fs.read(file, offset, 70_000)))
    finally:
        tolerate(lambda: fs.release(file))


def listing(fs: FileSystem, ino: int) -> list[tuple[bytes, int]]:
    """List a directory three times, the last time from the middle on; the first one may meet damage on its way."""
    directory = fs.opendir(ino)
    try:
        for _ in fs.readdir(directory):
            pass
        entries = list(fs.readdir(directory))
        if entries:
            half = len(entries) // 2
            assert [entry.name for entry in fs.readdir(directory, entries[half].cookie)] == [
                entry.name for entry in entries[half + 1 :]
            ], "a listing that goes on shows other names"
        return [(entry.name, entry.ino) for entry in entries]
    finally:
        tolerate(lambda: fs.releasedir(directory))


def read_snapshots(fs: FileSystem) -> None:
    """Read what snapshots hold, as far as they can be read."""
    for each in fs.list_snapshots():
        tolerate(lambda name=each.name: read_snapshot(fs, name))


def read_snapshot(fs: FileSystem, name: bytes) -> None:
    """Read a snapshot."""
    for _ in imaging.pieces(fs.volume.pool, fs.open_snapshot(name)):
        pass


def change_snapshots(fs: FileSystem, chance: random.Random) -> None:
    """Delete some snapshots, and make one where there were some."""
    listed = fs.list_snapshots()
    for each in listed:
        if chance.random() < 0.5:
            tolerate(lambda name=each.name: fs.delete_snapshot(name))
    if listed:
        tolerate(lambda: fs.create_snapshot(b"another"))
        tolerate(lambda: read_snapshots(fs))


def change(fs: FileSystem, found: list[tuple[int, bytes, int]], chance: random.Random, touched: set[int]) -> None:
    """Make some of every kind of change."""
    chance.shuffle(found)
    for number in range(4):
        tolerate(lambda number=number: fs.mkdir(ROOT_INO, b"dir%d" % number, 0o755))
        tolerate(lambda number=number: fs.tree.write_bytes(f"/new{number}", b"x" * 20_000))
    for parent, name, ino in found[:40]:
        touched.add(ino)
        change_one(fs, parent, name, ino, chance)
    tolerate(fs.sync)


def change_one(fs: FileSystem, parent: int, name: bytes, ino: int, chance: random.Random) -> None:
    """Change one file in every way."""
    size = chance.randrange(100_000)
    moved = b"moved%d" % ino
    for action in (
        lambda: fs.setxattr(ino, b"user.new", b"x" * 200),
        lambda: write_into(fs, ino, size),
        *((lambda: fs.demote(ino), lambda: fs.promote(ino)) if fs.volume.tiers else ()),
        lambda: fs.setattr(ino, SetAttributes(size=size)),
        lambda: fs.mknod(ino, b"inside", 0o100644),
        lambda: fs.link(ino, ROOT_INO, b"link%d" % ino),
        lambda: fs.rename(parent, name, ROOT_INO, moved),
        lambda: fs.unlink(parent, name),
        lambda: fs.unlink(ROOT_INO, moved),
        lambda: fs.rmdir(ROOT_INO, moved),
    ):
        if chance.random() < 0.6:
            tolerate(action)


def write_into(fs: FileSystem, ino: int, offset: int) -> None:
    """Write some bytes into a file."""
    file = fs.open_file(ino, 2)
    try:
        fs.write(file, offset, b"w" * 5000)
    finally:
        tolerate(lambda: fs.release(file))


def judged(path: Path, content: bytes) -> str:
    """Return what e2fsck leaves unrepaired; the empty string: nothing."""
    path.write_bytes(content)
    try:
        for options, codes in (("-fy", range(8)), ("-fy", REPAIRED), ("-fn", (0,))):
            done = subprocess.run(
                [tool("e2fsck"), options, path],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=HANG_SECONDS,
                check=False,
            )
            if done.returncode not in codes:
                return f"e2fsck {options}: exit {done.returncode}: {done.stdout[-600:]}{done.stderr[-300:]}"
    finally:
        path.unlink()
    return ""

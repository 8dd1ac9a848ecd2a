"""Ordinary tests as crash tests: ``@pytest.mark.crash`` puts the fixture ``fs`` on a pool that records its stores.

When such a test is over, the power is cut at a sample of the moments between its mount and its unmount. daxfs recovers
each image, its tree can be read, and e2fsck finds nothing to say. At the end of each ``sync`` and ``fsync`` that the
test has called the power is cut too, and nothing is lost then: the tree, or the inode, is as it was. `examine.Examiner`
asks for more, of workloads that it knows.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import NamedTuple

from crash_rig import Picture, bytes_after_close, take_picture, unlike
from explorer.disk import Disk, UndoPool
from explorer.sweep import sweep
from recorder import Fence, RecordingPool, Store
from tree_rig import QUIET

from daxfs.errors import Corrupt, FsError
from daxfs.fs.filesystem import FileSystem
from support import fsck, write_image

IMAGES = 12
"""Images of one test (``--crash-images``), and promises that are looked at, at most."""
SIZE = "16M"


class Promise(NamedTuple):
    """From event ``position`` on ``picture`` is durable: all of it, or what it has of the inode ``ino``."""

    position: int
    picture: Picture
    ino: int = 0


class Recorded:
    """A file system on a recording pool.

    Attributes:
        fs: in use by the test.
        pool: with the record.
        promises: what `sync` and `fsync` have promised so far.
    """

    def __init__(self, content: bytes) -> None:
        self.pool = RecordingPool(bytearray(content))
        self.fs = FileSystem.open(self.pool, QUIET)
        self.promises: list[Promise] = []
        self._start = self._end = len(self.pool.events)
        self._sync, self._fsync = self.fs.sync, self.fs.fsync
        self.fs.sync = self.sync  # type: ignore[method-assign]
        self.fs.fsync = self.fsync  # type: ignore[method-assign]

    def sync(self) -> None:
        """In place of the file system's."""
        self._sync()
        self._promise(0)

    def fsync(self, ino: int, data_only: bool = False) -> None:
        """In place of the file system's."""
        self._fsync(ino, data_only)
        self._promise(ino)

    def _promise(self, ino: int) -> None:
        with contextlib.suppress(Corrupt):  # a test may damage its pool
            self.promises.append(Promise(len(self.pool.events), take_picture(self.fs), ino))

    def close(self) -> bytes:
        """Sync once more, then unmount; the bytes then."""
        with contextlib.suppress(ValueError, FsError):  # the test has closed it, or it was mounted read-only
            self.sync()
        self._end = len(self.pool.events)
        return bytes_after_close(self.fs, self.pool)

    def check(self, images: int, rng: random.Random, folder: Path) -> int:
        """Cut the power at a sample of moments, at the promises' too; returns how many images were looked at."""
        events, block_size = self.pool.events, self.fs.volume.block_size
        disk, file = Disk(self.pool.base, block_size), folder / "cut"
        fences = [at for at in range(self._start, self._end) if isinstance(events[at], Fence)]
        chosen = set(rng.sample(fences, min(images, len(fences))))
        kept = rng.sample(self.promises, min(images, len(self.promises)))
        promised = {next((at for at in fences if at >= promise.position), self._end): promise for promise in kept}
        looked = 0
        for shown in sweep(events[: self._end], disk, rng, alone=1, subsets=1, start=self._start):
            promise = promised.get(shown.position) if shown.label == "none" else None
            if promise is None and not (shown.position in chosen and rng.random() < 1 / 3):
                continue
            looked += 1
            where = f"cut at {shown.position} of {len(events)}, {shown.label}"
            try:
                with FileSystem.open(UndoPool(disk), QUIET) as fs:
                    picture = take_picture(fs)
            except Corrupt as error:
                raise AssertionError(f"{where}: {error}") from error
            if promise is not None:
                lost = missing(promise, picture)
                assert not lost, f"{where}: {lost}"
            write_image(file, disk.content)
            fsck(file)
        return looked


def missing(promise: Promise, found: Picture) -> list[str]:
    """What of a promise is not as it was."""
    expected = promise.picture
    if not promise.ino:
        return unlike(found, expected)
    mine = {path: facts for path, facts in expected.facts.items() if facts.ino == promise.ino}
    wrong = [f"{path!r}" for path, facts in mine.items() if found.facts.get(path) != facts]
    if promise.ino in expected.contents and found.contents.get(promise.ino) != expected.contents[promise.ino]:
        wrong.append(f"content of inode {promise.ino}")
    return wrong


def complete(pool: RecordingPool, content: bytes) -> bool:
    """Whether the bytes at the beginning and the recorded stores make up the memory."""
    memory = bytearray(pool.base)
    for event in pool.events:
        if isinstance(event, Store):
            memory[event.offset : event.offset + len(event.data)] = event.data
    return memory == content

"""Workloads on pools without a journal, which promise less.

A commit is not atomic there. After a cut `e2fsck -fy` must make a sound file system without losing the content of files
that the workload did not touch. Their names may be lost with a block of their directory that was cut in the middle;
e2fsck then finds the files, in lost+found.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

from crash_rig import READ_ONLY, Picture, Run, image, mend

from daxfs.fs.filesystem import FileSystem
from explorer.disk import Disk
from explorer.examine import Depth, Tally, Wrong
from explorer.sweep import sweep
from explorer.workloads import Workload
from support import fsck, write_image

RUNS = 3
"""One run of e2fsck may leave a directory that the next one rebuilds."""


class PlainExaminer:
    """One workload's images; arguments as `examine.Examiner`."""

    def __init__(self, workload: Workload, folder: Path, depth: Depth) -> None:
        content = image(workload.format)
        self.run = Run(content, workload.steps)
        self.tally = Tally(workloads=1)
        self._workload = workload
        self._depth = depth
        self._rng = random.Random(zlib.crc32(repr(workload).encode()))
        self._file = folder / "image"
        self._disk = Disk(content, self.run.fs.volume.block_size)
        self._seen: set[bytes] = set()
        self._kept = untouched(self.run)

    def explore(self) -> Tally:
        """Look at every image.

        Raises:
            Wrong: e2fsck can't mend an image, or something is gone that the workload did not touch.
        """
        run, depth = self.run, self._depth
        few, (start, stop) = min(depth.alone, 16), self._workload.part.window(run)
        for shown in sweep(
            run.pool.events, self._disk, self._rng, alone=few, subsets=depth.subsets, start=start, stop=stop
        ):
            self.tally.cuts += shown.first
            self.tally.images += 1
            exact = self._disk.digest()
            if exact not in self._seen:
                self._seen.add(exact)
                self.tally.distinct += 1
                try:
                    self._image()
                except AssertionError as error:
                    where = f"{self._workload}, cut at {shown.position} of {len(run.pool.events)}, {shown.label}"
                    raise Wrong(f"{where}\n{error}") from error
        return self.tally

    def _image(self) -> None:
        """Have e2fsck mend what is on the disk, and look for what must be there."""
        write_image(self._file, self._disk.content)
        for _ in range(RUNS):
            if not mend(self._file, "-fy", "-E", "no_optimize_extents"):
                break
        fsck(self._file)
        self.tally.states += 1
        with FileSystem.open(self._file, READ_ONLY) as fs:
            for ino, content in self._kept.items():
                file = fs.open_file(ino)
                assert fs.read(file, 0, len(content) + 1) == content, f"content of inode {ino}"
                fs.release(file)


def untouched(run: Run) -> dict[int, bytes]:
    """Content of the files, by inode, that no operation has touched."""
    first, *later = [moment.picture for moment in run.moments]
    return {
        facts.ino: first.contents[facts.ino]
        for path, facts in first.facts.items()
        if facts.ino in first.contents and all(same(picture, first, path) for picture in later)
    }


def same(picture: Picture, first: Picture, path: bytes) -> bool:
    """Whether two pictures have the same file at a path."""
    facts = picture.facts.get(path)
    return facts == first.facts[path] and picture.contents[facts.ino] == first.contents[facts.ino]

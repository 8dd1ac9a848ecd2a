"""Recover each crash image of a workload and judge what comes out.

daxfs replays the log of every image. Most images become a state that another one has become before: a state is mounted,
read and checked by e2fsck once, and judged once for each set of promises. A share of the images is recovered by e2fsck
and by the kernel too, which must find the same tree; in another share the recovery itself is cut.
"""

from __future__ import annotations

import random
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from crash_rig import (
    EPOCH_NS,
    QUIET,
    Picture,
    grow_everything,
    image,
    preen,
    recover_by_e2fsck,
    recover_by_kernel,
    take_picture,
    torn_descriptor,
    torn_superblock,
    unlike,
)
from recorder import RecordingPool

from daxfs.errors import Corrupt
from daxfs.fs import clock
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.mounting import log_area, needs_recovery, read_superblock, recover_in_place
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures.mapping import Extent
from explorer.disk import Disk, UndoPool
from explorer.sweep import sweep
from explorer.tiers import TIERED, TieredUndoPool, mounted, recording, tiered_image
from explorer.workloads import Workload
from support import fsck, write_image

FEW = {"alone": 2, "subsets": 1}
"""How much of a cut recovery is examined."""


@dataclass(slots=True)
class Depth:
    """How much is examined.

    Attributes:
        alone: lines of a cut that go missing alone, and that are there alone, at most.
        subsets: random subsets of lines and of words at each cut.
        others: the share of images that e2fsck and the kernel recover too, and that ``e2fsck -p`` must mend.
        grow: the share of states in which every file is made longer, to see that only zeros appear.
        again: the share of images whose recovery is cut, too.
    """

    alone: int = 512
    subsets: int = 6
    others: float = 0.002
    grow: float = 0.1
    again: float = 0.01


@dataclass(slots=True)
class Tally:
    """What was looked at.

    Attributes:
        workloads: how many.
        cuts: crash points.
        images: what was tried at them.
        distinct: of these, how many were not the same bytes with the same promises.
        states: different ones after recovery.
        others: images that e2fsck and the kernel have recovered as well.
        again: images of recoveries that were cut.
    """

    workloads: int = 0
    cuts: int = 0
    images: int = 0
    distinct: int = 0
    states: int = 0
    others: int = 0
    again: int = 0

    def add(self, other: Tally) -> None:
        """Count another's as well."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Wrong(AssertionError):
    """An image that recovers to something that the workload may not leave."""


def freeze_clocks() -> None:
    """Stop this process's clocks, as far as recovery asks them: equal images then recover to equal bytes."""
    time.time = lambda: EPOCH_NS / 1e9  # type: ignore[assignment]
    clock.now = lambda: EPOCH_NS  # type: ignore[assignment]


class Layout:
    """Where the files of a recovered state lie: states with the same metadata differ only in what lies there.

    Attributes:
        blocks: with content of files, which e2fsck does not read.
    """

    def __init__(self, picture: Picture, runs: dict[int, list[Extent]], block_size: int) -> None:
        self.blocks = frozenset(
            block for found in runs.values() for run in found for block in range(run.pblk, run.pblk + run.length)
        )
        self._picture = picture
        self._runs = runs
        self._block_size = block_size

    def picture(self, content: bytearray) -> Picture:
        """The tree, with the content that files have in these bytes of a pool."""
        contents = {ino: self._content(ino, content) for ino in self._picture.contents}
        return self._picture._replace(contents=contents)

    def _content(self, ino: int, content: bytearray) -> bytes:
        size = self._block_size
        length = len(self._picture.contents[ino])
        made = bytearray(-(-length // size) * size)
        for run in self._runs[ino]:
            begin, end = run.lblk * size, min((run.lblk + run.length) * size, len(made))
            if not run.unwritten and begin < end:
                made[begin:end] = content[run.pblk * size : run.pblk * size + end - begin]
        return bytes(made[:length])


class Examiner:
    """One workload's images.

    Args:
        workload: done once, on a recording pool.
        folder: for files that e2fsck and the kernel look at.
        depth: how much is examined.
    """

    def __init__(self, workload: Workload, folder: Path, depth: Depth) -> None:
        self._tiered = workload.format in TIERED
        content = tiered_image(workload.format) if self._tiered else image(workload.format)
        self.run = workload.run(content)
        self.tally = Tally(workloads=1)
        self._workload = workload
        self._depth = depth
        self._rng = random.Random(zlib.crc32(repr(workload).encode()))
        self._file = folder / "image"
        self._disk = Disk(content, self.run.fs.volume.block_size)
        self._journal = journal_blocks(content)
        self._layouts: dict[frozenset[int], dict[bytes, Layout]] = {}
        self._seen: set[tuple[bytes, tuple[int, int]]] = set()
        self._pictures: dict[bytes, Picture] = {}
        self._judged: set[tuple[bytes, tuple[int, int]]] = set()

    def explore(self) -> Tally:
        """Look at every image.

        Raises:
            Wrong: recovery makes something of an image that the workload may not leave.
        """
        run, depth = self.run, self._depth
        events = run.pool.events
        start, stop = self._workload.part.window(run)
        for shown in sweep(
            events, self._disk, self._rng, alone=depth.alone, subsets=depth.subsets, start=start, stop=stop
        ):
            self.tally.cuts += shown.first
            self.tally.images += 1
            try:
                self._image(shown.position)
            except (AssertionError, Corrupt) as error:
                where = f"{self._workload}, cut at {shown.position} of {len(events)}, {shown.label}"
                raise Wrong(f"{where}\n{error}") from error
        return self.tally

    def _image(self, position: int) -> None:
        """Recover and judge what is on the disk."""
        disk, chance = self._disk, self._rng.random
        stage = self.run.stage(position)
        exact = disk.digest(), stage
        if exact in self._seen:
            return
        self._seen.add(exact)
        self.tally.distinct += 1
        others, again = chance() < self._depth.others, chance() < self._depth.again
        crashed = disk.copy() if others or again else disk
        picture = self._recover(disk, position)
        if others:
            self._compare(bytes(crashed.content), picture)
        if again:
            self._cut_recovery(crashed, position)

    def _recover(self, disk: Disk, position: int) -> Picture:
        """Recover what is on the disk, and judge the tree that a mount finds if the state is new at this stage.

        The log is replayed for each image. Images that replay makes the same are mounted once, since the mount that
        follows is the same as well.
        """
        mark = disk.mark()
        replay(UndoPool(disk))
        state = disk.digest(self._journal)
        picture = self._pictures.get(state)
        if picture is None:
            disk.rewind(mark)
            picture = self._pictures[state] = self._look(self._mounted(disk), disk)
        judged = state, self.run.stage(position)
        if judged not in self._judged:
            faults = self.run.judge(picture, position)
            assert not faults, "\n".join(faults)
            self._judged.add(judged)
        return picture

    def _mounted(self, disk: Disk) -> FileSystem:
        """Mount what is on the disk."""
        if self._tiered:
            return mounted(TieredUndoPool(disk))
        return FileSystem.open(UndoPool(disk), QUIET)

    def _look(self, fs: FileSystem, disk: Disk) -> Picture:
        """Read a state that was not seen before.

        If only file data is new in it, that is read where the files are known to lie; else e2fsck checks it, too.
        """
        self.tally.states += 1
        for data, known in self._layouts.items():
            layout = known.get(disk.digest(self._journal | data))
            if layout is not None:
                fs.volume.pool.close()
                return layout.picture(disk.content)
        picture = take_picture(fs)
        runs = {ino: fs.describe(ino) for ino in picture.contents}
        layout = Layout(picture, runs, fs.volume.block_size)
        if not picture.snapshots:  # what they show depends on file data, too
            self._layouts.setdefault(layout.blocks, {})[disk.digest(self._journal | layout.blocks)] = layout
        fs.close()
        write_image(self._file, disk.content)
        fsck(self._file)
        if self._rng.random() < self._depth.grow:
            wrong = grow_everything(bytearray(disk.content))
            assert not wrong, "\n".join(wrong)
        return picture

    def _compare(self, content: bytes, mine: Picture) -> None:
        """e2fsck and the kernel recover the image to the same tree; what they refuse to look at is documented."""
        self.tally.others += 1
        torn = torn_superblock(content)
        if not torn:
            wrong = unlike(recover_by_e2fsck(content, self._file), mine)
            assert not wrong, f"e2fsck: {wrong[:4]}"
        if not torn and not torn_descriptor(content):
            preen(content, self._file)
            wrong = unlike(recover_by_kernel(content, self._file), mine)
            assert not wrong, f"the kernel: {wrong[:4]}"

    def _cut_recovery(self, crashed: Disk, position: int) -> None:
        """The power fails once more, between the mount that recovers the image and its unmount."""
        content = bytearray(crashed.content)
        recorder = recording(content) if self._tiered else RecordingPool(content)
        FileSystem.open(recorder, QUIET).close()
        for shown in sweep(recorder.events, crashed, self._rng, **FEW):
            self.tally.again += 1
            try:
                self._recover(crashed, position)
            except (AssertionError, Corrupt) as error:
                raise AssertionError(f"its recovery cut at {shown.position}, {shown.label}\n{error}") from error


def replay(pool: UndoPool) -> None:
    """The first part of a mount: the log is replayed, if it may hold something, and is empty then."""
    if needs_recovery(read_superblock(pool)):
        recover_in_place(pool)
    pool.close()


def journal_blocks(content: bytes) -> set[int]:
    """The blocks of the journal, none without one."""
    with FileSystem.open(MemoryPool(content), QUIET) as fs:
        geometry = fs.volume.geometry
    if not geometry.has_journal:
        return set()
    pool = MemoryPool(content)
    area = log_area(PoolView(pool, geometry), read_superblock(pool))
    return {block for first, count in area.runs for block in range(first, first + count)}

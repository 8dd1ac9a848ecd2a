"""Try one error in one operation, and judge what it leaves.

A `Reference` does the operation without an error, and takes a picture of the tree after each call of the facade.
`attempt` does it on the same pool with an error, and returns what is wrong:

* Only an `FsError` comes out, and never `Corrupt`: nothing is damaged.
* The tree is as before the operation or as after one of its calls; as after it, if it succeeded. What an operation that
  works piece by piece has changed may be as it likes (`work.PIECEWISE`).
* What the core holds in DRAM agrees with the pool (`FileSystem.check`).
* The volume goes on: further operations and a commit succeed. An error in the middle of a commit aborts the journal
  instead; then a mount recovers a tree as above.
* `e2fsck -fn` finds nothing after the unmount; ``-p`` mends what is marked for it (`work.MARKING`).
"""

from __future__ import annotations

import errno
import random
import stat
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import pytest
from crash_rig import EPOCH_NS, FORMATS, PLAIN, Picture, differing, image, made, mend, noise, steady_clock, take_picture
from explorer.disk import Disk
from explorer.tiers import TIERED, tiered_image
from tiered_recorder import opened
from tree_rig import QUIET

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import hash as hash_of_names
from daxfs.ext4.superblock import EXT4_ERROR_FS, SUPERBLOCK_OFFSET, Superblock
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from failing.judge import Judge
from failing.seams import FailingPool, Trigger, distinct, injected
from failing.tiered import FailingTieredPool
from failing.work import ALL, LONGER, MARKING, MORE_FORMATS, NEEDED, PIECEWISE, Bench, Case
from support import fsck

CALLS = (
    *("create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "setattr", "set_flags", "tmpfile"),
    *("set_fsxattr", "setxattr", "removexattr", "set_label", "open_file", "release", "write", "fallocate"),
    *("copy_range", "lease", "create_snapshot", "delete_snapshot", "demote", "promote"),
)
"""The calls of the facade after which a reference takes a picture."""
SEED = 7


EVERY_FORMAT = (*FORMATS, *PLAIN, *MORE_FORMATS, *TIERED)
MOST_WRONG = 20
"""Wrong cases after which a sweep ends."""


def content_of(name: str) -> bytes:
    """Return a pool of a format."""
    if name in TIERED:
        return tiered_image(name)
    return made(MORE_FORMATS[name]) if name in MORE_FORMATS else image(name)


class Tally:
    """What was tried.

    Attributes:
        tried: cases in which the error was met.
        wrong: what is wrong, each with its case.
    """

    def __init__(self) -> None:
        self.tried = 0
        self.wrong: list[str] = []

    def add(self, case: object, wrong: list[str]) -> None:
        """Count a case."""
        self.tried += 1
        if wrong:
            self.wrong.append(f"{case}: " + "; ".join(wrong))


class Lab:
    """A pool on which operations are done again and again.

    Attributes:
        disk: its bytes, which are taken back after each attempt.
        name: of the format.
    """

    def __init__(self, name: str, folder: Path) -> None:
        content = content_of(name) + noise(LONGER.get(name, 0), 1)
        self.name = name
        self.block_size = 4096 if name == "4k" or name in TIERED else 1024
        self.disk = Disk(content, self.block_size)
        self.file = folder / "mended"
        self._judge = Judge(folder / "judged")
        self._references: dict[str, Reference] = {}

    def reference(self, operation: str) -> Reference:
        """Return what an operation does when nothing fails."""
        found = self._references.get(operation)
        if found is None:
            found = self._references[operation] = Reference(self, operation)
        return found

    def mounted(self, seam: str = "", trigger: Trigger | None = None) -> FileSystem:
        """Mount the pool; a seam fails as the trigger says."""
        trigger = trigger or Trigger()
        if self.name in TIERED:
            return opened(FailingTieredPool(self.disk, seam, trigger), QUIET)
        return FileSystem.open(FailingPool(self.disk, seam, trigger), QUIET)

    def prepared(self, operation: str, seam: str, trigger: Trigger) -> Bench:
        """Return a workbench on the pool, mounted, on which everything that the operation needs was done."""
        random.seed(SEED)
        bench = Bench(self.mounted(seam, trigger))
        for needed in NEEDED.get(operation, ()):
            with suppress(FsError, IndexError):  # what a format does not have
                ALL[needed](bench)
        bench.fs.sync()
        random.seed(SEED)
        return bench

    def fsck(self, disk: Disk) -> None:
        """e2fsck finds nothing."""
        self._judge(disk, self.block_size)

    def events(self, operation: str, seam: str, trigger: Trigger) -> list[int]:
        """Return the numbers of the events of an operation that are worth a failure (`seams.distinct`)."""
        with trigger.watching() as paths:
            bench = self.prepared(operation, seam, trigger)
            trigger.armed = True
            try:
                ALL[operation](bench)
            finally:
                trigger.armed = False
                bench.fs.close()
                self.disk.rewind()
        return distinct(paths)


class Reference:
    """What an operation does when nothing fails.

    Attributes:
        before: the tree.
        allowed: the tree before, and after each call.
        after: the tree at the end.
        touched: inodes that it changes, or that are open.
        refused: whether the format refuses it anyway.
    """

    def __init__(self, lab: Lab, operation: str) -> None:
        self.refused = False
        bench = lab.prepared(operation, "", Trigger())
        fs = bench.fs
        self.before = timeless(take_picture(fs, bench.opened))
        self.allowed = [self.before]
        opened = frozenset(file.ino for file in bench.opened)
        self._watch(bench)
        try:
            ALL[operation](bench)
        except (FsError, IndexError):  # IndexError: what it needs was refused
            self.refused = True
        self.after = timeless(take_picture(fs, bench.opened))
        self.allowed.append(self.after)
        self.touched = changed(self.allowed) | opened
        for name in CALLS:
            fs.__dict__.pop(name, None)
        fs.close()
        lab.disk.rewind()

    def _watch(self, bench: Bench) -> None:
        fs = bench.fs

        def watched(call: Callable[..., object]) -> Callable[..., object]:
            def run(*arguments: object, **options: object) -> object:
                result = call(*arguments, **options)
                for name in CALLS:
                    fs.__dict__.pop(name, None)
                self.allowed.append(timeless(take_picture(fs, bench.opened)))
                self._watch(bench)
                return result

            return run

        for name in CALLS:
            setattr(fs, name, watched(getattr(fs, name)))


def timeless(picture: Picture) -> Picture:
    """Return the tree without times, and without what snapshots show."""
    return Picture(picture.facts, {}, picture.contents)


def changed(pictures: list[Picture]) -> frozenset[int]:
    """Return the inodes that differ between any of the trees."""
    first = pictures[0]
    found: set[int] = set()
    for picture in pictures[1:]:
        for facts in set(first.facts.values()) ^ set(picture.facts.values()):
            found.add(facts.ino)
        for ino in first.contents.keys() | picture.contents.keys():
            if first.contents.get(ino) != picture.contents.get(ino):
                found.add(ino)
    return frozenset(found)


def without(picture: Picture, inodes: frozenset[int]) -> Picture:
    """Return the tree with the names of these inodes, and nothing of what they hold unless they are directories."""
    facts = {
        path: found._replace(size=0, blocks=0, content=None, mode=stat.S_IFREG, xattrs=())
        if found.ino in inodes and stat.S_ISREG(found.mode)
        else found
        for path, found in picture.facts.items()
    }
    return Picture(facts, {}, {ino: content for ino, content in picture.contents.items() if ino not in inodes})


def numberless(picture: Picture) -> Picture:
    """Return the tree with inodes that are numbered by their first names: a shrink gives some other numbers."""
    ranks: dict[int, int] = {}
    for path in sorted(picture.facts):
        ranks.setdefault(picture.facts[path].ino, len(ranks))
    facts = {
        path: found._replace(
            ino=ranks[found.ino],
            content=tuple((name, ranks.get(ino, ino), kind) for name, ino, kind in found.content)
            if isinstance(found.content, tuple) and stat.S_ISDIR(found.mode)
            else found.content,
        )
        for path, found in picture.facts.items()
    }
    return Picture(facts, {}, {ranks.get(ino, ino): content for ino, content in picture.contents.items()})


def unlike_all(found: Picture, allowed: list[Picture]) -> list[str]:
    """Return why a tree is none of these; empty if it is one."""
    wrong: list[str] = []
    for at, expected in enumerate(allowed):
        different = differing(found.facts, expected.facts) + [
            f"content of inode {ino}"
            for ino in found.contents.keys() | expected.contents.keys()
            if found.contents.get(ino) != expected.contents.get(ino)
        ]
        if not different:
            return []
        wrong.append(f"unlike {at}: {different[:4]}")
    return wrong


def go_on(fs: FileSystem) -> None:
    """Ordinary operations, and a commit."""
    file, made = fs.create(ROOT_INO, b"follows", 0o644)
    try:
        fs.write(file, 0, b"x" * 3000)
        fs.setxattr(made.ino, b"user.follows", b"y" * 100)
    finally:
        fs.release(file)
    fs.mkdir(ROOT_INO, b"follows too", 0o755)
    fs.rename(ROOT_INO, b"follows", ROOT_INO, b"followed")
    fs.sync()
    fs.unlink(ROOT_INO, b"followed")
    fs.rmdir(ROOT_INO, b"follows too")
    fs.sync()


def attempt(lab: Lab, case: Case, reference: Reference, trigger: Trigger) -> list[str]:
    """Do the operation with the error of a case; return what is wrong."""
    trigger.at, trigger.lasting, trigger.count = case.at, case.lasting, 0
    bench = lab.prepared(case.operation, case.seam, trigger)
    fs = bench.fs
    wrong: list[str] = []
    error: BaseException | None = None
    trigger.armed = True
    try:
        ALL[case.operation](bench)
    except BaseException as met:
        error = met
    finally:
        trigger.armed = False
    if trigger.count < trigger.at:
        wrong.append(f"it meets {trigger.count} events: it is not the same each time")
    try:
        if error is not None and not isinstance(error, MemoryError if case.seam == "buffer" else FsError):
            wrong.append(f"{error!r} came out")
        elif isinstance(error, Corrupt):
            wrong.append(f"{error} came out")
        if fs.interrupted:
            wrong.append("a change was interrupted")
        else:
            wrong += _judge(fs, bench, case, reference, error)
    except BaseException as met:
        place = traceback.extract_tb(met.__traceback__)[-1]
        wrong.append(f"afterwards {met!r} at {place.filename}:{place.lineno} {place.line}")
    finally:
        try:
            fs.close()
        except BaseException as met:
            if not fs.volume.journal.aborted:
                wrong.append(f"the unmount ends with {met!r}")
        fs.volume.pool.close()
    if not wrong:
        wrong += _after_unmount(lab, case, fs, reference)
    lab.disk.rewind()
    return wrong


def _masked(reference: Reference, found: Picture, *, loosely: bool) -> tuple[Picture, list[Picture]]:
    allowed = reference.allowed
    if loosely:
        inodes = reference.touched
        return without(found, inodes), [without(each, inodes) for each in allowed]
    return found, allowed


def _judge(fs: FileSystem, bench: Bench, case: Case, reference: Reference, error: BaseException | None) -> list[str]:
    if fs.volume.journal.aborted:
        # Memory that stays missing under what a commit must change (`Journal._complete`) stops the volume, too.
        stopped = case.seam == "store" or (case.seam == "load" and case.lasting)
        return [] if stopped else ["the journal was aborted"]
    if fs.read_only:
        return ["the volume is read-only"] if case.seam not in ("store", "load") else []
    fs.check()
    found = timeless(take_picture(fs, bench.opened))
    loosely = case.operation.split()[0] in PIECEWISE
    found, allowed = _masked(reference, found, loosely=loosely)
    if case.operation.startswith("shrink"):
        found, allowed = numberless(found), [numberless(each) for each in allowed]
    if error is None and not loosely:
        allowed = allowed[-1:]
    wrong = unlike_all(found, allowed)
    while bench.opened:
        fs.release(bench.opened.pop())
    try:
        go_on(fs)
    except FsError as met:
        # A pool that the operation has filled is full.
        if not (met.errno == errno.ENOSPC and case.operation.startswith("fill")):
            wrong.append(f"the volume does not go on: {met!r}")
    fs.check()
    return wrong


def _after_unmount(lab: Lab, case: Case, fs: FileSystem, reference: Reference) -> list[str]:
    wrong: list[str] = []
    if fs.volume.journal.aborted and lab.name in PLAIN:
        lab.file.write_bytes(lab.disk.content)
        mend(lab.file, "-fy")  # without a journal a commit is not atomic (docs/CRASH.md)
        fsck(lab.file)
        return []
    if fs.volume.journal.aborted or fs.volume.read_only:
        try:
            with lab.mounted() as again:
                found, allowed = _masked(reference, timeless(take_picture(again)), loosely=True)
                names = [sorted(each.facts) for each in allowed]
                if sorted(found.facts) not in names:
                    wrong.append(f"recovered names {sorted(found.facts)}")
                go_on(again)
        except BaseException as met:
            return [f"the next mount: {met!r}"]
    try:
        if case.operation in MARKING and marked(lab.disk):
            lab.file.write_bytes(lab.disk.content)
            mend(lab.file, "-p")
            fsck(lab.file)
        else:
            lab.fsck(lab.disk)
    except AssertionError as met:
        wrong.append(f"e2fsck: {met}")
    return wrong


def marked(disk: Disk) -> bool:
    """Whether the file system is marked as one with errors, which ``e2fsck -p`` then mends."""
    return bool(Superblock(memoryview(disk.content)[SUPERBLOCK_OFFSET:]).s_state & EXT4_ERROR_FS)


@contextmanager
def same_clock() -> Iterator[None]:
    """Everything happens at the same times, so that the same operations make the same pool; hashes are kept."""
    with steady_clock(), pytest.MonkeyPatch.context() as patches:
        patches.setattr("time.time", lambda: EPOCH_NS / 10**9)
        patches.setattr(hash_of_names, "_half_md4", lru_cache(1 << 14)(hash_of_names._half_md4))
        yield


def swept(lab: Lab, operations: Iterable[str], seam: str, *, stride: int = 1, lasting: bool = False) -> Tally:
    """Let the events of a seam fail in each operation, one after the other: of those on one path, three.

    Args:
        lab: the pool.
        operations: their names.
        seam: of `seams.SEAMS`.
        stride: every which of these events is tried.
        lasting: all events after the one that fails do, too.
    """
    tally = Tally()
    with same_clock():
        references = {operation: lab.reference(operation) for operation in operations}
        with injected(seam) as trigger:
            for operation, reference in references.items():
                for at in lab.events(operation, seam, trigger)[::stride] if not reference.refused else ():
                    case = Case(lab.name, operation, seam, at, lasting)
                    tally.add(case, attempt(lab, case, reference, trigger))
                    if len(tally.wrong) == MOST_WRONG:
                        return tally
    return tally

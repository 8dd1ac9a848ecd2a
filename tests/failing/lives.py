"""Errors while a pool is mounted, with a log to replay and orphans to free, and while it is unmounted.

A mount that fails leaves a pool that the next mount serves as if nothing had been. One that succeeds nevertheless, and
an unmount that fails, leave a pool of which the next mount makes the same tree.
"""

from __future__ import annotations

from collections.abc import Callable

from crash_rig import Picture, take_picture
from explorer.disk import Disk
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from failing.seams import FailingPool, Trigger, distinct, injected
from failing.sweep import Lab, Tally, go_on, same_clock, timeless, unlike_all
from failing.work import ALL, Bench

SYNCED = ("mkdir", "unlink open", "tmpfile", "append", "symlink long", "set large xattr")
LATER = ("chmod", "rename dir", "truncate up")


def swept(lab: Lab, seam: str, tally: Tally, *, stride: int = 1) -> None:
    """Let the events of a seam fail in a mount and in an unmount, one after the other: of those on one path, three.

    Args:
        lab: the pool.
        seam: of `seams.SEAMS`.
        tally: gets what was tried.
        stride: every which of these events is tried.
    """
    with same_clock():
        begin = Disk(worked(lab), lab.block_size)
        for life, (prepare, attempt) in LIVES.items():
            wanted = prepare(begin)
            begin.rewind()
            with injected(seam) as trigger:
                with trigger.watching() as paths:
                    attempt(lab, begin, seam, trigger, wanted)
                begin.rewind()
                for trigger.at in distinct(paths)[::stride]:
                    trigger.count = 0
                    wrong = attempt(lab, begin, seam, trigger, wanted)
                    begin.rewind()
                    tally.add(f"{life} {seam} {trigger.at}", wrong)


def worked(lab: Lab) -> bytes:
    """Return a pool of which the power was cut while it was in use: transactions in its log, orphans, no unmount."""
    disk = lab.disk
    fs = FileSystem.open(FailingPool(disk, "", Trigger()), QUIET)
    bench = Bench(fs)
    for name in SYNCED:
        ALL[name](bench)
    fs.sync()
    content = bytes(disk.content)
    fs.close()
    disk.rewind()
    return content


def tree(disk: Disk) -> Picture:
    """Mount the pool, have the volume go on, unmount it; return the tree that was found."""
    with FileSystem.open(FailingPool(disk, "", Trigger()), QUIET) as fs:
        found = timeless(take_picture(fs))
        go_on(fs)
    return found


def met(seam: str, error: BaseException) -> list[str]:
    """Return what is wrong about an error that came out."""
    return [] if isinstance(error, MemoryError if seam == "buffer" else OSError) else [f"{error!r} came out"]


def _mounted(disk: Disk) -> list[Picture]:
    """Return the tree that a mount makes of the pool."""
    return [tree(disk)]


def _mount(lab: Lab, disk: Disk, seam: str, trigger: Trigger, wanted: list[Picture]) -> list[str]:
    pool = FailingPool(disk, seam, trigger)
    trigger.armed = True
    wrong: list[str] = []
    try:
        fs = FileSystem.open(pool, QUIET)
    except BaseException as error:
        trigger.armed = False
        wrong += met(seam, error)
    else:
        trigger.armed = False
        if not fs.read_only:
            if not fs.volume.lives.unread:  # of the rest of the list it knows nothing
                fs.check()
            wrong += unlike_all(timeless(take_picture(fs)), wanted)
        fs.close()
    pool.close()
    return wrong + _end(lab, disk, wanted)


def _changed(disk: Disk) -> list[Picture]:
    """Return the trees before and after each of the changes that an unmount makes durable."""
    fs = FileSystem.open(FailingPool(disk, "", Trigger()), QUIET)
    wanted = [timeless(take_picture(fs))]
    bench = Bench(fs)
    for name in LATER:
        ALL[name](bench)
        wanted.append(timeless(take_picture(fs)))
    fs.close()
    return wanted


def _unmount(lab: Lab, disk: Disk, seam: str, trigger: Trigger, wanted: list[Picture]) -> list[str]:
    fs = FileSystem.open(FailingPool(disk, seam, trigger), QUIET)
    bench = Bench(fs)
    for name in LATER:
        ALL[name](bench)
    file, _ = fs.tmpfile(ROOT_INO, 0o600)
    fs.write(file, 0, bytes(5000))
    wrong: list[str] = []
    trigger.armed = True
    try:
        fs.close()
    except BaseException as error:
        wrong += met(seam, error)
    trigger.armed = False
    fs.volume.pool.close()
    return wrong + _end(lab, disk, wanted)


def _end(lab: Lab, disk: Disk, wanted: list[Picture]) -> list[str]:
    """Judge what the next mount finds, and what e2fsck finds after it."""
    try:
        wrong = unlike_all(tree(disk), wanted)
        lab.fsck(disk)
    except BaseException as error:
        return [f"afterwards {error!r}"]
    return wrong


Attempt = Callable[[Lab, Disk, str, Trigger, list[Picture]], list[str]]
LIVES: dict[str, tuple[Callable[[Disk], list[Picture]], Attempt]] = {
    "mount": (_mounted, _mount),
    "unmount": (_changed, _unmount),
}
"""What the next mount may find, and the attempt with an error."""

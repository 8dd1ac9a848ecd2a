"""Errors while a pool is mounted, with a log to replay and orphans to free, and while it is unmounted.

A mount that fails leaves a pool that the next mount serves as if nothing had been. One that succeeds nevertheless, and
an unmount that fails, leave a pool of which the next mount makes the same tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crash_rig import Picture, take_picture
from explorer.disk import Disk
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from failing.seams import FailingPool, Trigger, injected
from failing.sweep import Lab, Tally, go_on, same_clock, timeless, unlike_all
from failing.work import ALL, Bench

if TYPE_CHECKING:
    from collections.abc import Callable

SYNCED = ("mkdir", "unlink open", "tmpfile", "append", "symlink long", "set large xattr")
LATER = ("chmod", "rename dir", "truncate up")


def swept(lab: Lab, seam: str, tally: Tally, *, stride: int = 1) -> None:
    """Let every ``stride``-th event of a seam fail in a mount and in an unmount, from the first on."""
    with same_clock():
        for life, attempt in LIVES.items():
            begin = worked(lab)
            with injected(seam) as trigger:
                trigger.at = 1
                while True:
                    disk = Disk(begin, lab.block_size)
                    trigger.count, trigger.armed = 0, False
                    wrong = attempt(lab, disk, seam, trigger)
                    if trigger.count < trigger.at:
                        break
                    tally.add(f"{life} {seam} {trigger.at}", wrong)
                    trigger.at += stride


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


def expected(content: bytes, block_size: int) -> Picture:
    """Return the tree that a mount makes of the pool."""
    return tree(Disk(content, block_size))


def met(seam: str, error: BaseException) -> list[str]:
    """Return what is wrong about an error that came out."""
    return [] if isinstance(error, MemoryError if seam == "buffer" else OSError) else [f"{error!r} came out"]


def _mount(lab: Lab, disk: Disk, seam: str, trigger: Trigger) -> list[str]:
    wanted = [expected(bytes(disk.content), lab.block_size)]
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


def _unmount(lab: Lab, disk: Disk, seam: str, trigger: Trigger) -> list[str]:
    fs = FileSystem.open(FailingPool(disk, seam, trigger), QUIET)
    bench = Bench(fs)
    wanted = [timeless(take_picture(fs))]
    for name in LATER:
        ALL[name](bench)
        wanted.append(timeless(take_picture(fs)))
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


LIVES: dict[str, Callable[[Lab, Disk, str, Trigger], list[str]]] = {"mount": _mount, "unmount": _unmount}

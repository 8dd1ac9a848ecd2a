"""Detect loop devices on a pool that is in use, and prevent their mounts where that is possible.

The kernel honours no lock on a plain file. So any user who may open a pool can attach a loop device to it and mount the
device, which gives the file system two owners. The owner of the pool calls `LoopGuard.look` periodically. It claims
devices that nobody uses with O_EXCL, which makes mount(2) and e2fsprogs fail with EBUSY. A device that another program
has claimed is a second owner; the caller decides what to do about it.

A claim keeps its device from being detached. So `look` gives the claim up once somebody has asked for the detaching
(``autoclear``, which mount(8) sets from the start). A mount can still win the race against the first call.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from daxfs.pmem import exclusive, kinds

if TYPE_CHECKING:
    from daxfs.pmem.kinds import Target

log = logging.getLogger("daxfs.pmem")


class LoopDevice(NamedTuple):
    """A loop device. ``leaving``: the kernel detaches it once nobody has it open (autoclear)."""

    name: str
    leaving: bool


def writable_loops(target: Target, sysfs: str = "/sys") -> list[LoopDevice]:
    """Return the loop devices through which the pool can be changed; takes about 150 us with eight devices."""
    found = []
    try:
        names = os.listdir(f"{sysfs}/block")
    except OSError:
        return []
    for name in names:
        if not name.startswith("loop"):
            continue
        place = f"{sysfs}/block/{name}"
        backing = kinds.read_text(f"{place}/loop/backing_file")
        if backing and exclusive.is_pool(backing, target) and kinds.read_text(f"{place}/ro") != "1":
            found.append(LoopDevice(name, kinds.read_text(f"{place}/loop/autoclear") == "1"))
    return found


class LoopGuard:
    """The claims on the loop devices of one pool.

    Args:
        target: the pool.
        sysfs: where sysfs is mounted (tests bring their own).
        devices: the directory of the device nodes.
    """

    def __init__(self, target: Target, sysfs: str = "/sys", devices: str = "/dev") -> None:
        self._target = target
        self._sysfs = sysfs
        self._devices = devices
        self._claims: dict[str, int] = {}
        self._known: set[str] = set()

    def look(self) -> str:
        """Claim the devices that nobody uses.

        Returns:
            The path of a device that another program has claimed; "" if there is none.
        """
        owner = ""
        found = writable_loops(self._target, self._sysfs)
        for name, leaving in found:
            device = f"{self._devices}/{name}"
            if name not in self._claims:
                try:
                    self._claims[name] = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        owner = device
                if name not in self._known:
                    rule = "it can't be mounted" if name in self._claims else "it must not be mounted"
                    log.warning("%s is attached to %s; %s; losetup -d %s", self._target.path, device, rule, device)
                    continue
            if leaving and name in self._claims:
                os.close(self._claims.pop(name))
        self._known = {name for name, _ in found}
        return owner

    def close(self) -> None:
        """Give up all claims."""
        for descriptor in self._claims.values():
            os.close(descriptor)
        self._claims.clear()

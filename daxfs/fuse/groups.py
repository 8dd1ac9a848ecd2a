"""Find the supplementary groups of a caller in /proc: a FUSE request does not carry them. Both sessions use this."""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fs.types import Caller

log = logging.getLogger("daxfs.fuse")


def with_groups(caller: Caller) -> Caller:
    """Return the caller with its supplementary groups; unchanged if its process is not visible in /proc."""
    try:
        with open(f"/proc/{caller.pid}/status") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return caller._replace(groups=frozenset(map(int, line.split()[1:])))
    except (OSError, ValueError):
        log.debug("the groups of process %d are not visible", caller.pid)
    return caller


def groups_of(caller: Caller) -> frozenset[int]:
    """Return the supplementary groups of a caller, as far as they are visible (`FileSystem.find_groups_by`)."""
    return with_groups(caller).groups


def with_groups_that_matter(core: FileSystem, ino: int, caller: Caller) -> Caller:
    """Return the caller of a change that may clear S_ISGID, with supplementary groups where they decide.

    They decide for a file with S_ISGID whose group may not execute it, unless the caller is root.
    """
    if caller.uid == 0 or core.getattr(ino).mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID:
        return caller
    return with_groups(caller)

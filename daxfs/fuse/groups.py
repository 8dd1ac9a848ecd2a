"""The supplementary groups of a caller, which FUSE does not tell and only /proc knows. For both sessions."""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fs.types import Caller

log = logging.getLogger("daxfs.fuse")


def with_groups(caller: Caller) -> Caller:
    """The caller with supplementary groups; as it is if the process is not to be seen in /proc."""
    try:
        with open(f"/proc/{caller.pid}/status") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return caller._replace(groups=frozenset(map(int, line.split()[1:])))
    except (OSError, ValueError):
        log.debug("the groups of process %d are not to be seen", caller.pid)
    return caller


def groups_of(caller: Caller) -> frozenset[int]:
    """The supplementary groups of a caller, as far as they can be seen (`FileSystem.find_groups_by`)."""
    return with_groups(caller).groups


def with_groups_that_matter(core: FileSystem, ino: int, caller: Caller) -> Caller:
    """The caller of a change that may take S_ISGID away: being in the group matters where the group may not execute."""
    if caller.uid == 0 or core.getattr(ino).mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID:
        return caller
    return with_groups(caller)

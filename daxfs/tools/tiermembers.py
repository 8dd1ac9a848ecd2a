"""``daxfs tier --add`` and ``--remove``: storage joins and leaves a mounted pool (docs/TIERS.md).

The file is made and filled here, with the rights of the user; the daemon then opens it itself
(`daxfs.fuse.kernel.membership`). A file that was made is removed again if the daemon refuses.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from daxfs.errors import UserError
from daxfs.fuse.kernel.membership import MEMBER, QUESTION, Action
from daxfs.tools import command, mountpoints, tiermaking
from daxfs.tools.sizes import format_size

FAILED = 1


def add(mountpoint: str, given: str, *, force: bool, sparse: bool, trust_owner: bool) -> None:
    """Let a file or block device, ``SLOWFILE`` or ``SLOWFILE:SIZE``, follow the members of a mounted pool.

    Raises:
        UserError: nothing is mounted there, the file can't be made or used (`tiermaking.opened`), or the daemon
            refuses.
    """
    found = mountpoints.require(mountpoint)
    tier = tiermaking.parse(given)
    options = {"force": force, "sparse": sparse, "trust_owner": trust_owner, "keep_mode": False}
    with tiermaking.opened(tier, found.source, **options) as storage:
        storage.close()  # the daemon claims it
        action = Action.REPLACE if force else Action.ADD
        _tell(found.mountpoint, action, tier.path)


def remove(mountpoint: str, path: str) -> None:
    """Let the last member of a mounted pool leave.

    Raises:
        UserError: nothing is mounted there, or the daemon refuses.
    """
    _tell(mountpoints.require(mountpoint).mountpoint, Action.REMOVE, path)


def _tell(mountpoint: str, action: Action, path: str) -> None:
    question = QUESTION.pack(action, os.fsencode(os.path.abspath(path)))
    with mountpoints.root(mountpoint) as descriptor:
        block_size = os.fstatvfs(descriptor).f_frsize
        try:
            answer: dict[str, Any] = command.ask(descriptor, MEMBER, question)
        except OSError as error:
            what = "its session can't be asked to" if error.errno == errno.ENOTTY else error.strerror
            raise UserError(f"{mountpoint}: {what}", FAILED) from None
    if "errno" in answer:
        raise UserError(answer["reason"] or f"{path}: {os.strerror(answer['errno'])}", FAILED)
    print(f"{mountpoint} has {format_size(answer['blocks'] * block_size)} ({answer['blocks']} blocks) now")

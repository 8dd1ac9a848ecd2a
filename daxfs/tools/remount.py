"""``daxfs mount -o remount,...``: change the options of a mount, as mount(8) does with MS_REMOUNT.

The daemon and the kernel must agree: the daemon serves the pool, and the kernel keeps writers out of a read-only mount.
For FUSE, mount(2) changes only the kernel's own flags: ``ro``, ``sync``, nosuid and similar ones, and the flags of
times. The kernel ignores all other options of a remount, and does not inform the daemon.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence

from daxfs.errors import UserError
from daxfs.fuse import mounts, options
from daxfs.fuse.kernel.remount import REMOUNT, SIZE
from daxfs.fuse.mountoptions import MountOptions
from daxfs.tools import command, mountpoints
from daxfs.tools.status import status

PATIENCE_SECONDS = 1.0
"""How long EBUSY is retried: close(2) does not wait until the daemon has processed RELEASE."""
PAUSE_SECONDS = 0.01
REASONS = {
    errno.EBUSY: "programs hold files open for writing, removed files open, or map files; see: fuser -vm {place}",
    errno.EROFS: "it was read-only from the start, or it met damage (see the log); unmount it and mount it again",
    errno.EPERM: "only root remounts",
    errno.ENOTTY: "its session can't be remounted; unmount it and mount it again",
}


def remount(mountpoint: str, given: Sequence[str]) -> None:
    """Change options of a mount; options that are not given stay.

    Raises:
        UserError: no daxfs is mounted there, an option can't be changed, the mount is busy, or the caller is not root.
    """
    place = mountpoints.require(mountpoint, "remount needs a mountpoint", mounts.MOUNT_FAILED).mountpoint
    current_status = status(place)
    if "options" not in current_status:
        raise _refusal(place, errno.ENOTTY)
    current = options.parse(current_status["options"])
    wanted = options.remounted(current, given)
    if wanted.read_only:
        # The kernel first: a writable mount must not have a read-only daemon.
        _remount_kernel(place, wanted)
        try:
            _remount_daemon(place, wanted)
        except UserError:
            _remount_kernel(place, current)
            raise
    else:
        _remount_daemon(place, wanted)
        try:
            _remount_kernel(place, wanted)
        except UserError:
            _remount_daemon(place, current)
            raise


def _remount_kernel(place: str, wanted: MountOptions) -> None:
    try:
        mounts.remount_device(place, wanted.mount_flags)
    except OSError as error:
        raise _refusal(place, error.errno) from None


def _remount_daemon(place: str, wanted: MountOptions) -> None:
    text = ",".join(wanted.listed()).encode()
    if len(text) >= SIZE:
        raise UserError("the options of the mount are too long to be changed", mounts.USAGE)
    with mountpoints.root(place) as descriptor:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                command.send(descriptor, REMOUNT, text)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise _refusal(place, error.errno) from None
                time.sleep(PAUSE_SECONDS)
            else:
                return


def _refusal(place: str, number: int | None) -> UserError:
    number = number or errno.EIO
    reason = REASONS.get(number, os.strerror(number)).format(place=place)
    return UserError(f"{place} can't be remounted: {reason}", mounts.MOUNT_FAILED)
